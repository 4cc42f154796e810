//! The one manifest that every kind of drop-in is compiled into.
//!
//! A [`Manifest`] is the merged, validated desired state: what decoding produces and what deriving
//! consumes. Every entry knows the drop-in it came from.

use super::contents::Contents;
use super::image::Digest;
use super::layers::LayerImage;
use super::packages::{OnUnavailable, Packages};
use std::collections::{BTreeMap, BTreeSet};

/// The name of the drop-in (`50-agent.yaml`) that an entry came from.
pub type Owner = String;

/// What to do where the administrator changed a declared `/etc` path by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflict {
    /// Fail with `EtcConflict`.
    #[default]
    Error,
    /// Leave the local file in place, and say so in every status.
    KeepLocal,
    /// Save the local file aside and take the declared one.
    Take,
}

/// Ownership and mode of a file or directory. Owners are numeric or names of the target tree.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Meta {
    /// Permission bits, at most `0o7777`.
    pub mode: u32,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// A declared regular file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct File {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// Mode and owner.
    pub meta: Meta,
    /// The whole content. `local:` contents are already read in.
    pub contents: Contents,
    /// Whether it may replace a file of the base.
    pub overwrite: bool,
    /// What to do on local changes of an `/etc` path.
    pub on_conflict: OnConflict,
}

/// A declared directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Directory {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// Mode and owner.
    pub meta: Meta,
}

/// A declared symbolic link.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Link {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// What the link says, verbatim.
    pub target: String,
    /// Whether it may replace an entry of the base.
    pub overwrite: bool,
    /// What to do on local changes of an `/etc` path.
    pub on_conflict: OnConflict,
}

/// What is at a declared path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Node {
    /// A regular file.
    File(File),
    /// A directory.
    Directory(Directory),
    /// A symbolic link.
    Link(Link),
}

impl Node {
    /// The drop-in that declares the path.
    pub fn owner(&self) -> &str {
        match self {
            Node::File(f) => &f.owner,
            Node::Directory(d) => &d.owner,
            Node::Link(l) => &l.owner,
        }
    }
}

/// A unit to enable, disable or mask. Its files are already among the nodes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unit {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// Enabled, disabled, or left alone.
    pub enabled: Option<bool>,
    /// Linked to `/dev/null`.
    pub mask: bool,
}

/// A system user that becomes a sysusers.d(5) entry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct User {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// The uid, if the drop-in pins one.
    pub uid: Option<u32>,
    /// The GECOS field.
    pub gecos: Option<String>,
    /// The home directory field.
    pub home: Option<String>,
    /// The login shell.
    pub shell: Option<String>,
}

/// A system group that becomes a sysusers.d(5) entry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Group {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// The gid, if the drop-in pins one.
    pub gid: Option<u32>,
}

/// A kernel argument that a drop-in appends or deletes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Karg {
    /// The drop-in that asks for it.
    pub owner: Owner,
    /// The argument, `key` or `key=value`.
    pub arg: String,
}

/// One drop-in as it was read, for status and change detection.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    /// File name, `50-agent.yaml`.
    pub name: Owner,
    /// Where it was found, as the administrator would write it: `/etc/osctl/derive.d/50-agent.yaml`.
    pub path: String,
    /// Digest of the bytes of the drop-in itself.
    pub digest: Digest,
}

/// All drop-ins, merged.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Manifest {
    /// The drop-ins, in merge order.
    pub sources: Vec<Source>,
    /// Declared paths (absolute, normalised, `/etc/...` or `/usr/...`) in path order. Unit files and
    /// their drop-ins are here as well.
    pub nodes: BTreeMap<String, Node>,
    /// Units by name.
    pub units: BTreeMap<String, Unit>,
    /// System users by name.
    pub users: BTreeMap<String, User>,
    /// System groups by name, beside those of the users.
    pub groups: BTreeMap<String, Group>,
    /// What is asked of the package manager.
    pub packages: Packages,
    /// Images on top of the base, lowest first.
    pub layers: Vec<LayerImage>,
    /// Appended kernel arguments, in merge order.
    pub kargs_append: Vec<Karg>,
    /// Deleted kernel arguments, in merge order.
    pub kargs_delete: Vec<Karg>,
}

impl Manifest {
    /// Whether there is nothing to derive.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.units.is_empty()
            && self.users.is_empty()
            && self.groups.is_empty()
            && self.packages.is_empty()
            && self.layers.is_empty()
            && self.kargs_append.is_empty()
            && self.kargs_delete.is_empty()
    }

    /// What the drop-ins declare that `keep` names.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Manifest {
        fn kept<V: Clone>(map: &BTreeMap<String, V>, keep: impl Fn(&V) -> bool) -> BTreeMap<String, V> {
            map.iter().filter(|(_, v)| keep(v)).map(|(k, v)| (k.clone(), v.clone())).collect()
        }
        let kargs = |all: &[Karg]| all.iter().filter(|k| keep(&k.owner)).cloned().collect();
        Manifest {
            sources: self.sources.iter().filter(|s| keep(&s.name)).cloned().collect(),
            nodes: kept(&self.nodes, |n| keep(n.owner())),
            units: kept(&self.units, |u| keep(&u.owner)),
            users: kept(&self.users, |u| keep(&u.owner)),
            groups: kept(&self.groups, |g| keep(&g.owner)),
            packages: self.packages.only(&keep),
            layers: self.layers.iter().filter(|l| keep(&l.owner)).cloned().collect(),
            kargs_append: kargs(&self.kargs_append),
            kargs_delete: kargs(&self.kargs_delete),
        }
    }

    /// The drop-ins that ask for packages or images, and have this policy.
    pub fn with_policy(&self, policy: OnUnavailable) -> BTreeSet<Owner> {
        let of = |owner: &Owner| self.packages.on_unavailable.get(owner).copied().unwrap_or_default();
        let layers = self.layers.iter().map(|l| &l.owner).filter(|owner| of(owner) == policy);
        self.packages.with_policy(policy).into_iter().chain(layers.cloned()).collect()
    }

    /// The digest of everything that decides the derived commit.
    ///
    /// Paths of the drop-ins on this host and their comments are left out: the same declarations give the
    /// same digest wherever they lie. The owner names stay in, because provenance is part of the commit.
    pub fn input_digest(&self) -> Digest {
        #[derive(serde::Serialize)]
        struct Input<'a> {
            nodes: &'a BTreeMap<String, Node>,
            units: &'a BTreeMap<String, Unit>,
            users: &'a BTreeMap<String, User>,
            // Without groups the digest is what it was before they could be declared.
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            groups: &'a BTreeMap<String, Group>,
            #[serde(skip_serializing_if = "Packages::is_empty")]
            packages: &'a Packages,
            #[serde(skip_serializing_if = "<[LayerImage]>::is_empty")]
            layers: &'a [LayerImage],
            kargs_append: &'a [Karg],
            kargs_delete: &'a [Karg],
        }
        let input = Input {
            nodes: &self.nodes,
            units: &self.units,
            users: &self.users,
            groups: &self.groups,
            packages: &self.packages,
            layers: &self.layers,
            kargs_append: &self.kargs_append,
            kargs_delete: &self.kargs_delete,
        };
        Digest::of(&serde_json::to_vec(&input).expect("maps with string keys always serialise"))
    }
}
