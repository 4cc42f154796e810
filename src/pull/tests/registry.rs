//! A registry on loopback that serves OCI layouts, breaks as it is told, and remembers what it was asked.
//!
//! It has a thread and a runtime of its own: a test may block, pause its clock, or be no async test at all.

mod claims;
mod http;

use super::super::fixture::Layout;
use crate::model::image::{Digest, ImageRef};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{After, Asked, Ending, Reply};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pull) enum Part {
    /// `/v2/`, which tells how to log in.
    Ping,
    /// The place that gives bearer tokens.
    Token,
    Manifest,
    Config,
    /// The blob of this layer, lowest first. A blob that several images have counts for the one served first.
    Layer(usize),
}

/// What goes wrong. The numbers of bytes are of the body of that reply, not of the blob.
#[derive(Debug, Clone)]
pub(in crate::pull) enum Fault {
    /// An answer with this status, in the words of the specification. 401 has the challenge of the registry.
    Status(u16),
    /// 429 with this value of Retry-After: seconds or a date.
    Throttle(String),
    /// The full Content-Length, so many bytes, and the end of the connection.
    Truncate(u64),
    /// A well-formed reply of only so many bytes.
    ShortOk(usize),
    /// The full length with a flipped byte in its middle.
    Corrupt,
    /// So many bytes, then silence on an open connection.
    Stall(u64),
    /// So many bytes, then a TCP reset.
    Reset(u64),
    /// So many bytes, then the whole server is gone, with all connections; see [`Registry::come_back`].
    Disappear(u64),
    /// At so many bytes a second.
    Slow(u64),
    /// 307 to the same digest below this URL; see [`Registry::store`].
    Redirect(String),
}

/// How often something goes wrong.
#[derive(Debug, Clone, Copy)]
pub(in crate::pull) enum Times {
    Once,
    Exactly(u32),
    Always,
}

/// What was asked, and what was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pull) struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub part: Option<Part>,
    /// First and last byte.
    pub range: Option<(u64, Option<u64>)>,
    pub status: u16,
    /// Bytes of the body.
    pub sent: u64,
    /// Whether there was an Authorization header.
    pub authorization: bool,
}

/// Who is let in.
enum Login {
    Anyone,
    /// The value of the Authorization header.
    Basic(String),
    Bearer {
        /// The value of the Authorization header at the token endpoint, and the refresh token that does as well.
        /// `None` gives tokens to anyone.
        basic: Option<(String, String)>,
    },
}

struct State {
    address: SocketAddr,
    /// By name, and by tag or digest.
    manifests: BTreeMap<(String, String), Digest>,
    /// The layouts of a name.
    layouts: BTreeMap<String, Vec<PathBuf>>,
    parts: BTreeMap<Digest, Part>,
    faults: Vec<(Part, Fault, u32)>,
    login: Login,
    /// Tokens, with the requests that each is still good for.
    tokens: BTreeMap<String, u32>,
    token_uses: u32,
    ignore_ranges: bool,
    delay: Duration,
    requests: Vec<Request>,
    connections: (usize, usize),
    /// Cancelled when the server disappears.
    up: CancellationToken,
}

type Shared = Arc<Mutex<State>>;

/// The server. It ends when this is dropped.
pub(in crate::pull) struct Registry {
    state: Shared,
    runtime: tokio::runtime::Handle,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Registry {
    /// Starts an empty registry.
    pub(in crate::pull) fn start() -> Registry {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Not by tokio's: the caller may be in a runtime of its own.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let state = Arc::new(Mutex::new(State {
            address: listener.local_addr().unwrap(),
            manifests: BTreeMap::new(),
            layouts: BTreeMap::new(),
            parts: BTreeMap::new(),
            faults: Vec::new(),
            login: Login::Anyone,
            tokens: BTreeMap::new(),
            token_uses: u32::MAX,
            ignore_ranges: false,
            delay: Duration::ZERO,
            requests: Vec::new(),
            connections: (0, 0),
            up: CancellationToken::new(),
        }));
        let (handle, stop, shared) = (runtime.handle().clone(), CancellationToken::new(), state.clone());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let inside = runtime.enter();
            let listener = TcpListener::from_std(listener).unwrap();
            drop(inside);
            runtime.spawn(listen(shared, listener));
            runtime.block_on(stopped.cancelled());
        });
        Registry { state, runtime: handle, stop, thread: Some(thread) }
    }

    /// Starts a registry with this image as `name:tag`.
    pub(in crate::pull) fn serve(name: &str, tag: &str, layout: &Layout) -> Registry {
        let registry = Registry::start();
        registry.move_tag(name, tag, layout);
        registry
    }

    /// Its `host:port`.
    pub(in crate::pull) fn host(&self) -> String {
        self.lock().address.to_string()
    }

    /// A reference to what it has: `os:1`.
    pub(in crate::pull) fn image(&self, name: &str) -> ImageRef {
        format!("docker://{}/{name}", self.host()).parse().unwrap()
    }

    /// Where the blobs are to be had without a login by those that a redirection sent, as from an object store.
    pub(in crate::pull) fn store(&self) -> String {
        format!("http://{}/store", self.host())
    }

    /// Gives the image of a layout a tag; what had it before stays there under its digest.
    pub(in crate::pull) fn move_tag(&self, name: &str, tag: &str, layout: &Layout) {
        let text = std::fs::read(layout.path(&layout.manifest)).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let digest = |descriptor: &serde_json::Value| -> Digest {
            descriptor["digest"].as_str().unwrap().parse().unwrap()
        };
        let mut state = self.lock();
        for reference in [tag, layout.manifest.as_str()] {
            state.manifests.insert((name.to_owned(), reference.to_owned()), layout.manifest.clone());
        }
        state.layouts.entry(name.to_owned()).or_default().push(layout.dir.clone());
        state.parts.entry(digest(&manifest["config"])).or_insert(Part::Config);
        for (at, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
            state.parts.entry(digest(layer)).or_insert(Part::Layer(at));
        }
    }

    /// Breaks the answers for a part that would be given otherwise: to those who may have it. Only `Ping` breaks for
    /// all. The first fault of a part that is not used up is what happens.
    pub(in crate::pull) fn fail(&self, part: Part, fault: Fault, times: Times) {
        let times = match times {
            Times::Once => 1,
            Times::Exactly(n) => n,
            Times::Always => u32::MAX,
        };
        self.lock().faults.push((part, fault, times));
    }

    /// Nothing goes wrong any more.
    pub(in crate::pull) fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Wants this login with every request.
    pub(in crate::pull) fn require_basic(&self, user: &str, password: &str) {
        self.lock().login = Login::Basic(basic(user, password));
    }

    /// Wants tokens, given for this login, or for the password as an identity token.
    pub(in crate::pull) fn require_bearer(&self, user: &str, password: &str) {
        self.lock().login =
            Login::Bearer { basic: Some((basic(user, password), format!("refresh_token={password}"))) };
    }

    /// Wants tokens, given to anyone.
    pub(in crate::pull) fn require_anonymous_bearer(&self) {
        self.lock().login = Login::Bearer { basic: None };
    }

    /// Takes each token that is given from now on so many times.
    pub(in crate::pull) fn tokens_last(&self, requests: u32) {
        self.lock().token_uses = requests;
    }

    /// Answers a request for a range with the whole.
    pub(in crate::pull) fn ignore_ranges(&self) {
        self.lock().ignore_ranges = true;
    }

    /// Waits before every answer.
    pub(in crate::pull) fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// All requests, in the order in which they came.
    pub(in crate::pull) fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// The requests for a part.
    pub(in crate::pull) fn requests_for(&self, part: Part) -> Vec<Request> {
        self.requests().into_iter().filter(|r| r.part == Some(part)).collect()
    }

    /// The most connections that were open at the same time.
    pub(in crate::pull) fn peak_connections(&self) -> usize {
        self.lock().connections.1
    }

    /// Listens again on the same port after a [`Fault::Disappear`].
    pub(in crate::pull) fn come_back(&self) {
        let (address, shared) = (self.lock().address, self.state.clone());
        let (sender, bound) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            let listener = loop {
                match TcpListener::bind(address).await {
                    Ok(listener) => break listener,
                    // The old one may be about to close.
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            };
            lock(&shared).up = CancellationToken::new();
            sender.send(()).unwrap();
            listen(shared, listener).await;
        });
        bound.recv().unwrap();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the registry panicked");
    }
}

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

async fn listen(state: Shared, listener: TcpListener) {
    let up = lock(&state).up.clone();
    while let Some(Ok((stream, _))) = up.run_until_cancelled(listener.accept()).await {
        let (state, up) = (state.clone(), up.clone());
        tokio::spawn(async move {
            {
                let (open, peak) = &mut lock(&state).connections;
                *open += 1;
                *peak = (*peak).max(*open);
            }
            up.run_until_cancelled(connection(&state, &up, BufReader::new(stream))).await;
            lock(&state).connections.0 -= 1;
        });
    }
}

async fn connection(state: &Shared, up: &CancellationToken, mut stream: BufReader<TcpStream>) {
    while let Some(asked) = Asked::read(&mut stream).await {
        let delay = lock(state).delay;
        tokio::time::sleep(delay).await;
        let (at, reply) = lock(state).reply_to(&asked);
        let sent = |bytes| lock(state).requests[at].sent += bytes;
        match reply.send(&mut stream, &asked, sent).await {
            Ok(After::Keep) => {}
            // That the client hangs up is its business.
            Ok(After::Close) | Err(_) => return,
            Ok(After::Vanish) => return up.cancel(),
        }
    }
}

/// What a path names.
enum Place<'a> {
    Ping,
    Token,
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Stored { digest: &'a str },
    Nowhere,
}

impl Place<'_> {
    fn of(path: &str) -> Place<'_> {
        match path {
            "/v2/" => return Place::Ping,
            "/token" => return Place::Token,
            _ => {}
        }
        if let Some(digest) = path.strip_prefix("/store/") {
            return Place::Stored { digest };
        }
        let parts = path.strip_prefix("/v2/").and_then(|rest| rest.rsplit_once('/'));
        match parts.and_then(|(rest, last)| Some((rest.rsplit_once('/')?, last))) {
            Some(((name, "manifests"), reference)) => Place::Manifest { name, reference },
            Some(((name, "blobs"), digest)) => Place::Blob { name, digest },
            _ => Place::Nowhere,
        }
    }
}

impl State {
    /// The reply to a request, and the place of the request in the log.
    fn reply_to(&mut self, asked: &Asked) -> (usize, Reply) {
        let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
        let blob = |digest: &str| digest.parse().ok().and_then(|d: Digest| self.parts.get(&d).copied());
        let place = Place::of(path);
        let (part, name) = match place {
            Place::Ping => (Some(Part::Ping), ""),
            Place::Token => (Some(Part::Token), ""),
            Place::Manifest { name, .. } => (Some(Part::Manifest), name),
            Place::Blob { name, digest } => (blob(digest), name),
            Place::Stored { digest } => (blob(digest), ""),
            Place::Nowhere => (None, ""),
        };
        let refused = match place {
            Place::Token => (!self.may_have_a_token(asked)).then(|| Reply::error(401)),
            Place::Stored { .. } => (!query.contains("signature=")).then(|| Reply::error(403)),
            Place::Ping | Place::Manifest { .. } | Place::Blob { .. } | Place::Nowhere => {
                (!self.lets_in(asked)).then(|| self.unauthorized(name))
            }
        };
        let good = refused.is_none() || part == Some(Part::Ping);
        let reply = refused.unwrap_or_else(|| self.content(&place));
        let reply = if self.ignore_ranges { reply } else { ranged(reply, asked.range()) };
        let reply = if good { self.broken(part, path, name, reply) } else { reply };
        self.requests.push(Request {
            method: asked.method.clone(),
            path: asked.target.clone(),
            part,
            range: asked.range(),
            status: reply.status,
            sent: 0,
            authorization: asked.header("authorization").is_some(),
        });
        (self.requests.len() - 1, reply)
    }

    fn lets_in(&mut self, asked: &Asked) -> bool {
        let given = asked.header("authorization").unwrap_or_default();
        match &self.login {
            Login::Anyone => true,
            Login::Basic(expected) => given == expected,
            Login::Bearer { .. } => {
                let left = given.strip_prefix("Bearer ").and_then(|token| self.tokens.get_mut(token));
                left.is_some_and(|left| {
                    let good = *left > 0;
                    *left = left.saturating_sub(1);
                    good
                })
            }
        }
    }

    fn unauthorized(&self, name: &str) -> Reply {
        let challenge = match &self.login {
            Login::Anyone | Login::Basic(_) => "Basic realm=\"test\"".to_owned(),
            Login::Bearer { .. } => {
                let scope = if name.is_empty() { String::new() } else { format!("repository:{name}:pull") };
                format!("Bearer realm=\"http://{}/token\",service=\"test\",scope=\"{scope}\"", self.address)
            }
        };
        Reply::error(401).with("WWW-Authenticate", challenge)
    }

    fn may_have_a_token(&self, asked: &Asked) -> bool {
        match &self.login {
            Login::Anyone | Login::Basic(_) | Login::Bearer { basic: None } => true,
            Login::Bearer { basic: Some((basic, refresh)) } => {
                asked.header("authorization") == Some(basic.as_str())
                    || asked.method == "POST" && asked.body.split('&').any(|field| field == refresh)
            }
        }
    }

    /// What is at a place, if all goes well.
    fn content(&mut self, place: &Place) -> Reply {
        let read = |name: &str, digest: &str| {
            let hex = digest.strip_prefix("sha256:")?;
            let dirs = self.layouts.get(name)?;
            dirs.iter().find_map(|dir| std::fs::read(dir.join("blobs/sha256").join(hex)).ok())
        };
        let found = match place {
            Place::Ping => Some(Reply::new(200, "application/json", b"{}".to_vec())),
            Place::Token => {
                let token = format!("token-{}", self.tokens.len());
                self.tokens.insert(token.clone(), self.token_uses);
                let body = serde_json::json!({"token": token, "access_token": token, "expires_in": 300});
                Some(Reply::new(200, "application/json", body.to_string().into_bytes()))
            }
            Place::Manifest { name, reference } => {
                let digest = self.manifests.get(&((*name).to_owned(), (*reference).to_owned()));
                digest.and_then(|digest| Some((digest, read(name, digest.as_str())?))).map(
                    |(digest, text)| {
                        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
                        Reply::new(200, manifest["mediaType"].as_str().unwrap(), text)
                            .with("Docker-Content-Digest", digest.as_str())
                    },
                )
            }
            Place::Blob { name, digest } => read(name, digest).map(|bytes| blob(digest, bytes)),
            Place::Stored { digest } => {
                self.layouts.keys().find_map(|name| read(name, digest)).map(|bytes| blob(digest, bytes))
            }
            Place::Nowhere => None,
        };
        found.unwrap_or_else(|| Reply::error(404))
    }

    /// The reply after the fault that a part has now, if it has one.
    fn broken(&mut self, part: Option<Part>, path: &str, name: &str, mut reply: Reply) -> Reply {
        let fault = self.faults.iter_mut().find(|(p, _, left)| Some(*p) == part && *left > 0);
        let Some((_, fault, left)) = fault else { return reply };
        // Always is more than any test asks for.
        *left -= 1;
        match fault.clone() {
            Fault::Status(401) => return self.unauthorized(name),
            Fault::Status(status) => return Reply::error(status),
            Fault::Throttle(after) => return Reply::error(429).with("Retry-After", after),
            Fault::Redirect(base) => {
                let digest = path.rsplit('/').next().unwrap();
                let target = format!("{base}/{digest}?X-Test-signature=secret");
                return Reply::new(307, "text/html", Vec::new()).with("Location", target);
            }
            Fault::ShortOk(bytes) => reply.body.truncate(bytes),
            Fault::Corrupt => {
                let middle = reply.body.len() / 2;
                reply.body[middle] ^= 1;
            }
            Fault::Truncate(bytes) => reply.ending = Ending::Close(bytes),
            Fault::Stall(bytes) => reply.ending = Ending::Silence(bytes),
            Fault::Reset(bytes) => reply.ending = Ending::Reset(bytes),
            Fault::Disappear(bytes) => reply.ending = Ending::Vanish(bytes),
            Fault::Slow(rate) => reply.ending = Ending::Slow(rate),
        }
        reply
    }
}

fn blob(digest: &str, bytes: Vec<u8>) -> Reply {
    Reply::new(200, "application/octet-stream", bytes)
        .with("Docker-Content-Digest", digest)
        .with("Accept-Ranges", "bytes")
}

/// The reply for only a range of what it has.
fn ranged(mut reply: Reply, range: Option<(u64, Option<u64>)>) -> Reply {
    let (200, Some((from, to))) = (reply.status, range) else { return reply };
    let total = reply.body.len() as u64;
    let end = to.map_or(total, |to| (to + 1).min(total));
    if from >= end {
        return Reply::error(416).with("Content-Range", format!("bytes */{total}"));
    }
    let at = |n: u64| usize::try_from(n).unwrap();
    reply.body = reply.body[at(from)..at(end)].to_vec();
    reply.status = 206;
    reply.with("Content-Range", format!("bytes {from}-{}/{total}", end - 1))
}
