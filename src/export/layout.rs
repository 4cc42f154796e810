//! A directory in the OCI image layout (image-spec, image-layout.md).

use crate::model::image::Digest;
use crate::model::{Context, Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const TAG: &str = "org.opencontainers.image.ref.name";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A layout. One program at a time may write to it.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

/// A blob in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub digest: Digest,
    pub size: u64,
}

impl Layout {
    /// In this directory, which need not exist yet.
    pub fn at(dir: PathBuf) -> Layout {
        Layout { dir }
    }

    /// An image of the layout, as skopeo names it.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }

    /// Whether this blob is in it.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blob(digest).is_file()
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    fn index(&self) -> Result<Value> {
        self.json(&self.dir.join("index.json"))
    }

    fn json(&self, path: &Path) -> Result<Value> {
        let doing = || format!("reading {}", path.display());
        serde_json::from_slice(&std::fs::read(path).doing_with(doing)?).doing_with(doing)
    }

    /// The manifest with this tag.
    pub(super) fn manifest(&self, tag: &str) -> Result<Value> {
        let index = self.index()?;
        let lost = || Error::new(ErrorKind::Corrupt, format!("{} has no image", self.reference(tag)));
        let all = index["manifests"].as_array().ok_or_else(lost)?;
        let tagged = all.iter().find(|entry| entry["annotations"][TAG] == tag).ok_or_else(lost)?;
        self.described(tagged)
    }

    /// The digests of the unpacked layers of an image.
    pub fn diff_ids(&self, tag: &str) -> Result<Vec<Digest>> {
        let config = self.described(&self.manifest(tag)?["config"])?;
        let all = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
        all.iter().map(|digest| digest.as_str().unwrap_or_default().parse()).collect()
    }

    /// The JSON that a descriptor is about.
    pub(super) fn described(&self, descriptor: &Value) -> Result<Value> {
        let digest: Digest = descriptor["digest"].as_str().unwrap_or_default().parse()?;
        self.json(&self.blob(&digest))
    }

    /// Adds a JSON document.
    pub(super) fn put(&self, document: &Value) -> Result<Stored> {
        let bytes = document.to_string().into_bytes();
        let stored = Stored { digest: Digest::of(&bytes), size: bytes.len() as u64 };
        std::fs::write(self.blob(&stored.digest), bytes)
            .doing_with(|| format!("writing {}", stored.digest))?;
        Ok(stored)
    }

    /// A file in the directory of blobs that is none yet.
    pub(super) fn draft(&self) -> Result<tempfile::TempPath> {
        let file = tempfile::NamedTempFile::new_in(self.blobs()).doing("preparing a layer")?;
        Ok(file.into_temp_path())
    }

    /// Makes a draft the blob with this digest.
    pub(super) fn keep(&self, draft: tempfile::TempPath, digest: &Digest) -> Result<()> {
        draft.persist(self.blob(digest)).doing_with(|| format!("keeping {digest}"))
    }

    /// Gives a manifest a tag, which it takes from the one that has it.
    pub(super) fn tag(&self, tag: &str, manifest: &Stored) -> Result<()> {
        let mut index = self.index()?;
        let entry = json!({"mediaType": MANIFEST, "digest": manifest.digest, "size": manifest.size,
            "annotations": {TAG: tag}});
        if let Some(all) = index["manifests"].as_array_mut() {
            all.retain(|other| other["annotations"][TAG] != tag);
            all.push(entry);
        }
        let path = self.dir.join("index.json");
        std::fs::write(&path, index.to_string()).doing_with(|| format!("writing {}", path.display()))
    }
}
