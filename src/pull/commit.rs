//! The merge commit: the tree of the whole image, with what the reference tools look for in its metadata.
//!
//! Metadata is written in one order and holds nothing of this host, its clock or the tool's version: two hosts
//! that pull one digest get one commit. (The reference importer's own merge commits differ on every run: it
//! serialises a hash map and adds its version.)

use super::labels::Labels;
use super::layer::shown;
use super::refs;
use super::tree::{Dir, Found, regular_size};
use super::types::Resolved;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeMap;

/// What was left out, by the digest of the layer: how many entries, by their place at the top level.
pub(super) type Filtered = BTreeMap<String, BTreeMap<String, u32>>;

/// Writes the merge commit and, with the same transaction, the image's ref.
pub(super) fn write(
    repo: &ostree::Repo,
    resolved: &Resolved,
    mut root: Dir,
    labels: &Labels,
    filtered: &Filtered,
) -> Result<String> {
    let kernel = kernel(repo, &mut root)?;
    let mut metadata = metadata(resolved, filtered);
    metadata.insert("ostree.bootable", true.to_variant());
    metadata.insert("ostree.linux", kernel.to_variant());
    let doing = "beginning a transaction; the running system is unchanged";
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing(doing)?;
    let tree = labels.apply(repo, &mut root)?;
    let names = [refs::of_image(&resolved.image)?, refs::claim(&resolved.image)?];
    put(repo, transaction, resolved, &tree, &metadata, &names)
}

/// The same of an image that is no OS: no kernel, no labels, and a ref that nobody takes for that of an OS.
pub(super) fn write_content(
    repo: &ostree::Repo,
    transaction: ostree::TransactionGuard<'_>,
    resolved: &Resolved,
    root: &Dir,
) -> Result<String> {
    let mut metadata = metadata(resolved, &Filtered::new());
    metadata.insert(refs::META_CONTENT, true.to_variant());
    let names = [refs::of_content(&resolved.digest)];
    put(repo, transaction, resolved, &root.write(repo)?, &metadata, &names)
}

fn put(
    repo: &ostree::Repo,
    transaction: ostree::TransactionGuard<'_>,
    resolved: &Resolved,
    tree: &ostree::RepoFile,
    metadata: &BTreeMap<&str, glib::Variant>,
    names: &[String],
) -> Result<String> {
    let (metadata, none) = (metadata.to_variant(), gio::Cancellable::NONE);
    let commit = repo
        .write_commit_with_time(None, None, None, Some(&metadata), tree, resolved.created, none)
        .doing_with(|| {
            format!("writing the commit of {}; the running system is unchanged", resolved.image)
        })?;
    for name in names {
        repo.transaction_set_ref(None, name, Some(&commit));
    }
    // The ref becomes visible in here, after the objects were synced.
    refs::commit(repo, transaction, names)?;
    refs::repaired(repo, &commit)?;
    Ok(commit.into())
}

fn metadata(resolved: &Resolved, filtered: &Filtered) -> BTreeMap<&'static str, glib::Variant> {
    let mut metadata: BTreeMap<&str, glib::Variant> = BTreeMap::from([
        (refs::META_DIGEST, resolved.digest.as_str().to_variant()),
        (refs::META_MANIFEST, resolved.manifest_text.to_variant()),
        (refs::META_CONFIG, resolved.config_text.to_variant()),
        // Readers expect the key also where there is nothing.
        ("ostree.tar-filtered", filtered.to_variant()),
    ]);
    if let Some(version) = &resolved.version {
        metadata.insert("version", version.to_variant());
    }
    metadata
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
