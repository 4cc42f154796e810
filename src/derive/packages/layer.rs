//! The base with its packages, as a commit that is kept: drop-ins that change only files need no package manager.
//!
//! ```text
//! osctl/layered/<base commit>/<64 hex digits of the lock's digest> -> that commit
//! ```

use super::Installed;
use super::collect;
use crate::derive::mtree::{Entry, Tree};
use crate::model::dropin::with_entries_of;
use crate::model::image::Digest;
use crate::model::lock::{self, Lock, MAX_LOCK};
use crate::model::manifest::Meta;
use crate::model::{Context, Result};
use crate::store::prune::LAYERED;
use crate::store::tree::CommitTree;
use ostree_ext::glib::prelude::*;
use ostree_ext::{gio, ostree};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

/// Metadata: the version of the kernel (ostree-commit(1), `--bootable`); of a layer only where packages changed it.
pub const KERNEL: &str = "ostree.linux";

/// A commit of a base with the packages of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The commit. It is made to be derived from, and never deployed itself.
    pub commit: String,
    /// What is in it.
    pub lock: Lock,
}

/// The commit with these packages, if it was made before.
pub fn find(repo: &ostree::Repo, base: &str, lock: &Digest) -> Result<Option<Layer>> {
    let name = reference(base, lock);
    let Some(commit) = repo.resolve_rev(&name, true).doing_with(|| format!("looking up {name}"))? else {
        return Ok(None);
    };
    let lock = self::lock(repo, &commit)?;
    Ok(lock.map(|lock| Layer { commit: commit.into(), lock }))
}

/// The lock that is in a commit's tree, whoever put it there.
pub fn lock(repo: &ostree::Repo, commit: &str) -> Result<Option<Lock>> {
    let text = CommitTree::open(repo, commit)?.read(lock::PATH, MAX_LOCK)?;
    text.map(|text| Lock::parse(lock::PATH, &text)).transpose()
}

/// Checks the base out, with hard links where that is possible.
pub fn check_out(
    repo: &ostree::Repo,
    base: &str,
    to: &std::path::Path,
    cancellable: Option<&gio::Cancellable>,
) -> Result<()> {
    let options = ostree::RepoCheckoutAtOptions::default();
    repo.checkout_at(Some(&options), rustix::fs::CWD.as_raw_fd(), to, base, cancellable)
        .doing_with(|| format!("checking out {base}"))
}

/// Makes the commit of what was installed `on` the base with its layers.
pub fn commit(
    repo: &ostree::Repo,
    base: &str,
    on: &str,
    installed: &Installed,
    cancellable: Option<&gio::Cancellable>,
) -> Result<Layer> {
    let doing = "committing the packages";
    let transaction = repo.auto_transaction(cancellable).doing(doing)?;
    let tree = Tree::open(repo, on, cancellable)?;
    if let Some((upper, target)) = &installed.changes {
        collect::apply(&tree, upper, target)?;
    }
    let plain = Meta { mode: 0o644, uid: 0, gid: 0 };
    for (path, contents) in &installed.generated {
        // An image that was built from a derived tree has such files for its own packages.
        let contents = match tree.at(path)? {
            Some(Entry::File { checksum, .. }) => {
                let base = tree.content(&checksum)?;
                let texts = [&base, contents].map(|text| String::from_utf8_lossy(text));
                with_entries_of(&texts[0], &texts[1]).into_bytes()
            }
            Some(Entry::Directory(_) | Entry::Link { .. }) | None => contents.clone(),
        };
        tree.put_file(path, &plain, &contents)?;
    }
    tree.put_file(lock::PATH, &plain, &installed.lock.to_bytes())?;
    let root = tree.write()?;
    let time =
        ostree::commit_get_timestamp(&repo.load_variant(ostree::ObjectType::Commit, base).doing(doing)?);
    let metadata =
        installed.kernel.as_ref().map(|kernel| BTreeMap::from([(KERNEL, kernel.to_variant())]).to_variant());
    let commit = repo
        .write_commit_with_time(None, None, None, metadata.as_ref(), &root, time, cancellable)
        .doing(doing)?;
    repo.transaction_set_ref(None, &reference(base, &installed.lock.digest()), Some(&commit));
    transaction.commit(cancellable).doing(doing)?;
    Ok(Layer { commit: commit.into(), lock: installed.lock.clone() })
}

fn reference(base: &str, lock: &Digest) -> String {
    format!("{LAYERED}/{base}/{}", lock.hex())
}
