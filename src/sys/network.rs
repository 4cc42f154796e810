//! The network namespace of this process.

use rustix::thread::UnshareFlags;

/// Cuts the calling thread, and the threads and processes that it starts, off from the network. To be called before other
/// threads start. Where that is not allowed, in some containers, it is only said.
#[allow(unsafe_code, reason = "unshare can pull file descriptors away under others")]
pub fn leave() {
    // SAFETY: NEWNET leaves the table of file descriptors alone.
    if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
        tracing::warn!(%error, "the importer keeps its network");
    }
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
            leave();
            std::net::TcpStream::connect(address).is_err()
        });
        assert!(inside.join().unwrap());
        assert!(std::net::TcpStream::connect(address).is_ok());
    }
}
