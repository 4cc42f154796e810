//! The store of bound images: a containers-storage graph root, of which each deployment has a view ([`super::view`]).
//!
//! Every image has the name `repository@digest`, which never moves: two digests of one tag lie side by side.
//!
//! Whether an image is complete is not asked of containers-storage, which makes its index durable before the files that
//! it speaks of: a power cut can leave an index with empty files. Our own index names an image as complete only after
//! everything was synced.

use super::graph::{self, Graph};
use super::layout;
use super::places::Stock;
use super::skopeo::{Skopeo, Trust};
use super::view::{self, Views};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSet};
use crate::model::image::Digest;
use crate::model::{Context, Error, Result};
use crate::sys::fs;
use crate::sys::scratch::Scratch;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STATE: &str = "ostree/osctl";
pub(super) const STORAGE: &str = "storage";
const INDEX: &str = "storage-index";
/// overlayfs(5): an overlay of container layers cannot lie on another overlay.
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// The store below a sysroot.
#[derive(Debug)]
pub struct Store {
    skopeo: Skopeo,
    pub(super) base: PathBuf,
    pub(super) state: Dir,
    graph: PathBuf,
    pub(super) driver: &'static str,
    /// containers-storage wants one; nothing of it outlives the process.
    run: TempDir,
}

/// What an image is put into the store from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blobs<'a> {
    pub manifest: &'a [u8],
    /// The list of manifests that its reference is pinned to.
    pub list: Option<&'a [u8]>,
    /// Where blobs lie that the store does not have.
    pub spool: &'a Path,
    /// The configuration and the layers.
    pub blobs: &'a [Digest],
}

/// One entry of our index.
#[derive(serde::Serialize, serde::Deserialize, PartialEq, Eq, PartialOrd, Ord, Clone)]
pub(super) struct Entry {
    repository: String,
    pub(super) digest: Digest,
    /// Written as false before a pull begins, so that what a crash leaves behind is known and can be collected.
    pub(super) complete: bool,
}

impl Entry {
    pub(super) fn of(image: &BoundImage) -> Entry {
        Entry {
            repository: image.spec.reference.repository().to_owned(),
            digest: image.digest.clone(),
            complete: false,
        }
    }

    /// A file name for the pair; repositories contain slashes.
    pub(super) fn path(&self) -> String {
        format!(
            "{INDEX}/{}.json",
            Digest::of(format!("{}@{}", self.repository, self.digest).as_bytes()).hex()
        )
    }

    pub(super) fn name(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }
}

/// The directory that holds the store of a sysroot, and what is noted about it.
pub fn state_dir(sysroot: &Path) -> PathBuf {
    sysroot.join(STATE)
}

impl Store {
    /// Opens the store of a sysroot, or makes an empty one.
    ///
    /// The driver is overlay, on every file system but overlayfs itself (a container's root), where it is vfs.
    pub fn open(sysroot: &Path, skopeo: Skopeo) -> Result<Store> {
        let base = sysroot.join(STATE);
        std::fs::create_dir_all(base.join(STORAGE))
            .and_then(|()| std::fs::create_dir_all(skopeo.tmp()))
            .doing_with(|| format!("creating {}", base.display()))?;
        let base = base.canonicalize().doing_with(|| format!("opening {}", base.display()))?;
        let state = Dir::open_ambient_dir(&base, ambient_authority())
            .doing_with(|| format!("opening {}", base.display()))?;
        let graph = base.join(STORAGE);
        let driver = if graph.join("overlay-images").exists() {
            "overlay"
        } else if graph.join("vfs-images").exists() || on_overlayfs(&graph)? {
            "vfs"
        } else {
            "overlay"
        };
        let run = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(skopeo.tmp())
            .doing("creating a run root for the image store")?;
        Ok(Store { skopeo, base, state, graph, driver, run })
    }

    /// The store of a sysroot, if there is one. Makes nothing of it that is not there.
    pub fn existing(sysroot: &Path, skopeo: Skopeo) -> Result<Option<Store>> {
        if sysroot.join(STATE).join(STORAGE).is_dir() {
            Store::open(sysroot, skopeo).map(Some)
        } else {
            Ok(None)
        }
    }

    pub(super) fn graph(&self) -> Graph<'_> {
        Graph { root: &self.graph, driver: self.driver }
    }

    /// The graph root. podman gets a view of it.
    pub fn graph_root(&self) -> &Path {
        &self.graph
    }

    /// How skopeo is called for this store's images.
    pub fn skopeo(&self) -> &Skopeo {
        &self.skopeo
    }

    /// skopeo's name for an image of this store.
    pub(super) fn location(&self, name: &str) -> String {
        // Without skip_mount_home the overlay driver bind-mounts the graph root onto itself and leaves that behind.
        let options = if self.driver == "overlay" { ":overlay.skip_mount_home=true" } else { "" };
        format!(
            "containers-storage:[{}@{}+{}{options}]{name}",
            self.driver,
            self.graph.display(),
            self.run.path().display()
        )
    }

    /// Whether the image is there, whole.
    pub fn has(&self, image: &BoundImage) -> Result<bool> {
        Ok(self.complete(image)?.is_some())
    }

    /// The manifest of the image, if it is there and whole.
    pub(super) fn complete(&self, image: &BoundImage) -> Result<Option<Vec<u8>>> {
        let entry = Entry { complete: true, ..Entry::of(image) };
        if self.read_entry(&entry.path())?.as_ref() != Some(&entry) {
            return Ok(None);
        }
        let images = self.graph().images()?;
        let Some(found) = view::find(&images, image) else { return Ok(None) };
        let path = self.graph().data(&found.id, &graph::key_of(&image.digest));
        let manifest = match std::fs::read(&path) {
            Ok(manifest) => manifest,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).doing_with(|| format!("reading {}", path.display())),
        };
        let layers = self.graph().layers()?;
        let whole = found.layer.is_empty() || layers.iter().any(|layer| layer.id == found.layer);
        Ok(Some(manifest).filter(|manifest| whole && Digest::of(manifest) == image.digest))
    }

    /// The layers that are there, of whole images and of others.
    pub(super) fn stock(&self) -> Result<Stock> {
        Ok(Stock::new(self.graph().layers()?, self.writes_layers()))
    }

    /// Whether we write its layers ourselves ([`Store::admit`]). Those of vfs, which is there for sysroots in containers only, have
    /// the files of all layers below as well: skopeo makes those copies.
    pub(super) fn writes_layers(&self) -> bool {
        self.driver == "overlay"
    }

    /// Has skopeo put an image into the store: of its blobs those that the store does not have lie in the spool.
    ///
    /// `list` is the list of manifests that the reference is pinned to, if it is to one. An error is skopeo's reason, not
    /// yet what it is for.
    pub(super) async fn import(&self, cx: &Cx, image: &BoundImage, from: &Blobs<'_>) -> Result<()> {
        let mut entry = Entry::of(image);
        self.write_entry(&entry)?;
        self.copy(cx, image, from, &entry.name(), from.manifest, &[]).await?;
        if let Some(list) = from.list {
            // podman must find the image by the list's digest as well.
            let name = format!("{}@{}", entry.repository, Digest::of(list));
            self.copy(cx, image, from, &name, list, &[from.manifest]).await?;
        }
        self.sync(cx).await?;
        entry.complete = true;
        self.write_entry(&entry)
    }

    /// Copies from a layout of what is there; layers that are not, are found in the store by their digests.
    async fn copy(
        &self,
        cx: &Cx,
        image: &BoundImage,
        from: &Blobs<'_>,
        name: &str,
        manifest: &[u8],
        beside: &[&[u8]],
    ) -> Result<()> {
        let scratch = Scratch::below(self.skopeo.tmp())?;
        layout::write(scratch.path(), manifest, beside, from.spool, from.blobs)?;
        let mut args = Skopeo::platform_options(&image.spec);
        args.extend(["copy".to_owned(), "--quiet".into(), "--preserve-digests".into()]);
        args.push(format!("oci:{}", scratch.path().display()));
        args.push(self.location(name));
        self.skopeo.run(cx, Trust::Verified, args).await.map(drop)
    }

    fn views(&self) -> Views<'_> {
        Views { state: &self.base, graph: self.graph() }
    }

    /// Where podman finds the images of a set, once [`Store::publish`] has made it.
    pub fn view(&self, key: &str) -> PathBuf {
        self.views().path(key)
    }

    /// Makes the view of a set durable: afterwards podman finds its images there, by digest and by tag, without a network.
    ///
    /// Images that are missing (`prefetch`) are left out. `kept` are images that containers of the administrator stand on.
    /// Returns whether there was anything to do.
    pub fn publish(&self, key: &str, set: &BoundSet, kept: &BoundSet) -> Result<bool> {
        let mut here = Vec::new();
        for image in &set.images {
            if self.has(image)? {
                here.push(image.clone());
            }
        }
        self.views().make(key, &BoundSet { images: here }, kept)
    }

    /// Removes the views of all sets but these.
    pub fn prune_views(&self, keep: &[&str]) -> Result<()> {
        self.views().prune(keep)
    }

    /// Makes everything in the store durable: whoever writes the files of layers syncs none of them.
    ///
    /// It may take minutes on a slow disk: nobody who cancels waits for it.
    pub(super) async fn sync(&self, cx: &Cx) -> Result<()> {
        let dir = std::fs::File::open(&self.graph).doing("opening the image store")?;
        let synced = tokio::task::spawn_blocking(move || rustix::fs::syncfs(&dir));
        let doing = "syncing the image store";
        cx.or_cancelled(async { synced.await.doing(doing)?.doing(doing) }).await
    }

    pub(super) fn write_entry(&self, entry: &Entry) -> Result<()> {
        let text = serde_json::to_vec(entry).doing("encoding an entry of the image store")?;
        fs::write_atomic(&self.state, entry.path(), &text, 0o644)
    }

    /// An entry; a damaged one counts as none, so that the image is fetched again.
    fn read_entry(&self, path: &str) -> Result<Option<Entry>> {
        let bytes = fs::read_optional(&self.state, path)?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }

    pub(super) fn entries(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        if !self.state.exists(INDEX) {
            return Ok(found);
        }
        for file in self.state.read_dir(INDEX).doing("listing the image store")? {
            let name = file.doing("listing the image store")?.file_name();
            found.extend(self.read_entry(&format!("{INDEX}/{}", name.to_string_lossy()))?);
        }
        found.sort();
        Ok(found)
    }
}

/// Removes the images, by digest, that no kept set needs, and what broken pulls left behind.
///
/// Layers that another image shares stay. Returns the names that are gone.
pub async fn collect(cx: &Cx, store: &Store, keep: &[BoundSet]) -> Result<Vec<String>> {
    let kept: BTreeSet<String> = keep.iter().flat_map(|s| &s.images).map(|i| Entry::of(i).name()).collect();
    let (keep, drop): (Vec<Entry>, Vec<Entry>) =
        store.entries()?.into_iter().partition(|e| kept.contains(&e.name()));
    if drop.is_empty() {
        store.purge(cx)?;
        return Ok(Vec::new());
    }
    let images = store.graph().images()?;
    // By digest: containers-storage has names of its own for what is short, such as those of Docker Hub.
    let id_of = |entry: &Entry| images.iter().find(|i| i.has(&entry.digest)).map(|i| i.id.clone());
    // One image of the store may have several names (another repository, another compression): it must stay as long as
    // one of them is needed.
    let needed: BTreeSet<String> = keep.iter().filter_map(id_of).collect();
    let (mut gone, mut gone_ids) = (Vec::new(), BTreeSet::new());
    for entry in drop {
        cx.checkpoint()?;
        let name = entry.name();
        let removed = |id: &String| gone_ids.contains(id);
        if let Some(id) = id_of(&entry)
            && !needed.contains(&id)
            && !removed(&id)
        {
            // Not complete from now on: a crash in the middle of the removal must not leave it looking whole.
            store.write_entry(&Entry { complete: false, ..entry.clone() })?;
            store
                .skopeo
                .run(cx, Trust::Verified, ["delete", &store.location(&name)])
                .await
                .map_err(|e| Error::new(e.kind, format!("removing {name} from the image store")).source(e))?;
            // With all its names.
            gone_ids.insert(id);
        }
        fs::remove_durably(&store.state, entry.path())?;
        gone.push(name);
    }
    store.purge(cx)?;
    Ok(gone)
}

fn on_overlayfs(path: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(path).doing_with(|| format!("looking at {}", path.display()))?;
    Ok(stat.f_type == OVERLAYFS_SUPER_MAGIC)
}
