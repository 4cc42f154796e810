//! `osctl derive --in-place`: a root that becomes what a build makes of it as an image.

use crate::host::{Host, World, read, text};
use crate::image::layer_digests;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const INPUT: &str = "
files:
  - {path: /usr/lib/agent/agent.conf, mode: 0644, contents: {inline: \"a=1\\n\"}}
  - {path: /etc/default.conf, mode: 0640, overwrite: true, contents: {inline: \"declared\\n\"}}
directories:
  - {path: /usr/lib/agent/empty, mode: 0750}
links:
  - {path: /usr/lib/agent/link, target: agent.conf}
units:
  - {name: base.service, enabled: true}
users:
  - {name: agent, system: true}
kernel-arguments: {append: [nosmt], delete: [quiet]}
";

/// A root with the tree of an image, and drop-ins for it.
struct Place {
    host: Host,
}

impl Place {
    fn new(world: &World) -> Place {
        let place = Place { host: world.empty_host() };
        std::fs::create_dir_all(place.input()).unwrap();
        place.declare("50-agent.yaml", INPUT);
        place.unpack(&world.images.path().join("os-1"));
        place
    }

    fn root(&self) -> PathBuf {
        self.host.dir.path().join("root")
    }

    fn input(&self) -> PathBuf {
        self.host.dir.path().join("input")
    }

    fn declare(&self, name: &str, contents: &str) {
        std::fs::write(self.input().join(name), contents).unwrap();
    }

    fn unpack(&self, layout: &Path) {
        std::fs::create_dir_all(self.root()).unwrap();
        for digest in layer_digests(layout) {
            let blob = layout.join("blobs").join(digest.replace(':', "/"));
            let out = Command::new("tar").arg("-xpzf").arg(blob).arg("-C").arg(self.root()).output().unwrap();
            assert!(out.status.success(), "{}", text(&out));
        }
    }

    fn run(&self, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_osctl"));
        command.args(["derive", "--in-place", "--root"]).arg(self.root()).args(more);
        command.env("TMPDIR", self.host.dir.path());
        self.host.environment(&mut command);
        command.output().unwrap()
    }

    fn derive(&self, more: &[&str]) -> Output {
        let input = self.input();
        self.run(&[&["-i", input.to_str().unwrap()], more].concat())
    }

    fn leaves_nothing(&self) -> bool {
        let mut names = std::fs::read_dir(self.host.dir.path()).unwrap().map(|e| e.unwrap().file_name());
        !names.any(|name| name.to_string_lossy().starts_with("osctl-derive"))
    }
}

/// Kind, mode, owner and content of everything below `usr` and `etc`, by path.
fn tree(root: &Path) -> Vec<String> {
    let script = "find usr etc -printf '%y %m %U:%G %p %l ' \\( -type f -exec sha256sum {} \\; -o -printf '\\n' \\) | LC_ALL=C sort";
    let out = Command::new("sh").args(["-c", script]).current_dir(root).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_root_becomes_what_the_same_input_makes_of_the_image() {
    let world = World::new();
    let place = Place::new(&world);
    let before = tree(&place.root());
    let out = place.derive(&[]);
    assert!(out.status.success() && text(&out).contains("Derived "), "{}", text(&out));
    assert!(place.leaves_nothing());

    let built = Place::new(&world);
    let layout = built.host.dir.path().join("out");
    let mut command = Command::new(env!("CARGO_BIN_EXE_osctl"));
    command.args(["derive", "--base", &world.os(), "-o", &format!("oci:{}:1", layout.display()), "-i"]);
    command.arg(built.input()).env("TMPDIR", built.host.dir.path());
    let out = built.host.environment(&mut command).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    built.unpack(&layout);

    // The record names the base, which is an image there and a tree here.
    let but_record = |root: &Path| -> Vec<String> {
        tree(root).into_iter().filter(|line| !line.contains("/osctl/derived.json")).collect()
    };
    let derived = but_record(&place.root());
    assert_eq!(derived, but_record(&built.root()));
    assert_ne!(derived, before);
    for line in
        ["f 640 0:0 etc/default.conf", "d 750 0:0 usr/lib/agent/empty", "l 777 0:0 usr/lib/agent/link"]
    {
        assert!(derived.iter().any(|l| l.starts_with(line)), "{line} in {derived:?}");
    }
    assert!(read(&place.root(), "usr/lib/osctl/derived.json").contains("50-agent.yaml"));
    assert!(read(&place.root(), "usr/lib/bootc/kargs.d/90-osctl-derived.toml").contains("nosmt"));
}

#[test]
fn a_second_time_changes_nothing_and_what_is_gone_comes_back() {
    let world = World::new();
    let place = Place::new(&world);
    let out = place.derive(&["--json"]);
    assert!(out.status.success(), "{}", text(&out));
    let first: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(first["changed"], true);
    let derived = tree(&place.root());
    let out = place.derive(&[]);
    assert!(text(&out).contains("No changes in input."), "{}", text(&out));
    assert_eq!(place.derive(&["--unchanged-exit-77"]).status.code(), Some(77));
    assert_eq!(tree(&place.root()), derived);

    // By somebody else since: as in any base.
    let (file, link) =
        (place.root().join("usr/lib/agent/agent.conf"), place.root().join("usr/lib/agent/link"));
    std::fs::remove_file(&link).unwrap();
    std::fs::write(&file, "b=2\n").unwrap();
    let out = place.derive(&[]);
    assert!(
        text(&out).contains("/usr/lib/agent/agent.conf would replace a file of the base"),
        "{}",
        text(&out)
    );
    assert!(!link.is_symlink());
    std::fs::write(&file, "a=1\n").unwrap();
    let out = place.derive(&[]);
    assert!(out.status.success() && text(&out).contains("Derived "), "{}", text(&out));
    assert!(link.is_symlink());
    place.declare("60-more.yaml", "kernel-arguments: {append: [more]}\n");
    assert!(text(&place.derive(&[])).contains("Derived "));
    let kargs = read(&place.root(), "usr/lib/bootc/kargs.d/90-osctl-derived.toml");
    assert!(kargs.contains("nosmt") && kargs.contains("more"), "{kargs}");
}

#[test]
fn without_an_input_the_drop_ins_of_the_root_are_applied() {
    let world = World::new();
    let place = Place::new(&world);
    let nothing = place.run(&[]);
    assert!(!nothing.status.success() && text(&nothing).contains("declare nothing"), "{}", text(&nothing));
    for (dir, text) in [
        ("usr/lib/osctl/derive.d", "links: [{path: /usr/lib/vendor, target: os-release}]\n"),
        ("etc/osctl/derive.d", "links: [{path: /usr/lib/admin, target: os-release}]\n"),
    ] {
        std::fs::create_dir_all(place.root().join(dir)).unwrap();
        std::fs::write(place.root().join(dir).join(format!("{}.yaml", dir.len())), text).unwrap();
    }
    let out = place.run(&[]);
    assert!(out.status.success(), "{}", text(&out));
    assert!(text(&out).contains("applied /etc/osctl/derive.d of the image, which every host applies again"));
    for link in ["usr/lib/vendor", "usr/lib/admin"] {
        assert!(place.root().join(link).symlink_metadata().unwrap().is_symlink(), "{link}");
    }
}

#[test]
fn what_must_not_be_changed_in_place_is_refused_as_it_was() {
    let world = World::new();
    let place = Place::new(&world);
    let before = tree(&place.root());
    let refused = |words: &str| {
        let out = place.derive(&[]);
        assert!(!out.status.success() && text(&out).contains(words), "{words} in {}", text(&out));
        assert!(text(&out).contains("nothing was"), "{}", text(&out));
        assert!(place.leaves_nothing());
    };
    place.declare("70-key.yaml", "files:\n  - {path: /etc/key, mode: 0600, contents: {inline: hunter2}}\n");
    refused("--allow-secrets");
    std::fs::remove_file(place.input().join("70-key.yaml")).unwrap();
    place.declare("70-layer.yaml", "layers: [{image: 'registry.example.com/tools:1'}]\n");
    refused("70-layer.yaml: the content of the image registry.example.com/tools:1 is not taken in place");
    std::fs::remove_file(place.input().join("70-layer.yaml")).unwrap();
    assert_eq!(tree(&place.root()), before);
    let repo = place.root().join("ostree/repo");
    std::fs::create_dir_all(&repo).unwrap();
    std::fs::write(repo.join("config"), "").unwrap();
    refused("is an ostree host");
    std::fs::remove_dir_all(place.root().join("ostree")).unwrap();
    std::fs::create_dir_all(place.root().join("run")).unwrap();
    std::fs::write(place.root().join("run/ostree-booted"), "").unwrap();
    refused("is an ostree host");
    std::fs::remove_file(place.root().join("run/ostree-booted")).unwrap();
    std::fs::create_dir_all(place.root().join("usr/lib/osctl/policy.d")).unwrap();
    std::fs::write(place.root().join("usr/lib/osctl/policy.d/a.toml"), "[allow]\nkernel-arguments = false\n")
        .unwrap();
    let out = place.derive(&[]);
    assert!(!out.status.success() && text(&out).contains("a.toml"), "{}", text(&out));
}
