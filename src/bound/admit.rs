//! Taking images into the store whose layers were unpacked beside it: nothing is copied, all of it is renames and lists.
//!
//! ```text
//!  new/<place>/diff, tar-split.gz ──► overlay/<id>/{diff,link,lower,work,merged}, overlay-layers/<id>.tar-split.gz
//!  configuration, manifests       ──► overlay-images/<image>/
//!                                     layers.json, images.json
//! ```
//!
//! What a cut leaves is in no list, or of an image that our index does not call complete: [`Store::purge`] removes both.

use super::graph::{Graph, Image, Layer, file_of, key_of};
use super::layer::{FILES, ROOT_MODE, SPLIT, Written};
use super::lists::Locked;
use super::places::layer_ids;
use super::store::{Entry, Store};
use crate::engine::cx::Cx;
use crate::model::bound::BoundImage;
use crate::model::image::{Digest, full_name};
use crate::model::time;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::unpack::Compression;
use crate::sys::fs::{remove_whole, write_atomic};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use rustix::fs::{Mode, OFlags};
use serde_json::{Map, Value, json};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// As overlayfs(5) has it, OVL_MAX_STACK.
const MAX_LAYERS: usize = 500;
/// Configurations are some kilobytes.
const MAX_CONFIG: u64 = 16 << 20;

/// An image of which everything is here.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    pub image: BoundImage,
    pub manifest: Vec<u8>,
    /// The list of manifests that its reference is pinned to.
    pub list: Option<Vec<u8>>,
    pub config: Digest,
    /// The lowest first.
    pub layers: Vec<Unpacked>,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub(super) struct Unpacked {
    /// The digest of its blob.
    pub blob: Digest,
    /// Where it was written, and what it is; `None` if the store had it before.
    pub new: Option<(PathBuf, Written)>,
}

impl Store {
    /// Makes images a part of the store, durably; returns of each what became of it. Their configurations lie in the spool.
    ///
    /// One sync is enough for all of them.
    pub(super) async fn admit(&self, cx: &Cx, images: Vec<Ready>, spool: &Path) -> Result<Vec<Result<()>>> {
        let entries: Vec<Entry> = images.iter().map(|ready| Entry::of(&ready.image)).collect();
        for entry in &entries {
            self.write_entry(entry)?;
        }
        let (root, driver, job, spool) =
            (self.graph_root().to_owned(), self.driver, cx.clone(), spool.to_owned());
        let taken = move || take(&job, Graph { root: &root, driver }, &images, &spool);
        let taken = tokio::task::spawn_blocking(taken).await.doing("writing to the image store")??;
        self.sync(cx).await?;
        for (mut entry, outcome) in entries.into_iter().zip(&taken) {
            entry.complete = outcome.is_ok();
            self.write_entry(&entry)?;
        }
        Ok(taken)
    }
}

fn take(cx: &Cx, graph: Graph<'_>, images: &[Ready], spool: &Path) -> Result<Vec<Result<()>>> {
    lay_out(graph).doing("making the directories of the image store")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let created = time::rfc3339(now);
    let (layer_list, image_list) = (Locked::wait(cx, graph, "layers")?, Locked::wait(cx, graph, "images")?);
    let mut taking = Taking { graph, layers: graph.layers()?, images: graph.images()?, created };
    let mut outcome = Vec::new();
    for ready in images {
        cx.checkpoint()?;
        outcome.push(taking.image(ready, spool));
    }
    layer_list.write(&taking.layers)?;
    image_list.write(&taking.images)?;
    Ok(outcome)
}

/// What containers-storage has in a graph root that has no image yet.
fn lay_out(graph: Graph<'_>) -> io::Result<()> {
    for kind in ["images", "layers"] {
        DirBuilder::new().recursive(true).mode(0o700).create(graph.list(kind, ""))?;
    }
    DirBuilder::new().recursive(true).mode(0o700).create(graph.root.join(graph.driver))?;
    DirBuilder::new().recursive(true).mode(0o755).create(graph.named(""))
}

/// The lists as they are going to be.
struct Taking<'a> {
    graph: Graph<'a>,
    layers: Vec<Layer>,
    images: Vec<Image>,
    created: String,
}

impl Taking<'_> {
    fn image(&mut self, ready: &Ready, spool: &Path) -> Result<()> {
        let config = read_config(spool, &ready.config)?;
        let parsed = parse(&config)?;
        let ids = self.agreed(ready, &parsed.rootfs.diff_ids)?;
        let mut parent = String::new();
        for (layer, id) in ready.layers.iter().zip(&ids) {
            if !self.layers.iter().any(|known| known.id == *id)
                && let Some((place, written)) = &layer.new
            {
                let doing = || format!("moving a layer of {} into the image store", ready.image.digest);
                self.move_in(id, &parent, place, written).doing_with(doing)?;
                self.layers.push(self.record(id, &parent, &layer.blob, written));
            }
            parent.clone_from(id);
        }
        self.describe(ready, &config, &parsed, parent)
    }

    /// The ids of the layers, if the configuration says of each what it was found to be.
    fn agreed(&self, ready: &Ready, diff_ids: &[Digest]) -> Result<Vec<String>> {
        let (layers, names) = (ready.layers.len(), diff_ids.len());
        if layers != names {
            let why = format!("its manifest has {layers} layers, and its configuration {names}");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        if layers > MAX_LAYERS {
            let why = format!("it has {layers} layers, and overlayfs takes {MAX_LAYERS}");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let ids = layer_ids(diff_ids);
        for ((layer, diff_id), id) in ready.layers.iter().zip(diff_ids).zip(&ids) {
            let found = match &layer.new {
                Some((_, written)) => Some(written.diff_id.clone()),
                None => self.layers.iter().any(|known| known.id == *id).then(|| diff_id.clone()),
            };
            if found.as_ref() != Some(diff_id) {
                let found = found.map_or_else(|| "another layer".into(), |found| found.to_string());
                let blob = &layer.blob;
                let why =
                    format!("layer {blob} is {found} when it is unpacked, its configuration says {diff_id}");
                let error = Error::new(ErrorKind::DigestMismatch, why);
                return Err(error.detail("expected", diff_id).detail("found", found));
            }
        }
        Ok(ids)
    }

    /// Gives an unpacked layer its place, on top of its parent.
    fn move_in(&self, id: &str, parent: &str, place: &Path, written: &Written) -> io::Result<()> {
        let graph = self.graph;
        let short = short_name(id);
        let private = |name: &str| DirBuilder::new().mode(0o700).create(place.join(name));
        private("work")?;
        private("merged")?;
        write(&place.join("link"), short.as_bytes(), 0o644)?;
        if parent.is_empty() {
            private("empty")?;
        } else {
            let above =
                graph.short_name(parent).ok_or_else(|| io::Error::other("its parent has no short name"))?;
            let lower = match fs::read_to_string(graph.place(parent).join("lower")) {
                Ok(below) => format!("l/{above}:{}", below.trim_end()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => format!("l/{above}"),
                Err(error) => return Err(error),
            };
            write(&place.join("lower"), lower.as_bytes(), 0o644)?;
            let mode = fs::metadata(graph.files(parent))?.mode() & 0o7777;
            if !written.has_root && mode != ROOT_MODE {
                fs::set_permissions(place.join(FILES), fs::Permissions::from_mode(mode))?;
            }
        }
        fs::rename(place.join(SPLIT), graph.split(id))?;
        remove_whole(&graph.place(id))?;
        fs::rename(place, graph.place(id))?;
        let named = graph.named(&short);
        remove_whole(&named)?;
        symlink(format!("../{id}/{FILES}"), named)
    }

    fn record(&self, id: &str, parent: &str, blob: &Digest, written: &Written) -> Layer {
        let mut rest = Map::new();
        rest.insert("created".into(), self.created.clone().into());
        rest.insert("compressed-size".into(), written.size.into());
        rest.insert("diff-size".into(), written.diff_size.into());
        // As containers-storage numbers them.
        let compression = match written.compression {
            Compression::None => None,
            Compression::Gzip => Some(2),
            Compression::Zstd => Some(4),
        };
        rest.extend(compression.map(|number| ("compression".to_owned(), json!(number))));
        for (key, ids) in [("uidset", &written.uids), ("gidset", &written.gids)] {
            if !ids.is_empty() {
                rest.insert(key.into(), json!(ids));
            }
        }
        Layer {
            id: id.to_owned(),
            parent: parent.to_owned(),
            compressed_diff_digest: Some(blob.to_string()),
            diff_digest: Some(written.diff_id.to_string()),
            rest,
        }
    }

    /// Writes the documents of an image and its record, or adds to that of the same one with other names.
    fn describe(&mut self, ready: &Ready, config: &[u8], parsed: &Config, top: String) -> Result<()> {
        let (id, digest) = (ready.config.hex(), &ready.image.digest);
        let path = self.graph.list("images", id);
        let doing = || format!("writing {digest} to the image store");
        DirBuilder::new().recursive(true).mode(0o700).create(&path).doing_with(doing)?;
        let dir = Dir::open_ambient_dir(&path, ambient_authority()).doing_with(doing)?;
        let known = self.images.iter().position(|image| image.id == id);
        let is_new = known.is_none();
        let at = known.unwrap_or_else(|| {
            let created = parsed.created.as_deref().filter(|text| time::is_rfc3339(text));
            let created = created.unwrap_or(&self.created).to_owned();
            self.images.push(Image {
                id: id.to_owned(),
                names: Vec::new(),
                layer: top,
                big_data_digests: Default::default(),
                rest: Map::from_iter([("created".to_owned(), created.into())]),
            });
            self.images.len() - 1
        });
        // The same of every image: there are no signatures here, the policy was asked before.
        let signatures = json!({"signatures-sizes": {digest.as_str(): []}}).to_string();
        let mut documents = vec![
            (ready.config.to_string(), config),
            (key_of(digest), &ready.manifest[..]),
            ("manifest".to_owned(), &ready.manifest),
            (format!("signature-{}", digest.hex()), b""),
        ];
        let mut names = vec![name(&ready.image, digest)];
        if let Some(list) = &ready.list {
            let digest = Digest::of(list);
            documents.push((key_of(&digest), list));
            // podman must find the image by the list's digest as well.
            names.insert(0, name(&ready.image, &digest));
        }
        let image = &mut self.images[at];
        for (key, bytes) in documents {
            let file = file_of(&key);
            if is_new {
                write(&path.join(file), bytes, 0o600).doing_with(doing)?;
            } else if !dir.read(&file).is_ok_and(|there| there == bytes) {
                // The image is complete by another name, which is needed after a cut as well.
                write_atomic(&dir, file, bytes, 0o600)?;
            }
            image.big_data_digests.insert(key.clone(), Digest::of(bytes).to_string());
            object(&mut image.rest, "big-data-sizes").insert(key.clone(), bytes.len().into());
            add(array(&mut image.rest, "big-data-names"), key);
        }
        image.rest.insert("digest".into(), digest.as_str().into());
        image.rest.insert("metadata".into(), signatures.into());
        for name in names.iter().rev() {
            add(array(&mut image.rest, "names-history"), name.clone());
        }
        image.names.retain(|known| !names.contains(known));
        image.names.splice(0..0, names);
        Ok(())
    }
}

#[derive(serde::Deserialize)]
struct Config {
    created: Option<String>,
    rootfs: Rootfs,
}

#[derive(serde::Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

fn parse(config: &[u8]) -> Result<Config> {
    serde_json::from_slice(config)
        .kind(ErrorKind::Unsupported, "its configuration is none of an image with layers")
}

/// The configuration, out of a directory that belongs to another user: never a link, a pipe or a device of whoever that is.
fn read_config(spool: &Path, digest: &Digest) -> Result<Vec<u8>> {
    let path = spool.join(digest.hex());
    let doing = || format!("reading the configuration {}", path.display());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&path, flags, Mode::empty()).doing_with(doing)?);
    let mut bytes = Vec::new();
    if file.metadata().doing_with(doing)?.is_file() {
        file.take(MAX_CONFIG).read_to_end(&mut bytes).doing_with(doing)?;
    }
    if Digest::of(&bytes) == *digest {
        return Ok(bytes);
    }
    let why = format!("the configuration {digest} has another digest, or more than {MAX_CONFIG} bytes");
    Err(Error::new(ErrorKind::DigestMismatch, why))
}

/// The name of an image in the store, in the form that containers-storage gives those of Docker Hub.
fn name(image: &BoundImage, digest: &Digest) -> String {
    format!("{}@{digest}", full_name(image.spec.reference.repository()))
}

/// What layers above name a layer by: a mount(2) has no room for the ids of many. containers-storage takes any 26 of these
/// characters; ours are those of the id, so that a layer that is written anew has the name of before.
fn short_name(id: &str) -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Digest::of(id.as_bytes());
    let bits = digest.hex().bytes().flat_map(|digit| {
        let value = char::from(digit).to_digit(16).unwrap_or_default();
        (0..4).rev().map(move |bit| value >> bit & 1)
    });
    let bits: Vec<u32> = bits.take(26 * 5).collect();
    let five = |bits: &[u32]| bits.iter().fold(0, |value, bit| value << 1 | bit);
    bits.chunks(5).map(|bits| char::from(BASE32[five(bits) as usize])).collect()
}

/// Writes a file anew.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    remove_whole(path)?;
    File::options().write(true).create_new(true).mode(mode).open(path)?.write_all(bytes)
}

fn object<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it was made one")
}

fn array<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Vec<Value> {
    let value = map.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    value.as_array_mut().expect("it was made one")
}

fn add(list: &mut Vec<Value>, text: String) {
    let text = Value::from(text);
    if !list.contains(&text) {
        list.push(text);
    }
}

/// What layers are unpacked into, before they are a part of the store.
pub(super) fn new_layers(graph: Graph<'_>) -> PathBuf {
    graph.root.join("new")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_name_of_a_layer_is_always_the_same_and_one_that_containers_storage_takes() {
        let names: Vec<String> = ["a", "b"].map(short_name).to_vec();
        assert_eq!(names, ["ZKLYCEWKDO64V6WCGGZZUI64JW", "HYR6QFQAHFMUUM4JJ5SWJYNRGS"]);
    }

    #[test]
    fn names_of_docker_hub_are_spelled_as_containers_storage_does() {
        let digest = Digest::of(b"");
        for (reference, expected) in [
            ("docker.io/x:1", "docker.io/library/x"),
            ("docker.io/library/x:1", "docker.io/library/x"),
            ("docker.io/y/x", "docker.io/y/x"),
            ("quay.io/x:1", "quay.io/x"),
        ] {
            let spec = crate::model::bound::BoundSpec::new(reference.parse().unwrap(), "/etc/x.toml");
            let image = BoundImage { spec, digest: digest.clone() };
            assert_eq!(name(&image, &digest), format!("{expected}@{digest}"));
        }
    }
}
