//! Blobs from where images lie on this machine, through skopeo's proxy. One after the other: the proxy serves one at a
//! time, and a second one would unpack an archive once more.

use super::{Wanted, Word};
use crate::model::image::Transport;
use crate::model::{Context, ErrorKind, Result};
use crate::pull::source::Source;
use crate::pull::types::{FetchOptions, Resolved};
use crate::pull::wire::Failed;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::sync::mpsc::UnboundedReceiver;

/// Fetches what is ordered, then what is asked for again, until nobody asks any more.
pub(super) async fn serve(
    resolved: &Resolved,
    opts: &FetchOptions,
    blobs: Vec<Wanted>,
    spool: OwnedFd,
    say: impl Fn(Word) + Send + Sync,
    mut asked: UnboundedReceiver<usize>,
) {
    let source = match super::open(resolved, opts).await {
        Ok(source) => source,
        Err(error) => {
            let failed = Failed::from(error);
            (0..blobs.len()).for_each(|blob| say(Word::Failed { blob, error: failed.clone() }));
            return;
        }
    };
    let storage = resolved.image.transport == Transport::ContainersStorage;
    let mut next = 0;
    loop {
        let blob = if next < blobs.len() {
            next
        } else {
            match asked.recv().await {
                Some(blob) => blob,
                None => return,
            }
        };
        next += 1;
        let Some(wanted) = blobs.get(blob) else { continue };
        match fetch(&source, blob, wanted, storage, &spool, &say).await {
            Ok(()) => say(Word::Whole { blob }),
            Err(error) => say(Word::Failed { blob, error: Failed::from(error) }),
        }
    }
}

async fn fetch(
    source: &Source,
    blob: usize,
    wanted: &Wanted,
    storage: bool,
    spool: &OwnedFd,
    say: &(impl Fn(Word) + Send + Sync),
) -> Result<()> {
    let doing = || format!("writing blob {} to the spool; the running system is unchanged", wanted.digest);
    // What is there may be of another attempt; there is nothing to be saved by going on with it.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(spool, wanted.digest.hex(), flags, Mode::from_raw_mode(0o600));
    let mut file = File::from(file.doing_with(doing)?);
    let digest = wanted.digest.as_str().parse().doing("reading a layer's digest")?;
    let (data, driver) = source.blob(&digest, wanted.size).await?;
    let mut here = 0;
    // The pipe ends with the reader: skopeo waits for room in it as long as it is open, and the driver for skopeo.
    let copying = async {
        let mut data = data;
        copy(&mut data, &mut file, |bytes| {
            here += bytes;
            say(Word::Here { blob, bytes: here });
        })
        .await
        .doing_with(doing)
    };
    let (copied, driven) = tokio::join!(copying, driver);
    copied?;
    match driven {
        Ok(()) => Ok(()),
        // Skopeo 1.9.3 compares what local storage sent with the size of the compressed blob, which it does not have.
        // The importer verifies the digest of what it has.
        Err(e) if storage && e.kind == ErrorKind::DigestMismatch => Ok(()),
        // The proxy complains about the end of the transfer, and everything is here.
        Err(e) if here == wanted.size && e.kind != ErrorKind::DigestMismatch => {
            tracing::debug!(error = %e.chain(), "ignored, because the digest will tell");
            Ok(())
        }
        Err(e) => Err(e),
    }
}

async fn copy(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut File,
    mut copied: impl FnMut(u64),
) -> std::io::Result<()> {
    loop {
        let bytes = from.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let n = bytes.len();
        to.write_all(bytes)?;
        from.consume(n);
        copied(n as u64);
    }
}
