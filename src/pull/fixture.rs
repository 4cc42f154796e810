//! Images for tests: layers by hand, written as an OCI layout.

use super::types::{Base, FetchOptions, Report, Reporter, Resolved, Worker};
use super::{import_in_process, resolve_in_process};
use crate::model::Result;
use crate::model::image::{Digest, ImageRef};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, ostree};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A layer under construction. Owners are `uid` and `gid` of the builder's state.
pub(crate) struct Tar {
    builder: tar::Builder<Vec<u8>>,
    owner: (u64, u64),
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar { builder: tar::Builder::new(Vec::new()), owner: (0, 0) }
    }

    /// Owner of what follows.
    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Tar {
        self.owner = (uid, gid);
        self
    }

    fn entry(mut self, kind: tar::EntryType, path: &str, mode: u32, link: &str, data: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(u32::from(kind == tar::EntryType::Block)).unwrap();
            header.set_device_minor(0).unwrap();
        }
        if !link.is_empty() {
            if link.len() <= 100 {
                header.set_link_name_literal(link).unwrap();
            } else {
                self.extension(b'K', link.as_bytes());
            }
        }
        // By hand: the tar crate refuses the paths that we want to see refused by ours.
        if path.len() > 100 {
            self.extension(b'L', path.as_bytes());
        }
        let name = &path.as_bytes()[..path.len().min(100)];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.builder.append(&header, data).unwrap();
        self
    }

    fn extension(&mut self, kind: u8, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_path("././@LongLink").unwrap();
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.builder.append(&header, data).unwrap();
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Tar {
        self.entry(tar::EntryType::Directory, path, mode, "", b"")
    }

    pub(crate) fn file(self, path: &str, mode: u32, data: &[u8]) -> Tar {
        self.entry(tar::EntryType::Regular, path, mode, "", data)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(tar::EntryType::Symlink, path, 0o777, target, b"")
    }

    pub(crate) fn hardlink(self, path: &str, mode: u32, target: &str) -> Tar {
        self.entry(tar::EntryType::Link, path, mode, target, b"")
    }

    pub(crate) fn special(self, kind: tar::EntryType, path: &str) -> Tar {
        self.entry(kind, path, 0o600, "", b"")
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.extension(b'x', &data);
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }
}

/// The least that passes as a bootable plain image.
pub(super) fn bootable() -> Tar {
    Tar::new()
        .dir("usr", 0o755)
        .dir("usr/bin", 0o755)
        .dir("usr/sbin", 0o755)
        .dir("usr/lib", 0o755)
        .dir("usr/lib/modules", 0o755)
        .dir("usr/lib/modules/6.1", 0o755)
        .file("usr/lib/modules/6.1/vmlinuz", 0o644, b"kernel")
        .file("usr/lib/modules/6.1/initramfs.img", 0o644, b"initramfs")
        .symlink("bin", "usr/bin")
        .symlink("sbin", "usr/sbin")
        .symlink("lib", "usr/lib")
        .dir("etc", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n")
        .dir("var", 0o755)
        .dir("root", 0o700)
}

/// How a layer is packed.
#[derive(Clone, Copy)]
pub(crate) enum Pack {
    Gzip,
    Zstd,
    None,
}

pub(crate) fn pack(tar: &[u8], how: Pack) -> (Vec<u8>, &'static str) {
    match how {
        Pack::Gzip => {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(tar).unwrap();
            (gz.finish().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip")
        }
        Pack::Zstd => (zstd::encode_all(tar, 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd"),
        Pack::None => (tar.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
    }
}

pub(super) fn arch() -> String {
    ostree_ext::oci_spec::image::Arch::default().to_string()
}

/// An image in OCI layout.
pub(super) struct Layout {
    pub dir: PathBuf,
    pub manifest: Digest,
    pub manifest_size: usize,
    /// Digests of the layers' blobs.
    pub layers: Vec<Digest>,
}

impl Layout {
    /// Writes the layers, lowest first, as an image tagged `latest`.
    pub(super) fn write(dir: &Path, layers: &[(Vec<u8>, Pack)]) -> Layout {
        Layout::write_labelled(dir, layers, &[("org.opencontainers.image.version", "1.2")])
    }

    pub(super) fn write_labelled(dir: &Path, layers: &[(Vec<u8>, Pack)], labels: &[(&str, &str)]) -> Layout {
        let mut layout =
            Layout { dir: dir.to_owned(), manifest: Digest::of(b""), manifest_size: 0, layers: Vec::new() };
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
        for (tar, how) in layers {
            let (blob, media_type) = pack(tar, *how);
            let digest = layout.blob(&blob);
            descriptors.push(serde_json::json!(
                {"mediaType": media_type, "digest": digest, "size": blob.len()}));
            diff_ids.push(Digest::of(tar).to_string());
            layout.layers.push(digest);
        }
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let config = serde_json::json!({
            "created": "2024-01-02T03:04:05Z", "architecture": arch(), "os": "linux",
            "config": {"Labels": labels}, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": layout.blob(&config), "size": config.len()},
            "layers": descriptors});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        layout.manifest = layout.blob(&manifest);
        layout.manifest_size = manifest.len();
        let descriptor = layout.descriptor();
        layout.index(&[descriptor]);
        layout
    }

    fn json(&self, digest: &str) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path(&digest.parse().unwrap())).unwrap()).unwrap()
    }

    /// Changes the manifest and the configuration, and gives the result the tag `latest`.
    pub(super) fn rewrite(&mut self, change: impl FnOnce(&mut serde_json::Value, &mut serde_json::Value)) {
        let mut manifest = self.json(self.manifest.as_str());
        let mut config = self.json(manifest["config"]["digest"].as_str().unwrap());
        change(&mut manifest, &mut config);
        let config = serde_json::to_vec(&config).unwrap();
        manifest["config"]["digest"] = self.blob(&config).to_string().into();
        manifest["config"]["size"] = config.len().into();
        let manifest = serde_json::to_vec(&manifest).unwrap();
        self.manifest = self.blob(&manifest);
        self.manifest_size = manifest.len();
        self.index(&[self.descriptor()]);
    }

    pub(super) fn descriptor(&self) -> serde_json::Value {
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.manifest, "size": self.manifest_size,
            "annotations": {"org.opencontainers.image.ref.name": "latest"}})
    }

    /// Replaces the layout's index.
    pub(super) fn index(&self, manifests: &[serde_json::Value]) {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(self.dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    }

    pub(super) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        std::fs::write(self.path(&digest), bytes).unwrap();
        digest
    }

    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn image(&self) -> ImageRef {
        format!("oci:{}:latest", self.dir.display()).parse().unwrap()
    }
}

/// A scratch directory with a repository of the kind that hosts have.
pub(super) struct Scratch {
    pub dir: tempfile::TempDir,
    pub repo: ostree::Repo,
    pub reports: Arc<Mutex<Vec<Report>>>,
}

impl Scratch {
    pub(super) fn new() -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(dir.path().join("repo"));
        let mode = if rustix::process::geteuid().is_root() {
            ostree::RepoMode::Bare
        } else {
            ostree::RepoMode::BareUser
        };
        repo.create(mode, gio::Cancellable::NONE).unwrap();
        Scratch { dir, repo, reports: Arc::default() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn opts(&self) -> FetchOptions {
        FetchOptions { worker: Worker::InProcess, insecure: true, ..Default::default() }
    }

    pub(super) async fn resolve(&self, image: &ImageRef) -> Result<Resolved> {
        resolve_in_process(image, &self.opts()).await
    }

    pub(super) async fn pull_with(&self, image: &ImageRef, opts: &FetchOptions) -> Result<Base> {
        let resolved = resolve_in_process(image, opts).await?;
        let reports = self.reports.clone();
        let report: Reporter = Arc::new(move |r| reports.lock().unwrap().push(r));
        import_in_process(&report, &self.path("repo"), &resolved, opts).await
    }

    pub(super) async fn pull(&self, image: &ImageRef) -> Result<Base> {
        self.pull_with(image, &self.opts()).await
    }

    /// Pulls a plain image of a bootable layer and these.
    pub(super) async fn pull_layers(&self, layers: Vec<Tar>) -> Result<Base> {
        let all: Vec<_> = std::iter::once(bootable())
            .chain(layers)
            .enumerate()
            .map(|(at, tar)| (tar.finish(), [Pack::Gzip, Pack::Zstd, Pack::None][at % 3]))
            .collect();
        let layout = Layout::write(&self.path("oci"), &all);
        self.pull(&layout.image()).await
    }

    /// Every path of a commit, with mode, owner, attributes and content or target on one line.
    pub(super) fn tree(&self, commit: &str) -> BTreeMap<String, String> {
        let (root, _) = self.repo.read_commit(commit, gio::Cancellable::NONE).unwrap();
        let mut into = BTreeMap::new();
        self.walk(&root, "", &mut into);
        into
    }

    /// The text of a file in a commit.
    pub(super) fn read(&self, commit: &str, path: &str) -> String {
        let (root, _) = self.repo.read_commit(commit, gio::Cancellable::NONE).unwrap();
        let file = root.resolve_relative_path(path).downcast::<ostree::RepoFile>().unwrap();
        file.ensure_resolved().unwrap();
        let (content, _, _) = self.repo.load_file(&file.checksum(), gio::Cancellable::NONE).unwrap();
        let mut text = String::new();
        content.unwrap().into_read().read_to_string(&mut text).unwrap();
        text
    }

    fn walk(&self, dir: &gio::File, path: &str, into: &mut BTreeMap<String, String>) {
        let children = dir
            .enumerate_children(
                "standard::*,unix::*",
                gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS,
                gio::Cancellable::NONE,
            )
            .unwrap();
        while let Some(info) = children.next_file(gio::Cancellable::NONE).unwrap() {
            let child = dir.child(info.name());
            let here = format!("{path}/{}", info.name().display());
            let file = child.downcast_ref::<ostree::RepoFile>().unwrap();
            let xattrs = file.xattrs(gio::Cancellable::NONE).unwrap();
            let xattrs: String = xattrs
                .get::<Vec<(Vec<u8>, Vec<u8>)>>()
                .unwrap()
                .into_iter()
                .map(|(n, v)| {
                    format!(" {}={}", String::from_utf8_lossy(&n).trim_end_matches('\0'), hex::encode(v))
                })
                .collect();
            let (mode, uid, gid) = (
                info.attribute_uint32("unix::mode") & 0o7777,
                info.attribute_uint32("unix::uid"),
                info.attribute_uint32("unix::gid"),
            );
            let owner = if (uid, gid) == (0, 0) { String::new() } else { format!(" {uid}:{gid}") };
            let text = match info.file_type() {
                gio::FileType::Directory => {
                    self.walk(&child, &here, into);
                    format!("dir {mode:o}{owner}{xattrs}")
                }
                gio::FileType::SymbolicLink => {
                    format!("-> {}{owner}{xattrs}", info.symlink_target().unwrap().display())
                }
                _ => {
                    let mut bytes = Vec::new();
                    // gio::File::read asserts a GFileInputStream, which a RepoFile does not give.
                    let (content, _, _) =
                        self.repo.load_file(&file.checksum(), gio::Cancellable::NONE).unwrap();
                    content.unwrap().into_read().read_to_end(&mut bytes).unwrap();
                    let text = match String::from_utf8(bytes) {
                        Ok(text) if text.len() < 200 => text,
                        Ok(text) => format!("{} bytes", text.len()),
                        Err(e) => format!("{} bytes", e.as_bytes().len()),
                    };
                    format!("{mode:o}{owner}{xattrs} {text}")
                }
            };
            into.insert(here, text);
        }
    }
}

/// The entries of a tree below a path, without the path.
pub(super) fn below(tree: &BTreeMap<String, String>, path: &str) -> Vec<(String, String)> {
    let prefix = format!("{path}/");
    tree.iter().filter_map(|(p, t)| p.strip_prefix(&prefix).map(|p| (p.to_owned(), t.clone()))).collect()
}
