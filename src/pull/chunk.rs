//! One layer of an encapsulated ostree commit: a tar stream of the objects of a repository.
//!
//! The format is that of ostree-ext ("ostree in tar", versions 0 and 1), of which these entries count:
//!
//! ```text
//!  sysroot/ostree/repo/objects/XX/Y.commit             one, first, in the layer of the commit; then perhaps
//!                                 .commitmeta          its detached metadata
//!                                 .dirtree .dirmeta    in the layer of the commit only
//!                                 .file-xattrs         a set of attributes, by its own SHA-256
//!                                 .file-xattrs-link    (a hard link to) the attributes of the object that follows
//!                                 .file                the object
//!                                 .file.xattrs         version 0 of -link; the sets are repo/xattrs/HASH
//! ```
//!
//! What becomes of a layer is what the reference importer makes of it, with the same checksum: a commit whose tree names
//! every object, so that pruning keeps them as long as the layer's ref is there. The layer of the ostree commit is that
//! commit itself.

use super::archive::{Archive, Entry, Kind};
use super::layer::malformed;
use super::object::{self, Header, Known};
use super::refs::{self, Made};
use super::space::Space;
use super::tree::{Dir, write_dirmeta};
use super::types::Layer;
use super::unpack::{self, Content, Tar};
use crate::model::image::Digest;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs::free_bytes_of;
use ostree_ext::glib::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};

const REPOSITORY: &str = "sysroot/ostree/repo/";
/// libostree's own limit (OSTREE_MAX_METADATA_SIZE is 128 MiB; the reference importer takes 10).
const MAX_METADATA: u64 = 10 << 20;
/// More than any file system holds in one set of attributes.
const MAX_XATTRS: u64 = 64 << 10;
/// All sets of attributes of one layer, which are held in memory. A Fedora image has some hundred kilobytes.
const MAX_ALL_XATTRS: usize = 32 << 20;

/// What a layer of an encapsulated commit carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carries {
    /// The commit, its directories, and perhaps files.
    Commit,
    /// Files only.
    Files,
}

/// Imports a blob, and sets its refs, within the current transaction.
pub(super) fn import(
    repo: &ostree::Repo,
    known: &Known<'_>,
    layer: &Layer,
    carries: Carries,
    name: &Digest,
    size: Option<u64>,
    blob: impl Read + Send + 'static,
) -> Result<()> {
    let (tar, unpacking) = unpack::start(blob, Content::Objects)?;
    let mut objects = Objects::new(repo, known, carries);
    let read = objects.read(tar);
    unpacking.verify(layer, name, size, read)?;
    let commit = objects.commit()?;
    for name in [refs::of_layer(name)?, refs::verified(Made::Chunk, name)?] {
        repo.transaction_set_ref(None, &name, Some(&commit));
    }
    Ok(())
}

/// What an entry is, by its path.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Commit,
    CommitMeta,
    DirTree,
    DirMeta,
    File,
    Xattrs,
    XattrsLink,
}

impl Part {
    /// The type of the object that it is, or belongs to.
    fn kind(&self) -> ostree::ObjectType {
        match self {
            Part::Commit => ostree::ObjectType::Commit,
            Part::CommitMeta => ostree::ObjectType::CommitMeta,
            Part::DirTree => ostree::ObjectType::DirTree,
            Part::DirMeta => ostree::ObjectType::DirMeta,
            Part::File | Part::Xattrs | Part::XattrsLink => ostree::ObjectType::File,
        }
    }
}

/// The checksum and the kind of an entry; `None` for what does not count.
fn part(path: &str) -> Result<Option<(String, Part)>> {
    let Some(path) = path.trim_start_matches("./").trim_start_matches('/').strip_prefix(REPOSITORY) else {
        return Ok(None);
    };
    let unknown = || broken(format!("it has {}, which is no object", one_line(path)));
    if let Some(set) = path.strip_prefix("xattrs/") {
        return Ok(Some((checked(set).ok_or_else(unknown)?, Part::Xattrs)));
    }
    let Some(object) = path.strip_prefix("objects/") else { return Ok(None) };
    let parsed = object.split_once('/').and_then(|(start, rest)| {
        let (end, kind) = rest.split_once('.')?;
        Some((checked(&format!("{start}{end}"))?, kind))
    });
    let (checksum, kind) = parsed.ok_or_else(unknown)?;
    let part = match kind {
        "commit" => Part::Commit,
        "commitmeta" => Part::CommitMeta,
        "dirtree" => Part::DirTree,
        "dirmeta" => Part::DirMeta,
        "file" => Part::File,
        "file-xattrs" => Part::Xattrs,
        "file-xattrs-link" | "file.xattrs" => Part::XattrsLink,
        _ => return Err(unknown()),
    };
    Ok(Some((checksum, part)))
}

fn checked(text: &str) -> Option<String> {
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    (text.len() == 64 && text.bytes().all(digits)).then(|| text.to_owned())
}

struct Objects<'a> {
    repo: &'a ostree::Repo,
    known: &'a Known<'a>,
    carries: Carries,
    commit: Option<String>,
    /// The attributes that were seen, by their own checksum.
    xattrs: HashMap<String, glib::Variant>,
    xattrs_size: usize,
    /// The object that comes next and its attributes' checksum.
    next: Option<(String, String)>,
    files: BTreeSet<String>,
    space: Space,
}

impl<'a> Objects<'a> {
    fn new(repo: &'a ostree::Repo, known: &'a Known<'a>, carries: Carries) -> Self {
        Objects {
            repo,
            known,
            carries,
            commit: None,
            xattrs: HashMap::new(),
            xattrs_size: 0,
            next: None,
            files: BTreeSet::new(),
            space: Space::default(),
        }
    }

    fn read(&mut self, tar: Tar) -> Result<()> {
        let mut archive = Archive::new(tar);
        while let Some(entry) = archive.next().map_err(|e| malformed("it is not a valid tar archive", e))? {
            if entry.kind == Kind::Directory {
                continue;
            }
            // Names of files that are no objects may be anything.
            let Ok(path) = std::str::from_utf8(&entry.path) else { continue };
            if let Some((checksum, part)) = part(path)? {
                archive = self.add(&checksum, &part, &entry, archive)?;
            }
        }
        io::copy(&mut archive.into_inner(), &mut io::sink())
            .map_err(|e| malformed("what is behind the archive cannot be read", e))?;
        match (self.carries, &self.commit) {
            (Carries::Commit, None) => Err(broken("it has no ostree commit")),
            _ => Ok(()),
        }
    }

    fn add(
        &mut self,
        checksum: &str,
        part: &Part,
        entry: &Entry,
        mut archive: Archive<Tar>,
    ) -> Result<Archive<Tar>> {
        let metadata = matches!(part, Part::Commit | Part::CommitMeta | Part::DirTree | Part::DirMeta);
        if metadata && self.carries == Carries::Files {
            return Err(broken(format!("it has the metadata object {checksum}, and is for files")));
        }
        if *part != Part::Commit && self.carries == Carries::Commit && self.commit.is_none() {
            return Err(broken("it does not begin with the ostree commit"));
        }
        match part {
            Part::Commit => self.write_commit(checksum, &bytes(entry, &mut archive, MAX_METADATA)?)?,
            Part::CommitMeta => {
                if self.commit.as_deref() != Some(checksum) {
                    return Err(broken("it has metadata of another commit"));
                }
                let bytes = bytes(entry, &mut archive, MAX_METADATA)?;
                let value = variant::<HashMap<String, glib::Variant>>(bytes);
                self.repo
                    .write_commit_detached_metadata(checksum, Some(&value), gio::Cancellable::NONE)
                    .doing("writing the commit's metadata")?;
            }
            // Most of an update's are those of the version before.
            Part::DirTree | Part::DirMeta if self.known.has(part.kind(), checksum)? => {}
            Part::DirTree => {
                let value = variant::<ostree::TreeVariantType>(bytes(entry, &mut archive, MAX_METADATA)?);
                self.write_metadata(part.kind(), checksum, &value)?;
            }
            Part::DirMeta => {
                let value = variant::<ostree::DirmetaVariantType>(bytes(entry, &mut archive, MAX_METADATA)?);
                self.write_metadata(part.kind(), checksum, &value)?;
            }
            Part::Xattrs => {
                let found = self.keep_xattrs(bytes(entry, &mut archive, MAX_XATTRS)?)?;
                if found != checksum {
                    return Err(broken(format!("the attributes {checksum} do not have their checksum")));
                }
            }
            Part::XattrsLink => {
                if self.next.is_some() {
                    return Err(broken(format!("attributes of {checksum} follow those of another object")));
                }
                let xattrs = match &entry.kind {
                    Kind::Link(target) => {
                        let target = std::str::from_utf8(target).unwrap_or_default();
                        link_target(target)
                            .ok_or_else(|| broken(format!("attributes of {checksum} are nowhere")))?
                    }
                    // A hard link too many for whoever wrote it.
                    Kind::File => self.keep_xattrs(bytes(entry, &mut archive, MAX_XATTRS)?)?,
                    _ => return Err(broken(format!("attributes of {checksum} are of an unknown kind"))),
                };
                self.next = Some((checksum.to_owned(), xattrs));
            }
            Part::File => return self.file(checksum, entry, archive),
        }
        Ok(archive)
    }

    fn file(&mut self, checksum: &str, entry: &Entry, mut archive: Archive<Tar>) -> Result<Archive<Tar>> {
        let Some((_, xattrs)) = self.next.take().filter(|(next, _)| next == checksum) else {
            return Err(broken(format!("object {checksum} comes without its attributes")));
        };
        if self.carries == Carries::Files && !self.files.insert(checksum.to_owned()) {
            return Err(broken(format!("object {checksum} comes twice")));
        }
        if self.known.has(ostree::ObjectType::File, checksum)? {
            return Ok(archive);
        }
        let xattrs = self.xattrs.get(&xattrs);
        let xattrs = xattrs.ok_or_else(|| broken(format!("attributes of {checksum} are missing")))?;
        let header = match &entry.kind {
            Kind::File => Header::regular(entry.uid, entry.gid, entry.mode, xattrs),
            Kind::Symlink(target) => {
                let target = std::str::from_utf8(target).ok().filter(|t| !t.is_empty() && !t.contains('\0'));
                let target = target.ok_or_else(|| broken(format!("link {checksum} has no valid target")))?;
                Header::symlink(entry.uid, entry.gid, target, xattrs)
            }
            _ => return Err(broken(format!("object {checksum} is neither a file nor a link"))),
        };
        let size = if entry.kind == Kind::File { entry.size } else { 0 };
        self.space.take(size, || free_bytes_of(self.repo.dfd_borrow()))?;
        if size <= object::INLINE {
            object::write(self.repo, header, size, archive.content(entry), Some(checksum))?;
            return Ok(archive);
        }
        if entry.is_sparse() {
            return Err(broken(format!("object {checksum} is a sparse file")));
        }
        Ok(object::write_streamed(self.repo, header, size, archive.into_data(), checksum)?.into_archive())
    }

    fn write_commit(&mut self, checksum: &str, bytes: &[u8]) -> Result<()> {
        if self.commit.replace(checksum.to_owned()).is_some() {
            return Err(broken("it has several ostree commits"));
        }
        // What it consists of is not here yet. The one who finds it complete says so.
        self.repo.mark_commit_partial(checksum, true).doing("marking the commit")?;
        let value = variant::<ostree::CommitVariantType>(bytes.to_vec());
        self.write_metadata(ostree::ObjectType::Commit, checksum, &value)
    }

    fn write_metadata(&self, kind: ostree::ObjectType, checksum: &str, value: &glib::Variant) -> Result<()> {
        // libostree compares the checksum.
        let written = self.repo.write_metadata(kind, Some(checksum), value, gio::Cancellable::NONE);
        written.map(|_| ()).map_err(|error| match error.matches(gio::IOErrorEnum::Failed) {
            true if !error.message().contains("No space left") => {
                broken(format!("metadata object {checksum} is damaged")).source(error)
            }
            _ => Err::<(), _>(error).doing("writing a metadata object").expect_err("an error stays one"),
        })
    }

    fn keep_xattrs(&mut self, bytes: Vec<u8>) -> Result<String> {
        self.xattrs_size += bytes.len();
        if self.xattrs_size > MAX_ALL_XATTRS {
            return Err(broken("it has more extended attributes than fit into memory"));
        }
        let checksum = Digest::of(&bytes).hex().to_owned();
        let value = variant::<Vec<(Vec<u8>, Vec<u8>)>>(bytes);
        self.xattrs.insert(checksum.clone(), value);
        Ok(checksum)
    }

    /// The commit that the layer's refs point to.
    fn commit(self) -> Result<String> {
        if let Some(commit) = self.commit {
            return Ok(commit);
        }
        let mut root = Dir::new(write_dirmeta(self.repo, 0, 0, 0o755, &BTreeMap::new())?);
        let entries = root.open(self.repo)?;
        entries.files.extend(self.files.into_iter().map(|checksum| (checksum.clone(), checksum)));
        let root = root.write(self.repo)?;
        let commit = self
            .repo
            .write_commit_with_time(None, None, None, None, &root, 0, gio::Cancellable::NONE)
            .doing("writing the commit of a layer")?;
        Ok(commit.into())
    }
}

/// A value in the serialisation that its checksum is made of.
fn variant<T: StaticVariantType>(bytes: Vec<u8>) -> glib::Variant {
    glib::Variant::from_bytes::<T>(&glib::Bytes::from_owned(bytes)).normal_form()
}

fn bytes(entry: &Entry, archive: &mut Archive<Tar>, limit: u64) -> Result<Vec<u8>> {
    if entry.kind != Kind::File || entry.size > limit {
        return Err(broken("a metadata object is no file, or of absurd size"));
    }
    let mut bytes = Vec::new();
    let read = archive.content(entry).read_to_end(&mut bytes);
    read.map_err(|e| malformed("a metadata object cannot be read", e))?;
    Ok(bytes)
}

/// The checksum of the attributes that a link leads to.
fn link_target(target: &str) -> Option<String> {
    let mut parts = target.rsplit('/');
    let (name, parent) = (parts.next()?, parts.next()?);
    match name.split_once('.') {
        Some((rest, "file-xattrs")) => checked(&format!("{parent}{rest}")),
        Some(_) => None,
        None => checked(name),
    }
}

fn broken(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, format!("its ostree commit cannot be imported: {why}"))
        .hint("the image is broken, or made by a tool that osctl does not know: build it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_apart_by_their_paths() {
        let sum = format!("ab{}", "0".repeat(62));
        let of = |end: &str| format!("sysroot/ostree/repo/objects/ab/{}{end}", "0".repeat(62));
        for (path, expected) in [
            (of(".commit"), Some(Part::Commit)),
            (of(".commitmeta"), Some(Part::CommitMeta)),
            (of(".dirtree"), Some(Part::DirTree)),
            (of(".dirmeta"), Some(Part::DirMeta)),
            (format!("./{}", of(".file")), Some(Part::File)),
            (of(".file-xattrs"), Some(Part::Xattrs)),
            (of(".file-xattrs-link"), Some(Part::XattrsLink)),
            (of(".file.xattrs"), Some(Part::XattrsLink)),
            (format!("sysroot/ostree/repo/xattrs/{sum}"), Some(Part::Xattrs)),
            ("sysroot/ostree/repo/config".into(), None),
            ("usr/bin/bash".into(), None),
        ] {
            let expected = expected.map(|part| (sum.clone(), part));
            assert_eq!(part(&path).unwrap(), expected, "{path}");
        }
        for path in [of(".files"), of(""), of("0.file"), "sysroot/ostree/repo/objects/zz/x.file".into()] {
            assert_eq!(part(&path).unwrap_err().kind, ErrorKind::Corrupt, "{path}");
        }
        let target = |end: &str| format!("../ab/{}{end}", "0".repeat(62));
        for (target, expected) in [
            (target(".file-xattrs"), Some(sum.clone())),
            (of(".file-xattrs"), Some(sum.clone())),
            (format!("../xattrs/{sum}"), Some(sum.clone())),
            (target(".file"), None),
            ("../../x".into(), None),
        ] {
            assert_eq!(link_target(&target), expected, "{target}");
        }
    }
}
