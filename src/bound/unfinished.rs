//! What a copy that was cut off leaves behind: layers that no image has, and images that our index does not call complete.
//!
//! containers-storage would take such a layer for whole. After a power cut its files may be empty, and nothing but reading all
//! of it would tell. So it goes before anything is fetched: its blobs may be in the spool still.

use super::graph::{self, Image, Layer};
use super::store::Store;
use crate::model::{Context, Result};
use crate::sys::fs as files;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

impl Store {
    /// Removes every image that is not complete, and every layer that no complete image stands on.
    ///
    /// Nobody else writes this store, and no view has any of it. What is removed is gone from the disk before it is gone
    /// from the lists: a cut in the middle leaves what the next call removes.
    pub(super) fn purge(&self) -> Result<()> {
        let (graph, driver) = (self.graph_root(), self.driver());
        let complete: Vec<_> = self.entries()?.into_iter().filter(|e| e.complete).collect();
        let is_whole = |image: &Image| complete.iter().any(|entry| image.has(&entry.digest));
        let (whole, broken): (Vec<Image>, Vec<Image>) =
            graph::images(graph, driver)?.into_iter().partition(is_whole);
        let layers = graph::layers(graph, driver)?;
        let below: BTreeMap<&str, &str> = layers.iter().map(|l| (l.id.as_str(), l.parent.as_str())).collect();
        let mut needed = BTreeSet::new();
        for image in &whole {
            let mut next = image.layer.as_str();
            while !next.is_empty() && needed.insert(next.to_owned()) {
                next = below.get(next).copied().unwrap_or_default();
            }
        }
        let (kept, orphans): (Vec<Layer>, Vec<Layer>) =
            layers.into_iter().partition(|l| needed.contains(&l.id));
        if !broken.is_empty() {
            for image in &broken {
                remove(&graph.join(format!("{driver}-images")).join(&image.id))?;
            }
            self.rewrite("images", &whole)?;
        }
        if !orphans.is_empty() {
            for layer in &orphans {
                self.remove_layer(&layer.id)?;
            }
            self.rewrite("layers", &kept)?;
        }
        Ok(())
    }

    fn remove_layer(&self, id: &str) -> Result<()> {
        let (graph, driver) = (self.graph_root(), self.driver());
        let files =
            if driver == "vfs" { graph.join("vfs/dir").join(id) } else { graph.join(driver).join(id) };
        if let Ok(link) = std::fs::read_to_string(files.join("link")) {
            remove(&graph.join(driver).join("l").join(link.trim()))?;
        }
        remove(&files)?;
        remove(&graph.join(format!("{driver}-layers/{id}.tar-split.gz")))
    }

    fn rewrite<T: Serialize>(&self, kind: &str, list: &[T]) -> Result<()> {
        let dir: PathBuf = self.graph_root().join(format!("{}-{kind}", self.driver()));
        let text = serde_json::to_vec(list).doing("encoding a list of the image store")?;
        let dir = Dir::open_ambient_dir(&dir, ambient_authority())
            .doing_with(|| format!("opening {}", dir.display()))?;
        files::write_atomic(&dir, format!("{kind}.json"), &text, 0o600)
    }
}

fn remove(path: &Path) -> Result<()> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).doing_with(|| format!("removing {} from the image store", path.display()))
        }
        _ => Ok(()),
    }
}
