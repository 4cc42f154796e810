//! The merge commit: the tree of the whole image, with what the reference tools look for in its metadata.
//!
//! Metadata is written in one order and holds nothing of this host, its clock or the tool's version: two hosts
//! that pull one digest get one commit. (The reference importer's own merge commits differ on every run: it
//! serialises a hash map and adds its version.)

use super::refs;
use super::tree::{Dir, Found, link_target};
use super::types::Resolved;
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::Dir as CapDir;
use cap_std_ext::cap_tempfile::TempDir;
use ostree_ext::glib::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::AsRawFd;

/// Where a tree's SELinux policy is configured.
const POLICY: &str = "usr/etc/selinux/config";

/// What is to be done about SELinux labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Labels {
    /// The tree has them already.
    Present,
    /// Compute them from the tree's own policy, if it has one.
    FromTree,
}

/// Writes the merge commit and, with the same transaction, the image's ref.
pub(super) fn write(
    repo: &ostree::Repo,
    resolved: &Resolved,
    mut root: Dir,
    labels: Labels,
) -> Result<String> {
    let doing = || format!("writing the commit of {}; the running system is unchanged", resolved.image);
    let kernel = kernel(repo, &mut root)?;
    let metadata = metadata(resolved, &kernel);
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing_with(doing)?;
    let mut tree = root.write(repo)?;
    if labels == Labels::FromTree && matches!(root.find(repo, POLICY)?, Found::File(_)) {
        tree = relabelled(repo, &tree)?;
    }
    let commit = repo
        .write_commit_with_time(
            None,
            None,
            None,
            Some(&metadata),
            &tree,
            resolved.created,
            gio::Cancellable::NONE,
        )
        .doing_with(doing)?;
    repo.transaction_set_ref(None, &refs::of_image(&resolved.image)?, Some(&commit));
    repo.transaction_set_ref(None, &refs::claim(&resolved.image)?, Some(&commit));
    // The ref becomes visible in here, after the objects were synced.
    transaction.commit(gio::Cancellable::NONE).doing_with(doing)?;
    Ok(commit.into())
}

fn metadata(resolved: &Resolved, kernel: &str) -> glib::Variant {
    // What the reference importer dropped, by layer. Readers expect the key.
    let filtered: HashMap<String, HashMap<String, u32>> = HashMap::new();
    let mut metadata: BTreeMap<&str, glib::Variant> = BTreeMap::from([
        (refs::META_DIGEST, resolved.digest.as_str().to_variant()),
        (refs::META_MANIFEST, resolved.manifest_text.to_variant()),
        (refs::META_CONFIG, resolved.config_text.to_variant()),
        ("ostree.tar-filtered", filtered.to_variant()),
        ("ostree.bootable", true.to_variant()),
        ("ostree.linux", kernel.to_variant()),
    ]);
    if let Some(version) = &resolved.version {
        metadata.insert("version", version.to_variant());
    }
    metadata.to_variant()
}

/// The kernel's release. Refuses a tree that cannot boot, naming what is missing.
pub(super) fn kernel(repo: &ostree::Repo, root: &mut Dir) -> Result<String> {
    let refused = |why: String| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the image is not bootable: {why}; the running system is unchanged"),
        )
        .hint("install a kernel in the image and put it, with its initramfs, into /usr/lib/modules/RELEASE/")
    };
    let mut kernels = Vec::new();
    if let Found::Dir(modules) = root.find(repo, "usr/lib/modules")? {
        for (release, dir) in &mut modules.open(repo)?.dirs {
            if let Found::File(object) = dir.find(repo, "vmlinuz")? {
                if link_target(repo, &object)?.is_some() {
                    return Err(refused(format!("/usr/lib/modules/{release}/vmlinuz is a link")));
                }
                kernels.push((release.clone(), matches!(dir.find(repo, "initramfs.img")?, Found::File(_))));
            }
        }
    }
    match kernels.as_slice() {
        [] => Err(refused("there is no /usr/lib/modules/*/vmlinuz".into())),
        [(release, false)] => Err(refused(format!("there is no /usr/lib/modules/{release}/initramfs.img"))),
        [(release, true)] => Ok(release.clone()),
        several => {
            let names: Vec<&str> = several.iter().map(|(r, _)| r.as_str()).collect();
            Err(refused(format!("it has several kernels ({}), libostree boots one", names.join(", "))))
        }
    }
}

/// The tree with the labels of its own policy.
///
/// Checks the tree out by hard links and writes it again, so that libostree itself decides on each label. The
/// checkout is of one finished tree into an empty directory: no link of the image is followed.
fn relabelled(repo: &ostree::Repo, tree: &ostree::RepoFile) -> Result<ostree::RepoFile> {
    let doing = "computing SELinux labels; the running system is unchanged";
    let unlabelled =
        repo.write_commit_with_time(None, None, None, None, tree, 0, gio::Cancellable::NONE).doing(doing)?;
    let tmp = CapDir::reopen_dir(&repo.dfd_borrow()).doing(doing)?.open_dir("tmp").doing(doing)?;
    let scratch = TempDir::new_in(&tmp).doing(doing)?;
    let devino = ostree::RepoDevInoCache::new();
    let mode = match repo.mode() {
        ostree::RepoMode::Bare => ostree::RepoCheckoutMode::None,
        _ => ostree::RepoCheckoutMode::User,
    };
    let options = ostree::RepoCheckoutAtOptions {
        mode,
        devino_to_csum_cache: Some(devino.clone()),
        no_copy_fallback: true,
        force_copy_zerosized: true,
        ..Default::default()
    };
    repo.checkout_at(Some(&options), scratch.as_raw_fd(), "root", &unlabelled, gio::Cancellable::NONE)
        .doing(doing)?;
    let root = scratch.open_dir("root").doing(doing)?;
    let policy = ostree::SePolicy::new_at(root.as_raw_fd(), gio::Cancellable::NONE).kind(
        ErrorKind::Unsupported,
        "reading the image's SELinux policy; the running system is unchanged",
    )?;
    let modifier = ostree::RepoCommitModifier::new(ostree::RepoCommitModifierFlags::CONSUME, None);
    modifier.set_devino_cache(&devino);
    modifier.set_sepolicy(Some(&policy));
    let mutable = ostree::MutableTree::new();
    repo.write_dfd_to_mtree(scratch.as_raw_fd(), "root", &mutable, Some(&modifier), gio::Cancellable::NONE)
        .doing(doing)?;
    let written = repo.write_mtree(&mutable, gio::Cancellable::NONE).doing(doing)?;
    Ok(written.downcast::<ostree::RepoFile>().expect("a written tree is a RepoFile"))
}
