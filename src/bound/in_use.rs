//! What the administrator's own containers take from our store.
//!
//! A container that podman makes from an image of an additional store has a layer of its own in the store of podman, whose
//! parent is a layer of ours. That image has to stay, whatever the deployments need. Only root's store is looked at: the
//! stores of other users are theirs, and cannot be listed reliably.

use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::{Context, ErrorKind, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// containers-storage's drivers that share layers between stores.
const DRIVERS: [&str; 2] = ["overlay", "vfs"];
/// Where podman keeps its store unless storage.conf(5) says otherwise.
const GRAPH_ROOT: &str = "var/lib/containers/storage";

#[derive(Deserialize)]
struct Layer {
    id: String,
    #[serde(default)]
    parent: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    layer: String,
}

/// The images of the store below `ours` that layers of root's own store stand on, as a set to keep.
pub fn in_use(config_root: &Path, ours: &Path) -> Result<BoundSet> {
    let own = graph_root(config_root);
    let mut parents = BTreeSet::new();
    for driver in DRIVERS {
        let layers: Vec<Layer> = load(&own.join(format!("{driver}-layers/layers.json")))?;
        parents.extend(layers.into_iter().map(|l| l.parent));
    }
    let mut images = Vec::new();
    for driver in DRIVERS {
        let layers: Vec<Layer> = load(&ours.join(format!("{driver}-layers/layers.json")))?;
        let below: BTreeMap<String, String> = layers.into_iter().map(|l| (l.id, l.parent)).collect();
        for image in load::<Image>(&ours.join(format!("{driver}-images/images.json")))? {
            let mut chain =
                std::iter::successors(Some(&image.layer), |id| below.get(*id)).take(below.len() + 1);
            if chain.any(|id| parents.contains(id)) {
                images.extend(image.names.iter().filter_map(|name| named(name)));
            }
        }
    }
    Ok(BoundSet { images })
}

/// An image by the name `repository@digest`, which every image of our store has.
fn named(name: &str) -> Option<BoundImage> {
    let (_, digest) = name.split_once('@')?;
    let spec = BoundSpec::new(name.parse().ok()?, "a container of the administrator");
    Some(BoundImage { spec, digest: digest.parse().ok()? })
}

fn graph_root(config_root: &Path) -> PathBuf {
    #[derive(Deserialize)]
    struct Storage {
        graphroot: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Conf {
        storage: Option<Storage>,
    }
    let conf = std::fs::read_to_string(config_root.join("etc/containers/storage.conf")).ok();
    let conf = conf.and_then(|text| toml::from_str::<Conf>(&text).ok());
    match conf.and_then(|c| c.storage).and_then(|s| s.graphroot) {
        Some(path) => config_root.join(path.strip_prefix("/").unwrap_or(&path)),
        None => config_root.join(GRAPH_ROOT),
    }
}

/// The entries of one of containers-storage's lists; none where it was never written.
pub(super) fn load<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => Ok(Vec::new()),
        Ok(bytes) => {
            serde_json::from_slice(&bytes).kind(ErrorKind::Corrupt, format!("decoding {}", path.display()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).doing_with(|| format!("reading {}", path.display())),
    }
}
