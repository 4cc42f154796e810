//! Bound images: what a deployment must find in the local store.

use super::image::{Digest, ImageRef};

/// Whether a missing image keeps a deployment from being staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It does.
    #[default]
    Bind,
    /// It is reported and tried again.
    Prefetch,
}

/// A request for a bound image, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BoundSpec {
    /// The image; always in a registry.
    pub reference: ImageRef,
    /// Bind or prefetch.
    pub mode: Mode,
    /// The credentials file by path.
    pub auth_file: Option<String>,
    /// Whether TLS certificates are checked; the system's configuration if absent.
    pub tls_verify: Option<bool>,
    /// The file that asks for it.
    pub source: String,
}

/// A bound image with its digest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BoundImage {
    /// What was asked.
    #[serde(flatten)]
    pub spec: BoundSpec,
    /// The per-architecture manifest digest.
    pub digest: Digest,
}

/// The images of one deployment, sorted by reference.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BoundSet {
    /// The images.
    pub images: Vec<BoundImage>,
}
