//! Removing what no deployment needs, and nothing else.

use super::snapshot::{self, Snapshot};
use crate::model::image::Digest;
use crate::model::{Context, Result};
use crate::pull::Needed;
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeSet;

/// The prefix of the refs that keep derived commits until their deployment exists.
pub const DERIVED: &str = "osctl/derived";

/// The prefix of the refs that keep bases with packages, by the base's commit and the lock's digest.
pub const LAYERED: &str = "osctl/layered";
/// Commit metadata: the digest of the lock that a derived commit was made with.
pub const META_LOCK_DIGEST: &str = "osctl.lock-digest";
/// Commit metadata: the digests of the images whose content or packages are in a derived commit.
pub const META_CONTENTS: &str = "osctl.content-images";

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
    crate::pull::forget_unused(&repo, &needed(&repo, &snapshot)?)?;
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
    Ok(!unneeded(&repo, &snapshot)?.is_empty() || crate::pull::has_unused(&repo, &needed(&repo, &snapshot)?)?)
}

/// Refs of derived commits that no deployment has.
fn unneeded(repo: &ostree::Repo, snapshot: &Snapshot) -> Result<Vec<String>> {
    let commits: BTreeSet<&str> = snapshot.entries.iter().map(|e| e.deployment.checksum.as_str()).collect();
    let derived = repo
        .list_refs_ext(Some(DERIVED), ostree::RepoListRefsExtFlags::NONE, gio::Cancellable::NONE)
        .doing("listing derived commits")?;
    let unneeded = derived.into_iter().filter(|(_, c)| !commits.contains(c.as_str())).map(|(name, _)| name);
    let mut names: Vec<String> = unneeded.collect();
    let layered = repo
        .list_refs_ext(Some(LAYERED), ostree::RepoListRefsExtFlags::NONE, gio::Cancellable::NONE)
        .doing("listing bases with packages")?;
    if !layered.is_empty() {
        let needed = layers(repo, snapshot)?;
        names.extend(layered.into_keys().filter(|name| !needed.contains(name)));
    }
    Ok(names)
}

/// The digest of the lock that a commit was made with; `None` for one that has no packages of drop-ins, whatever its image
/// ships.
pub fn lock_of(repo: &ostree::Repo, commit: &str) -> Result<Option<String>> {
    Ok(metadata(repo, commit)?.lookup::<String>(META_LOCK_DIGEST).ok().flatten())
}

fn metadata(repo: &ostree::Repo, commit: &str) -> Result<glib::VariantDict> {
    let (object, _) = repo.load_commit(commit).doing_with(|| format!("reading commit {commit}"))?;
    Ok(glib::VariantDict::new(Some(&object.child_value(0))))
}

/// The refs of bases with packages that deployments were derived from.
fn layers(repo: &ostree::Repo, snapshot: &Snapshot) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for deployment in snapshot.entries.iter().map(|e| &e.deployment) {
        if let Some(lock) = lock_of(repo, &deployment.checksum)? {
            let digits = lock.rsplit(':').next().unwrap_or_default();
            names.insert(format!("{LAYERED}/{}/{digits}", deployment.base_checksum));
        }
    }
    Ok(names)
}

fn needed(repo: &ostree::Repo, snapshot: &Snapshot) -> Result<Needed> {
    let mut needed = Needed::default();
    for deployment in snapshot.entries.iter().map(|e| &e.deployment) {
        needed.bases.insert(deployment.base_checksum.clone());
        needed.contents.extend(contents_of(repo, &deployment.checksum)?);
    }
    Ok(needed)
}

/// The digests of the images that are no OS, and that a commit was made with.
fn contents_of(repo: &ostree::Repo, commit: &str) -> Result<Vec<Digest>> {
    let digests = metadata(repo, commit)?.lookup::<Vec<String>>(META_CONTENTS).ok().flatten();
    let digests = digests.unwrap_or_default();
    Ok(digests.iter().filter_map(|digest| digest.parse().ok()).collect())
}
