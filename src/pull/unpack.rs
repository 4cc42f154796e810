//! From the bytes of a blob to its tar stream, on a thread of its own.
//!
//! ```text
//!  spool ─► SHA-256 ─► decompress ─► SHA-256 ══ a few blocks ══► entries ─► objects
//!           blob                     diff id      (bounded)       the caller's thread
//! ```
//!
//! The second hash is for layers that are files. What carries an ostree commit is a list of objects, each of which has its
//! own checksum.
//!
//! So download, decompression and hashing of one layer overlap with the writing of its objects, also where an image has
//! one layer only. What is in flight is bounded by the number and size of the blocks.

use super::gunzip::Gunzip;
use super::pulse;
use super::types::Layer;
use crate::model::image::Digest;
use crate::model::{Context, Error, ErrorKind, Result};
use sha2::Digest as _;
use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Large enough that handing one over costs nothing beside filling it.
const BLOCK: usize = 256 << 10;
/// How many blocks may wait.
const WAITING: usize = 4;

/// The tar stream of a layer. Ends without an error only if all of it was good.
#[derive(Debug)]
pub(crate) struct Tar {
    blocks: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    at: usize,
    spent: Sender<Vec<u8>>,
}

impl Read for Tar {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            match self.blocks.recv() {
                Ok(block) => {
                    let spent = std::mem::replace(&mut self.block, block?);
                    self.at = 0;
                    // The other side may have ended already.
                    drop(self.spent.send(spent));
                }
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.block.len() - self.at);
        buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// What is verified of a blob, beside its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The digest of the uncompressed stream.
    Files,
    /// Nothing: whoever reads it verifies every object.
    Objects,
}

/// How a blob is compressed, as its first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What a blob turned out to be.
#[derive(Debug)]
struct Found {
    blob: Digest,
    bytes: u64,
    compression: Compression,
    stream: Stream,
}

/// How far the uncompressed stream came.
#[derive(Debug)]
enum Stream {
    BrokeOff,
    Ended,
    Hashed(Digest),
}

/// The thread that unpacks.
#[derive(Debug)]
#[must_use = "nothing is verified before verify()"]
pub(crate) struct Unpacking(JoinHandle<io::Result<Found>>);

/// Starts to unpack a blob.
pub(crate) fn start(blob: impl Read + Send + 'static, content: Content) -> Result<(Tar, Unpacking)> {
    let (to_reader, blocks) = sync_channel(WAITING);
    let (spent, back) = channel();
    let thread = std::thread::Builder::new().name("unpack".into());
    let thread = thread.spawn(move || unpack(blob, content, &to_reader, &back)).doing("starting a thread")?;
    Ok((Tar { blocks, block: Vec::new(), at: 0, spent }, Unpacking(thread)))
}

impl Unpacking {
    /// Waits for the end of the blob and compares what was found with what the manifest says. `read` is what became of
    /// the tar stream, which the caller has read to its end, or given up: a damaged blob is the cause of that, too.
    ///
    /// `name` is the digest of the bytes that were unpacked, `size` how many they must be, where that is known.
    pub(super) fn verify(
        self,
        layer: &Layer,
        name: &Digest,
        size: Option<u64>,
        read: Result<()>,
    ) -> Result<()> {
        match self.found(&layer.digest, name, size, read)? {
            (None, _) => Ok(()),
            (Some(found), _) if found == layer.diff_id => Ok(()),
            (Some(found), _) => Err(mismatch("uncompressed layer", &layer.diff_id, &found)),
        }
    }

    /// As [`Unpacking::verify`], for who knows the digest of the stream later: returns it, if it was asked for, with what the
    /// blob was compressed by. `layer` is what the layer is called in messages.
    pub(crate) fn found(
        self,
        layer: &Digest,
        name: &Digest,
        size: Option<u64>,
        read: Result<()>,
    ) -> Result<(Option<Digest>, Compression)> {
        let ended = self.0.join().map_err(|_| Error::new(ErrorKind::Internal, "a thread panicked"))?;
        let found = match ended {
            Ok(found) => found,
            // The transfer broke off, and says why itself; the archive could only say that it ends early.
            Err(error) => return Err(cause(layer, error)),
        };
        if found.blob != *name {
            return Err(mismatch("blob", name, &found.blob));
        }
        if let Some(size) = size.filter(|size| *size != found.bytes) {
            return Err(Error::new(
                ErrorKind::DigestMismatch,
                format!(
                    "blob {name} has {} bytes and the manifest says {size}; the running system is unchanged",
                    found.bytes
                ),
            ));
        }
        read.map_err(|e| in_layer(layer, e))?;
        match found.stream {
            Stream::Ended => Ok((None, found.compression)),
            Stream::Hashed(digest) => Ok((Some(digest), found.compression)),
            Stream::BrokeOff => {
                Err(Error::new(ErrorKind::Internal, format!("layer {name} was not read to its end")))
            }
        }
    }
}

fn unpack(
    blob: impl Read + Send,
    content: Content,
    blocks: &SyncSender<io::Result<Vec<u8>>>,
    spent: &Receiver<Vec<u8>>,
) -> io::Result<Found> {
    let mut blob = Hashing::new(blob);
    let (compression, stream) = stream(BufReader::with_capacity(BLOCK, &mut blob), content, blocks, spent);
    // Bytes behind the compressed stream belong to the blob's digest. Where unpacking failed, the cause may be a damaged
    // blob: its digest says so, if the rest of it can be had.
    io::copy(&mut blob, &mut io::sink())?;
    let (bytes, blob) = blob.finish();
    Ok(Found { bytes, blob, compression, stream })
}

/// Sends the uncompressed stream.
fn stream(
    blob: impl io::BufRead + Send,
    content: Content,
    blocks: &SyncSender<io::Result<Vec<u8>>>,
    spent: &Receiver<Vec<u8>>,
) -> (Compression, Stream) {
    let fail = |error: io::Error| {
        // Nobody listens any more only if the reader has an error of its own.
        drop(blocks.send(Err(error)));
        Stream::BrokeOff
    };
    let (compression, mut tar) = match decompressor(blob) {
        Ok(tar) => tar,
        Err(error) => return (Compression::None, fail(error)),
    };
    let mut hash = (content == Content::Files).then(sha2::Sha256::new);
    loop {
        let mut block = spent.try_recv().unwrap_or_default();
        block.clear();
        block.reserve_exact(BLOCK);
        match (&mut tar).take(BLOCK as u64).read_to_end(&mut block) {
            Ok(0) => {
                let ended = hash.map_or(Stream::Ended, |hash| Stream::Hashed(Digest::finished(hash)));
                return (compression, ended);
            }
            Ok(_) => hash.iter_mut().for_each(|hash| hash.update(&block)),
            Err(error) => return (compression, fail(error)),
        }
        if blocks.send(Ok(block)).is_err() {
            return (compression, Stream::BrokeOff);
        }
    }
}

/// Chooses by the first bytes: manifests are not always right about the compression, and the digests decide.
fn decompressor<'a>(
    mut blob: impl io::BufRead + Send + 'a,
) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let start = blob.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        (Compression::Gzip, Box::new(Gunzip::new(blob)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || start.starts_with(&[0x50, 0x2a, 0x4d, 0x18]) {
        // The second magic is a skippable frame, which zstd:chunked may start with.
        (Compression::Zstd, Box::new(zstd::stream::read::Decoder::with_buffer(blob)?))
    } else {
        (Compression::None, Box::new(blob))
    })
}

/// Hashes what is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    hash: sha2::Sha256,
    count: u64,
}

impl<R> Hashing<R> {
    /// Hashes nothing yet.
    pub(super) fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hash: sha2::Sha256::new(), count: 0 }
    }

    /// How many bytes were read, and their digest.
    pub(super) fn finish(self) -> (u64, Digest) {
        (self.count, Digest::finished(self.hash))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n > 0 {
            pulse::tick();
        }
        self.hash.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// The error that a reader passed through the standard library's type, or one around it.
fn cause(layer: &Digest, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => in_layer(layer, super::layer::malformed("its blob cannot be read", error)),
    }
}

fn in_layer(layer: &Digest, error: Error) -> Error {
    let mut outer =
        Error::new(error.kind, format!("layer {layer} cannot be imported; the running system is unchanged"));
    outer.hint = error.hint.clone();
    outer.details = error.details.clone();
    outer.source(error)
}

fn mismatch(what: &str, want: &Digest, found: &Digest) -> Error {
    Error::new(
        ErrorKind::DigestMismatch,
        format!("{what} {want} arrived with the digest {found}; the running system is unchanged"),
    )
    .detail("expected", want)
    .detail("found", found)
}
