//! Writing a layer: from the stream of a blob to what containers-storage has of it, in one pass.
//!
//! ```text
//!  blob ─► SHA-256 ─► decompress ─► SHA-256 ══ a few blocks ══► headers ─► tar-split.gz
//!                    (a thread of its own)                      content ─► CRC-64 ─► diff/…
//! ```
//!
//! The image is hostile. Nothing is written outside the directory that it is given, and what is in there is nobody's before both
//! digests were compared: of the blob here, of the stream with the image's configuration.

mod files;
mod split;

use super::crc::Crc;
use crate::model::image::Digest;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::archive::{Archive, Entry, Kind};
use crate::pull::unpack::{self, Compression, Content};
use files::{Files, Put};
use serde::{Deserialize, Serialize};
use split::Split;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Where the files of a layer lie in its directory.
pub(super) const FILES: &str = "diff";
/// What makes its tar stream again, until it has its place.
pub(super) const SPLIT: &str = "tar-split.gz";
/// The root of a layer that says nothing of it.
pub(super) const ROOT_MODE: u32 = 0o555;

/// The names of all entries are held in memory. The image of a whole desktop has half a million.
const MAX_ENTRIES: u64 = 4 << 20;
/// All owners of a layer are in the list of layers.
const MAX_OWNERS: usize = 1 << 16;

/// What a layer turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Written {
    /// The digest of the tar stream.
    pub diff_id: Digest,
    /// The bytes of the tar stream.
    pub diff_size: u64,
    /// The bytes of the blob.
    pub size: u64,
    pub compression: Compression,
    /// Who owns anything in it.
    pub uids: BTreeSet<u32>,
    pub gids: BTreeSet<u32>,
    /// Whether it says what mode its root has; otherwise that is the one of the layer below.
    pub has_root: bool,
}

/// Writes a layer into a directory that is not there yet: its files below `diff`, and `tar-split.gz`.
///
/// `digest` and `size` are those of the blob. What was written for an error is left there.
pub(crate) fn write(
    blob: impl Read + Send + 'static,
    digest: &Digest,
    size: u64,
    to: &Path,
) -> Result<Written> {
    let doing = || format!("writing a layer to {}", to.display());
    let files = to.join(FILES);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&files).doing_with(doing)?;
    std::fs::set_permissions(&files, std::fs::Permissions::from_mode(ROOT_MODE)).doing_with(doing)?;
    let mut found = Found::default();
    let (tar, unpacking) = unpack::start(blob, Content::Files)?;
    let read = Split::create(tar, &to.join(SPLIT)).and_then(|split| found.read(split, &files));
    let (diff_id, compression) = unpacking.found(digest, digest, Some(size), read)?;
    let diff_id = diff_id.ok_or_else(|| Error::new(ErrorKind::Internal, "a layer was not hashed"))?;
    let Found { diff_size, uids, gids, has_root } = found;
    Ok(Written { diff_id, diff_size, size, compression, uids, gids, has_root })
}

/// What is learned on the way through the stream.
#[derive(Default)]
struct Found {
    diff_size: u64,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
    has_root: bool,
}

impl Found {
    fn read(&mut self, split: Split<impl Read>, files: &Path) -> Result<()> {
        let mut files = Files::open(files)?;
        let mut archive = Archive::new(split);
        let mut entries = 0;
        while let Some(entry) = archive
            .next_and_global(&mut |split, name| split.entry(name, 0, None))
            .map_err(|error| malformed("its archive cannot be read", error))?
        {
            entries += 1;
            // As containers-storage counts: what is not there is nobody's.
            if !files::is_whiteout(trimmed(&entry.path)) {
                self.uids.insert(entry.uid);
                self.gids.insert(entry.gid);
            }
            if entries > MAX_ENTRIES || self.uids.len().max(self.gids.len()) > MAX_OWNERS {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("it has more than {MAX_ENTRIES} entries, or {MAX_OWNERS} owners"),
                ));
            }
            let put = put(&mut archive, &mut files, &entry).map_err(|error| in_entry(&entry, error))?;
            self.has_root |= put == Put::Root;
        }
        files.finish()?;
        let rest = archive.into_inner().finish();
        self.diff_size =
            rest.map_err(|error| malformed("what is behind its archive cannot be read", error))?;
        Ok(())
    }
}

/// Writes one entry, with the bytes before it.
fn put<R: Read>(archive: &mut Archive<Split<R>>, files: &mut Files, entry: &Entry) -> Result<Put> {
    let is_file = entry.kind == Kind::File && entry.size > 0;
    let mut crc = Crc::default();
    archive.inner().keep(false).map_err(writing)?;
    let put = files.put(entry, &mut archive.content(entry), &mut crc)?;
    let sum = is_file.then(|| crc.sum());
    let split = archive.inner();
    split.entry(&entry.path, if is_file { entry.size } else { 0 }, sum).map_err(writing)?;
    split.keep(true).map_err(writing)?;
    Ok(put)
}

/// A name without the slashes that directories end in.
fn trimmed(mut name: &[u8]) -> &[u8] {
    while let Some(shorter) = name.strip_suffix(b"/") {
        name = shorter;
    }
    name
}

/// A path of the image as people may see it.
fn shown(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path.strip_prefix(b"./").unwrap_or(path));
    format!("/{}", one_line(path.trim_start_matches('/')))
}

/// An entry that is not taken.
fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Unsupported, why)
}

fn in_entry(entry: &Entry, error: Error) -> Error {
    let path = shown(&entry.path);
    Error::new(error.kind, format!("its entry {path}")).detail("path", path).source(error)
}

fn writing(error: io::Error) -> Error {
    malformed("writing its list of contents (tar-split)", error)
}

/// What a reader's error says about the image.
fn malformed(what: &'static str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        // The last is what the tar crate calls everything.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other => {
            ErrorKind::Corrupt
        }
        _ => ErrorKind::Internal,
    };
    let error = Error::new(kind, what).source(error);
    match kind {
        // Not of the repository, as the hint of the kind would have it.
        ErrorKind::Corrupt => error.hint("the image is damaged: build it, or push it, again"),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
