//! Resolving, for a job: on a thread of its own, which skopeo does not survive.
//!
//! Skopeo waits for a registry as long as that does not hang up, and what waits for skopeo cannot be interrupted. So a
//! cancelled job ends the thread, and the kernel skopeo (prctl(2), PR_SET_PDEATHSIG); then whatever waited for it comes
//! back. That holds when this process is killed, too.

use super::caller::Caller;
use super::pulse;
use super::resolve::{resolve_in_process, resolve_with};
use super::types::{FetchOptions, Resolved, Worker};
use super::worker::silent;
use crate::engine::cx::Cx;
use crate::model::image::{ImageRef, Transport};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::scratch::Scratch;
use std::time::Instant;
use tokio::sync::oneshot;

/// Finds out what the reference stands for now. Transfers manifest and configuration only, and that only if it is not in
/// the repository.
pub async fn resolve(cx: &Cx, image: &ImageRef, opts: &FetchOptions) -> Result<Resolved> {
    cx.checkpoint()?;
    if let Some(index) = &opts.offered {
        index.require(image)?;
    }
    if matches!(opts.worker, Worker::InProcess) {
        return resolve_in_process(image, opts).await;
    }
    let registry = image.transport == Transport::Registry;
    // Removed when skopeo is gone, however it went. Of a registry nothing is unpacked.
    let tmp = opts.tmp.as_deref().filter(|_| !registry);
    let scratch = tmp.map(Scratch::below).transpose()?;
    let opts = FetchOptions { tmp: scratch.as_ref().map(|s| s.path().to_owned()), ..opts.clone() };
    let caller = Caller::bound(cx, image, &opts).await?;
    let limit = opts.patience.stall * 2;
    let (stop, stopped) = oneshot::channel::<()>();
    let image = image.clone();
    let work = move || -> Result<Option<Resolved>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.doing("starting a runtime")?;
        // Unpacking a large archive takes long, and nobody else is waited for.
        let _local = (!registry).then(pulse::Local::work);
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = resolve_with(&image, &opts, &caller) => outcome.map(Some),
                _ = stopped => Ok(None),
            }
        });
        runtime.shutdown_background();
        outcome
    };
    let (answer, mut answered) = oneshot::channel();
    let thread = std::thread::Builder::new().name("resolve".into());
    // Nobody listens any more only where the outcome does not matter.
    let thread = thread.spawn(move || drop(answer.send(work()))).doing("starting a thread")?;
    let (mut watch, mut since) = (pulse::Watch::new(), Instant::now());
    let error = loop {
        tokio::select! {
            outcome = &mut answered => {
                let given_up = || Error::new(ErrorKind::Internal, "resolving the image was given up");
                return outcome.map_err(|_| given_up())??.ok_or_else(given_up);
            }
            () = cx.cancelled() => {
                break cx.checkpoint().err().unwrap_or_else(|| Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            () = tokio::time::sleep(limit / 4) => {
                if watch.alive() {
                    since = Instant::now();
                }
                if since.elapsed() >= limit {
                    break silent(limit);
                }
            }
        }
    };
    drop(stop);
    // Skopeo goes with it.
    drop(tokio::task::spawn_blocking(|| thread.join()).await);
    Err(error)
}
