//! The directories of the administrator, whose writers are looked at.

use super::{
    Leaves, MAX_DROPINS, below, check_name, check_size, check_trust, no_file, package_in, refuse, too_many,
    unreadable,
};
use crate::model::dropin::{Beside, Leaf, LeafKind, Local, MAX_CONTENTS, MAX_DROPIN, MAX_LEAVES, Text};
use crate::model::packages::LocalPackage;
use crate::model::{Error, Result};
use cap_std_ext::cap_std::fs::Dir;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Who may have written a drop-in, and what lies beside it.
#[derive(Debug, Clone, Copy)]
enum Trust {
    /// Root, because what it declares becomes root's.
    RootOnly,
    Anybody,
}

impl Trust {
    fn check(self, path: &str, uid: u32, mode: u32) -> Result<()> {
        match self {
            Trust::RootOnly => check_trust(path, uid, mode),
            Trust::Anybody => Ok(()),
        }
    }
}

/// A directory of the administrator's, opened once, and its path.
#[derive(Debug)]
pub(super) struct HostDir {
    fd: OwnedFd,
    /// Its path, as its owner would write it.
    pub(super) shown: String,
    /// The one file of it that counts.
    only: Option<String>,
    trust: Trust,
}

impl HostDir {
    pub(super) fn open(root: &Dir, path: &str) -> Result<Option<HostDir>> {
        let Some(fd) = open_dir(root, path)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(path, e.into()))?;
        check_trust(path, stat.st_uid, stat.st_mode)?;
        Ok(Some(HostDir { fd, shown: path.to_owned(), only: None, trust: Trust::RootOnly }))
    }

    pub(super) fn named(path: &Path) -> Result<HostDir> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let shown = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| unreadable(&shown, e.into()))?;
        Ok(HostDir { fd, shown, only: None, trust: Trust::Anybody })
    }

    /// The same, with this file only.
    pub(super) fn with_only(self, name: &str) -> HostDir {
        HostDir { only: Some(name.to_owned()), ..self }
    }

    pub(super) fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        match &self.only {
            Some(name) => Ok(vec![name.clone()]),
            None => list(&self.fd, &self.shown, wanted, MAX_DROPINS),
        }
    }

    /// The drop-in as it is now; `None` if it is masked.
    pub(super) fn snapshot(&self, name: &str) -> Result<Option<Text>> {
        let path = format!("{}/{name}", self.shown);
        match read_regular(&self.fd, name, &path, MAX_DROPIN, self.trust) {
            Err(Unread::Link) => {
                let target = rustix::fs::readlinkat(&self.fd, name, Vec::new())
                    .map_err(|e| unreadable(&path, e.into()))?;
                if target.as_bytes() == b"/dev/null" {
                    return Ok(None);
                }
                Err(refuse(&path, "is a symbolic link")
                    .hint("copy the file; only a link to /dev/null has a meaning here: it masks"))
            }
            Err(Unread::Directory) => Err(no_file(&path)),
            Err(Unread::Because(e)) => Err(*e),
            Ok((file, _)) => Ok(Some(Text { name: name.to_owned(), path, bytes: file.bytes })),
        }
    }

    /// Opens a directory below this one, component by component, so that no link can lead out.
    fn below(&self, name: &str) -> Result<(OwnedFd, String)> {
        let mut dir = self.fd.try_clone().map_err(|e| unreadable(&self.shown, e))?;
        let mut path = self.shown.clone();
        for part in name.split('/').filter(|p| !p.is_empty()) {
            path = format!("{path}/{part}");
            if part == ".." {
                return Err(refuse(&path, "leaves the directory of the drop-ins"));
            }
            dir = open_below(&dir, part, &path, self.trust)?;
        }
        Ok((dir, path))
    }
}

/// Opens a directory in a directory, never through a link, if its writer is trusted.
fn open_below(dir: &OwnedFd, name: &str, path: &str, trust: Trust) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOTDIR | Errno::LOOP => refuse(path, "is not a directory"),
        Errno::NOENT => refuse(path, "does not exist"),
        e => unreadable(path, e.into()),
    })?;
    let stat = rustix::fs::fstat(&dir).map_err(|e| unreadable(path, e.into()))?;
    trust.check(path, stat.st_uid, stat.st_mode)?;
    Ok(dir)
}

impl Unread {
    /// The error where only a file will do.
    fn no_file(self, path: &str) -> Error {
        match self {
            Unread::Link => refuse(path, "is a symbolic link"),
            Unread::Directory => no_file(path),
            Unread::Because(e) => *e,
        }
    }
}

impl HostDir {
    /// The directory of a file, and the names of both.
    fn parent<'n>(&self, name: &'n str) -> Result<(OwnedFd, &'n str, String)> {
        let (parents, file) = name.rsplit_once('/').unwrap_or(("", name));
        let (dir, path) = self.below(parents)?;
        Ok((dir, file, format!("{path}/{file}")))
    }

    /// A file of any size, and its path.
    pub(super) fn open_file(&self, name: &str) -> Result<(File, String)> {
        let (dir, file, path) = self.parent(name)?;
        let opened = open_regular(&dir, file, &path, self.trust);
        let (file, _) = opened.map_err(|unread| unread.no_file(&path))?;
        Ok((file, path))
    }
}

impl Beside for HostDir {
    fn file(&self, name: &str) -> Result<Local> {
        let (dir, file, path) = self.parent(name)?;
        let read = read_regular(&dir, file, &path, MAX_CONTENTS, self.trust);
        read.map(|(file, _)| file).map_err(|unread| unread.no_file(&path))
    }

    fn package(&self, name: &str) -> Result<LocalPackage> {
        let (file, path) = self.open_file(name)?;
        package_in(path, file)
    }

    fn tree(&self, name: &str) -> Result<Vec<Leaf>> {
        let (dir, path) = self.below(name)?;
        let mut leaves = Leaves::default();
        self.gather(&dir, &path, "", &mut leaves)?;
        Ok(leaves.sorted())
    }
}

impl HostDir {
    fn gather(&self, dir: &OwnedFd, path: &str, top: &str, leaves: &mut Leaves) -> Result<()> {
        leaves.check_depth(path, top)?;
        for name in list(dir, path, |n| n != "." && n != "..", MAX_LEAVES)? {
            let (path, top) = (format!("{path}/{name}"), below(top, &name));
            let kind = match read_regular(dir, &name, &path, MAX_CONTENTS, self.trust) {
                Ok((contents, mode)) => LeafKind::File { contents, executable: mode & 0o111 != 0 },
                Err(Unread::Link) => {
                    let target = rustix::fs::readlinkat(dir, &name, Vec::new())
                        .map_err(|e| unreadable(&path, e.into()))?;
                    let target =
                        target.into_string().map_err(|_| refuse(&path, "leads to what is not UTF-8"))?;
                    LeafKind::Link(target)
                }
                Err(Unread::Directory) => {
                    self.gather(&open_below(dir, &name, &path, self.trust)?, &path, &top, leaves)?;
                    LeafKind::Directory
                }
                Err(Unread::Because(e)) => return Err(*e),
            };
            leaves.add(&path, top, kind)?;
        }
        Ok(())
    }
}

/// Opens a directory below a root; `None` if it is missing. A file in its place is an error.
fn open_dir(root: &Dir, path: &str) -> Result<Option<OwnedFd>> {
    let relative = path.trim_start_matches('/');
    let (parent, name) = relative.rsplit_once('/').unwrap_or((".", relative));
    let parent = match root.open_dir(parent) {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(path, e)),
    };
    match rustix::fs::openat(
        &parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(refuse(path, "is not a directory")
            .hint(format!("move it away, and put drop-ins into a directory {path}"))),
        Err(e) => Err(unreadable(path, e.into())),
    }
}

/// The names in a directory that `wanted` selects, sorted; stops early when there are too many.
fn list(fd: &OwnedFd, path: &str, wanted: impl Fn(&str) -> bool, limit: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd).map_err(|e| unreadable(path, e.into()))? {
        let entry = entry.map_err(|e| unreadable(path, e.into()))?;
        let name = entry.file_name().to_string_lossy();
        if !wanted(&name) {
            continue;
        }
        if entry.file_name().to_str().is_err() {
            return Err(refuse(path, &format!("the file name {name:?} is not UTF-8")));
        }
        check_name(path, &name)?;
        names.push(name.into_owned());
        if names.len() > limit {
            return Err(too_many(path, limit));
        }
    }
    names.sort();
    Ok(names)
}

/// Why a file was not read.
enum Unread {
    Link,
    Directory,
    Because(Box<Error>),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread::Because(Box::new(error))
    }
}

/// Reads a regular file whose writer is trusted, and its mode.
fn read_regular(
    dir: impl AsFd,
    name: &str,
    path: &str,
    limit: u64,
    trust: Trust,
) -> Result<(Local, u32), Unread> {
    let (file, stat) = open_regular(dir, name, path, trust)?;
    check_size(path, u64::try_from(stat.st_size).unwrap_or(u64::MAX), limit)?;
    let mut bytes = Vec::new();
    // It may grow while we read.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
    check_size(path, bytes.len() as u64, limit)?;
    Ok((Local { bytes, private: stat.st_mode & 0o077 == 0 }, stat.st_mode))
}

/// Opens a regular file whose writer is trusted. Non-blocking: a FIFO must not hold us up.
fn open_regular(dir: impl AsFd, name: &str, path: &str, trust: Trust) -> Result<(File, Stat), Unread> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::LOOP) => return Err(Unread::Link),
        Err(Errno::NOENT) => return Err(refuse(path, "does not exist").into()),
        // A socket, or a device without driver.
        Err(Errno::NXIO) => return Err(no_file(path).into()),
        Err(e) => return Err(unreadable(path, e.into()).into()),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(path, e.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Unread::Directory),
        _ => return Err(no_file(path).into()),
    }
    trust.check(path, stat.st_uid, stat.st_mode)?;
    Ok((fd.into(), stat))
}
