//! An OCI layout of an image whose blobs lie elsewhere, for skopeo to copy from.

use crate::model::image::Digest;
use crate::model::{Context, ErrorKind, Result};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Writes a layout of one image into an empty directory. Blobs are links into the spool: those that are not there must be in
/// the store that the image is copied to, where they are found by their digests.
///
/// `manifest` is what the layout is about, a list of manifests perhaps; `beside` are other small blobs.
pub(super) fn write(
    to: &Path,
    manifest: &[u8],
    beside: &[&[u8]],
    spool: &Path,
    blobs: &[Digest],
) -> Result<()> {
    let parsed: serde_json::Value = serde_json::from_slice(manifest)
        .kind(ErrorKind::Corrupt, "the manifest of a bound image is damaged")?;
    let list = parsed.get("manifests").is_some();
    let default = if list {
        "application/vnd.oci.image.index.v1+json"
    } else {
        "application/vnd.oci.image.manifest.v1+json"
    };
    let media_type = parsed["mediaType"].as_str().unwrap_or(default);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media_type, "digest": Digest::of(manifest), "size": manifest.len()}]});
    let work = || -> io::Result<()> {
        let dir = to.join("blobs/sha256");
        std::fs::create_dir_all(&dir)?;
        for blob in beside.iter().chain([&manifest]) {
            std::fs::write(dir.join(Digest::of(blob).hex()), blob)?;
        }
        for blob in blobs {
            let there = spool.join(blob.hex());
            if there.exists() {
                symlink(there, dir.join(blob.hex()))?;
            }
        }
        std::fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        std::fs::write(to.join("index.json"), index.to_string())
    };
    work().doing("writing a layout to copy an image from")
}
