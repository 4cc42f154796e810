//! Small OCI images, made of nothing but tar streams.

use osctl::model::image::Digest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LIST: &str = "application/vnd.oci.image.index.v1+json";
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// Two empty blocks end a tar stream.
const END: usize = 1024;

/// One layer under construction: the entries of its tar stream.
#[derive(Default, Clone)]
pub struct Layer(Vec<u8>);

impl Layer {
    pub fn new() -> Layer {
        Layer::default()
    }

    /// Adds what `append` writes, without the end marker.
    fn add(mut self, append: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> Layer {
        let before = self.0.len();
        let mut tar = tar::Builder::new(&mut self.0);
        append(&mut tar);
        tar.finish().unwrap();
        drop(tar);
        assert!(self.0.len() >= before + END);
        self.0.truncate(self.0.len() - END);
        self
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

    pub fn dir(self, path: &str) -> Layer {
        let mut header = Self::header(tar::EntryType::Directory, 0o755);
        header.set_size(0);
        self.add(|tar| tar.append_data(&mut header, format!("{path}/"), &[][..]).unwrap())
    }

    pub fn file(self, path: &str, contents: &[u8]) -> Layer {
        let mut header = Self::header(tar::EntryType::Regular, 0o755);
        header.set_size(contents.len() as u64);
        self.add(|tar| tar.append_data(&mut header, path, contents).unwrap())
    }

    pub fn link(self, path: &str, target: &str) -> Layer {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777);
        header.set_size(0);
        self.add(|tar| tar.append_link(&mut header, path, target).unwrap())
    }

    /// A stream that somebody else made.
    pub fn raw(stream: Vec<u8>) -> Layer {
        Layer(stream)
    }

    fn tar(&self) -> Vec<u8> {
        let mut tar = self.0.clone();
        tar.resize(tar.len() + END, 0);
        tar
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

/// An image of these layers.
#[derive(Default, Clone)]
pub struct Image {
    layers: Vec<Layer>,
    labels: Vec<(String, String)>,
    created: Option<String>,
}

impl Image {
    /// An image with one layer that holds one file.
    pub fn with_file(path: &str, content: &[u8]) -> Image {
        Image::default().layer(Layer::new().file(path, content))
    }

    /// The image with one more layer on top.
    pub fn layer(mut self, layer: Layer) -> Image {
        self.layers.push(layer);
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Image {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// When it says that it was made, in RFC 3339.
    pub fn created(mut self, at: &str) -> Image {
        self.created = Some(at.to_owned());
        self
    }

    /// Writes an OCI layout and returns the manifest's digest. The same image gives the same digest.
    pub fn write(&self, dir: &Path) -> Digest {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let blob = |bytes: &[u8]| -> Digest {
            let digest = Digest::of(bytes);
            std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
            digest
        };
        let (mut diff_ids, mut layers) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let tar = layer.tar();
            diff_ids.push(Digest::of(&tar));
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&tar).unwrap();
            let bytes = gzip.finish().unwrap();
            layers.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "size": bytes.len(), "digest": blob(&bytes)}));
        }
        let labels: BTreeMap<_, _> = self.labels.iter().cloned().collect();
        let mut config = json!({"architecture": ARCHITECTURE, "os": "linux",
            "config": {"Cmd": ["/hello"], "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        if let Some(created) = &self.created {
            config["created"] = json!(created);
        }
        let config = config.to_string();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "size": config.len(), "digest": blob(config.as_bytes())},
            "layers": layers});
        let manifest = manifest.to_string();
        let digest = blob(manifest.as_bytes());
        let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.len()});
        write_index(dir, &entry);
        digest
    }
}

/// Puts a manifest list in front of a layout's only image: it is for this architecture and no other.
pub fn as_list_for(dir: &Path, architecture: &str) {
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let mut entry = index["manifests"][0].clone();
    entry["platform"] = json!({"architecture": architecture, "os": "linux"});
    let list = json!({"schemaVersion": 2, "mediaType": LIST, "manifests": [entry]}).to_string();
    let digest = Digest::of(list.as_bytes());
    std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &list).unwrap();
    write_index(dir, &json!({"mediaType": LIST, "digest": digest, "size": list.len()}));
}

/// Changes the manifest and the configuration of a layout's only image.
pub fn edit(dir: &Path, change: impl FnOnce(&mut Value, &mut Value)) {
    let path =
        |digest: &Value| dir.join("blobs/sha256").join(digest.as_str().unwrap().split_once(':').unwrap().1);
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let mut manifest = json(&path(&json(&dir.join("index.json"))["manifests"][0]["digest"]));
    let mut config = json(&path(&manifest["config"]["digest"]));
    change(&mut manifest, &mut config);
    let put = |value: &Value| {
        let text = value.to_string();
        let digest = Digest::of(text.as_bytes());
        std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &text).unwrap();
        (digest.to_string(), text.len())
    };
    let (digest, size) = put(&config);
    (manifest["config"]["digest"], manifest["config"]["size"]) = (json!(digest), json!(size));
    let (digest, size) = put(&manifest);
    write_index(dir, &json!({"mediaType": MANIFEST, "digest": digest, "size": size}));
}

/// The digests of the layers of a layout's only image.
pub fn layer_digests(dir: &Path) -> Vec<String> {
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let index = json(&dir.join("index.json"));
    let digest: Digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let manifest = json(&dir.join("blobs/sha256").join(digest.hex()));
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|l| l["digest"].as_str().unwrap().to_owned()).collect()
}

fn write_index(dir: &Path, entry: &Value) {
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Bytes that do not compress.
pub fn noise(size: usize) -> Vec<u8> {
    let mut seed = 1u64;
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    };
    std::iter::repeat_with(next).take(size).collect()
}
