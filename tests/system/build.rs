//! `osctl derive`: an image from a base and drop-ins, as hosts and foreign tools see it.

use crate::host::{Host, World, read, text};
use crate::image::{Image, Layer, layer_digests, os_layer};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const INPUT: &str = "
files:
  - {path: /usr/lib/agent/agent.conf, mode: 0644, contents: {inline: \"a=1\\n\"}}
  - {path: /usr/bin/agent, mode: 0755, contents: {inline: \"#!/bin/true\\n\"}}
  - {path: /etc/default.conf, mode: 0640, overwrite: true, contents: {inline: \"declared\\n\"}}
directories:
  - {path: /usr/lib/agent/empty, mode: 0750}
links:
  - {path: /usr/lib/agent/link, target: agent.conf}
units:
  - name: agent.service
    enabled: true
    contents: |
      [Service]
      ExecStart=/usr/bin/agent
      [Install]
      WantedBy=multi-user.target
  - {name: base.service, enabled: true}
users:
  - {name: agent, system: true}
kernel-arguments: {append: [nosmt], delete: [quiet]}
";

/// Input, output and cache of a build.
struct Build {
    host: Host,
}

impl Build {
    fn new(world: &World) -> Build {
        let build = Build { host: world.empty_host() };
        build.declare("50-agent.yaml", INPUT);
        build
    }

    fn dir(&self) -> &Path {
        self.host.dir.path()
    }

    fn input(&self) -> PathBuf {
        self.dir().join("input")
    }

    fn declare(&self, name: &str, contents: &str) {
        std::fs::create_dir_all(self.input()).unwrap();
        std::fs::write(self.input().join(name), contents).unwrap();
    }

    fn command(&self, base: &str, target: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_osctl"));
        command.args(["derive", "--base", base, "-o", target, "-i"]).arg(self.input()).args(more);
        command.env("TMPDIR", self.dir()).process_group(0);
        self.host.environment(&mut command);
        command
    }

    fn run(&self, base: &str, target: &str, more: &[&str]) -> Output {
        self.command(base, target, more).output().unwrap()
    }

    /// Builds, and returns what it says as JSON.
    fn build(&self, base: &str, target: &str, more: &[&str]) -> serde_json::Value {
        let out = self.run(base, target, &[more, &["--json"]].concat());
        assert!(out.status.success(), "{}", text(&out));
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out)))
    }

    /// What is left beside the input.
    fn leftovers(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir()).unwrap().map(|e| e.unwrap().file_name());
        let names = names.map(|n| n.into_string().unwrap());
        names.filter(|n| !["input", "sysroot", "config"].contains(&n.as_str())).collect()
    }
}

/// Every object of a deployment's `/usr` but the files that say what to append and delete at boot: mode, owner, size and
/// checksum, by path.
fn usr(host: &Host) -> Vec<String> {
    let deployment = host.deployments()[0].clone();
    let commit = deployment.split('.').next().unwrap();
    let repo = format!("--repo={}", host.sysroot().join("ostree/repo").display());
    let all = host.ostree(&["ls", "-R", "-C", &repo, commit, "/usr"]);
    // A directory's checksum is that of what is in it.
    let entries = all.lines().map(|line| match line.strip_prefix('d') {
        Some(_) => {
            let words: Vec<&str> = line.split_whitespace().collect();
            format!("{} {} {} {}", words[0], words[1], words[2], words.last().unwrap())
        }
        None => line.to_owned(),
    });
    let travels = |line: &String| line.contains("/kargs.d") || line.ends_with(" /usr/lib/bootc");
    entries.filter(|line| !travels(line)).collect()
}

fn skopeo(args: &[&str]) -> String {
    let out = Command::new("skopeo").args(args).output().unwrap();
    assert!(out.status.success(), "skopeo {args:?}: {}", text(&out));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn a_host_with_the_built_image_has_the_usr_of_a_host_that_derives_the_same() {
    let world = World::new();
    let build = Build::new(&world);
    let name = world.registry.name("built:1");
    let built = build.build(&world.os(), &format!("docker://{name}"), &[]);
    assert_eq!(built["changed"], true);
    assert_eq!(built["image"], format!("docker://{name}"));

    let takes = world.empty_host();
    let out = takes.osctl(&["rebase", &name, "--stateroot", "test", "--karg", "root=x", "--karg", "quiet"]);
    assert!(out.status.success(), "{}", text(&out));
    let derives = world.empty_host();
    derives.drop_in("50-agent.yaml", INPUT);
    let out =
        derives.osctl(&["rebase", &world.os(), "--stateroot", "test", "--karg", "root=x", "--karg", "quiet"]);
    assert!(out.status.success(), "{}", text(&out));

    let of_built = usr(&takes);
    assert_eq!(of_built, usr(&derives));
    for line in ["-00640 0 0", "-00755 0 0", "l00777 0 0", "d00750 0 0"] {
        assert!(of_built.iter().any(|l| l.starts_with(line)), "{line} in {of_built:?}");
    }
    assert!(read(&takes.deployed(), "usr/lib/osctl/derived.json").contains("50-agent.yaml"));
    assert_eq!(read(&takes.deployed(), "etc/default.conf"), "declared\n");
    for host in [&takes, &derives] {
        let options = host.boot_entry();
        let options = options.lines().find(|l| l.starts_with("options")).unwrap();
        assert!(options.contains(" nosmt") && !options.contains("quiet"), "{options}");
        host.fsck();
    }
    assert_eq!(takes.status()["deployments"][0]["digest"], built["digest"]);

    // The same drop-ins on top of what was built from them, and others beside them.
    takes.drop_in("50-agent.yaml", INPUT);
    let out = takes.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    let but_record = |all: Vec<String>| -> Vec<String> {
        all.into_iter().filter(|l| !l.ends_with("/osctl/derived.json")).collect()
    };
    assert_eq!(but_record(usr(&takes)), but_record(of_built));
    assert_eq!(takes.boot_entry().matches("nosmt").count(), 1);
    std::fs::remove_file(takes.etc().join("osctl/derive.d/50-agent.yaml")).unwrap();
    takes.drop_in("60-more.yaml", "users: [{name: more, system: true}]\n");
    let out = takes.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    let users = read(&takes.deployed(), "usr/lib/sysusers.d/osctl-derived.conf");
    assert!(users.contains("u agent ") && users.contains("u more "), "{users}");
}

#[test]
fn without_a_change_nothing_is_built_and_nothing_fetched() {
    let world = World::new();
    let build = Build::new(&world);
    let target = format!("docker://{}", world.registry.name("built:1"));
    let built = build.build(&world.os(), &target, &[]);
    world.registry.clear_log();
    let again = build.run(&world.os(), &target, &[]);
    assert!(again.status.success() && text(&again).contains("No changes in input."), "{}", text(&again));
    let again = build.run(&world.os(), &target, &["--unchanged-exit-77"]);
    assert_eq!(again.status.code(), Some(77), "{}", text(&again));
    let layers = layer_digests(&world.images.path().join("os-1"));
    assert!(world.registry.blobs_sent().iter().all(|blob| !layers.contains(blob)));

    build.declare("50-agent.yaml", &format!("# a comment\n{INPUT}"));
    assert_eq!(build.build(&world.os(), &target, &[])["changed"], false);
    // Known only when the base is here: what this drop-in would replace is not in it.
    build.declare("60-empty.yaml", "files: []\n");
    let unchanged = build.build(&world.os(), &target, &[]);
    assert_eq!((&unchanged["changed"], &unchanged["digest"]), (&false.into(), &built["digest"]));
    build.declare("60-empty.yaml", "kernel-arguments: {append: [new]}\n");
    let input = build.build(&world.os(), &target, &[]);
    assert_eq!((&input["changed"], &input["base-digest"]), (&true.into(), &built["base-digest"]));
    world.push_os("2");
    let base = build.build(&world.os(), &target, &[]);
    assert_eq!((&base["changed"], &base["input-digest"]), (&true.into(), &input["input-digest"]));
    assert_ne!(base["base-digest"], input["base-digest"]);
    assert!(build.leftovers().is_empty(), "{:?}", build.leftovers());
}

#[test]
fn an_image_is_the_base_and_one_layer_and_the_same_wherever_it_is_built() {
    let world = World::new();
    let (one, other) = (Build::new(&world), Build::new(&world));
    let layout = one.dir().join("out");
    let built = one.build(&world.os(), &format!("oci:{}:1", layout.display()), &[]);
    let work = other.dir().join("work");
    let archive = format!("oci-archive:{}:1", other.dir().join("out.tar").display());
    let archived = other.build(&world.os(), &archive, &["--work", &work.to_string_lossy()]);
    assert_eq!(built["digest"], archived["digest"]);
    assert_eq!(other.build(&world.os(), &archive, &[])["changed"], false);

    let base = layer_digests(&world.images.path().join("os-1"));
    let layers = layer_digests(&layout);
    assert_eq!((&layers[..base.len()], layers.len()), (&base[..], base.len() + 1));
    let config = skopeo(&["inspect", "--config", &format!("oci:{}:1", layout.display())]);
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let labels = &config["config"]["Labels"];
    assert_eq!(labels["org.opencontainers.image.base.digest"], built["base-digest"]);
    assert_eq!(labels["org.opencontainers.image.base.name"], world.os());
    assert_eq!(labels["org.opencontainers.image.version"], "1");
    assert_eq!(config["created"], "2026-01-01T00:00:00Z");

    // A cache saves the base, whatever the target is.
    world.registry.clear_log();
    other.declare("60-args.yaml", "kernel-arguments: {append: [new]}\n");
    let store = other.dir().join("store");
    let storage = format!("containers-storage:[vfs@{0}/root+{0}/run]localhost/built:1", store.display());
    let stored = other.build(&world.os(), &storage, &["--work", &work.to_string_lossy()]);
    assert_eq!(stored["changed"], true);
    assert!(world.registry.blobs_sent().iter().all(|blob| !base.contains(blob)));
    let same = other.run(&world.os(), &storage, &["--work", &work.to_string_lossy()]);
    assert!(text(&same).contains("No changes in input."), "{}", text(&same));
}

#[test]
fn an_image_can_be_the_base_of_the_next_one() {
    let world = World::new();
    let dir = world.images.path().join("base");
    let vendor = Layer::new().dir("usr/lib/osctl").dir("usr/lib/osctl/derive.d");
    let vendor =
        vendor.file("usr/lib/osctl/derive.d/10-vendor.yaml", b"kernel-arguments: {append: [vendor]}\n");
    Image::default().layer(os_layer("1")).layer(vendor).created("2026-01-01T00:00:00Z").write(&dir);
    let out = Command::new("chmod").args(["-R", "go-w"]).arg(&dir).output().unwrap();
    assert!(out.status.success());
    let build = Build::new(&world);
    let first = format!("oci:{}:1", build.dir().join("first").display());
    let out = build.run(&format!("oci:{}", dir.display()), &first, &[]);
    assert!(out.status.success(), "{}", text(&out));
    std::fs::remove_file(build.input().join("50-agent.yaml")).unwrap();
    build.declare("60-more.yaml", "kernel-arguments: {append: [more]}\n");
    let second = format!("oci:{}:1", build.dir().join("second").display());
    build.build(&first, &second, &[]);
    let host = world.empty_host();
    let out = host.osctl(&["rebase", &second, "--stateroot", "test", "--karg", "quiet"]);
    assert!(out.status.success(), "{}", text(&out));
    let entry = host.boot_entry();
    assert!(["nosmt", "vendor", "more"].iter().all(|arg| entry.contains(arg)), "{entry}");
    assert!(!entry.contains("quiet"), "{entry}");
    assert!(host.deployed().join("usr/bin/agent").exists());
}

#[test]
fn secrets_are_built_only_on_purpose() {
    let world = World::new();
    let build = Build::new(&world);
    build.declare("70-key.yaml", "files:\n  - {path: /etc/key, mode: 0600, contents: {inline: hunter2}}\n");
    let target = format!("oci:{}:1", build.dir().join("out").display());
    world.registry.clear_log();
    let refused = build.run(&world.os(), &target, &[]);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("70-key.yaml: /etc/key") && said.contains("--allow-secrets"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    assert!(world.registry.requests().is_empty() && build.leftovers().is_empty());
    assert_eq!(build.build(&world.os(), &target, &["--allow-secrets"])["changed"], true);
}

#[test]
fn what_is_wrong_is_said_before_anything_is_fetched() {
    let world = World::new();
    let build = Build::new(&world);
    let target = format!("oci:{}:1", build.dir().join("out").display());
    world.registry.clear_log();
    let refused = |target: &str, more: &[&str], code: i32, expected: &str| {
        let out = build.run(&world.os(), target, more);
        assert_eq!(out.status.code(), Some(code), "{}", text(&out));
        assert!(text(&out).contains(expected), "{expected} in {}", text(&out));
        assert!(world.registry.requests().is_empty() && build.leftovers().is_empty(), "{expected}");
    };
    refused("dir:/x", &[], 2, "images are not written as dir:");
    refused("oci:/nonexistent/x:1", &[], 2, "/nonexistent is not a directory");
    refused(&target, &["--lock", "/nonexistent"], 1, "/nonexistent");
    build.declare("80-bad.yaml", "files:\n  - {path: /var/x, contents: {inline: x}}\n");
    let shown = format!("{}:2:", build.input().join("80-bad.yaml").display());
    refused(&target, &[], 1, &shown);
    build.declare("80-bad.yaml", "unknown: 1\n");
    refused(&target, &[], 1, "80-bad.yaml:1:1");
}

#[test]
fn a_build_that_is_cut_off_leaves_the_target_as_it_was() {
    let world = World::new();
    let build = Build::new(&world);
    let (out, work) = (build.dir().join("out"), build.dir().join("work"));
    let (target, work) = (format!("oci:{}:1", out.display()), work.to_string_lossy().into_owned());
    let points =
        ["resolve.image", "pull.image", "pull.layers", "derive.commit", "export.layer", "export.publish"];
    for point in points.iter().flat_map(|p| [(*p).to_owned(), format!("{p}.done")]) {
        for action in ["error", "kill"] {
            let mut command = build.command(&world.os(), &target, &["--work", &work]);
            let cut = command.env("OSCTL_FAILPOINTS", format!("{point}={action}")).output().unwrap();
            let passed = cut.status.signal() == Some(9) || text(&cut).contains(&format!("failpoint {point}"));
            assert!(passed && !cut.status.success(), "{point}={action}: {}", text(&cut));
            let written = point == "export.publish.done";
            assert_eq!(out.exists(), written, "{point}={action}: {}", text(&cut));
            if written {
                std::fs::remove_dir_all(&out).unwrap();
            }
        }
    }
    let built = build.build(&world.os(), &target, &["--work", &work]);
    let fresh = Build::new(&world);
    let other = format!("oci:{}:1", fresh.dir().join("out").display());
    assert_eq!(fresh.build(&world.os(), &other, &[])["digest"], built["digest"]);
}
