//! Puts a layer on top of a tree, in memory.
//!
//! The rules of the OCI image specification, with libostree's whiteout handling where it leaves room:
//!
//! - `.wh.NAME` (not a link) removes NAME of the tree below, never of its own layer;
//! - `.wh..wh..opq` empties the directory of the tree below, and the directory takes the layer's metadata;
//! - other names that start with `.wh..wh.` are notes of aufs and dropped;
//! - a file replaces a file or a directory; a directory that an entry describes replaces a file or a link;
//! - a directory that no entry describes is refused over a link, unless the layer removes the link: extracting tools
//!   follow it, out of the tree if it is absolute (the reference importer writes to the host there);
//! - above an ostree commit, what is in a directory over a link goes where the link leads, as the reference importer has
//!   it, if that is a directory of the tree; a link out of the tree is refused;
//! - a file and a whiteout that is content (`.ostree-wh.NAME`) are two spellings of one place;
//! - `/etc`, which is stored in `/usr`, stays where a layer removes or empties `/usr`;
//! - a hard link to a path that its layer does not have names the file of the tree below, before the layer's
//!   whiteouts.

use super::layer::{Stored, other_spelling, shown, split};
use super::tree::{Dir, Entries, Found, link_target};
use crate::model::text::one_line;
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
    /// A directory that exists keeps its own, and links to directories are followed, as the reference importer does above an
    /// ostree commit.
    KeepBelow,
}

/// As many links as Linux follows in one path (path_resolution(7)).
const MAX_LINKS: u32 = 40;

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
            return Err(refused(path, &format!("is a hard link to {}, which no layer has", shown(target))));
        };
        let (parent, name) = split(path).expect("a hard link is not the root");
        let Found::Dir(dir) = layer.tree.find(repo, parent)? else {
            return Err(refused(path, "is a hard link below a file"));
        };
        dir.open(repo)?.files.insert(name.to_owned(), object);
    }
    Merge { repo, implied: &layer.implied, directories }.dir(below, "", &mut layer.tree, "")
}

impl Merge<'_> {
    /// Merges the directory `path` of the layer into the one at `at`, which differs where a link was followed.
    fn dir(&self, root: &mut Dir, at: &str, layer: &mut Dir, path: &str) -> Result<()> {
        let below = self.below(root, at)?;
        let meta = layer.meta.clone();
        let implied = self.implied.contains(path);
        let layer = layer.open(self.repo)?;
        if layer.files.contains_key(OPAQUE) {
            let etc = if at == "usr" { below.open(self.repo)?.dirs.remove("etc") } else { None };
            below.clear();
            below.meta = meta;
            below.open(self.repo)?.dirs.extend(etc.map(|etc| ("etc".to_owned(), etc)));
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
                    entries.files.remove(&other_spelling(hidden));
                    if at.is_empty() && hidden == "usr" {
                        self.remove_usr(entries)?;
                    } else {
                        entries.dirs.remove(hidden);
                    }
                }
                Some(_) | None => content.push((name, object)),
            }
        }
        for (name, object) in content {
            entries.dirs.remove(name);
            entries.files.remove(&other_spelling(name));
            entries.dirs.remove(&other_spelling(name));
            entries.files.insert(name.clone(), object.clone());
        }
        for (name, dir) in &mut layer.dirs {
            let here = join(path, name);
            if name.starts_with(WHITEOUT) {
                return Err(refused(&here, "is a whiteout and a directory"));
            }
            let place = self.place(root, at, name, dir, &here)?;
            self.dir(root, &place, dir, &here)?;
        }
        Ok(())
    }

    /// Where a directory of the layer is merged into, which is there then.
    fn place(&self, root: &mut Dir, at: &str, name: &str, dir: &mut Dir, path: &str) -> Result<String> {
        let entries = self.below(root, at)?.open(self.repo)?;
        entries.files.remove(&other_spelling(name));
        if let Some(object) = entries.files.get(name).cloned() {
            let opaque = dir.open(self.repo)?.files.contains_key(OPAQUE);
            let described = self.directories == Directories::TakeLayer && !self.implied.contains(path);
            if !opaque
                && !described
                && let Some(target) = link_target(self.repo, &object)?
            {
                let led = match self.directories {
                    Directories::KeepBelow => self.follow(root, at, &target)?,
                    Directories::TakeLayer => None,
                };
                return led.ok_or_else(|| over_link(path, &target));
            }
            entries.files.remove(name);
        }
        entries.dirs.entry(name.to_owned()).or_insert_with(|| Dir::new(dir.meta.clone()));
        Ok(join(at, name))
    }

    /// The directory at a place that was found before.
    fn below<'d>(&self, root: &'d mut Dir, at: &str) -> Result<&'d mut Dir> {
        match root.find(self.repo, at)? {
            Found::Dir(dir) => Ok(dir),
            // A link that was followed may lead to where this layer has put a file.
            Found::File(_) | Found::Nothing => Err(refused(at, "is a directory and a file of one layer")),
        }
    }

    /// Where a link in the directory `at` leads, if that is a directory of the tree.
    fn follow(&self, root: &mut Dir, at: &str, target: &str) -> Result<Option<String>> {
        let parts = |path: &str| path.split('/').rev().map(str::to_owned).collect::<Vec<_>>();
        let (mut here, mut todo, mut links) = (at.to_owned(), parts(target), 0);
        if target.starts_with('/') {
            return Ok(None);
        }
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => {}
                // Above the root of the tree is the host.
                ".." if here.is_empty() => return Ok(None),
                ".." => here = split(&here).map_or("", |(parent, _)| parent).to_owned(),
                name => {
                    let entries = self.below(root, &here)?.open(self.repo)?;
                    if entries.dirs.contains_key(name) {
                        here = join(&here, name);
                        continue;
                    }
                    let Some(object) = entries.files.get(name) else { return Ok(None) };
                    links += 1;
                    match link_target(self.repo, object)? {
                        Some(target) if !target.starts_with('/') && links < MAX_LINKS => {
                            todo.extend(parts(&target));
                        }
                        Some(_) | None => return Ok(None),
                    }
                }
            }
        }
        Ok(Some(here))
    }
}

fn over_link(path: &str, target: &str) -> Error {
    let why = format!("is a directory in one layer and a link to {} in an earlier one", one_line(target));
    refused(path, &why).hint("remove the link in the image's build before making a directory of that name")
}

impl Merge<'_> {
    /// Removes `/usr`, but not the `/etc` that is stored there.
    fn remove_usr(&self, root: &mut Entries) -> Result<()> {
        let Some(mut usr) = root.dirs.remove("usr") else { return Ok(()) };
        if let Some(etc) = usr.open(self.repo)?.dirs.remove("etc") {
            let mut kept = Dir::new(usr.meta);
            kept.open(self.repo)?.dirs.insert("etc".to_owned(), etc);
            root.dirs.insert("usr".to_owned(), kept);
        }
        Ok(())
    }
}

pub(super) fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{} {why}; the running system is unchanged", shown(path)))
        .detail("path", shown(path))
}
