//! A bundle as a registry on the loopback, for the programs of one job (distribution-spec, "Pull").
//!
//! Other programs of this host can connect to it. They are told nothing without the token, which is in the configuration of
//! the job's children only: a bundle may hold images that not everybody may see.

use super::media::{Media, Piece};
use crate::model::image::Digest;
use crate::model::{Context, Result};
use http_body_util::{BodyExt, Channel, Full, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Sent at a time.
const PIECE: usize = 256 << 10;
/// Connections at a time: several times what a job has.
const CONNECTIONS: usize = 256;
/// How long a connection may say nothing. Whoever of the job has gone connects again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nobody is let in after that failed.
const LULL: Duration = Duration::from_millis(100);
const LIST: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BLOB: &str = "application/octet-stream";

type Body = BoxBody<Bytes, io::Error>;

/// A registry that ends with this.
#[derive(Debug)]
pub struct Served {
    address: SocketAddr,
    token: String,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    /// Where it listens: host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The name that a repository of the bundle has there, by its number.
    pub fn name(&self, repository: usize) -> String {
        format!("{}/{}/{repository}", self.address, self.token)
    }

    /// The containers-registries.conf(5) that leads there.
    pub fn conf(&self, media: &Media) -> String {
        let repositories = media.index.repositories().into_keys();
        super::registries::conf(repositories, |number| self.name(number))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a bundle until the value that is returned is dropped.
pub async fn serve(media: Arc<Media>) -> Result<Served> {
    let doing = "listening on the loopback for the programs that read the bundle";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.doing(doing)?;
    let address = listener.local_addr().doing(doing)?;
    let token = uuid::Uuid::new_v4().simple().to_string();
    let registry = Arc::new(Registry::new(media, token.clone()));
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            // Others of this machine can connect as well, and shall not use up what this process can open.
            while connections.len() >= CONNECTIONS {
                connections.join_next().await;
            }
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "serving the bundle");
                        tokio::time::sleep(LULL).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next() => continue,
            };
            let registry = registry.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let registry = registry.clone();
                async move { Ok::<_, Infallible>(registry.answer(&request).await) }
            });
            connections.spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(PATIENCE)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = connection.await {
                    // Somebody tried TLS, or had enough.
                    tracing::debug!(%error, "serving the bundle");
                }
            });
        }
    });
    Ok(Served { address, token, task })
}

struct Registry {
    media: Arc<Media>,
    token: String,
    /// The tags of each repository, by its number.
    tags: Vec<BTreeMap<String, Digest>>,
}

/// What was asked for.
enum Asked {
    /// Without a digest where nothing has that tag: skopeo takes that for "none", and an unknown name for a failure.
    Manifest(Option<Digest>),
    Blob(Digest),
}

impl Registry {
    fn new(media: Arc<Media>, token: String) -> Registry {
        let of = |tags: BTreeMap<&str, &Digest>| {
            tags.into_iter().map(|(t, d)| (t.to_owned(), d.clone())).collect()
        };
        let tags = media.index.repositories().into_values().map(of).collect();
        Registry { media, token, tags }
    }

    async fn answer(self: Arc<Self>, request: &Request<Incoming>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        if !head && request.method() != Method::GET {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
        }
        let path = request.uri().path();
        if path.trim_end_matches('/') == "/v2" {
            return whole(Bytes::from_static(b"{}"), "application/json", head);
        }
        let Some(asked) = self.asked(path) else {
            let mut answer = refused(StatusCode::NOT_FOUND, "NAME_UNKNOWN");
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return answer;
        };
        let from = request.headers().get(RANGE).and_then(range);
        let reading = tokio::task::spawn_blocking(move || match asked {
            Asked::Manifest(None) => Ok(None),
            Asked::Manifest(Some(digest)) => Ok(self.media.document(&digest)?.map(Answer::Document)),
            Asked::Blob(digest) => Ok(self.media.blob(&digest)?.map(Answer::Blob)),
        });
        let found: Result<Option<Answer>> = reading.await.doing("reading the bundle").and_then(|read| read);
        match found {
            Ok(Some(Answer::Document(text))) => {
                let kind = media_type(&text);
                whole(text.into(), &kind, head)
            }
            Ok(Some(Answer::Blob(piece))) => stream(piece, from, head),
            Ok(None) => refused(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Err(error) => {
                tracing::warn!(error = error.chain(), "reading the bundle");
                refused(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN")
            }
        }
    }

    /// `/v2/<token>/<number>/manifests/<tag or digest>`, `/v2/<token>/<number>/blobs/<digest>`.
    fn asked(&self, path: &str) -> Option<Asked> {
        let mut parts = path.strip_prefix("/v2/")?.split('/');
        if parts.next()? != self.token {
            return None;
        }
        let tags = self.tags.get(parts.next()?.parse::<usize>().ok()?)?;
        let (what, name) = (parts.next()?, parts.next()?);
        match (what, parts.next()) {
            ("manifests", None) => {
                Some(Asked::Manifest(name.parse().ok().or_else(|| tags.get(name).cloned())))
            }
            ("blobs", None) => name.parse().ok().map(Asked::Blob),
            _ => None,
        }
    }
}

enum Answer {
    Document(Vec<u8>),
    Blob(Piece),
}

/// The media type of a manifest or a list of them: what it says of itself, and where it does not, OCI's.
pub fn media_type(text: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice(text) {
        Ok(Head { media_type: Some(kind), .. }) => kind,
        Ok(Head { manifests: Some(_), .. }) => LIST.to_owned(),
        _ => MANIFEST.to_owned(),
    }
}

/// The first byte that is asked for, where that is all that is asked: RFC 9110, 14.2. Other ranges may be ignored.
fn range(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn whole(text: Bytes, kind: &str, head: bool) -> Response<Body> {
    let len = text.len() as u64;
    let body = if head { Bytes::new() } else { text };
    response(StatusCode::OK, kind, len, full(body))
}

fn refused(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!(r#"{{"errors":[{{"code":"{code}","message":"the bundle does not have it"}}]}}"#);
    response(status, "application/json", text.len() as u64, full(text.into()))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn response(status: StatusCode, kind: &str, len: u64, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, len.into());
    // A manifest may say of itself what cannot stand in a header.
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(kind).unwrap_or(HeaderValue::from_static(BLOB)));
    response
}

fn stream(piece: Piece, from: Option<u64>, head: bool) -> Response<Body> {
    let total = piece.len;
    let start = from.unwrap_or_default();
    if from.is_some() && start >= total {
        let mut response = refused(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID");
        if let Ok(value) = HeaderValue::try_from(format!("bytes */{total}")) {
            response.headers_mut().insert(CONTENT_RANGE, value);
        }
        return response;
    }
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let body = if head { full(Bytes::new()) } else { send(piece, start) };
    let mut response = response(status, BLOB, total - start, body);
    response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if from.is_some()
        && let Ok(value) = HeaderValue::try_from(format!("bytes {start}-{}/{total}", total - 1))
    {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

/// Sends a file, from a place in it on, as fast as it is taken.
fn send(piece: Piece, from: u64) -> Body {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(2);
    let piece = Arc::new(piece);
    tokio::spawn(async move {
        let mut at = from;
        loop {
            let from = piece.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut buffer = vec![0; PIECE];
                let read = from.read_at(&mut buffer, at)?;
                buffer.truncate(read);
                Ok::<_, io::Error>(buffer)
            });
            match read.await.map_err(io::Error::other).and_then(|read| read) {
                // All of it, or a file that has become shorter: then less comes than was said, which is seen.
                Ok(bytes) if bytes.is_empty() => return,
                Ok(bytes) => {
                    at += bytes.len() as u64;
                    if sender.send_data(bytes.into()).await.is_err() {
                        return;
                    }
                }
                Err(error) => return sender.abort(error),
            }
        }
    });
    body.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::bundle::{Image, Index, Role};
    use std::fs::File;

    /// A bundle with one image, whose only blob has these bytes.
    fn bundle(dir: &std::path::Path, blob: &[u8]) -> (Arc<Media>, Digest, Digest) {
        let manifest = br#"{"schemaVersion":2,"layers":[]}"#;
        let (image, blob_digest) = (Digest::of(manifest), Digest::of(blob));
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(image.hex()), manifest).unwrap();
        std::fs::write(blobs.join(blob_digest.hex()), blob).unwrap();
        let one = Image {
            reference: "r.io/os:stable".parse().unwrap(),
            role: Role::Os,
            media_type: MANIFEST.into(),
            digest: image.clone(),
            size: manifest.len() as u64,
        };
        let index = Index { images: vec![one], ..Index::default() };
        std::fs::write(dir.join("index.json"), index.text()).unwrap();
        (Arc::new(Media::open(File::open(dir).unwrap().into()).unwrap()), image, blob_digest)
    }

    #[tokio::test]
    async fn who_has_the_token_gets_what_the_bundle_has_and_nobody_else_anything() {
        let temp = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..3_u32 << 18).map(|i| (i % 251) as u8).collect();
        let (media, image, blob) = bundle(temp.path(), &content);
        let served = serve(media).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{}/v2/", served.address);
        let own = format!("{base}{}/0/", served.token);
        let get = |url: String, from: Option<u64>| {
            let request = client.get(url);
            let request =
                from.into_iter().fold(request, |r, from| r.header("range", format!("bytes={from}-")));
            async move {
                let answer = request.send().await.unwrap();
                (answer.status().as_u16(), answer.bytes().await.unwrap())
            }
        };
        assert_eq!(get(base.clone(), None).await.0, 200);
        assert_eq!(get(format!("{own}manifests/stable"), None).await.0, 200);
        assert_eq!(get(format!("{own}manifests/{image}"), None).await.0, 200);
        let (status, bytes) = get(format!("{own}blobs/{blob}"), None).await;
        assert!(status == 200 && bytes == content);
        let (status, bytes) = get(format!("{own}blobs/{blob}"), Some(300_000)).await;
        assert!(status == 206 && bytes == content[300_000..]);
        assert_eq!(get(format!("{own}blobs/{blob}"), Some(3 << 18)).await.0, 416);
        for missing in [
            format!("{own}manifests/none"),
            format!("{own}blobs/{}", Digest::of(b"none")),
            format!("{own}blobs/../../index.json"),
            format!("{own}sub/manifests/stable"),
            format!("{base}{}/1/manifests/stable", served.token),
            format!("{base}wrong/0/manifests/stable"),
            format!("{base}0/manifests/stable"),
        ] {
            assert_eq!(get(missing.clone(), None).await.0, 404, "{missing}");
        }
        assert_eq!(client.post(own).send().await.unwrap().status(), 405);
        let address = served.address;
        drop(served);
        tokio::task::yield_now().await;
        assert!(client.get(format!("http://{address}/v2/")).send().await.is_err(), "it ends with its job");
    }

    #[test]
    fn a_manifest_is_what_it_says() {
        for (text, expected) in [
            (
                r#"{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}"#,
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
            (r#"{"manifests":[]}"#, LIST),
            (r#"{"layers":[]}"#, MANIFEST),
            ("nonsense", MANIFEST),
        ] {
            assert_eq!(media_type(text.as_bytes()), expected);
        }
    }
}
