//! From the upper directory of an overlay to a changed tree.
//!
//! Of the overlay (Documentation/filesystems/overlayfs in the kernel): a character device 0/0 says that something is gone,
//! `trusted.overlay.opaque` that a directory has nothing of what was below it.

use super::detect::Target;
use super::room::MOUNT_POINTS;
use super::var::OPT;
use super::{backend, etc};
use crate::derive::mtree::{Attributes, Entry, Tree};
use crate::model::manifest::Meta;
use crate::model::{Context, Error, ErrorKind, Result};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

const OPAQUE: &str = "trusted.overlay.opaque";

/// Puts what changed into the tree. Paths are real ones: `/usr/etc` and not `/etc`.
pub(super) fn apply(tree: &Tree<'_>, upper: &Path, target: &Target) -> Result<()> {
    let mut strange = Vec::new();
    for name in names(upper)? {
        match name.as_str() {
            "usr" if upper.join("usr").symlink_metadata().is_ok_and(|m| m.is_dir()) => {
                directory(tree, upper, "/usr", target, &mut strange)?
            }
            name if MOUNT_POINTS.contains(&name) => {}
            name => strange.push(format!("/{name}")),
        }
    }
    if strange.is_empty() {
        return Ok(());
    }
    let list = strange.iter().map(|p| crate::model::text::one_line(p)).collect::<Vec<_>>().join(", ");
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("packages make what cannot be in an image: {list}; nothing was staged"),
    )
    .detail("paths", strange.join("\n"))
    .hint("leave the package out, or put what it needs into the image"))
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let doing = || format!("listing {}", dir.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).doing_with(doing)? {
        let name = entry.doing_with(doing)?.file_name();
        let text = name.to_str().map(str::to_owned).ok_or_else(|| {
            let shown = crate::model::text::one_line(&name.to_string_lossy());
            Error::new(
                ErrorKind::Unsupported,
                format!("a package has the file name {shown}, which is not UTF-8"),
            )
        });
        names.push(text?);
    }
    // The order in which a file system lists must not matter.
    names.sort();
    Ok(names)
}

fn directory(
    tree: &Tree<'_>,
    upper: &Path,
    at: &str,
    target: &Target,
    strange: &mut Vec<String>,
) -> Result<()> {
    let here = upper.join(at.trim_start_matches('/'));
    for name in names(&here)? {
        let (path, full) = (format!("{at}/{name}"), here.join(&name));
        if etc::is_dropped(&path) || backend(target.manager).is_transient(&path, &target.database) {
            continue;
        }
        let doing = || format!("looking at {path}, which packages changed");
        let stat = std::fs::symlink_metadata(&full).doing_with(doing)?;
        let kind = stat.file_type();
        if tree.is_labelled() && Tree::is_policy(&path) {
            let why = "packages would change the SELinux policy of the base: relabelling the whole tree is not supported yet";
            return Err(Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged")));
        }
        let there = tree.at(&path)?;
        if there.is_none() && path.trim_start_matches('/') == OPT && names(&full)?.is_empty() {
            continue;
        }
        if kind.is_char_device() && stat.rdev() == 0 {
            if there.is_some() {
                tree.remove(&path)?;
            }
        } else if kind.is_dir() {
            let replaces = !matches!(there, None | Some(Entry::Directory(_)));
            if replaces || is_opaque(&full)? {
                tree.remove(&path)?;
            }
            let new = meta(&stat);
            let same = match tree.at(&path)? {
                Some(Entry::Directory(dir)) => tree.directory_meta(&dir)? == new,
                _ => false,
            };
            if !same {
                tree.put_directory(&path, &new)?;
            }
            directory(tree, upper, &path, target, strange)?;
        } else if kind.is_symlink() || kind.is_file() {
            if matches!(there, Some(Entry::Directory(_))) {
                tree.remove(&path)?;
            }
            if kind.is_symlink() {
                let link = std::fs::read_link(&full).doing_with(doing)?;
                let link = link.to_str().ok_or_else(|| {
                    Error::new(ErrorKind::Unsupported, format!("{path} is a link whose target is not UTF-8"))
                })?;
                if !matches!(&there, Some(Entry::Link { target }) if target == link) {
                    tree.put_owned_link(&path, stat.uid(), stat.gid(), link)?;
                }
            } else {
                let flags =
                    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
                let file = rustix::fs::open(&full, flags, rustix::fs::Mode::empty()).doing_with(doing)?;
                tree.put_stream(
                    &path,
                    &meta(&stat),
                    &attributes(&full)?,
                    stat.len(),
                    std::fs::File::from(file),
                )?;
            }
        } else {
            strange.push(path);
        }
    }
    Ok(())
}

fn meta(stat: &std::fs::Metadata) -> Meta {
    Meta { mode: stat.mode() & 0o7777, uid: stat.uid(), gid: stat.gid() }
}

/// Whether a directory has nothing of the one that was in its place.
pub(super) fn is_opaque(directory: &Path) -> Result<bool> {
    Ok(xattr(directory, OPAQUE)?.as_deref() == Some(b"y"))
}

fn xattr(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; 64 << 10];
    match rustix::fs::lgetxattr(path, name, &mut value) {
        Ok(size) => {
            value.truncate(size);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e).doing_with(|| format!("reading an attribute of {}", path.display())),
    }
}

/// The attributes that belong to a file's content: capabilities, not labels, and nothing of the overlay.
fn attributes(path: &Path) -> Result<Attributes> {
    let mut all = Attributes::new();
    for name in ["security.capability"] {
        if let Some(value) = xattr(path, name)? {
            all.insert(name.as_bytes().to_vec(), value);
        }
    }
    Ok(all)
}
