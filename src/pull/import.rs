//! The import: skip what is here, fetch and store each missing layer, merge, commit.
//!
//! ```text
//!  missing layers, largest first        fetcher ──► spool
//!        │                                            │
//!        ├──► importer 1: unpack ► objects ► ref ─────┤   a transaction of its own each, committed every few seconds:
//!        └──► importer n: unpack ► objects ► ref ─────┘   what is committed is never fetched again
//!                         │
//!                         ▼
//!                 merge ► commit ► image ref
//! ```

use super::chunk::{self, Carries};
use super::commit::{self, Filtered};
use super::counts::Counts;
use super::fetch::{self, Fetcher, Spool, Wanted};
use super::labels::Labels;
use super::layer::{self, Stored};
use super::merge::{self, Directories};
use super::object::{self, Known};
use super::pulse::Local;
use super::refs::{self, Made};
use super::tree::{Dir, Raw, write_dirmeta};
use super::types::{Base, FetchOptions, ImageKind, Layer, Report, Reporter, Resolved};
use super::{encapsulated, estimate, plain};
use crate::model::image::Transport;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::registries::Endpoint;
use ostree_ext::{gio, ostree};
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An importer commits what it has after so much time, or so many bytes: the next crash then costs no more than that.
const COMMIT_AFTER: Duration = Duration::from_secs(5);
const COMMIT_BYTES: u64 = 256 << 20;
/// How often what was written is sent to the disk, so that a commit has little left to wait for.
const WRITE_BACK: Duration = Duration::from_millis(350);

/// A layer that is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Todo {
    layer: Layer,
    what: What,
}

/// What a layer is imported as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A tree of its own, to be merged.
    Tree,
    /// A part of an ostree commit.
    Chunk(Carries),
}

/// The layers that are not here, largest first: the last to be finished is then a small one.
pub(super) fn missing(repo: &ostree::Repo, resolved: &Resolved) -> Result<Vec<Todo>> {
    let mut todo: Vec<Todo> = Vec::new();
    for (at, (layer, made)) in estimate::with_kinds(resolved)?.enumerate() {
        let here = estimate::is_here(repo, layer, made)?;
        let what = match made {
            Made::Chunk if at == 0 => What::Chunk(Carries::Commit),
            Made::Chunk => What::Chunk(Carries::Files),
            Made::Layer => What::Tree,
        };
        // One manifest may list a layer twice.
        if !here && !todo.iter().any(|t| t.layer.digest == layer.digest) {
            todo.push(Todo { layer: layer.clone(), what });
        }
    }
    todo.sort_by_key(|todo| std::cmp::Reverse(todo.layer.size));
    Ok(todo)
}

/// Imports in this process. Only the process's end stops it at once: see [`super::pull`].
pub async fn import_in_process(
    report: &Reporter,
    repo_path: &Path,
    resolved: &Resolved,
    opts: &FetchOptions,
) -> Result<Base> {
    let repo = open(repo_path)?;
    if let Some(base) = found(&repo, resolved)? {
        return Ok(base);
    }
    let todo = missing(&repo, resolved)?;
    let endpoints = if todo.is_empty() { Vec::new() } else { fetch::endpoints(resolved, opts).await? };
    let supply = Supply::new(report, resolved, opts, &todo, endpoints, Fetcher::here)?;
    import(report, repo_path, resolved, opts, todo, supply).await
}

/// The image, if it is here under whatever reference; it then has this one as well.
pub(super) fn found(repo: &ostree::Repo, resolved: &Resolved) -> Result<Option<Base>> {
    let Some(base) = refs::find_as(repo, resolved.kind, &resolved.digest)? else { return Ok(None) };
    if resolved.kind == ImageKind::Content {
        return Ok(Some(base));
    }
    refs::name(repo, &resolved.image, &base.commit)?;
    Ok(Some(base))
}

/// Opens the repository. Every thread has a handle of its own.
pub(super) fn open(path: &Path) -> Result<ostree::Repo> {
    let repo = ostree::Repo::new_for_path(path);
    repo.open(gio::Cancellable::NONE).doing_with(|| format!("opening the repository {}", path.display()))?;
    Ok(repo)
}

/// Imports what is missing, and makes the image's commit.
pub(super) async fn import(
    report: &Reporter,
    repo_path: &Path,
    resolved: &Resolved,
    opts: &FetchOptions,
    todo: Vec<Todo>,
    supply: Supply,
) -> Result<Base> {
    let (report, repo_path) = (report.clone(), repo_path.to_owned());
    let (resolved, opts) = (resolved.clone(), opts.clone());
    let work = move || {
        let importers = opts.importers.map_or_else(cpus, |n| n.get() as usize).min(todo.len());
        let crew = Crew {
            report: &report,
            repo_path: &repo_path,
            brought: object::brought(&open(&repo_path)?)?,
            todo: &todo,
            supply: &supply,
            next: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            failed: Mutex::new(None),
        };
        crew.work(importers)?;
        drop(supply);
        let _local = Local::work();
        let repo = open(&repo_path)?;
        let commit = match resolved.kind {
            ImageKind::Encapsulated => encapsulated::merge(&report, &repo, &resolved)?,
            ImageKind::Plain => plain_image(&report, &repo, &resolved, &opts)?,
            ImageKind::Content => content(&repo, &resolved)?,
        };
        refs::describe(&repo, &commit)?
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the merge commit does not describe its image"))
    };
    tokio::task::spawn_blocking(work).await.doing("importing")?
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Where the blobs of the missing layers come from.
#[derive(Debug)]
pub(super) struct Supply {
    /// An OCI layout, whose files are read where they lie.
    layout: Option<std::path::PathBuf>,
    fetcher: Option<(Fetcher, Arc<Spool>)>,
    /// Local storage has layers uncompressed, and nothing verifies the blob's digest: they get the other one's name.
    uncompressed: bool,
    /// Whether asking again may give something else.
    again: bool,
    /// What was read of the layout.
    read: Counts,
    /// Removed with this, where nobody named a place that stays.
    _temporary: Option<tempfile::TempDir>,
}

impl Supply {
    /// Starts whatever brings the blobs, with `start`.
    pub(super) fn new(
        report: &Reporter,
        resolved: &Resolved,
        opts: &FetchOptions,
        todo: &[Todo],
        endpoints: Vec<Endpoint>,
        start: impl FnOnce(&Resolved, &FetchOptions, Vec<Endpoint>, Arc<Spool>, Vec<Wanted>) -> Result<Fetcher>,
    ) -> Result<Supply> {
        let transport = resolved.image.transport;
        let mut supply = Supply {
            layout: fetch::layout(resolved),
            fetcher: None,
            uncompressed: transport == Transport::ContainersStorage,
            again: transport == Transport::Registry,
            read: Counts::new(report, todo.iter().map(|todo| todo.layer.size)),
            _temporary: None,
        };
        if todo.is_empty() || supply.layout.is_some() {
            return Ok(supply);
        }
        let wanted: Vec<Wanted> =
            todo.iter().map(|todo| Wanted::of(&todo.layer, supply.uncompressed)).collect();
        let path = match &opts.spool {
            Some(path) => path.clone(),
            None => {
                let temporary = tempfile::tempdir().doing("making a spool")?;
                supply._temporary.insert(temporary).path().join("spool")
            }
        };
        let owner = if transport == Transport::Registry { fetch::user(opts) } else { None };
        let spool = Spool::prepare(&path, owner, wanted.clone(), report.clone())?;
        supply.fetcher = Some((start(resolved, opts, endpoints, spool.clone(), wanted)?, spool));
        Ok(supply)
    }

    fn import(&self, repo: &ostree::Repo, known: &Known<'_>, at: usize, todo: &Todo) -> Result<Vec<String>> {
        let Todo { layer, what } = todo;
        let (name, size) =
            if self.uncompressed { (&layer.diff_id, None) } else { (&layer.digest, Some(layer.size)) };
        match (&self.layout, &self.fetcher) {
            (Some(layout), _) => {
                let path = layout.join("blobs/sha256").join(name.hex());
                let file = std::fs::File::open(&path).map_err(|e| fetch::lost(layer, &path, e))?;
                what.import(repo, known, layer, name, size, self.read.counted(layer, file))
            }
            (None, Some((fetcher, _))) => what.import(repo, known, layer, name, size, fetcher.blob(at)),
            (None, None) => Err(Error::new(ErrorKind::Internal, "nobody fetches")),
        }
    }
}

impl What {
    fn import(
        self,
        repo: &ostree::Repo,
        known: &Known<'_>,
        layer: &Layer,
        name: &crate::model::image::Digest,
        size: Option<u64>,
        blob: impl std::io::Read + Send + 'static,
    ) -> Result<Vec<String>> {
        match self {
            What::Tree => layer::import(repo, layer, name, size, blob),
            What::Chunk(carries) => {
                chunk::import(repo, known, layer, carries, name, size, blob).map(|()| Vec::new())
            }
        }
    }
}

/// The threads that import, and what they share.
struct Crew<'a> {
    report: &'a Reporter,
    repo_path: &'a Path,
    brought: HashSet<Raw>,
    todo: &'a [Todo],
    supply: &'a Supply,
    next: AtomicUsize,
    finished: AtomicUsize,
    /// The first error; those of the others follow from it.
    failed: Mutex<Option<Error>>,
}

impl Crew<'_> {
    fn work(&self, importers: usize) -> Result<()> {
        if self.todo.is_empty() {
            return Ok(());
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..importers)
                .map(|_| {
                    let thread = std::thread::Builder::new().name("import".into());
                    thread.spawn_scoped(scope, || {
                        if let Err(error) = self.importer() {
                            self.fail(error);
                        }
                    })
                })
                .collect::<std::io::Result<_>>()
                .doing("starting the importers")?;
            let flusher = std::thread::Builder::new().name("write-back".into());
            let flusher =
                flusher.spawn_scoped(scope, || self.write_back(&done)).doing("starting a thread")?;
            let joined: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            done.store(true, Ordering::Relaxed);
            flusher.thread().unpark();
            let panicked = joined.iter().any(std::result::Result::is_err);
            if panicked { Err(Error::new(ErrorKind::Internal, "an importer panicked")) } else { Ok(()) }
        })?;
        match self.failed.lock().expect("no holder of this lock panics").take() {
            Some(error) => Err(error),
            None => {
                self.items(String::new());
                Ok(())
            }
        }
    }

    fn fail(&self, error: Error) {
        let mut failed = self.failed.lock().expect("no holder of this lock panics");
        if failed.is_none() {
            *failed = Some(error);
        }
        // Whoever waits for a transfer waits in vain: the job is going to fail. What came stays in the spool.
        if let Some((_, spool)) = &self.supply.fetcher {
            spool.fail(&Arc::new(Error::new(ErrorKind::Internal, "another layer failed")));
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.lock().expect("no holder of this lock panics").is_some()
    }

    fn items(&self, current: String) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let done = count(self.finished.load(Ordering::Relaxed));
        (self.report)(Report::Items { done, total: count(self.todo.len()), current });
    }

    /// Imports one layer after the other, until there is none left or one failed.
    fn importer(&self) -> Result<()> {
        let (repo, known) = (open(self.repo_path)?, Known::new(self.repo_path, &self.brought)?);
        let begin = || {
            let doing = "beginning a transaction; the running system is unchanged";
            repo.auto_transaction(gio::Cancellable::NONE).doing(doing)
        };
        let mut transaction = begin()?;
        let (mut since, mut bytes, mut finished) = (Instant::now(), 0_u64, Vec::new());
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(todo) = self.todo.get(at).filter(|_| !self.has_failed()) else { break };
            self.items(todo.layer.digest.to_string());
            let notes = match self.layer(&repo, &known, at, todo) {
                Ok(notes) => notes,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            };
            notes.into_iter().for_each(|note| (self.report)(Report::Note(note)));
            self.finished.fetch_add(1, Ordering::Relaxed);
            self.items(todo.layer.digest.to_string());
            finished.push(at);
            bytes = bytes.saturating_add(todo.layer.size);
            if since.elapsed() >= COMMIT_AFTER || bytes >= COMMIT_BYTES {
                let _local = Local::work();
                refs::commit(&repo, transaction, &self.names(&finished)?)?;
                self.release(&repo, &mut finished)?;
                transaction = begin()?;
                (since, bytes) = (Instant::now(), 0);
            }
        }
        // Also after an error: what is finished is kept.
        let _local = Local::work();
        refs::commit(&repo, transaction, &self.names(&finished)?)?;
        self.release(&repo, &mut finished)
    }

    fn layer(&self, repo: &ostree::Repo, known: &Known<'_>, at: usize, todo: &Todo) -> Result<Vec<String>> {
        let error = match self.supply.import(repo, known, at, todo) {
            Err(error) if error.kind == ErrorKind::DigestMismatch && self.supply.again => error,
            outcome => return outcome,
        };
        let Some((fetcher, _)) = &self.supply.fetcher else { return Err(error) };
        // Once: a proxy on the way may have damaged it, or what an earlier attempt left in the spool.
        (self.report)(Report::Note(format!("{}; fetching it anew", error.chain())));
        fetcher.again(at)?;
        self.supply.import(repo, known, at, todo)
    }

    /// The refs of these layers.
    fn names(&self, finished: &[usize]) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for at in finished {
            let Todo { layer, what } = &self.todo[*at];
            let made = if *what == What::Tree { Made::Layer } else { Made::Chunk };
            names.extend([refs::of_layer(&layer.digest)?, refs::verified(made, &layer.digest)?]);
        }
        Ok(names)
    }

    /// Gives the space of these blobs back: their layers are committed.
    fn release(&self, repo: &ostree::Repo, finished: &mut Vec<usize>) -> Result<()> {
        for at in finished.drain(..) {
            let Todo { layer, what } = &self.todo[at];
            // That of the ostree commit is whole when all the others are.
            if *what != What::Chunk(Carries::Commit) {
                refs::repair(repo, layer)?;
            }
            if let Some((_, spool)) = &self.supply.fetcher {
                spool.remove(at)?;
            }
        }
        Ok(())
    }

    /// Has what is written sent to the disk all the time, and not only when a commit waits for it.
    fn write_back(&self, done: &AtomicBool) {
        let Ok(dir) = std::fs::File::open(self.repo_path) else { return };
        while !done.load(Ordering::Relaxed) {
            std::thread::park_timeout(WRITE_BACK);
            // A commit says what fails here.
            if !done.load(Ordering::Relaxed)
                && let Err(error) = rustix::fs::syncfs(&dir)
            {
                tracing::debug!(%error, "early write-back");
            }
        }
    }
}

fn plain_image(
    report: &Reporter,
    repo: &ostree::Repo,
    resolved: &Resolved,
    opts: &FetchOptions,
) -> Result<String> {
    let doing = "merging the layers; the running system is unchanged";
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing(doing)?;
    let mut root = merged(repo, resolved)?;
    for note in plain::map(repo, &mut root, opts)? {
        report(Report::Note(note));
    }
    // What mapping wrote is not referenced before the next transaction: it is repeated if that one fails.
    transaction.commit(gio::Cancellable::NONE).doing(doing)?;
    commit::write(repo, resolved, root, &Labels::FromTree, &Filtered::new())
}

fn content(repo: &ostree::Repo, resolved: &Resolved) -> Result<String> {
    let doing = "merging the layers; the running system is unchanged";
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing(doing)?;
    let root = merged(repo, resolved)?;
    commit::write_content(repo, transaction, resolved, &root)
}

/// The tree of all layers, as they are.
fn merged(repo: &ostree::Repo, resolved: &Resolved) -> Result<Dir> {
    let mut root = Dir::new(write_dirmeta(repo, 0, 0, 0o755, &BTreeMap::new())?);
    merge_layers(repo, &mut root, &resolved.layers, Directories::TakeLayer, |_, _| Ok(()))?;
    Ok(root)
}

/// Applies layers that are all here, each changed by `prepare` before.
pub(super) fn merge_layers(
    repo: &ostree::Repo,
    root: &mut Dir,
    layers: &[Layer],
    directories: Directories,
    mut prepare: impl FnMut(&Layer, &mut Stored) -> Result<()>,
) -> Result<()> {
    for layer in layers {
        let mut stored = layer::find(repo, layer)?.ok_or_else(|| disappeared(layer))?;
        prepare(layer, &mut stored)?;
        merge::apply(repo, root, stored, directories)?;
    }
    Ok(())
}

/// The error for a layer that was here.
pub(super) fn disappeared(layer: &Layer) -> Error {
    Error::new(ErrorKind::Conflict, format!("layer {} disappeared during the import", layer.digest))
        .hint("another tool pruned the repository: try again")
}
