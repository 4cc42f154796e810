//! Whether what the store holds is what was published: manifest, configuration, layers.
//!
//! Everything hangs on the digest of the image: its manifest has that digest and names the configuration by digest, which
//! names the layers by the digests of their streams, which are put together again from the files ([`super::tarsplit`]).
//! What containers-storage notes about itself is believed nowhere; it only says where to look. Nothing is written.
//!
//! ```text
//! storage/overlay-images/images.json                   names and the topmost layer of each image
//! storage/overlay-images/<id>/manifest, =<base64>      manifests and the configuration
//! storage/overlay-layers/layers.json                   layers and their parents
//! storage/overlay-layers/<id>.tar-split.gz             a layer's stream without the content of files
//! storage/overlay/<id>/{diff,link,lower}               a layer's files, its short name, those of the layers below
//! storage/overlay/l/<link>                             the short name, as a link
//! storage/vfs/dir/<id>                                 the same of the other driver: files, with those of the layers below
//! ```

use super::graph::{self, Graph, Image, Layer};
use super::tarsplit::{self, Look, Tick};
use super::view;
use crate::model::bound::BoundImage;
use crate::model::image::Digest;
use crate::model::verified::{Damage, Part};
use crate::model::{Context, Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// That everything is there, and the digests of manifest and configuration. Milliseconds.
    Presence,
    /// The digest of everything: every file is read.
    Content,
}

/// Manifests and configurations are some kilobytes; nothing larger is one.
const DOCUMENT_LIMIT: u64 = 16 << 20;

/// The lists of a graph root, read once; layers that images share are looked at once.
pub struct Checker {
    graph: PathBuf,
    driver: &'static str,
    images: Vec<Image>,
    layers: BTreeMap<String, Layer>,
    depth: Depth,
    known: BTreeMap<(String, Digest), Vec<Damage>>,
    /// Layers whose files were archived as sparse, by digest: nothing but CRC-64 vouches for their files.
    weak: BTreeSet<Digest>,
}

impl std::fmt::Debug for Checker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker")
            .field("graph", &self.graph)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

impl Checker {
    /// Reads the lists of a graph root. A list that cannot be read is `Corrupt`: nothing at all is known then.
    pub fn open(graph: &Path, depth: Depth) -> Result<Checker> {
        let has = |driver: &str| graph.join(format!("{driver}-images")).exists();
        let driver = if has("vfs") && !has("overlay") { "vfs" } else { "overlay" };
        let lost = |error: Error| {
            let hint = format!("remove {} and fetch everything again: osctl bound pull", graph.display());
            if error.kind == ErrorKind::Corrupt { error.hint(hint) } else { error }
        };
        let lists = Graph { root: graph, driver };
        let images = lists.images().map_err(lost)?;
        let layers = lists.layers().map_err(lost)?;
        let layers = layers.into_iter().map(|layer| (layer.id.clone(), layer)).collect();
        let (known, weak) = (BTreeMap::new(), BTreeSet::new());
        Ok(Checker { graph: graph.to_owned(), driver, images, layers, depth, known, weak })
    }

    /// Looks at an image and returns everything that is damaged; nothing where it is whole.
    ///
    /// `tick` is called with the bytes that were read since it was called last, and ends the work by failing.
    pub fn check(&mut self, image: &BoundImage, tick: Tick<'_>) -> Result<Vec<Damage>> {
        let Some(found) = self.named(image) else {
            return Ok(vec![Damage::of(Part::Image, &image.digest, "is not in the store")]);
        };
        let (top, mut damage) = (found.layer.clone(), Vec::new());
        let config = self.documents(found, image, &mut damage);
        let Some(diff_ids) = config else { return Ok(damage) };
        let chain = self.chain(&top);
        // From the topmost down, as containers-storage links them. What lies below one that is not known is neither.
        for (at, diff_id) in diff_ids.iter().rev().enumerate() {
            match chain.get(at) {
                Some(id) => damage.extend(self.layer(id, diff_id, tick)?),
                None => damage.push(Damage::of(Part::Layer, diff_id, "is not in the store")),
            }
        }
        if chain.len() > diff_ids.len() {
            let why = format!("names {} layers, and the store has {}", diff_ids.len(), chain.len());
            damage.push(Damage::of(Part::Image, &image.digest, why));
        }
        Ok(damage)
    }

    /// The layers, of those that were looked at, whose files nothing but CRC-64 vouches for.
    pub fn weak(&self) -> impl Iterator<Item = &Digest> {
        self.weak.iter()
    }

    /// The bytes that looking at these images reads.
    pub fn bytes<'i>(&self, images: impl Iterator<Item = &'i BoundImage>) -> u64 {
        let tops = images.filter_map(|i| self.named(i)).map(|i| i.layer.clone());
        let all: BTreeSet<String> = tops.flat_map(|top| self.chain(&top)).collect();
        all.iter().filter_map(|id| self.layers.get(id)).map(Layer::size).sum()
    }

    /// Whether there is an image with the name, whatever state it is in.
    pub fn knows(&self, image: &BoundImage) -> bool {
        self.named(image).is_some()
    }

    /// The images that share a damaged layer with one of these, or are one of them: their ids with the keys of their manifests.
    pub(super) fn sharing(&self, damaged: &[(&BoundImage, &[Damage])]) -> BTreeMap<String, Vec<String>> {
        let mut layers = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (image, damage) in damaged {
            let Some(found) = self.named(image) else { continue };
            ids.insert(found.id.as_str());
            let wrong =
                |digest: &Digest| damage.iter().any(|d| d.part == Part::Layer && d.digest == digest.as_str());
            for id in self.chain(&found.layer) {
                if self.known.iter().any(|((known, digest), _)| *known == id && wrong(digest)) {
                    layers.insert(id);
                }
            }
        }
        let shares = |image: &&Image| {
            ids.contains(image.id.as_str()) || self.chain(&image.layer).iter().any(|id| layers.contains(id))
        };
        let keys =
            |i: &Image| i.big_data_digests.keys().filter(|k| k.starts_with(MANIFEST)).cloned().collect();
        self.images.iter().filter(shares).map(|i| (i.id.clone(), keys(i))).collect()
    }

    fn named(&self, image: &BoundImage) -> Option<&Image> {
        view::find(&self.images, image)
    }

    /// The layers of an image that are in the list, the topmost first.
    fn chain(&self, top: &str) -> Vec<String> {
        graph::chain(&self.layers, top).map(|layer| layer.id.clone()).collect()
    }

    fn graph(&self) -> Graph<'_> {
        Graph { root: &self.graph, driver: self.driver }
    }

    /// Looks at manifests and configuration, and returns the digests of the layers, the lowest first.
    fn documents(&self, found: &Image, image: &BoundImage, damage: &mut Vec<Damage>) -> Option<Vec<Digest>> {
        let document = |key: &str| document(&self.graph().data(&found.id, key));
        let mut manifests = BTreeSet::from([image.digest.clone()]);
        // Of a reference that is pinned to a list, the list.
        manifests.extend(image.spec.reference.digest());
        let others = found.big_data_digests.keys().filter_map(|name| name.strip_prefix(MANIFEST));
        manifests.extend(others.filter_map(|digest| digest.parse().ok()));
        for digest in &manifests {
            let document = document(&graph::key_of(digest));
            damage.extend(wrong(&document, digest).map(|why| Damage::of(Part::Manifest, digest, why)));
        }
        // What a name without digest means.
        match document("manifest").map(|bytes| Digest::of(&bytes)) {
            Ok(digest) if manifests.contains(&digest) => {}
            Ok(_) => damage.push(Damage::of(Part::Manifest, &image.digest, "has a copy that is changed")),
            Err(why) => {
                damage.push(Damage::of(Part::Manifest, &image.digest, format!("has a copy that {why}")))
            }
        }
        #[derive(serde::Deserialize)]
        struct Manifest {
            config: Config,
        }
        #[derive(serde::Deserialize)]
        struct Config {
            digest: Digest,
        }
        let manifest = document(&graph::key_of(&image.digest)).ok()?;
        if Digest::of(&manifest) != image.digest {
            return None;
        }
        let Ok(Manifest { config }) = serde_json::from_slice(&manifest) else {
            let why = "names no configuration: an image of the first Docker schema cannot be checked";
            damage.push(Damage::of(Part::Manifest, &image.digest, why));
            return None;
        };
        let bytes = document(config.digest.as_str());
        if let Some(why) = wrong(&bytes, &config.digest) {
            damage.push(Damage::of(Part::Config, &config.digest, why));
            return None;
        }
        #[derive(serde::Deserialize)]
        struct Image {
            rootfs: Rootfs,
        }
        #[derive(serde::Deserialize)]
        struct Rootfs {
            #[serde(default)]
            diff_ids: Vec<Digest>,
        }
        match serde_json::from_slice(&bytes.ok()?) {
            Ok(Image { rootfs }) => Some(rootfs.diff_ids),
            Err(_) => {
                damage.push(Damage::of(Part::Config, &config.digest, "names no layers"));
                None
            }
        }
    }

    fn layer(&mut self, id: &str, diff_id: &Digest, tick: Tick<'_>) -> Result<Vec<Damage>> {
        let key = (id.to_owned(), diff_id.clone());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let mut damage = self.presence(id, diff_id);
        if damage.is_empty() && self.depth == Depth::Content {
            damage = self.content(id, diff_id, tick)?;
        }
        self.known.insert(key, damage.clone());
        Ok(damage)
    }

    /// That what a layer consists of is there.
    fn presence(&self, id: &str, diff_id: &Digest) -> Vec<Damage> {
        let mut damage = Vec::new();
        let mut wrong = |why: String| damage.push(Damage::of(Part::Layer, diff_id, why));
        let layer = &self.layers[id];
        // Empty where the layer was put together from parts of files.
        if let Some(noted) = layer.diff_digest.as_deref().filter(|d| !d.is_empty() && *d != diff_id.as_str())
        {
            wrong(format!("is noted as {noted} in the store"));
        }
        let is_dir = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        if !is_dir(&self.graph().files(id)) {
            wrong("has no files: its directory is missing".into());
        }
        if !std::fs::metadata(self.graph().split(id)).is_ok_and(|m| m.is_file() && m.len() > 0) {
            wrong("has no list of contents (tar-split)".into());
        }
        if self.driver == "overlay" {
            // By its short name the layer is mounted, by others as well as by itself.
            let link = |id: &str| self.graph().short_name(id);
            let target = link(id).and_then(|link| std::fs::read_link(self.graph().named(&link)).ok());
            if target != Some(PathBuf::from(format!("../{id}/diff"))) {
                wrong("has no short name (link)".into());
            }
            let lower = std::fs::read_to_string(self.graph().place(id).join("lower"));
            let parents = self.chain(&layer.parent);
            let expected: Vec<String> =
                parents.iter().map(|id| format!("l/{}", link(id).unwrap_or_default())).collect();
            if lower.unwrap_or_default().trim_end() != expected.join(":") {
                wrong("is not mounted on the layers below it (lower)".into());
            }
        }
        damage
    }

    fn content(&mut self, id: &str, diff_id: &Digest, tick: Tick<'_>) -> Result<Vec<Damage>> {
        let (split, root) = (self.graph().split(id), self.graph().files(id));
        let open = || File::open(&split).doing_with(|| format!("opening {}", split.display()));
        let mut found = tarsplit::reassemble(open()?, &root, Look::Digest, tick)?;
        let mut damage = Vec::new();
        if found.digest.as_ref() != Some(diff_id) && !found.sparse {
            // Once more, to say what it is.
            found = tarsplit::reassemble(open()?, &root, Look::EachFile, &mut |_| tick(0))?;
            if found.damage.is_empty() {
                let why =
                    "is another stream although its files fit: its list of contents (tar-split) is changed";
                damage.push(Damage::of(Part::Layer, diff_id, why));
            }
        }
        if found.sparse {
            self.weak.insert(diff_id.clone());
        }
        damage.extend(found.damage.into_iter().map(|(path, why)| match path {
            Some(path) => Damage::of_file(diff_id, &path, why),
            None => Damage::of(Part::Layer, diff_id, why),
        }));
        Ok(damage)
    }
}

const MANIFEST: &str = "manifest-";

/// A document of an image, or why there is none.
fn document(path: &Path) -> Result<Vec<u8>, String> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > DOCUMENT_LIMIT => return Err(format!("has {} bytes", meta.len())),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err("is missing".into()),
        Err(error) => return Err(format!("cannot be read: {error}")),
    }
    std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))
}

fn wrong(document: &Result<Vec<u8>, String>, digest: &Digest) -> Option<String> {
    match document {
        Ok(bytes) if Digest::of(bytes) == *digest => None,
        Ok(bytes) if bytes.is_empty() => Some("is empty".into()),
        Ok(_) => Some("is changed".into()),
        Err(why) => Some(why.clone()),
    }
}
