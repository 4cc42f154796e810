//! The transfer of blobs: from a registry, or a local transport, into the spool.
//!
//! ```text
//!   importer (root, no network)                      fetcher (a user of its own, network, no other files)
//!   ───────────────────────────                      ───────────────────────────────────────────────────
//!   order: endpoints, credentials, blobs ── stdin ──►  GET with Range, retries, rate limit
//!   Again { blob }                       ── stdin ──►        │
//!   waits for growth, reads, verifies    ◄─ stdout ──  Here { blob, bytes }, Whole, Failed, Waiting
//!          ▲                                                 │
//!          └─────────────── <spool>/<digest> ◄───────────────┘   the only directory that it can write
//! ```
//!
//! Nothing that the fetcher says or writes is trusted: the importer hashes what it reads, in the one pass in which it
//! uses it. What was fetched stays in the spool until the layer is in the repository for good, so a transfer that broke
//! off, or a process that was killed, goes on where it was.

mod challenge;
mod child;
mod http;
mod local;
mod patience;
mod rate;
mod spool;

use super::caller::Caller;
use super::source::Source;
use super::types::{FetchOptions, Layer, Resolved, Worker};
use super::wire::Failed;
use crate::engine::cx::Cx;
use crate::model::image::{Digest, ImageRef, Transport};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use crate::sys::registries::{self, Endpoint, Sources};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use child::main;
pub use patience::Patience;
pub(super) use patience::dice;
pub(super) use spool::{Blob, Spool};

/// Everything that a fetcher may know. Never logged: it carries credentials.
#[derive(Serialize, Deserialize)]
pub(super) struct Order {
    /// The places that have what is wanted of a source, in the order to ask.
    sources: Vec<Vec<Endpoint>>,
    blobs: Vec<Wanted>,
    connections: NonZeroU32,
    rate_limit: Option<NonZeroU64>,
    patience: Patience,
}

/// A blob to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// Its digest, which is its name in the spool, too.
    digest: Digest,
    /// Its size, as the manifest has it.
    size: u64,
    /// Whether that is how many bytes come: local storage has layers uncompressed, and nothing says how large.
    exact: bool,
    /// Which of the sources has it.
    source: usize,
}

impl Wanted {
    /// The blob of a layer.
    pub(super) fn of(layer: &Layer, uncompressed: bool) -> Wanted {
        let digest = if uncompressed { &layer.diff_id } else { &layer.digest };
        Wanted { digest: digest.clone(), size: layer.size, exact: !uncompressed, source: 0 }
    }

    /// A blob of one of several sources in registries.
    pub(super) fn from(source: usize, digest: &Digest, size: u64) -> Wanted {
        Wanted { digest: digest.clone(), size, exact: true, source }
    }
}

/// What a fetcher says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    /// So much of a blob is in the spool.
    Here { blob: usize, bytes: u64 },
    /// All of it is.
    Whole { blob: usize },
    /// It cannot be had.
    Failed { blob: usize, error: Failed },
    /// It will be asked for again.
    Waiting { text: String },
    /// It waits, as it said.
    Alive,
}

/// What a fetcher is asked while it works.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ask {
    /// Fetch this one anew: what came was not what it should be.
    Again { blob: usize },
}

/// A transfer that is going on. Ends with this.
pub(super) struct Fetcher {
    spool: Arc<Spool>,
    ask: Option<tokio::sync::mpsc::UnboundedSender<usize>>,
    child: Option<child::Child>,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

/// Connections at a time, if the configuration does not say: enough to hide a round trip behind the transfer of others,
/// and no more than a browser opens to one host.
const CONNECTIONS: NonZeroU32 = NonZeroU32::new(6).expect("6 is not 0");

impl Fetcher {
    /// Starts to fetch these blobs of registries in a process of its own. To be called before other threads are there:
    /// the caller is going to leave the network.
    pub(super) fn child(
        opts: &FetchOptions,
        sources: Vec<Vec<Endpoint>>,
        spool: Arc<Spool>,
        blobs: Vec<Wanted>,
    ) -> Result<Fetcher> {
        let child = child::Child::start(&order(opts, sources, blobs), spool.clone())?;
        Ok(Fetcher { spool, ask: None, child: Some(child) })
    }

    /// Starts to fetch these blobs of registries in this process, on the current runtime.
    pub(super) fn own(
        opts: &FetchOptions,
        sources: Vec<Vec<Endpoint>>,
        spool: Arc<Spool>,
        blobs: Vec<Wanted>,
    ) -> Result<Fetcher> {
        let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
        let hears = spool.clone();
        tokio::spawn(http::serve(
            order(opts, sources, blobs),
            spool.dir()?,
            move |word| hears.hear(word),
            asked,
        ));
        Ok(Fetcher { spool, ask: Some(ask), child: None })
    }

    /// Starts to fetch these blobs of an image in this process, on the current runtime.
    pub(super) fn here(
        resolved: &Resolved,
        opts: &FetchOptions,
        endpoints: Vec<Endpoint>,
        spool: Arc<Spool>,
        blobs: Vec<Wanted>,
    ) -> Result<Fetcher> {
        if resolved.image.transport == Transport::Registry {
            return Fetcher::own(opts, vec![endpoints], spool, blobs);
        }
        let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
        let hears = spool.clone();
        let say = move |word| hears.hear(word);
        let (dir, resolved, opts) = (spool.dir()?, resolved.clone(), opts.clone());
        tokio::spawn(async move { local::serve(&resolved, &opts, blobs, dir, say, asked).await });
        Ok(Fetcher { spool, ask: Some(ask), child: None })
    }

    /// A blob, by its place in the order. Reading it waits for what has not come yet.
    pub(super) fn blob(&self, blob: usize) -> Blob {
        self.spool.open(blob)
    }

    /// Fetches a blob anew.
    pub(super) fn again(&self, blob: usize) -> Result<()> {
        self.spool.again(blob)?;
        if let Some(ask) = &self.ask {
            // If the fetcher is gone, the spool says why.
            let _ = ask.send(blob);
        }
        match &self.child {
            Some(child) => child.ask(&Ask::Again { blob }),
            None => Ok(()),
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.spool.close();
    }
}

/// How many blobs are fetched at a time.
pub(super) fn connections(opts: &FetchOptions) -> NonZeroU32 {
    opts.connections.unwrap_or(CONNECTIONS)
}

fn order(opts: &FetchOptions, sources: Vec<Vec<Endpoint>>, blobs: Vec<Wanted>) -> Order {
    Order {
        sources,
        blobs,
        connections: connections(opts),
        rate_limit: opts.rate_limit,
        patience: opts.patience,
    }
}

/// Where the blobs of an image are to be had, with what it takes; nowhere, if it is not in a registry.
pub(super) async fn endpoints(resolved: &Resolved, opts: &FetchOptions) -> Result<Vec<Endpoint>> {
    if resolved.image.transport != Transport::Registry {
        return Ok(Vec::new());
    }
    // Whoever cancels ends this process.
    endpoints_of(&Cx::detached(), &resolved.image.pinned(&resolved.digest), opts).await
}

/// Where a registry's image is to be had by this reference.
pub(super) async fn endpoints_of(cx: &Cx, image: &ImageRef, opts: &FetchOptions) -> Result<Vec<Endpoint>> {
    let root = opts.config_root.as_deref().unwrap_or(Path::new("/"));
    let root = Dir::open_ambient_dir(root, ambient_authority())
        .doing_with(|| format!("opening the configuration root {}", root.display()))?;
    let sources = Sources {
        root: &root,
        auth_file: opts.auth_file.as_deref(),
        registries_conf: opts.registries.as_deref(),
        home: opts.home.as_deref(),
        helpers: None,
        insecure: opts.insecure,
        cert_dir: opts.cert_dir.as_deref(),
    };
    let mut endpoints = registries::endpoints(cx, &sources, image).await?;
    if opts.secure {
        endpoints.iter_mut().for_each(|endpoint| endpoint.insecure = false);
    }
    Ok(endpoints)
}

/// Who the spool belongs to; `None` is this process's own user.
pub(super) fn user(opts: &FetchOptions) -> Option<(u32, u32)> {
    match opts.worker {
        Worker::InProcess => None,
        Worker::OwnExecutable | Worker::Program(..) => crate::sys::user::fetcher(),
    }
}

/// Where the blobs of an image lie as files, with their digests for names: in an OCI layout.
pub(super) fn layout(resolved: &Resolved) -> Option<PathBuf> {
    let image = &resolved.image;
    // The path of a layout ends with the first colon, containers-transports(5).
    (image.transport == Transport::Oci).then(|| image.name.split(':').next().unwrap_or_default().into())
}

/// The error for a blob that a layout does not have.
pub(super) fn lost(layer: &Layer, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::ImageNotFound,
        std::io::ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    };
    let text =
        format!("reading layer {} from {}; the running system is unchanged", layer.digest, path.display());
    Error::new(kind, text).hint("the layout is not complete: copy the image again").source(error)
}

/// Opens a source, to see that the image is still the one that was planned.
async fn open(resolved: &Resolved, opts: &FetchOptions) -> Result<Source> {
    let source = Source::open(&resolved.image.pinned(&resolved.digest), opts, &Caller::default()).await?;
    let (digest, _) = source.manifest().await?;
    if digest == resolved.digest {
        return Ok(source);
    }
    Err(Error::new(
        ErrorKind::DigestMismatch,
        format!(
            "{} was {} when the update was planned and is {digest} now; the running system is unchanged",
            resolved.image, resolved.digest
        ),
    )
    .hint("try again: the image was replaced meanwhile"))
}

/// Removes what transfers that broke off have left in a spool.
pub fn forget_spool(path: &Path) -> Result<()> {
    fs::remove_whole(path).doing_with(|| format!("emptying the spool {}", path.display()))
}
