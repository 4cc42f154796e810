//! What a copy that was cut off leaves behind: layers that no image has, and images that our index does not call complete.
//!
//! containers-storage would take such a layer for whole. After a power cut its files may be empty, and nothing but reading all
//! of it would tell. So it goes before anything is fetched: its blobs may be in the spool still.

use super::graph::{self, Image, Layer};
use super::store::Store;
use crate::model::{Context, Result};
use crate::sys::fs;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

impl Store {
    /// Removes every image that is not complete, and every layer that no complete image stands on.
    ///
    /// Nobody else writes this store, and no view has any of it. What is removed is gone from the disk before it is gone
    /// from the lists: a cut in the middle leaves what the next call removes.
    pub(super) fn purge(&self) -> Result<()> {
        let graph = self.graph();
        let complete: Vec<_> = self.entries()?.into_iter().filter(|e| e.complete).collect();
        let is_whole = |image: &Image| complete.iter().any(|entry| image.has(&entry.digest));
        let (whole, broken): (Vec<Image>, Vec<Image>) = graph.images()?.into_iter().partition(is_whole);
        let layers = graph.layers()?;
        let by_id = graph::by_id(&layers);
        let mut needed = BTreeSet::new();
        for image in &whole {
            needed.extend(graph::chain(&by_id, &image.layer).map(|layer| layer.id.clone()));
        }
        let (kept, orphans): (Vec<Layer>, Vec<Layer>) =
            layers.into_iter().partition(|l| needed.contains(&l.id));
        if !broken.is_empty() {
            for image in &broken {
                remove(&graph.list("images", &image.id))?;
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
        let graph = self.graph();
        if let Some(short) = graph.short_name(id) {
            remove(&graph.named(&short))?;
        }
        remove(&graph.place(id))?;
        remove(&graph.split(id))
    }

    fn rewrite<T: Serialize>(&self, kind: &str, list: &[T]) -> Result<()> {
        let text = serde_json::to_vec(list).doing("encoding a list of the image store")?;
        let path = self.graph().list(kind, "");
        let dir = Dir::open_ambient_dir(&path, ambient_authority())
            .doing_with(|| format!("opening {}", path.display()))?;
        fs::write_atomic(&dir, format!("{kind}.json"), &text, 0o600)
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_whole(path).doing_with(|| format!("removing {} from the image store", path.display()))
}
