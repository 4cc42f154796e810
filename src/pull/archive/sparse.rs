//! Files that were archived without their holes, in each of the forms that GNU tar writes.

use super::{BLOCK, bad, unsupported};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};

/// A sparse file with more pieces than this is not one that anybody made on purpose.
const MAX_PIECES: usize = 1 << 16;
/// What the keys of the PAX formats begin with.
const PREFIX: &[u8] = b"GNU.sparse.";
/// All pieces in one value: version 0.1.
const MAP: &[u8] = b"GNU.sparse.map";
/// The pieces of version 0.0, with a record for each number.
const ONE_BY_ONE: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];

/// Records of a PAX header, by key.
pub(super) type Pax = BTreeMap<Vec<u8>, Vec<u8>>;

/// Where the data of a sparse file lies in it.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// Offset and length of each piece; none overlaps the one before.
    pub pieces: Vec<(u64, u64)>,
    /// The size of the file.
    pub size: u64,
    end: u64,
}

/// Whether an entry with these records is sparse.
pub(super) fn is_sparse(pax: &Pax) -> bool {
    pax.keys().any(|key| key.starts_with(PREFIX))
}

/// Takes a record that says one number of many. Returns whether it was one.
pub(super) fn collect(pax: &mut Pax, key: &[u8], value: &[u8]) -> bool {
    let known = ONE_BY_ONE.contains(&key);
    if known {
        let map = pax.entry(MAP.to_vec()).or_default();
        if !map.is_empty() {
            map.push(b',');
        }
        map.extend_from_slice(value);
    }
    known
}

/// The name of a sparse file: what stands in its place in the header is made up.
pub(super) fn name(pax: &Pax) -> Option<&Vec<u8>> {
    pax.get(&b"GNU.sparse.name"[..])
}

impl Map {
    fn add(&mut self, offset: u64, length: u64) -> io::Result<()> {
        if offset < self.end || self.pieces.len() >= MAX_PIECES {
            return Err(bad("a sparse file whose pieces overlap"));
        }
        self.end = offset.checked_add(length).ok_or_else(|| bad("a sparse file of absurd size"))?;
        self.pieces.push((offset, length));
        Ok(())
    }

    /// The map, if its pieces are what is stored and lie in the file.
    fn checked(mut self, size: u64, stored: u64) -> io::Result<Map> {
        if self.end > size {
            return Err(bad("a sparse file whose pieces lie behind its end"));
        }
        if self.pieces.iter().map(|piece| piece.1).sum::<u64>() != stored {
            return Err(bad("a sparse file whose pieces do not add up"));
        }
        self.size = size;
        Ok(self)
    }

    /// That of an old GNU header, which may go on in blocks of its own. `stored` is how much of the file is in the archive.
    pub(super) fn of_header(
        header: &tar::Header,
        stored: u64,
        mut block: impl FnMut() -> io::Result<Option<[u8; BLOCK]>>,
    ) -> io::Result<Map> {
        let gnu = header.as_gnu().ok_or_else(|| bad("a sparse file without a GNU header"))?;
        let mut map = Map::default();
        let mut add = |piece: &tar::GnuSparseHeader| {
            if piece.is_empty() { Ok(()) } else { map.add(piece.offset()?, piece.length()?) }
        };
        gnu.sparse.iter().try_for_each(&mut add)?;
        let mut more = gnu.is_extended();
        while more {
            let block = block()?.ok_or_else(|| bad("a sparse file without its map"))?;
            let mut extended = tar::GnuExtSparseHeader::new();
            extended.as_mut_bytes().copy_from_slice(&block);
            extended.sparse.iter().try_for_each(&mut add)?;
            more = extended.is_extended();
        }
        map.checked(gnu.real_size()?, stored)
    }

    /// That of PAX records, or, since version 1.0, of the first blocks of `data`, of which `stored` bytes are in the archive.
    pub(super) fn of_pax(pax: &Pax, stored: u64, data: &mut impl Read) -> io::Result<Map> {
        let text = |key: &str| pax.get(&[PREFIX, key.as_bytes()].concat());
        let number = |key: &str| text(key).and_then(|value| decimal(value));
        let size = || number("realsize").or_else(|| number("size"));
        let size = || size().ok_or_else(|| bad("a sparse file in PAX format without its size"));
        match (number("major").unwrap_or(0), number("minor").unwrap_or(0)) {
            (0, 0 | 1) => {
                let map = pax.get(MAP).ok_or_else(|| bad("a sparse file without its map"))?;
                let mut numbers = map.split(|byte| *byte == b',');
                Map::of_numbers(|| Ok(numbers.next().and_then(decimal)), None)?.checked(size()?, stored)
            }
            (1, 0) => {
                let mut lines = Lines { data, block: Vec::new(), at: 0, read: 0 };
                let count = lines.number()?.ok_or_else(|| bad("a sparse file without its map"))?;
                let map = Map::of_numbers(|| lines.number(), Some(count))?;
                let rest = stored.checked_sub(lines.read).ok_or_else(|| bad("a sparse file that is cut"))?;
                map.checked(size()?, rest)
            }
            (major, minor) => {
                Err(unsupported(format!("a sparse file in the unknown format {major}.{minor} of PAX")))
            }
        }
    }

    /// A map of pairs of numbers: so many, or as long as there are any.
    fn of_numbers(mut next: impl FnMut() -> io::Result<Option<u64>>, count: Option<u64>) -> io::Result<Map> {
        let mut map = Map::default();
        let mut left = count.unwrap_or(u64::MAX);
        while left > 0 {
            let Some(offset) = next()? else { break };
            let length = next()?.ok_or_else(|| bad("a sparse file whose map is cut"))?;
            map.add(offset, length)?;
            left -= 1;
        }
        if count.is_some() && left > 0 { Err(bad("a sparse file whose map is cut")) } else { Ok(map) }
    }
}

/// The numbers at the start of a file's data, a line each, filled up to whole blocks.
struct Lines<'a, R> {
    data: &'a mut R,
    block: Vec<u8>,
    at: usize,
    /// The bytes of the map so far.
    read: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> io::Result<Option<u64>> {
        let mut line = Vec::new();
        loop {
            if self.at == self.block.len() {
                self.block.resize(BLOCK, 0);
                self.data.read_exact(&mut self.block)?;
                self.at = 0;
                self.read += BLOCK as u64;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => {
                    return decimal(&line).map(Some).ok_or_else(|| bad("a sparse file with a damaged map"));
                }
                // No number has more digits.
                byte if line.len() < 20 => line.push(byte),
                _ => return Err(bad("a sparse file with a damaged map")),
            }
        }
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The pieces of a sparse file, with zeros between them.
pub(super) struct Filled<R> {
    data: R,
    pieces: VecDeque<(u64, u64)>,
    at: u64,
    size: u64,
}

impl<R> Filled<R> {
    pub(super) fn new(data: R, pieces: &[(u64, u64)], size: u64) -> Filled<R> {
        Filled { data, pieces: pieces.iter().copied().collect(), at: 0, size }
    }
}

impl<R: Read> Read for Filled<R> {
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
