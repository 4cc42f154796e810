//! tar-split: all of a tar stream that is not the content of a file, written while the stream is read.
//!
//! One JSON object a line, as github.com/vbatts/tar-split has them; [`super::super::tarsplit`] reads them.

use super::shown;
use crate::bound::root::unpacked;
use crate::model::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// More raw bytes than this become several lines.
const PIECE: usize = 1 << 20;
const BUFFER: usize = 64 << 10;

/// A reader of a tar stream, what is read through which is kept.
pub(super) struct Split<R> {
    inner: R,
    out: GzEncoder<BufWriter<File>>,
    raw: Vec<u8>,
    keeps: bool,
    position: u64,
    /// Where the entries so far lie.
    seen: HashSet<Vec<u8>>,
    /// The bytes that were read.
    read: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    r#type: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_raw: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: Option<String>,
    position: u64,
}

impl<R: Read> Split<R> {
    /// Begins the file, which is not there yet.
    pub(super) fn create(inner: R, path: &Path) -> Result<Split<R>> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.doing_with(|| format!("creating {}", path.display()))?;
        let out = GzEncoder::new(BufWriter::with_capacity(BUFFER, file), Compression::fast());
        let (raw, seen) = (Vec::new(), HashSet::new());
        Ok(Split { inner, out, raw, keeps: true, position: 0, seen, read: 0 })
    }

    /// Whether what is read from now on is kept. The content of a file is not: the file has it.
    pub(super) fn keep(&mut self, yes: bool) -> io::Result<()> {
        self.keeps = yes;
        self.flush()
    }

    /// Writes down an entry, of which everything was read. `crc` is that of its content, if it has any.
    ///
    /// A second one in the same place is refused: one file cannot be the content of both.
    pub(super) fn entry(&mut self, name: &[u8], size: u64, crc: Option<u64>) -> io::Result<()> {
        self.flush()?;
        if !self.seen.insert(unpacked(name).unwrap_or_else(|| name.to_vec())) {
            let why = format!("{} is in the archive twice", shown(name));
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let text = std::str::from_utf8(name).ok();
        self.line(&Line {
            r#type: 1,
            name: text,
            name_raw: text.is_none().then(|| STANDARD.encode(name)),
            size: Some(size).filter(|size| *size > 0),
            payload: crc.map(|crc| STANDARD.encode(crc.to_be_bytes())),
            position: self.position,
        })
    }

    /// Reads what is behind the archive, to its end, and closes the file. Returns the bytes of the whole stream.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        io::copy(&mut self, &mut io::sink())?;
        self.flush()?;
        self.out.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(self.read)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let payload = Some(STANDARD.encode(&self.raw));
        self.raw.clear();
        let position = self.position;
        self.line(&Line { r#type: 2, name: None, name_raw: None, size: None, payload, position })
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.position += 1;
        self.out.write_all(b"\n")
    }
}

impl<R: Read> Read for Split<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.read += n as u64;
        if self.keeps {
            self.raw.extend_from_slice(&buf[..n]);
            if self.raw.len() >= PIECE {
                self.flush()?;
            }
        }
        Ok(n)
    }
}
