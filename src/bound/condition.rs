//! In what condition bound images are, for everybody who looks. Takes no lock, runs nothing and writes nothing.

use super::graph::{self, DRIVERS, Graph, Layer};
use super::store::{Entry, STORAGE, Store};
use crate::model::bound::{BoundImage, BoundSet, Mode};
use crate::model::image::Digest;
use crate::model::status::{Bound, BoundState};
use crate::model::verified::Damage;
use crate::model::{Context, Result};
use crate::sys::fs;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

const FILE: &str = "bound-verified.json";
const VERSION: u32 = 1;

/// What the last check found of one image.
#[derive(serde::Serialize, serde::Deserialize)]
struct Note {
    /// Seconds since the epoch.
    checked: u64,
    /// What is damaged; nothing where the image is whole.
    damage: Vec<Damage>,
    /// When our index last said something about the image: an image that was fetched again since is another one.
    #[serde(default)]
    stamp: Option<(i64, i64)>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Notes {
    version: u32,
    images: BTreeMap<String, Note>,
}

impl Store {
    /// Notes what a check found, for these images and no others.
    pub fn note(&self, found: &[(BoundImage, Vec<Damage>)], now: u64) -> Result<()> {
        let one = |(image, damage): &(BoundImage, Vec<Damage>)| {
            let entry = Entry::of(image);
            (entry.name(), Note { checked: now, damage: damage.clone(), stamp: stamp(&self.base, &entry) })
        };
        let notes = Notes { version: VERSION, images: found.iter().map(one).collect() };
        let text = serde_json::to_vec(&notes).doing("encoding what was verified")?;
        fs::write_atomic(&self.state, FILE, &text, 0o644)
    }
}

fn stamp(base: &Path, entry: &Entry) -> Option<(i64, i64)> {
    let meta = std::fs::symlink_metadata(base.join(entry.path())).ok()?;
    Some((meta.mtime(), meta.mtime_nsec()))
}

/// The bound images of these deployments (by id), each reference with each of its digests once, sorted by reference.
///
/// `base` is the directory that holds the store. What of it cannot be read counts as missing.
///
/// The id of an image is the beginning of its digest. Where references share a digest, the first has that id and the others
/// have one with their own hash behind it, so that whoever knows a digest finds an object without a search.
pub fn conditions(base: &Path, deployments: &[(&str, &BoundSet)]) -> Vec<Bound> {
    let mut found: BTreeMap<(String, String), (BoundImage, Vec<String>)> = BTreeMap::new();
    for (id, set) in deployments {
        for image in &set.images {
            let key = (image.spec.reference.name.clone(), image.digest.to_string());
            let (known, ids) = found.entry(key).or_insert_with(|| (image.clone(), Vec::new()));
            if image.spec.mode == Mode::Bind {
                known.spec.mode = Mode::Bind;
            }
            ids.push((*id).to_owned());
        }
    }
    if found.is_empty() {
        return Vec::new();
    }
    let sizes = sizes(base);
    let notes = std::fs::read(base.join(FILE)).ok();
    let notes: Option<Notes> = notes.and_then(|text| serde_json::from_slice(&text).ok());
    let notes = notes.filter(|n| n.version <= VERSION).map(|n| n.images).unwrap_or_default();
    let mut names = BTreeSet::new();
    let one = |(image, deployments): (BoundImage, Vec<String>)| {
        let entry = Entry::of(&image);
        let size = sizes.get(&graph::key_of(&image.digest)).copied();
        let note = notes.get(&entry.name()).filter(|n| n.stamp == stamp(base, &entry));
        let complete = complete(base, &entry) && size.is_some();
        let note = note.filter(|_| complete);
        Bound {
            id: id(&image, &mut names),
            state: match (complete, note) {
                (false, _) => BoundState::Missing,
                (true, Some(note)) if !note.damage.is_empty() => BoundState::Damaged,
                (true, _) => BoundState::Present,
            },
            size: size.filter(|_| complete).unwrap_or_default(),
            checked: note.map_or(0, |n| n.checked),
            damage: note.map(|n| n.damage.clone()).unwrap_or_default(),
            reference: image.spec.reference,
            digest: image.digest,
            mode: image.spec.mode,
            source: image.spec.source,
            deployments,
        }
    };
    found.into_values().map(one).collect()
}

fn complete(base: &Path, entry: &Entry) -> bool {
    let read = std::fs::read(base.join(entry.path())).ok();
    let read: Option<Entry> = read.and_then(|text| serde_json::from_slice(&text).ok());
    read.is_some_and(|read| read.complete)
}

/// The unpacked bytes of each image, by the keys of its manifests.
fn sizes(base: &Path) -> BTreeMap<String, u64> {
    let graph = base.join(STORAGE);
    let mut sizes = BTreeMap::new();
    for driver in DRIVERS {
        let graph = Graph { root: &graph, driver };
        let layers = graph.layers().unwrap_or_default();
        let layers = graph::by_id(&layers);
        for image in graph.images().unwrap_or_default() {
            if !image.layer.is_empty() && !layers.contains_key(image.layer.as_str()) {
                continue;
            }
            let size = graph::chain(&layers, &image.layer).map(Layer::size).sum();
            sizes.extend(image.big_data_digests.into_keys().map(|key| (key, size)));
        }
    }
    sizes
}

/// The name of the image's object: the beginning of its digest, unless another image has that already.
fn id(image: &BoundImage, taken: &mut BTreeSet<String>) -> String {
    let short = image.digest.hex()[..SHORT].to_owned();
    if taken.insert(short.clone()) {
        return short;
    }
    let whole = format!("{} {}", image.spec.reference.name, image.digest);
    format!("{short}_{}", Digest::of(whole.as_bytes()).hex())
}

/// Digits of a digest that people tell images apart by.
const SHORT: usize = 12;
