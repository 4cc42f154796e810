//! Reads the entries of a tar stream, with every header extension that changes an entry.
//!
//! The tar crate splits PAX records at newlines, so that a binary extended attribute with a newline in it
//! disappears and takes the record's size with it. Here records are read by their length.

mod sparse;

use sparse::{Filled, Map};
use std::collections::BTreeMap;
use std::io::{self, Read};

const BLOCK: usize = 512;
/// Far more than any real PAX header or long name; they are held in memory.
const MAX_EXTENSION: u64 = 1 << 20;
/// All that Linux can hold in one attribute (XATTR_SIZE_MAX); more than file systems take in all.
const MAX_XATTRS: usize = 64 << 10;
/// All extended headers of one entry together.
const MAX_EXTENSIONS: u64 = 4 << 20;
/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    /// A hard link to an earlier path.
    Link(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// The header of one entry, with its extensions applied.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// When it was changed: seconds since 1970, which may be before, and nanoseconds.
    pub mtime: (i64, u32),
    /// The size of the file as it will be read, holes included.
    pub size: u64,
    /// By name, without the prefix of the PAX key.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The pieces of data in a sparse file: offset and length.
    pieces: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// Whether the stored bytes are not the content.
    pub(crate) fn is_sparse(&self) -> bool {
        self.pieces.is_some()
    }
}

/// The name of a global header, which describes no entry.
pub(crate) type Global<'a, R> = &'a mut dyn FnMut(&mut R, &[u8]) -> io::Result<()>;

/// The entries of a tar stream.
#[derive(Debug)]
pub(crate) struct Archive<R> {
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
    pub(crate) fn new(inner: R) -> Self {
        Archive { inner, data: 0, padding: 0 }
    }

    /// The stream, to look at: who reads from it takes the archive out of step.
    pub(crate) fn inner(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The stream behind the last entry that was read.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry; the rest of the current one is skipped.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.next_and_global(&mut |_, _| Ok(()))
    }

    /// As [`Archive::next`]; `global` is called behind each global header, with its name.
    pub(crate) fn next_and_global(&mut self, global: Global<'_, R>) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        let mut read = 0_u64;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header.as_old().size, header.entry_size())?;
            match header.entry_type() {
                // Global headers carry comments of tools such as git; none of them describes an entry.
                tar::EntryType::XGlobalHeader => {
                    self.set_data(size)?;
                    io::copy(&mut Data(self), &mut io::sink())?;
                    global(&mut self.inner, &header.path_bytes())?;
                    continue;
                }
                tar::EntryType::XHeader => {
                    let bytes = self.extension(size)?;
                    parse_pax(&bytes, &mut extensions.pax)?;
                }
                tar::EntryType::GNULongName => extensions.long_path = Some(until_nul(self.extension(size)?)),
                tar::EntryType::GNULongLink => extensions.long_link = Some(until_nul(self.extension(size)?)),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
            read = read.saturating_add(size);
            if read > MAX_EXTENSIONS {
                return Err(bad("extended headers of absurd size"));
            }
        }
    }

    /// The content of the current entry, which must be the one that [`Archive::next`] returned last.
    pub(crate) fn content<'a>(&'a mut self, entry: &Entry) -> Box<dyn Read + 'a> {
        match &entry.pieces {
            None => Box::new(Data(self)),
            Some(pieces) => Box::new(Filled::new(Data(self), pieces, entry.size)),
        }
    }

    /// The content of the current entry, which is no sparse one, as a reader that owns the archive.
    pub(crate) fn into_data(self) -> OwnedData<R> {
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
        let record = |key: &[u8]| -> io::Result<Option<u64>> {
            let Some(value) = ext.pax.get(key) else { return Ok(None) };
            let text = std::str::from_utf8(value).ok();
            text.and_then(|t| t.parse().ok()).map(Some).ok_or_else(|| bad("a PAX number that is none"))
        };
        let id = |value: u64| u32::try_from(value).map_err(|_| bad("an owner that does not fit"));
        let stored = record(b"size")?.unwrap_or(size);
        let sparse = sparse::is_sparse(&ext.pax);
        let path = sparse::name(&ext.pax).or_else(|| ext.pax.get(&b"path"[..])).cloned().or(ext.long_path);
        let link = ext.pax.get(&b"linkpath"[..]).cloned().or(ext.long_link);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            || link.clone().or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        let (uid, gid) = (record(b"uid")?, record(b"gid")?);
        let uid = id(match uid {
            Some(uid) => uid,
            None => number(&header.as_old().uid, header.uid())?,
        })?;
        let gid = id(match gid {
            Some(gid) => gid,
            None => number(&header.as_old().gid, header.gid())?,
        })?;
        let mut map = None;
        let kind = match header.entry_type() {
            tar::EntryType::Directory => Kind::Directory,
            // Old archives mark directories only by the slash.
            tar::EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                self.set_data(stored)?;
                map = if sparse { Some(Map::of_pax(&ext.pax, stored, &mut Data(self))?) } else { None };
                Kind::File
            }
            tar::EntryType::GNUSparse => {
                map = Some(Map::of_header(header, stored, || self.block())?);
                self.set_data(stored)?;
                Kind::File
            }
            tar::EntryType::Symlink => Kind::Symlink(link()),
            tar::EntryType::Link => Kind::Link(link()),
            tar::EntryType::Char => {
                let (major, minor) = device(header)?;
                Kind::Char { major, minor }
            }
            tar::EntryType::Block => {
                let (major, minor) = device(header)?;
                Kind::Block { major, minor }
            }
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
        if kind != Kind::File {
            self.set_data(0)?;
        }
        let (size, pieces) = match map {
            Some(map) => (map.size, Some(map.pieces)),
            None => (if kind == Kind::File { stored } else { 0 }, None),
        };
        let mtime = match ext.pax.get(&b"mtime"[..]) {
            Some(text) => seconds(text).ok_or_else(|| bad("a PAX time that is none"))?,
            // Binary numbers may be negative; the tar crate hands out their last eight bytes.
            None => (number(&header.as_old().mtime, header.mtime())?.cast_signed(), 0),
        };
        let xattrs: BTreeMap<Vec<u8>, Vec<u8>> = ext
            .pax
            .iter()
            .filter_map(|(k, v)| k.strip_prefix(b"SCHILY.xattr.").map(|name| (name.to_vec(), v.clone())))
            .collect();
        if xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_XATTRS {
            return Err(unsupported("extended attributes of more than 64 KiB on one entry"));
        }
        let mode = number(&header.as_old().mode, header.mode())? & 0o7777;
        Ok(Entry { path, kind, mode, uid, gid, mtime, size, xattrs, pieces })
    }
}

/// The stored bytes of the current entry, for who cannot borrow.
#[derive(Debug)]
pub(crate) struct OwnedData<R>(Archive<R>);

impl<R> OwnedData<R> {
    /// The archive, to go on with.
    pub(crate) fn into_archive(self) -> Archive<R> {
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

/// A number of a header. Who has none to say leaves its field empty; to Go's archive/tar, and so podman, that is 0.
fn number<T: Default>(field: &[u8], parsed: io::Result<T>) -> io::Result<T> {
    if field.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(T::default()) } else { parsed }
}

fn device(header: &tar::Header) -> io::Result<(u32, u32)> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (&ustar.dev_major, &ustar.dev_minor),
        (_, Some(gnu)) => (&gnu.dev_major, &gnu.dev_minor),
        (None, None) => return Ok((0, 0)),
    };
    let one = |field: &[u8; 8], parsed: io::Result<Option<u32>>| {
        number(field, parsed).map(Option::unwrap_or_default)
    };
    Ok((one(major, header.device_major())?, one(minor, header.device_minor())?))
}

/// A time of a PAX record: seconds with any number of digits behind the point, of which nine count.
fn seconds(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole.strip_prefix('-').unwrap_or(whole)) || !digits(fraction) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (false, _) | (true, 0) => Some((seconds, nanos)),
        (true, nanos) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
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
        if !sparse::collect(into, key, value) {
            into.insert(key.to_vec(), value.to_vec());
        }
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
    fn an_empty_field_of_a_header_is_the_number_0() {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").unwrap();
        header.set_entry_type(tar::EntryType::Char);
        header.set_cksum();
        let mut archive = Archive::new(&header.as_bytes()[..]);
        let entry = archive.next().unwrap().unwrap();
        assert_eq!((entry.mode, entry.uid, entry.gid, entry.mtime), (0, 0, 0, (0, 0)));
        assert_eq!(entry.kind, Kind::Char { major: 0, minor: 0 });
    }

    #[test]
    fn the_time_of_an_entry_is_the_finest_that_is_said() {
        for (text, expected) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.1234567891", Some((1, 123_456_789))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("1.", Some((1, 0))),
            ("", None),
            ("+1", None),
            ("1.x", None),
            ("1e5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(seconds(text.as_bytes()), expected, "{text}");
        }
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
