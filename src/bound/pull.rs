//! A whole set into the store, and checked before anything is staged.
//!
//! ```text
//!  manifests ─► policy ─► which layers are missing ─► one fetch for all images ─► spool/<digest>
//!                                                                                    │ read while it grows
//!                              lists of the store ◄── all of an image are there ◄── new/<place>/
//! ```
//!
//! A blob that several images have is fetched once, and unpacked once where it stands on the same layers. Images are put into the
//! store while others are still fetched.

use super::admit::{Ready, Unpacked, new_layers};
use super::layer::Written;
use super::places::places;
use super::resolve::PARALLEL;
use super::skopeo::failed;
use super::store::{Blobs, Store};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec, Mode};
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{self, Blob, BlobSource, FetchOptions};
use crate::sys::fs::remove_whole;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

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
    config: Sized,
    /// The lowest first.
    layers: Vec<Sized>,
}

/// Pulls what is missing; returns of each image of the set why it could not be had.
async fn missing(cx: &Cx, store: &Store, set: &BoundSet, opts: &FetchOptions) -> Result<Vec<Option<Error>>> {
    store.purge(cx)?;
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
        let round = round(cx, store, &todo, opts, &progress).await;
        // Of images that could not be had: a full disk would stay full.
        forget_new(store)?;
        let round = round?;
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
    let (config, layers) = blobs(&manifest)?;
    Ok(Todo { at, image: image.clone(), manifest, list, config, layers })
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
    let orders = Orders::new(store, todo)?;
    let sources = todo.iter().map(|todo| BlobSource {
        image: todo.image.spec.reference.pinned(&todo.image.digest),
        opts: store.skopeo().fetch_options(&todo.image.spec, opts),
    });
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let listen = move |blob: usize, outcome: Result<Option<Written>>| drop(heard.send((blob, outcome)));
    let fetch = pull::fetch_blobs(cx, sources.collect(), orders.blobs.clone(), opts, listen);
    let shelf = Shelf { cx, store, spool, progress, todo, orders: &orders };
    let put = async {
        let mut waits = orders.waits.clone();
        let mut ended: Vec<Option<Ended>> = todo.iter().map(|_| None).collect();
        let mut written: Vec<Option<Written>> = orders.blobs.iter().map(|_| None).collect();
        let mut whole: Vec<usize> = (0..todo.len()).filter(|at| waits[*at].is_empty()).collect();
        // One at a time: what became whole meanwhile is put there together, with one sync.
        let mut putting = FuturesUnordered::new();
        let mut fetching = true;
        while fetching || !whole.is_empty() || !putting.is_empty() {
            if putting.is_empty() && !whole.is_empty() {
                let batch = std::mem::take(&mut whole);
                let ready = batch.iter().map(|at| shelf.ready(*at, &written)).collect();
                putting.push(shelf.put(batch, ready));
            }
            tokio::select! {
                Some(done) = putting.next(), if !putting.is_empty() => {
                    for (at, outcome) in done {
                        ended[at] = Some(outcome);
                    }
                }
                heard = hears.recv(), if fetching => {
                    let Some((blob, outcome)) = heard else {
                        fetching = false;
                        continue;
                    };
                    for (at, waits) in waits.iter_mut().enumerate().filter(|(_, waits)| waits.contains(&blob)) {
                        waits.remove(&blob);
                        match &outcome {
                            Ok(_) if waits.is_empty() && ended[at].is_none() => whole.push(at),
                            Ok(_) => {}
                            Err(error) if orders.blobs[blob].source == at => {
                                ended[at].get_or_insert_with(|| Ended::Failed(error.again()));
                            }
                            Err(_) => _ = ended[at].get_or_insert(Ended::NotTried),
                        }
                    }
                    written[blob] = outcome.ok().flatten();
                }
            }
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

/// What is fetched in a round, and for whom.
struct Orders {
    blobs: Vec<Blob>,
    /// Of each image, which blobs it waits for.
    waits: Vec<BTreeSet<usize>>,
    /// Of each layer of each image, where it is written and which blob it is; `None` if it is here.
    layers: Vec<Vec<Option<(PathBuf, usize)>>>,
}

impl Orders {
    fn new(store: &Store, todo: &[Todo]) -> Result<Orders> {
        let (stock, new) = (store.stock()?, new_layers(store.graph()));
        let mut orders = Orders { blobs: Vec::new(), waits: Vec::new(), layers: Vec::new() };
        let mut known: BTreeMap<Digest, usize> = BTreeMap::new();
        for (source, todo) in todo.iter().enumerate() {
            let mut blob = |(digest, size): &(Digest, u64), blobs: &mut Vec<Blob>| {
                *known.entry(digest.clone()).or_insert_with(|| {
                    blobs.push(Blob { digest: digest.clone(), size: *size, source, into: Vec::new() });
                    blobs.len() - 1
                })
            };
            let mut waits = BTreeSet::from([blob(&todo.config, &mut orders.blobs)]);
            let digests: Vec<Digest> = todo.layers.iter().map(|(digest, _)| digest.clone()).collect();
            let mut layers = Vec::new();
            for ((layer, here), place) in todo.layers.iter().zip(stock.has(&digests)).zip(places(&digests)) {
                if here {
                    layers.push(None);
                    continue;
                }
                let (at, place) = (blob(layer, &mut orders.blobs), new.join(place));
                let into = &mut orders.blobs[at].into;
                if store.writes_layers() && !into.contains(&place) {
                    into.push(place.clone());
                }
                waits.insert(at);
                layers.push(Some((place, at)));
            }
            orders.waits.push(waits);
            orders.layers.push(layers);
        }
        Ok(orders)
    }
}

/// Removes layers that no image was made of.
fn forget_new(store: &Store) -> Result<()> {
    remove_whole(&new_layers(store.graph())).doing("removing layers that no image has")
}

/// Where images are put that are whole.
struct Shelf<'a> {
    cx: &'a Cx,
    store: &'a Store,
    spool: &'a Path,
    progress: &'a Progress,
    todo: &'a [Todo],
    orders: &'a Orders,
}

impl Shelf<'_> {
    /// An image, with what its layers turned out to be.
    fn ready(&self, at: usize, written: &[Option<Written>]) -> Ready {
        let todo = &self.todo[at];
        let layers = todo.layers.iter().zip(&self.orders.layers[at]).map(|((blob, _), layer)| Unpacked {
            blob: blob.clone(),
            new: layer.as_ref().and_then(|(place, at)| Some((place.clone(), written[*at].clone()?))),
        });
        Ready {
            image: todo.image.clone(),
            manifest: todo.manifest.clone(),
            list: todo.list.clone(),
            config: todo.config.0.clone(),
            layers: layers.collect(),
        }
    }

    async fn put(&self, batch: Vec<usize>, ready: Vec<Ready>) -> Vec<(usize, Ended)> {
        let outcome = self.cx.step(Step::BindStore, self.store_all(&batch, ready)).await;
        let outcome = outcome.unwrap_or_else(|error| batch.iter().map(|_| Err(error.again())).collect());
        let ended = batch.into_iter().zip(outcome).map(|(at, outcome)| match outcome {
            Ok(()) => {
                self.progress.one_more(self.cx, &self.todo[at].image.spec.reference.name);
                (at, Ended::Stored)
            }
            Err(error) => (at, Ended::Failed(error)),
        });
        ended.collect()
    }

    async fn store_all(&self, batch: &[usize], ready: Vec<Ready>) -> Result<Vec<Result<()>>> {
        if self.store.writes_layers() {
            return self.store.admit(self.cx, ready, self.spool).await;
        }
        let mut outcome = Vec::new();
        for todo in batch.iter().map(|at| &self.todo[*at]) {
            let all = [&todo.config].into_iter().chain(&todo.layers);
            let blobs: BTreeSet<Digest> = all.map(|(digest, _)| digest.clone()).collect();
            let blobs: Vec<Digest> = blobs.into_iter().collect();
            let (manifest, list) = (&todo.manifest[..], todo.list.as_deref());
            let from = Blobs { manifest, list, spool: self.spool, blobs: &blobs };
            outcome.push(self.store.import(self.cx, &todo.image, &from).await);
        }
        Ok(outcome)
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

/// What a layer may be. Others are no tar stream (of artifacts), cannot be read (encrypted), or lie elsewhere (foreign).
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A blob, and its size.
type Sized = (Digest, u64);

/// A blob as a manifest describes it.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    media_type: String,
}

/// What a manifest of an image, or of a signature, consists of.
#[derive(serde::Deserialize)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    pub fn parse(manifest: &[u8]) -> Result<Manifest> {
        serde_json::from_slice(manifest)
            .kind(ErrorKind::Unsupported, "its manifest is none of an image with a configuration and layers")
    }
}

/// The configuration and the layers of a manifest.
fn blobs(manifest: &[u8]) -> Result<(Sized, Vec<Sized>)> {
    let manifest = Manifest::parse(manifest)?;
    let mut layers = Vec::new();
    for Descriptor { digest, size, media_type } in manifest.layers {
        if !LAYERS.contains(&media_type.as_str()) {
            let why =
                format!("layer {digest} is of the type {}, which cannot be unpacked", one_line(&media_type));
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        layers.push((digest, size));
    }
    Ok(((manifest.config.digest, manifest.config.size), layers))
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
