//! The child process that pulls, and the parent's side of it.
//!
//! The request is one line of JSON on standard input, which then stays open: the worker ends when it closes, so
//! it never outlives its parent. On standard output it says one JSON object per line: any number of `report`,
//! then one `done` or `failed`. It leads a process group of its own, which is killed as a whole on cancellation:
//! libostree's blocking threads and skopeo go with it, and the repository is left as a crash would leave it,
//! which every import is made for. As long as it gets on it says `alive` from time to time ([`super::pulse`]): a registry
//! that neither answers nor hangs up would otherwise hold the job for ever.

use super::blobs;
use super::download;
use super::fetch::{self, Fetcher, Order};
use super::import::{self, Supply, Todo, import_in_process};
use super::pulse::{self, Local};
use super::types::{Base, FetchOptions, Report, Reporter, Resolved, Worker};
use super::wire::{Failed, write_line};
use crate::bound::Written;
use crate::engine::cx::Cx;
use crate::model::image::Transport;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process::{Group, kill_own_group};
use crate::sys::scratch::Scratch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

/// The first argument that makes an executable a worker.
pub const WORKER_ARG: &str = "internal-pull-worker";
/// Lines of the worker's standard error that are kept for the message if it dies.
const STDERR_LINES: usize = 20;

/// What a worker is told first. Never logged: an order carries credentials.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request<O = Order> {
    Pull { repo: PathBuf, resolved: Box<Resolved>, opts: Box<FetchOptions> },
    Blobs(Box<blobs::Order>),
    Fetch(O),
    Download(download::Order),
}

/// What became of a blob.
type Outcome = Result<Option<Written>, Failed>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Message {
    Report(Report),
    /// A blob is there, or cannot be had.
    Blob {
        blob: usize,
        outcome: Outcome,
    },
    Alive,
    Done(serde_json::Value),
    Failed(Failed),
}

// A worker that says nothing for twice the time after which a connection is given up has a registry that says nothing:
// skopeo itself waits for ever; TCP gives up a peer that is gone after 15 minutes, and never one that is there.

/// Brings the image into the repository, or finds that it is there. Fetches only what is missing.
///
/// Cancelling the job ends the worker; layers that were finished stay.
pub async fn pull(cx: &Cx, repo_path: &Path, resolved: &Resolved, opts: &FetchOptions) -> Result<Base> {
    cx.checkpoint()?;
    if matches!(opts.worker, Worker::InProcess) {
        return import_in_process(&reporter(cx), repo_path, resolved, opts).await;
    }
    // A process for nothing would be most of what it costs to find that there is nothing to do.
    let (path, image) = (repo_path.to_owned(), resolved.clone());
    let here = tokio::task::spawn_blocking(move || import::found(&import::open(&path)?, &image));
    if let Some(base) = here.await.doing("looking for the image")?? {
        return Ok(base);
    }
    let request = |opts| Request::<Order>::Pull {
        repo: repo_path.to_owned(),
        resolved: Box::new(resolved.clone()),
        opts: Box::new(opts),
    };
    call(cx, resolved.image.transport, opts, opts.patience.stall * 2, request, |_, _| {}).await
}

/// Fetches blobs: see [`super::fetch_blobs`].
pub(super) async fn fetch_blobs(
    cx: &Cx,
    order: blobs::Order,
    mut heard: impl FnMut(usize, Result<Option<Written>>) + Send,
) -> Result<()> {
    let hear = |blob: usize, outcome: Outcome| heard(blob, outcome.map_err(Error::from));
    let opts = order.opts().clone();
    if matches!(opts.worker, Worker::InProcess) {
        let work = order.start(reporter(cx)).await?;
        let said = Arc::new(std::sync::Mutex::new(Vec::new()));
        let says = said.clone();
        let finish = move || {
            work.finish(&|blob, outcome| {
                says.lock().expect("no holder of this lock panics").push((blob, outcome));
            })
        };
        tokio::task::spawn_blocking(finish).await.doing("fetching")??;
        let said = std::mem::take(&mut *said.lock().expect("no holder of this lock panics"));
        let mut hear = hear;
        said.into_iter().for_each(|(blob, outcome)| hear(blob, outcome));
        return Ok(());
    }
    let stall = opts.patience.stall * 2;
    let request = |_| Request::<Order>::Blobs(Box::new(order));
    call::<(), _>(cx, Transport::Registry, &opts, stall, request, hear).await
}

fn reporter(cx: &Cx) -> Reporter {
    let cx = cx.clone();
    Arc::new(move |report| tell(&cx, report))
}

fn tell(cx: &Cx, report: Report) {
    match report {
        Report::Bytes { done, total } => cx.bytes(done, total),
        Report::Part { name, done, total } => cx.part(&name, done, total),
        Report::Items { done, total, current } => cx.items(done, total, &current),
        Report::Note(text) => cx.message(one_line(&text)),
    }
}

async fn call<T: DeserializeOwned, R: Serialize>(
    cx: &Cx,
    transport: Transport,
    opts: &FetchOptions,
    stall: Duration,
    request: impl FnOnce(FetchOptions) -> R,
    mut hear: impl FnMut(usize, Outcome) + Send,
) -> Result<T> {
    // Removed when the worker is gone, however it went. Of a registry nothing is unpacked.
    let tmp = opts.tmp.as_deref().filter(|_| transport != Transport::Registry);
    let scratch = tmp.map(Scratch::below).transpose()?;
    let opts = FetchOptions { tmp: scratch.as_ref().map(|s| s.path().to_owned()), ..opts.clone() };
    let mut command = match &opts.worker {
        Worker::Program(program, arguments) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        Worker::OwnExecutable | Worker::InProcess => {
            let mut command = Command::new("/proc/self/exe");
            command.arg(WORKER_ARG);
            command
        }
    };
    let request = request(opts);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut line = Vec::new();
    write_line(&mut line, &request).doing("writing the worker's request")?;
    let mut group = Group::spawn(command)?;
    let answered = tokio::select! {
        answered = converse(cx, &mut group, &line, stall, &mut hear) => Some(answered),
        () = cx.cancelled() => None,
    };
    // Without an answer it is cancelled, with one it has nothing left to do: either way, it leaves now.
    group.end().await;
    let Some(answered) = answered else {
        cx.checkpoint()?;
        return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
    };
    let value = answered?;
    serde_json::from_value(value).doing("reading the worker's answer")
}

/// Sends the request and reads until the answer.
async fn converse(
    cx: &Cx,
    group: &mut Group,
    request: &[u8],
    stall: Duration,
    hear: &mut (dyn FnMut(usize, Outcome) + Send),
) -> Result<serde_json::Value> {
    let doing = "talking to the pull worker";
    let mut stdin = group.child.stdin.take().expect("stdin is piped");
    let stdout = group.child.stdout.take().expect("stdout is piped");
    let stderr = group.child.stderr.take().expect("stderr is piped");
    let complaints = tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).lines();
        let mut last = VecDeque::new();
        while let Ok(Some(line)) = lines.next_line().await {
            last.push_back(line);
            if last.len() > STDERR_LINES {
                last.pop_front();
            }
        }
        Vec::from(last).join("\n")
    });
    // A worker that died at once is reported by its exit status below, not by our broken pipe.
    if let Err(error) = stdin.write_all(request).await {
        tracing::debug!(%error, "writing to the pull worker");
    }
    let mut lines = BufReader::new(stdout).lines();
    loop {
        let Ok(line) = tokio::time::timeout(stall, lines.next_line()).await else {
            return Err(silent(stall));
        };
        let Some(line) = line.doing(doing)? else { break };
        match serde_json::from_str::<Message>(&line) {
            Ok(Message::Report(report)) => tell(cx, report),
            Ok(Message::Blob { blob, outcome }) => hear(blob, outcome),
            Ok(Message::Alive) => {}
            Ok(Message::Done(value)) => {
                drop(stdin);
                group.child.wait().await.doing(doing)?;
                return Ok(value);
            }
            Ok(Message::Failed(failed)) => {
                drop(stdin);
                group.child.wait().await.doing(doing)?;
                return Err(failed.into());
            }
            // Libraries may print; only our own messages count.
            Err(error) => tracing::debug!(%error, line, "a line of the pull worker that is no message"),
        }
    }
    let status = group.child.wait().await.doing(doing)?;
    let complaints = complaints.await.unwrap_or_default();
    Err(Error::new(
        ErrorKind::Internal,
        format!("the pull worker ended without an answer ({status}); the running system is unchanged"),
    )
    .hint("finished layers are kept: try again")
    .source(complaints))
}

/// The error for a registry that has said nothing for so long.
pub(super) fn silent(stall: Duration) -> Error {
    let text = format!(
        "nothing has come from the registry for {} seconds; the running system is unchanged",
        stall.as_secs()
    );
    Error::new(ErrorKind::RegistryUnavailable, text).hint("finished layers are kept: try again later")
}

/// The worker itself: what an executable does when its first argument is [`WORKER_ARG`].
pub fn worker_main() -> ExitCode {
    let mut line = String::new();
    if let Err(error) = std::io::stdin().lock().read_line(&mut line) {
        tracing::error!(%error, "the pull worker has no request");
        return ExitCode::FAILURE;
    }
    let Ok(request) = serde_json::from_str::<Request>(&line) else {
        say(&Message::Failed(Error::new(ErrorKind::Internal, "the pull worker got no request").into()));
        return ExitCode::FAILURE;
    };
    match request {
        Request::Fetch(order) => fetch::main(order),
        Request::Blobs(order) => work(
            Transport::Registry,
            || {
                let work =
                    runtime()?.block_on(order.start(Arc::new(|report| say(&Message::Report(report)))))?;
                leave_network();
                Ok(work)
            },
            |work| async move {
                let finish = move || work.finish(&|blob, outcome| say(&Message::Blob { blob, outcome }));
                tokio::task::spawn_blocking(finish).await.doing("fetching")?
            },
        ),
        Request::Download(order) => download::main(&order),
        Request::Pull { repo, resolved, opts } => {
            let report: Reporter = Arc::new(|report| say(&Message::Report(report)));
            let (told, path, image, told_opts) =
                (report.clone(), repo.clone(), resolved.clone(), opts.clone());
            work(
                resolved.image.transport,
                // Before there are other threads: leaving the network counts for the calling one, and those that it starts.
                || prepare(&told, &path, &image, &told_opts),
                |(todo, supply)| async move {
                    let supply = match supply {
                        Some(supply) => supply,
                        None => Supply::new(&report, &resolved, &opts, &todo, Vec::new(), Fetcher::here)?,
                    };
                    import::import(&report, &repo, &resolved, &opts, todo, supply).await
                },
            )
        }
    }
}

/// Does the work of one request, and says what became of it.
fn work<P, T: Serialize, F: Future<Output = Result<T>>>(
    transport: Transport,
    prepare: impl FnOnce() -> Result<P>,
    serve: impl FnOnce(P) -> F,
) -> ExitCode {
    let doing = "starting the pull worker";
    let outcome = prepare().and_then(|prepared| {
        std::thread::spawn(leave_with_parent);
        std::thread::spawn(|| pulse::report(|| say(&Message::Alive)));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().doing(doing)?;
        // Unpacking a large archive takes long, and nobody else is waited for.
        let _local = (transport != Transport::Registry).then(Local::work);
        let outcome = runtime.block_on(serve(prepared));
        // Threads that still read from a dead connection must not keep the process.
        runtime.shutdown_background();
        serde_json::to_value(outcome?).doing("writing the worker's answer")
    });
    let failed = outcome.is_err();
    say(&match outcome {
        Ok(value) => Message::Done(value),
        Err(error) => Message::Failed(error.into()),
    });
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What is missing, and who brings it, if that is another process. That something is, the parent has seen.
type Prepared = (Vec<Todo>, Option<Supply>);

fn prepare(report: &Reporter, repo: &Path, resolved: &Resolved, opts: &FetchOptions) -> Result<Prepared> {
    let todo = import::missing(&import::open(repo)?, resolved)?;
    let registry = resolved.image.transport == Transport::Registry && !todo.is_empty();
    let fetcher = || {
        let endpoints = runtime()?.block_on(fetch::endpoints(resolved, opts))?;
        Supply::new(report, resolved, opts, &todo, endpoints, |_, opts, endpoints, spool, blobs| {
            Fetcher::child(opts, vec![endpoints], spool, blobs)
        })
    };
    let supply = registry.then(fetcher).transpose()?;
    leave_network();
    Ok((todo, supply))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().doing("starting the pull worker")
}

/// The fetcher has it; what works on the image's content has no use for it.
fn leave_network() {
    if let Err(error) = crate::sys::network::leave() {
        tracing::warn!(error = error.chain(), "the importer keeps its network");
    }
}

/// Waits for the parent to go and takes the whole group along.
fn leave_with_parent() {
    let mut rest = Vec::new();
    if let Err(error) = std::io::stdin().lock().read_to_end(&mut rest) {
        tracing::debug!(%error, "reading the rest of standard input");
    }
    // Only if we lead it: started by hand, the group is the shell's.
    if rustix::process::getpgid(None).ok() == Some(rustix::process::getpid()) {
        kill_own_group();
    }
    std::process::exit(1);
}

fn say(message: &Message) {
    if let Err(error) = write_line(&mut std::io::stdout().lock(), message) {
        // The parent is gone; the thread above ends us.
        tracing::debug!(%error, "telling the parent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, tmp: &Path) -> FetchOptions {
        let arguments = ["-c", script].iter().map(Into::into).collect();
        FetchOptions {
            worker: Worker::Program("/bin/sh".into(), arguments),
            tmp: Some(tmp.to_owned()),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_worker_that_stands_still_is_given_up_and_one_that_gets_on_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let stall = Duration::from_millis(900);
        let transport = Transport::Registry;
        let opts = shell("read line; sleep 100", tmp.path());
        let error = call::<u32, _>(&Cx::detached(), transport, &opts, stall, |opts| opts, |_, _| {})
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::RegistryUnavailable, "{}", error.chain());
        let script = r#"read line; for i in 1 2 3 4; do sleep 0.4; echo '"alive"'; done; echo '{"done":7}'"#;
        let opts = shell(script, tmp.path());
        let answer = call::<u32, _>(&Cx::detached(), transport, &opts, stall, |opts| opts, |_, _| {}).await;
        assert_eq!(answer.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_a_worker_unpacks_goes_with_it() {
        let tmp = tempfile::tempdir().unwrap();
        // It finds the directory in its request, and does not clean up.
        let script = r#"read line; dir=${line#*'"tmp":"'}; touch "${dir%%'"'*}/left" && echo '{"done":7}'"#;
        let transport = Transport::OciArchive;
        let opts = shell(script, tmp.path());
        let answer = call::<u32, _>(
            &Cx::detached(),
            transport,
            &opts,
            Duration::from_secs(60),
            |opts| opts,
            |_, _| {},
        )
        .await;
        assert_eq!(answer.unwrap(), 7);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
