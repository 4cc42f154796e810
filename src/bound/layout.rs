//! An OCI layout of an image whose blobs lie elsewhere, for skopeo to copy from into a store of the vfs driver.

use crate::model::image::Digest;
use crate::model::{Context, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::io;
use std::path::Path;

/// Writes a layout of one image into an empty directory of the same file system. Blobs are those of the spool: those that are not there must be in
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
            link(&spool.join(blob.hex()), &dir.join(blob.hex()))?;
        }
        std::fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        std::fs::write(to.join("index.json"), index.to_string())
    };
    work().doing("writing a layout to copy an image from")
}

/// Gives a blob of the spool a second name, if it is there. The spool belongs to another user: never a link, a pipe or a device
/// of whoever that is. What the file contains is compared with its digest by whoever reads it.
fn link(blob: &Path, to: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(blob, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("the spool has something else than a file as a blob"));
    }
    let number = std::os::fd::AsRawFd::as_raw_fd(&file);
    let opened = format!("/proc/self/fd/{number}");
    Ok(rustix::fs::linkat(CWD, opened, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_has_the_files_of_the_spool_and_nothing_that_only_looks_like_one() {
        let temp = tempfile::tempdir().unwrap();
        let (spool, blob) = (temp.path().join("spool"), Digest::of(b"blob"));
        std::fs::create_dir(&spool).unwrap();
        let layout = |name: &str| {
            let to = temp.path().join(name);
            std::fs::create_dir(&to).unwrap();
            write(&to, br#"{"layers":[]}"#, &[], &spool, std::slice::from_ref(&blob)).map(|()| to)
        };
        assert_eq!(std::fs::read_dir(layout("none").unwrap().join("blobs/sha256")).unwrap().count(), 1);
        std::fs::write(spool.join(blob.hex()), "blob").unwrap();
        let whole = layout("whole").unwrap().join("blobs/sha256").join(blob.hex());
        assert_eq!(std::fs::read(whole).unwrap(), b"blob");
        std::fs::remove_file(spool.join(blob.hex())).unwrap();
        std::os::unix::fs::symlink("/dev/zero", spool.join(blob.hex())).unwrap();
        layout("link").unwrap_err();
        std::fs::remove_file(spool.join(blob.hex())).unwrap();
        rustix::fs::mknodat(CWD, spool.join(blob.hex()), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        layout("pipe").unwrap_err();
    }
}
