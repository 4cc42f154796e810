//! What a pull that was cut off leaves behind: layers that no image has, images that our index does not call complete, and what is
//! in no list yet, or not any more.
//!
//! containers-storage would take such a layer for whole. After a power cut its files may be empty, and nothing but reading all
//! of it would tell. So it goes before anything is fetched: its blobs may be in the spool still.

use super::admit::new_layers;
use super::graph::{self, Graph, Image, Layer};
use super::lists::Locked;
use super::store::Store;
use crate::engine::cx::Cx;
use crate::model::{Context, Result};
use crate::sys::fs;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind::NotFound;
use std::path::Path;

impl Store {
    /// Removes every image that is not complete, and every layer that no complete image stands on.
    ///
    /// Nobody else writes this store, and no view has any of it. What is removed is gone from the disk before it is gone
    /// from the lists: a cut in the middle leaves what the next call removes.
    pub(super) fn purge(&self, cx: &Cx) -> Result<()> {
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
            Locked::wait(cx, graph, "images")?.write(&whole)?;
        }
        if !orphans.is_empty() {
            for layer in &orphans {
                self.remove_layer(&layer.id)?;
            }
            Locked::wait(cx, graph, "layers")?.write(&kept)?;
        }
        remove(&new_layers(graph))?;
        strays(graph, &whole)
    }

    fn remove_layer(&self, id: &str) -> Result<()> {
        let graph = self.graph();
        if let Some(short) = graph.short_name(id) {
            remove(&graph.named(&short))?;
        }
        remove(&graph.place(id))?;
        remove(&graph.split(id))
    }
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_whole(path).doing_with(|| format!("removing {} from the image store", path.display()))
}

/// Removes what is in no list: of images, layers and their short names. Everything else that lies there is left alone.
fn strays(graph: Graph<'_>, images: &[Image]) -> Result<()> {
    let images: BTreeSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
    let layers = graph.all_layers()?;
    let layers = graph::by_id(&layers);
    let is_id = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let stray_image = |name: &str| is_id(name) && !images.contains(name);
    let stray_layer = |name: &str| is_id(name) && !layers.contains_key(name);
    let stray_split = |name: &str| name.strip_suffix(SPLIT).is_some_and(stray_layer);
    // With many files: a layer that is gone has its name until its files are.
    let files = graph.place("");
    sweep(&files, stray_layer)?;
    sweep(&graph.list("images", ""), |name| stray_image(name) || name.starts_with(TEMPORARY))?;
    sweep(&graph.list("layers", ""), |name| stray_split(name) || name.starts_with(TEMPORARY))?;
    let names = graph.named("");
    sweep(&names, |short| {
        let target = std::fs::read_link(names.join(short)).ok();
        let target = target.as_deref().and_then(|target| target.strip_prefix("..").ok()?.parent());
        target.and_then(Path::to_str).is_some_and(stray_layer)
    })
}

/// Of a list that was being written.
const TEMPORARY: &str = ".tmp";
const SPLIT: &str = ".tar-split.gz";

/// Removes what a directory has with such a name.
fn sweep(dir: &Path, is_stray: impl Fn(&str) -> bool) -> Result<()> {
    let doing = || format!("listing {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == NotFound => return Ok(()),
        entries => entries.doing_with(doing)?,
    };
    let names: Vec<OsString> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()
        .doing_with(doing)?;
    for name in names.iter().filter(|name| name.to_str().is_some_and(&is_stray)) {
        remove(&dir.join(name))?;
    }
    Ok(())
}
