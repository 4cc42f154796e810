//! A whole set into the store, and checked before anything is staged.
//!
//! ```text
//!  manifests ─► policy ─► which blobs are missing ─► one fetch for all images ─► spool/<digest>
//!                                                                                   │ all of an image are there
//!                                                          store ◄── skopeo ◄── layout of links
//! ```
//!
//! A blob that several images have is fetched once. Images are put into the store while others are still fetched.

use super::resolve::PARALLEL;
use super::skopeo::failed;
use super::store::{Blobs, Store};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec, Mode};
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{self, Blob, BlobSource, FetchOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Semaphore;

/// Images that are put into the store at a time: unpacking keeps a CPU busy.
pub const IMPORTS: usize = 2;

/// Pulls what is missing, and returns why images with mode `prefetch` could not be had.
///
/// A failure lets the other images finish, because finished work is kept and the retry fetches only the rest; then the
/// first failure (in the order of the set) is returned. `opts` says how fast, from where on the disk, and how patiently:
/// its spool is where blobs are until they are in the store.
pub async fn pull_all(cx: &Cx, store: &Store, set: &BoundSet, opts: &FetchOptions) -> Result<Vec<Error>> {
    let outcome = missing(cx, store, set, opts).await?;
    let mut warnings = Vec::new();
    let mut first: Option<Error> = None;
    for (image, error) in set.images.iter().zip(outcome) {
        match error.map(|cause| failed(&image.spec, "pulled", cause)) {
            None => {}
            Some(error) if error.kind == ErrorKind::Cancelled => return Err(error),
            Some(error) if image.spec.mode == Mode::Prefetch => warnings.push(error),
            Some(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok(warnings), Err)
}

/// An image that is not here, and what it takes.
struct Todo {
    /// Its place in the set.
    at: usize,
    image: BoundImage,
    manifest: Vec<u8>,
    list: Option<Vec<u8>>,
    /// The configuration and the layers.
    blobs: Vec<(Digest, u64)>,
}

impl Todo {
    /// What has to be fetched of it.
    fn wanted(&self, here: &BTreeSet<Digest>) -> Vec<(Digest, u64)> {
        self.blobs.iter().filter(|(digest, _)| !here.contains(digest)).cloned().collect()
    }
}

/// Pulls what is missing; returns of each image of the set why it could not be had.
async fn missing(cx: &Cx, store: &Store, set: &BoundSet, opts: &FetchOptions) -> Result<Vec<Option<Error>>> {
    store.purge()?;
    let mut outcome: Vec<Option<Error>> = set.images.iter().map(|_| None).collect();
    let mut absent = Vec::new();
    for (at, image) in set.images.iter().enumerate() {
        if !store.has(image)? {
            absent.push((at, image));
        }
    }
    let progress = Progress::new(set.images.len(), set.images.len() - absent.len());
    let asked = futures_util::stream::iter(absent)
        .map(|(at, image)| async move { (at, prepare(cx, store, at, image, opts).await) });
    let mut todo = Vec::new();
    for (at, prepared) in asked.buffered(PARALLEL).collect::<Vec<_>>().await {
        match prepared {
            Ok(prepared) => todo.push(prepared),
            Err(error) => outcome[at] = Some(error),
        }
    }
    cx.checkpoint()?;
    while !todo.is_empty() {
        let round = round(cx, store, &todo, opts, &progress).await?;
        let mut again = Vec::new();
        for (todo, ended) in todo.into_iter().zip(round) {
            match ended {
                Ended::Stored => {}
                Ended::Failed(error) => outcome[todo.at] = Some(error),
                Ended::NotTried => again.push(todo),
            }
        }
        todo = again;
    }
    Ok(outcome)
}

/// Asks for the manifest, and whether the image is trusted.
async fn prepare(cx: &Cx, store: &Store, at: usize, image: &BoundImage, opts: &FetchOptions) -> Result<Todo> {
    cx.checkpoint()?;
    let (spec, skopeo) = (&image.spec, store.skopeo());
    let by_digest = BoundSpec { reference: spec.reference.pinned(&image.digest), ..spec.clone() };
    let manifest = skopeo.manifest(cx, &by_digest, opts.patience).await?;
    let got = Digest::of(&manifest);
    if got != image.digest {
        let why = format!("the registry answered {} with {got}", image.digest);
        return Err(Error::new(ErrorKind::DigestMismatch, why));
    }
    pull::vouch(cx, &spec.reference, &image.digest, &skopeo.fetch_options(spec, opts)).await?;
    let list = match spec.reference.digest().filter(|pinned| *pinned != image.digest) {
        Some(pinned) => {
            let list = skopeo.manifest(cx, spec, opts.patience).await?;
            Some(list).filter(|list| Digest::of(list) == pinned)
        }
        None => None,
    };
    let blobs = blobs(&manifest)?;
    Ok(Todo { at, image: image.clone(), manifest, list, blobs })
}

/// What became of an image in a round.
enum Ended {
    Stored,
    Failed(Error),
    /// What it shares with another image could not be fetched from there.
    NotTried,
}

/// Fetches what is missing of these images, each blob once, and puts those into the store that are whole.
async fn round(
    cx: &Cx,
    store: &Store,
    todo: &[Todo],
    opts: &FetchOptions,
    progress: &Progress,
) -> Result<Vec<Ended>> {
    let spool = opts.spool.as_deref();
    let spool =
        spool.ok_or_else(|| Error::new(ErrorKind::Internal, "bound images are fetched to a spool"))?;
    let here = store.layers()?;
    let mut blobs: Vec<Blob> = Vec::new();
    // Of each image, which blobs it waits for.
    let mut waits: Vec<BTreeSet<usize>> = Vec::new();
    let mut places: BTreeMap<Digest, usize> = BTreeMap::new();
    for (source, todo) in todo.iter().enumerate() {
        let wanted = todo.wanted(&here).into_iter().map(|(digest, size)| {
            *places.entry(digest.clone()).or_insert_with(|| {
                blobs.push(Blob { digest, size, source });
                blobs.len() - 1
            })
        });
        waits.push(wanted.collect());
    }
    let sources = todo.iter().map(|todo| BlobSource {
        image: todo.image.spec.reference.pinned(&todo.image.digest),
        opts: store.skopeo().fetch_options(&todo.image.spec, opts),
    });
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let listen = move |blob: usize, outcome: Result<()>| drop(heard.send((blob, outcome)));
    let owner: Vec<usize> = blobs.iter().map(|blob| blob.source).collect();
    let fetch = pull::fetch_blobs(cx, sources.collect(), blobs, opts, listen);
    let shelf = Shelf { cx, store, spool, progress, at_once: Semaphore::new(IMPORTS) };
    let put = async {
        let mut ended: Vec<Option<Ended>> = todo.iter().map(|_| None).collect();
        let mut imports = FuturesUnordered::new();
        for (at, _) in waits.iter().enumerate().filter(|(_, waits)| waits.is_empty()) {
            imports.push(shelf.put(at, &todo[at]));
        }
        loop {
            tokio::select! {
                Some((at, outcome)) = imports.next(), if !imports.is_empty() => ended[at] = Some(outcome),
                heard = hears.recv() => {
                    let Some((blob, outcome)) = heard else { break };
                    for (at, waits) in waits.iter_mut().enumerate().filter(|(_, waits)| waits.contains(&blob)) {
                        waits.remove(&blob);
                        match &outcome {
                            Ok(()) if waits.is_empty() && ended[at].is_none() => {
                                imports.push(shelf.put(at, &todo[at]));
                            }
                            Ok(()) => {}
                            Err(error) if owner[blob] == at => {
                                ended[at].get_or_insert_with(|| Ended::Failed(error.again()));
                            }
                            Err(_) => _ = ended[at].get_or_insert(Ended::NotTried),
                        }
                    }
                }
            }
        }
        while let Some((at, outcome)) = imports.next().await {
            ended[at] = Some(outcome);
        }
        ended
    };
    let (fetched, ended) = tokio::join!(fetch, put);
    let fetched = fetched.err();
    if let Some(error) = fetched.as_ref().filter(|e| e.kind == ErrorKind::Cancelled) {
        return Err(error.again());
    }
    let lost = || Error::new(ErrorKind::Internal, "the fetch ended without it");
    let failed = || Ended::Failed(fetched.as_ref().map_or_else(lost, Error::again));
    Ok(ended.into_iter().map(|ended| ended.unwrap_or_else(failed)).collect())
}

/// Where images are put that are whole.
struct Shelf<'a> {
    cx: &'a Cx,
    store: &'a Store,
    spool: &'a Path,
    progress: &'a Progress,
    at_once: Semaphore,
}

impl Shelf<'_> {
    async fn put(&self, at: usize, todo: &Todo) -> (usize, Ended) {
        let outcome = self.import(todo).await;
        if outcome.is_ok() {
            self.progress.one_more(self.cx, &todo.image.spec.reference.name);
        }
        (at, outcome.map_or_else(Ended::Failed, |()| Ended::Stored))
    }

    async fn import(&self, todo: &Todo) -> Result<()> {
        let _one = self.at_once.acquire().await.doing("waiting for a place to unpack")?;
        let blobs: Vec<Digest> = todo.blobs.iter().map(|(digest, _)| digest.clone()).collect();
        let from =
            Blobs { manifest: &todo.manifest, list: todo.list.as_deref(), spool: self.spool, blobs: &blobs };
        self.cx.step(Step::BindStore, self.store.import(self.cx, &todo.image, &from)).await
    }
}

/// How many images of the set are here.
struct Progress {
    total: u32,
    done: AtomicU32,
}

impl Progress {
    fn new(total: usize, done: usize) -> Progress {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Progress { total: count(total), done: count(done).into() }
    }

    fn one_more(&self, cx: &Cx, name: &str) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        cx.items(done.min(self.total), self.total, name);
    }
}

/// The configuration and the layers of a manifest.
pub(super) fn blobs(manifest: &[u8]) -> Result<Vec<(Digest, u64)>> {
    #[derive(serde::Deserialize)]
    struct Descriptor {
        digest: Digest,
        size: u64,
    }
    #[derive(serde::Deserialize)]
    struct Manifest {
        config: Descriptor,
        layers: Vec<Descriptor>,
    }
    let manifest: Manifest = serde_json::from_slice(manifest)
        .kind(ErrorKind::Unsupported, "its manifest is none of an image with a configuration and layers")?;
    let mut blobs: Vec<(Digest, u64)> = Vec::new();
    for Descriptor { digest, size } in [manifest.config].into_iter().chain(manifest.layers) {
        // One manifest may list a layer twice.
        if !blobs.iter().any(|(known, _)| *known == digest) {
            blobs.push((digest, size));
        }
    }
    Ok(blobs)
}

/// Checks, by digest and without network, that every image with mode `bind` is in the store.
pub async fn verify_present(cx: &Cx, store: &Store, set: &BoundSet) -> Result<()> {
    for image in set.images.iter().filter(|i| i.spec.mode == Mode::Bind) {
        cx.checkpoint()?;
        if !store.has(image)? {
            let missing = Error::new(
                ErrorKind::BoundImageFailed,
                format!("{} is not in {}", image.digest, store.graph_root().display()),
            )
            .hint("try again: what is there is not fetched again");
            return Err(failed(&image.spec, "found in the store", missing));
        }
    }
    Ok(())
}
