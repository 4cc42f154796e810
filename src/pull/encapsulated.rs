//! Encapsulated ostree commits, with the reference importer for the commit itself.
//!
//! The reference importer fetches the layers that carry the commit, which is the part that it alone understands.
//! It is kept from doing the rest: layers on top are imported and merged by our code, because its checkout
//! follows links out of the repository, and because its merge commit differs from run to run. It names a layer before
//! the blob's digest was verified: of the layers that carry the commit, it is shown only those that we saw verified
//! ([`refs::distrust`]).

use super::commit::{self, Filtered, Labels};
use super::import::{Fetch, blocking, merge_layers};
use super::layer::Stored;
use super::merge::{Directories, join};
use super::pulse::Local;
use super::refs;
use super::resolve::FINAL_DIFFID;
use super::source::proxy_config;
use super::tree::{Dir, write_dirmeta};
use super::types::{FetchOptions, Layer, Report, Reporter, Resolved};
use crate::model::image::{Digest, Transport};
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::skopeo::{from_importer, from_skopeo};
use ostree_ext::container::store::{ImageImporter, ImportProgress, PrepareResult};
use ostree_ext::container::{ImageReference, OstreeImageReference, SignatureSource};
use ostree_ext::{gio, ostree};
use std::collections::{BTreeMap, BTreeSet};

/// Imports the image and returns the merge commit.
pub(super) async fn import(
    report: &Reporter,
    repo: &ostree::Repo,
    resolved: &Resolved,
    opts: &FetchOptions,
) -> Result<String> {
    let doing = format!("importing {}", resolved.image);
    let pinned = resolved.image.pinned(&resolved.digest);
    // The importer takes an image with the same configuration under the same reference for this one, although
    // its layers may have other digests. We know that the digest is not here: find() came first.
    let stale = refs::of_image(&pinned)?;
    if repo.resolve_rev(&stale, true).doing_with(|| doing.clone())?.is_some() {
        repo.set_ref_immediate(None, &stale, None, gio::Cancellable::NONE).doing_with(|| doing.clone())?;
    }
    let on_top = on_top(resolved)?;
    let (carrying, _) = resolved.layers.split_at(resolved.layers.len() - on_top.len());
    let distrust = || carrying.iter().try_for_each(|layer| refs::distrust(repo, &layer.digest));
    distrust()?;
    let imgref = OstreeImageReference {
        sigverify: SignatureSource::ContainerPolicyAllowInsecure,
        imgref: ImageReference::try_from(pinned.to_string().as_str()).doing_with(|| doing.clone())?,
    };
    let mut importer = ImageImporter::new(repo, &imgref, proxy_config(opts))
        .await
        .map_err(|e| from_skopeo(&doing, format!("{e:#}")))?;
    importer.disable_gc();
    importer.set_no_imgref();
    importer.require_bootable();
    let mut layers = importer.request_progress();
    let mut bytes = importer.request_layer_progress();
    let PrepareResult::Ready(mut prepared) =
        importer.prepare().await.map_err(|e| from_importer(&doing, &format!("{e:#}")))?
    else {
        return Err(Error::new(ErrorKind::Internal, format!("{doing}: it is here and is not")));
    };
    if prepared.manifest_digest.to_string() != resolved.digest.as_str() {
        return Err(Error::new(
            ErrorKind::DigestMismatch,
            format!(
                "{} was {} when the update was planned and is {} now; the running system is unchanged",
                resolved.image, resolved.digest, prepared.manifest_digest
            ),
        )
        .hint("try again: the image was replaced meanwhile"));
    }
    // Ours, see above.
    prepared.layers.clear();
    let todo: Vec<u64> =
        prepared.all_layers().filter(|l| l.commit.is_none()).map(|l| l.layer().size()).collect();
    let (count, base_bytes) = (
        u32::try_from(todo.len()).unwrap_or(u32::MAX),
        todo.iter().fold(0_u64, |sum, size| sum.saturating_add(*size)),
    );
    let mut fetch = Fetch::new(report, repo, resolved, opts, &on_top, base_bytes)?;
    let total = fetch.total_bytes;
    // Of local storage skopeo verifies the uncompressed digests, and not those that name the layers.
    let verifies = resolved.image.transport != Transport::ContainersStorage;
    let reporting = {
        let (report, repo) = (report.clone(), repo.clone());
        tokio::spawn(async move {
            let (mut done, mut done_bytes) = (0, 0_u64);
            let mut vouched = Ok(());
            loop {
                tokio::select! {
                    layer = layers.recv() => match layer {
                        None => break,
                        Some(ImportProgress::OstreeChunkStarted(l) | ImportProgress::DerivedLayerStarted(l)) => {
                            report(Report::Items { done, total: count, current: l.digest().to_string() });
                        }
                        Some(ImportProgress::OstreeChunkCompleted(l) | ImportProgress::DerivedLayerCompleted(l)) => {
                            // It is said when skopeo was content with the blob, and before the next one.
                            if verifies && vouched.is_ok() {
                                let digest = l.digest().to_string().parse::<Digest>();
                                vouched = digest.and_then(|digest| refs::vouch_for_chunk(&repo, &digest));
                            }
                            done += 1;
                            done_bytes = done_bytes.saturating_add(l.size());
                            report(Report::Bytes { done: done_bytes, total });
                        }
                    },
                    Ok(()) = bytes.changed() => {
                        if let Some(progress) = bytes.borrow_and_update().as_ref() {
                            let here = progress.fetched.min(progress.total);
                            report(Report::Bytes { done: done_bytes.saturating_add(here).min(total), total });
                        }
                    }
                }
            }
            vouched
        })
    };
    let imported = importer.import(prepared).await.map_err(|e| from_importer(&doing, &format!("{e:#}")));
    let vouched = reporting.await.doing("reporting progress")?;
    if imported.is_err() {
        // For other tools, which do not ask whether we trust it. A crash leaves it, to be dropped above.
        distrust()?;
    }
    let base = imported?.base_commit;
    vouched?;
    fetch.missing().await?;
    let (repo, resolved, report) = (repo.clone(), resolved.clone(), report.clone());
    blocking(move || {
        let _local = Local::work();
        let doing = "merging the layers; the running system is unchanged";
        let mut root = Dir::of_commit(&repo, &base)?;
        if on_top.is_empty() {
            return commit::write(&repo, &resolved, root, Labels::Present, &Filtered::new());
        }
        let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing(doing)?;
        let meta = write_dirmeta(&repo, 0, 0, 0o755, &BTreeMap::new())?;
        let mut filtered = Filtered::new();
        merge_layers(&repo, &mut root, &on_top, Directories::KeepBelow, |layer, stored| {
            let dropped = fit(&repo, stored, &meta)?;
            if !dropped.is_empty() {
                let names: Vec<String> =
                    dropped.iter().map(|(n, c)| format!("/{}: {c}", one_line(n))).collect();
                report(Report::Note(format!(
                    "layer {}: left out what is neither in /usr nor /etc nor /var ({})",
                    layer.digest,
                    names.join(", ")
                )));
                filtered.insert(layer.digest.to_string(), dropped);
            }
            Ok(())
        })?;
        transaction.commit(gio::Cancellable::NONE).doing(doing)?;
        commit::write(&repo, &resolved, root, Labels::FromTree, &filtered)
    })
    .await
}

/// The layers above the one that ends the ostree commit.
fn on_top(resolved: &Resolved) -> Result<Vec<Layer>> {
    let last = resolved.labels.get(FINAL_DIFFID).map(String::as_str).unwrap_or_default();
    let at = resolved.layers.iter().position(|l| l.diff_id.as_str() == last).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{} does not have the layer {last}", resolved.image))
    })?;
    Ok(resolved.layers[at + 1..].to_vec())
}

/// Leaves of a layer what the reference importer takes of it: `/usr` (with `/etc`), and `/var` as its factory copy.
/// Returns how many entries that leaves out, by their place at the top level.
fn fit(repo: &ostree::Repo, layer: &mut Stored, meta: &str) -> Result<BTreeMap<String, u32>> {
    const FACTORY: &str = "usr/share/factory";
    let mut dropped = BTreeMap::new();
    let entries = layer.tree.open(repo)?;
    for (name, _) in std::mem::take(&mut entries.files) {
        dropped.insert(name, 1);
    }
    let var = entries.dirs.remove("var");
    for (name, mut dir) in std::mem::take(&mut entries.dirs) {
        if name == "usr" {
            entries.dirs.insert(name, dir);
        } else {
            let count = count(repo, &mut dir, &name, &layer.implied)?;
            dropped.insert(name, count);
        }
    }
    for path in layer.links.keys().filter(|path| !path.starts_with("usr/")) {
        let top = path.split('/').next().unwrap_or_default();
        *dropped.entry(top.to_owned()).or_default() += 1;
    }
    layer.links.retain(|path, _| path.starts_with("usr/"));
    if let Some(var) = var {
        for path in ["usr", "usr/share", FACTORY] {
            if matches!(layer.tree.find(repo, path)?, super::tree::Found::Nothing) {
                layer.implied.insert(path.to_owned());
            }
        }
        if let Some(factory) = layer.tree.ensure(repo, FACTORY, meta)? {
            factory.open(repo)?.dirs.insert("var".to_owned(), var);
        }
        let moved = layer.implied.iter().filter(|p| *p == "var" || p.starts_with("var/"));
        let moved: Vec<String> = moved.map(|p| format!("{FACTORY}/{p}")).collect();
        layer.implied.extend(moved);
    }
    Ok(dropped)
}

/// How many entries of the layer are in a directory, itself included.
fn count(repo: &ostree::Repo, dir: &mut Dir, path: &str, implied: &BTreeSet<String>) -> Result<u32> {
    let mut sum = u32::from(!implied.contains(path));
    let entries = dir.open(repo)?;
    sum = sum.saturating_add(u32::try_from(entries.files.len()).unwrap_or(u32::MAX));
    for (name, dir) in &mut entries.dirs {
        sum = sum.saturating_add(count(repo, dir, &join(path, name), implied)?);
    }
    Ok(sum)
}
