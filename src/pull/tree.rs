//! The tree of a commit, in memory, opened only where somebody looks.
//!
//! `ostree::MutableTree` does the same, but its bindings cannot list a directory, which whiteouts, `/var` and the
//! top level need. Directories that nobody opened keep their checksum and cost nothing to write.

use crate::model::{Context, Error, ErrorKind, Result};
use gvariant::aligned_bytes::TryAsAligned;
use gvariant::{Marker, Structure};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Extended attributes: name and value, without the NUL that libostree puts behind the name.
pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A checksum in a dirtree object. An array of a type that GLib knows the size of is copied, and not built of its bytes.
type Sum = glib::FixedSizeVariantArray<Raw, u8>;
/// The type of a dirtree object: files, then directories with contents and metadata checksum.
type DirTree = (Vec<(String, Sum)>, Vec<(String, Sum, Sum)>);

/// A directory.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    /// The checksum of its metadata object.
    pub meta: String,
    contents: Contents,
}

#[derive(Debug, Clone)]
enum Contents {
    Stored(String),
    Open(Entries),
}

/// What is in an opened directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    /// Files and links, by name: the checksum of the object.
    pub files: BTreeMap<String, String>,
    pub dirs: BTreeMap<String, Dir>,
}

/// What is at a path.
#[derive(Debug)]
pub(super) enum Found<'a> {
    Nothing,
    File(String),
    Dir(&'a mut Dir),
}

impl Dir {
    /// An empty directory with this metadata object.
    pub(super) fn new(meta: String) -> Dir {
        Dir { meta, contents: Contents::Open(Entries::default()) }
    }

    /// The root of a commit.
    pub(super) fn of_commit(repo: &ostree::Repo, rev: &str) -> Result<Dir> {
        let doing = || format!("reading commit {rev}");
        let (root, _) = repo.read_commit(rev, gio::Cancellable::NONE).doing_with(doing)?;
        let root = root.downcast::<ostree::RepoFile>().expect("a commit's root is a RepoFile");
        root.ensure_resolved().doing_with(doing)?;
        let contents = root.tree_get_contents_checksum().expect("a resolved tree has a checksum").to_string();
        let meta = root.tree_get_metadata_checksum().expect("a resolved tree has a checksum").to_string();
        Ok(Dir { meta, contents: Contents::Stored(contents) })
    }

    /// The directory's entries.
    pub(super) fn open(&mut self, repo: &ostree::Repo) -> Result<&mut Entries> {
        if let Contents::Stored(checksum) = &self.contents {
            self.contents = Contents::Open(load(repo, checksum)?);
        }
        match &mut self.contents {
            Contents::Open(entries) => Ok(entries),
            Contents::Stored(_) => unreachable!("the directory was opened above"),
        }
    }

    /// Whether both are the same directory of the repository, and nobody opened either.
    pub(super) fn is_stored_as(&self, other: &Dir) -> bool {
        match (&self.contents, &other.contents) {
            (Contents::Stored(ours), Contents::Stored(theirs)) => ours == theirs,
            _ => false,
        }
    }

    /// Empties the directory.
    pub(super) fn clear(&mut self) {
        self.contents = Contents::Open(Entries::default());
    }

    /// What is at a relative path. Links are not followed: a path through one finds nothing.
    pub(super) fn find(&mut self, repo: &ostree::Repo, path: &str) -> Result<Found<'_>> {
        let mut here = self;
        let mut parts = path.split('/').filter(|p| !p.is_empty()).peekable();
        while let Some(part) = parts.next() {
            let entries = here.open(repo)?;
            if let Some(checksum) = entries.files.get(part) {
                let last = parts.peek().is_none();
                return Ok(if last { Found::File(checksum.clone()) } else { Found::Nothing });
            }
            match entries.dirs.get_mut(part) {
                Some(dir) => here = dir,
                None => return Ok(Found::Nothing),
            }
        }
        Ok(Found::Dir(here))
    }

    /// The directory at a relative path, made with `meta` where it is missing. `None` if a file is in the way.
    pub(super) fn ensure(&mut self, repo: &ostree::Repo, path: &str, meta: &str) -> Result<Option<&mut Dir>> {
        let mut here = self;
        for part in path.split('/').filter(|p| !p.is_empty()) {
            let entries = here.open(repo)?;
            if entries.files.contains_key(part) {
                return Ok(None);
            }
            here = entries.dirs.entry(part.to_owned()).or_insert_with(|| Dir::new(meta.to_owned()));
        }
        Ok(Some(here))
    }

    /// Writes the directories that were opened, within the current transaction. Returns the contents' checksum.
    pub(super) fn write_contents(&self, repo: &ostree::Repo) -> Result<String> {
        let entries = match &self.contents {
            Contents::Stored(checksum) => return Ok(checksum.clone()),
            Contents::Open(entries) => entries,
        };
        let raw = |checksum: &str| raw(checksum).map(Sum::from);
        let mut tree: DirTree = Default::default();
        for (name, checksum) in &entries.files {
            tree.0.push((name.clone(), raw(checksum)?));
        }
        for (name, dir) in &entries.dirs {
            tree.1.push((name.clone(), raw(&dir.write_contents(repo)?)?, raw(&dir.meta)?));
        }
        write_metadata(repo, ostree::ObjectType::DirTree, &tree.to_variant())
    }

    /// Writes the tree within the current transaction and returns it as the root of a commit.
    pub(super) fn write(&self, repo: &ostree::Repo) -> Result<ostree::RepoFile> {
        let contents = self.write_contents(repo)?;
        let tree = ostree::MutableTree::from_checksum(repo, &contents, &self.meta);
        let root = repo.write_mtree(&tree, gio::Cancellable::NONE).doing("writing a tree")?;
        Ok(root.downcast::<ostree::RepoFile>().expect("a written tree is a RepoFile"))
    }
}

/// A checksum as objects have it.
pub(super) type Raw = [u8; 32];

/// Calls `seen` with every object of a commit's tree, but for the directories that are at the same place in the commit
/// `known`. A directory that occurs again is not gone into again.
///
/// Of `known`, directories without others in them are not read: on a disk that is what takes the time.
pub(super) fn visit(
    repo: &ostree::Repo,
    commit: &str,
    known: Option<&str>,
    seen: &mut impl FnMut(ostree::ObjectType, &Raw) -> Result<()>,
) -> Result<()> {
    let (contents, meta) = root(repo, commit)?;
    let known = known.map(|known| root(repo, known)).transpose()?.map(|(contents, _)| contents);
    let mut visited = HashSet::new();
    let mut todo = vec![(contents, meta, known)];
    while let Some((contents, meta, known)) = todo.pop() {
        seen(ostree::ObjectType::DirMeta, &meta)?;
        if known == Some(contents) || !visited.insert(contents) {
            continue;
        }
        let mut dirs = Vec::new();
        listed(repo, &hex::encode(contents), &mut |entry| {
            match entry {
                Listed::File { sum, .. } => seen(ostree::ObjectType::File, sum)?,
                Listed::Dir { name, contents, meta } => dirs.push((name.to_owned(), *contents, *meta)),
            }
            Ok(())
        })?;
        let mut below = HashMap::new();
        if let Some(known) = known.filter(|_| !dirs.is_empty()) {
            listed(repo, &hex::encode(known), &mut |entry| {
                if let Listed::Dir { name, contents, .. } = entry {
                    below.insert(name.to_owned(), *contents);
                }
                Ok(())
            })?;
        }
        todo.extend(dirs.into_iter().map(|(name, contents, meta)| (contents, meta, below.remove(&name))));
    }
    Ok(())
}

/// The files in the root of a commit.
pub(super) fn files(repo: &ostree::Repo, commit: &str, into: &mut HashSet<Raw>) -> Result<()> {
    let (contents, _) = root(repo, commit)?;
    listed(repo, &hex::encode(contents), &mut |entry| {
        if let Listed::File { sum, .. } = entry {
            into.insert(*sum);
        }
        Ok(())
    })
}

/// The contents and the metadata of a commit's root.
fn root(repo: &ostree::Repo, commit: &str) -> Result<(Raw, Raw)> {
    match Dir::of_commit(repo, commit)? {
        Dir { meta, contents: Contents::Stored(contents) } => Ok((raw(&contents)?, raw(&meta)?)),
        Dir { contents: Contents::Open(_), .. } => unreachable!("nobody opened it"),
    }
}

/// The bytes of a checksum in hexadecimal.
pub(super) fn raw(checksum: &str) -> Result<Raw> {
    let mut raw = [0; 32];
    hex::decode_to_slice(checksum, &mut raw).doing("decoding an object's checksum")?;
    Ok(raw)
}

/// An entry of a directory object.
enum Listed<'a> {
    File { name: &'a str, sum: &'a Raw },
    Dir { name: &'a str, contents: &'a Raw, meta: &'a Raw },
}

/// Calls `seen` with every entry of a directory object.
fn listed(
    repo: &ostree::Repo,
    checksum: &str,
    seen: &mut impl FnMut(Listed<'_>) -> Result<()>,
) -> Result<()> {
    let damaged = || Error::new(ErrorKind::Corrupt, format!("directory object {checksum} is malformed"));
    let tree = repo
        .load_variant(ostree::ObjectType::DirTree, checksum)
        .doing_with(|| format!("reading directory {checksum}"))?;
    // GLib makes an object of every name and checksum; a tree has 60,000 of them.
    let data = tree.data_as_bytes();
    let data = data.try_as_aligned().map_err(|_| damaged())?;
    let (files, dirs) = gvariant::gv!("(a(say)a(sayay))").cast(data).into();
    for file in files {
        let (name, sum) = file.to_tuple();
        let sum = <&Raw>::try_from(sum).map_err(|_| damaged())?;
        seen(Listed::File { name: name.to_str(), sum })?;
    }
    for dir in dirs {
        let (name, contents, meta) = dir.to_tuple();
        let contents = <&Raw>::try_from(contents).map_err(|_| damaged())?;
        let meta = <&Raw>::try_from(meta).map_err(|_| damaged())?;
        seen(Listed::Dir { name: name.to_str(), contents, meta })?;
    }
    Ok(())
}

fn load(repo: &ostree::Repo, checksum: &str) -> Result<Entries> {
    let mut entries = Entries::default();
    listed(repo, checksum, &mut |entry| {
        match entry {
            Listed::File { name, sum } => _ = entries.files.insert(name.to_owned(), hex::encode(sum)),
            Listed::Dir { name, contents, meta } => {
                let dir = Dir { meta: hex::encode(meta), contents: Contents::Stored(hex::encode(contents)) };
                entries.dirs.insert(name.to_owned(), dir);
            }
        }
        Ok(())
    })?;
    Ok(entries)
}

fn write_metadata(repo: &ostree::Repo, kind: ostree::ObjectType, value: &glib::Variant) -> Result<String> {
    let checksum =
        repo.write_metadata(kind, None, value, gio::Cancellable::NONE).doing("writing a directory")?;
    Ok(checksum.to_hex())
}

/// Extended attributes as libostree stores them.
pub(super) fn xattrs_variant(xattrs: &Xattrs) -> glib::Variant {
    let list: Vec<(Vec<u8>, Vec<u8>)> = xattrs
        .iter()
        .map(|(name, value)| {
            let mut name = name.clone();
            name.push(0);
            (name, value.clone())
        })
        .collect();
    list.to_variant()
}

/// Writes a directory's metadata object. `mode` has the permission bits only.
pub(super) fn write_dirmeta(
    repo: &ostree::Repo,
    uid: u32,
    gid: u32,
    mode: u32,
    xattrs: &Xattrs,
) -> Result<String> {
    let info = gio::FileInfo::new();
    info.set_file_type(gio::FileType::Directory);
    info.set_attribute_uint32("unix::uid", uid);
    info.set_attribute_uint32("unix::gid", gid);
    info.set_attribute_uint32("unix::mode", 0o040_000 | mode);
    let value = ostree::create_directory_metadata(&info, Some(&xattrs_variant(xattrs)));
    write_metadata(repo, ostree::ObjectType::DirMeta, &value)
}

/// Owner, group, permission bits and attributes of a directory's metadata object.
pub(super) fn read_dirmeta(repo: &ostree::Repo, checksum: &str) -> Result<(u32, u32, u32, Xattrs)> {
    let value = repo
        .load_variant(ostree::ObjectType::DirMeta, checksum)
        .doing_with(|| format!("reading directory metadata {checksum}"))?;
    // Stored in network byte order.
    let number = |at: usize| value.child_value(at).get::<u32>().map(u32::from_be);
    match (number(0), number(1), number(2)) {
        (Some(uid), Some(gid), Some(mode)) => Ok((uid, gid, mode & 0o7777, xattrs_of(&value.child_value(3)))),
        _ => Err(Error::new(ErrorKind::Corrupt, format!("directory metadata {checksum} is malformed"))),
    }
}

/// Extended attributes out of libostree's form.
pub(super) fn xattrs_of(value: &glib::Variant) -> Xattrs {
    let list = value.get::<Vec<(Vec<u8>, Vec<u8>)>>().unwrap_or_default();
    let name = |mut name: Vec<u8>| {
        if name.last() == Some(&0) {
            name.pop();
        }
        name
    };
    list.into_iter().map(|(key, value)| (name(key), value)).collect()
}

/// The size of a regular file's object; `None` for a link.
pub(super) fn regular_size(repo: &ostree::Repo, checksum: &str) -> Result<Option<u64>> {
    let (info, _) = repo
        .query_file(checksum, gio::Cancellable::NONE)
        .doing_with(|| format!("reading object {checksum}"))?;
    let regular = info.file_type() == gio::FileType::Regular;
    Ok(regular.then(|| u64::try_from(info.size()).unwrap_or(0)))
}

/// The target of a link object; `None` for a regular file.
pub(super) fn link_target(repo: &ostree::Repo, checksum: &str) -> Result<Option<String>> {
    let (info, _) = repo
        .query_file(checksum, gio::Cancellable::NONE)
        .doing_with(|| format!("reading object {checksum}"))?;
    if info.file_type() != gio::FileType::SymbolicLink {
        return Ok(None);
    }
    let target = info.symlink_target().unwrap_or_default();
    Ok(Some(target.to_string_lossy().into_owned()))
}
