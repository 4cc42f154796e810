//! One file from a web server: what a drop-in names by URL and digest.
//!
//! A process of its own asks for it, as the user that fetches. What that says is what the server said: whoever wants the
//! file compares its digest.

use super::fetch::{Patience, dice};
use super::types::{FetchOptions, Worker};
use super::wire::{Failed, write_line};
use super::worker::{Request, WORKER_ARG};
use crate::engine::cx::Cx;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process;
use crate::sys::skopeo::without_queries;
use reqwest::header::{ACCEPT_ENCODING, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio::process::Command;

/// A connection must be there by then.
const CONNECT: Duration = Duration::from_secs(20);
const BESIDE: &str = "try again later, or put the file next to the drop-in and name it with local:";

/// What the process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    url: String,
    limit: u64,
    patience: Patience,
}

/// Fetches a file of at most `limit` bytes. Fails with `RepoUnavailable` or `AuthRequired`.
pub async fn download(cx: &Cx, url: &str, limit: u64, opts: &FetchOptions) -> Result<Vec<u8>> {
    cx.checkpoint()?;
    let order = Order { url: url.to_owned(), limit, patience: opts.patience.short() };
    let mut command = match &opts.worker {
        Worker::InProcess => return fetch(&order).await,
        Worker::Program(program, arguments) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Worker::OwnExecutable => {
            let mut command = Command::new("/proc/self/exe");
            command.arg(WORKER_ARG);
            command
        }
    };
    if let Some((uid, gid)) = super::fetch::user(opts) {
        command.uid(uid).gid(gid).env("HOME", "/nonexistent").current_dir("/");
    }
    let mut line = Vec::new();
    write_line(&mut line, &Request::<()>::Download(order)).doing("writing the request of a download")?;
    let output = process::run_with_input(cx, command, &line).await?;
    if output.success {
        return Ok(output.stdout);
    }
    Err(match serde_json::from_slice::<Failed>(&output.stdout) {
        Ok(failed) => failed.into(),
        Err(_) => Error::new(ErrorKind::Internal, "the process that fetches ended; nothing was staged")
            .hint("try again")
            .source(output.stderr),
    })
}

/// The process itself: the file, or why not, on standard output.
pub(super) fn main(order: &Order) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.doing("starting a runtime").and_then(|runtime| runtime.block_on(fetch(order)));
    let mut stdout = std::io::stdout().lock();
    let (said, code) = match outcome {
        Ok(bytes) => (stdout.write_all(&bytes), ExitCode::SUCCESS),
        Err(error) => (write_line(&mut stdout, &Failed::from(error)), ExitCode::FAILURE),
    };
    // Whoever does not listen any more does not ask how it ended.
    if said.is_ok() { code } else { ExitCode::FAILURE }
}

/// A failed attempt.
struct Trouble {
    error: Error,
    /// Whether the same may work later.
    passing: bool,
    /// How long the server wants to be left alone.
    after: Option<Duration>,
}

async fn fetch(order: &Order) -> Result<Vec<u8>> {
    let client = Client::builder()
        .user_agent(concat!("osctl/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT.min(order.patience.stall))
        .read_timeout(order.patience.stall)
        .build()
        .doing("preparing a download")?;
    let mut tries = 0;
    loop {
        let trouble = match attempt(&client, order).await {
            Ok(bytes) => return Ok(bytes),
            Err(trouble) => trouble,
        };
        tries += 1;
        match order.patience.wait(tries, trouble.after, dice()).filter(|_| trouble.passing) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(trouble.error),
        }
    }
}

async fn attempt(client: &Client, order: &Order) -> Result<Vec<u8>, Trouble> {
    // What is compared is what lies there.
    let request = client.get(&order.url).header(ACCEPT_ENCODING, "identity");
    let mut response = request.send().await.map_err(broken_off)?;
    if response.status() != StatusCode::OK {
        return Err(refused(&response));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken_off)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > order.limit {
            let text = format!("the server sends more than the {} bytes that a file may have", order.limit);
            return Err(lasting(ErrorKind::DigestMismatch, text));
        }
    }
    Ok(bytes)
}

fn lasting(kind: ErrorKind, text: String) -> Trouble {
    Trouble { error: Error::new(kind, text), passing: false, after: None }
}

/// What a status means that is no success.
fn refused(response: &Response) -> Trouble {
    let status = response.status().as_u16();
    let (kind, what, passing) = match status {
        401 | 403 => {
            (ErrorKind::AuthRequired, "the server wants credentials, and there are none to give", false)
        }
        404 | 410 => (ErrorKind::RepoUnavailable, "the server does not have it", false),
        408 | 429 | 500..=599 => (ErrorKind::RepoUnavailable, "the server cannot give it now", true),
        _ => (ErrorKind::RepoUnavailable, "the server does not understand the request", false),
    };
    let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let after = after.and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
    let error = Error::new(kind, format!("{what} (status {status})")).hint(BESIDE).detail("status", status);
    Trouble { error, passing, after: after.filter(|_| passing) }
}

/// A request, or the answer to it, that came to no end.
fn broken_off(error: reqwest::Error) -> Trouble {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    let what = match () {
        () if error.is_timeout() => "nothing comes from the server",
        () if error.is_connect() => "the server cannot be reached",
        () if error.is_redirect() => "the server sends us in circles",
        () => "the transfer broke off",
    };
    let passing = !error.is_redirect() && !error.is_builder() && !text.to_lowercase().contains("certificate");
    let error = Error::new(ErrorKind::RepoUnavailable, what).hint(BESIDE).source(without_queries(&text));
    Trouble { error, passing, after: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// A server that gives these answers, one to a connection, and its address.
    fn server(answers: Vec<String>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let own = address.clone();
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
                asked.push(lines.next().unwrap());
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                stream.write_all(answer.replace("OWN", &own).as_bytes()).unwrap();
            }
            asked
        });
        (address, thread)
    }

    fn options() -> FetchOptions {
        let quick = Duration::from_millis(1);
        let patience =
            Patience { first: quick, longest: quick, stall: Duration::from_secs(5), ..Patience::default() };
        FetchOptions { worker: Worker::InProcess, patience, ..FetchOptions::default() }
    }

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    fn status(line: &str) -> String {
        format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn a_file_comes_after_redirects_and_passing_trouble() {
        let redirect =
            "HTTP/1.1 302 Found\r\nLocation: OWN/there\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhalf";
        let (address, thread) =
            server(vec![status("503 Busy"), redirect.into(), short.into(), redirect.into(), ok("whole")]);
        let found = download(&Cx::detached(), &format!("{address}/a?key=1"), 5, &options()).await.unwrap();
        assert_eq!(found, b"whole");
        let asked = thread.join().unwrap();
        let (a, there) = ("GET /a?key=1 HTTP/1.1", "GET /there HTTP/1.1");
        assert_eq!(asked, [a, a, there, a, there]);
    }

    #[tokio::test]
    async fn what_cannot_be_had_says_why_and_names_no_query() {
        let (down, _) = server(Vec::new());
        for (answers, kind, message, asked) in [
            (
                vec![status("404 Gone")],
                ErrorKind::RepoUnavailable,
                "the server does not have it (status 404)",
                1,
            ),
            (
                vec![status("403 No")],
                ErrorKind::AuthRequired,
                "the server wants credentials, and there are none to give (status 403)",
                1,
            ),
            (
                vec![status("500 Oops"); 3],
                ErrorKind::RepoUnavailable,
                "the server cannot give it now (status 500)",
                3,
            ),
            (
                vec![ok("123456")],
                ErrorKind::DigestMismatch,
                "the server sends more than the 5 bytes that a file may have",
                1,
            ),
        ] {
            let (address, thread) = server(answers);
            let error =
                download(&Cx::detached(), &format!("{address}/a?secret"), 5, &options()).await.unwrap_err();
            assert_eq!((error.kind, error.to_string().as_str()), (kind, message));
            assert!(!error.chain().contains("secret"), "{}", error.chain());
            assert_eq!(thread.join().unwrap().len(), asked);
        }
        let error = download(&Cx::detached(), &format!("{down}/a?secret"), 5, &options()).await.unwrap_err();
        assert_eq!(
            (error.kind, error.to_string().as_str()),
            (ErrorKind::RepoUnavailable, "the server cannot be reached")
        );
        assert!(!error.chain().contains("secret"), "{}", error.chain());
    }
}
