//! Builds the tree of a layer out of the entries of its archive.

use super::attributes::kept_xattrs;
use super::path::{MAX_PATH, in_path, malformed, mapped, other_spelling, refused, shown, split};
use super::{LAYOUT, META_IMPLIED, META_LAYER, META_LINKS};
use crate::model::image::Digest;
use crate::model::{Context, Error, Result};
use crate::pull::archive::{Archive, Entry, Kind};
use crate::pull::merge::join;
use crate::pull::object::{self, Header};
use crate::pull::refs::{self, Made};
use crate::pull::space::Space;
use crate::pull::tree::{Dir, Found, Xattrs, write_dirmeta, xattrs_variant};
use crate::sys::fs::free_bytes_of;
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};

/// How libostree spells an overlayfs whiteout that is content (ostree issue 2712): deploying makes it a device.
pub(super) const PASSTHROUGH: &str = ".ostree-wh.";
/// As many names as a note has room for.
const NAMED: usize = 3;

/// Builds the tree of a layer out of its entries.
pub(super) struct Builder<'a> {
    repo: &'a ostree::Repo,
    root: Dir,
    default_meta: String,
    implied: BTreeSet<String>,
    links: BTreeMap<String, String>,
    symlinks: BTreeSet<String>,
    /// Metadata objects by owner, group and mode, of directories without attributes: most share a few.
    metas: HashMap<(u32, u32, u32), String>,
    space: Space,
    /// How many entries in `/dev` were left out, and the first of them.
    devices: (usize, Vec<String>),
}

impl<'a> Builder<'a> {
    pub(super) fn new(repo: &'a ostree::Repo) -> Result<Self> {
        let default_meta = write_dirmeta(repo, 0, 0, 0o755, &BTreeMap::new())?;
        Ok(Builder {
            repo,
            root: Dir::new(default_meta.clone()),
            default_meta,
            implied: BTreeSet::from([String::new()]),
            links: BTreeMap::new(),
            symlinks: BTreeSet::new(),
            metas: HashMap::new(),
            space: Space::default(),
            devices: (0, Vec::new()),
        })
    }

    /// Reads an archive, and whatever a writer put behind its end: that belongs to the digest.
    pub(super) fn read(&mut self, tar: &mut (impl Read + Send)) -> Result<()> {
        let mut archive = Archive::new(tar);
        while let Some(entry) = archive.next().map_err(|e| malformed("it is not a valid tar archive", e))? {
            let path = mapped(&entry.path)?;
            self.add(&path, &entry, &mut archive)?;
        }
        io::copy(archive.into_inner(), &mut io::sink())
            .map(|_| ())
            .map_err(|e| malformed("what is behind the archive cannot be read", e))
    }

    fn add(&mut self, path: &str, entry: &Entry, archive: &mut Archive<impl Read>) -> Result<()> {
        // To the kernel, this number means "leave it as it is".
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(refused(path, "has an owner or a group that cannot exist (4294967295)"));
        }
        let xattrs = kept_xattrs(path, entry)?;
        match &entry.kind {
            Kind::Directory => self.directory(path, entry, &xattrs),
            _ if path.is_empty() => Err(refused("", "the root is not a directory")),
            Kind::File => {
                let variant = xattrs_variant(&xattrs);
                let object = self.regular(entry, &variant, archive).map_err(|e| in_path(path, e))?;
                self.place(path, object)
            }
            Kind::Symlink(target) => {
                let target = std::str::from_utf8(target)
                    .map_err(|_| refused(path, "is a link whose target is not UTF-8"))?;
                if target.is_empty() {
                    return Err(refused(path, "is a link without a target"));
                }
                if target.contains('\0') || target.len() > MAX_PATH {
                    return Err(refused(path, "is a link whose target contains a NUL or is too long"));
                }
                let object = object::symlink(self.repo, entry.uid, entry.gid, &xattrs, target)
                    .map_err(|e| in_path(path, e.into()))?;
                self.place(path, object)?;
                self.symlinks.insert(path.to_owned());
                Ok(())
            }
            Kind::Link(target) => self.hard_link(path, &mapped(target)?),
            Kind::Char { .. } | Kind::Block { .. } | Kind::Fifo if path.starts_with("dev/") => {
                self.devices.0 += 1;
                if self.devices.1.len() < NAMED {
                    self.devices.1.push(shown(path));
                }
                Ok(())
            }
            // An overlayfs whiteout inside the image, as nested container storage has them.
            Kind::Char { major: 0, minor: 0 } => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let header = Header::regular(entry.uid, entry.gid, entry.mode, &xattrs_variant(&xattrs));
                let object = object::write(self.repo, header, 0, io::empty(), None).map_err(Error::from)?;
                let spelled = format!("{parent}/{PASSTHROUGH}{name}");
                self.place(spelled.trim_start_matches('/'), object)
            }
            Kind::Char { .. } | Kind::Block { .. } => {
                Err(refused(path, "is a device, which cannot be in an image"))
                    .map_err(|e| e.hint("devices are made at boot; remove it from the image"))
            }
            Kind::Fifo => Err(refused(path, "is a named pipe, which cannot be in an image"))
                .map_err(|e| e.hint("make it at boot with a tmpfiles.d line of type p")),
        }
    }

    fn directory(&mut self, path: &str, entry: &Entry, xattrs: &Xattrs) -> Result<()> {
        let key = (entry.uid, entry.gid, entry.mode);
        let meta = match self.metas.get(&key).filter(|_| xattrs.is_empty()) {
            Some(meta) => meta.clone(),
            None => {
                let meta = write_dirmeta(self.repo, entry.uid, entry.gid, entry.mode, xattrs)?;
                if xattrs.is_empty() {
                    self.metas.insert(key, meta.clone());
                }
                meta
            }
        };
        if let Some((parent, name)) = split(path) {
            let repo = self.repo;
            let entries = self.parent(parent)?.open(repo)?;
            entries.files.remove(&other_spelling(name));
            if entries.files.remove(name).is_some() {
                self.forget(path);
            }
        }
        let default = self.default_meta.clone();
        let dir = self.root.ensure(self.repo, path, &default)?.expect("the parent was cleared of files");
        dir.meta = meta;
        self.implied.remove(path);
        self.links.remove(path);
        Ok(())
    }

    /// Puts a file object in its place; the last entry of a path wins.
    fn place(&mut self, path: &str, object: String) -> Result<()> {
        let (parent, name) = split(path).expect("the root is handled by the caller");
        let repo = self.repo;
        let other = other_spelling(name);
        let entries = self.parent(parent)?.open(repo)?;
        entries.dirs.remove(name);
        entries.files.remove(&other);
        entries.dirs.remove(&other);
        entries.files.insert(name.to_owned(), object);
        self.forget(path);
        self.forget(&join(parent, &other));
        Ok(())
    }

    /// Drops what was noted about a path, and about everything below it, that is replaced.
    fn forget(&mut self, path: &str) {
        // By range: a scan for every entry would be quadratic.
        let below = format!("{path}/");
        for set in [&mut self.symlinks, &mut self.implied] {
            set.remove(path);
            let stale = set.range(below.clone()..).take_while(|p| p.starts_with(&below));
            for stale in stale.cloned().collect::<Vec<_>>() {
                set.remove(&stale);
            }
        }
        self.links.remove(path);
        let stale = self.links.range(below.clone()..).map(|(p, _)| p).take_while(|p| p.starts_with(&below));
        for stale in stale.cloned().collect::<Vec<_>>() {
            self.links.remove(&stale);
        }
    }

    fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        if path == target {
            return Err(refused(path, "is a hard link to itself"));
        }
        // overlayfs has one inode for all its whiteouts.
        if let (Some((up, name)), Some((parent, own))) = (split(target), split(path))
            && let spelled = join(up, &other_spelling(name))
            && let Found::File(object) = self.root.find(self.repo, &spelled)?
        {
            return self.place(&join(parent, &other_spelling(own)), object);
        }
        match self.root.find(self.repo, target)? {
            Found::File(object) => {
                let to_symlink = self.symlinks.contains(target);
                self.place(path, object)?;
                if to_symlink {
                    self.symlinks.insert(path.to_owned());
                }
                Ok(())
            }
            Found::Dir(_) => Err(refused(path, "is a hard link to a directory")),
            Found::Nothing => {
                // A link to a link: what this layer has under the name is what counts, wherever that comes from.
                let target = self.links.get(target).map_or_else(|| target.to_owned(), String::clone);
                let (parent, name) = split(path).expect("the root is handled by the caller");
                let repo = self.repo;
                let entries = self.parent(parent)?.open(repo)?;
                entries.files.remove(name);
                entries.files.remove(&other_spelling(name));
                entries.dirs.remove(name);
                self.forget(path);
                self.links.insert(path.to_owned(), target);
                Ok(())
            }
        }
    }

    /// The directory that a path lies in, made where no entry described it. Never through a link.
    fn parent(&mut self, parent: &str) -> Result<&mut Dir> {
        let mut at = String::new();
        for part in parent.split('/').filter(|p| !p.is_empty()) {
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(part);
            if self.symlinks.contains(&at) || self.links.contains_key(&at) {
                return Err(refused(parent, &format!("goes through /{at}, which is a link")).hint(
                    "the image is broken or malicious: rebuild the layer without entries below links",
                ));
            }
            match self.root.find(self.repo, &at)? {
                Found::Dir(_) => {}
                // A later entry below a regular file: the last one wins.
                Found::File(_) => {
                    let (up, name) = split(&at).expect("a part of a path is not the root");
                    if let Found::Dir(dir) = self.root.find(self.repo, up)? {
                        dir.open(self.repo)?.files.remove(name);
                    }
                    self.implied.insert(at.clone());
                }
                Found::Nothing => {
                    self.implied.insert(at.clone());
                }
            }
        }
        let default = self.default_meta.clone();
        Ok(self.root.ensure(self.repo, parent, &default)?.expect("files on the way were replaced"))
    }

    fn regular(
        &mut self,
        entry: &Entry,
        xattrs: &glib::Variant,
        archive: &mut Archive<impl Read>,
    ) -> Result<String> {
        self.space.take(entry.size, || free_bytes_of(self.repo.dfd_borrow()))?;
        let header = Header::regular(entry.uid, entry.gid, entry.mode, xattrs);
        object::write_any(self.repo, header, entry.size, archive.content(entry))
    }

    /// Writes the commit and sets the refs within the current transaction.
    pub(super) fn commit(self, digest: &Digest) -> Result<Vec<String>> {
        let doing = || format!("writing the commit of layer {digest}");
        let root = self.root.write(self.repo)?;
        let implied: Vec<String> = self.implied.into_iter().collect();
        let metadata: BTreeMap<&str, glib::Variant> = BTreeMap::from([
            (META_LAYER, LAYOUT.to_variant()),
            (META_IMPLIED, implied.to_variant()),
            (META_LINKS, self.links.to_variant()),
        ]);
        let commit = self
            .repo
            .write_commit_with_time(
                None,
                None,
                None,
                Some(&metadata.to_variant()),
                &root,
                0,
                gio::Cancellable::NONE,
            )
            .doing_with(doing)?;
        for name in [refs::of_layer(digest)?, refs::verified(Made::Layer, digest)?] {
            self.repo.transaction_set_ref(None, &name, Some(&commit));
        }
        let (count, named) = self.devices;
        let more = if count > named.len() { ", ..." } else { "" };
        let note = format!("left out {count} devices ({}{more}): /dev is made at boot", named.join(", "));
        Ok(if count > 0 { vec![note] } else { Vec::new() })
    }
}
