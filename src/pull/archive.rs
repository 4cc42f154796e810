//! Reads the entries of a tar stream, with every header extension that changes an entry.
//!
//! The tar crate splits PAX records at newlines, so that a binary extended attribute with a newline in it
//! disappears and takes the record's size with it. Here records are read by their length.

use std::collections::BTreeMap;
use std::io::{self, Read};

const BLOCK: usize = 512;
/// Far more than any real PAX header or long name; they are held in memory.
const MAX_EXTENSION: u64 = 1 << 20;
/// All that Linux can hold in one attribute (XATTR_SIZE_MAX); more than file systems take in all.
const MAX_XATTRS: usize = 64 << 10;
/// A sparse file with more pieces than this is not one that anybody made on purpose.
const MAX_PIECES: usize = 1 << 16;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    /// A hard link to an earlier path.
    Link(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block,
    Fifo,
}

/// The header of one entry, with its extensions applied.
#[derive(Debug)]
pub(super) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The size of the file as it will be read, holes included.
    pub size: u64,
    /// By name, without the prefix of the PAX key.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The pieces of data in a sparse file: offset and length.
    pieces: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// Whether the stored bytes are not the content.
    pub(super) fn is_sparse(&self) -> bool {
        self.pieces.is_some()
    }
}

/// The entries of a tar stream.
#[derive(Debug)]
pub(super) struct Archive<R> {
    inner: R,
    /// Bytes of the current entry that are still in the stream, padding included.
    data: u64,
    padding: u64,
}

fn bad(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// As [`bad`], for what is right and not read.
fn unsupported(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text.into())
}

#[derive(Default)]
struct Extensions {
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(inner: R) -> Self {
        Archive { inner, data: 0, padding: 0 }
    }

    /// The stream behind the last entry that was read.
    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; the rest of the current one is skipped.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size()?;
            match header.entry_type() {
                tar::EntryType::XHeader => {
                    let bytes = self.extension(size)?;
                    parse_pax(&bytes, &mut extensions.pax)?;
                }
                // Global headers carry comments of tools such as git; none of them describes an entry.
                tar::EntryType::XGlobalHeader => self.set_data(size)?,
                tar::EntryType::GNULongName => extensions.long_path = Some(until_nul(self.extension(size)?)),
                tar::EntryType::GNULongLink => extensions.long_link = Some(until_nul(self.extension(size)?)),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// The content of the current entry, which must be the one that [`Archive::next`] returned last.
    pub(super) fn content<'a>(&'a mut self, entry: &Entry) -> Box<dyn Read + 'a> {
        match &entry.pieces {
            None => Box::new(Data(self)),
            Some(pieces) => {
                let size = entry.size;
                Box::new(Sparse {
                    data: Data(self),
                    pieces: pieces.clone().into_iter().collect(),
                    at: 0,
                    size,
                })
            }
        }
    }

    /// The content of the current entry, which is no sparse one, as a reader that owns the archive.
    pub(super) fn into_data(self) -> OwnedData<R> {
        OwnedData(self)
    }

    fn set_data(&mut self, size: u64) -> io::Result<()> {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        Ok(())
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.data.checked_add(self.padding).ok_or_else(|| bad("an entry of absurd size"))?;
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        if skipped != rest {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside an entry"));
        }
        (self.data, self.padding) = (0, 0);
        Ok(())
    }

    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the archive ends inside a header",
                    ));
                }
                n => filled += n,
            }
        }
        Ok(Some(block))
    }

    fn header(&mut self) -> io::Result<Option<tar::Header>> {
        let Some(block) = self.block()? else { return Ok(None) };
        // One zero block ends an archive; what follows it is only read for the digest.
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        if header.cksum()? != sum {
            return Err(bad("a header with a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad("an extended header of absurd size"));
        }
        self.set_data(size)?;
        let mut bytes = Vec::new();
        Data(self).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn entry(&mut self, header: &tar::Header, size: u64, ext: Extensions) -> io::Result<Entry> {
        if ext.pax.keys().any(|k| k.starts_with(b"GNU.sparse.")) {
            return Err(unsupported(
                "a sparse file in PAX format, which is not supported: write the layer without --sparse",
            ));
        }
        let number = |key: &[u8]| -> io::Result<Option<u64>> {
            let Some(value) = ext.pax.get(key) else { return Ok(None) };
            let text = std::str::from_utf8(value).ok();
            text.and_then(|t| t.parse().ok()).map(Some).ok_or_else(|| bad("a PAX number that is none"))
        };
        let id = |value: u64| u32::try_from(value).map_err(|_| bad("an owner that does not fit"));
        let stored = number(b"size")?.unwrap_or(size);
        let path = ext.pax.get(&b"path"[..]).cloned().or(ext.long_path);
        let link = ext.pax.get(&b"linkpath"[..]).cloned().or(ext.long_link);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            || link.clone().or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        let (uid, gid) = (number(b"uid")?, number(b"gid")?);
        let uid = id(match uid {
            Some(uid) => uid,
            None => header.uid()?,
        })?;
        let gid = id(match gid {
            Some(gid) => gid,
            None => header.gid()?,
        })?;
        let mut pieces = None;
        let mut real = stored;
        let kind = match header.entry_type() {
            tar::EntryType::Directory => Kind::Directory,
            // Old archives mark directories only by the slash.
            tar::EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
            tar::EntryType::GNUSparse => {
                let (map, size) = self.sparse_map(header)?;
                if map.iter().map(|p| p.1).sum::<u64>() != stored {
                    return Err(bad("a sparse file whose pieces do not add up"));
                }
                (pieces, real) = (Some(map), size);
                Kind::File
            }
            tar::EntryType::Symlink => Kind::Symlink(link()),
            tar::EntryType::Link => Kind::Link(link()),
            tar::EntryType::Char => Kind::Char {
                major: header.device_major()?.unwrap_or(0),
                minor: header.device_minor()?.unwrap_or(0),
            },
            tar::EntryType::Block => Kind::Block,
            tar::EntryType::Fifo => Kind::Fifo,
            other => {
                return Err(unsupported(format!(
                    "an entry of the unknown type {:?}",
                    char::from(other.as_byte())
                )));
            }
        };
        // Only files have content. POSIX lets a hard link have it as well, and some writers note a size there without
        // it: as Go's archive/tar, and so podman, the size of anything but a file is ignored.
        let stored = if kind == Kind::File { stored } else { 0 };
        self.set_data(stored)?;
        let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = ext
            .pax
            .iter()
            .filter_map(|(k, v)| k.strip_prefix(b"SCHILY.xattr.").map(|name| (name.to_vec(), v.clone())))
            .collect();
        if xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_XATTRS {
            return Err(unsupported("extended attributes of more than 64 KiB on one entry"));
        }
        Ok(Entry { path, kind, mode: header.mode()? & 0o7777, uid, gid, size: real, xattrs, pieces })
    }

    /// The map of an old GNU sparse file, which may go on in blocks of its own, and its full size.
    fn sparse_map(&mut self, header: &tar::Header) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file without a GNU header"))?;
        let mut map = Vec::new();
        let mut end = 0;
        let mut add = |piece: &tar::GnuSparseHeader| -> io::Result<()> {
            if piece.is_empty() {
                return Ok(());
            }
            let (offset, length) = (piece.offset()?, piece.length()?);
            if offset < end || map.len() >= MAX_PIECES {
                return Err(bad("a sparse file whose pieces overlap"));
            }
            end = offset.checked_add(length).ok_or_else(|| bad("a sparse file of absurd size"))?;
            map.push((offset, length));
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let block = self.block()?.ok_or_else(|| bad("a sparse file without its map"))?;
            let mut extended = tar::GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&block);
            extended.sparse.iter().try_for_each(&mut add)?;
            more = extended.is_extended();
        }
        let size = gnu.real_size()?;
        if end > size {
            return Err(bad("a sparse file whose pieces lie behind its end"));
        }
        Ok((map, size))
    }
}

/// The stored bytes of the current entry, for who cannot borrow.
#[derive(Debug)]
pub(super) struct OwnedData<R>(Archive<R>);

impl<R> OwnedData<R> {
    /// The archive, to go on with.
    pub(super) fn into_archive(self) -> Archive<R> {
        self.0
    }
}

impl<R: Read> Read for OwnedData<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Data(&mut self.0).read(buf)
    }
}

/// The stored bytes of the current entry.
struct Data<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.0.data).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.0.inner.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside an entry"));
        }
        self.0.data -= n as u64;
        Ok(n)
    }
}

/// The pieces of a sparse file, with zeros between them.
struct Sparse<'a, R> {
    data: Data<'a, R>,
    pieces: std::collections::VecDeque<(u64, u64)>,
    at: u64,
    size: u64,
}

impl<R: Read> Read for Sparse<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.pieces.front().is_some_and(|(offset, length)| self.at >= offset + length) {
            self.pieces.pop_front();
        }
        let (hole, left) = match self.pieces.front() {
            Some((offset, length)) if self.at >= *offset => (false, offset + length - self.at),
            Some((offset, _)) => (true, offset - self.at),
            None => (true, self.size - self.at),
        };
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let n = if hole {
            buf[..want].fill(0);
            want
        } else {
            self.data.read(&mut buf[..want])?
        };
        self.at += n as u64;
        Ok(n)
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Reads `<length> <key>=<value>\n` records.
fn parse_pax(mut bytes: &[u8], into: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> io::Result<()> {
    while !bytes.is_empty() && bytes[0] != 0 {
        let record = || -> Option<(&[u8], &[u8], usize)> {
            let space = bytes.iter().position(|b| *b == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|b| *b == b'=')?;
            Some((&record[..equals], &record[equals + 1..], length))
        };
        let (key, value, length) = record().ok_or_else(|| bad("a malformed PAX header"))?;
        into.insert(key.to_vec(), value.to_vec());
        bytes = &bytes[length..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_records_are_read_by_length_and_may_hold_newlines() {
        let mut map = BTreeMap::new();
        parse_pax(b"30 SCHILY.xattr.user.a=x\ny=z\0\n10 path=a\n", &mut map).unwrap();
        assert_eq!(map.get(&b"SCHILY.xattr.user.a"[..]).map(Vec::as_slice), Some(&b"x\ny=z\0"[..]));
        assert_eq!(map.get(&b"path"[..]).map(Vec::as_slice), Some(&b"a"[..]));
        for text in [&b"10 path=ab\n"[..], b"x path=a\n", b"5 a=b", b"99999999999999999999 a=b\n"] {
            assert!(parse_pax(text, &mut BTreeMap::new()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn holes_of_a_sparse_file_are_zeros() {
        let mut header = tar::Header::new_gnu();
        header.set_path("sparse").unwrap();
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_size(6);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o644);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(20);
        for (piece, (offset, length)) in gnu.sparse.iter_mut().zip([(2_u64, 3_u64), (10, 3)]) {
            piece.offset[..12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
            piece.numbytes[..12].copy_from_slice(format!("{length:011o}\0").as_bytes());
        }
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(b"abcdef");
        bytes.resize(3 * BLOCK, 0);
        let mut archive = Archive::new(&bytes[..]);
        let entry = archive.next().unwrap().unwrap();
        let mut content = Vec::new();
        archive.content(&entry).read_to_end(&mut content).unwrap();
        assert_eq!(content, b"\0\0abc\0\0\0\0\0def\0\0\0\0\0\0\0");
        assert!(archive.next().unwrap().is_none());
    }

    #[test]
    fn the_size_of_a_hard_link_is_ignored() {
        let mut link = tar::Header::new_ustar();
        link.set_entry_type(tar::EntryType::Link);
        link.set_path("b").unwrap();
        link.set_link_name("a").unwrap();
        let mut file = tar::Header::new_ustar();
        file.set_path("c").unwrap();
        let mut bytes = Vec::new();
        for (header, size) in [(&mut link, 1000), (&mut file, 0)] {
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(size);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
        }
        let mut archive = Archive::new(&bytes[..]);
        assert_eq!(archive.next().unwrap().unwrap().kind, Kind::Link(b"a".to_vec()));
        assert_eq!(archive.next().unwrap().unwrap().path, b"c");
    }

    #[test]
    fn an_archive_that_ends_early_is_an_error_and_not_the_end() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1000);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, "a", &[7_u8; 1000][..]).unwrap();
        let whole = builder.into_inner().unwrap();
        for length in [100, 512, 700] {
            let mut archive = Archive::new(&whole[..length]);
            let read_all = |archive: &mut Archive<&[u8]>| -> io::Result<()> {
                while archive.next()?.is_some() {}
                Ok(())
            };
            assert!(read_all(&mut archive).is_err(), "{length}");
        }
    }
}
