//! Puts a layer on top of a tree, in memory.
//!
//! The rules of the OCI image specification, with libostree's whiteout handling where it leaves room:
//!
//! - `.wh.NAME` (not a link) removes NAME of the tree below, never of its own layer;
//! - `.wh..wh..opq` empties the directory of the tree below, and the directory takes the layer's metadata;
//! - other names that start with `.wh..wh.` are notes of aufs and dropped;
//! - a file replaces a file or a directory; a directory replaces a regular file;
//! - a directory over a link is refused, unless the layer removes the link: extracting tools follow it, out of
//!   the tree if it is absolute (the reference importer writes to the host there);
//! - a hard link to a path that its layer does not have names the file of the tree below, before the layer's
//!   whiteouts.

use super::layer::{Stored, split};
use super::tree::{Dir, Found, link_target};
use crate::model::{Error, ErrorKind, Result};
use ostree_ext::ostree;
use std::collections::BTreeSet;

const WHITEOUT: &str = ".wh.";
const WHITEOUT_META: &str = ".wh..wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// Where importers differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directories {
    /// An entry of the layer sets owner, mode and attributes of a directory below, as the specification says.
    TakeLayer,
    /// A directory that exists keeps its own, as the reference importer does above an ostree commit.
    KeepBelow,
}

struct Merge<'a> {
    repo: &'a ostree::Repo,
    implied: &'a BTreeSet<String>,
    directories: Directories,
}

/// Applies the layer.
pub(super) fn apply(
    repo: &ostree::Repo,
    below: &mut Dir,
    mut layer: Stored,
    directories: Directories,
) -> Result<()> {
    for (path, target) in &layer.links {
        let Found::File(object) = below.find(repo, target)? else {
            return Err(refused(path, &format!("is a hard link to /{target}, which no layer has")));
        };
        let (parent, name) = split(path).expect("a hard link is not the root");
        let Found::Dir(dir) = layer.tree.find(repo, parent)? else {
            return Err(refused(path, "is a hard link below a file"));
        };
        dir.open(repo)?.files.insert(name.to_owned(), object);
    }
    Merge { repo, implied: &layer.implied, directories }.dir(below, &mut layer.tree, "")
}

impl Merge<'_> {
    fn dir(&self, below: &mut Dir, layer: &mut Dir, path: &str) -> Result<()> {
        let meta = layer.meta.clone();
        let implied = self.implied.contains(path);
        let layer = layer.open(self.repo)?;
        if layer.files.contains_key(OPAQUE) {
            below.clear();
            below.meta = meta;
        } else if self.directories == Directories::TakeLayer && !implied {
            below.meta = meta;
        }
        let entries = below.open(self.repo)?;
        let mut content = Vec::new();
        for (name, object) in &layer.files {
            match name.strip_prefix(WHITEOUT) {
                Some(_) if name.starts_with(WHITEOUT_META) => {}
                Some("" | "." | "..") => return Err(refused(&join(path, name), "is a whiteout of nothing")),
                Some(hidden) if link_target(self.repo, object)?.is_none() => {
                    entries.files.remove(hidden);
                    entries.dirs.remove(hidden);
                }
                Some(_) | None => content.push((name, object)),
            }
        }
        for (name, object) in content {
            entries.dirs.remove(name);
            entries.files.insert(name.clone(), object.clone());
        }
        for (name, dir) in &mut layer.dirs {
            let here = join(path, name);
            if name.starts_with(WHITEOUT) {
                return Err(refused(&here, "is a whiteout and a directory"));
            }
            if let Some(object) = entries.files.get(name) {
                let replaced = dir.open(self.repo)?.files.contains_key(OPAQUE);
                if !replaced && let Some(target) = link_target(self.repo, object)? {
                    return Err(refused(
                        &here,
                        &format!("is a directory in one layer and a link to {target} in an earlier one"),
                    )
                    .hint("remove the link in the image's build before making a directory of that name"));
                }
                entries.files.remove(name);
            }
            let meta = dir.meta.clone();
            let below = entries.dirs.entry(name.clone()).or_insert_with(|| Dir::new(meta));
            self.dir(below, dir, &here)?;
        }
        Ok(())
    }
}

pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("/{path} {why}; the running system is unchanged"))
        .detail("path", format!("/{path}"))
}
