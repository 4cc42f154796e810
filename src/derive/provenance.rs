//! What a derived commit says about itself: `/usr/lib/osctl/derived.json`.
//!
//! ```json
//! {"version": 1, "base-digest": "sha256:…", "input-digest": "sha256:…",
//!  "drop-ins": [{"name": "50-agent.yaml", "digest": "sha256:…"}],
//!  "paths": {"/etc/agent.conf": {"drop-in": "50-agent.yaml", "kind": "file", "effect": "added"}},
//!  "units": {"agent.service": {"drop-in": "50-agent.yaml", "enabled": true, "links": ["/etc/systemd/…"]}},
//!  "users": {"agent": {"drop-in": "50-agent.yaml", "digest": "sha256:…"}},
//!  "kernel-arguments": {"append": [{"arg": "nosmt", "drop-in": "50-agent.yaml"}], "delete": []}}
//! ```
//!
//! Everyone can read it, so it holds no content and no digest of a single private file.

use crate::model::image::Digest;
use crate::model::lock::{Lock, LockedPackage};
use crate::model::manifest::{Manifest, Node};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use std::collections::{BTreeMap, BTreeSet};

pub use crate::model::deviation::{Asked, Effect, Outcome};

/// Where the file lies in the tree.
pub const PATH: &str = "/usr/lib/osctl/derived.json";

/// The version of the format and of the rules that made the tree. A change of either derives anew.
pub const VERSION: u32 = 1;

/// A megabyte of provenance is some 5,000 declared paths; ten times that is a mistake.
const LIMIT: u64 = 10 << 20;

/// Where everything that was added to the base came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Provenance {
    /// [`VERSION`].
    pub version: u32,
    /// The manifest digest of the base image.
    pub base_digest: Digest,
    /// [`Manifest::input_digest`].
    pub input_digest: Digest,
    /// The drop-ins that contribute something, by name.
    pub drop_ins: Vec<Contribution>,
    /// Declared paths, as the booted system shows them.
    pub paths: BTreeMap<String, PathRecord>,
    /// Units by name.
    pub units: BTreeMap<String, UnitRecord>,
    /// Users by name.
    pub users: BTreeMap<String, UserRecord>,
    /// Groups by name, beside those of the users.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, UserRecord>,
    /// Kernel arguments, in merge order.
    pub kernel_arguments: KargRecords,
    /// Requests to the package manager, as they were made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, PackageRecord>,
    /// The digest of the lock, where there are packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock_digest: Option<Digest>,
}

/// Where a request came from, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PackageRecord {
    /// The drop-ins that ask for it.
    pub drop_ins: BTreeSet<String>,
    /// What they ask.
    pub asked: Asked,
    /// What became of it.
    pub outcome: Outcome,
    /// The version that the tree has because of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version: Option<String>,
}

/// A drop-in and the digest of what it contributes.
///
/// Not the digest of its bytes: a comment must not change the commit, and the same declarations give
/// the same commit wherever they stand. Contents of files that only their owner can read are left out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Contribution {
    /// File name of the drop-in.
    pub name: String,
    /// Digest of its declarations.
    pub digest: Digest,
}

/// The kind of a declared path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// Where a path came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PathRecord {
    /// The drop-in.
    pub drop_in: String,
    /// What it is.
    pub kind: PathKind,
    /// What it did to the base.
    pub effect: Effect,
}

/// Where a unit's state came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnitRecord {
    /// The drop-in.
    pub drop_in: String,
    /// Enabled, disabled, or left alone.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub enabled: Option<bool>,
    /// Linked to `/dev/null`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub mask: bool,
    /// The links that were made to enable it, or removed to disable it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub links: Vec<String>,
}

/// Where a user came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UserRecord {
    /// The drop-in.
    pub drop_in: String,
    /// Digest of the declaration.
    pub digest: Digest,
}

/// Kernel arguments with their owners.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KargRecords {
    /// Appended ones.
    pub append: Vec<KargRecord>,
    /// Deleted ones.
    pub delete: Vec<KargRecord>,
}

/// Where a kernel argument came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KargRecord {
    /// The argument.
    pub arg: String,
    /// The drop-in.
    pub drop_in: String,
}

impl Provenance {
    /// The record of a manifest, before paths and units are filled in.
    pub(super) fn new(base_digest: &Digest, input_digest: Digest, manifest: &Manifest) -> Provenance {
        Provenance {
            version: VERSION,
            base_digest: base_digest.clone(),
            input_digest,
            drop_ins: contributions(manifest),
            paths: BTreeMap::new(),
            units: BTreeMap::new(),
            users: users(manifest),
            groups: groups(manifest),
            kernel_arguments: kargs(manifest),
            packages: BTreeMap::new(),
            lock_digest: None,
        }
    }

    /// Reads the record of a tree; `None` if nothing was derived.
    ///
    /// Fails with `Corrupt` if the file cannot be read as a record of a version that we know.
    pub fn read(tree: &CommitTree) -> Result<Option<Provenance>> {
        let Some(bytes) = tree.read(PATH, LIMIT)? else { return Ok(None) };
        let record: Provenance =
            serde_json::from_slice(&bytes).kind(ErrorKind::Corrupt, format!("reading {PATH}"))?;
        if record.version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{PATH} has version {}, this osctl knows version {VERSION}", record.version),
            )
            .hint("use the osctl of the newer deployment"));
        }
        Ok(Some(record))
    }

    /// The file's content.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("maps with string keys always serialise");
        bytes.push(b'\n');
        bytes
    }
}

/// The requests of a manifest for packages and images, and what a lock says became of them.
pub(super) fn packages(manifest: &Manifest, lock: &Lock) -> BTreeMap<String, PackageRecord> {
    let name = |request: &str| request.split([':', '=']).next().unwrap_or_default().to_owned();
    let version = |request: &str| {
        let file = manifest.packages.local.get(request);
        let is_it = |package: &&LockedPackage| match file {
            Some(file) => package.digest == file.digest,
            None => {
                package.name == name(request)
                    || request.starts_with(&format!("{}-{}", package.name, package.version))
            }
        };
        lock.packages.iter().find(is_it).map(|p| p.version.clone())
    };
    let record = |asked, drop_ins: &BTreeSet<String>, applied: bool, version| PackageRecord {
        drop_ins: drop_ins.clone(),
        asked,
        outcome: if applied { Outcome::Applied } else { Outcome::Redundant },
        version,
    };
    let requests = &manifest.packages;
    let added = |asked| {
        move |(request, drop_ins): (&String, &BTreeSet<String>)| {
            let version = version(request);
            (request.clone(), record(asked, drop_ins, version.is_some(), version))
        }
    };
    let gone = |(request, drop_ins): (&String, &BTreeSet<String>)| {
        let applied = lock.removed.iter().any(|p| p.name == name(request));
        (request.clone(), record(Asked::Remove, drop_ins, applied, None))
    };
    let image = |asked, image: &String, drop_ins: BTreeSet<String>| {
        let digest = lock.images.get(image).map(Digest::to_string);
        (image.clone(), record(asked, &drop_ins, digest.is_some(), digest))
    };
    let all = requests.install.iter().map(added(Asked::Install));
    let all = all.chain(requests.replace.iter().map(added(Asked::Replace)));
    let all = all.chain(requests.remove.iter().map(gone));
    let extensions = requests.extensions.iter().map(|(name, by)| image(Asked::Extension, name, by.clone()));
    let layers = manifest.layers.iter().map(|l| image(Asked::Layer, &l.image, [l.owner.clone()].into()));
    all.chain(extensions).chain(layers).collect()
}

/// The users of a manifest, with their owners.
pub(super) fn users(manifest: &Manifest) -> BTreeMap<String, UserRecord> {
    let record = |user: &crate::model::manifest::User| UserRecord {
        drop_in: user.owner.clone(),
        digest: Digest::of(&serde_json::to_vec(user).expect("a record of strings always serialises")),
    };
    manifest.users.iter().map(|(name, user)| (name.clone(), record(user))).collect()
}

/// The groups of a manifest, with their owners.
pub(super) fn groups(manifest: &Manifest) -> BTreeMap<String, UserRecord> {
    let record = |group: &crate::model::manifest::Group| UserRecord {
        drop_in: group.owner.clone(),
        digest: Digest::of(&serde_json::to_vec(group).expect("a record of strings always serialises")),
    };
    manifest.groups.iter().map(|(name, group)| (name.clone(), record(group))).collect()
}

/// The kernel arguments of a manifest, with their owners.
pub(super) fn kargs(manifest: &Manifest) -> KargRecords {
    let record =
        |k: &crate::model::manifest::Karg| KargRecord { arg: k.arg.clone(), drop_in: k.owner.clone() };
    KargRecords {
        append: manifest.kargs_append.iter().map(record).collect(),
        delete: manifest.kargs_delete.iter().map(record).collect(),
    }
}

/// Which drop-ins contribute what, by name.
pub(super) fn contributions(manifest: &Manifest) -> Vec<Contribution> {
    let owners: BTreeSet<&str> = (manifest.nodes.values().map(Node::owner))
        .chain(manifest.units.values().map(|u| u.owner.as_str()))
        .chain(manifest.users.values().map(|u| u.owner.as_str()))
        .chain(manifest.groups.values().map(|g| g.owner.as_str()))
        .chain(manifest.kargs_append.iter().chain(&manifest.kargs_delete).map(|k| k.owner.as_str()))
        .chain(manifest.packages.owners())
        .chain(manifest.layers.iter().map(|layer| layer.owner.as_str()))
        .collect();
    let digest = |owner: &str| {
        let mut mine = manifest.only(|other| other == owner);
        mine.nodes.values_mut().for_each(|node| *node = without_secrets(node));
        mine.input_digest()
    };
    owners.into_iter().map(|name| Contribution { name: name.to_owned(), digest: digest(name) }).collect()
}

fn without_secrets(node: &Node) -> Node {
    match node {
        Node::File(f) if f.meta.mode & 0o077 == 0 => {
            Node::File(crate::model::manifest::File { contents: Vec::new().into(), ..f.clone() })
        }
        Node::File(_) | Node::Directory(_) | Node::Link(_) => node.clone(),
    }
}
