//! Reading drop-ins: which files count, which one wins, and whether to trust them.
//!
//! ```text
//! target tree  /usr/lib/osctl/derive.d/*.yaml ┐ same name: /etc wins; a link to /dev/null masks
//! config root  /etc/osctl/derive.d/*.yaml     ┘ ──► in name order ──► model::dropin ──► Manifest
//! ```
//!
//! Each file is opened once, without following links, and everything that is decided about it (type, owner,
//! mode, size) comes from that descriptor: there is no second look that could see something else.

use crate::model::dropin::{self, Local, MAX_CONTENTS, MAX_DROPIN, Text};
use crate::model::manifest::Manifest;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind};
use cap_std_ext::cap_std::fs::Dir;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

/// Where the administrator's drop-ins are.
pub const HOST_DIR: &str = "/etc/osctl/derive.d";
/// Where an image's drop-ins are.
pub const VENDOR_DIR: &str = "/usr/lib/osctl/derive.d";
/// Client treefiles of rpm-ostree.
const ORIGIN_DIR: &str = "/etc/rpm-ostree/origin.d";
/// More are a mistake (a wrong directory, a runaway generator), and reading them would take long.
pub const MAX_DROPINS: usize = 1000;

/// The winning file of a name.
enum Found {
    Masked,
    Host(Text),
    Vendor(Text),
}

/// Reads, checks and merges the drop-ins of the host and of the target tree.
///
/// Missing directories are fine. Fails with `InvalidDropIn`, `UnsupportedStanza` or `Unsupported`, naming the
/// file.
pub fn read(config_root: &Dir, target: Option<&CommitTree>) -> Result<Manifest> {
    refuse_treefiles(config_root)?;
    let host = HostDir::open(config_root)?;
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    if let Some(tree) = target {
        vendor(tree, &mut found)?;
    }
    if let Some(dir) = &host {
        for name in dir.names()? {
            let entry = match dir.snapshot(&name)? {
                Some(text) => Found::Host(text),
                None => Found::Masked,
            };
            found.insert(name, entry);
        }
    }
    let mut texts = Vec::new();
    let mut from_host = Vec::new();
    for entry in found.into_values() {
        let (text, is_host) = match entry {
            Found::Masked => continue,
            Found::Host(text) => (text, true),
            Found::Vendor(text) => (text, false),
        };
        if text.name.ends_with(".bu") {
            return Err(unsupported(&text.path, "Butane files are not supported by this version")
                .hint("write it as a .yaml drop-in, or move it away"));
        }
        texts.push(text);
        from_host.push(is_host);
    }
    if texts.len() > MAX_DROPINS {
        return Err(too_many("the host and the image together"));
    }
    dropin::compile(&texts, &mut |index, name| match (
        from_host.get(index).copied().unwrap_or_default(),
        &host,
        target,
    ) {
        (true, Some(dir), _) => dir.local(name),
        // Everything in an image is everybody's.
        (_, _, Some(tree)) => vendor_local(tree, name).map(|bytes| Local { bytes, private: false }),
        (_, _, None) => Err(refuse(name, "has no directory to be read from")),
    })
}

/// Whether a file name in a `derive.d` counts. READMEs, `.disabled`, editor backups and hidden files do not.
pub fn is_dropin(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".bu"))
}

fn refuse(path: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidDropIn, format!("{path}: {message}")).detail("file", path)
}

fn unsupported(path: &str, message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{path}: {message}")).detail("file", path)
}

fn too_many(dir: &str) -> Error {
    refuse(dir, &format!("more than {MAX_DROPINS} drop-ins"))
        .hint("merge them, or move away what does not belong there")
}

/// Root, or whoever runs a daemon that is not root.
fn trusted_owner(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Fails if somebody else could have written it.
fn check_trust(path: &str, uid: u32, mode: u32) -> Result<()> {
    if !trusted_owner(uid) {
        return Err(refuse(path, &format!("belongs to uid {uid} and not to root"))
            .hint(format!("look at what it says, then: chown root {path}")));
    }
    if mode & 0o022 != 0 {
        return Err(refuse(path, &format!("can be written by group or others (mode {:04o})", mode & 0o7777))
            .hint(format!("look at what it says, then: chmod go-w {path}")));
    }
    Ok(())
}

fn check_size(path: &str, size: u64, limit: u64) -> Result<()> {
    if size > limit {
        return Err(refuse(path, &format!("{size} bytes are more than {limit}")));
    }
    Ok(())
}

/// A name must be one line of text: it is the owner that status and messages show.
fn check_name(dir: &str, name: &str) -> Result<()> {
    if name.chars().any(char::is_control) {
        return Err(refuse(dir, &format!("the file name {name:?} holds a control character")));
    }
    Ok(())
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

fn unreadable(path: &str, cause: std::io::Error) -> Error {
    refuse(path, "cannot be read").source(cause)
}

/// The names in a directory that `wanted` selects, sorted; stops early when there are too many.
fn list(fd: &OwnedFd, path: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
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
        if names.len() > MAX_DROPINS {
            return Err(too_many(path));
        }
    }
    names.sort();
    Ok(names)
}

fn refuse_treefiles(root: &Dir) -> Result<()> {
    let Some(fd) = open_dir(root, ORIGIN_DIR)? else { return Ok(()) };
    match list(&fd, ORIGIN_DIR, |n| !n.starts_with('.') && n.ends_with(".yaml"))?.first() {
        None => Ok(()),
        Some(name) => Err(unsupported(
            &format!("{ORIGIN_DIR}/{name}"),
            "client treefiles of rpm-ostree are not supported by this version",
        )
        .hint("write what it declares as a drop-in in /etc/osctl/derive.d, or move it away")),
    }
}

/// The administrator's directory, opened once.
struct HostDir(OwnedFd);

impl HostDir {
    fn open(root: &Dir) -> Result<Option<HostDir>> {
        let Some(fd) = open_dir(root, HOST_DIR)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(HOST_DIR, e.into()))?;
        check_trust(HOST_DIR, stat.st_uid, stat.st_mode)?;
        Ok(Some(HostDir(fd)))
    }

    fn names(&self) -> Result<Vec<String>> {
        list(&self.0, HOST_DIR, is_dropin)
    }

    /// The drop-in as it is now; `None` if it is masked.
    fn snapshot(&self, name: &str) -> Result<Option<Text>> {
        let path = format!("{HOST_DIR}/{name}");
        match read_regular(&self.0, name, &path, MAX_DROPIN) {
            Err(Unread::Link) => {
                let target = rustix::fs::readlinkat(&self.0, name, Vec::new())
                    .map_err(|e| unreadable(&path, e.into()))?;
                if target.as_bytes() == b"/dev/null" {
                    return Ok(None);
                }
                Err(refuse(&path, "is a symbolic link")
                    .hint("copy the file; only a link to /dev/null has a meaning here: it masks"))
            }
            Err(Unread::Because(e)) => Err(*e),
            Ok(file) => Ok(Some(Text { name: name.to_owned(), path, bytes: file.bytes })),
        }
    }

    /// Reads a `local:` file, component by component, so that no link can lead out.
    fn local(&self, name: &str) -> Result<Local> {
        let shown = format!("{HOST_DIR}/{name}");
        let mut dir = self.0.try_clone().map_err(|e| unreadable(&shown, e))?;
        let mut path = HOST_DIR.to_owned();
        let (parents, file) = name.rsplit_once('/').unwrap_or(("", name));
        for part in parents.split('/').filter(|p| !p.is_empty()) {
            if part == ".." {
                return Err(refuse(&shown, "leaves the directory of the drop-ins"));
            }
            path = format!("{path}/{part}");
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = rustix::fs::openat(&dir, part, flags, Mode::empty()).map_err(|e| match e {
                Errno::NOTDIR | Errno::LOOP => refuse(&path, "is not a directory"),
                Errno::NOENT => refuse(&path, "does not exist"),
                e => unreadable(&path, e.into()),
            })?;
            let stat = rustix::fs::fstat(&dir).map_err(|e| unreadable(&path, e.into()))?;
            check_trust(&path, stat.st_uid, stat.st_mode)?;
        }
        match read_regular(&dir, file, &shown, MAX_CONTENTS) {
            Ok(file) => Ok(file),
            Err(Unread::Link) => Err(refuse(&shown, "is a symbolic link")),
            Err(Unread::Because(e)) => Err(*e),
        }
    }
}

/// Why a file was not read.
enum Unread {
    Link,
    Because(Box<Error>),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Unread {
        Unread::Because(Box::new(error))
    }
}

/// Reads a regular file that only root can have written. Non-blocking: a FIFO must not hold us up.
fn read_regular(dir: impl AsFd, name: &str, path: &str, limit: u64) -> Result<Local, Unread> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::LOOP) => return Err(Unread::Link),
        Err(Errno::NOENT) => return Err(refuse(path, "does not exist").into()),
        // A socket, or a device without driver.
        Err(Errno::NXIO) => return Err(refuse(path, "is not a regular file").into()),
        Err(e) => return Err(unreadable(path, e.into()).into()),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(path, e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refuse(path, "is not a regular file").into());
    }
    check_trust(path, stat.st_uid, stat.st_mode)?;
    check_size(path, u64::try_from(stat.st_size).unwrap_or(u64::MAX), limit)?;
    let mut bytes = Vec::new();
    // It may grow while we read.
    std::fs::File::from(fd).take(limit + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
    check_size(path, bytes.len() as u64, limit)?;
    Ok(Local { bytes, private: stat.st_mode & 0o077 == 0 })
}

fn vendor(tree: &CommitTree, found: &mut BTreeMap<String, Found>) -> Result<()> {
    let Some(real) = tree.resolve(VENDOR_DIR, true)? else { return Ok(()) };
    if tree.kind(&real)? != Some(Kind::Directory) {
        return Err(refuse(VENDOR_DIR, "is not a directory in the image"));
    }
    for name in tree.list(&real)?.into_iter().filter(|n| is_dropin(n)) {
        check_name(VENDOR_DIR, &name)?;
        let path = format!("{VENDOR_DIR}/{name}");
        let info = tree.lookup(&path)?;
        let target = info.as_ref().and_then(|i| i.symlink_target());
        if target.is_some_and(|t| t == std::path::Path::new("/dev/null")) {
            continue;
        }
        let bytes = vendor_file(tree, &path, MAX_DROPIN)?;
        found.insert(name.clone(), Found::Vendor(Text { name, path, bytes }));
        if found.len() > MAX_DROPINS {
            return Err(too_many(VENDOR_DIR));
        }
    }
    Ok(())
}

fn vendor_local(tree: &CommitTree, name: &str) -> Result<Vec<u8>> {
    let path = format!("{VENDOR_DIR}/{name}");
    let base = tree.resolve(VENDOR_DIR, true)?;
    let real = tree.resolve(&path, false)?;
    match (base, real) {
        (Some(base), Some(real)) if real.starts_with(&format!("{base}/")) => {
            vendor_file(tree, &path, MAX_CONTENTS)
        }
        (_, None) => Err(refuse(&path, "does not exist")),
        (_, Some(_)) => Err(refuse(&path, "leaves the directory of the drop-ins")),
    }
}

fn vendor_file(tree: &CommitTree, path: &str, limit: u64) -> Result<Vec<u8>> {
    let Some(info) = tree.lookup(path)? else { return Err(refuse(path, "does not exist")) };
    match crate::store::tree::kind_of(&info) {
        Kind::File => {}
        Kind::Link => return Err(refuse(path, "is a symbolic link")),
        Kind::Directory => return Err(refuse(path, "is not a regular file")),
    }
    check_trust(path, info.attribute_uint32("unix::uid"), info.attribute_uint32("unix::mode"))?;
    check_size(path, u64::try_from(info.size()).unwrap_or(u64::MAX), limit)?;
    tree.read(path, limit)
        .kind(ErrorKind::InvalidDropIn, format!("{path}: cannot be read"))?
        .ok_or_else(|| refuse(path, "does not exist"))
}

#[cfg(test)]
mod tests;
