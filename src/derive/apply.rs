//! From a base commit and a manifest to a derived commit.
//!
//! The same base content and the same declarations give the same commit checksum on every host:
//!
//! * the timestamp is the base's; there is no parent, subject, body, reference, host or tool version;
//! * the metadata is a fixed list of the base's keys ([`KEPT`]) and our own (`osctl.*`);
//! * the checksum of the *base commit* is not in it. Two importers may give the same image different
//!   commits (ostree-ext records its own version), and the digest already names the content. The base commit
//!   is kept beside the commit, in detached metadata and in the name of the reference.
//!
//! ```text
//! osctl/derived/<base commit>/<64 hex digits of the input digest, with packages of that and the lock's> -> the derived commit
//! ```
//!
//! That reference keeps the commit from being pruned before it is staged, and is how the work is found again.
//!
//! Rules: a declared path is resolved inside the tree and must stay in `/usr`, or for `/etc` in `/etc`;
//! a base file is replaced only with `overwrite: true`; a directory never becomes a file nor a file a directory;
//! existing directories keep their owner and mode; what the base already has exactly is left alone, label included.

use super::mtree::{self, Entry, Place, Tree};
use super::packages::layer::{KERNEL, Layer};
use super::provenance::{self, Effect, PathKind, PathRecord, Provenance};
use super::units;
use crate::model::dropin::path::forbidden;
use crate::model::dropin::with_entries_of;
use crate::model::image::Digest;
use crate::model::lock::Lock;
use crate::model::manifest::{Manifest, Meta, Node};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::prune::{META_CONTENTS, META_LOCK_DIGEST};
use crate::store::tree::CommitTree;
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeMap;

/// References to derived commits start with this.
pub const REF_PREFIX: &str = "osctl/derived";

/// Metadata: the manifest digest of the base image.
pub const META_BASE_DIGEST: &str = "osctl.base-digest";
/// Metadata: the input digest of the manifest.
pub const META_INPUT_DIGEST: &str = "osctl.input-digest";
/// Metadata: kernel arguments and their drop-ins, as JSON.
pub const META_KARGS: &str = "osctl.kargs";
/// Metadata: names and digests of the drop-ins, as JSON.
pub const META_DROP_INS: &str = "osctl.drop-ins";
/// Metadata: the version of the derivation rules.
pub const META_VERSION: &str = "osctl.derivation-version";
/// Detached metadata: the commit that was derived from.
pub const META_BASE_COMMIT: &str = "osctl.base-commit";

/// The base's metadata that a derived commit keeps.
///
/// What booting and status need, all of it decided by the image. Digests over the tree
/// (`ostree.composefs.*`), bindings to references and the importer's version are not: they would be wrong, or differ
/// between hosts. The manifest protects the base's layers from the reference tool's garbage collection.
pub const KEPT: [&str; 7] = [
    "ostree.architecture",
    "ostree.bootable",
    "ostree.container.image-config",
    "ostree.linux",
    "ostree.manifest",
    "ostree.manifest-digest",
    "version",
];

/// The file that declares the users of all drop-ins.
const SYSUSERS: &str = "/usr/lib/sysusers.d/osctl-derived.conf";

/// What the owner and mode of generated files are.
const PLAIN: Meta = Meta { mode: 0o644, uid: 0, gid: 0 };

/// The links, as (path, target), that enabling a unit with this name and text makes.
///
/// A relative path is below `/etc/systemd/system`.
pub type InstallLinks = fn(&str, &str) -> Result<Vec<(String, String)>>;

/// Parts of the work that belong to decoding, passed in so that this room needs no unit parser.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Reads the `[Install]` section of a unit.
    pub install_links: InstallLinks,
    /// The text of a sysusers.d(5) file with all users, if there are any.
    pub sysusers: fn(&Manifest) -> Option<String>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooks")
    }
}

/// A commit that holds the base and everything the drop-ins declare.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "bind it and stage it"]
pub struct Derived {
    /// The derived commit; the base commit itself if there is nothing to derive.
    pub commit: String,
    /// The commit that was derived from.
    pub base_commit: String,
    /// The digest of the manifest.
    pub input_digest: Digest,
    /// Where everything came from.
    pub provenance: Provenance,
}

/// Derives a commit, or finds the one that is already there.
///
/// Works in memory and in one transaction: a failure or a crash leaves no reference behind. Fails with
/// `InvalidDropIn` (the drop-in, the path and a hint) where the manifest does not fit the base, with `Unsupported`
/// where it changes the SELinux policy that everything is labelled by.
pub fn commit(
    repo: &ostree::Repo,
    base_commit: &str,
    base_digest: &Digest,
    layer: Option<&Layer>,
    manifest: &Manifest,
    hooks: Hooks,
    cancellable: Option<&gio::Cancellable>,
) -> Result<Derived> {
    derive(repo, base_commit, base_digest, layer, manifest, hooks, cancellable).map_err(|e| {
        // libostree's own "Operation was cancelled" comes up from whatever it was doing.
        if cancellable.is_some_and(|c| c.is_cancelled()) { cancelled().source(e) } else { e }
    })
}

fn derive(
    repo: &ostree::Repo,
    base_commit: &str,
    base_digest: &Digest,
    layer: Option<&Layer>,
    manifest: &Manifest,
    hooks: Hooks,
    cancellable: Option<&gio::Cancellable>,
) -> Result<Derived> {
    let input_digest = manifest.input_digest();
    let key = key(&input_digest, layer);
    let mut provenance = Provenance::new(base_digest, input_digest.clone(), manifest);
    if let Some(layer) = layer {
        provenance.lock_digest = Some(layer.lock.digest());
        provenance.packages = provenance::packages(manifest, &layer.lock);
    }
    if manifest.is_empty() {
        let commit = base_commit.to_owned();
        return Ok(Derived { base_commit: commit.clone(), commit, input_digest, provenance });
    }
    if let Some(found) = find(repo, base_commit, &key)?
        && found.provenance.base_digest == *base_digest
    {
        return Ok(found);
    }

    let read = |commit: &str| {
        repo.load_variant(ostree::ObjectType::Commit, commit)
            .doing_with(|| format!("reading commit {commit}"))
    };
    let base = read(base_commit)?;
    let layered = layer.map(|layer| read(&layer.commit)).transpose()?;
    let transaction = repo.auto_transaction(cancellable).doing("starting a repository transaction")?;
    let mut builder = Builder {
        tree: Tree::open(repo, layer.map_or(base_commit, |l| &l.commit), cancellable)?,
        placed: BTreeMap::new(),
        cancellable,
    };
    for (path, node) in &manifest.nodes {
        let record = builder.declare(path, node)?;
        provenance.paths.insert(path.clone(), record);
    }
    for (name, unit) in &manifest.units {
        let record = units::apply(&mut builder, name, unit, hooks.install_links)?;
        provenance.units.insert(name.clone(), record);
    }
    if let Some(text) = (hooks.sysusers)(manifest) {
        let text = match builder.text(SYSUSERS)? {
            Some(base) => with_entries_of(&base, &text),
            None => text,
        };
        builder.generate(SYSUSERS, text.as_bytes())?;
    }
    builder.generate(provenance::PATH, &provenance.to_bytes())?;

    let root = builder.tree.write()?;
    let commit = repo
        .write_commit_with_time(
            None,
            None,
            None,
            Some(&metadata(&base, layered.as_ref(), &provenance, layer.map(|layer| &layer.lock))),
            &root,
            ostree::commit_get_timestamp(&base),
            cancellable,
        )
        .doing("writing the derived commit")?
        .to_string();
    let beside = BTreeMap::from([(META_BASE_COMMIT, base_commit.to_variant())]).to_variant();
    repo.write_commit_detached_metadata(&commit, Some(&beside), cancellable)
        .doing("recording the base of the derived commit")?;
    repo.transaction_set_ref(None, &reference(base_commit, &key), Some(&commit));
    transaction.commit(cancellable).doing("committing the derived tree")?;
    Ok(Derived { commit, base_commit: base_commit.to_owned(), input_digest, provenance })
}

/// What decides a derived commit beside its base: what is declared, and what packages that came to.
pub fn key(input_digest: &Digest, layer: Option<&Layer>) -> Digest {
    match layer {
        None => input_digest.clone(),
        Some(layer) => Digest::of(format!("{input_digest} {}", layer.lock.digest()).as_bytes()),
    }
}

/// Finds the commit that was derived from this base by this [`key`] and these rules, if it is still there.
pub fn find(repo: &ostree::Repo, base_commit: &str, key: &Digest) -> Result<Option<Derived>> {
    let name = reference(base_commit, key);
    let Some(commit) = repo.resolve_rev(&name, true).doing_with(|| format!("looking up {name}"))? else {
        return Ok(None);
    };
    let object = repo
        .load_variant(ostree::ObjectType::Commit, &commit)
        .doing_with(|| format!("reading derived commit {commit}"))?;
    let version = metadata_entries(&object).remove(META_VERSION).and_then(|v| v.get::<u32>());
    if version != Some(provenance::VERSION) {
        return Ok(None);
    }
    let Some(provenance) = Provenance::read(&CommitTree::open(repo, &commit)?)? else { return Ok(None) };
    Ok(Some(Derived {
        commit: commit.into(),
        base_commit: base_commit.to_owned(),
        input_digest: provenance.input_digest.clone(),
        provenance,
    }))
}

/// The commit that a derived commit was made from; `None` if the commit is not a derived one.
pub fn base_of(repo: &ostree::Repo, commit: &str) -> Result<Option<String>> {
    let beside = repo
        .read_commit_detached_metadata(commit, gio::Cancellable::NONE)
        .doing_with(|| format!("reading the detached metadata of commit {commit}"))?;
    Ok(beside.and_then(|dict| entries(&dict).remove(META_BASE_COMMIT)).and_then(|v| v.get::<String>()))
}

/// The reference under which a derived commit is kept.
pub fn reference(base_commit: &str, key: &Digest) -> String {
    format!("{REF_PREFIX}/{base_commit}/{}", key.hex())
}

fn metadata(
    base: &glib::Variant,
    layer: Option<&glib::Variant>,
    provenance: &Provenance,
    lock: Option<&Lock>,
) -> glib::Variant {
    let json = |value: serde_json::Result<String>| {
        value.expect("lists of records with string keys always serialise").to_variant()
    };
    let inherited = metadata_entries(base);
    // A map, because the order of the entries is part of the checksum.
    let mut all: BTreeMap<&str, glib::Variant> =
        KEPT.iter().filter_map(|key| Some((*key, inherited.get(*key)?.clone()))).collect();
    if let Some(kernel) = layer.and_then(|layer| metadata_entries(layer).remove(KERNEL)) {
        all.insert(KERNEL, kernel);
    }
    all.insert(META_BASE_DIGEST, provenance.base_digest.as_str().to_variant());
    all.insert(META_INPUT_DIGEST, provenance.input_digest.as_str().to_variant());
    all.insert(META_KARGS, json(serde_json::to_string(&provenance.kernel_arguments)));
    all.insert(META_DROP_INS, json(serde_json::to_string(&provenance.drop_ins)));
    if let Some(lock) = &provenance.lock_digest {
        all.insert(META_LOCK_DIGEST, lock.as_str().to_variant());
    }
    let images: Vec<&str> = lock.iter().flat_map(|lock| lock.images.values()).map(Digest::as_str).collect();
    if !images.is_empty() {
        all.insert(META_CONTENTS, images.to_variant());
    }
    all.insert(META_VERSION, provenance::VERSION.to_variant());
    all.to_variant()
}

fn metadata_entries(commit: &glib::Variant) -> BTreeMap<String, glib::Variant> {
    entries(&commit.child_value(0))
}

fn entries(dict: &glib::Variant) -> BTreeMap<String, glib::Variant> {
    dict.iter()
        .filter_map(|entry| Some((entry.child_value(0).get::<String>()?, entry.child_value(1).as_variant()?)))
        .collect()
}

/// An error about one path of one drop-in.
pub(super) fn refuse(owner: &str, path: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidDropIn, format!("{owner}: {path} {what}"))
        .detail("drop-in", owner)
        .detail("path", path)
}

/// The tree while drop-ins are applied to it.
pub(super) struct Builder<'a> {
    pub tree: Tree<'a>,
    /// Real paths that are declared: the drop-in and the path as declared.
    placed: BTreeMap<String, (String, String)>,
    cancellable: Option<&'a gio::Cancellable>,
}

impl Builder<'_> {
    /// Applies one declared path.
    pub fn declare(&mut self, path: &str, node: &Node) -> Result<PathRecord> {
        if self.cancellable.is_some_and(|c| c.is_cancelled()) {
            return Err(cancelled());
        }
        let owner = node.owner();
        let real = self.place(owner, path)?;
        let (kind, effect) = match node {
            Node::File(f) => {
                let contents = f.contents.bytes().ok_or_else(|| not_fetched(owner, path))?;
                let effect = match self.tree.at(&real)? {
                    None => Effect::Added,
                    Some(Entry::Directory(_)) => return Err(over_directory(owner, path, "file")),
                    Some(Entry::File { checksum, info })
                        if self.tree.is_same_file(&checksum, &info, &f.meta, contents)? =>
                    {
                        Effect::Unchanged
                    }
                    Some(Entry::File { .. } | Entry::Link { .. }) if f.overwrite => Effect::Replaced,
                    Some(Entry::File { .. }) => return Err(needs_overwrite(owner, path, "a file")),
                    Some(Entry::Link { .. }) => return Err(needs_overwrite(owner, path, "a symbolic link")),
                };
                if effect != Effect::Unchanged {
                    self.may_write(owner, path, &real)?;
                    self.tree.put_file(&real, &f.meta, contents)?;
                }
                (PathKind::File, effect)
            }
            Node::Link(l) => {
                let effect = match self.tree.at(&real)? {
                    None => Effect::Added,
                    Some(Entry::Directory(_)) => return Err(over_directory(owner, path, "link")),
                    Some(Entry::Link { target }) if target == l.target => Effect::Unchanged,
                    Some(Entry::File { .. } | Entry::Link { .. }) if l.overwrite => Effect::Replaced,
                    Some(Entry::File { .. }) => return Err(needs_overwrite(owner, path, "a file")),
                    Some(Entry::Link { target }) => {
                        return Err(needs_overwrite(owner, path, &format!("a symbolic link to {target}")));
                    }
                };
                if effect != Effect::Unchanged {
                    self.may_write(owner, path, &real)?;
                    self.tree.put_link(&real, &l.target)?;
                }
                (PathKind::Link, effect)
            }
            Node::Directory(d) => (PathKind::Directory, self.declare_directory(owner, path, &real, &d.meta)?),
        };
        self.placed.insert(real, (owner.to_owned(), path.to_owned()));
        Ok(PathRecord { drop_in: owner.to_owned(), kind, effect })
    }

    fn declare_directory(&self, owner: &str, path: &str, real: &str, meta: &Meta) -> Result<Effect> {
        match self.tree.at(real)? {
            None => {
                self.may_write(owner, path, real)?;
                self.tree.put_directory(real, meta)?;
                Ok(Effect::Added)
            }
            Some(Entry::Directory(dir)) => {
                let has = self.tree.directory_meta(&dir)?;
                if has == *meta {
                    return Ok(Effect::Unchanged);
                }
                // Silently keeping the base's would leave a directory open that its author believes closed.
                Err(refuse(
                    owner,
                    path,
                    format!(
                        "is already a directory with mode {:04o} and owner {}:{}; a drop-in cannot change it to {:04o} {}:{}",
                        has.mode, has.uid, has.gid, meta.mode, meta.uid, meta.gid
                    ),
                )
                .hint("leave the directory out of the drop-in, or declare it with the mode and owner it has"))
            }
            Some(Entry::File { .. }) => Err(refuse(owner, path, "is a file in the base, not a directory")
                .hint("choose another path: a file never becomes a directory")),
            Some(Entry::Link { target }) => Err(refuse(
                owner,
                path,
                format!("is a symbolic link to {target} in the base, not a directory"),
            )
            .hint("declare the directory that the link points to")),
        }
    }

    /// Resolves a declared path and refuses what leaves its half of the tree.
    pub fn place(&self, owner: &str, path: &str) -> Result<String> {
        let Place { real, crossed, blocked_by } = self
            .tree
            .resolve(path, false)
            .map_err(|e| refuse(owner, path, "cannot be resolved in the base").source(e))?;
        if let Some(file) = blocked_by {
            return Err(refuse(
                owner,
                path,
                format!("cannot be placed: {} is not a directory", mtree::as_booted(&file)),
            )
            .hint("choose another path: a file never becomes a directory"));
        }
        if let Some((link, (other, _))) = crossed.iter().find_map(|l| Some((l, self.placed.get(l)?))) {
            return Err(refuse(
                owner,
                path,
                format!("goes through the symbolic link {} that {other} declares", mtree::as_booted(link)),
            )
            .hint("declare the path that the link points to"));
        }
        let seen = mtree::as_booted(&real);
        let top = if path.starts_with("/etc/") { "/etc/" } else { "/usr/" };
        if !seen.starts_with(top) {
            return Err(refuse(
                owner,
                path,
                format!(
                    "leaves {} through a symbolic link of the base: it is {seen}",
                    top.trim_end_matches('/')
                ),
            )
            .hint("declare the path that the link points to, if it is in /usr or /etc"));
        }
        if let Some(top) = forbidden(&seen) {
            return Err(refuse(owner, path, format!("is {seen}, and {top} is never changed by drop-ins"))
                .hint("the symbolic link on the way is the base's: declare another path"));
        }
        if let Some((other, as_declared)) = self.placed.get(&real) {
            return Err(refuse(owner, path, format!("is the same path as {as_declared} of {other}"))
                .hint("declare it once"));
        }
        Ok(real)
    }

    /// Refuses writes that would make the labels of everything else stale.
    fn may_write(&self, owner: &str, path: &str, real: &str) -> Result<()> {
        if self.tree.is_labelled() && Tree::is_policy(real) {
            let mut error = refuse(owner, path, "would change the SELinux policy of the base").hint(
                "put the policy change into the image: relabelling the whole tree is not supported yet",
            );
            error.kind = ErrorKind::Unsupported;
            return Err(error);
        }
        Ok(())
    }

    /// The drop-in that declares a real path.
    pub fn owner_of(&self, real: &str) -> Option<&str> {
        self.placed.get(real).map(|(owner, _)| owner.as_str())
    }

    /// The text of a file of our own that the base has: an image that was built from a derived tree.
    fn text(&self, path: &str) -> Result<Option<String>> {
        match self.tree.at(&self.tree.resolve(path, false)?.real)? {
            Some(Entry::File { checksum, .. }) => {
                Ok(Some(String::from_utf8_lossy(&self.tree.content(&checksum)?).into_owned()))
            }
            Some(Entry::Directory(_) | Entry::Link { .. }) | None => Ok(None),
        }
    }

    /// Writes a file of our own. One that the base has (an image built from a derived tree) is replaced.
    fn generate(&self, path: &str, contents: &[u8]) -> Result<()> {
        let place = self.tree.resolve(path, false)?;
        let usable = place.blocked_by.is_none()
            && place.real.starts_with("/usr/lib/")
            && !matches!(self.tree.at(&place.real)?, Some(Entry::Directory(_)));
        if let Some(owner) = self.owner_of(&place.real) {
            return Err(refuse(owner, path, "is written by osctl itself").hint("choose another path"));
        }
        if !usable {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the base has no room for {path}: it is {}", place.real),
            )
            .hint("ship /usr/lib/osctl and /usr/lib/sysusers.d as directories in the image"));
        }
        self.tree.put_file(&place.real, &PLAIN, contents)
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the job was cancelled; the running system is unchanged")
}

fn not_fetched(owner: &str, path: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("{owner}: the content of {path} was not fetched; nothing was staged"),
    )
}

fn needs_overwrite(owner: &str, path: &str, what: &str) -> Error {
    refuse(owner, path, format!("would replace {what} of the base"))
        .hint("add overwrite: true if that is meant")
}

fn over_directory(owner: &str, path: &str, what: &str) -> Error {
    refuse(owner, path, format!("is a directory in the base, not a {what}"))
        .hint("choose another path: a directory is never replaced")
}

#[cfg(test)]
mod tests;
