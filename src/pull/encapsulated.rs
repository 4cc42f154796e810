//! Encapsulated ostree commits, with ordinary layers on top or without.
//!
//! The layers that carry the commit are imported as objects (`chunk.rs`); once all of them are here, so is the commit, and
//! its tree is the image's. Layers on top are merged into that tree in memory: what it costs follows from what they change.

use super::commit::{self, Filtered};
use super::import::{disappeared, merge_layers};
use super::labels::Labels;
use super::layer::Stored;
use super::merge::{Directories, join};
use super::object;
use super::refs::{self, Made};
use super::resolve::FINAL_DIFFID;
use super::tree::{self, Dir, write_dirmeta};
use super::types::{Layer, Report, Reporter, Resolved};
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::{gio, ostree};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// How many layers carry the commit, from the first on.
pub(super) fn carrying(resolved: &Resolved) -> Result<usize> {
    let last = resolved.labels.get(FINAL_DIFFID).map(String::as_str).unwrap_or_default();
    let at = resolved.layers.iter().position(|l| l.diff_id.as_str() == last).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("{} does not have the layer {last}", resolved.image))
    })?;
    Ok(at + 1)
}

/// The commit of a layer that is here as a part of an ostree commit, under either of its digests.
pub(super) fn find(repo: &ostree::Repo, layer: &Layer) -> Result<Option<String>> {
    match refs::vouched(repo, Made::Chunk, &layer.digest)? {
        Some(commit) => Ok(Some(commit)),
        None => refs::vouched(repo, Made::Chunk, &layer.diff_id),
    }
}

/// Makes the image's commit of layers that are all here.
pub(super) fn merge(report: &Reporter, repo: &ostree::Repo, resolved: &Resolved) -> Result<String> {
    let doing = "merging the layers; the running system is unchanged";
    let (carrying, on_top) = resolved.layers.split_at(carrying(resolved)?);
    let commits = carrying.iter().map(|layer| find(repo, layer)?.ok_or_else(|| disappeared(layer)));
    let commits: Vec<String> = commits.collect::<Result<_>>()?;
    let (base, chunks) = commits.split_first().expect("at least one layer carries the commit");
    complete(repo, resolved, base, chunks)?;
    let mut root = Dir::of_commit(repo, base)?;
    if on_top.is_empty() {
        return commit::write(repo, resolved, root, &Labels::Present, &Filtered::new());
    }
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing(doing)?;
    let meta = write_dirmeta(repo, 0, 0, 0o755, &BTreeMap::new())?;
    let mut filtered = Filtered::new();
    merge_layers(repo, &mut root, on_top, Directories::KeepBelow, |layer, stored| {
        let dropped = fit(repo, stored, &meta)?;
        if !dropped.is_empty() {
            let names: Vec<String> = dropped.iter().map(|(n, c)| format!("/{}: {c}", one_line(n))).collect();
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
    commit::write(repo, resolved, root, &Labels::Above(base.clone()), &filtered)
}

/// Sees to it that nothing is missing of a commit that was marked so, and says it. A commit is looked at once, and of it
/// what another image does not have.
fn complete(repo: &ostree::Repo, resolved: &Resolved, base: &str, chunks: &[String]) -> Result<()> {
    let doing = || format!("reading commit {base}");
    let (_, state) = repo.load_commit(base).doing_with(doing)?;
    if !state.contains(ostree::RepoCommitState::PARTIAL) {
        return Ok(());
    }
    let mut files = HashSet::new();
    chunks.iter().try_for_each(|chunk| tree::files(repo, chunk, &mut files))?;
    let known = refs::like(repo, &resolved.image)?;
    let mut metas = HashSet::new();
    tree::visit(repo, base, known.as_deref(), &mut |kind, checksum| {
        let here = match kind {
            ostree::ObjectType::File => files.contains(checksum),
            _ => !metas.insert(*checksum),
        };
        if here {
            return Ok(());
        }
        let checksum = hex::encode(checksum);
        // What no layer of files has may have come with the commit.
        if object::is_here(repo, kind, &checksum)? {
            return Ok(());
        }
        let text = format!(
            "the image lacks the object {checksum} of its ostree commit; the running system is unchanged"
        );
        Err(Error::new(ErrorKind::Corrupt, text).hint("the image is damaged: build it, or push it, again"))
    })?;
    repo.mark_commit_partial(base, false).doing_with(doing)
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
            if matches!(layer.tree.find(repo, path)?, tree::Found::Nothing) {
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
