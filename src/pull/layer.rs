//! One layer: from the bytes of a blob to a commit under the standard blob ref.
//!
//! The commit holds the layer's entries as the tar has them, whiteout files included, with `/etc` as `/usr/etc`
//! (as the reference importer stores derived layers). What a tree cannot hold is in the commit's metadata:
//!
//! - `osctl.layer`: written by us, complete: a commit of another tool leaves out entries that plain images need;
//! - `osctl.implied`: directories that no entry describes: on merging, a directory below keeps its own metadata;
//! - `osctl.links`: hard links to a file of a lower layer, by path: resolved on merging, against the tree below.
//!
//! The ref, and the one that says that the digest is right ([`refs::verified`]), are written by the transaction that
//! commits the objects, after both digests were verified. So a layer that has its refs is complete and never fetched
//! again, after kill -9 as well.

use super::archive::{Archive, Entry, Kind};
use super::pulse::{self, Local};
use super::refs::{self, Made};
use super::tree::{Dir, Found, Xattrs, write_dirmeta, xattrs_variant};
use super::types::Layer;
use crate::model::image::Digest;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs::free_bytes_of;
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use sha2::Digest as _;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufReader, Read};

const META_LAYER: &str = "osctl.layer";
const META_IMPLIED: &str = "osctl.implied";
const META_LINKS: &str = "osctl.links";
/// The layout of layer commits that this code writes and reuses.
const LAYOUT: u32 = 1;
/// Files up to this size are written from memory in one call.
const INLINE: u64 = 128 << 10;
/// How libostree spells an overlayfs whiteout that is content (ostree issue 2712): deploying makes it a device.
const PASSTHROUGH: &str = ".ostree-wh.";
/// What Linux takes as a path (PATH_MAX, with the NUL) and as a name in it.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Trees are walked by recursion. The deepest path of a Debian desktop has 20 parts.
const MAX_DEPTH: usize = 256;
/// The longest name of an extended attribute (XATTR_NAME_MAX).
const MAX_XATTR_NAME: usize = 255;
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// What is left of the file system, whatever a layer unpacks to.
const RESERVE: u64 = 64 << 20;
/// After so many unpacked bytes, the free space is looked at again.
const LOOK_EVERY: u64 = 64 << 20;
/// As many names as a note has room for.
const NAMED: usize = 3;

/// A layer in the repository.
#[derive(Debug)]
pub(super) struct Stored {
    pub tree: Dir,
    pub implied: BTreeSet<String>,
    pub links: BTreeMap<String, String>,
}

/// The finished layer, if it is here in our layout: as its blob, or as the uncompressed stream that it stands for.
pub(super) fn find(repo: &ostree::Repo, layer: &Layer) -> Result<Option<Stored>> {
    for digest in [&layer.digest, &layer.diff_id] {
        if let Some(stored) = load(repo, digest)? {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

fn load(repo: &ostree::Repo, digest: &Digest) -> Result<Option<Stored>> {
    let Some(commit) = refs::vouched(repo, Made::Layer, digest)? else { return Ok(None) };
    let (variant, state) = repo.load_commit(&commit).doing_with(|| format!("reading layer {digest}"))?;
    let meta = glib::VariantDict::new(Some(&variant.child_value(0)));
    let ours = meta.lookup::<u32>(META_LAYER).ok().flatten() == Some(LAYOUT);
    if !ours || state.contains(ostree::RepoCommitState::PARTIAL) {
        return Ok(None);
    }
    let implied = meta.lookup::<Vec<String>>(META_IMPLIED).ok().flatten().unwrap_or_default();
    let links = meta.lookup::<BTreeMap<String, String>>(META_LINKS).ok().flatten().unwrap_or_default();
    Ok(Some(Stored { tree: Dir::of_commit(repo, &commit)?, implied: implied.into_iter().collect(), links }))
}

/// Imports a blob and writes its refs. Returns remarks for people.
pub(super) fn import(repo: &ostree::Repo, layer: &Layer, blob: impl Read + Send) -> Result<Vec<String>> {
    import_as(repo, layer, &layer.digest, Some(layer.size), blob)
}

/// As [`import`] for local storage, which has the uncompressed stream only. Nothing then verifies the blob's digest,
/// so the layer gets the name of the uncompressed one.
pub(super) fn import_uncompressed(
    repo: &ostree::Repo,
    layer: &Layer,
    tar: impl Read + Send,
) -> Result<Vec<String>> {
    import_as(repo, layer, &layer.diff_id, None, tar)
}

fn import_as(
    repo: &ostree::Repo,
    layer: &Layer,
    digest: &Digest,
    size: Option<u64>,
    blob: impl Read + Send,
) -> Result<Vec<String>> {
    let doing = || format!("importing layer {}; the running system is unchanged", layer.digest);
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).doing_with(doing)?;
    let mut blob = Hashing::new(blob);
    let mut builder = Builder::new(repo)?;
    let (read, diff_id) = {
        let mut tar =
            Hashing::new(decompressor(BufReader::with_capacity(256 << 10, &mut blob)).doing_with(doing)?);
        let read = builder.read(&mut tar);
        // What a writer puts behind the end of the archive belongs to the digest.
        let rest = read.is_ok().then(|| io::copy(&mut tar, &mut io::sink())).transpose();
        (read.and(rest.map(|_| ()).doing_with(doing)), tar.finish())
    };
    // Bytes behind the compressed stream belong to the blob's digest. Where reading failed, the cause may be a
    // damaged blob: its digest says so, if the rest of it can be had.
    let drained = io::copy(&mut blob, &mut io::sink());
    let count = blob.count;
    if drained.is_ok() {
        let found = blob.finish();
        if found != *digest {
            return Err(mismatch("blob", digest, &found));
        }
        if let Some(size) = size.filter(|size| *size != count) {
            return Err(Error::new(
                ErrorKind::DigestMismatch,
                format!(
                    "blob {digest} has {count} bytes and the manifest says {size}; the running system is unchanged"
                ),
            ));
        }
    }
    read.map_err(|e| in_layer(layer, e))?;
    drained.doing_with(doing)?;
    if diff_id != layer.diff_id {
        return Err(mismatch("uncompressed layer", &layer.diff_id, &diff_id));
    }
    let _local = Local::work();
    let notes = builder.commit(digest)?;
    transaction.commit(gio::Cancellable::NONE).doing_with(doing)?;
    Ok(notes)
}

fn in_layer(layer: &Layer, error: Error) -> Error {
    let mut outer = Error::new(
        error.kind,
        format!("layer {} cannot be imported; the running system is unchanged", layer.digest),
    );
    outer.hint = error.hint.clone();
    outer.details = error.details.clone();
    outer.source(error)
}

fn mismatch(what: &str, want: &Digest, found: &Digest) -> Error {
    Error::new(
        ErrorKind::DigestMismatch,
        format!("{what} {want} arrived with the digest {found}; the running system is unchanged"),
    )
    .detail("expected", want)
    .detail("found", found)
}

/// Chooses by the first bytes: manifests are not always right about the compression, and the digests decide.
fn decompressor<'a>(mut blob: impl io::BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let start = blob.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(blob))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || start.starts_with(&[0x50, 0x2a, 0x4d, 0x18]) {
        // The second magic is a skippable frame, which zstd:chunked may start with.
        Box::new(zstd::stream::read::Decoder::with_buffer(blob)?)
    } else {
        Box::new(blob)
    })
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hash: sha2::Sha256,
    count: u64,
}

impl<R: Read> Hashing<R> {
    fn new(inner: R) -> Self {
        Hashing { inner, hash: sha2::Sha256::new(), count: 0 }
    }

    fn finish(self) -> Digest {
        let digest = format!("sha256:{}", hex::encode(self.hash.finalize()));
        digest.parse().expect("a SHA-256 in hexadecimal is a digest")
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if n > 0 {
            pulse::tick();
        }
        self.hash.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// Builds the tree of a layer out of its entries.
struct Builder<'a> {
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

/// Keeps a layer from filling the file system: what it unpacks to is not said anywhere.
#[derive(Debug, Default)]
struct Space {
    /// What may be written before the next look.
    left: u64,
}

impl Space {
    /// Takes `size` bytes, where `free` looks how many there are.
    fn take(&mut self, size: u64, free: impl FnOnce() -> Result<u64>) -> Result<()> {
        // An object is at least one block.
        let size = size.max(4096);
        if self.left < size {
            let free = free()?;
            let usable = free.saturating_sub(RESERVE);
            if usable < size {
                return Err(Error::new(
                    ErrorKind::NoSpace,
                    format!("it needs {size} bytes more, and {free} are free"),
                )
                .detail("need", size)
                .detail("have", free));
            }
            self.left = usable.min(LOOK_EVERY).max(size);
        }
        self.left -= size;
        Ok(())
    }
}

impl<'a> Builder<'a> {
    fn new(repo: &'a ostree::Repo) -> Result<Self> {
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

    fn read(&mut self, tar: &mut (impl Read + Send)) -> Result<()> {
        let mut archive = Archive::new(tar);
        while let Some(entry) = archive.next().map_err(|e| malformed("it is not a valid tar archive", e))? {
            let path = mapped(&entry.path)?;
            self.add(&path, &entry, &mut archive)?;
        }
        let _ = archive.into_inner();
        Ok(())
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
                let object = self
                    .repo
                    .write_symlink(
                        None,
                        entry.uid,
                        entry.gid,
                        Some(&xattrs_variant(&xattrs)),
                        target,
                        gio::Cancellable::NONE,
                    )
                    .map_err(|e| in_path(path, unwritten("writing a link", e)))?;
                self.place(path, object.into())?;
                self.symlinks.insert(path.to_owned());
                Ok(())
            }
            Kind::Link(target) => self.hard_link(path, &mapped(target)?),
            Kind::Char { .. } | Kind::Block | Kind::Fifo if path.starts_with("dev/") => {
                self.devices.0 += 1;
                if self.devices.1.len() < NAMED {
                    self.devices.1.push(shown(path));
                }
                Ok(())
            }
            // An overlayfs whiteout inside the image, as nested container storage has them.
            Kind::Char { major: 0, minor: 0 } => {
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let mode = 0o100_000 | entry.mode;
                let object = self.inline(entry.uid, entry.gid, mode, &xattrs_variant(&xattrs), &[])?;
                let spelled = format!("{parent}/{PASSTHROUGH}{name}");
                self.place(spelled.trim_start_matches('/'), object)
            }
            Kind::Char { .. } | Kind::Block => Err(refused(path, "is a device, which cannot be in an image"))
                .map_err(|e| e.hint("devices are made at boot; remove it from the image")),
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
        self.forget(&super::merge::join(parent, &other));
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
            && let spelled = super::merge::join(up, &other_spelling(name))
            && let Found::File(object) = self.root.find(self.repo, &spelled)?
        {
            return self.place(&super::merge::join(parent, &other_spelling(own)), object);
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
        let mode = 0o100_000 | entry.mode;
        let broken = |e| malformed("its content cannot be read", e);
        self.space.take(entry.size, || free_bytes_of(self.repo.dfd_borrow()))?;
        let mut content = archive.content(entry);
        if entry.size <= INLINE {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(broken)?;
            return self.inline(entry.uid, entry.gid, mode, xattrs, &bytes);
        }
        let writer = self
            .repo
            .write_regfile(None, entry.uid, entry.gid, mode, entry.size, Some(xattrs))
            .map_err(|e| unwritten("writing a file", e))?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = content.read(&mut buffer).map_err(broken)?;
            if n == 0 {
                break;
            }
            let (_, failed) =
                writer.write_all(&buffer[..n], gio::Cancellable::NONE).doing("writing a file")?;
            failed.map_or(Ok(()), Err).doing("writing a file")?;
        }
        let object = writer.finish(gio::Cancellable::NONE).map_err(|e| unwritten("writing a file", e))?;
        Ok(object.into())
    }

    fn inline(&self, uid: u32, gid: u32, mode: u32, xattrs: &glib::Variant, bytes: &[u8]) -> Result<String> {
        let object = self
            .repo
            .write_regfile_inline(None, uid, gid, mode, Some(xattrs), bytes, gio::Cancellable::NONE)
            .map_err(|e| unwritten("writing a file", e))?;
        Ok(object.into())
    }

    /// Writes the commit and sets the refs within the current transaction.
    fn commit(self, digest: &Digest) -> Result<Vec<String>> {
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

/// Parent and name of a path; `None` for the root.
pub(super) fn split(path: &str) -> Option<(&str, &str)> {
    if path.is_empty() { None } else { Some(path.rsplit_once('/').unwrap_or(("", path))) }
}

/// The relative path under which an entry is stored: normalised, `/etc` as `/usr/etc`. The root is empty.
fn mapped(raw: &[u8]) -> Result<String> {
    let path = std::str::from_utf8(raw)
        .map_err(|_| refused(&String::from_utf8_lossy(raw), "is not UTF-8, which ostree needs"))?;
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refused(path, "climbs out of its directory")),
            part if part.contains('\0') => return Err(refused(path, "contains a NUL")),
            part if part.len() > MAX_NAME => return Err(refused(path, "has a name of more than 255 bytes")),
            part if part.strip_prefix(".wh.").unwrap_or(part).starts_with(PASSTHROUGH) => {
                return Err(refused(path, "has a name that libostree would make a device of"));
            }
            part => parts.push(part),
        }
    }
    // With room for the /usr of /usr/etc.
    if path.len() > MAX_PATH - 4 || parts.len() >= MAX_DEPTH {
        return Err(refused(path, "is longer or deeper than a path can be"));
    }
    match parts.first() {
        Some(&"etc") => parts.insert(0, "usr"),
        Some(&".wh.etc") => parts.insert(0, "usr"),
        _ => {}
    }
    Ok(parts.join("/"))
}

/// The name under which the other of two things that cannot be side by side is stored: a file, and a whiteout that is
/// content.
pub(super) fn other_spelling(name: &str) -> String {
    name.strip_prefix(PASSTHROUGH).map_or_else(|| format!("{PASSTHROUGH}{name}"), str::to_owned)
}

/// The extended attributes that belong to the content. Labels come from the target's policy, and overlayfs' own
/// notes mean nothing outside the machine that built the image. Refused is what a file system would not keep as it is:
/// the object would not have its checksum afterwards.
fn kept_xattrs(path: &str, entry: &Entry) -> Result<Xattrs> {
    let dropped = |name: &[u8]| {
        name == b"security.selinux"
            || name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.ima"
    };
    let mut kept = Xattrs::new();
    // Hard links have the attributes of their file, and of devices only whiteouts are kept.
    if matches!(entry.kind, Kind::Link(_)) {
        return Ok(kept);
    }
    let link = matches!(entry.kind, Kind::Symlink(_));
    let directory = entry.kind == Kind::Directory;
    // libostree cannot hold an attribute without a value.
    for (name, value) in entry.xattrs.iter().filter(|(n, v)| !dropped(n) && !v.is_empty()) {
        let text = String::from_utf8_lossy(name);
        let bad =
            |why: &str| Err(refused(path, &format!("has the extended attribute {}, {why}", one_line(&text))));
        if name.contains(&0) || name.len() > MAX_XATTR_NAME {
            return bad("whose name contains a NUL or is too long");
        }
        let acl = name == ACL_ACCESS || name == ACL_DEFAULT;
        let known = acl || ["user.", "trusted.", "security."].iter().any(|p| name.starts_with(p.as_bytes()));
        if !known {
            return bad("which a file system cannot store");
        }
        if link && (acl || name.starts_with(b"user.")) || name == ACL_DEFAULT && !directory {
            return bad("which an entry of its type cannot have");
        }
        if acl {
            match canonical_acl(value, (name == ACL_ACCESS).then_some(entry.mode)) {
                Ok(Some(acl)) => _ = kept.insert(name.clone(), acl),
                Ok(None) => {}
                Err(why) => return bad(why),
            }
        } else {
            kept.insert(name.clone(), value.clone());
        }
    }
    Ok(kept)
}

/// An ACL as the kernel gives it back; `None` if it says no more than the mode, as the kernel then stores none.
///
/// The format is that of `linux/posix_acl_xattr.h`: a version, then tag, permissions and id of each entry.
fn canonical_acl(value: &[u8], mode: Option<u32>) -> Result<Option<Vec<u8>>, &'static str> {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const NO_ID: [u8; 4] = [0xff; 4];
    const TAGS: [u16; 6] = [OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER];
    const OWNER: u16 = 0x01;
    const USER: u16 = 0x02;
    const OWNING_GROUP: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let (entries, rest) = value.strip_prefix(&VERSION).ok_or("which is no POSIX ACL")?.as_chunks::<8>();
    if !rest.is_empty() {
        return Err("which is no POSIX ACL");
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut canonical = VERSION.to_vec();
    let mut counts = [0_usize; TAGS.len()];
    let mut permissions = [0_u32; TAGS.len()];
    let mut last = 0;
    for [t0, t1, p0, p1, id @ ..] in entries {
        let tag = u16::from_le_bytes([*t0, *t1]);
        let at = TAGS.iter().position(|t| *t == tag).ok_or("which is no POSIX ACL")?;
        let named = matches!(tag, USER | GROUP);
        if at < last || *p0 > 7 || *p1 != 0 || named && *id == NO_ID || !named && counts[at] > 0 {
            return Err("which is no valid POSIX ACL");
        }
        (last, permissions[at]) = (at, u32::from(*p0));
        counts[at] += 1;
        canonical.extend_from_slice(&[*t0, *t1, *p0, *p1]);
        canonical.extend_from_slice(if named { id } else { &NO_ID });
    }
    let [owner, users, owning_group, groups, mask, other] = counts;
    if (owner, owning_group, other) != (1, 1, 1) || users + groups > 0 && mask == 0 {
        return Err("which is no valid POSIX ACL");
    }
    let Some(mode) = mode else { return Ok(Some(canonical)) };
    // The middle bits of the mode are the mask, where there is one: setting either changes the other.
    let middle = if mask > 0 { permissions[4] } else { permissions[2] };
    if mode & 0o777 != permissions[0] << 6 | middle << 3 | permissions[5] {
        return Err("which contradicts its mode");
    }
    Ok((mask > 0).then_some(canonical))
}

/// A path of the image as people may see it.
pub(super) fn shown(path: &str) -> String {
    format!("/{}", one_line(path.trim_start_matches('/')))
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{} {why}", shown(path))).detail("path", shown(path))
}

fn in_path(path: &str, error: Error) -> Error {
    let mut outer = Error::new(error.kind, shown(path)).detail("path", shown(path));
    outer.details.extend(error.details.clone());
    outer.source(error)
}

/// A failed write. An attribute that is too large for the file system is ENOSPC as well, and no full disk.
fn unwritten(doing: &'static str, error: glib::Error) -> Error {
    if error.message().contains("setxattr") {
        let why = "the file system of the repository does not take its extended attributes";
        return Error::new(ErrorKind::Unsupported, why).source(error);
    }
    Err::<(), _>(error).doing(doing).expect_err("an error stays one")
}

fn malformed(what: &str, error: io::Error) -> Error {
    // The proxy's own error says why a stream ended early; this one is then dropped by the caller.
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Corrupt,
    };
    let error = Error::new(kind, what.to_owned()).source(error);
    match kind {
        // Not of the repository, as the hint of the kind would have it.
        ErrorKind::Corrupt => error.hint("the image is damaged: build it, or push it, again"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_never_filled() {
        let mut space = Space::default();
        let looks = std::cell::Cell::new(0);
        let mut take = |size, free| {
            space.take(size, || {
                looks.set(looks.get() + 1);
                Ok(free)
            })
        };
        let plenty = RESERVE + (1 << 40);
        take(1 << 30, plenty).unwrap();
        for _ in 0..LOOK_EVERY / 4096 {
            take(1, plenty).unwrap();
        }
        assert_eq!(looks.get(), 2, "one look for the large file, and one for many small ones");
        for (size, free) in [(1, RESERVE), (1 << 30, RESERVE + (1 << 30) - 1), (u64::MAX, plenty)] {
            assert_eq!(take(size, free).unwrap_err().kind, ErrorKind::NoSpace, "{size} of {free}");
        }
        take(4096, RESERVE + 4096).unwrap();
    }

    #[test]
    fn paths_are_normalised_and_never_climb() {
        for (raw, expected) in [
            ("./", ""),
            ("/", ""),
            ("./usr//bin/./a", "usr/bin/a"),
            ("/usr/bin/", "usr/bin"),
            ("etc/passwd", "usr/etc/passwd"),
            (".wh.etc", "usr/.wh.etc"),
            ("etcetera", "etcetera"),
        ] {
            assert_eq!(mapped(raw.as_bytes()).unwrap(), expected, "{raw}");
        }
        for raw in [&b"../x"[..], b"usr/../../x", b"a\xff", b"a\0b"] {
            assert_eq!(mapped(raw).unwrap_err().kind, ErrorKind::Unsupported, "{raw:?}");
        }
    }
}
