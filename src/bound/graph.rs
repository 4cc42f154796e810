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
//! The form is containers/storage's, which has had it since its first version. [`super::admit`] writes it, and skopeo removes.

use crate::model::image::Digest;
use crate::model::{Context, ErrorKind, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Borrow;
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

/// What a driver has of a graph root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Graph<'a> {
    pub root: &'a Path,
    pub driver: &'a str,
}

impl Graph<'_> {
    /// The images; none where none was ever written.
    pub fn images(&self) -> Result<Vec<Image>> {
        load(&self.list("images", "images.json"))
    }

    /// The layers; none where none was ever written.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        load(&self.list("layers", "layers.json"))
    }

    /// The layers, with those of containers that are removed when they end: podman 4.4 and later list them apart.
    pub fn all_layers(&self) -> Result<Vec<Layer>> {
        let mut all = self.layers()?;
        all.extend(load::<Layer>(&self.list("layers", "volatile-layers.json"))?);
        Ok(all)
    }

    /// Where this of the images or the layers lies.
    pub fn list(&self, kind: &str, name: &str) -> PathBuf {
        self.root.join(format!("{}-{kind}", self.driver)).join(name)
    }

    /// Where this of an image lies.
    pub fn data(&self, image: &str, key: &str) -> PathBuf {
        self.list("images", image).join(file_of(key))
    }

    /// Where the stream of a layer lies, without the content of its files.
    pub fn split(&self, layer: &str) -> PathBuf {
        self.list("layers", &format!("{layer}.tar-split.gz"))
    }

    /// Where all that the driver has of a layer lies.
    pub fn place(&self, layer: &str) -> PathBuf {
        match self.driver {
            "vfs" => self.root.join("vfs/dir").join(layer),
            driver => self.root.join(driver).join(layer),
        }
    }

    /// Where the files of a layer lie.
    pub fn files(&self, layer: &str) -> PathBuf {
        let place = self.place(layer);
        if self.driver == "vfs" { place } else { place.join("diff") }
    }

    /// Where this short name of a layer lies.
    pub fn named(&self, short: &str) -> PathBuf {
        self.root.join(self.driver).join("l").join(short)
    }

    /// The name that layers above a layer have written down for it, if it has one that can be a name.
    pub fn short_name(&self, layer: &str) -> Option<String> {
        let name = std::fs::read_to_string(self.place(layer).join("link")).ok()?;
        Some(name.trim().to_owned()).filter(|name| !name.is_empty() && !name.contains('/'))
    }
}

/// Layers by their names.
pub(super) fn by_id(layers: &[Layer]) -> BTreeMap<&str, &Layer> {
    layers.iter().map(|layer| (layer.id.as_str(), layer)).collect()
}

/// The layers from this one down, as far as they are known. A circle ends.
pub(super) fn chain<'a, K, L>(layers: &'a BTreeMap<K, L>, top: &str) -> impl Iterator<Item = &'a Layer>
where
    K: Borrow<str> + Ord,
    L: Borrow<Layer>,
{
    let below = |layer: &&Layer| layers.get(layer.parent.as_str()).map(Borrow::borrow);
    std::iter::successors(layers.get(top).map(Borrow::borrow), below).take(layers.len())
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
