//! What the administrator's own containers take from our store.
//!
//! A container that podman makes from an image of an additional store, or an image that is built on top of one, has a layer in
//! the store of podman whose parent is a layer of ours. That image has to stay, whatever the deployments need. Only root's store is looked at: the
//! stores of other users are theirs, and cannot be listed reliably.

use super::graph::{self, DRIVERS, Graph};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::{Context, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where podman keeps its store unless storage.conf(5) says otherwise.
const GRAPH_ROOT: &str = "var/lib/containers/storage";

/// How long somebody else may hold the lock of root's own store: unpacking a large layer takes long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Root's own store, the administrator's.
#[derive(Debug)]
pub struct Own {
    graph: PathBuf,
    /// The locks of its layers: whoever makes a container takes one of them.
    locks: Vec<File>,
}

impl Own {
    /// The store as it is now. It may change while it is looked at.
    pub fn at(config_root: &Path) -> Own {
        Own { graph: graph_root(config_root), locks: Vec::new() }
    }

    /// The store, in which nobody makes a container until this is dropped. Fails with `Busy` if somebody is about to for long.
    pub async fn lock(cx: &Cx, config_root: &Path) -> Result<Own> {
        let mut own = Own::at(config_root);
        let until = Instant::now() + PATIENCE;
        for driver in DRIVERS {
            let path = Graph { root: &own.graph, driver }.list("layers", "layers.lock");
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e).doing_with(|| format!("opening {}", path.display())),
            };
            // As containers-storage takes it: fcntl(2), of the whole file.
            while let Err(error) = fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
                cx.checkpoint()?;
                if !matches!(error, Errno::AGAIN | Errno::ACCESS) {
                    return Err(error).doing_with(|| format!("locking {}", path.display()));
                }
                if Instant::now() >= until {
                    let why = format!("{} is being written; no bound image was removed", own.graph.display());
                    return Err(Error::new(ErrorKind::Busy, why));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            own.locks.push(file);
        }
        Ok(own)
    }

    /// The images of the store below `ours` that layers of this one stand on, as a set to keep.
    pub fn uses(&self, ours: &Path) -> Result<BoundSet> {
        let mut used = BTreeSet::new();
        for driver in DRIVERS {
            let own = Graph { root: &self.graph, driver };
            used.extend(own.all_layers()?.into_iter().map(|l| l.parent));
            // An image that adds nothing but labels has the layer of ours itself.
            used.extend(own.images()?.into_iter().map(|i| i.layer));
        }
        used.remove("");
        let mut images = Vec::new();
        for driver in DRIVERS {
            let ours = Graph { root: ours, driver };
            let layers = ours.layers()?;
            let layers = graph::by_id(&layers);
            for image in ours.images()? {
                let stands = graph::chain(&layers, &image.layer).any(|layer| used.contains(&layer.id));
                if stands || used.contains(&image.layer) {
                    images.extend(image.names.iter().filter_map(|name| named(name)));
                }
            }
        }
        Ok(BoundSet { images })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_layers_or_images_of_roots_store_stand_on_are_used() {
        let temp = tempfile::tempdir().unwrap();
        let write = |store: &Path, list: &str, text: serde_json::Value| {
            let path = store.join(list);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.to_string()).unwrap();
        };
        let (own, ours) = (temp.path().join(GRAPH_ROOT), temp.path().join("ours"));
        let name = |n: u8| format!("r.io/x@{}", crate::model::image::Digest::of(&[n]));
        let image =
            |n: u8, layer: &str| serde_json::json!({"id": n.to_string(), "names": [name(n)], "layer": layer});
        write(
            &ours,
            "overlay-images/images.json",
            serde_json::json!([image(1, "b"), image(2, "c"), image(3, "d")]),
        );
        let layers = serde_json::json!([{"id": "a"}, {"id": "b", "parent": "a"}, {"id": "c"}, {"id": "d"}]);
        write(&ours, "overlay-layers/layers.json", layers);
        let uses = || {
            let used = Own::at(temp.path()).uses(&ours).unwrap().images;
            used.into_iter().map(|i| i.spec.reference.name).collect::<Vec<_>>()
        };
        assert_eq!(uses(), [""; 0]);
        // A layer that stands on the lower one of the first image; an image that is the second with another label.
        write(
            &own,
            "overlay-layers/layers.json",
            serde_json::json!([{"id": "z", "parent": "a"}, {"id": "y"}]),
        );
        assert_eq!(uses(), [name(1)]);
        let running = serde_json::json!([{"id": "x", "parent": "d"}]);
        write(&own, "overlay-layers/volatile-layers.json", running);
        assert_eq!(uses(), [name(1), name(3)]);
        write(
            &own,
            "overlay-images/images.json",
            serde_json::json!([{"id": "9", "layer": "c"}, {"id": "8"}]),
        );
        assert_eq!(uses(), [name(1), name(2), name(3)]);
    }
}
