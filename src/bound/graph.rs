//! A containers-storage graph root, as it lies on the disk (containers-storage.conf(5) calls it `graphroot`).
//!
//! ```text
//! <driver>/<layer>/…                 the files of a layer
//! <driver>-layers/layers.json        which layers there are, and what each stands on
//! <driver>-layers/<layer>.tar-split.gz   what makes its tar stream again
//! <driver>-images/images.json        which images there are, and their names
//! <driver>-images/<image>/…          manifests and configuration, by names that are encoded
//! ```
//!
//! It is written by containers/storage alone; what is read here has had this form since its first version.

use crate::model::image::Digest;
use crate::model::{Context, ErrorKind, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Drivers that share layers between stores.
pub(super) const DRIVERS: [&str; 2] = ["overlay", "vfs"];

/// An image; with all that is said of it, to be written elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Image {
    /// The digest of the configuration, in hexadecimal.
    pub id: String,
    #[serde(default)]
    pub names: Vec<String>,
    /// The topmost layer; an image may have none.
    #[serde(default)]
    pub layer: String,
    #[serde(default)]
    pub big_data_digests: BTreeMap<String, String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Image {
    /// Whether it is what this manifest describes.
    pub fn has(&self, manifest: &Digest) -> bool {
        self.big_data_digests.contains_key(&key_of(manifest))
    }
}

/// A layer; with all that is said of it, to be written elsewhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Layer {
    pub id: String,
    /// The layer below; the lowest has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// Of the blob as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_diff_digest: Option<String>,
    /// Of the tar stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_digest: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Layer {
    /// The bytes of its tar stream.
    pub fn size(&self) -> u64 {
        self.rest.get("diff-size").and_then(Value::as_u64).unwrap_or_default()
    }
}

/// The name that the manifest with this digest has among the data of an image.
pub(super) fn key_of(manifest: &Digest) -> String {
    format!("manifest-{manifest}")
}

/// The file that has this of an image: what is more than a plain name is encoded.
pub(super) fn file_of(key: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.';
    if key.chars().all(plain) { key.to_owned() } else { format!("={}", STANDARD.encode(key)) }
}

/// The images of a store; none where it was never written.
pub(super) fn images(graph: &Path, driver: &str) -> Result<Vec<Image>> {
    load(&graph.join(format!("{driver}-images/images.json")))
}

/// The layers of a store; none where it was never written.
pub(super) fn layers(graph: &Path, driver: &str) -> Result<Vec<Layer>> {
    load(&graph.join(format!("{driver}-layers/layers.json")))
}

/// The layers of a store, with those of containers that are removed when they end: podman 4.4 and later list them apart.
pub(super) fn all_layers(graph: &Path, driver: &str) -> Result<Vec<Layer>> {
    let mut all = layers(graph, driver)?;
    all.extend(load::<Layer>(&graph.join(format!("{driver}-layers/volatile-layers.json")))?);
    Ok(all)
}

/// Where this of an image lies.
pub(super) fn data(graph: &Path, driver: &str, image: &str, key: &str) -> PathBuf {
    graph.join(format!("{driver}-images/{image}")).join(file_of(key))
}

/// The entries of one of the lists; none where it was never written.
fn load<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Ok(Vec::new()),
        Ok(bytes) => {
            serde_json::from_slice(&bytes).kind(ErrorKind::Corrupt, format!("decoding {}", path.display()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).doing_with(|| format!("reading {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_an_image_has_the_file_names_that_containers_storage_gives_it() {
        assert_eq!(file_of("manifest"), "manifest");
        let digest =
            "sha256:fc67ce538b23835d6ce2f1f37c18658aee9ed7752374a3cd8a82fc4af8d4c54c".parse().unwrap();
        assert_eq!(
            file_of(&key_of(&digest)),
            "=bWFuaWZlc3Qtc2hhMjU2OmZjNjdjZTUzOGIyMzgzNWQ2Y2UyZjFmMzdjMTg2NThhZWU5ZWQ3NzUyMzc0YTNjZDhhODJmYzRhZjhkNGM1NGM="
        );
    }
}
