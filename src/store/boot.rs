//! What a deployment puts into `/boot`.

use super::snapshot::Snapshot;
use super::tree::CommitTree;
use crate::model::Result;
use ostree_ext::ostree;
use std::collections::BTreeMap;

/// The checksums and sizes of kernels, initramfs and device trees: what goes to `/boot`.
fn files(tree: &CommitTree) -> Result<BTreeMap<String, u64>> {
    let mut files = BTreeMap::new();
    for version in tree.list("/usr/lib/modules")? {
        for name in ["vmlinuz", "initramfs.img", "devicetree"] {
            let path = format!("/usr/lib/modules/{version}/{name}");
            if let (Some(info), Some(sum)) = (tree.lookup(&path)?, tree.checksum(&path)?) {
                files.insert(sum, u64::try_from(info.size()).unwrap_or(0));
            }
        }
    }
    Ok(files)
}

/// Whether everything that a deployment has for `/boot` is in one of these commits, which may be parts of a tree.
pub fn all_in(repo: &ostree::Repo, deployed: &str, commits: &[String]) -> Result<bool> {
    let mut wanted = files(&CommitTree::open(repo, deployed)?)?;
    for commit in commits {
        for sum in files(&CommitTree::open(repo, commit)?)?.keys() {
            wanted.remove(sum);
        }
    }
    Ok(wanted.is_empty())
}

/// The bytes of all that this commit has for `/boot`.
pub fn size(repo: &ostree::Repo, commit: &str) -> Result<u64> {
    Ok(files(&CommitTree::open(repo, commit)?)?.values().sum())
}

/// The bytes that deploying this commit writes to `/boot`.
///
/// None, where a deployment here has the same kernel, whatever else differs: libostree keeps them by their checksum.
pub fn needed(repo: &ostree::Repo, deployments: &Snapshot, commit: &str) -> Result<u64> {
    let wanted = files(&CommitTree::open(repo, commit)?)?;
    for entry in &deployments.entries {
        if files(&CommitTree::open(repo, &entry.deployment.checksum)?)? == wanted {
            return Ok(0);
        }
    }
    Ok(wanted.values().sum())
}
