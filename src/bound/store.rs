//! The store of bound images: a containers-storage graph root that podman reads as an additional image store.
//!
//! Every image has the name `repository@digest`, which never moves: two digests of one tag live side by side, and each
//! is found by its digest. The name `repository:tag` is moved by [`Store::show`] alone, without any network.
//!
//! Whether an image is complete is not asked of containers-storage, which makes its index durable before the files that
//! it speaks of: a power cut can leave an index with empty files. Our own index names an image as complete only after
//! everything was synced.

use super::in_use::load;
use super::skopeo::{Skopeo, Trust, failed};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSet};
use crate::model::image::{Digest, ImageRef, Transport};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STATE: &str = "ostree/osctl";
const STORAGE: &str = "storage";
const INDEX: &str = "storage-index";
/// overlayfs(5): an overlay of container layers cannot lie on another overlay.
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// The store below a sysroot.
#[derive(Debug)]
pub struct Store {
    skopeo: Skopeo,
    state: Dir,
    graph: PathBuf,
    driver: &'static str,
    /// containers-storage wants one; nothing of it outlives the process.
    run: TempDir,
}

/// One entry of our index.
#[derive(serde::Serialize, serde::Deserialize, PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Entry {
    repository: String,
    digest: Digest,
    /// Written as false before a pull begins, so that what a crash leaves behind is known and can be collected.
    complete: bool,
}

impl Entry {
    fn of(image: &BoundImage) -> Entry {
        Entry {
            repository: image.spec.reference.repository().to_owned(),
            digest: image.digest.clone(),
            complete: false,
        }
    }

    /// A file name for the pair; repositories contain slashes.
    fn path(&self) -> String {
        format!(
            "{INDEX}/{}.json",
            Digest::of(format!("{}@{}", self.repository, self.digest).as_bytes()).hex()
        )
    }

    fn name(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }
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
        Ok(Store { skopeo, state, graph, driver, run })
    }

    /// The store of a sysroot, if there is one. Makes nothing of it that is not there.
    pub fn existing(sysroot: &Path, skopeo: Skopeo) -> Result<Option<Store>> {
        if sysroot.join(STATE).join(STORAGE).is_dir() {
            Store::open(sysroot, skopeo).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The graph root, for podman's `additionalimagestores`.
    pub fn graph_root(&self) -> &Path {
        &self.graph
    }

    /// How skopeo is called for this store's images.
    pub fn skopeo(&self) -> &Skopeo {
        &self.skopeo
    }

    /// skopeo's name for an image of this store.
    fn location(&self, name: &str) -> String {
        // Without skip_mount_home the overlay driver bind-mounts the graph root onto itself and leaves that behind.
        let options = if self.driver == "overlay" { ":overlay.skip_mount_home=true" } else { "" };
        format!(
            "containers-storage:[{}@{}+{}{options}]{name}",
            self.driver,
            self.graph.display(),
            self.run.path().display()
        )
    }

    /// Whether the image is there, whole, and can be found by its digest.
    pub async fn has(&self, cx: &Cx, digest: &Digest, reference: &ImageRef) -> Result<bool> {
        let entry =
            Entry { repository: reference.repository().to_owned(), digest: digest.clone(), complete: true };
        let complete = self.read_entry(&entry.path())?.is_some_and(|e| e == entry);
        Ok(complete && self.digest_of(cx, &entry.name()).await?.as_ref() == Some(digest))
    }

    /// The manifest of the image, if it is there and whole.
    pub(super) async fn complete(&self, cx: &Cx, image: &BoundImage) -> Result<Option<Vec<u8>>> {
        let entry = Entry { complete: true, ..Entry::of(image) };
        if self.read_entry(&entry.path())?.as_ref() != Some(&entry) {
            return Ok(None);
        }
        Ok(self.manifest(cx, &entry.name()).await?.filter(|m| Digest::of(m) == image.digest))
    }

    /// The blobs of the layers that are there, of whole images and of others.
    pub(super) fn layers(&self) -> Result<BTreeSet<Digest>> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Layer {
            #[serde(default)]
            compressed_diff_digest: String,
            #[serde(default)]
            diff_digest: String,
        }
        let layers: Vec<Layer> = load(&self.graph.join(format!("{0}-layers/layers.json", self.driver)))?;
        let digests = layers.into_iter().flat_map(|l| [l.compressed_diff_digest, l.diff_digest]);
        Ok(digests.filter_map(|digest| digest.parse().ok()).collect())
    }

    /// The digest that a name means in this store; `None` if it means nothing.
    pub async fn digest_of(&self, cx: &Cx, name: &str) -> Result<Option<Digest>> {
        Ok(self.manifest(cx, name).await?.map(|m| Digest::of(&m)))
    }

    async fn manifest(&self, cx: &Cx, name: &str) -> Result<Option<Vec<u8>>> {
        match self.skopeo.run(cx, Trust::Verified, ["inspect", "--raw", &self.location(name)]).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(e) if e.kind == ErrorKind::Cancelled => Err(e),
            Err(e)
                if ["does not resolve to an image", "image not known", "does not exist"]
                    .iter()
                    .any(|t| e.to_string().contains(t)) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Fetches the image unless it is there already.
    ///
    /// Afterwards it is found by digest, and by its tag if the tag meant nothing before: a tag that units of the running
    /// system may use is moved only by [`Store::show`]. Fails with `BoundImageFailed`.
    pub async fn pull(&self, cx: &Cx, image: &BoundImage) -> Result<()> {
        self.fetch(cx, image).await.map_err(|cause| failed(&image.spec, "pulled", cause))
    }

    async fn fetch(&self, cx: &Cx, image: &BoundImage) -> Result<()> {
        let reference = &image.spec.reference;
        if !self.has(cx, &image.digest, reference).await? {
            let mut entry = Entry::of(image);
            self.write_entry(&entry)?;
            self.copy(cx, image, &entry.name(), &entry.name()).await?;
            if let Some(list) = reference.digest().filter(|d| *d != image.digest) {
                // Pinned to a manifest list: podman must find the image by the list's digest as well.
                let name = format!("{}@{list}", entry.repository);
                self.copy(cx, image, &name, &name).await?;
            }
            self.sync()?;
            entry.complete = true;
            self.write_entry(&entry)?;
        }
        match visible_name(reference) {
            Some(name) if self.digest_of(cx, &name).await?.is_none() => {
                self.name(cx, image, &name).await?;
                self.sync()
            }
            _ => Ok(()),
        }
    }

    async fn copy(&self, cx: &Cx, image: &BoundImage, from: &str, to: &str) -> Result<()> {
        let mut args = vec!["copy".to_owned(), "--quiet".into(), "--preserve-digests".into()];
        args.extend(self.skopeo.registry_options(&image.spec, "src-"));
        args.push(format!("{}{from}", Transport::Registry.prefix()));
        args.push(self.location(to));
        let trust = Trust::Policy(Some((&image.spec.reference, &image.digest)));
        self.skopeo.run(cx, trust, args).await.map(drop)
    }

    /// Makes `repository:tag` of every image mean the digest of this set. Needs no network.
    ///
    /// To be called when the set's deployment is the one that runs or, on a sysroot that is not booted, the one that will
    /// be. Images that are missing (`prefetch`) are left out. Returns the names that moved.
    pub async fn show(&self, cx: &Cx, set: &BoundSet) -> Result<Vec<String>> {
        let mut moved = Vec::new();
        for image in &set.images {
            let Some(name) = visible_name(&image.spec.reference) else { continue };
            if !self.has(cx, &image.digest, &image.spec.reference).await?
                || self.digest_of(cx, &name).await?.as_ref() == Some(&image.digest)
            {
                continue;
            }
            self.name(cx, image, &name).await?;
            moved.push(name);
        }
        if !moved.is_empty() {
            self.sync()?;
        }
        Ok(moved)
    }

    /// Gives an image of the store another name.
    ///
    /// skopeo has no such verb, podman may be missing, and a copy from the store to itself fails on `--preserve-digests`.
    /// A copy from an OCI layout that holds the manifest and the configuration, and none of the layers, works: the layers
    /// are found in the store by their digests.
    async fn name(&self, cx: &Cx, image: &BoundImage, name: &str) -> Result<()> {
        let location = self.location(&Entry::of(image).name());
        let manifest = self.skopeo.run(cx, Trust::Verified, ["inspect", "--raw", &location]).await?;
        let config =
            self.skopeo.run(cx, Trust::Verified, ["inspect", "--config", "--raw", &location]).await?;
        let parsed: serde_json::Value = serde_json::from_slice(&manifest)
            .kind(ErrorKind::Corrupt, format!("the manifest of {location} is damaged"))?;
        let media_type = parsed["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": media_type, "digest": image.digest, "size": manifest.len()}]});
        let layout =
            tempfile::tempdir_in(self.skopeo.tmp()).doing("creating a directory for renaming an image")?;
        let dir = Dir::open_ambient_dir(layout.path(), ambient_authority()).doing("opening it")?;
        let write = |path: &str, bytes: &[u8]| dir.write(path, bytes);
        dir.create_dir_all("blobs/sha256")
            .and_then(|()| write(&format!("blobs/sha256/{}", Digest::of(&config).hex()), &config))
            .and_then(|()| write(&format!("blobs/sha256/{}", Digest::of(&manifest).hex()), &manifest))
            .and_then(|()| write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#))
            .and_then(|()| write("index.json", index.to_string().as_bytes()))
            .doing("writing a layout for renaming an image")?;
        let from = format!("oci:{}", layout.path().display());
        let args = ["copy", "--quiet", "--preserve-digests", &from, &self.location(name)];
        self.skopeo.run(cx, Trust::Verified, args).await.map(drop)
    }

    /// Makes everything in the store durable: skopeo does not sync the files of layers.
    fn sync(&self) -> Result<()> {
        let dir = std::fs::File::open(&self.graph).doing("opening the image store")?;
        rustix::fs::syncfs(&dir).doing("syncing the image store")
    }

    fn write_entry(&self, entry: &Entry) -> Result<()> {
        let text = serde_json::to_vec(entry).doing("encoding an entry of the image store")?;
        fs::write_atomic(&self.state, entry.path(), &text, 0o644)
    }

    /// An entry; a damaged one counts as none, so that the image is fetched again.
    fn read_entry(&self, path: &str) -> Result<Option<Entry>> {
        let bytes = fs::read_optional(&self.state, path)?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }

    fn entries(&self) -> Result<Vec<Entry>> {
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

    /// The digest of an image's configuration, which is the image's id in the store; `None` if it is not there.
    async fn id_of(&self, cx: &Cx, name: &str) -> Result<Option<String>> {
        let Some(manifest) = self.manifest(cx, name).await? else { return Ok(None) };
        let parsed: serde_json::Value = serde_json::from_slice(&manifest)
            .kind(ErrorKind::Corrupt, format!("the manifest of {name} is damaged"))?;
        Ok(parsed["config"]["digest"].as_str().map(str::to_owned))
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
        return Ok(Vec::new());
    }
    // One image of the store may have several names (another repository, another compression): it must stay as long as
    // one of them is needed.
    let mut needed = BTreeSet::new();
    for entry in &keep {
        needed.extend(store.id_of(cx, &entry.name()).await?);
    }
    let mut gone = Vec::new();
    for entry in drop {
        cx.checkpoint()?;
        let name = entry.name();
        let id = store.id_of(cx, &name).await?;
        if let Some(id) = &id
            && !needed.contains(id)
        {
            // Not complete from now on: a crash in the middle of the removal must not leave it looking whole.
            store.write_entry(&Entry { complete: false, ..entry.clone() })?;
            store
                .skopeo
                .run(cx, Trust::Verified, ["delete", &store.location(&name)])
                .await
                .map_err(|e| Error::new(e.kind, format!("removing {name} from the image store")).source(e))?;
        }
        fs::remove_durably(&store.state, entry.path())?;
        gone.push(name);
    }
    Ok(gone)
}

/// The name by which units ask for the image; `None` if they can only ask by digest.
fn visible_name(reference: &ImageRef) -> Option<String> {
    if reference.digest().is_some() {
        return None;
    }
    Some(format!("{}:{}", reference.repository(), reference.tag().unwrap_or("latest")))
}

fn on_overlayfs(path: &Path) -> Result<bool> {
    let stat = rustix::fs::statfs(path).doing_with(|| format!("looking at {}", path.display()))?;
    Ok(stat.f_type == OVERLAYFS_SUPER_MAGIC)
}
