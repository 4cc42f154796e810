//! The merge commit: the tree of the whole image, with what the reference tools look for in its metadata.
//!
//! Metadata is written in one order and holds nothing of this host, its clock or the tool's version: two hosts
//! that pull one digest get one commit. (The reference importer's own merge commits differ on every run: it
//! serialises a hash map and adds its version.)

use super::layer::shown;
use super::merge::join;
use super::refs;
use super::tree::{Dir, Found, regular_size};
use super::types::Resolved;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::Dir as CapDir;
use cap_std_ext::cap_tempfile::TempDir;
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;

/// Where a tree's SELinux policies are.
const SELINUX: &str = "usr/etc/selinux";
/// The file in there that chooses one.
const CONFIG: &str = "config";
/// Far more than the few lines that it has.
const MAX_CONFIG: u64 = 64 << 10;
/// All policies of a tree, which libselinux reads into memory. Fedora's is 10 MB.
const MAX_POLICY: u64 = 256 << 20;

/// What was left out, by the digest of the layer: how many entries, by their place at the top level.
pub(super) type Filtered = BTreeMap<String, BTreeMap<String, u32>>;

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
    filtered: &Filtered,
) -> Result<String> {
    let doing = || format!("writing the commit of {}; the running system is unchanged", resolved.image);
    let kernel = kernel(repo, &mut root)?;
    let metadata = metadata(resolved, &kernel, filtered);
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing_with(doing)?;
    let mut tree = root.write(repo)?;
    if labels == Labels::FromTree && has_policy(repo, &mut root)? {
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

/// Whether the tree has an SELinux policy, which libostree then reads by path: a link in its way would lead to files
/// of this host, so there must be none.
fn has_policy(repo: &ostree::Repo, root: &mut Dir) -> Result<bool> {
    let refused = |path: &str, why: &str| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the image's SELinux policy cannot be used: {} {why}; the running system is unchanged",
                shown(path)
            ),
        )
    };
    let config = match root.find(repo, &join(SELINUX, CONFIG))? {
        Found::File(config) => config,
        Found::Nothing | Found::Dir(_) => return Ok(false),
    };
    // libostree looks there first.
    if !matches!(root.find(repo, "etc")?, Found::Nothing) {
        return Err(refused("etc", "is there beside /usr/etc"));
    }
    let config = match regular_size(repo, &config)? {
        None => return Err(refused(&join(SELINUX, CONFIG), "is a link")),
        Some(size) if size > MAX_CONFIG => return Err(refused(&join(SELINUX, CONFIG), "is too large")),
        Some(_) => read(repo, &config)?,
    };
    let names = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    for name in names.map(str::trim) {
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            let why = format!("names the policy {:?}, which is no name", one_line(name));
            return Err(refused(&join(SELINUX, CONFIG), &why));
        }
    }
    let mut left = MAX_POLICY;
    let Found::Dir(policies) = root.find(repo, SELINUX)? else { return Ok(false) };
    let mut todo = vec![(SELINUX.to_owned(), policies.clone())];
    while let Some((path, mut dir)) = todo.pop() {
        let entries = dir.open(repo)?;
        for (name, object) in &entries.files {
            let here = join(&path, name);
            let size = regular_size(repo, object)?.ok_or_else(|| refused(&here, "is a link"))?;
            left = left.checked_sub(size).ok_or_else(|| refused(&here, "makes it too large"))?;
        }
        todo.extend(entries.dirs.iter().map(|(name, dir)| (join(&path, name), dir.clone())));
    }
    Ok(true)
}

fn read(repo: &ostree::Repo, object: &str) -> Result<String> {
    let doing = "reading the image's SELinux configuration";
    let (content, _, _) = repo.load_file(object, gio::Cancellable::NONE).doing(doing)?;
    let mut bytes = Vec::new();
    if let Some(content) = content {
        content.into_read().take(MAX_CONFIG).read_to_end(&mut bytes).doing(doing)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn metadata(resolved: &Resolved, kernel: &str, filtered: &Filtered) -> glib::Variant {
    let mut metadata: BTreeMap<&str, glib::Variant> = BTreeMap::from([
        (refs::META_DIGEST, resolved.digest.as_str().to_variant()),
        (refs::META_MANIFEST, resolved.manifest_text.to_variant()),
        (refs::META_CONFIG, resolved.config_text.to_variant()),
        // Readers expect the key also where there is nothing.
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
            if let Found::File(kernel) = dir.find(repo, "vmlinuz")? {
                let initramfs = match dir.find(repo, "initramfs.img")? {
                    Found::File(initramfs) => Some(initramfs),
                    Found::Dir(_) | Found::Nothing => None,
                };
                kernels.push((release.clone(), kernel, initramfs));
            }
        }
    }
    let (release, kernel, initramfs) = match kernels.as_slice() {
        [] => return Err(refused("there is no /usr/lib/modules/*/vmlinuz".into())),
        [one] => one,
        several => {
            let names: Vec<String> = several.iter().map(|(release, ..)| one_line(release)).collect();
            return Err(refused(format!(
                "it has several kernels ({}), libostree boots one",
                names.join(", ")
            )));
        }
    };
    // libostree copies both to /boot, through links: what they name on this host is not the image's.
    for (name, object) in [("vmlinuz", Some(kernel)), ("initramfs.img", initramfs.as_ref())] {
        let path = shown(&format!("usr/lib/modules/{release}/{name}"));
        let Some(object) = object else { return Err(refused(format!("there is no {path}"))) };
        match regular_size(repo, object)? {
            None => return Err(refused(format!("{path} is a link"))),
            Some(0) => return Err(refused(format!("{path} is empty"))),
            Some(_) => {}
        }
    }
    Ok(release.clone())
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
