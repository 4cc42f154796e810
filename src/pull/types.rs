//! The values that pulling takes and returns. All of them can cross to the worker process.

use super::fetch::Patience;
use crate::model::bundle::Index;
use crate::model::image::{Digest, ImageRef};
use ostree_ext::oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;

/// How to reach an image and what to accept of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FetchOptions {
    /// Registry credentials. The caller does the documented search; `None` means anonymous.
    pub auth_file: Option<PathBuf>,
    /// Talk to the registry without verified TLS.
    pub insecure: bool,
    /// Talk to the registry with verified TLS only, whatever the system's configuration says.
    #[serde(default)]
    pub secure: bool,
    /// A directory below the configuration root with certificates, in the form that containers-certs.d(5) has for each host,
    /// in place of the system's.
    #[serde(default)]
    pub cert_dir: Option<String>,
    /// A containers-policy.json(5) in place of the system's.
    pub policy: Option<PathBuf>,
    /// A containers-registries.conf(5) in place of the system's.
    pub registries: Option<PathBuf>,
    /// A containers-registries.d(5), which says where signatures lie, in place of the system's.
    pub lookaside: Option<PathBuf>,
    /// Where skopeo unpacks archives, and made if missing; `None` is its own choice, `/var/tmp`. What is left there by
    /// a killed pull is removed by the next one.
    pub tmp: Option<PathBuf>,
    /// Accept a plain image with files in `/var`, and leave them out.
    pub drop_var: bool,
    /// The image is no OS: it is taken as it is, and kept apart from those that are.
    #[serde(default)]
    pub content: bool,
    /// At most so many bytes a second come from the network, in all; `None` is as fast as it goes.
    pub rate_limit: Option<NonZeroU64>,
    /// Layers that are fetched at the same time; `None` is our choice.
    pub connections: Option<NonZeroU32>,
    /// Layers that are imported at the same time; `None` is one for each CPU.
    pub importers: Option<NonZeroU32>,
    /// Where blobs lie until their layer is in the repository; `None` is a temporary directory. What is left there by a
    /// transfer that broke off is where the next one goes on.
    pub spool: Option<PathBuf>,
    /// The repository: the configuration of an image that is in it is not fetched to resolve it once more.
    pub repo: Option<PathBuf>,
    /// The root whose `etc/containers` says how registries are reached; `None` is `/`.
    pub config_root: Option<PathBuf>,
    /// The home of whoever calls skopeo, with a `registries.conf.d` that has the last word; `None` is none.
    #[serde(default)]
    pub home: Option<PathBuf>,
    /// What can be had at all, where images come from a bundle and not from the network.
    #[serde(skip)]
    pub offered: Option<Arc<Index>>,
    /// When a failed transfer is tried again.
    #[serde(default)]
    pub patience: Patience,
    /// Where the work is done.
    #[serde(skip)]
    pub worker: Worker,
}

/// Where the work of a pull is done.
#[derive(Debug, Clone, Default)]
pub enum Worker {
    /// In a child: this same executable with the argument [`super::WORKER_ARG`].
    #[default]
    OwnExecutable,
    /// In a child: this program with these arguments, which must call [`super::worker_main`].
    Program(PathBuf, Vec<OsString>),
    /// In this process, where only the time between two layers can be cancelled. For tests and tools.
    InProcess,
}

/// What an image is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// An ostree commit in OCI clothes, perhaps with ordinary layers on top.
    Encapsulated,
    /// Ordinary layers only.
    Plain,
    /// Ordinary layers, which are no tree that boots: packages, or content for another tree.
    Content,
}

/// A layer as the manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The digest of the blob as it is transferred.
    pub digest: Digest,
    /// The size of the blob.
    pub size: u64,
    /// The digest of the uncompressed tar stream.
    pub diff_id: Digest,
    /// The media type of the blob.
    pub media_type: String,
}

/// An image of which manifest and configuration are known, and nothing else was transferred.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// The reference that was asked for.
    pub image: ImageRef,
    /// The digest of this architecture's manifest, as the registry has it: never that of a manifest list, and
    /// for a Docker manifest the digest before its conversion to OCI.
    pub digest: Digest,
    /// The manifest, converted to OCI if it was not.
    pub manifest: ImageManifest,
    /// The text of [`Resolved::manifest`].
    pub manifest_text: String,
    /// The image configuration.
    pub config: ImageConfiguration,
    /// The text of [`Resolved::config`].
    pub config_text: String,
    /// What the image is made of.
    pub kind: ImageKind,
    /// The version that its labels claim.
    pub version: Option<String>,
    /// When the image says that it was made, in seconds since 1970; 0 if it does not say.
    pub created: u64,
    /// The labels of the configuration.
    pub labels: BTreeMap<String, String>,
    /// The layers, lowest first.
    pub layers: Vec<Layer>,
}

/// An image that is completely in the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The merge commit.
    pub commit: String,
    /// The digest of the manifest it was made of.
    pub digest: Digest,
    /// The version that the image's labels claim.
    pub version: Option<String>,
    /// When the image says that it was made, in seconds since 1970.
    pub created: u64,
    /// The labels of the image.
    pub labels: BTreeMap<String, String>,
    /// What the image is made of.
    pub kind: ImageKind,
}

/// What a running pull has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// Bytes transferred, of those that must be.
    Bytes {
        /// How many are here.
        done: u64,
        /// How many there will be.
        total: u64,
    },
    /// Bytes of one layer.
    Part {
        /// The layer's digest.
        name: String,
        /// How many are here.
        done: u64,
        /// How many there will be.
        total: u64,
    },
    /// Layers imported, of those that must be.
    Items {
        /// How many are here.
        done: u32,
        /// How many there will be.
        total: u32,
        /// The layer that is being imported.
        current: String,
    },
    /// Something that a person should know.
    Note(String),
}

/// Takes reports. Never blocks for long.
pub type Reporter = Arc<dyn Fn(Report) + Send + Sync>;
