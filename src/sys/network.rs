//! The network namespace of this process.

use crate::model::{Context, ErrorKind, Result};
use rustix::thread::UnshareFlags;

/// Cuts the calling thread, and the threads and processes that it starts, off from the network. To be called before other
/// threads start. Not even its loopback is up in what is left. In some containers that is not allowed.
#[allow(unsafe_code, reason = "unshare can pull file descriptors away under others")]
pub fn leave() -> Result<()> {
    // SAFETY: NEWNET leaves the table of file descriptors alone.
    let left = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
    left.kind(ErrorKind::Unsupported, "leaving the network")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_reached_afterwards_and_others_are_not_concerned() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // A thread of its own: the namespace goes with it.
        let inside = std::thread::spawn(move || {
            leave().unwrap();
            std::net::TcpStream::connect(address).is_err()
        });
        assert!(inside.join().unwrap());
        assert!(std::net::TcpStream::connect(address).is_ok());
    }
}
