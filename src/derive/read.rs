//! Reading drop-ins: which files count, which one wins, and whether to trust them.
//!
//! ```text
//! target tree  /usr/lib/osctl/derive.d/*.{yaml,bu} ┐ same name: /etc wins; a link to /dev/null masks
//! config root  /etc/osctl/derive.d/*.{yaml,bu}     ┤ ──► in name order ──► model::dropin ──► Manifest
//! config root  /etc/rpm-ostree/origin.d/*.yaml     ┘ owner origin.d/NAME: replaces nothing, and nothing replaces it
//! ```
//!
//! Each file is opened once, without following links, and everything that is decided about it (type, owner,
//! mode, size) comes from that descriptor: there is no second look that could see something else.

use crate::model::dropin::{
    self, Beside, Leaf, LeafKind, Local, MAX_CONTENTS, MAX_DROPIN, MAX_LEAVES, MAX_TREE, TREEFILE_OWNER, Text,
};
use crate::model::manifest::Manifest;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind};
use cap_std_ext::cap_std::fs::Dir;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the administrator's drop-ins are.
pub const HOST_DIR: &str = "/etc/osctl/derive.d";
/// Where an image's drop-ins are.
pub const VENDOR_DIR: &str = "/usr/lib/osctl/derive.d";
/// Where client treefiles of rpm-ostree are.
pub const ORIGIN_DIR: &str = "/etc/rpm-ostree/origin.d";
/// More are a mistake (a wrong directory, a runaway generator), and reading them would take long.
pub const MAX_DROPINS: usize = 1000;
/// Deeper trees are a mistake.
const MAX_DEPTH: usize = 32;

/// The winning file of a name.
enum Found {
    Masked,
    Host(Text),
    Vendor(Text),
}

/// The drop-ins that are applied beside those of the target tree.
#[derive(Debug)]
pub struct Source {
    drop_ins: Option<HostDir>,
    treefiles: Option<HostDir>,
    edited: Option<(String, String)>,
}

/// A drop-in of the host that is not written yet.
#[derive(Debug, Clone, Copy)]
pub struct Upcoming<'a> {
    /// Its file name.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
}

impl Source {
    /// Those of a host. Missing directories are fine.
    pub fn host(config_root: &Dir) -> Result<Source> {
        let drop_ins = HostDir::open(config_root, HOST_DIR)?;
        Ok(Source { drop_ins, treefiles: HostDir::open(config_root, ORIGIN_DIR)?, edited: None })
    }

    /// The same as if the host had this drop-in, or this text in it.
    #[must_use]
    pub fn edited(self, one: Option<Upcoming<'_>>) -> Source {
        Source { edited: one.map(|u| (u.name.to_owned(), u.text.to_owned())), ..self }
    }

    /// Those that somebody names: a `derive.d`, a root with what a host has, or a single drop-in.
    ///
    /// Whoever names them answers for them: unlike those of a host they may belong to anybody.
    pub fn named(path: &Path) -> Result<Source> {
        let shown = path.display().to_string();
        let meta = std::fs::metadata(path).map_err(|e| unreadable(&shown, e))?;
        if !meta.is_dir() {
            let name =
                path.file_name().and_then(|n| n.to_str()).filter(|n| is_dropin(n)).ok_or_else(|| {
                    refuse(&shown, "is not named like a drop-in")
                        .hint("name it something.yaml or something.bu")
                })?;
            let dir = HostDir::named(path.parent().unwrap_or(Path::new("")))?;
            let drop_ins = Some(HostDir { only: Some(name.to_owned()), ..dir });
            return Ok(Source { drop_ins, treefiles: None, edited: None });
        }
        let below = |dir: &str| Some(path.join(dir.trim_start_matches('/'))).filter(|dir| dir.is_dir());
        let (drop_ins, treefiles) = match (below(HOST_DIR), below(ORIGIN_DIR)) {
            (None, None) => (Some(path.to_owned()), None),
            of_root => of_root,
        };
        let open = |dir: Option<PathBuf>| dir.map(|dir| HostDir::named(&dir)).transpose();
        Ok(Source { drop_ins: open(drop_ins)?, treefiles: open(treefiles)?, edited: None })
    }

    /// The names of the drop-ins, and whether each has a content or masks that of the target tree.
    pub fn names(&self) -> Result<Vec<(String, bool)>> {
        let Some(dir) = &self.drop_ins else { return Ok(Vec::new()) };
        let names = dir.names(is_dropin)?.into_iter();
        names.map(|name| Ok((name.clone(), dir.snapshot(&name)?.is_some()))).collect()
    }
}

/// Reads, checks and merges the drop-ins of the host and of the target tree.
///
/// Missing directories are fine. Fails with `InvalidDropIn`, `UnsupportedStanza` or `Unsupported`, naming the
/// file.
pub fn read(config_root: &Dir, target: Option<&CommitTree>) -> Result<Manifest> {
    read_from(&Source::host(config_root)?, target)
}

/// The same as if the host had this drop-in, or this text in it.
pub fn read_edited(
    config_root: &Dir,
    target: Option<&CommitTree>,
    edited: Option<Upcoming<'_>>,
) -> Result<Manifest> {
    read_from(&Source::host(config_root)?.edited(edited), target)
}

/// As [`read`], from a source that is open.
pub fn read_from(source: &Source, target: Option<&CommitTree>) -> Result<Manifest> {
    let Source { drop_ins: host, treefiles: origin, edited } = source;
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    if let Some(tree) = target {
        vendor(tree, &mut found)?;
    }
    if let Some(dir) = host {
        for name in dir.names(is_dropin)? {
            let entry = match dir.snapshot(&name)? {
                Some(text) => Found::Host(text),
                None => Found::Masked,
            };
            found.insert(name, entry);
        }
    }
    if let Some((name, text)) = edited {
        // Whoever writes it has made the directory.
        let path = format!("{HOST_DIR}/{name}");
        let text = Text { name: name.clone(), path, bytes: text.clone().into_bytes() };
        found.insert(name.clone(), Found::Host(text));
    }
    let image = target.map(VendorDir);
    let mut dropins: Vec<(Text, &dyn Beside)> = Vec::new();
    for entry in found.into_values() {
        match (entry, host, &image) {
            (Found::Host(text), Some(dir), _) => dropins.push((text, dir)),
            (Found::Vendor(text), _, Some(tree)) => dropins.push((text, tree)),
            (Found::Masked | Found::Host(_) | Found::Vendor(_), ..) => {}
        }
    }
    if let Some(dir) = origin {
        for text in treefiles(dir)? {
            // A treefile comes after a drop-in of the same name.
            let at = dropins.partition_point(|(other, _)| file_name(other) <= file_name(&text));
            dropins.insert(at, (text, dir));
        }
    }
    if dropins.len() > MAX_DROPINS {
        return Err(too_many("the host and the image together", MAX_DROPINS));
    }
    dropin::compile(&dropins)
}

/// The text of one drop-in of the host as it is now; `None` if there is none. A masked one is refused.
pub fn host_text(config_root: &Dir, name: &str) -> Result<Option<String>> {
    let Some(dir) = HostDir::open(config_root, HOST_DIR)? else { return Ok(None) };
    if !dir.names(is_dropin)?.iter().any(|n| n == name) {
        return Ok(None);
    }
    let path = format!("{HOST_DIR}/{name}");
    let Some(text) = dir.snapshot(name)? else {
        return Err(refuse(&path, "is masked by a link to /dev/null").hint(format!("remove it: rm {path}")));
    };
    String::from_utf8(text.bytes).map(Some).map_err(|_| refuse(&path, "is not UTF-8"))
}

/// Whether a file name in a `derive.d` counts. READMEs, `.disabled`, editor backups and hidden files do not.
pub fn is_dropin(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".bu"))
}

/// Whether a file name in an `origin.d` counts. rpm-ostree reads no other ending.
pub fn is_treefile(name: &str) -> bool {
    !name.starts_with('.') && name.ends_with(".yaml")
}

fn refuse(path: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidDropIn, format!("{path}: {message}")).detail("file", path)
}

fn too_many(dir: &str, limit: usize) -> Error {
    let what = if limit == MAX_DROPINS { "drop-ins" } else { "entries" };
    refuse(dir, &format!("more than {limit} {what}"))
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

/// The client treefiles of the host, in name order.
fn treefiles(dir: &HostDir) -> Result<Vec<Text>> {
    let mut texts = Vec::new();
    for name in dir.names(is_treefile)? {
        // A link to /dev/null has nothing to mask, but says the same.
        let Some(text) = dir.snapshot(&name)? else { continue };
        texts.push(Text { name: format!("{TREEFILE_OWNER}{name}"), ..text });
    }
    Ok(texts)
}

/// The name that decides the order, whatever the owner is called.
fn file_name(text: &Text) -> &str {
    text.name.strip_prefix(TREEFILE_OWNER).unwrap_or(&text.name)
}

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
struct HostDir {
    fd: OwnedFd,
    /// Its path, as its owner would write it.
    shown: String,
    /// The one file of it that counts.
    only: Option<String>,
    trust: Trust,
}

impl HostDir {
    fn open(root: &Dir, path: &str) -> Result<Option<HostDir>> {
        let Some(fd) = open_dir(root, path)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&fd).map_err(|e| unreadable(path, e.into()))?;
        check_trust(path, stat.st_uid, stat.st_mode)?;
        Ok(Some(HostDir { fd, shown: path.to_owned(), only: None, trust: Trust::RootOnly }))
    }

    fn named(path: &Path) -> Result<HostDir> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let shown = path.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| unreadable(&shown, e.into()))?;
        Ok(HostDir { fd, shown, only: None, trust: Trust::Anybody })
    }

    fn names(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        match &self.only {
            Some(name) => Ok(vec![name.clone()]),
            None => list(&self.fd, &self.shown, wanted, MAX_DROPINS),
        }
    }

    /// The drop-in as it is now; `None` if it is masked.
    fn snapshot(&self, name: &str) -> Result<Option<Text>> {
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

impl Beside for HostDir {
    fn file(&self, name: &str) -> Result<Local> {
        let (parents, file) = name.rsplit_once('/').unwrap_or(("", name));
        let (dir, path) = self.below(parents)?;
        let path = format!("{path}/{file}");
        match read_regular(&dir, file, &path, MAX_CONTENTS, self.trust) {
            Ok((file, _)) => Ok(file),
            Err(Unread::Link) => Err(refuse(&path, "is a symbolic link")),
            Err(Unread::Directory) => Err(no_file(&path)),
            Err(Unread::Because(e)) => Err(*e),
        }
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

fn below(top: &str, name: &str) -> String {
    if top.is_empty() { name.to_owned() } else { format!("{top}/{name}") }
}

/// What was found in a directory tree so far.
#[derive(Default)]
struct Leaves {
    all: Vec<Leaf>,
    bytes: u64,
}

impl Leaves {
    fn add(&mut self, shown: &str, path: String, kind: LeafKind) -> Result<()> {
        if let LeafKind::File { contents, .. } = &kind {
            self.bytes += contents.bytes.len() as u64;
        }
        if self.bytes > MAX_TREE {
            return Err(refuse(shown, &format!("the tree has more than {MAX_TREE} bytes")));
        }
        self.all.push(Leaf { path, kind });
        if self.all.len() > MAX_LEAVES {
            return Err(refuse(shown, &format!("the tree has more than {MAX_LEAVES} entries")));
        }
        Ok(())
    }

    fn check_depth(&self, shown: &str, top: &str) -> Result<()> {
        match top.matches('/').count() {
            MAX_DEPTH.. => Err(refuse(shown, "is nested too deeply")),
            _ => Ok(()),
        }
    }

    fn sorted(mut self) -> Vec<Leaf> {
        self.all.sort_by(|a, b| a.path.cmp(&b.path));
        self.all
    }
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

fn no_file(path: &str) -> Error {
    refuse(path, "is not a regular file")
}

/// Reads a regular file whose writer is trusted, and its mode. Non-blocking: a FIFO must not hold us up.
fn read_regular(
    dir: impl AsFd,
    name: &str,
    path: &str,
    limit: u64,
    trust: Trust,
) -> Result<(Local, u32), Unread> {
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
    check_size(path, u64::try_from(stat.st_size).unwrap_or(u64::MAX), limit)?;
    let mut bytes = Vec::new();
    // It may grow while we read.
    std::fs::File::from(fd).take(limit + 1).read_to_end(&mut bytes).map_err(|e| unreadable(path, e))?;
    check_size(path, bytes.len() as u64, limit)?;
    Ok((Local { bytes, private: stat.st_mode & 0o077 == 0 }, stat.st_mode))
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
            return Err(too_many(VENDOR_DIR, MAX_DROPINS));
        }
    }
    Ok(())
}

/// The image's directory.
struct VendorDir<'t>(&'t CommitTree);

impl VendorDir<'_> {
    /// The path of what has this name, if it is inside the directory.
    fn inside(&self, name: &str) -> Result<String> {
        let path = format!("{VENDOR_DIR}/{name}");
        let base = self.0.resolve(VENDOR_DIR, true)?;
        match (base, self.0.resolve(path.trim_end_matches('/'), false)?) {
            (Some(base), Some(real)) if real == base || real.starts_with(&format!("{base}/")) => Ok(path),
            (_, None) => Err(refuse(&path, "does not exist")),
            (_, Some(_)) => Err(refuse(&path, "leaves the directory of the drop-ins")),
        }
    }

    fn gather(&self, path: &str, top: &str, leaves: &mut Leaves) -> Result<()> {
        leaves.check_depth(path, top)?;
        for name in self.0.list(path)? {
            check_name(path, &name)?;
            let (path, top) = (format!("{path}/{name}"), below(top, &name));
            let Some(info) = self.0.lookup(&path)? else { return Err(refuse(&path, "does not exist")) };
            let kind = match crate::store::tree::kind_of(&info) {
                Kind::File => {
                    let bytes = vendor_file(self.0, &path, MAX_CONTENTS)?;
                    let executable = info.attribute_uint32("unix::mode") & 0o111 != 0;
                    LeafKind::File { contents: everybodys(bytes), executable }
                }
                Kind::Link => {
                    let target = info.symlink_target().and_then(|t| t.into_os_string().into_string().ok());
                    LeafKind::Link(target.ok_or_else(|| refuse(&path, "leads to what is not UTF-8"))?)
                }
                Kind::Directory => {
                    self.gather(&path, &top, leaves)?;
                    LeafKind::Directory
                }
            };
            leaves.add(&path, top, kind)?;
        }
        Ok(())
    }
}

impl Beside for VendorDir<'_> {
    fn file(&self, name: &str) -> Result<Local> {
        vendor_file(self.0, &self.inside(name)?, MAX_CONTENTS).map(everybodys)
    }

    fn tree(&self, name: &str) -> Result<Vec<Leaf>> {
        let path = self.inside(name)?;
        let path = path.trim_end_matches('/');
        if self.0.kind(path)? != Some(Kind::Directory) {
            return Err(refuse(path, "is not a directory"));
        }
        let mut leaves = Leaves::default();
        self.gather(path, "", &mut leaves)?;
        Ok(leaves.sorted())
    }
}

/// Everything in an image is.
fn everybodys(bytes: Vec<u8>) -> Local {
    Local { bytes, private: false }
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
