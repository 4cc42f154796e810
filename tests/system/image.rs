//! Small OCI images, made of nothing but tar streams.

use sha2::Digest as _;
use std::io::Write;
use std::path::Path;

/// One layer under construction.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    pub fn dir(mut self, path: &str) -> Layer {
        let mut header = Self::header(tar::EntryType::Directory, 0o755);
        header.set_size(0);
        self.0.append_data(&mut header, format!("{path}/"), &[][..]).unwrap();
        self
    }

    pub fn file(mut self, path: &str, contents: &[u8]) -> Layer {
        let mut header = Self::header(tar::EntryType::Regular, 0o644);
        header.set_size(contents.len() as u64);
        self.0.append_data(&mut header, path, contents).unwrap();
        self
    }

    pub fn link(mut self, path: &str, target: &str) -> Layer {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777);
        header.set_size(0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// The smallest tree that libostree deploys: kernel, initramfs, os-release, merged /usr.
pub fn os_layer(version: &str) -> Layer {
    let mut layer = Layer::new();
    for dir in [
        "usr",
        "usr/bin",
        "usr/lib",
        "usr/lib/modules",
        "usr/lib/modules/6.1",
        "usr/lib/systemd",
        "usr/lib/systemd/system",
        "etc",
        "var",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
    ] {
        layer = layer.dir(dir);
    }
    layer
        .link("bin", "usr/bin")
        .link("sbin", "usr/sbin")
        .link("lib", "usr/lib")
        .dir("usr/sbin")
        .file("usr/lib/modules/6.1/vmlinuz", format!("kernel of {version}").as_bytes())
        .file("usr/lib/modules/6.1/initramfs.img", b"initramfs")
        .file(
            "usr/lib/os-release",
            format!("NAME=Test\nID=test\nVERSION_ID={version}\nPRETTY_NAME=\"Test {version}\"\n").as_bytes(),
        )
        .link("etc/os-release", "../usr/lib/os-release")
        .file("etc/default.conf", format!("default of {version}\n").as_bytes())
        .file(
            "usr/lib/systemd/system/base.service",
            b"[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
        )
}

/// Writes an OCI layout with these layers and labels.
pub fn layout(dir: &Path, layers: Vec<Layer>, labels: &[(&str, &str)], created: &str) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = hex::encode(sha2::Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        let raw = layer.bytes();
        diff_ids.push(format!("sha256:{}", hex::encode(sha2::Sha256::digest(&raw))));
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&raw).unwrap();
        let (digest, size) = put(&gz.finish().unwrap());
        descriptors.push(serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size}));
    }
    let labels: std::collections::BTreeMap<_, _> = labels.iter().copied().collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "created": created, "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []
    });
    let (digest, size) = put(&serde_json::to_vec(&config).unwrap());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size},
        "layers": descriptors
    });
    let (digest, size) = put(&serde_json::to_vec(&manifest).unwrap());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}
    ]});
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
    std::fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
