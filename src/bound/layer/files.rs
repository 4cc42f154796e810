//! The files of a layer, as containers-storage lays them out for overlayfs.
//!
//! Names are resolved as in a chroot(2) into the layer: a link on the way leads to where it would there (openat2(2),
//! RESOLVE_IN_ROOT), and the last part of a name is never followed. Nobody else writes here meanwhile.

use super::{refused, shown};
use crate::bound::crc::Crc;
use crate::bound::root::{Root, unpacked};
use crate::bound::tarsplit::WHITEOUT;
use crate::model::text::one_line;
use crate::model::{Context, ErrorKind, Result};
use crate::pull::archive::{Entry, Kind};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What says that a directory has nothing of the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Whoever removes a tree keeps a handle for each level of it.
const MAX_DEPTH: usize = 256;
/// The zeros of sparse files cost nothing to claim, and all of them are read for the checksums.
const MAX_SPARSE: u64 = 16 << 30;
/// Read and written at a time.
const BUFFER: usize = 256 << 10;
/// Attributes that are not an image's to set: of overlayfs itself, and of the host's policy. containers-storage leaves out the last.
const FOREIGN: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"security.selinux"];
/// The last second that containers-storage knows; later ones, and those before 1970, become 1970.
const LAST_SECOND: i64 = i64::MAX / 1_000_000_000;
/// The directories and devices that are made have no more than this until they have their owner.
const NOBODY_ELSE: Mode = Mode::RWXU;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It is there.
    Entry,
    /// It described the layer's root.
    Root,
}

/// Whether an entry of this name stands for something that is not there.
pub(super) fn is_whiteout(name: &[u8]) -> bool {
    name.rsplit(|byte| *byte == b'/').next().is_some_and(|last| last.starts_with(WHITEOUT))
}

/// A layer that is being written.
pub(super) struct Files {
    path: PathBuf,
    root: Root,
    /// The directory of the entry before: most are in the same one.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Directories get their times when nothing is written into them any more.
    directories: Vec<(Vec<u8>, Timespec)>,
    /// The sizes of the sparse files so far.
    sparse: u64,
    buffer: Vec<u8>,
}

impl Files {
    /// Writes below this directory.
    pub(super) fn open(path: &Path) -> Result<Files> {
        let root = Root::open(path)?;
        // As /proc says it, to be compared with what that says.
        let path = path.canonicalize().doing_with(|| format!("opening {}", path.display()))?;
        Ok(Files { path, root, last: None, directories: Vec::new(), sparse: 0, buffer: vec![0; BUFFER] })
    }

    /// Writes an entry, and takes the checksum of its content.
    pub(super) fn put(&mut self, entry: &Entry, content: &mut dyn Read, crc: &mut Crc) -> Result<Put> {
        let path = unpacked(&entry.path).ok_or_else(|| refused("leads out of its layer"))?;
        // To the kernel, this number means "leave it as it is".
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(refused("has an owner or a group that cannot exist (4294967295)"));
        }
        if path == b"." {
            return self.put_root(entry);
        }
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], &path[..]),
        };
        let (known, dir) = match self.last.take().filter(|(known, _)| known == parent) {
            Some(known) => known,
            None => (parent.to_vec(), self.directory(parent)?),
        };
        let replaced = self.put_in(&dir, &path, name, entry, content, crc)?;
        // What was replaced may have been a part of the way there.
        self.last = Some((known, dir)).filter(|_| !replaced);
        Ok(Put::Entry)
    }

    /// Sets the times of the directories.
    pub(super) fn finish(self) -> Result<()> {
        for (path, time) in &self.directories {
            match self.root.at(path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(dir) => futimens(dir, &times(*time)).doing("setting the time of a directory")?,
                // Another entry took its place, by another name for it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error).doing("opening a directory to set its time"),
            }
        }
        Ok(())
    }

    /// As containers-storage has it: `/` describes the root, and `.` is passed over.
    fn put_root(&mut self, entry: &Entry) -> Result<Put> {
        if entry.kind != Kind::Directory {
            return Err(refused("is the root, and no directory"));
        }
        if !entry.path.starts_with(b"/") {
            return Ok(Put::Entry);
        }
        let root = self.root.at(b".", OFlags::RDONLY | OFlags::DIRECTORY).doing("opening the root")?;
        self.describe(&root, entry)?;
        self.directories.push((b".".to_vec(), time(entry.mtime)));
        Ok(Put::Root)
    }

    /// Returns whether something had to give way.
    fn put_in(
        &mut self,
        dir: &OwnedFd,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
        content: &mut dyn Read,
        crc: &mut Crc,
    ) -> Result<bool> {
        if is_whiteout(name) {
            return whiteout(dir, name, entry).map(|()| false);
        }
        let mut replaced = false;
        loop {
            match self.make(dir, path, name, entry)? {
                Made::There if replaced => return Err(refused("comes back after it was removed")),
                Made::There => {
                    remove(dir, name).doing("removing what was in its place")?;
                    replaced = true;
                }
                Made::File(file) => {
                    self.fill(&file, entry, content, crc)?;
                    self.describe(&file, entry)?;
                    futimens(&file, &times(time(entry.mtime))).doing("setting its time")?;
                    return Ok(replaced);
                }
                Made::Directory(fd) => {
                    self.describe(&fd, entry)?;
                    self.directories.push((path.to_vec(), time(entry.mtime)));
                    return Ok(replaced);
                }
                Made::Other => return describe_at(dir, name, entry).map(|()| replaced),
            }
        }
    }

    fn make(&self, dir: &OwnedFd, path: &[u8], name: &[u8], entry: &Entry) -> Result<Made> {
        let made = match &entry.kind {
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map(|fd| Made::File(File::from(fd)))
            }
            Kind::Directory => {
                let made = self.make_directory(dir, name)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(dir, name, flags, Mode::empty()) {
                    // Of two descriptions of a directory the second counts.
                    Ok(fd) => Ok(Made::Directory(fd)),
                    Err(Errno::NOTDIR | Errno::LOOP) if !made => Ok(Made::There),
                    Err(error) => Err(error),
                }
            }
            Kind::Symlink(target) => symlinkat(target.as_slice(), dir, name).map(|()| Made::Other),
            Kind::Link(target) => self.link(target, dir, name)?.map(|()| Made::Other),
            Kind::Char { major, minor } => node(dir, name, FileType::CharacterDevice, (*major, *minor)),
            Kind::Block { major, minor } => node(dir, name, FileType::BlockDevice, (*major, *minor)),
            Kind::Fifo => node(dir, name, FileType::Fifo, (0, 0)),
        };
        match made {
            Err(Errno::EXIST) => Ok(Made::There),
            made => made.doing_with(|| format!("creating it in {}", shown(path))),
        }
    }

    /// The inner error is that of linkat(2).
    fn link(&self, target: &[u8], dir: &OwnedFd, name: &[u8]) -> Result<rustix::io::Result<()>> {
        let target = unpacked(target).ok_or_else(|| refused("is a hard link out of its layer"))?;
        let (parent, last) = match target.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&target[..slash], &target[slash + 1..]),
            None => (&b"."[..], &target[..]),
        };
        let parent = self.root.leads_to(parent, OFlags::PATH | OFlags::DIRECTORY);
        let linked = parent.and_then(|parent| linkat(parent, last, dir, name, AtFlags::empty()));
        match linked {
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let why = format!("is a hard link to {}, which is not in its layer", shown(&target));
                Err(refused(why))
            }
            linked => Ok(linked),
        }
    }

    /// Opens a directory, and makes what is missing on the way, as root's.
    fn directory(&self, path: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match self.root.leads_to(path, flags) {
            Err(Errno::NOENT) => {}
            opened => return opened.doing_with(|| format!("opening its directory {}", shown(path))),
        }
        let mut dir = self.root.at(b".", flags).doing("opening the root")?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut from = 0;
        for end in ends.chain([path.len()]) {
            dir = match self.root.leads_to(&path[..end], flags) {
                Err(Errno::NOENT) => {
                    let name = &path[from..end];
                    let doing = || format!("making the directory {}", shown(&path[..end]));
                    // Where a link that leads nowhere is in its place, that stays.
                    if !self.make_directory(&dir, name)? {
                        return Err(refused(format!(
                            "lies behind {}, which leads nowhere",
                            shown(&path[..end])
                        )));
                    }
                    let opened =
                        openat(&dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
                    let opened = opened.doing_with(doing)?;
                    fchown(&opened, Some(Uid::ROOT), Some(Gid::ROOT)).doing_with(doing)?;
                    fchmod(&opened, Mode::from_raw_mode(0o755)).doing_with(doing)?;
                    opened
                }
                opened => opened.doing_with(|| format!("opening its directory {}", shown(&path[..end])))?,
            };
            from = end + 1;
        }
        Ok(dir)
    }

    /// Makes a directory; false if something is there.
    fn make_directory(&self, dir: &OwnedFd, name: &[u8]) -> Result<bool> {
        match mkdirat(dir, name, NOBODY_ELSE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(error) => return Err(error).doing("making a directory"),
        }
        // By a link that is on the way of its name it may lie deeper than that says.
        let place = std::fs::read_link(opened(dir.as_fd())).doing("asking where a directory is")?;
        let depth = place.strip_prefix(&self.path).map_or(usize::MAX, |below| below.components().count());
        if depth < MAX_DEPTH {
            return Ok(true);
        }
        unlinkat(dir, name, AtFlags::REMOVEDIR).doing("removing a directory")?;
        Err(refused(format!("lies deeper than {MAX_DEPTH} directories")))
    }

    fn fill(&mut self, file: &File, entry: &Entry, content: &mut dyn Read, crc: &mut Crc) -> Result<()> {
        if entry.is_sparse() {
            self.sparse = self.sparse.saturating_add(entry.size);
            if self.sparse > MAX_SPARSE {
                return Err(refused("is a sparse file, and makes those of its layer more than 16 GiB"));
            }
        }
        let mut at = 0;
        loop {
            let n = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) => return Err(super::malformed("its content cannot be read", error)),
            };
            let piece = &self.buffer[..n];
            crc.update(piece);
            // Its holes stay holes.
            if !entry.is_sparse() || piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, at).doing("writing its content")?;
            }
            at += n as u64;
        }
        if entry.is_sparse() {
            file.set_len(at).doing("setting its size")?;
        }
        Ok(())
    }

    /// Owner, attributes and mode, in this order: each may change those behind it.
    fn describe(&self, fd: impl AsFd, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry);
        fchown(&fd, Some(uid), Some(gid)).doing("setting its owner")?;
        attributes(entry, |name, value| fsetxattr(&fd, name, value, XattrFlags::empty()))?;
        fchmod(&fd, Mode::from_raw_mode(entry.mode)).doing("setting its mode")
    }
}

/// What was made of an entry.
enum Made {
    File(File),
    Directory(OwnedFd),
    Other,
    /// Nothing: something else has its name.
    There,
}

fn node(dir: &OwnedFd, name: &[u8], kind: FileType, (major, minor): (u32, u32)) -> rustix::io::Result<Made> {
    mknodat(dir, name, kind, Mode::empty(), makedev(major, minor)).map(|()| Made::Other)
}

/// What overlayfs has for something that is removed: a device 0/0, or an attribute of the directory (overlayfs(5)).
fn whiteout(dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    // It would be one without in the store: its stream could never be put together again.
    if entry.size > 0 {
        return Err(refused("is a whiteout with content"));
    }
    if name == OPAQUE {
        return fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .doing("hiding what is below its directory");
    }
    let gone = &name[WHITEOUT.len()..];
    if matches!(gone, b"" | b"." | b"..") {
        return Err(refused("is a whiteout of nothing"));
    }
    match mknodat(dir, gone, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
        Err(Errno::EXIST) => return Err(refused("is a whiteout of what is in its own layer")),
        made => made.doing("writing a whiteout")?,
    }
    let (uid, gid) = owner(entry);
    chownat(dir, gone, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .doing("setting the owner of a whiteout")
}

/// As [`Files::describe`], of what is not opened.
fn describe_at(dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<()> {
    let (uid, gid) = owner(entry);
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing("setting its owner")?;
    let path = opened(dir.as_fd()).join(OsStr::from_bytes(name));
    attributes(entry, |name, value| lsetxattr(&path, name, value, XattrFlags::empty()))?;
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).doing("looking at it")?;
    let is_symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let mtime = match entry.kind {
        Kind::Symlink(_) => Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() },
        // A hard link to a link says nothing of that.
        _ if is_symlink => return Ok(()),
        _ => {
            // It is no link: none is followed.
            chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .doing("setting its mode")?;
            time(entry.mtime)
        }
    };
    utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).doing("setting its time")
}

/// Sets the extended attributes that are an image's; what the file system does not know is left out, as containers-storage does.
fn attributes(entry: &Entry, set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>) -> Result<()> {
    for (name, value) in &entry.xattrs {
        if FOREIGN.iter().any(|foreign| name.starts_with(foreign)) {
            continue;
        }
        let doing = || format!("setting its attribute {}", one_line(&String::from_utf8_lossy(name)));
        match set(name, value) {
            Err(Errno::OPNOTSUPP) => {}
            // The image asks for what nobody can have.
            Err(error @ (Errno::PERM | Errno::INVAL | Errno::RANGE)) => {
                return Err(error).kind(ErrorKind::Unsupported, doing());
            }
            set => set.doing_with(doing)?,
        }
    }
    Ok(())
}

/// Removes whatever has this name.
fn remove(dir: &OwnedFd, name: &[u8]) -> std::io::Result<()> {
    crate::sys::fs::remove_whole(&opened(dir.as_fd()).join(OsStr::from_bytes(name)))
}

/// A path to what is opened.
fn opened(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

fn time((seconds, nanos): (i64, u32)) -> Timespec {
    match seconds {
        0..=LAST_SECOND => Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        _ => Timespec { tv_sec: 0, tv_nsec: 0 },
    }
}

fn times(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}
