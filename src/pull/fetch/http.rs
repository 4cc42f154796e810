//! Blobs from a registry, by the OCI distribution specification.
//!
//! Only blobs: which digest an image has, where it may come from and whether it is trusted was decided before, by
//! containers/image and by what the importer read for us (`sys/registries.rs`).

use super::challenge::{self, Challenge};
use super::patience::dice;
use super::rate::Rate;
use super::{Order, Wanted, Word};
use crate::model::text::one_line;
use crate::model::{Error, ErrorKind};
use crate::pull::wire::Failed;
use crate::sys::credentials::Credentials;
use crate::sys::registries::Endpoint;
use crate::sys::skopeo::{without_places, without_queries};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Client, Response, StatusCode};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

/// A connection must be there by then.
const CONNECT: Duration = Duration::from_secs(20);
/// The importer hears of new bytes each time so many came.
const TELL_EVERY: u64 = 256 << 10;
/// A wait is interrupted so often to say that it goes on.
const ALIVE: Duration = Duration::from_secs(5);
/// How often a request that is not let in gets other credentials.
const LOGINS: usize = 2;
/// What a token server may say.
const MAX_TOKEN: usize = 1 << 20;
/// So many bytes make an attempt one that got somewhere.
const PROGRESS: u64 = 64 << 10;

/// Fetches what is ordered, then what is asked for again, until nobody asks any more.
pub(super) async fn serve(
    order: Order,
    spool: OwnedFd,
    say: impl Fn(Word) + Send + Sync + 'static,
    mut asked: UnboundedReceiver<usize>,
) {
    let (todo, queue) = tokio::sync::mpsc::unbounded_channel();
    let of = |source: &Vec<Endpoint>| {
        let places = source.iter().map(|endpoint| Place::new(endpoint, &order));
        places.collect::<Result<Vec<_>, _>>().map_err(Failed::from)
    };
    let places = order.sources.iter().map(of).collect();
    let rate = Rate::new(order.rate_limit);
    let fetch = Arc::new(Fetch { places, rate, spool, say: Box::new(say), order });
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..fetch.order.connections.get() {
        let (fetch, queue) = (fetch.clone(), queue.clone());
        tokio::spawn(async move {
            loop {
                let next = queue.lock().await.recv().await;
                match next {
                    Some(blob) => fetch.blob(blob).await,
                    None => return,
                }
            }
        });
    }
    for blob in 0..fetch.order.blobs.len() {
        let _ = todo.send(blob);
    }
    while let Some(blob) = asked.recv().await {
        let _ = todo.send(blob);
    }
}

struct Fetch {
    order: Order,
    /// Of each source, or why it cannot be asked.
    places: Vec<Result<Vec<Place>, Failed>>,
    rate: Rate,
    spool: OwnedFd,
    say: Box<dyn Fn(Word) + Send + Sync>,
}

/// A failed attempt.
struct Trouble {
    error: Error,
    /// Whether the same may work later.
    passing: bool,
    /// How long the registry wants to be left alone.
    after: Option<Duration>,
}

impl Trouble {
    fn passing(kind: ErrorKind, text: String) -> Trouble {
        Trouble { error: Error::new(kind, text), passing: true, after: None }
    }

    fn disk(wanted: &Wanted, error: io::Error) -> Trouble {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let kind = if full { ErrorKind::NoSpace } else { ErrorKind::Internal };
        let text = format!("writing blob {} to the spool; the running system is unchanged", wanted.digest);
        Trouble { error: Error::new(kind, text).source(error), passing: false, after: None }
    }

    fn lasting(kind: ErrorKind, text: String) -> Trouble {
        Trouble { error: Error::new(kind, text), passing: false, after: None }
    }
}

impl Fetch {
    /// Fetches one blob, however often that takes, and says how it ended.
    async fn blob(&self, blob: usize) {
        let Some(wanted) = self.order.blobs.get(blob) else { return };
        let whole = match self.places.get(wanted.source) {
            Some(Ok(places)) => self.whole(places, blob, wanted).await.map_err(Failed::from),
            Some(Err(failed)) => Err(failed.clone()),
            None => Err(Error::new(ErrorKind::Internal, "the blob is of no source").into()),
        };
        (self.say)(match whole {
            Ok(()) => Word::Whole { blob },
            Err(error) => Word::Failed { blob, error },
        });
    }

    async fn whole(&self, places: &[Place], blob: usize, wanted: &Wanted) -> Result<(), Error> {
        let disk = |error: io::Error| Trouble::disk(wanted, error).error;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.spool, wanted.digest.hex(), flags, Mode::from_raw_mode(0o600));
        let file = File::from(file.map_err(|e| disk(e.into()))?);
        let mut here = file.metadata().map_err(disk)?.len();
        if here > wanted.size {
            file.set_len(0).map_err(disk)?;
            here = 0;
        }
        (self.say)(Word::Here { blob, bytes: here });
        let (mut tries, mut most) = (0, here);
        while here < wanted.size {
            let Err(trouble) = self.attempt(places, blob, wanted, &file, &mut here).await else { break };
            // What got on is a bad connection, and not a registry that is not there. Coming again to where it was is no
            // progress: a registry that has half a blob would be asked for ever.
            tries = if here >= most.saturating_add(PROGRESS) { 1 } else { tries + 1 };
            most = most.max(here);
            let wait = self.order.patience.wait(tries, trouble.after, dice());
            let Some(wait) = wait.filter(|_| trouble.passing) else { return Err(trouble.error) };
            let seconds = wait.as_secs_f64();
            let text = format!("{}; trying again in {seconds:.1} s", one_line(&trouble.error.chain()));
            (self.say)(Word::Waiting { text });
            self.sleep(wait).await;
        }
        Ok(())
    }

    async fn sleep(&self, wait: Duration) {
        let until = tokio::time::Instant::now() + wait;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep_until(until.min(tokio::time::Instant::now() + ALIVE)).await;
            (self.say)(Word::Alive);
        }
    }

    /// Asks every place once, until one gives the rest of the blob.
    async fn attempt(
        &self,
        places: &[Place],
        blob: usize,
        wanted: &Wanted,
        file: &File,
        here: &mut u64,
    ) -> Result<(), Trouble> {
        let mut worst: Option<Trouble> = None;
        for place in places {
            match self.ask(place, blob, wanted, file, here).await {
                Ok(()) => return Ok(()),
                Err(trouble) => {
                    // The last place is the image's own; that a mirror may work later is still a reason to try again.
                    let passing = trouble.passing || worst.as_ref().is_some_and(|w| w.passing);
                    let after = trouble.after.max(worst.and_then(|w| w.after));
                    worst = Some(Trouble { passing, after, ..trouble });
                }
            }
        }
        Err(worst.unwrap_or_else(|| Trouble::lasting(ErrorKind::Internal, "there is no place to ask".into())))
    }

    async fn ask(
        &self,
        place: &Place,
        blob: usize,
        wanted: &Wanted,
        file: &File,
        here: &mut u64,
    ) -> Result<(), Trouble> {
        let doing = format!("fetching blob {} of {}", wanted.digest, place.name());
        let mut response = place.get(&doing, &wanted.digest, *here).await?;
        // A server may ignore the range and send everything.
        let mut skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(&response, *here) => 0,
            StatusCode::OK => *here,
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
                *here = 0;
                (self.say)(Word::Here { blob, bytes: 0 });
                let text = format!("{doing}: the registry has another size of it");
                return Err(Trouble::passing(ErrorKind::RegistryUnavailable, text));
            }
            status => return Err(refusal(&doing, status, &response)),
        };
        let mut told = *here;
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    (self.say)(Word::Here { blob, bytes: *here });
                    return Err(broken_off(&doing, error));
                }
            };
            self.rate.take(chunk.len() as u64).await;
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
            skip -= skipped as u64;
            let chunk = &chunk[skipped..];
            if *here + chunk.len() as u64 > wanted.size {
                let text =
                    format!("{doing}: it has more than the {} bytes that the manifest says", wanted.size);
                return Err(Trouble::lasting(ErrorKind::DigestMismatch, text));
            }
            file.write_all_at(chunk, *here).map_err(|e| Trouble::disk(wanted, e))?;
            *here += chunk.len() as u64;
            if *here - told >= TELL_EVERY {
                told = *here;
                (self.say)(Word::Here { blob, bytes: told });
            }
        }
        (self.say)(Word::Here { blob, bytes: *here });
        if *here == wanted.size {
            return Ok(());
        }
        let text = format!("{doing}: the transfer ended after {} of {} bytes", *here, wanted.size);
        Err(Trouble::passing(ErrorKind::RegistryUnavailable, text))
    }
}

fn begins_at(response: &Response, at: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let start = range.trim_start_matches("bytes").trim().split('-').next();
    start.and_then(|start| start.parse().ok()) == Some(at)
}

/// What a status means that is no success.
fn refusal(doing: &str, status: StatusCode, response: &Response) -> Trouble {
    let (kind, what, passing) = match status.as_u16() {
        401 => (ErrorKind::AuthRequired, "the registry wants other credentials", false),
        403 => (ErrorKind::AuthRequired, "the registry does not let these credentials in", false),
        404 | 410 => (ErrorKind::ImageNotFound, "the registry lost it", false),
        408 => (ErrorKind::RegistryUnavailable, "the registry waited too long", true),
        429 => (ErrorKind::RateLimited, "the registry asks to slow down", true),
        500..=599 => (ErrorKind::RegistryUnavailable, "the registry has an internal error", true),
        _ => (ErrorKind::RegistryUnavailable, "the registry does not understand the request", false),
    };
    let text = format!("{doing}: {what} (status {}); the running system is unchanged", status.as_u16());
    let after =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry_after);
    let error = Error::new(kind, text).detail("status", status.as_u16());
    Trouble { error, passing, after: after.filter(|_| passing) }
}

/// The seconds of a `Retry-After`. Its other form is a date, by a clock that may be wrong: our own back-off is then as
/// good a guess.
fn retry_after(value: &str) -> Option<Duration> {
    value.trim().parse().ok().map(Duration::from_secs)
}

/// A request, or the answer to it, that came to no end.
fn broken_off(doing: &str, error: reqwest::Error) -> Trouble {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    let lower = text.to_lowercase();
    let (what, passing) = if error.is_timeout() {
        ("nothing comes from the registry", true)
    } else if lower.contains("certificate") {
        ("the registry's certificate cannot be verified", false)
    } else if lower.contains("dns error") || lower.contains("lookup") {
        ("the registry's name cannot be resolved", true)
    } else if error.is_connect() {
        ("the registry cannot be reached", true)
    } else if error.is_redirect() {
        ("the registry sends us in circles", false)
    } else {
        ("the transfer broke off", true)
    };
    let kind = ErrorKind::RegistryUnavailable;
    let error = Error::new(kind, format!("{doing}: {what}; the running system is unchanged"));
    Trouble {
        error: error.hint("finished layers are kept: try again later").source(without_queries(&text)),
        passing,
        after: None,
    }
}

/// Where blobs are asked for.
struct Place {
    endpoint: Endpoint,
    client: Client,
    /// `https`, or what turned out to be spoken where TLS is not required.
    plain: std::sync::atomic::AtomicBool,
    /// What the registry last accepted.
    pass: Mutex<Option<HeaderValue>>,
}

/// Whether a host, perhaps with a port, is this machine by its number.
fn is_loopback(host: &str) -> bool {
    let number = host.parse::<std::net::SocketAddr>().map(|address| address.ip());
    number.or_else(|_| host.parse::<std::net::IpAddr>()).is_ok_and(|ip| ip.is_loopback())
}

impl Place {
    fn new(endpoint: &Endpoint, order: &Order) -> Result<Place, Error> {
        let doing = |e: reqwest::Error| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("the certificates for {} cannot be used", endpoint.host),
            )
            .hint("see containers-certs.d(5)")
            .source(e)
        };
        let mut client = Client::builder()
            .user_agent(concat!("osctl/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT.min(order.patience.stall))
            .read_timeout(order.patience.stall)
            .tls_danger_accept_invalid_certs(endpoint.insecure);
        if is_loopback(&endpoint.host) {
            // No proxy has what is served on this machine; skopeo asks none for it either.
            client = client.no_proxy();
        }
        for pem in &endpoint.access.authorities {
            client = client.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem).map_err(doing)?);
        }
        // There may be several; a handshake takes one.
        if let Some(ours) = endpoint.access.certificates.first() {
            let identity = reqwest::Identity::from_pkcs8_pem(&ours.certificate, &ours.key);
            client = client.identity(identity.map_err(doing)?);
        }
        Ok(Place {
            endpoint: endpoint.clone(),
            client: client.build().map_err(doing)?,
            plain: false.into(),
            pass: Mutex::new(None),
        })
    }

    fn name(&self) -> String {
        without_places(&format!("{}/{}", self.endpoint.host, self.endpoint.repository))
    }

    /// Asks for a blob from a place in it on, with whatever credentials it takes.
    async fn get(
        &self,
        doing: &str,
        digest: &crate::model::image::Digest,
        from: u64,
    ) -> Result<Response, Trouble> {
        let mut pass = self.pass.lock().await.clone();
        // A token may expire, and another connection may have used up the one that replaced it.
        for _ in 0..LOGINS {
            let response = self.request(doing, digest, from, pass.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            let challenge = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| challenge::parse(value.to_str().ok()?))
                .max_by_key(|challenge| matches!(challenge, Challenge::Bearer { .. }));
            let Some(challenge) = challenge else { return Ok(response) };
            let mut current = self.pass.lock().await;
            if *current == pass {
                *current = self.answer(doing, &challenge).await?;
            }
            // The same again would be refused again.
            if *current == pass {
                return Ok(response);
            }
            pass.clone_from(&current);
        }
        self.request(doing, digest, from, pass.as_ref()).await
    }

    async fn request(
        &self,
        doing: &str,
        digest: &crate::model::image::Digest,
        from: u64,
        pass: Option<&HeaderValue>,
    ) -> Result<Response, Trouble> {
        use std::sync::atomic::Ordering::Relaxed;
        loop {
            let plain = self.plain.load(Relaxed);
            let scheme = if plain { "http" } else { "https" };
            let url =
                format!("{scheme}://{}/v2/{}/blobs/{digest}", self.endpoint.host, self.endpoint.repository);
            // What is hashed is what was pushed.
            let mut request = self.client.get(url).header(ACCEPT_ENCODING, "identity");
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(pass) = pass {
                request = request.header(AUTHORIZATION, pass);
            }
            match request.send().await {
                Ok(response) => return Ok(response),
                // As containers/image: first with TLS, then without.
                Err(error) if error.is_connect() && self.endpoint.insecure && !plain => {
                    self.plain.store(true, Relaxed);
                }
                Err(error) => return Err(broken_off(doing, error)),
            }
        }
    }

    /// What to send, so that the challenge is met; `None` if we have nothing for it.
    async fn answer(&self, doing: &str, challenge: &Challenge) -> Result<Option<HeaderValue>, Trouble> {
        let credentials = &self.endpoint.access.credentials;
        let secret = |text: String| {
            let mut value = HeaderValue::try_from(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        let (realm, service, scope) = match (challenge, credentials) {
            (Challenge::Basic, Credentials::Basic { user, password }) => {
                let encoded = STANDARD.encode(format!("{user}:{password}"));
                return Ok(secret(format!("Basic {encoded}")));
            }
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { realm, service, scope }, _) => (realm, service, scope),
        };
        let doing = format!("{doing}: asking for a token");
        // A registry with TLS must not make us send a password without it.
        let plain = self.plain.load(std::sync::atomic::Ordering::Relaxed);
        if !(realm.starts_with("https://") || plain && realm.starts_with("http://")) {
            let text = format!("{doing}: the token server {} is not one with TLS", one_line(realm));
            return Err(Trouble::lasting(ErrorKind::AuthRequired, text));
        }
        let own = format!("repository:{}:pull", self.endpoint.repository);
        let scope = scope.as_deref().unwrap_or(&own);
        let mut query = vec![("scope", scope)];
        query.extend(service.as_deref().map(|service| ("service", service)));
        let request = match credentials {
            Credentials::IdentityToken(token) => {
                query.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "osctl"),
                ]);
                self.client.post(realm).form(&query)
            }
            Credentials::Basic { user, password } => {
                self.client.get(realm).query(&query).basic_auth(user, Some(password))
            }
            Credentials::Anonymous => self.client.get(realm).query(&query),
        };
        let mut response = request.send().await.map_err(|e| broken_off(&doing, e))?;
        if !response.status().is_success() {
            return Err(refusal(&doing, response.status(), &response));
        }
        let mut text = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| broken_off(&doing, e))? {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_TOKEN {
                let text = format!("{doing}: its answer is too long");
                return Err(Trouble::lasting(ErrorKind::RegistryUnavailable, text));
            }
        }
        let answer: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let token = ["token", "access_token"].iter().find_map(|key| answer[key].as_str());
        match token.and_then(|token| secret(format!("Bearer {token}"))) {
            Some(pass) => Ok(Some(pass)),
            None => {
                let text = format!("{doing}: there is none in the answer");
                Err(Trouble::lasting(ErrorKind::RegistryUnavailable, text))
            }
        }
    }
}
