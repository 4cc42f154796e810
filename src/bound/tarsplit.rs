//! Putting the tar stream of a layer together again, from what containers-storage kept of it.
//!
//! containers-storage unpacks a layer and keeps, as `<id>.tar-split.gz`, everything of the stream that is not the content of
//! a file: one JSON object a line (github.com/vbatts/tar-split), a segment of raw bytes, or an entry whose content is in
//! the file of that name. Both in order are the stream, whose SHA-256 is what an image's configuration calls the layer.
//!
//! The names are an image's. Each is opened by openat2(2) with the directory of the layer as the root of everything, so
//! that neither `..` nor a link leads out. A link on the way is followed, as it was when the layer was unpacked: a layer
//! may have `lib -> usr/lib` and then `lib/x`.

use super::crc::Crc;
use super::root::{Root, unpacked};
use crate::model::Result;
use crate::model::image::Digest;
use base64::Engine as _;
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use sha2::Digest as _;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// An entry has one line; the largest segments are the padding behind a stream, in pieces of a megabyte, and extended
/// headers, of which the reader of containers-storage takes a megabyte as well.
const LINE_LIMIT: u64 = 16 << 20;
/// Read at a time: between two pieces a job can be cancelled.
const PIECE: usize = 256 << 10;
/// Of one layer so many files are named: a lost disk would name all.
const NAMED: usize = 20;
const BLOCK: usize = 512;
/// The prefix of the files that stand for removed ones.
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Called with the bytes that were read since it was called last. It ends the work by failing.
pub(super) type Tick<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// How closely files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// The digest of the whole.
    Digest,
    /// Each file's checksum as well, to name what is damaged: twice the work.
    EachFile,
}

/// What there is of a layer.
#[derive(Debug)]
pub(super) struct Layer {
    /// The digest of the stream; `None` where there are holes in it.
    pub digest: Option<Digest>,
    /// What is wrong, with the file where it is one's.
    pub damage: Vec<(Option<String>, String)>,
    /// Whether files were archived as sparse. What of them was left out is kept nowhere: such a stream cannot be put
    /// together again, and only the checksums of its files tell anything.
    pub sparse: bool,
}

impl Layer {
    fn wrong(&mut self, path: &[u8], why: impl Into<String>) {
        match self.damage.len() {
            0..NAMED => {
                let path = String::from_utf8_lossy(path);
                self.damage.push((Some(format!("/{}", path.trim_start_matches('/'))), why.into()));
            }
            NAMED => self.damage.push((None, "has more damaged files".into())),
            _ => {}
        }
    }
}

#[derive(serde::Deserialize)]
struct Line {
    r#type: u8,
    name: Option<String>,
    /// Base64 of a name that is not UTF-8.
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    payload: Option<String>,
}

/// Reassembles the stream that `split` (a `tar-split.gz`) and the files below `root` are.
///
/// Damage is part of the answer. An error means that nothing can be said.
pub(super) fn reassemble(split: impl Read, root: &Path, look: Look, tick: Tick<'_>) -> Result<Layer> {
    let root = Root::open(root)?;
    let mut layer = Layer { digest: None, damage: Vec::new(), sparse: false };
    let mut hash = sha2::Sha256::new();
    let mut lines = BufReader::with_capacity(PIECE, flate2::read::MultiGzDecoder::new(split));
    let mut headers = Headers::default();
    let (mut line, mut content) = (Vec::new(), vec![0; PIECE]);
    let mut holes = false;
    loop {
        line.clear();
        let read = lines.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line);
        let entry = match read {
            Ok(0) => break,
            Ok(n) if n as u64 == LINE_LIMIT => Err("has a line that is too long".to_owned()),
            Ok(_) => Entry::parse(&line),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => {
                // Where the next entry begins is not known any more.
                layer.damage.push((None, format!("has a list of contents (tar-split) that {why}")));
                return Ok(layer);
            }
        };
        match entry {
            Entry::Raw(bytes) => {
                tick(bytes.len() as u64)?;
                hash.update(&bytes);
                headers.push(&bytes);
            }
            Entry::File { name, size, checksum } => {
                let header = headers.entry(size);
                layer.sparse |= header.as_ref().is_some_and(|h| h.sparse);
                if size == 0 {
                    if let Some(why) = header.and_then(|h| root.lacks(&name, &h)) {
                        layer.wrong(&name, why);
                    }
                    continue;
                }
                let mut crc = (look == Look::EachFile || layer.sparse).then(Crc::default);
                let copied = root.content(&name, size, &mut content, |piece| {
                    tick(piece.len() as u64)?;
                    hash.update(piece);
                    crc.iter_mut().for_each(|crc| crc.update(piece));
                    Ok(())
                })?;
                match (copied, crc) {
                    (Err(why), _) => {
                        holes = true;
                        layer.wrong(&name, why);
                    }
                    (Ok(()), Some(crc)) if checksum.is_some_and(|expected| crc.sum() != expected) => {
                        layer.wrong(&name, "has other content");
                    }
                    (Ok(()), _) => {}
                }
            }
        }
    }
    if !holes && !layer.sparse {
        layer.digest = Some(Digest::finished(hash));
    }
    Ok(layer)
}

/// A line, decoded.
enum Entry {
    Raw(Vec<u8>),
    File { name: Vec<u8>, size: u64, checksum: Option<u64> },
}

impl Entry {
    fn parse(line: &[u8]) -> Result<Entry, String> {
        let odd = |what: &str| format!("has {what}");
        let line: Line = serde_json::from_slice(line).map_err(|_| odd("a line that is damaged"))?;
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
        let payload = line.payload.as_deref().map(|p| base64(p).ok_or_else(|| odd("damaged bytes")));
        let payload = payload.transpose()?;
        match line.r#type {
            1 => {
                let name = match (line.name, line.name_raw) {
                    (Some(name), _) => name.into_bytes(),
                    (None, Some(raw)) => base64(&raw).ok_or_else(|| odd("a damaged name"))?,
                    (None, None) => return Err(odd("an entry without a name")),
                };
                let checksum = payload.and_then(|p| p.try_into().ok()).map(u64::from_be_bytes);
                Ok(Entry::File { name, size: line.size, checksum })
            }
            2 => Ok(Entry::Raw(payload.unwrap_or_default())),
            _ => Err(odd("an entry of an unknown kind")),
        }
    }
}

/// What the header of an entry says.
struct Header {
    kind: tar::EntryType,
    /// Whether holes of the file are left out of the stream.
    sparse: bool,
    /// The bytes in the stream, padding apart.
    size: u64,
    target: Option<Vec<u8>>,
}

/// No header is larger, with its long names and attributes.
const MAX_HEADER: usize = 4 << 20;

/// Finds the header of each entry in the raw bytes before it.
///
/// What cannot be read is passed over: these bytes are part of the digest, and nothing else depends on them but which of
/// the entries without content are looked for.
#[derive(Default)]
struct Headers {
    raw: Vec<u8>,
    /// The padding behind the entry before.
    padding: usize,
}

impl Headers {
    fn push(&mut self, bytes: &[u8]) {
        // Behind the end of an archive there may be any amount of zeros.
        let room = MAX_HEADER.saturating_sub(self.raw.len()).min(bytes.len());
        self.raw.extend_from_slice(&bytes[..room]);
    }

    /// The header in the bytes since the last entry, whose file has this size.
    fn entry(&mut self, size: u64) -> Option<Header> {
        let raw = std::mem::take(&mut self.raw);
        let header = raw.get(self.padding..).and_then(|raw| Headers::read(raw, size));
        let size = header.as_ref().map_or(size, |h| h.size);
        self.padding = usize::try_from(size % BLOCK as u64).map_or(0, |rest| (BLOCK - rest) % BLOCK);
        header
    }

    fn read(raw: &[u8], size: u64) -> Option<Header> {
        let mut archive = tar::Archive::new(raw);
        let mut entry = archive.entries().ok()?.next()?.ok()?;
        let mut kind = entry.header().entry_type();
        // Before there were types a slash said it.
        if kind == tar::EntryType::Regular && size == 0 && entry.path_bytes().ends_with(b"/") {
            kind = tar::EntryType::Directory;
        }
        let mut target = entry.link_name_bytes().map(|t| t.into_owned());
        let mut sparse = kind == tar::EntryType::GNUSparse;
        for one in entry.pax_extensions().ok().flatten().into_iter().flatten().flatten() {
            sparse |= one.key_bytes().starts_with(b"GNU.sparse.");
            if one.key_bytes() == b"linkpath" {
                target = Some(one.value_bytes().to_vec());
            }
        }
        // Of most that has no content the size that the header says means nothing.
        let size = match kind {
            // The size of the entry is that of the file, with its holes.
            tar::EntryType::GNUSparse => entry.header().entry_size().ok()?,
            _ if sparse || kind.is_pax_global_extensions() => entry.size(),
            _ => size,
        };
        Some(Header { kind, sparse, size, target })
    }
}

/// Looking at what lies in the directory of a layer.
impl Root {
    /// Hands out the content of a file, which must be this long. The inner error is damage.
    fn content(
        &self,
        name: &[u8],
        size: u64,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Result<(), String>> {
        let Some(path) = unpacked(name) else { return Ok(Err("leads out of its layer".into())) };
        // Where a pipe or a device is in its place, opening it must neither wait nor act.
        let opened = self.at(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY);
        let opened = opened.and_then(|fd| rustix::fs::fstat(&fd).map(|stat| (fd, stat)));
        let (fd, stat) = match opened {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(lost(error))),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(Err("is no file any more".into()));
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            return Ok(Err(format!("has {} bytes, not {size}", stat.st_size)));
        }
        let mut file = std::fs::File::from(fd);
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            match file.read(&mut buffer[..most]) {
                Ok(0) => return Ok(Err(format!("ends {left} bytes early"))),
                Ok(n) => {
                    take(&buffer[..n])?;
                    left -= n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(format!("cannot be read: {error}"))),
            }
        }
        Ok(Ok(()))
    }

    /// Why an entry without content is not there as its header says.
    fn lacks(&self, name: &[u8], header: &Header) -> Option<String> {
        let path = unpacked(name)?;
        let is_whiteout = path.rsplit(|b| *b == b'/').next().is_some_and(|last| last.starts_with(WHITEOUT));
        if is_whiteout || path == b"." {
            return None;
        }
        let expected = match header.kind {
            tar::EntryType::Regular => FileType::RegularFile,
            tar::EntryType::Directory => FileType::Directory,
            tar::EntryType::Symlink => FileType::Symlink,
            tar::EntryType::Fifo => FileType::Fifo,
            tar::EntryType::Link => return self.unlinked(&path, header),
            // Devices are not made everywhere; the rest is nothing that lies on a disk.
            _ => return None,
        };
        let stat = match self.stat(&path) {
            Ok(stat) => stat,
            Err(error) => return Some(lost(error)),
        };
        if FileType::from_raw_mode(stat.st_mode) != expected {
            return Some("is something else".into());
        }
        if expected == FileType::RegularFile && stat.st_size != 0 {
            return Some(format!("has {} bytes, not 0", stat.st_size));
        }
        if expected == FileType::Symlink {
            let target =
                self.at(&path, OFlags::PATH).and_then(|fd| rustix::fs::readlinkat(fd, "", Vec::new()));
            if target.ok().map(|t| t.into_bytes()) != header.target {
                return Some("is a link to something else".into());
            }
        }
        None
    }

    /// Why a hard link is not the file that it should be.
    fn unlinked(&self, path: &[u8], header: &Header) -> Option<String> {
        let stat = match self.stat(path) {
            Ok(stat) => stat,
            Err(error) => return Some(lost(error)),
        };
        let target = header.target.as_deref().and_then(unpacked)?;
        // One in a layer below is that layer's.
        let other = self.stat(&target).ok()?;
        let same = (stat.st_dev, stat.st_ino) == (other.st_dev, other.st_ino);
        (!same).then(|| format!("is not the same file as /{}", String::from_utf8_lossy(&target)))
    }
}

fn lost(error: Errno) -> String {
    match error {
        Errno::NOENT | Errno::NOTDIR => "is missing".into(),
        // With O_NOFOLLOW, of a link in place of the file.
        Errno::LOOP => "is no file any more".into(),
        error => format!("cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests;
