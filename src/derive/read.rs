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

mod host;
mod image;

use crate::derive::packages::cache;
use crate::model::dropin::{self, Beside, Leaf, LeafKind, MAX_LEAVES, MAX_TREE, TREEFILE_OWNER, Text};
use crate::model::manifest::Manifest;
use crate::model::packages::LocalPackage;
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use cap_std_ext::cap_std::fs::Dir;
use host::HostDir;
use image::{VendorDir, vendor};
use std::collections::BTreeMap;
use std::io::Read;
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
            let drop_ins = Some(dir.with_only(name));
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

/// The file of a package that a drop-in names by this path.
pub fn package(source: &Source, target: &CommitTree, path: &str) -> Result<Box<dyn Read>> {
    let host = source.drop_ins.as_ref();
    let of_host = host.and_then(|dir| Some((dir, path.strip_prefix(&dir.shown)?.strip_prefix('/')?)));
    match of_host {
        Some((dir, name)) => Ok(Box::new(dir.open_file(name)?.0)),
        None => Ok(Box::new(image::vendor_stream(target, path)?)),
    }
}

/// What a package file is.
pub(super) fn package_in(path: String, file: impl Read) -> Result<LocalPackage> {
    let (digest, size) = cache::digest_of(file).map_err(|e| unreadable(&path, e))?;
    Ok(LocalPackage { path, digest, size })
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

fn unreadable(path: &str, cause: std::io::Error) -> Error {
    refuse(path, "cannot be read").source(cause)
}

fn no_file(path: &str) -> Error {
    refuse(path, "is not a regular file")
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

#[cfg(test)]
mod tests;
