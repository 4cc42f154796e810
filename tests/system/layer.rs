//! The store that we write, against the one that skopeo writes of the same image.

use crate::bound::{Host, spec};
use crate::image::{self, Image, Layer};
use crate::registry::Registry;
use crate::verify::layers;
use osctl::bound::{Checker, Depth, collect, pull_all};
use osctl::model::ErrorKind;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// A layer with one of everything.
fn everything() -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |kind, path: &str, mode, owner, target: &str, pax: &[(&str, &[u8])], data: &[u8]| {
        if !pax.is_empty() {
            tar.append_pax_extensions(pax.iter().copied()).unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner + 1);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(8).unwrap();
            header.set_device_minor(300).unwrap();
        }
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        tar.append(&header, data).unwrap();
    };
    use tar::EntryType as E;
    let capability: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    add(E::Directory, "./", 0o700, 9, "", &[], b"");
    add(E::Directory, "etc/", 0o755, 0, "", &[("mtime", b"1500000000.5")], b"");
    add(E::Regular, "etc/a", 0o644, 0, "", &[("mtime", b"1500000000.123456789")], b"a");
    add(E::Regular, "etc/before", 0o644, 0, "", &[("mtime", b"-5")], b"a");
    add(E::Regular, "etc/far", 0o644, 0, "", &[("mtime", b"99999999999")], b"a");
    add(E::Regular, "not/described/a", 0o600, 5, "", &[], b"a");
    add(E::Regular, "setuid", 0o6755, 7, "", &[], b"a");
    add(E::Directory, "sticky", 0o3777, 9, "", &[], b"");
    add(E::Regular, "sticky/a", 0o644, 0, "", &[], b"");
    add(E::Symlink, "link", 0o777, 11, "/etc/a", &[("mtime", b"-7")], b"");
    add(E::Link, "etc/hard", 0o640, 12, "./etc/a", &[], b"");
    add(E::Link, "hard-link", 0o640, 13, "link", &[], b"");
    add(E::Char, "char", 0o622, 0, "", &[], b"");
    add(E::Block, "block", 0o660, 6, "", &[], b"");
    add(E::Fifo, "fifo", 0o622, 0, "", &[], b"");
    let xattrs: &[(&str, &[u8])] =
        &[("SCHILY.xattr.user.a", b"1\n2\0"), ("SCHILY.xattr.security.capability", capability)];
    add(E::Regular, "xattrs", 0o755, 3, "", xattrs, b"x");
    add(E::Directory, "xattrs-dir", 0o755, 0, "", &[("SCHILY.xattr.trusted.a", b"x")], b"");
    add(E::Directory, "usr", 0o755, 0, "", &[], b"");
    add(E::Directory, "usr/dir", 0o755, 0, "", &[], b"");
    add(E::Regular, "usr/dir/old", 0o755, 0, "", &[], b"");
    add(E::Symlink, "to-usr", 0o777, 0, "usr", &[], b"");
    add(E::Directory, "to-usr/dir", 0o711, 0, "", &[], b"");
    add(E::Regular, "to-usr/new", 0o644, 0, "", &[], b"new");
    add(E::Regular, "opaque/.wh..wh..opq", 0o644, 0, "", &[], b"");
    add(E::Regular, "opaque/.wh.gone", 0o644, 4, "", &[], b"");
    add(E::Directory, ".wh..wh.plnk", 0o700, 0, "", &[], b"");
    add(E::Regular, ".wh..wh.plnk/9", 0o600, 0, "", &[], b"aufs");
    Layer::raw(tar.into_inner().unwrap())
}

/// A layer that says what mode the root has.
fn of_root() -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o750);
    header.set_uid(3);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    header.set_size(0);
    header.as_old_mut().name[0] = b'/';
    header.set_cksum();
    tar.append(&header, &[][..]).unwrap();
    Layer::raw(tar.into_inner().unwrap())
}

/// What lies below a directory: kinds, modes, owners, sizes, content, times, attributes, and which names are one file.
struct Listing {
    files: BTreeMap<String, String>,
    first: BTreeMap<u64, String>,
    /// What is newer has the time of the writing.
    now: SystemTime,
}

impl Listing {
    fn of(dir: &Path, now: SystemTime) -> BTreeMap<String, String> {
        let mut listing = Listing { files: BTreeMap::new(), first: BTreeMap::new(), now };
        listing.add(dir, "");
        listing.files
    }

    fn add(&mut self, path: &Path, name: &str) {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let own = meta.mode();
        let what = match own & 0o170000 {
            0o040000 => String::new(),
            0o120000 => format!("-> {}", std::fs::read_link(path).unwrap().display()),
            // Random, or of one's own.
            0o100000 if ["/link", "/lower"].contains(&name) => meta.len().to_string(),
            0o100000 => format!("{:?}", osctl::model::image::Digest::of(&std::fs::read(path).unwrap())),
            _ => meta.rdev().to_string(),
        };
        let same = self.first.entry(meta.ino()).or_insert_with(|| name.to_owned()).clone();
        let modified = meta.modified().unwrap();
        let time = if modified >= self.now {
            "now".into()
        } else {
            format!("{}.{}", meta.mtime(), meta.mtime_nsec())
        };
        let attributes = attributes(path);
        let owner = format!("{}:{}", meta.uid(), meta.gid());
        let text = format!("{own:o} {owner} {} {what} {time} {attributes:?} {same}", meta.nlink());
        self.files.insert(name.to_owned(), text);
        if meta.is_dir() {
            for entry in std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap()) {
                let below = String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned();
                self.add(&entry.path(), &format!("{name}/{below}"));
            }
        }
    }
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| (String::from_utf8_lossy(name).into_owned(), value(name))).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The lines of a tar-split; raw bytes between two entries are one, however many lines they had.
fn split(path: &Path) -> Vec<(String, Value)> {
    use base64::Engine as _;
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    let (mut lines, mut raw) = (Vec::new(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let mut line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["position"], at);
        line.as_object_mut().unwrap().remove("position");
        if line["type"] == 2 {
            let bytes =
                base64::engine::general_purpose::STANDARD.decode(line["payload"].as_str().unwrap()).unwrap();
            raw.extend(bytes);
        } else {
            lines.push((osctl::model::image::Digest::of(&std::mem::take(&mut raw)).to_string(), line));
        }
    }
    lines.push((osctl::model::image::Digest::of(&raw).to_string(), Value::Null));
    lines
}

#[tokio::test]
async fn what_we_write_is_what_skopeo_writes() {
    let registry = Registry::start();
    let host = Host::new();
    let mut image = Image::default().created("2024-01-02T03:04:05.678Z");
    let mut sparse = Vec::new();
    let all = layers().into_iter().chain([
        ("everything", everything()),
        ("a root", of_root()),
        ("nothing", Layer::new()),
    ]);
    for (at, (name, layer)) in all.enumerate() {
        image = image.layer(layer);
        if name == "sparse" {
            sparse.push(at);
        }
    }
    // Twice the same, on top of something else.
    image = image.layer(Layer::new());
    registry.push(&image, "app:1");
    // Times of files are seconds that may have just begun.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let now = SystemTime::now();
    let set = host.set(&[spec(&registry, "app:1")]).await;
    host.pull(&set).await;
    let ours = host.store.graph_root();
    if !ours.join("overlay").exists() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let theirs = temp.path().join("storage");
    image.write(&temp.path().join("oci"));
    let name = format!("{}@{}", set.images[0].spec.reference.repository(), set.images[0].digest);
    let out = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
        .arg(format!("oci:{}", temp.path().join("oci").display()))
        .arg(format!(
            "containers-storage:[overlay@{}+{}:overlay.skip_mount_home=true]{name}",
            theirs.display(),
            temp.path().join("run").display()
        ))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let lists = |graph: &Path| {
        let mut layers = json(&graph.join("overlay-layers/layers.json"));
        for layer in layers.as_array_mut().unwrap() {
            assert!(layer.as_object_mut().unwrap().remove("created").unwrap().is_string());
        }
        (layers, json(&graph.join("overlay-images/images.json")))
    };
    assert_eq!(lists(ours).1, lists(&theirs).1);
    for (at, layer) in lists(ours).0.as_array().unwrap().iter().enumerate() {
        assert_eq!(*layer, lists(&theirs).0[at]);
        let id = layer["id"].as_str().unwrap();
        let place = |graph: &Path| Listing::of(&graph.join("overlay").join(id), now);
        let (mut written, mut expected) = (place(ours), place(&theirs));
        // GNU tar calls a global header /tmp/GlobalHead, and containers-storage makes the directory of what is no file.
        if !written.contains_key("/diff/tmp") && expected.remove("/diff/tmp").is_some() {
            for listing in [&mut written, &mut expected] {
                listing.remove("/diff");
            }
        }
        for (name, text) in &expected {
            assert_eq!(written.get(name), Some(text), "layer {at}, {name}");
        }
        assert!(written.keys().eq(expected.keys()), "layer {at}: {:?}", written.keys());
        let split = |graph: &Path| split(&graph.join("overlay-layers").join(format!("{id}.tar-split.gz")));
        // Of a sparse file nobody can put the stream together again.
        if !sparse.contains(&at) {
            for (ours, theirs) in split(ours).iter().zip(&split(&theirs)) {
                assert_eq!(ours, theirs, "layer {at}");
            }
            assert_eq!(split(ours).len(), split(&theirs).len(), "layer {at}");
        }
    }
    let documents = |graph: &Path| {
        let mut listing = Listing::of(&graph.join("overlay-images"), now);
        listing.retain(|name, _| !name.ends_with(".json") && !name.ends_with(".lock"));
        listing
    };
    assert_eq!(documents(ours), documents(&theirs));
    for path in [
        "overlay",
        "overlay/l",
        "overlay-layers",
        "overlay-images",
        "overlay-layers/layers.json",
        "overlay-images/images.json",
        "overlay-layers/layers.lock",
        "overlay-images/images.lock",
    ] {
        let of = |graph: &Path| {
            let meta = std::fs::metadata(graph.join(path)).unwrap();
            (meta.mode(), meta.uid(), if path.ends_with(".lock") { meta.len() } else { 0 })
        };
        assert_eq!(of(ours), of(&theirs), "{path}");
    }
    for depth in [Depth::Presence, Depth::Content] {
        let damage = Checker::open(ours, depth).unwrap().check(&set.images[0], &mut |_| Ok(())).unwrap();
        assert_eq!(damage, []);
    }
    host.show(&set);
    assert_eq!(
        host.podman(&["image", "inspect", "--format", "{{len .RootFS.Layers}}", &registry.name("app:1")]),
        "13"
    );
}

#[tokio::test]
async fn skopeo_reads_what_we_write_and_finds_the_streams_that_the_configuration_names() {
    let registry = Registry::start();
    let host = Host::new();
    let list = tempfile::tempdir().unwrap();
    let image = Image::default().layer(everything()).layer(of_root()).layer(Layer::new()).layer(Layer::new());
    image.write(list.path());
    image::as_list_for(list.path(), if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    registry.push_layout(list.path(), "app:1");
    let index = json(&list.path().join("index.json"));
    // By the digest of a list, which names the image's own.
    let pinned = index["manifests"][0]["digest"].as_str().unwrap();
    let set = host.set(&[spec(&registry, &format!("app@{pinned}"))]).await;
    assert_ne!(set.images[0].digest.as_str(), pinned);
    host.pull(&set).await;
    let graph = host.store.graph_root();
    if !graph.join("overlay").exists() {
        return;
    }
    let copy = host.dir.path().join("copy");
    for digest in [pinned, set.images[0].digest.as_str()] {
        let out = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!(
                "containers-storage:[overlay@{}+{}:overlay.skip_mount_home=true]{}",
                graph.display(),
                host.dir.path().join("run-skopeo").display(),
                registry.name(&format!("app@{digest}"))
            ))
            .arg(format!("dir:{}", copy.display()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{digest}: {}", String::from_utf8_lossy(&out.stderr));
        let manifest = json(&copy.join("manifest.json"));
        let file = |digest: &Value| copy.join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap());
        let config = json(&file(&manifest["config"]["digest"]));
        let layers: Vec<String> = manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| {
                let stream = std::fs::read(file(&layer["digest"])).unwrap();
                osctl::model::image::Digest::of(&stream).to_string()
            })
            .collect();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(layers));
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

/// Everything in the store, but for times and what only its readers look at.
fn names(host: &Host) -> Vec<String> {
    let listing = Listing::of(host.store.graph_root(), SystemTime::UNIX_EPOCH);
    listing.into_keys().filter(|name| !name.ends_with(".lock")).collect()
}

#[tokio::test]
async fn a_layer_is_one_for_each_that_it_stands_on_and_unpacked_once_for_all_images() {
    let registry = Registry::start();
    let host = Host::new();
    let (base, other) = (Layer::new().file("base", b"base"), Layer::new().file("base", b"other"));
    let app = Layer::new().file("hello", b"app");
    let on = |base: &Layer, text: &str| {
        Image::default().layer(base.clone()).layer(app.clone()).label("text", text)
    };
    registry.push(&on(&base, "a"), "a:1");
    registry.push(&on(&base, "b"), "b:1");
    registry.push(&on(&other, "c"), "c:1");
    let all = host.set(&["a:1", "b:1", "c:1"].map(|name| spec(&registry, name))).await;
    host.pull(&all).await;
    // Three configurations, two bases, and the app once.
    assert_eq!(registry.blobs_sent().len(), 6, "{:?}", registry.blobs_sent());
    if host.store.graph_root().join("overlay").exists() {
        let lists = host.store.graph_root().join("overlay-layers/layers.json");
        assert_eq!(json(&lists).as_array().unwrap().len(), 4);
        assert!(!host.store.graph_root().join("new").exists());
    }
    host.show(&all);
    for (name, expected) in [("a:1", "base"), ("b:1", "base"), ("c:1", "other")] {
        let id = host.podman(&["create", "--pull=never", "--network=none", &registry.name(name)]);
        let mounted = host.podman(&["mount", &id]);
        let read = |file: &str| std::fs::read_to_string(Path::new(&mounted).join(file)).unwrap();
        assert_eq!((read("base").as_str(), read("hello").as_str()), (expected, "app"));
        host.podman(&["umount", &id]);
        host.podman(&["rm", &id]);
    }
    collect(&host.cx, &host.store, &[]).await.unwrap();
    assert_eq!(names(&host).iter().filter(|name| name.contains("/diff")).count(), 0);
}

#[tokio::test]
async fn an_image_that_contradicts_itself_or_cannot_be_unpacked_is_refused_and_nothing_of_it_stays() {
    let registry = Registry::start();
    let host = Host::new();
    if !host.store.graph_root().is_dir() || rustix::fs::statfs(host.dir.path()).unwrap().f_type == 0x794c_7630
    {
        return;
    }
    let good = Image::with_file("hello", b"good");
    registry.push(&good, "good:1");
    host.pull(&host.set(&[spec(&registry, "good:1")]).await).await;
    let before = names(&host);
    type Edit = fn(&mut Value, &mut Value);
    let other = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let cases: [(&str, Edit, &str, &str); 6] = [
        (
            "another layer",
            |_, config| {
                config["rootfs"]["diff_ids"][1] =
                    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".into();
            },
            "DigestMismatch",
            other,
        ),
        (
            "another layer that is here",
            |_, config| config["rootfs"]["diff_ids"][0] = config["rootfs"]["diff_ids"][1].clone(),
            "DigestMismatch",
            "its configuration says",
        ),
        (
            "one too many",
            |_, config| config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(config_of_nothing()),
            "Unsupported",
            "its manifest has 2 layers, and its configuration 3",
        ),
        (
            "encrypted",
            |manifest, _| {
                manifest["layers"][1]["mediaType"] =
                    "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into()
            },
            "Unsupported",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted, which cannot be unpacked",
        ),
        (
            "foreign",
            |manifest, _| {
                manifest["layers"][1]["mediaType"] =
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into()
            },
            "Unsupported",
            "foreign.diff.tar.gzip, which cannot be unpacked",
        ),
        (
            "an artifact",
            |_, config| *config = serde_json::json!({"a": "b"}),
            "Unsupported",
            "its configuration",
        ),
    ];
    for (at, (what, change, kind, why)) in cases.into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("bad {at}");
        good.clone().layer(Layer::new().file("bad", text.as_bytes())).write(dir.path());
        image::edit(dir.path(), change);
        registry.push_layout(dir.path(), &format!("bad:{at}"));
        let set = host.set(&[spec(&registry, &format!("bad:{at}"))]).await;
        let error = pull_all(&host.cx, &host.store, &set, &host.opts()).await.unwrap_err();
        assert_eq!(
            (error.kind, error.details["cause"].as_str()),
            (ErrorKind::BoundImageFailed, kind),
            "{what}: {}",
            error.chain()
        );
        assert!(error.chain().contains(why), "{what}: {}", error.chain());
        collect(&host.cx, &host.store, &[host.set(&[spec(&registry, "good:1")]).await]).await.unwrap();
        assert_eq!(names(&host), before, "{what}");
    }
}

fn config_of_nothing() -> Value {
    osctl::model::image::Digest::of(b"").to_string().into()
}

#[tokio::test]
async fn what_is_in_no_list_goes_before_the_next_pull_and_nothing_else_does() {
    let registry = Registry::start();
    let host = Host::new();
    registry.push(&Image::with_file("hello", b"here"), "app:1");
    let set = host.set(&[spec(&registry, "app:1")]).await;
    host.pull(&set).await;
    let graph = host.store.graph_root();
    if !graph.join("overlay").exists() {
        return;
    }
    let id = json(&graph.join("overlay-layers/layers.json"))[0]["id"].as_str().unwrap().to_owned();
    // Of a repair before, and of others: not ours to remove.
    std::os::unix::fs::symlink(format!("../{id}/diff"), graph.join("overlay/l/OLDNAME")).unwrap();
    std::fs::write(graph.join("overlay/.has-mount-program"), "false").unwrap();
    std::fs::write(graph.join("overlay-layers/volatile-layers.json"), "[]").unwrap();
    std::os::unix::fs::symlink("../../etc", graph.join("overlay/l/ODDNAME")).unwrap();
    let before = names(&host);
    let gone = "f".repeat(64);
    for dir in [
        format!("overlay/{gone}/diff/a"),
        format!("new/{gone}/diff"),
        format!("overlay-images/{gone}"),
        format!("new/{id}"),
    ] {
        std::fs::create_dir_all(graph.join(dir)).unwrap();
    }
    std::fs::write(graph.join(format!("overlay/{gone}/link")), "NEWNAME").unwrap();
    for file in [
        format!("overlay-layers/{gone}.tar-split.gz"),
        "overlay-layers/.tmpxyz".into(),
        "overlay-images/.tmpxyz".into(),
        format!("overlay-images/{gone}/manifest"),
    ] {
        std::fs::write(graph.join(file), "").unwrap();
    }
    std::os::unix::fs::symlink(format!("../{gone}/diff"), graph.join("overlay/l/NEWNAME")).unwrap();
    host.pull(&set).await;
    assert_eq!(names(&host), before);
    let damage =
        Checker::open(graph, Depth::Content).unwrap().check(&set.images[0], &mut |_| Ok(())).unwrap();
    assert_eq!(damage, []);
}

#[tokio::test]
async fn a_blob_that_arrives_damaged_is_fetched_and_written_once_more() {
    let registry = Registry::start();
    let host = Host::new();
    let image = Image::default().layer(Layer::new().file("hello", &image::noise(100_000)));
    let layout = tempfile::tempdir().unwrap();
    image.write(layout.path());
    registry.push(&image, "app:1");
    let set = host.set(&[spec(&registry, "app:1")]).await;
    // What an earlier attempt left in the spool: the beginning of another blob.
    let digest = image::layer_digests(layout.path()).remove(0);
    let hex = digest.split_once(':').unwrap().1;
    let mut blob = std::fs::read(layout.path().join("blobs/sha256").join(hex)).unwrap();
    blob.truncate(60_000);
    blob[30_000] ^= 1;
    let spool = host.opts().spool.unwrap();
    std::fs::create_dir_all(&spool).unwrap();
    let path = spool.join(hex);
    std::fs::write(&path, blob).unwrap();
    if let Some((uid, gid)) = osctl::sys::user::fetcher() {
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
    }
    registry.clear_log();
    host.pull(&set).await;
    let sent = registry
        .requests()
        .into_iter()
        .filter(|request| request.path.contains(&digest) && request.method == "GET");
    assert_eq!(sent.count(), 2, "{:?}", registry.requests());
    let mut checker = Checker::open(host.store.graph_root(), Depth::Content).unwrap();
    let damage = checker.check(&set.images[0], &mut |_| Ok(())).unwrap();
    assert_eq!(damage, []);
}
