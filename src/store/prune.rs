//! Removing what no deployment needs, and nothing else.

use super::snapshot::{self, Snapshot};
use crate::model::{Context, Result};
use ostree_ext::{gio, ostree};
use std::collections::BTreeSet;

/// The prefix of the refs that keep derived commits until their deployment exists.
pub const DERIVED: &str = "osctl/derived";

/// What pruning kept and removed.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// The deployments that remain.
    pub snapshot: Snapshot,
    /// Bytes of objects that were freed.
    pub freed: u64,
}

/// Drops refs that no deployment needs, old deployment directories and boot files, and unreachable objects.
pub fn prune(sysroot: &ostree::Sysroot, cancellable: &gio::Cancellable) -> Result<Pruned> {
    let repo = sysroot.repo();
    let snapshot = snapshot::read(sysroot)?;
    for name in unneeded(&repo, &snapshot)? {
        repo.set_ref_immediate(None, &name, None, Some(cancellable))
            .doing_with(|| format!("dropping {name}"))?;
    }
    crate::pull::forget_unused(&repo, &bases(&snapshot))?;
    // Not `cleanup`, which prunes as well and prints to standard output.
    sysroot.prepare_cleanup(Some(cancellable)).doing("removing old deployments")?;
    let (_, _, freed) = repo
        .prune(ostree::RepoPruneFlags::REFS_ONLY, 0, Some(cancellable))
        .doing("removing unreachable objects")?;
    Ok(Pruned { snapshot, freed })
}

/// Whether earlier jobs left something that no deployment needs.
pub fn has_leftovers(sysroot: &ostree::Sysroot) -> Result<bool> {
    let (repo, snapshot) = (sysroot.repo(), snapshot::read(sysroot)?);
    Ok(!unneeded(&repo, &snapshot)?.is_empty() || crate::pull::has_unused(&repo, &bases(&snapshot))?)
}

/// Refs of derived commits that no deployment has.
fn unneeded(repo: &ostree::Repo, snapshot: &Snapshot) -> Result<Vec<String>> {
    let commits: BTreeSet<&str> = snapshot.entries.iter().map(|e| e.deployment.checksum.as_str()).collect();
    let derived = repo
        .list_refs_ext(Some(DERIVED), ostree::RepoListRefsExtFlags::NONE, gio::Cancellable::NONE)
        .doing("listing derived commits")?;
    Ok(derived.into_iter().filter(|(_, c)| !commits.contains(c.as_str())).map(|(name, _)| name).collect())
}

fn bases(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot.entries.iter().map(|e| e.deployment.base_checksum.clone()).collect()
}
