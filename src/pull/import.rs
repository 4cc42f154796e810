//! The import: skip what is here, fetch and store each missing layer, merge, commit.

use super::commit::{self, Filtered, Labels};
use super::layer::{self, Stored};
use super::merge::{self, Directories};
use super::pulse::{self, Local};
use super::source::Source;
use super::tree::{Dir, write_dirmeta};
use super::types::{Base, FetchOptions, ImageKind, Layer, Report, Reporter, Resolved};
use super::{encapsulated, plain, refs};
use crate::model::image::Transport;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::{gio, ostree};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::io::{AsyncRead, ReadBuf};

/// Progress is reported each time so many bytes came in.
const REPORT_EVERY: u64 = 1 << 20;

/// Imports in this process. Only the process's end stops it at once: see [`super::pull`].
pub async fn import_in_process(
    report: &Reporter,
    repo_path: &Path,
    resolved: &Resolved,
    opts: &FetchOptions,
) -> Result<Base> {
    let repo = ostree::Repo::new_for_path(repo_path);
    repo.open(gio::Cancellable::NONE)
        .doing_with(|| format!("opening the repository {}", repo_path.display()))?;
    if let Some(base) = refs::find(&repo, &resolved.digest)? {
        refs::name(&repo, &resolved.image, &base.commit)?;
        return Ok(base);
    }
    let commit = match resolved.kind {
        ImageKind::Encapsulated => encapsulated::import(report, &repo, resolved, opts).await?,
        ImageKind::Plain => plain_image(report, &repo, resolved, opts).await?,
    };
    refs::describe(&repo, &commit)?
        .ok_or_else(|| Error::new(ErrorKind::Internal, "the merge commit does not describe its image"))
}

async fn plain_image(
    report: &Reporter,
    repo: &ostree::Repo,
    resolved: &Resolved,
    opts: &FetchOptions,
) -> Result<String> {
    let mut fetch = Fetch::new(report, repo, resolved, opts, &resolved.layers, 0)?;
    fetch.missing().await?;
    let (repo, resolved, opts, report) = (repo.clone(), resolved.clone(), opts.clone(), report.clone());
    blocking(move || {
        let _local = Local::work();
        let doing = "merging the layers; the running system is unchanged";
        let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing(doing)?;
        let mut root = Dir::new(write_dirmeta(&repo, 0, 0, 0o755, &BTreeMap::new())?);
        merge_layers(&repo, &mut root, &resolved.layers, Directories::TakeLayer, |_, _| Ok(()))?;
        for note in plain::map(&repo, &mut root, &opts)? {
            report(Report::Note(note));
        }
        // What mapping wrote is not referenced before the next transaction: it is repeated if that one fails.
        transaction.commit(gio::Cancellable::NONE).doing(doing)?;
        commit::write(&repo, &resolved, root, Labels::FromTree, &Filtered::new())
    })
    .await
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
        let mut stored = layer::find(repo, layer)?.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, format!("layer {} disappeared during the import", layer.digest))
                .hint("another tool pruned the repository: try again")
        })?;
        prepare(layer, &mut stored)?;
        merge::apply(repo, root, stored, directories)?;
    }
    Ok(())
}

/// Runs blocking work beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.doing("importing")?
}

/// The transfer of the layers that are missing.
pub(super) struct Fetch<'a> {
    report: &'a Reporter,
    repo: &'a ostree::Repo,
    resolved: &'a Resolved,
    opts: &'a FetchOptions,
    todo: Vec<Layer>,
    done_bytes: u64,
    /// What will have been transferred at the end.
    pub(super) total_bytes: u64,
}

impl<'a> Fetch<'a> {
    /// Plans the transfer of those of `layers` that are not here. `before` bytes were transferred already.
    pub(super) fn new(
        report: &'a Reporter,
        repo: &'a ostree::Repo,
        resolved: &'a Resolved,
        opts: &'a FetchOptions,
        layers: &[Layer],
        before: u64,
    ) -> Result<Self> {
        let mut todo: Vec<Layer> = Vec::new();
        for layer in layers {
            // One manifest may list a layer twice.
            let listed = todo.iter().any(|l| l.digest == layer.digest);
            if !listed && layer::find(repo, layer)?.is_none() {
                todo.push(layer.clone());
            }
        }
        // The sizes are the manifest's, and may be anything.
        let total_bytes = todo.iter().fold(before, |sum, l| sum.saturating_add(l.size));
        Ok(Fetch { report, repo, resolved, opts, todo, done_bytes: before, total_bytes })
    }

    /// Fetches and stores every missing layer. Opens no connection if there is none.
    pub(super) async fn missing(&mut self) -> Result<()> {
        if self.todo.is_empty() {
            return Ok(());
        }
        let pinned = self.resolved.image.pinned(&self.resolved.digest);
        let source = Source::open(&pinned, self.opts).await?;
        let (digest, _) = source.manifest().await?;
        if digest != self.resolved.digest {
            return Err(Error::new(
                ErrorKind::DigestMismatch,
                format!(
                    "{} was {} when the update was planned and is {digest} now; the running system is unchanged",
                    self.resolved.image, self.resolved.digest
                ),
            )
            .hint("try again: the image was replaced meanwhile"));
        }
        let total = u32::try_from(self.todo.len()).unwrap_or(u32::MAX);
        for (done, layer) in (0..).zip(std::mem::take(&mut self.todo)) {
            (self.report)(Report::Items { done, total, current: layer.digest.to_string() });
            for note in self.one(&source, &layer).await? {
                (self.report)(Report::Note(note));
            }
            self.done_bytes = self.done_bytes.saturating_add(layer.size);
            (self.report)(Report::Bytes { done: self.done_bytes, total: self.total_bytes });
        }
        (self.report)(Report::Items { done: total, total, current: String::new() });
        Ok(())
    }

    async fn one(&self, source: &Source, layer: &Layer) -> Result<Vec<String>> {
        // Local storage serves layers uncompressed, under the digest of the uncompressed stream.
        let local = self.resolved.image.transport == Transport::ContainersStorage;
        let name = if local { &layer.diff_id } else { &layer.digest };
        let digest: ostree_ext::oci_spec::image::Digest =
            name.as_str().parse().doing("reading a layer's digest")?;
        let (blob, driver) = source.blob(&digest, layer.size).await?;
        let counting = Counting {
            inner: blob,
            report: self.report.clone(),
            done: self.done_bytes,
            reported: self.done_bytes,
            limit: self.done_bytes.saturating_add(layer.size),
            total: self.total_bytes,
        };
        let bridge = tokio_util::io::SyncIoBridge::new(counting);
        let (repo, wanted) = (self.repo.clone(), layer.clone());
        let import = blocking(move || {
            if local {
                layer::import_uncompressed(&repo, &wanted, bridge)
            } else {
                layer::import(&repo, &wanted, bridge)
            }
        });
        let (imported, driven) = tokio::join!(import, driver);
        match (imported, driven) {
            // Skopeo 1.9.3 compares what local storage sent with the size of the compressed blob, which it does
            // not have; we have verified the digest of what it has.
            (Ok(notes), Err(e)) if local && e.kind == ErrorKind::DigestMismatch => {
                tracing::debug!(error = %e.chain(), "ignored, because the uncompressed digest is right");
                Ok(notes)
            }
            (Ok(notes), Ok(())) => Ok(notes),
            // Skopeo compares as we do, and the size as well: where only one of us is content, nobody is.
            (Ok(_), Err(theirs)) if theirs.kind == ErrorKind::DigestMismatch => Err(theirs),
            // The ref is there, and both digests were right: the proxy complains about the end of the transfer.
            (Ok(notes), Err(e)) => {
                tracing::debug!(error = %e.chain(), "ignored, because both digests are right");
                Ok(notes)
            }
            // A transfer that broke off looks like a damaged archive from our side, and only skopeo knows why.
            // If we stopped reading, skopeo sees a broken pipe, and the cause is ours.
            (Err(_), Err(theirs)) if !theirs.chain().contains("broken pipe") => Err(theirs),
            (Err(ours), _) => Err(ours),
        }
    }
}

/// Reports the bytes that are read through it.
struct Counting<R> {
    inner: R,
    report: Reporter,
    done: u64,
    reported: u64,
    limit: u64,
    total: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counting<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        // Local storage sends more than the compressed size that was announced.
        let arrived = (buf.filled().len() - before) as u64;
        if arrived > 0 {
            pulse::tick();
        }
        self.done = self.done.saturating_add(arrived).min(self.limit);
        if self.done - self.reported >= REPORT_EVERY {
            self.reported = self.done;
            let report = Arc::clone(&self.report);
            report(Report::Bytes { done: self.done, total: self.total });
        }
        polled
    }
}
