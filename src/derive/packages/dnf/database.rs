//! rpm's database without the time of day and the order of installation.
//!
//! `rpmdb --exportdb` writes the header of every package, one after the other, as they are in package files: a magic number, the
//! number of entries, the size of the data, entries of 16 bytes (tag, type, offset, count), data; numbers are big-endian.

use crate::derive::packages::base::{Installed, Package};
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};

const MAGIC: [u8; 8] = [0x8e, 0xad, 0xe8, 0x01, 0, 0, 0, 0];
/// As rpm limits them (hdrchkTags, hdrchkData).
const MAX_ENTRIES: u32 = 0xffff;
const MAX_DATA: u32 = 256 << 20;
const ENTRY: usize = 16;

const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const ARCH: u32 = 1022;
/// When a package was installed, and in which transaction: both are seconds since 1970.
const TIMES: [u32; 2] = [1008, 1128];
const INT32: u32 = 4;

/// Copies headers: those of `before` as they are and in their order, then the others by name, installed at `time`.
pub(super) fn normalise(
    mut from: impl Read,
    mut to: impl Write,
    before: &Installed,
    time: u32,
) -> Result<()> {
    let doing = "writing the package database anew";
    let mut new = BTreeMap::new();
    while let Some(mut header) = Header::read(&mut from)? {
        let package = header.package()?;
        if before.0.contains(&package) {
            header.write(&mut to).doing(doing)?;
        } else {
            TIMES.into_iter().try_for_each(|tag| header.set(tag, time))?;
            new.insert(package, header);
        }
    }
    for header in new.values() {
        header.write(&mut to).doing(doing)?;
    }
    to.flush().doing(doing)
}

struct Header {
    entries: Vec<u8>,
    data: Vec<u8>,
}

impl Header {
    /// The next one, if there is one.
    fn read(from: &mut impl Read) -> Result<Option<Header>> {
        let doing = "reading the package database";
        let mut start = [0; 16];
        let mut have = 0;
        while have < start.len() {
            match from.read(&mut start[have..]).doing(doing)? {
                0 if have == 0 => return Ok(None),
                0 => return Err(strange("it ends early")),
                n => have += n,
            }
        }
        let (entries, size) = (number(&start, 8), number(&start, 12));
        let (Some(entries), Some(size)) = (entries, size) else { return Err(strange("it ends early")) };
        if start[..8] != MAGIC || entries > MAX_ENTRIES || size > MAX_DATA {
            return Err(strange("a header has no sensible beginning"));
        }
        let mut part = |size: usize| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            from.by_ref().take(size as u64).read_to_end(&mut bytes).doing(doing)?;
            if bytes.len() == size { Ok(bytes) } else { Err(strange("it ends early")) }
        };
        let (entries, data) = (part(entries as usize * ENTRY)?, part(size as usize)?);
        Ok(Some(Header { entries, data }))
    }

    fn write(&self, to: &mut impl Write) -> std::io::Result<()> {
        to.write_all(&MAGIC)?;
        for size in [self.entries.len() / ENTRY, self.data.len()] {
            to.write_all(&u32::try_from(size).map_err(std::io::Error::other)?.to_be_bytes())?;
        }
        to.write_all(&self.entries)?;
        to.write_all(&self.data)
    }

    /// Type and place of a tag's data.
    fn find(&self, tag: u32) -> Option<(u32, usize)> {
        let entry = self.entries.chunks_exact(ENTRY).find(|entry| number(entry, 0) == Some(tag))?;
        Some((number(entry, 4)?, number(entry, 8)? as usize))
    }

    fn text(&self, tag: u32) -> Option<String> {
        let (_, at) = self.find(tag)?;
        let bytes = self.data.get(at..)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }

    fn package(&self) -> Result<Package> {
        let text = |tag| self.text(tag).ok_or_else(|| strange("a header has no name"));
        let epoch = match self.find(EPOCH) {
            Some((INT32, at)) => number(&self.data, at).unwrap_or_default(),
            _ => 0,
        };
        let epoch = if epoch == 0 { String::new() } else { format!("{epoch}:") };
        Ok(Package {
            name: text(NAME)?,
            // Public keys have none.
            architecture: self.text(ARCH).unwrap_or_else(|| "(none)".to_owned()),
            version: format!("{epoch}{}-{}", text(VERSION)?, text(RELEASE)?),
        })
    }

    /// Sets a number, if the tag is there.
    fn set(&mut self, tag: u32, value: u32) -> Result<()> {
        let Some((kind, at)) = self.find(tag) else { return Ok(()) };
        match self.data.get_mut(at..at.saturating_add(4)) {
            Some(place) if kind == INT32 => {
                place.copy_from_slice(&value.to_be_bytes());
                Ok(())
            }
            _ => Err(strange("a time in it is no number")),
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn strange(why: &str) -> Error {
    let what = format!("the package database cannot be normalised: {why}; nothing was staged");
    Error::new(ErrorKind::Unsupported, what)
}

/// Tells readers that a database of sqlite has no log beside it: in a tree that cannot be written to, they could not make one.
///
/// Of the file format (<https://www.sqlite.org/fileformat2.html>): the bytes 18 and 19 are 2 with a write-ahead log, else 1.
pub(super) fn leave_wal(tree: &Dir, file: &str) -> Result<()> {
    let doing = "finishing the package database";
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.read(true).write(true).custom_flags(flags.bits().cast_signed());
    let mut file = tree.open_with(file, &options).doing(doing)?.into_std();
    let mut start = [0; 20];
    file.read_exact(&mut start).doing(doing)?;
    if !start.starts_with(b"SQLite format 3\0") {
        return Err(strange("it is not of sqlite"));
    }
    file.seek(SeekFrom::Start(18)).doing(doing)?;
    file.write_all(&[1, 1]).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A header of these tags; texts are strings, the others numbers.
    fn header(texts: &[(u32, &str)], numbers: &[(u32, u32)]) -> Vec<u8> {
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for (tag, number) in numbers {
            entries.extend([*tag, INT32, data.len() as u32, 1].map(u32::to_be_bytes).concat());
            data.extend(number.to_be_bytes());
        }
        for (tag, text) in texts {
            entries.extend([*tag, 6, data.len() as u32, 1].map(u32::to_be_bytes).concat());
            data.extend(text.bytes().chain([0]));
        }
        let sizes = [(entries.len() / ENTRY) as u32, data.len() as u32].map(u32::to_be_bytes).concat();
        [MAGIC.to_vec(), sizes, entries, data].concat()
    }

    fn package(name: &str, epoch: u32, time: u32) -> Vec<u8> {
        let texts = [(NAME, name), (VERSION, "1.0"), (RELEASE, "2"), (ARCH, "noarch")];
        header(&texts, &[(EPOCH, epoch), (1008, time), (1128, time)])
    }

    fn base(name: &str) -> Installed {
        let package = Package { name: name.into(), architecture: "noarch".into(), version: "1.0-2".into() };
        Installed(BTreeSet::from([package]))
    }

    fn normalised(from: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        normalise(from, &mut out, &base("base"), 7).map(|()| out)
    }

    #[test]
    fn what_was_there_stays_and_what_is_new_has_no_time_and_no_order() {
        let one = [package("zsh", 1, 100), package("base", 0, 50), package("agent", 0, 101)].concat();
        let other = [package("base", 0, 50), package("agent", 0, 900), package("zsh", 1, 900)].concat();
        let expected = [package("base", 0, 50), package("agent", 0, 7), package("zsh", 1, 7)].concat();
        assert_eq!(normalised(&one).unwrap(), expected);
        assert_eq!(normalised(&other).unwrap(), expected);
        assert_eq!(normalised(b"").unwrap(), b"");
    }

    #[test]
    fn the_version_has_the_epoch_unless_it_is_none() {
        for (epoch, expected) in [(0, "1.0-2"), (3, "3:1.0-2")] {
            let header = Header::read(&mut package("a", epoch, 1).as_slice()).unwrap().unwrap();
            assert_eq!(header.package().unwrap().version, expected);
        }
        let key = header(&[(NAME, "gpg-pubkey"), (VERSION, "1"), (RELEASE, "2")], &[]);
        let key = Header::read(&mut key.as_slice()).unwrap().unwrap().package().unwrap();
        assert_eq!(key.architecture, "(none)");
    }

    #[test]
    fn what_is_no_header_is_an_error_and_no_panic() {
        let good = package("a", 0, 1);
        for end in 1..good.len() {
            let error = normalised(&good[..end]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{end}");
        }
        let mut far = good.clone();
        // The offset of the first entry.
        far[16 + 8..16 + 12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(normalised(&far).is_ok(), "an epoch that is nowhere is none");
        let time = header(&[(NAME, "a"), (VERSION, "1"), (RELEASE, "1"), (1008, "now")], &[]);
        assert!(normalised(&time).is_err());
        assert!(normalised(b"no header at all, but long enough for one").is_err());
    }

    #[test]
    fn a_database_without_a_log_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Dir::open_ambient_dir(dir.path(), cap_std_ext::cap_std::ambient_authority()).unwrap();
        dir.write("db", b"SQLite format 3\0\x10\x00\x02\x02rest").unwrap();
        leave_wal(&dir, "db").unwrap();
        assert_eq!(dir.read("db").unwrap(), b"SQLite format 3\0\x10\x00\x01\x01rest");
        dir.write("other", b"no database of sqlite").unwrap();
        assert!(leave_wal(&dir, "other").is_err());
        dir.symlink("db", "link").unwrap();
        assert!(leave_wal(&dir, "link").is_err());
    }
}
