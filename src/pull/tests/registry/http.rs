//! HTTP/1.1 as far as the fault registry speaks it.

use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What is handed to the kernel, and counted, at once.
const CHUNK: usize = 16 << 10;

/// A request, with its body.
pub(super) struct Asked {
    pub method: String,
    pub target: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Asked {
    /// Reads the next request; `None` at the end of the connection.
    pub(super) async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
        let first = line(stream).await?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = Vec::new();
        loop {
            let header = line(stream).await?;
            let Some((name, value)) = header.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut asked = Asked { method, target, headers, body: String::new() };
        let length: u64 = asked.header("content-length").map_or(0, |l| l.parse().unwrap());
        stream.take(length).read_to_string(&mut asked.body).await.ok()?;
        if asked.header("transfer-encoding") == Some("chunked") {
            // As Go sends a form.
            loop {
                let length = u64::from_str_radix(&line(stream).await?, 16).unwrap();
                stream.take(length).read_to_string(&mut asked.body).await.ok()?;
                line(stream).await?;
                if length == 0 {
                    break;
                }
            }
        }
        Some(asked)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The one range of bytes that is asked for; the end is included.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (from, to) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()))
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut line = String::new();
    let read = stream.read_line(&mut line).await.ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

/// How a reply ends. The numbers are bytes of the body that are sent before.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    Whole,
    Close(u64),
    Silence(u64),
    Reset(u64),
    Vanish(u64),
    /// Whole, at so many bytes a second.
    Slow(u64),
}

/// What becomes of the connection after a reply.
pub(super) enum After {
    Keep,
    Close,
    /// The whole server goes.
    Vanish,
}

pub(super) struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub ending: Ending,
}

impl Reply {
    pub(super) fn new(status: u16, content_type: &str, body: Vec<u8>) -> Reply {
        let headers = vec![("Content-Type", content_type.to_owned())];
        Reply { status, headers, body, ending: Ending::Whole }
    }

    /// A failure as the distribution specification words it.
    pub(super) fn error(status: u16) -> Reply {
        let code = match status {
            401 => "UNAUTHORIZED",
            403 => "DENIED",
            404 => "NAME_UNKNOWN",
            416 => "RANGE_INVALID",
            429 => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        let body = serde_json::json!({"errors": [{"code": code, "message": format!("a test's {status}")}]});
        Reply::new(status, "application/json", body.to_string().into_bytes())
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends it, and tells `sent` of every piece of the body before the piece goes.
    pub(super) async fn send(
        &self,
        stream: &mut BufReader<TcpStream>,
        asked: &Asked,
        sent: impl Fn(u64),
    ) -> std::io::Result<After> {
        let mut head = format!("HTTP/1.1 {} Test\r\nContent-Length: {}\r\n", self.status, self.body.len());
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        let length = match self.ending {
            Ending::Close(n) | Ending::Silence(n) | Ending::Reset(n) | Ending::Vanish(n) => n,
            Ending::Whole | Ending::Slow(_) => u64::MAX,
        };
        let length = usize::try_from(length).unwrap().min(self.body.len());
        let body = if asked.method == "HEAD" { &[][..] } else { &self.body[..length] };
        let (piece, pause) = match self.ending {
            // Twenty times a second is smooth enough, and still coarse enough for the timer.
            Ending::Slow(rate) => (usize::try_from(rate / 20).unwrap().max(1), Duration::from_millis(50)),
            _ => (CHUNK, Duration::ZERO),
        };
        for part in body.chunks(piece) {
            sent(part.len() as u64);
            stream.write_all(part).await?;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        stream.flush().await?;
        match self.ending {
            Ending::Whole | Ending::Slow(_) if asked.header("connection") == Some("close") => {
                Ok(After::Close)
            }
            Ending::Whole | Ending::Slow(_) => Ok(After::Keep),
            Ending::Close(_) => Ok(After::Close),
            Ending::Vanish(_) => Ok(After::Vanish),
            Ending::Silence(_) => {
                // Until the peer gives up.
                while stream.read_u8().await.is_ok() {}
                Ok(After::Close)
            }
            Ending::Reset(_) => {
                stream.get_ref().set_zero_linger()?;
                Ok(After::Close)
            }
        }
    }
}
