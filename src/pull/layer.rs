//! One layer: from the bytes of a blob to a commit under the standard blob ref.
//!
//! The commit holds the layer's entries as the tar has them, whiteout files included, with `/etc` as `/usr/etc`
//! (as the reference importer stores derived layers). What a tree cannot hold is in the commit's metadata:
//!
//! - `osctl.layer`: written by us, complete: a commit of another tool leaves out entries that plain images need;
//! - `osctl.implied`: directories that no entry describes: on merging, a directory below keeps its own metadata;
//! - `osctl.links`: hard links to a file of a lower layer, by path: resolved on merging, against the tree below.
//!
//! The ref is written by the transaction that commits the objects, after both digests were verified. So a layer
//! that has its ref is complete and never fetched again, after kill -9 as well.

use super::archive::{Archive, Entry, Kind};
use super::refs;
use super::tree::{Dir, Found, Xattrs, write_dirmeta, xattrs_variant};
use super::types::Layer;
use crate::model::image::Digest;
use crate::model::{Context, Error, ErrorKind, Result};
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

/// A layer in the repository.
#[derive(Debug)]
pub(super) struct Stored {
    pub tree: Dir,
    pub implied: BTreeSet<String>,
    pub links: BTreeMap<String, String>,
}

/// The finished layer, if it is here in our layout.
pub(super) fn find(repo: &ostree::Repo, layer: &Layer) -> Result<Option<Stored>> {
    let name = refs::of_layer(&layer.digest)?;
    let Some(commit) = repo.resolve_rev(&name, true).doing_with(|| format!("looking up {name}"))? else {
        return Ok(None);
    };
    let (variant, state) = repo.load_commit(&commit).doing_with(|| format!("reading {name}"))?;
    let meta = glib::VariantDict::new(Some(&variant.child_value(0)));
    let ours = meta.lookup::<u32>(META_LAYER).ok().flatten() == Some(LAYOUT);
    if !ours || state.contains(ostree::RepoCommitState::PARTIAL) {
        return Ok(None);
    }
    let implied = meta.lookup::<Vec<String>>(META_IMPLIED).ok().flatten().unwrap_or_default();
    let links = meta.lookup::<BTreeMap<String, String>>(META_LINKS).ok().flatten().unwrap_or_default();
    Ok(Some(Stored { tree: Dir::of_commit(repo, &commit)?, implied: implied.into_iter().collect(), links }))
}

/// Imports a blob and writes its ref. Returns remarks for people.
pub(super) fn import(repo: &ostree::Repo, layer: &Layer, blob: impl Read + Send) -> Result<Vec<String>> {
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
    if drained.is_ok() && blob.count > 0 {
        let found = blob.finish();
        if found != layer.digest {
            return Err(mismatch("blob", &layer.digest, &found));
        }
    }
    read.map_err(|e| in_layer(layer, e))?;
    drained.doing_with(doing)?;
    if diff_id != layer.diff_id {
        return Err(mismatch("uncompressed layer", &layer.diff_id, &diff_id));
    }
    let notes = builder.commit(layer)?;
    transaction.commit(gio::Cancellable::NONE).doing_with(doing)?;
    Ok(notes)
}

/// As [`import`] for local storage, which has the uncompressed stream only: the blob's digest cannot be checked,
/// the uncompressed one is.
pub(super) fn import_uncompressed(
    repo: &ostree::Repo,
    layer: &Layer,
    tar: impl Read + Send,
) -> Result<Vec<String>> {
    let stored = Layer { digest: layer.diff_id.clone(), ..layer.clone() };
    let notes = import(repo, &stored, tar)?;
    let doing = || format!("naming layer {}", layer.digest);
    let commit = repo.require_rev(&refs::of_layer(&stored.digest)?).doing_with(doing)?;
    repo.set_ref_immediate(None, &refs::of_layer(&layer.digest)?, Some(&commit), gio::Cancellable::NONE)
        .doing_with(doing)?;
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
    /// Metadata objects by owner, group, mode and attributes: most directories share a few.
    metas: HashMap<(u32, u32, u32, Xattrs), String>,
    notes: Vec<String>,
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
            notes: Vec::new(),
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
        let xattrs = kept_xattrs(entry);
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
                    .doing_with(|| format!("writing link /{path}"))?;
                self.place(path, object.into())?;
                self.symlinks.insert(path.to_owned());
                Ok(())
            }
            Kind::Link(target) => self.hard_link(path, &mapped(target)?),
            Kind::Char { .. } | Kind::Block | Kind::Fifo if path.starts_with("dev/") => {
                self.notes.push(format!("left out the device /{path}: /dev is made at boot"));
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
        let key = (entry.uid, entry.gid, entry.mode, xattrs.clone());
        let meta = match self.metas.get(&key) {
            Some(meta) => meta.clone(),
            None => {
                let meta = write_dirmeta(self.repo, entry.uid, entry.gid, entry.mode, xattrs)?;
                self.metas.insert(key, meta.clone());
                meta
            }
        };
        if let Some((parent, name)) = split(path) {
            let repo = self.repo;
            let entries = self.parent(parent)?.open(repo)?;
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
        let entries = self.parent(parent)?.open(repo)?;
        entries.dirs.remove(name);
        entries.files.insert(name.to_owned(), object);
        self.forget(path);
        Ok(())
    }

    /// Drops what was noted about a path, and about everything below it, that is replaced.
    fn forget(&mut self, path: &str) {
        let below = format!("{path}/");
        let stale = |p: &String| p == path || p.starts_with(&below);
        self.symlinks.retain(|p| !stale(p));
        self.implied.retain(|p| !stale(p));
        self.links.retain(|p, _| !stale(p));
    }

    fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        if path == target {
            return Err(refused(path, "is a hard link to itself"));
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
                let (parent, name) = split(path).expect("the root is handled by the caller");
                let repo = self.repo;
                let entries = self.parent(parent)?.open(repo)?;
                entries.files.remove(name);
                entries.dirs.remove(name);
                self.forget(path);
                self.links.insert(path.to_owned(), target.to_owned());
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
        &self,
        entry: &Entry,
        xattrs: &glib::Variant,
        archive: &mut Archive<impl Read>,
    ) -> Result<String> {
        let mode = 0o100_000 | entry.mode;
        let broken = |e| malformed("its content cannot be read", e);
        let mut content = archive.content(entry);
        if entry.size <= INLINE {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes).map_err(broken)?;
            return self.inline(entry.uid, entry.gid, mode, xattrs, &bytes);
        }
        let writer = self
            .repo
            .write_regfile(None, entry.uid, entry.gid, mode, entry.size, Some(xattrs))
            .doing("writing a file")?;
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
        Ok(writer.finish(gio::Cancellable::NONE).doing("writing a file")?.into())
    }

    fn inline(&self, uid: u32, gid: u32, mode: u32, xattrs: &glib::Variant, bytes: &[u8]) -> Result<String> {
        let object = self
            .repo
            .write_regfile_inline(None, uid, gid, mode, Some(xattrs), bytes, gio::Cancellable::NONE)
            .doing("writing a file")?;
        Ok(object.into())
    }

    /// Writes the commit and sets the ref within the current transaction.
    fn commit(self, layer: &Layer) -> Result<Vec<String>> {
        let doing = || format!("writing the commit of layer {}", layer.digest);
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
        self.repo.transaction_set_ref(None, &refs::of_layer(&layer.digest)?, Some(&commit));
        Ok(self.notes)
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
            part => parts.push(part),
        }
    }
    match parts.first() {
        Some(&"etc") => parts.insert(0, "usr"),
        Some(&".wh.etc") => parts.insert(0, "usr"),
        _ => {}
    }
    Ok(parts.join("/"))
}

/// The extended attributes that belong to the content. Labels come from the target's policy, and overlayfs' own
/// notes mean nothing outside the machine that built the image.
fn kept_xattrs(entry: &Entry) -> Xattrs {
    let dropped = |name: &[u8]| {
        name == b"security.selinux"
            || name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.ima"
    };
    entry.xattrs.iter().filter(|(n, _)| !dropped(n)).map(|(n, v)| (n.clone(), v.clone())).collect()
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("/{} {why}", path.trim_start_matches('/')))
        .detail("path", format!("/{}", path.trim_start_matches('/')))
}

fn in_path(path: &str, error: Error) -> Error {
    Error::new(error.kind, format!("/{path}")).source(error)
}

fn malformed(what: &str, error: io::Error) -> Error {
    // The proxy's own error says why a stream ended early; this one is then dropped by the caller.
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        _ => ErrorKind::InvalidArgument,
    };
    Error::new(kind, what.to_owned()).source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

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
