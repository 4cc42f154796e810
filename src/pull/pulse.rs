//! Signs of life of whoever talks to a registry, so that who waits for it can tell a transfer that stands still from one
//! that takes long.
//!
//! Bytes that arrived are one, an entry that was unpacked is one, and work that needs no registry is one as long as it
//! lasts: a slow disk is no reason to give up. Waiting for an answer is none.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How often the parent is told. Much less than the time after which a silent worker is given up.
const EVERY: Duration = Duration::from_secs(5);

static TICKS: AtomicU64 = AtomicU64::new(0);
static LOCAL: AtomicUsize = AtomicUsize::new(0);

/// Something moved on.
pub(super) fn tick() {
    TICKS.fetch_add(1, Ordering::Relaxed);
}

/// Work that depends on this machine only, until it is dropped.
#[derive(Debug)]
pub(super) struct Local(());

impl Local {
    pub(super) fn work() -> Local {
        LOCAL.fetch_add(1, Ordering::Relaxed);
        Local(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        LOCAL.fetch_sub(1, Ordering::Relaxed);
        tick();
    }
}

/// Looks for signs of life.
#[derive(Debug)]
pub(super) struct Watch(u64);

impl Watch {
    pub(super) fn new() -> Watch {
        Watch(TICKS.load(Ordering::Relaxed))
    }

    /// Whether something happened since the last look.
    pub(super) fn alive(&mut self) -> bool {
        let now = TICKS.load(Ordering::Relaxed);
        let moved = std::mem::replace(&mut self.0, now) != now;
        moved || LOCAL.load(Ordering::Relaxed) > 0 || waits_for_disk()
    }
}

/// Whether a thread of ours is in uninterruptible sleep, as in fsync: the reference importer's writes are not ours to
/// mark.
fn waits_for_disk() -> bool {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return false };
    threads.flatten().any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
    })
}

/// Calls `say` as long as the process does something. Never returns.
pub(super) fn report(say: impl Fn()) {
    let mut watch = Watch::new();
    loop {
        std::thread::sleep(EVERY);
        if watch.alive() {
            say();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_a_sign_of_life_once_and_work_as_long_as_it_lasts() {
        let mut watch = Watch::new();
        tick();
        assert!(watch.alive());
        let work = Local::work();
        assert!(watch.alive() && watch.alive());
        drop(work);
        assert!(watch.alive(), "it has just ended");
    }
}
