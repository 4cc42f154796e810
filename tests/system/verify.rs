//! Checking bound images, against what the real skopeo stores of real tar streams, and repairing them.

use crate::host::{Host, World, text};
use crate::image::{Image, Layer};
use osctl::bound::{Checker, Depth};
use osctl::model::bound::{BoundImage, BoundSpec};
use osctl::model::image::Digest;
use osctl::model::verified::Damage;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn shell(dir: &Path, script: &str) -> Vec<u8> {
    let out = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Layers as several programs write them, with what is odd about tar.
pub fn layers() -> Vec<(&'static str, Layer)> {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let long = "long/".repeat(25) + &"n".repeat(120);
    shell(
        dir,
        &format!(
            "mkdir -p usr/lib usr/bin etc $(dirname usr/{long}); echo long > usr/{long}; echo one > usr/bin/one
             ln usr/bin/one usr/bin/two; ln -s usr/lib lib; ln -s {long} usr/far; : > etc/empty; mkfifo etc/pipe
             head -c 513 /dev/zero > etc/odd; chmod 4755 usr/bin/one; head -c 3000000 /dev/urandom > usr/lib/big
             printf x > 'etc/ü \\t'; printf 'y' > \"$(printf 'etc/\\351')\"; chown 1234:99999999 etc/odd
             mkdir sparse; truncate -s 5M sparse/holes; echo end >> sparse/holes; echo after > sparse/z"
        ),
    );
    let tar = |args: &str| Layer::raw(shell(dir, &format!("tar -c {args}")));
    let mut through = tar::Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o755);
        header
    };
    for name in ["usr/", "usr/lib/"] {
        through.append_data(&mut header(tar::EntryType::Directory, 0), name, &[][..]).unwrap();
    }
    for (name, target) in [("lib", "usr/lib"), ("absolute", "/usr/lib")] {
        through.append_link(&mut header(tar::EntryType::Symlink, 0), name, target).unwrap();
        let name = format!("{name}/through-{name}");
        through.append_data(&mut header(tar::EntryType::Regular, 4), name, &b"link"[..]).unwrap();
    }
    let through = Layer::raw(through.into_inner().unwrap());
    let whiteouts = Layer::new().file("etc/.wh.empty", b"").dir("gone").file("gone/.wh..wh..opq", b"");
    vec![
        ("gnu", tar("--format=gnu ./usr ./lib ./etc")),
        ("pax", tar("--format=posix --pax-option=globexthdr.comment=x usr lib etc")),
        ("ustar", tar("--format=ustar --exclude=long --exclude=odd --exclude=far usr lib etc")),
        ("v7", tar("--format=v7 --exclude=long --exclude=pipe --exclude=odd --exclude=far usr lib etc")),
        ("absolute names", tar(&format!("-P {}", dir.join("usr/bin").display()))),
        ("without an end", Layer::raw(shell(dir, "tar -c --format=gnu etc/odd | head -c 1536"))),
        ("sparse", tar("--format=posix --sparse sparse/holes sparse/z")),
        ("through links", through.clone()),
        ("whiteouts", whiteouts),
    ]
}

/// A graph root with one image in it, written by skopeo.
struct Stored {
    dir: tempfile::TempDir,
    image: BoundImage,
}

impl Stored {
    fn new(driver: &str, image: &Image) -> Stored {
        let dir = tempfile::tempdir().unwrap();
        let digest = image.write(&dir.path().join("oci"));
        let name = format!("example.com/app@{digest}");
        let options = if driver == "overlay" { ":overlay.skip_mount_home=true" } else { "" };
        let out = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests"])
            .arg(format!("oci:{}", dir.path().join("oci").display()))
            .arg(format!(
                "containers-storage:[{driver}@{0}/storage+{0}/run{options}]{name}",
                dir.path().display()
            ))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let spec = BoundSpec::new(name.parse().unwrap(), "/etc/osctl/bound-images.d/app.toml");
        Stored { dir, image: BoundImage { spec, digest } }
    }

    fn graph(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    fn check(&self, depth: Depth) -> Vec<Damage> {
        Checker::open(&self.graph(), depth).unwrap().check(&self.image, &mut |_| Ok(())).unwrap()
    }

    /// The only path that matches.
    fn find(&self, pattern: &str) -> PathBuf {
        let found = shell(&self.graph(), &format!("find . -path './{pattern}'"));
        let found = String::from_utf8(found).unwrap();
        assert_eq!(found.lines().count(), 1, "{pattern}: {found:?}");
        self.graph().join(found.trim())
    }
}

#[test]
fn whatever_wrote_its_layers_an_image_that_skopeo_stored_is_whole() {
    for driver in ["overlay", "vfs"] {
        for (name, layer) in layers() {
            let stored =
                Stored::new(driver, &Image::default().layer(Layer::new().file("a", b"a")).layer(layer));
            assert_eq!(stored.check(Depth::Presence), [], "{driver}, {name}");
            assert_eq!(stored.check(Depth::Content), [], "{driver}, {name}");
        }
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn edit(path: &Path, change: impl Fn(&str) -> String) {
    std::fs::write(path, change(&std::fs::read_to_string(path).unwrap())).unwrap();
}

#[test]
fn each_damage_is_named() {
    type Case = (&'static str, fn(&Stored), &'static str, bool);
    let cases: [Case; 18] = [
        ("flipped", |s| flip(&s.find("overlay/*/diff/usr/app")), "LAYER, /usr/app: has other content", false),
        (
            "truncated",
            |s| std::fs::write(s.find("overlay/*/diff/usr/app"), "x").unwrap(),
            "LAYER, /usr/app: has 1 bytes, not 9",
            false,
        ),
        (
            "missing",
            |s| std::fs::remove_file(s.find("overlay/*/diff/usr/app")).unwrap(),
            "LAYER, /usr/app: is missing",
            false,
        ),
        (
            "another kind",
            |s| {
                let path = s.find("overlay/*/diff/usr/app");
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
            },
            "LAYER, /usr/app: is no file any more",
            false,
        ),
        (
            "no link",
            |s| std::fs::remove_file(s.find("overlay/*/diff/usr/link")).unwrap(),
            "LAYER, /usr/link: is missing",
            false,
        ),
        (
            "another link",
            |s| {
                let path = s.find("overlay/*/diff/usr/link");
                std::fs::remove_file(&path).unwrap();
                std::os::unix::fs::symlink("other", path).unwrap();
            },
            "LAYER, /usr/link: is a link to something else",
            false,
        ),
        (
            "no directory",
            |s| std::fs::remove_dir(s.find("overlay/*/diff/usr/dir")).unwrap(),
            "LAYER, /usr/dir/: is missing",
            false,
        ),
        (
            "no tar-split",
            |s| {
                shell(&s.graph(), "rm overlay-layers/*.gz");
            },
            "LAYER has no list of contents (tar-split)",
            true,
        ),
        (
            "an empty tar-split",
            |s| {
                shell(&s.graph(), "for f in overlay-layers/*.gz; do : > $f; done");
            },
            "LAYER has no list of contents (tar-split)",
            true,
        ),
        (
            "another tar-split",
            |s| {
                let path = s.find("overlay-layers/*.gz");
                let mut lines = String::new();
                flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap())
                    .read_to_string(&mut lines)
                    .unwrap();
                let file = std::fs::File::create(&path).unwrap();
                let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
                let at = lines.find("AAAAAAAAAAAA").unwrap() + 4;
                lines.replace_range(at..at + 4, "AAAB");
                gz.write_all(lines.as_bytes()).unwrap();
                gz.finish().unwrap();
            },
            "LAYER is another stream although its files fit: its list of contents (tar-split) is changed",
            false,
        ),
        (
            "no files",
            |s| {
                shell(&s.graph(), "rm -r overlay/*/diff");
            },
            "LAYER has no files: its directory is missing",
            true,
        ),
        (
            "no short name",
            |s| {
                shell(&s.graph(), "rm overlay/l/*");
            },
            "LAYER has no short name (link)",
            true,
        ),
        (
            "a layer that is not listed",
            |s| edit(&s.graph().join("overlay-layers/layers.json"), |_| "[]".into()),
            "LAYER is not in the store",
            true,
        ),
        (
            "another layer",
            |s| {
                let other = Digest::of(b"other").to_string();
                edit(&s.graph().join("overlay-layers/layers.json"), |text| {
                    let (before, rest) = text.split_once("\"diff-digest\":\"").unwrap();
                    format!("{before}\"diff-digest\":\"{other}{}", &rest[other.len()..])
                });
            },
            "LAYER is noted as sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa in the store",
            true,
        ),
        ("another configuration", |s| flip(&s.find("overlay-images/*/=c2hh*")), "CONFIG is changed", true),
        (
            "an empty configuration",
            |s| std::fs::write(s.find("overlay-images/*/=c2hh*"), "").unwrap(),
            "CONFIG is empty",
            true,
        ),
        ("another manifest", |s| flip(&s.find("overlay-images/*/=bWFu*")), "MANIFEST is changed", true),
        (
            "no image",
            |s| edit(&s.graph().join("overlay-images/images.json"), |_| "[]".into()),
            "IMAGE is not in the store",
            true,
        ),
    ];
    let layer = Layer::new().dir("usr").dir("usr/dir").file("usr/app", b"something").link("usr/link", "app");
    let image = Image::default().layer(layer);
    for (name, damage, expected, cheap) in cases {
        let stored = Stored::new("overlay", &image);
        let manifest = std::fs::read(stored.find("overlay-images/*/manifest")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
        let path = stored.dir.path().join("oci/blobs/sha256").join(config.split_once(':').unwrap().1);
        let parsed: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let layer = parsed["rootfs"]["diff_ids"][0].as_str().unwrap();
        let expected = expected
            .replace("LAYER", &format!("layer {layer}"))
            .replace("CONFIG", &format!("configuration {config}"))
            .replace("MANIFEST", &format!("manifest {}", stored.image.digest))
            .replace("IMAGE", &format!("image {}", stored.image.digest));
        damage(&stored);
        let found = |depth| stored.check(depth).iter().map(Damage::to_string).collect::<Vec<_>>();
        assert_eq!(found(Depth::Content), [expected.as_str()], "{name}");
        let expected: &[&str] = if cheap { &[&expected] } else { &[] };
        assert_eq!(found(Depth::Presence), expected, "{name}");
    }
}

/// A world with two images that share a layer, and a host that binds them.
fn two() -> (World, Host) {
    let world = World::new();
    let base = Layer::new().file("base", b"shared by both");
    for name in ["a", "b"] {
        let own = Layer::new().file("hello", name.as_bytes());
        world.registry.push(&Image::default().layer(base.clone()).layer(own), &format!("{name}:1"));
    }
    let host = world.host();
    for name in ["a", "b"] {
        let image = world.registry.name(&format!("{name}:1"));
        host.bind(name, &format!("image = \"{image}\"\ntls-verify = false\n"));
    }
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    (world, host)
}

fn graph(host: &Host) -> PathBuf {
    host.sysroot().join("ostree/osctl/storage")
}

/// The file of a layer in the store, whatever the driver is.
fn stored(host: &Host, file: &str) -> PathBuf {
    let out = shell(&graph(host), &format!("find . -path '*/{file}' | head -n 1"));
    let path = String::from_utf8(out).unwrap();
    assert!(!path.trim().is_empty(), "{file} is not in the store");
    graph(host).join(path.trim())
}

fn states(host: &Host) -> Vec<(String, String)> {
    let out = host.osctl(&["bound", "list", "--json"]);
    assert!(out.status.success(), "{}", text(&out));
    let all: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let word = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let name = |v: &serde_json::Value| word(v).rsplit('/').next().unwrap().to_owned();
    all.as_array().unwrap().iter().map(|i| (name(&i["reference"]), word(&i["state"]))).collect()
}

fn both(state: &str) -> Vec<(String, String)> {
    ["a:1", "b:1"].map(|name| (name.to_owned(), state.to_owned())).to_vec()
}

#[test]
fn a_flipped_byte_in_a_shared_layer_is_found_and_both_images_are_repaired() {
    let (mut world, host) = two();
    let whole = host.osctl(&["bound", "verify"]);
    assert!(
        whole.status.success() && text(&whole).contains("Checked 2 bound images, all whole."),
        "{}",
        text(&whole)
    );
    assert_eq!(states(&host), both("present"));
    let digest = host.podman_digest("/a:1");

    flip(&stored(&host, "base"));
    let dry = host.osctl(&["bound", "verify", "--dry-run"]);
    let said = text(&dry);
    assert_eq!(dry.status.code(), Some(1), "{said}");
    assert!(
        said.contains(", /base: has other content") && said.contains("2 bound images are damaged"),
        "{said}"
    );
    assert_eq!(states(&host), both("damaged"));
    assert!(text(&host.osctl(&["status"])).contains("State: degraded"));

    // Without its registry it says what is damaged and changes nothing.
    world.registry.stop();
    let before = shell(&graph(&host), "find . -type f -not -name '*.lock' | sort | xargs sha256sum");
    let out = host.osctl(&["bound", "verify"]);
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    for part in [", /base: has other content", "nothing was removed", "2 bound images are still damaged"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert_eq!(shell(&graph(&host), "find . -type f -not -name '*.lock' | sort | xargs sha256sum"), before);
    assert_eq!(states(&host), both("damaged"));

    world.registry.resume();
    let out = host.osctl(&["bound", "verify", "--json"]);
    assert!(out.status.success(), "{}", text(&out));
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    for image in json["images"].as_array().unwrap() {
        assert_eq!(
            (image["outcome"].as_str(), image["damage"][0]["path"].as_str()),
            (Some("repaired"), Some("/base"))
        );
    }
    assert_eq!(std::fs::read(stored(&host, "base")).unwrap(), b"shared by both");
    assert_eq!(states(&host), both("present"));
    assert_eq!(host.podman_digest("/a:1"), digest);
    assert!(text(&host.osctl(&["status"])).contains("State: idle"));
    let again = host.osctl(&["bound", "verify"]);
    assert!(text(&again).contains("all whole"), "{}", text(&again));
}

#[test]
fn a_verify_that_is_cut_off_leaves_nothing_that_only_looks_whole() {
    for step in ["verify.content", "verify.forget", "verify.repair"] {
        for point in [step.to_owned(), format!("{step}.done")] {
            for action in ["error", "kill"] {
                let (_world, host) = two();
                flip(&stored(&host, "base"));
                let out = host.osctl_with(&format!("{point}={action}"), &["bound", "verify"]);
                let what = format!("{point}={action}: {}", text(&out));
                match action {
                    "kill" => assert_eq!(out.status.signal(), Some(9), "{what}"),
                    _ => assert!(text(&out).contains(&format!("failpoint {point}")), "{what}"),
                }
                // Damaged still, or gone and known to be gone, or whole: never damaged and taken for fetched anew.
                for (name, state) in states(&host) {
                    let there = host.podman_images().iter().any(|i| i.ends_with(&name));
                    assert!(state != "present" || there, "{name} is {state}, {what}");
                }
                let retry = host.osctl(&["bound", "verify"]);
                assert!(retry.status.success(), "{what}\nretry: {}", text(&retry));
                assert_eq!(states(&host), both("present"), "{what}");
                assert_eq!(std::fs::read(stored(&host, "base")).unwrap(), b"shared by both", "{what}");
            }
        }
    }
}

#[test]
fn what_could_not_be_fetched_ahead_is_fetched_when_somebody_asks() {
    let world = World::new();
    let host = world.host();
    let digest = world.registry.push(&Image::with_file("hello", b"late"), "late:1");
    let image = world.registry.name("late:1");
    host.bind("late", &format!("image = \"{image}\"\nmode = \"prefetch\"\ntls-verify = false\n"));
    // Its manifest can be had, its layer cannot.
    let blob = crate::registry::blob_path(&world.registry, &layer_of(&world, &digest));
    std::fs::rename(&blob, blob.with_extension("away")).unwrap();
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    let one = |state: &str| [("late:1".to_owned(), state.to_owned())];
    assert_eq!(states(&host), one("missing"));
    // A prefetch image that is missing is no failure of a check.
    let out = host.osctl(&["bound", "verify"]);
    assert!(out.status.success() && text(&out).contains("1 missing"), "{}", text(&out));
    let out = host.osctl(&["bound", "pull"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    std::fs::rename(blob.with_extension("away"), &blob).unwrap();
    let out = host.osctl(&["bound", "pull", "--dry-run"]);
    assert!(out.status.success() && text(&out).contains("Would fetch 1 bound image."), "{}", text(&out));
    let out = host.osctl(&["bound", "pull", &image]);
    assert!(out.status.success() && text(&out).contains("Fetched 1 bound image."), "{}", text(&out));
    assert_eq!(states(&host), one("present"));
    let out = host.osctl(&["bound", "pull", "--unchanged-exit-77"]);
    assert_eq!(out.status.code(), Some(77), "{}", text(&out));
    let table = text(&host.osctl(&["bound"]));
    assert!(table.contains(&digest.hex()[..12]) && table.contains("prefetch"), "{table}");
    let out = host.osctl(&["bound", "pull", "example.com/none:1"]);
    assert!(text(&out).contains("no deployment has the bound image"), "{}", text(&out));
}

/// The digest of the only layer's blob.
fn layer_of(world: &World, manifest: &Digest) -> Digest {
    let manifest = std::fs::read(crate::registry::blob_path(&world.registry, manifest)).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
}

#[test]
fn staging_fetches_again_what_a_power_cut_emptied() {
    let (world, host) = two();
    let split = shell(&graph(&host), "ls */*.tar-split.gz");
    for path in String::from_utf8(split).unwrap().lines() {
        std::fs::write(graph(&host).join(path), "").unwrap();
    }
    world.push_os("2");
    let out = host.osctl(&["upgrade"]);
    assert!(out.status.success() && text(&out).contains("is fetched again"), "{}", text(&out));
    let out = host.osctl(&["bound", "verify", "--dry-run"]);
    assert!(out.status.success(), "{}", text(&out));
}
