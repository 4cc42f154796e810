//! A thread that owns the locked sysroot for the length of one job.
//!
//! libostree's objects are not shareable between threads, and its calls block. One thread holds the lock,
//! runs closures one after the other, and hands plain values back.

use super::sysroot::{self, Layout};
use crate::engine::cx::Cx;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, ostree};
use std::sync::mpsc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often a lock that somebody else holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(250);

type Work = Box<dyn FnOnce(&ostree::Sysroot, &gio::Cancellable) + Send>;

/// The locked sysroot. The lock is released when this is dropped and the work in hand has ended.
#[derive(Debug)]
pub struct Locked {
    work: mpsc::Sender<(Work, gio::Cancellable)>,
}

struct CancelOnDrop(gio::Cancellable);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Locked {
    /// Takes the sysroot lock, waiting for other writers until the job is cancelled.
    pub async fn acquire(cx: &Cx, layout: &Layout) -> Result<Locked> {
        let (work, jobs) = mpsc::channel::<(Work, gio::Cancellable)>();
        let (ready, is_ready) = oneshot::channel();
        let path = layout.sysroot.clone();
        let watcher = cx.clone();
        std::thread::Builder::new()
            .name("sysroot".into())
            .spawn(move || {
                let opened = lock(&watcher, &path);
                match opened {
                    Ok(sysroot) => {
                        if ready.send(Ok(())).is_ok() {
                            for (f, cancellable) in jobs {
                                f(&sysroot, &cancellable);
                            }
                        }
                        sysroot.unlock();
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            })
            .doing("starting the sysroot thread")?;
        is_ready.await.map_err(|_| died())??;
        Ok(Locked { work })
    }

    /// Runs a closure with the locked sysroot. On cancellation libostree is told to stop, and waited for.
    pub async fn run<T: Send + 'static>(
        &self,
        cx: &Cx,
        f: impl FnOnce(&ostree::Sysroot, &gio::Cancellable) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cancellable = gio::Cancellable::new();
        let _guard = CancelOnDrop(cancellable.clone());
        let (reply, mut answer) = oneshot::channel();
        let work: Work = Box::new(move |sysroot, cancellable| drop(reply.send(f(sysroot, cancellable))));
        self.work.send((work, cancellable.clone())).map_err(|_| died())?;
        let outcome = tokio::select! {
            done = &mut answer => done,
            () = cx.cancelled() => {
                cancellable.cancel();
                answer.await
            }
        };
        // libostree has its own words for being cancelled, and wraps them in whatever it was doing.
        outcome.map_err(|_| died())?.map_err(|e| match cx.checkpoint() {
            Err(cancelled) => cancelled.source(e),
            Ok(()) => e,
        })
    }
}

fn lock(cx: &Cx, path: &std::path::Path) -> Result<ostree::Sysroot> {
    if path == std::path::Path::new("/") && !sysroot::private_mount_namespace() {
        return Err(Error::new(ErrorKind::WrongState, "osctld runs in the host's own mount namespace").hint(
            "start it with: systemctl start osctld.service, or run: unshare --mount osctl --direct ...",
        ));
    }
    let sysroot = sysroot::open(path)?;
    let mut said = false;
    while !sysroot.try_lock().kind(ErrorKind::ReadOnly, "locking the sysroot")? {
        if !said {
            cx.message("waiting for another program that holds the sysroot lock");
            said = true;
        }
        cx.checkpoint()?;
        std::thread::sleep(LOCK_POLL);
    }
    // What was read before the lock may be old.
    sysroot.load(gio::Cancellable::NONE).doing("loading the locked sysroot")?;
    Ok(sysroot)
}

fn died() -> Error {
    Error::new(ErrorKind::Internal, "the sysroot thread ended early; the running system is unchanged")
}
