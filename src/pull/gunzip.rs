//! gzip, decompressed by zlib-rs.
//!
//! `flate2` can use it as well, but one build has one backend, and a dependency of ours asks for the system's zlib, which takes
//! half as long again. zlib-rs knows the format; what is left is a loop around it.

use std::io::{self, BufRead, Read};
use zlib_rs::{Inflate, InflateFlush, Status};

/// The largest window, and the bit that says that what comes is gzip (zlib's manual, inflateInit2).
const GZIP: u8 = 15 + 16;

/// Decompresses the members of a gzip stream, one behind the other.
pub(super) struct Gunzip<R> {
    inner: R,
    /// `None` between two members.
    member: Option<Inflate>,
    first: bool,
}

impl<R: BufRead> Gunzip<R> {
    pub(super) fn new(inner: R) -> Self {
        Gunzip { inner, member: None, first: true }
    }
}

impl<R: BufRead> Read for Gunzip<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let input = self.inner.fill_buf()?;
            if self.member.is_none() && input.is_empty() && !self.first {
                return Ok(0);
            }
            self.first = false;
            let member = self.member.get_or_insert_with(|| Inflate::new(true, GZIP));
            let (read, written) = (member.total_in(), member.total_out());
            let flush = if input.is_empty() { InflateFlush::Finish } else { InflateFlush::NoFlush };
            let status = member.decompress(input, buf, flush);
            let read = usize::try_from(member.total_in() - read).unwrap_or(usize::MAX);
            let written = usize::try_from(member.total_out() - written).unwrap_or(usize::MAX);
            let stuck = read == 0 && written == 0;
            let ended = input.is_empty();
            self.inner.consume(read);
            match status {
                Ok(Status::StreamEnd) => self.member = None,
                Ok(Status::Ok | Status::BufError) if stuck && ended => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(Status::Ok | Status::BufError) if stuck => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "gzip does not get on"));
                }
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.as_str())),
            }
            if written > 0 {
                return Ok(written);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufReader, Write};

    fn gzip(content: &[u8], level: u32) -> Vec<u8> {
        let mut gz = flate2::GzBuilder::new()
            .filename("name")
            .comment("comment")
            .extra(vec![1, 2, 3])
            .write(Vec::new(), flate2::Compression::new(level));
        gz.write_all(content).unwrap();
        gz.finish().unwrap()
    }

    fn gunzip(bytes: &[u8], buffer: usize) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Gunzip::new(BufReader::with_capacity(buffer, bytes)).read_to_end(&mut content).map(|_| content)
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(
            members in prop::collection::vec((prop::collection::vec(0..4_u8, 0..5000), 0..10_u32), 1..4),
            buffer in 1..3000_usize,
        ) {
            let stream: Vec<u8> = members.iter().flat_map(|(content, level)| gzip(content, *level)).collect();
            let content: Vec<u8> = members.iter().flat_map(|(content, _)| content.clone()).collect();
            prop_assert_eq!(gunzip(&stream, buffer).unwrap(), content);
        }

        #[test]
        fn a_damaged_stream_never_passes(content in prop::collection::vec(any::<u8>(), 1..2000), cut: usize, flip: usize) {
            let stream = gzip(&content, 6);
            prop_assert!(gunzip(&stream[..cut % stream.len()], 100).is_err());
            // Of the checksum and the length, which are the last eight bytes.
            let mut damaged = stream.clone();
            let at = stream.len() - 1 - flip % 8;
            damaged[at] ^= 1;
            prop_assert!(gunzip(&damaged, 100).is_err());
            let long = [&stream[..], b"rest"].concat();
            prop_assert!(gunzip(&long, 100).is_err());
        }
    }
}
