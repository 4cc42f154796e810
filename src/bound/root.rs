//! The directory of a layer, out of which nothing leads: neither `..` nor a link.

use crate::model::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A directory that is the root of every name in it, for openat2(2).
pub(super) struct Root(OwnedFd);

impl Root {
    pub fn open(path: &Path) -> Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty());
        fd.map(Root).doing_with(|| format!("opening {}", path.display()))
    }

    /// Opens what has this name. Links on the way lead to where they would if this were the root of everything; that what is
    /// named is none.
    pub fn at(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.leads_to(path, flags | OFlags::NOFOLLOW)
    }

    /// As [`Root::at`], following a link in the last place as well.
    pub fn leads_to(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        // The kernel gives up where a rename anywhere may have moved a parent (openat2(2), EAGAIN).
        let mut tries = 0;
        loop {
            match rustix::fs::openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < 100 => tries += 1,
                done => return done,
            }
        }
    }

    pub fn stat(&self, path: &[u8]) -> rustix::io::Result<Stat> {
        rustix::fs::fstat(self.at(path, OFlags::PATH)?)
    }
}

/// Where containers-storage puts a name: `.` and `..` are resolved in the text, before any link is. `None` if that leads out.
pub(super) fn unpacked(name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') })
}
