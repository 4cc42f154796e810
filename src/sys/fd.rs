//! Descriptors: those that whoever started us left open for us, and those that we leave to others.

use crate::model::{Context, Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::FdFlags;
use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};

/// A descriptor of our own for the inherited one with this number, to write to.
///
/// Opening `/proc/self/fd/N` instead fails for sockets and for pipes of other users, and gives a file a second offset.
/// To be called before this process opens anything: a number that nobody handed over is then refused, not found.
#[allow(unsafe_code, reason = "a number becomes a descriptor nowhere else")]
pub fn inherited(fd: u32) -> Result<File> {
    let what = || format!("cannot write to file descriptor {fd}");
    let refused = |cause: rustix::io::Errno| Error::new(ErrorKind::InvalidArgument, what()).source(cause);
    let raw = i32::try_from(fd).kind(ErrorKind::InvalidArgument, what())?;
    // SAFETY: borrowed for the calls of fcntl below only, which answer EBADF where there is no such descriptor. A
    // converted u32 is never -1.
    let theirs = unsafe { BorrowedFd::borrow_raw(raw) };
    let mode = rustix::fs::fcntl_getfl(theirs).map_err(refused)?;
    if !mode.intersects(OFlags::WRONLY | OFlags::RDWR) || mode.contains(OFlags::PATH) {
        let error =
            Error::new(ErrorKind::InvalidArgument, format!("{}: it is open for reading only", what()));
        return Err(error.hint(format!("open it for writing: {fd}>FILE")));
    }
    let ours = rustix::io::fcntl_dupfd_cloexec(theirs, 3).map_err(refused)?;
    if fd > 2 {
        // Whoever waits for the end of the pipe shall not wait for our children.
        rustix::io::fcntl_setfd(theirs, FdFlags::CLOEXEC).map_err(refused)?;
    }
    Ok(File::from(ours))
}

/// Above all numbers that a child is given.
const HIGH: i32 = 64;

/// A file without a name, with this content, that a child of any user can open by `/proc/self/fd/N`: the access mode of
/// such a file lets everybody in, and nobody else can get at it.
pub fn in_memory(content: &[u8]) -> Result<OwnedFd> {
    let doing = "making a file in memory";
    let fd = rustix::fs::memfd_create("osctl", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create("osctl", MemfdFlags::CLOEXEC))
        .doing(doing)?;
    File::from(fd.try_clone().doing(doing)?).write_all(content).doing(doing)?;
    // Out of the way of the numbers that children get: the child moves one after the other to its place.
    rustix::io::fcntl_dupfd_cloexec(&fd, HIGH).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixStream;

    fn number(fd: &impl std::os::fd::AsRawFd) -> u32 {
        u32::try_from(fd.as_raw_fd()).unwrap()
    }

    #[test]
    fn files_keep_one_offset_and_sockets_can_be_written_to() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before ").unwrap();
        inherited(number(&file)).unwrap().write_all(b"and after").unwrap();
        assert_eq!(rustix::fs::tell(&file).unwrap(), 16);

        let (theirs, mut other) = UnixStream::pair().unwrap();
        inherited(number(&theirs)).unwrap().write_all(b"line").unwrap();
        drop(theirs);
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "line");
    }

    #[test]
    fn what_is_closed_or_cannot_be_written_to_is_refused() {
        let (reader, _writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
        let error = inherited(number(&reader)).unwrap_err();
        assert!(error.to_string().contains("open for reading only"), "{error}");
        for fd in [1_000_000, u32::MAX] {
            assert_eq!(inherited(fd).unwrap_err().kind, ErrorKind::InvalidArgument);
        }
        assert!(reader.as_raw_fd() > 2);
    }

    #[test]
    fn another_user_can_read_what_it_is_handed_and_nothing_else_of_ours() {
        use cap_std_ext::cmdext::CapStdExtCommandExt;
        use std::os::unix::process::CommandExt;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let secret = tempfile::NamedTempFile::new().unwrap();
        let handed = std::sync::Arc::new(in_memory(b"handed").unwrap());
        let script =
            format!("cat /proc/self/fd/3; cat {} 2>/dev/null || echo , no more", secret.path().display());
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).take_fd_n(handed, 3).uid(65534).gid(65534);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "handed, no more\n");
    }
}
