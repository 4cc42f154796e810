//! What discovery and lint read files from: a commit, the same with the host's /etc merged in, or a directory.

use crate::model::bound::refused;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind, Look, kind_of, resolve_links};
use cap_std_ext::cap_std::fs::{Dir, MetadataExt as _};
use std::io::Read as _;

/// Larger than any real unit file; keeps a hostile tree from filling our memory.
pub(super) const MAX_SIZE: u64 = 1 << 20;
/// As many links as the kernel follows (ELOOP, path_resolution(7)).
const MAX_LINKS: usize = 40;
/// A link to it masks.
pub(super) const NULL: &str = "/dev/null";

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: Kind,
    pub size: u64,
    /// Where a link leads; `None` for a name that is not UTF-8.
    pub target: Option<String>,
}

/// A tree of files. Paths are absolute, and as the booted system will see them: `/etc`, not `/usr/etc`.
///
/// The paths of these three hold no links in their directories; [`follow`] and the others here make them so.
pub(super) trait Tree {
    /// What is at a path; `None` if nothing is.
    fn entry(&self, path: &str) -> Result<Option<Entry>>;
    /// The names in a directory, sorted; none if it is no directory.
    fn names(&self, path: &str) -> Result<Vec<String>>;
    /// The content of a regular file of at most `MAX_SIZE` bytes.
    fn bytes(&self, path: &str) -> Result<Vec<u8>>;
}

impl Tree for CommitTree {
    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        Ok(self.lookup(path)?.map(|info| Entry {
            kind: kind_of(&info),
            size: u64::try_from(info.size()).unwrap_or(u64::MAX),
            target: info.symlink_target().and_then(|t| t.to_str().map(str::to_owned)),
        }))
    }

    fn names(&self, path: &str) -> Result<Vec<String>> {
        self.list(path)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        self.read(path, MAX_SIZE).map(Option::unwrap_or_default)
    }
}

/// A directory that holds a tree. `/etc` is its `etc`, and what is not there comes from its `usr/etc`.
#[derive(Debug)]
pub(super) struct Directory {
    root: Dir,
}

impl Directory {
    pub fn new(root: Dir) -> Directory {
        Directory { root }
    }

    /// Where a path is, relative to the root of the directory.
    pub fn place(&self, path: &str) -> String {
        let relative = path.trim_start_matches('/');
        let vendor = || Some(format!("usr/{relative}")).filter(|p| self.root.symlink_metadata(p).is_ok());
        let in_etc = relative == "etc" || relative.starts_with("etc/");
        match in_etc && self.root.symlink_metadata(relative).is_err() {
            true => vendor().unwrap_or_else(|| relative.to_owned()),
            false if relative.is_empty() => ".".to_owned(),
            false => relative.to_owned(),
        }
    }
}

impl Tree for Directory {
    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        entry_in(&self.root, &self.place(path)).doing_with(|| format!("looking up {path}"))
    }

    fn names(&self, path: &str) -> Result<Vec<String>> {
        let mut names = names_in(&self.root, &self.place(path)).doing_with(|| format!("listing {path}"))?;
        if path == "/etc" || path.starts_with("/etc/") {
            names.extend(
                names_in(&self.root, &format!("usr{path}")).doing_with(|| format!("listing {path}"))?,
            );
            names.sort();
            names.dedup();
        }
        Ok(names)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        bytes_in(&self.root, &self.place(path)).doing_with(|| format!("reading {path}"))
    }
}

/// A new commit as it will be booted: its `/etc` merged with that of the host, as libostree merges it.
///
/// What the administrator changed, added or removed stays so; the rest comes from the commit. That takes a host whose
/// `usr/etc` has what its `etc` was made from, which is a deployment; of others only `/etc/osctl` counts.
#[derive(Debug)]
pub(super) struct Merged<'a> {
    commit: &'a CommitTree,
    host: &'a Dir,
    is_deployment: bool,
}

impl<'a> Merged<'a> {
    pub fn new(commit: &'a CommitTree, host: &'a Dir) -> Merged<'a> {
        let is_deployment = host.symlink_metadata("usr/etc").is_ok_and(|m| m.is_dir());
        Merged { commit, host, is_deployment }
    }

    fn covers(&self, path: &str) -> bool {
        let root = if self.is_deployment { "/etc" } else { "/etc/osctl" };
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether the path is the host's: changed, added, or removed there.
    fn is_local(&self, path: &str) -> Result<bool> {
        if !self.covers(path) {
            return Ok(false);
        }
        let relative = path.trim_start_matches('/');
        let look = |path: &str| entry_in(self.host, path).doing_with(|| format!("looking up /{path}"));
        let vendor = format!("usr/{relative}");
        Ok(match (look(relative)?, look(&vendor)?) {
            // Directories are merged by what is in them.
            (None, None) => false,
            (Some(now), _) if now.kind == Kind::Directory => false,
            (Some(now), Some(was)) if now == was && now.kind == Kind::File => {
                let read = |path: &str| bytes_in(self.host, path).doing_with(|| format!("reading /{path}"));
                now.size > MAX_SIZE || read(relative)? != read(&vendor)?
            }
            (now, was) => now != was,
        })
    }
}

impl Tree for Merged<'_> {
    fn entry(&self, path: &str) -> Result<Option<Entry>> {
        if self.is_local(path)? {
            return entry_in(self.host, path.trim_start_matches('/'))
                .doing_with(|| format!("looking up {path}"));
        }
        match self.commit.entry(path)? {
            // A directory that only the administrator has.
            None if path == "/etc" || self.covers(path) => {
                let found = entry_in(self.host, path.trim_start_matches('/'));
                let found = found.doing_with(|| format!("looking up {path}"))?;
                Ok(found.filter(|e| e.kind == Kind::Directory))
            }
            found => Ok(found),
        }
    }

    fn names(&self, path: &str) -> Result<Vec<String>> {
        let mut names = self.commit.names(path)?;
        if self.covers(path) {
            let host = names_in(self.host, path.trim_start_matches('/'));
            names.extend(host.doing_with(|| format!("listing {path}"))?);
            names.sort();
            names.dedup();
        }
        // What only one of the two has may be what the other removed.
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            if self.entry(&child(path, &name))?.is_some() {
                found.push(name);
            }
        }
        Ok(found)
    }

    fn bytes(&self, path: &str) -> Result<Vec<u8>> {
        match self.is_local(path)? {
            true => {
                bytes_in(self.host, path.trim_start_matches('/')).doing_with(|| format!("reading {path}"))
            }
            false => self.commit.bytes(path),
        }
    }
}

fn entry_in(dir: &Dir, path: &str) -> std::io::Result<Option<Entry>> {
    let meta = match dir.symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if is_nothing(&e) => return Ok(None),
        Err(e) => return Err(e),
    };
    let target = match meta.is_symlink() {
        true => dir.read_link_contents(path)?.to_str().map(str::to_owned),
        false => None,
    };
    let kind = match meta.file_type() {
        t if t.is_symlink() => Kind::Link,
        t if t.is_dir() => Kind::Directory,
        _ => Kind::File,
    };
    // The size of a directory says nothing about it.
    let size = if kind == Kind::File { meta.size() } else { 0 };
    Ok(Some(Entry { kind, size, target }))
}

fn names_in(dir: &Dir, path: &str) -> std::io::Result<Vec<String>> {
    let entries = match dir.read_dir(path) {
        Ok(entries) => entries,
        Err(e) if is_nothing(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn bytes_in(dir: &Dir, path: &str) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A pipe would wait for a writer; a tree has none, a directory of somebody may.
    if dir.symlink_metadata(path)?.is_file() {
        dir.open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn is_nothing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// The path of a name in a directory.
pub(super) fn child(dir: &str, name: &str) -> String {
    format!("{}/{name}", dir.trim_end_matches('/'))
}

/// The directory of a path.
pub(super) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/",
        Some((dir, _)) => dir,
    }
}

/// The last component of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The path with all links resolved; `None` if something on the way is missing, or links lead in a circle.
pub(super) fn resolved(tree: &dyn Tree, path: &str) -> Result<Option<String>> {
    real_path(tree, path, true).or_else(|e| match e.kind {
        ErrorKind::InvalidArgument => Ok(None),
        _ => Err(e),
    })
}

fn real_path(tree: &dyn Tree, path: &str, follow_last: bool) -> Result<Option<String>> {
    resolve_links(path, follow_last, |here| {
        Ok(match tree.entry(here)? {
            None => Look::Nothing,
            Some(Entry { kind: Kind::Link, target, .. }) => Look::Link(target.unwrap_or_default()),
            Some(_) => Look::Other,
        })
    })
}

/// Follows links to a regular file, refusing those that leave the tree.
///
/// Returns each path on the way, the file itself last; the directories of all of them hold no links.
pub(super) fn follow(tree: &dyn Tree, path: &str) -> Result<Vec<String>> {
    let (mut here, mut hops) = (path.to_owned(), Vec::new());
    for _ in 0..=MAX_LINKS {
        let real = real_path(tree, &here, false).map_err(|e| tree_error(path, e))?;
        let entry = match &real {
            Some(real) => tree.entry(real)?,
            None => None,
        };
        let Some((real, entry)) = real.zip(entry) else {
            let why = format!("links to {here}, which does not exist in the image");
            return Err(refused(path, None, why).detail("target", &here));
        };
        match entry.kind {
            Kind::Directory => return Err(refused(path, None, format!("{here} is a directory, not a file"))),
            Kind::File => {
                hops.push(real);
                return Ok(hops);
            }
            Kind::Link => {}
        }
        let Some(target) = entry.target else {
            return Err(refused(path, None, "links to a name that is not UTF-8"));
        };
        // Relative to where the link really is: a directory on the way to it may be a link itself.
        here = join(parent(&real), &target).map(visible).ok_or_else(|| {
            refused(path, None, format!("links to {target}, which leaves the tree")).detail("target", &target)
        })?;
        hops.push(real);
    }
    Err(refused(path, None, "is part of a loop of links"))
}

/// A path as booted, where only `/etc` counts.
pub(super) fn visible(path: String) -> String {
    path.strip_prefix("/usr/etc/").map(|rest| format!("/etc/{rest}")).unwrap_or(path)
}

/// A path in a directory, as text; `None` if it climbs over the root.
pub(super) fn join(dir: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = match path.starts_with('/') {
        true => Vec::new(),
        false => dir.split('/').filter(|p| !p.is_empty()).collect(),
    };
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match part {
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// Whether the path is a link to `/dev/null`.
pub(super) fn is_masked(tree: &dyn Tree, path: &str) -> Result<bool> {
    Ok(tree.entry(path)?.is_some_and(|e| e.target.as_deref() == Some(NULL)))
}

/// The text of a file whose path holds no links; `shown` is the file that is blamed.
pub(super) fn read(tree: &dyn Tree, path: &str, shown: &str) -> Result<String> {
    if tree.entry(path)?.is_some_and(|e| e.size > MAX_SIZE) {
        return Err(too_large(shown));
    }
    utf8(tree.bytes(path)?, shown)
}

pub(super) fn utf8(bytes: Vec<u8>, shown: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
        refused(shown, Some(line), "is not UTF-8")
    })
}

pub(super) fn too_large(shown: &str) -> Error {
    refused(shown, None, "is larger than 1 MiB")
}

/// What the tree refuses as an argument is a mistake in the file that led there.
fn tree_error(shown: &str, error: Error) -> Error {
    match error.kind {
        ErrorKind::InvalidArgument if error.to_string().contains("too many levels") => {
            refused(shown, None, "is part of a loop of links")
        }
        ErrorKind::InvalidArgument => refused(shown, None, error.to_string()),
        _ => error,
    }
}
