//! The mount namespace of this process.

use crate::model::{Context, ErrorKind, Result};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// Gives the calling thread, and the threads and processes that it starts, a mount namespace of its own, as
/// `PrivateMounts=` of the unit does for the daemon. What the host mounts later still appears, and nothing gets out.
///
/// libostree remounts `/sysroot` and `/boot` writable in the namespace it finds itself in; everybody's is refused. To
/// be called before other threads start.
#[allow(unsafe_code, reason = "unshare can pull file descriptors away under others")]
pub fn unshare() -> Result<()> {
    let doing = "making a mount namespace for --direct";
    // SAFETY: NEWNS leaves the table of file descriptors alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.kind(ErrorKind::Unsupported, doing)?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).kind(ErrorKind::Unsupported, doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_afterwards_is_not_seen_outside() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let namespace = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let outside = namespace();
        // A thread of its own: the namespace goes with it.
        let inside = std::thread::spawn(move || {
            unshare().unwrap();
            assert!(!mounts().contains(" shared:"), "every mount is a slave or private");
            namespace()
        });
        assert_ne!(inside.join().unwrap(), outside);
        assert_eq!(namespace(), outside);
    }
}
