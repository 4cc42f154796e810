//! Content objects: their header, their checksum, and how they are written without being hashed twice.
//!
//! An object's checksum is the SHA-256 of its header and its content ("The OSTree repository format", ostree manual).
//! libostree hashes what it is given with the C code of GLib (seen with 2022.7), at a fraction of what the CPU's
//! instructions do, and that was most of an import's user time. So the checksum is computed here, **before** libostree is
//! called, and the object handed over as trusted. Never the other way round: what was written stays in the staging
//! directory of the transaction even when that is aborted, and a later one takes it over.

use super::tree::{self, Raw, Xattrs, xattrs_variant};
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use sha2::Digest as _;
use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Files up to this size are held in memory, and written in one call.
pub(super) const INLINE: u64 = 1 << 20;

const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// What an object says beside its content.
#[derive(Debug, Clone)]
pub(super) struct Header {
    framed: Vec<u8>,
    uid: u32,
    gid: u32,
    mode: u32,
    xattrs: glib::Variant,
}

impl Header {
    /// Of a regular file; `mode` has the permission bits.
    pub(super) fn regular(uid: u32, gid: u32, mode: u32, xattrs: &glib::Variant) -> Header {
        Header::new(uid, gid, REGULAR | mode, "", xattrs)
    }

    /// Of a symbolic link.
    pub(super) fn symlink(uid: u32, gid: u32, target: &str, xattrs: &glib::Variant) -> Header {
        Header::new(uid, gid, LINK, target, xattrs)
    }

    fn new(uid: u32, gid: u32, mode: u32, target: &str, xattrs: &glib::Variant) -> Header {
        // The device number is always 0. Numbers are in network byte order.
        let number = |n: u32| n.to_be().to_variant();
        let parts = [number(uid), number(gid), number(mode), number(0), target.to_variant(), xattrs.clone()];
        let variant = glib::Variant::tuple_from_iter(parts);
        let data = variant.data();
        let size = u32::try_from(data.len()).expect("attributes are limited to 64 KiB");
        let mut framed = Vec::with_capacity(8 + data.len());
        framed.extend_from_slice(&size.to_be_bytes());
        // The variant is aligned to 8 bytes.
        framed.extend_from_slice(&[0; 4]);
        framed.extend_from_slice(data);
        Header { framed, uid, gid, mode, xattrs: xattrs.clone() }
    }
}

/// The checksum of a whole object in hexadecimal.
fn checksum(object: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(object))
}

/// Whether the object is in the repository, or in the staging directory of its transaction.
pub(super) fn is_here(repo: &ostree::Repo, kind: ostree::ObjectType, checksum: &str) -> Result<bool> {
    repo.has_object(kind, checksum, gio::Cancellable::NONE)
        .doing_with(|| format!("looking for object {checksum}"))
}

/// The files that layers have brought: they are here, and nobody has to look.
pub(super) fn brought(repo: &ostree::Repo) -> Result<HashSet<Raw>> {
    let mut files = HashSet::new();
    for chunk in super::refs::chunks(repo)? {
        let (_, state) = repo.load_commit(&chunk).doing_with(|| format!("reading commit {chunk}"))?;
        // Somebody found something missing.
        if !state.contains(ostree::RepoCommitState::PARTIAL) {
            tree::files(repo, &chunk, &mut files)?;
        }
    }
    Ok(files)
}

/// What was here before an import.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// Without a transaction: it looks in one place, and not in a staging directory first.
    repo: ostree::Repo,
    files: &'a HashSet<Raw>,
}

impl Known<'_> {
    /// What is in the repository at a path, with these files.
    pub(super) fn new<'a>(path: &Path, files: &'a HashSet<Raw>) -> Result<Known<'a>> {
        Ok(Known { repo: super::import::open(path)?, files })
    }

    /// Whether the object was here. One that is written meanwhile need not be.
    pub(super) fn has(&self, kind: ostree::ObjectType, checksum: &str) -> Result<bool> {
        let file = kind == ostree::ObjectType::File && self.files.contains(&tree::raw(checksum)?);
        Ok(file || is_here(&self.repo, kind, checksum)?)
    }
}

/// Writes an object whose content is read to its end into memory, and returns its checksum. One that is here already is
/// not written again. `expected` is what its checksum must be.
pub(super) fn write(
    repo: &ostree::Repo,
    header: Header,
    size: u64,
    mut content: impl Read,
    expected: Option<&str>,
) -> Result<String, Failed> {
    let mut object = header.framed;
    object.reserve_exact(usize::try_from(size).unwrap_or(0));
    content.read_to_end(&mut object).map_err(Failed::Content)?;
    let found = checksum(&object);
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        return Err(Failed::Checksum(expected.to_owned()));
    }
    let length = object.len() as u64;
    let stream = gio::MemoryInputStream::from_bytes(&glib::Bytes::from_owned(object));
    repo.write_content_trusted(&found, &stream, length, gio::Cancellable::NONE).map_err(Failed::Write)?;
    Ok(found)
}

/// Writes an object that must have this checksum while its content is read. Gives the source of the content back.
///
/// libostree takes the object for what we say it is, and gives it its name when it has read the last byte. So the last
/// block is only handed over when the checksum of everything is right.
pub(super) fn write_streamed<R: Read + Send + 'static>(
    repo: &ostree::Repo,
    header: Header,
    size: u64,
    content: R,
    expected: &str,
) -> Result<R, Failed> {
    let length = header.framed.len() as u64 + size;
    let mut hash = sha2::Sha256::new();
    hash.update(&header.framed);
    let expected_raw = hex::decode(expected).map_err(|_| Failed::Checksum(expected.to_owned()))?;
    let source = Arc::new(Mutex::new(Source { content, failed: None }));
    let checked = Checked {
        head: io::Cursor::new(header.framed),
        source: source.clone(),
        hash,
        left: size,
        expected: expected_raw,
    };
    let stream = gio::ReadInputStream::new(checked);
    let written = repo.write_content_trusted(expected, &stream, length, gio::Cancellable::NONE);
    // Drops the reader, whoever else still holds the stream.
    let closed = gio::prelude::InputStreamExt::close(&stream, gio::Cancellable::NONE);
    let source = Arc::into_inner(source).and_then(|source| source.into_inner().ok());
    let source = source.ok_or_else(|| Failed::Content(io::Error::other("libostree kept the stream")))?;
    match (source.failed, written.and(closed)) {
        (Some(Cause::Checksum), _) => Err(Failed::Checksum(expected.to_owned())),
        (Some(Cause::Content(error)), _) => Err(Failed::Content(error)),
        (None, Err(error)) => Err(Failed::Write(error)),
        (None, Ok(())) => Ok(source.content),
    }
}

/// Writes an object of any size, and returns its checksum.
///
/// libostree wants to know the checksum before the content, which a large one does not leave in memory: it hashes these
/// itself.
pub(super) fn write_any(
    repo: &ostree::Repo,
    header: Header,
    size: u64,
    mut content: impl Read,
) -> Result<String> {
    if size <= INLINE {
        return Ok(write(repo, header, size, content, None)?);
    }
    let doing = "writing an object";
    let Header { uid, gid, mode, xattrs, .. } = header;
    let writer = repo.write_regfile(None, uid, gid, mode, size, Some(&xattrs)).map_err(Failed::Write)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = content.read(&mut buffer).map_err(Failed::Content)?;
        if n == 0 {
            break;
        }
        let (_, failed) = writer.write_all(&buffer[..n], gio::Cancellable::NONE).doing(doing)?;
        failed.map_or(Ok(()), Err).doing(doing)?;
    }
    Ok(writer.finish(gio::Cancellable::NONE).map_err(Failed::Write)?.into())
}

/// Why an object was not written.
#[derive(Debug)]
pub(super) enum Failed {
    /// Its content cannot be read.
    Content(io::Error),
    /// It does not have this checksum.
    Checksum(String),
    /// libostree cannot write it.
    Write(glib::Error),
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        match failed {
            Failed::Content(error) => super::layer::malformed("its content cannot be read", error),
            Failed::Checksum(expected) => {
                Error::new(ErrorKind::Corrupt, format!("object {expected} does not have its checksum"))
                    .hint("the image is damaged: build it, or push it, again")
            }
            // An attribute that is too large for the file system is ENOSPC as well, and no full disk.
            Failed::Write(error) if error.message().contains("setxattr") => {
                let why = "the file system of the repository does not take its extended attributes";
                Error::new(ErrorKind::Unsupported, why).source(error)
            }
            Failed::Write(error) => {
                Err::<(), _>(error).doing("writing an object").expect_err("an error stays one")
            }
        }
    }
}

#[derive(Debug)]
struct Source<R> {
    content: R,
    failed: Option<Cause>,
}

#[derive(Debug)]
enum Cause {
    Content(io::Error),
    Checksum,
}

#[derive(Debug)]
struct Checked<R> {
    head: io::Cursor<Vec<u8>>,
    source: Arc<Mutex<Source<R>>>,
    hash: sha2::Sha256,
    left: u64,
    expected: Vec<u8>,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.head.read(buf)?;
        if n > 0 || buf.is_empty() || self.left == 0 {
            return Ok(n);
        }
        let mut source = self.source.lock().expect("no reader of this lock panics");
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = match source.content.read(&mut buf[..want]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        let n = match n {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let said = io::Error::new(error.kind(), error.to_string());
                source.failed = Some(Cause::Content(error));
                return Err(said);
            }
        };
        self.hash.update(&buf[..n]);
        self.left -= n as u64;
        if self.left == 0 && self.hash.clone().finalize()[..] != self.expected[..] {
            source.failed = Some(Cause::Checksum);
            return Err(io::Error::other("the checksum is wrong"));
        }
        Ok(n)
    }
}

/// An object from memory, as layers of ordinary images have them.
pub(super) fn symlink(
    repo: &ostree::Repo,
    uid: u32,
    gid: u32,
    xattrs: &Xattrs,
    target: &str,
) -> Result<String, Failed> {
    write(repo, Header::symlink(uid, gid, target, &xattrs_variant(xattrs)), 0, io::empty(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::fixture::Scratch;
    use proptest::prelude::*;

    fn libostree(
        mode: u32,
        uid: u32,
        gid: u32,
        target: &str,
        xattrs: &glib::Variant,
        content: &[u8],
    ) -> String {
        let info = gio::FileInfo::new();
        let link = !target.is_empty();
        info.set_file_type(if link { gio::FileType::SymbolicLink } else { gio::FileType::Regular });
        info.set_attribute_uint32("unix::uid", uid);
        info.set_attribute_uint32("unix::gid", gid);
        info.set_attribute_uint32("unix::mode", mode);
        info.set_size(i64::try_from(content.len()).unwrap());
        if link {
            info.set_symlink_target(target);
        }
        let stream = gio::MemoryInputStream::from_bytes(&glib::Bytes::from(content));
        let input = (!link).then_some(&stream);
        ostree::checksum_file_from_input(
            &info,
            Some(xattrs),
            input,
            ostree::ObjectType::File,
            gio::Cancellable::NONE,
        )
        .unwrap()
        .to_hex()
    }

    proptest! {
        #[test]
        fn our_checksum_is_libostrees(
            uid: u32, gid: u32, mode in 0..0o10000_u32, content in prop::collection::vec(any::<u8>(), 0..2000),
            target in "[a-z/.]{1,300}",
            xattrs in prop::collection::btree_map("user\\.[a-z]{1,20}", prop::collection::vec(any::<u8>(), 1..300), 0..4),
        ) {
            let xattrs: Xattrs = xattrs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
            let variant = xattrs_variant(&xattrs);
            let ours = |header: Header, content: &[u8]| checksum(&[&header.framed, content].concat());
            prop_assert_eq!(
                ours(Header::regular(uid, gid, mode, &variant), &content),
                libostree(REGULAR | mode, uid, gid, "", &variant, &content)
            );
            prop_assert_eq!(
                ours(Header::symlink(uid, gid, &target, &variant), &[]),
                libostree(LINK, uid, gid, &target, &variant, &[])
            );
        }
    }

    #[test]
    fn an_object_with_another_checksum_is_never_written() {
        let scratch = Scratch::new();
        let repo = &scratch.repo;
        let none = xattrs_variant(&Xattrs::new());
        let content = vec![7_u8; 3 << 20];
        let header = || Header::regular(0, 0, 0o644, &none);
        let right = checksum(&[&header().framed[..], &content].concat());
        let mut damaged = content.clone();
        *damaged.last_mut().unwrap() = 8;
        let transaction = repo.auto_transaction(gio::Cancellable::NONE).unwrap();
        let size = content.len() as u64;
        let stream =
            |bytes: &[u8]| write_streamed(repo, header(), size, io::Cursor::new(bytes.to_vec()), &right);
        assert!(matches!(stream(&damaged), Err(Failed::Checksum(_))));
        assert!(matches!(stream(&content[..100]), Err(Failed::Content(_))));
        assert!(matches!(write(repo, header(), size, &damaged[..], Some(&right)), Err(Failed::Checksum(_))));
        assert!(!is_here(repo, ostree::ObjectType::File, &right).unwrap());
        // What is behind the content stays in the source.
        let long = [&content[..], b"rest"].concat();
        let mut rest = String::new();
        stream(&long).unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
        transaction.commit(gio::Cancellable::NONE).unwrap();
        assert!(is_here(repo, ostree::ObjectType::File, &right).unwrap());
        let output =
            std::process::Command::new("ostree").args(["fsck", "--repo"]).arg(scratch.path("repo")).output();
        assert!(output.unwrap().status.success());
    }
}
