//! Blobs of images that are no part of the OS: fetched as layers are, verified, and left as files, or unpacked on the way.
//!
//! ```text
//!  sources (image, credentials) ─┐   one worker, one fetcher: the limits count for all of them together
//!  blobs (digest, size, source) ─┴─► spool/<digest> ─► layers, while it grows; told of as soon as it has its digest
//! ```
//!
//! A blob that cannot be had is told of as well, and is no reason to stop: others of the same order may be of images that
//! nothing is wrong with.

use super::fetch::{self, Fetcher, Spool, Wanted};
use super::types::{FetchOptions, Reporter, Worker};
use super::unpack::Hashing;
use super::wire::Failed;
use super::worker;
use crate::bound::{Written, write_layer};
use crate::engine::cx::Cx;
use crate::model::image::{Digest, ImageRef};
use crate::model::{Context, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// So much of a blob is hashed at a time.
const BUFFER: usize = 1 << 18;

/// An image in a registry, and how it is reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    /// The image, pinned to its digest.
    pub image: ImageRef,
    /// Its credentials and certificates; the rest of the options counts for all sources.
    pub opts: FetchOptions,
}

/// A blob to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its digest, which is its name in the spool, too.
    pub digest: Digest,
    /// Its size in bytes, as the manifest has it.
    pub size: u64,
    /// Which of the sources has it.
    pub source: usize,
    /// Directories to write it into as a layer; they are not there yet. None of a blob that is no layer.
    #[serde(default)]
    pub into: Vec<PathBuf>,
}

/// What became of a blob: it is there, with what its layers turned out to be.
pub(super) type Arrived = Option<Written>;

/// What the worker is told. Never logged: its answer to where things are carries credentials.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    sources: Vec<Source>,
    blobs: Vec<Blob>,
    opts: FetchOptions,
}

/// Brings blobs into the spool of `opts`, writes those that are layers, and says of each, by its place in `blobs`, that it is
/// there and has its digest, or why it cannot be had.
///
/// Of a blob that cannot be had there is no layer. Whatever else lies in the spool is removed; what is there of a blob is not fetched again. Fails only where nothing can be
/// fetched at all.
pub(crate) async fn fetch_blobs(
    cx: &Cx,
    sources: Vec<Source>,
    blobs: Vec<Blob>,
    opts: &FetchOptions,
    heard: impl FnMut(usize, Result<Arrived>) + Send,
) -> Result<()> {
    cx.checkpoint()?;
    let order = Order { sources, blobs, opts: opts.clone() };
    worker::fetch_blobs(cx, order, heard).await
}

/// A fetch that is under way.
#[derive(Debug)]
pub(super) struct Work {
    fetcher: Fetcher,
    /// The place of each blob of the spool in the order.
    places: Vec<usize>,
    blobs: Vec<Blob>,
    /// Blobs of sources that cannot be asked, and why.
    lost: Vec<(usize, Failed)>,
    threads: usize,
}

impl Order {
    pub(super) fn opts(&self) -> &FetchOptions {
        &self.opts
    }

    /// Finds out where the sources are, and starts to fetch.
    pub(super) async fn start(self, report: Reporter) -> Result<Work> {
        let (mut sources, mut failed) = (Vec::new(), Vec::new());
        for source in &self.sources {
            // Whoever cancels ends this process.
            let found = fetch::endpoints_of(&Cx::detached(), &source.image, &source.opts).await;
            let (endpoints, why) = match found {
                Ok(endpoints) => (endpoints, None),
                Err(error) => (Vec::new(), Some(Failed::from(error))),
            };
            sources.push(endpoints);
            failed.push(why);
        }
        let (mut places, mut wanted, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for (place, blob) in self.blobs.iter().enumerate() {
            match failed.get(blob.source) {
                Some(None) => {
                    places.push(place);
                    wanted.push(Wanted::from(blob.source, &blob.digest, blob.size));
                }
                Some(Some(failed)) => lost.push((place, failed.clone())),
                None => return Err(Error::new(ErrorKind::Internal, "a blob is of no source")),
            }
        }
        let path = self.opts.spool.as_deref();
        let path = path.ok_or_else(|| Error::new(ErrorKind::Internal, "blobs are fetched to a spool"))?;
        let spool = Spool::prepare(path, fetch::user(&self.opts), wanted.clone(), report)?;
        let start = match self.opts.worker {
            Worker::InProcess => Fetcher::own,
            Worker::OwnExecutable | Worker::Program(..) => Fetcher::child,
        };
        let threads = places.len().min(fetch::connections(&self.opts).get() as usize);
        let fetcher = start(&self.opts, sources, spool, wanted)?;
        Ok(Work { fetcher, places, blobs: self.blobs, lost, threads })
    }
}

impl Work {
    /// Waits for the blobs, and says of each what became of it. Blocks.
    pub(super) fn finish(self, say: &(dyn Fn(usize, Result<Arrived, Failed>) + Sync)) -> Result<()> {
        for (place, failed) in &self.lost {
            say(*place, Err(failed.clone()));
        }
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = self.places.get(at) else { return };
                say(*place, self.verified(at, &self.blobs[*place]).map_err(Failed::from));
            }
        };
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..self.threads)
                .map(|_| std::thread::Builder::new().name("verify".into()).spawn_scoped(scope, work))
                .collect::<std::io::Result<_>>()
                .doing("starting threads that verify")?;
            let panicked = threads.into_iter().any(|thread| thread.join().is_err());
            if panicked { Err(Error::new(ErrorKind::Internal, "verifying a blob panicked")) } else { Ok(()) }
        })
    }

    /// Waits for a blob, and fetches it once more if it is not what it should be: a proxy on the way may have damaged it, or
    /// what an earlier attempt left.
    fn verified(&self, at: usize, blob: &Blob) -> Result<Arrived> {
        match self.read(at, blob) {
            Err(error) if error.kind == ErrorKind::DigestMismatch => {
                self.fetcher.again(at)?;
                self.read(at, blob)
            }
            outcome => outcome,
        }
    }

    fn read(&self, at: usize, blob: &Blob) -> Result<Arrived> {
        let mut arrived = None;
        for to in &blob.into {
            match write_layer(self.fetcher.blob(at), &blob.digest, blob.size, to) {
                Ok(written) => arrived = Some(written),
                Err(error) => {
                    blob.into.iter().for_each(|to| remove(to));
                    return Err(error);
                }
            }
        }
        if arrived.is_none() {
            self.read_only(at, blob)?;
        }
        Ok(arrived)
    }

    fn read_only(&self, at: usize, blob: &Blob) -> Result<()> {
        let mut reader = Hashing::new(self.fetcher.blob(at));
        let read = io::copy(&mut BufReader::with_capacity(BUFFER, &mut reader), &mut io::sink());
        read.map_err(|error| {
            // What the fetcher said of it.
            error.downcast::<Error>().unwrap_or_else(|error| {
                Error::new(ErrorKind::Internal, format!("reading blob {}", blob.digest)).source(error)
            })
        })?;
        if reader.finish() == (blob.size, blob.digest.clone()) {
            return Ok(());
        }
        let why = format!("blob {} does not have its digest or its size of {} bytes", blob.digest, blob.size);
        Err(Error::new(ErrorKind::DigestMismatch, why))
    }
}

/// Removes what was written of a layer that is none. What stays is removed before the next pull.
fn remove(layer: &Path) {
    if let Err(error) = crate::sys::fs::remove_whole(layer) {
        tracing::warn!(%error, path = %layer.display(), "a part of a layer stays");
    }
}
