//! What must fail must say so, and change nothing.

use crate::host::{World, text};
use crate::image::{Image, Layer, as_list_for, layer_digests, noise, os_layer};
use crate::registry::{self, CREDENTIALS, Registry};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const CREATED: &str = "2026-01-09T00:00:00Z";

#[test]
fn bad_images_are_refused_by_name_and_change_nothing() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    let push = |name: &str, layers: Vec<Layer>| {
        let image = layers.into_iter().fold(Image::default().created(CREATED), Image::layer);
        world.registry.push(&image, &format!("{name}:1"));
        world.registry.name(&format!("{name}:1"))
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let table = [
        (
            push("unmerged", vec![Layer::new().dir("usr").dir("usr/bin").dir("etc").file("usr/bin/x", b"x")]),
            "no /bin, which must be a link to usr/bin",
        ),
        (push("kernel", vec![os_layer("9"), Layer::new().file("usr/lib/modules/.wh.6.1", b"")]), "kernel"),
        (push("var", vec![os_layer("9").dir("var/lib").file("var/lib/db", b"x")]), "/var/lib/db"),
        (push("top", vec![os_layer("9").dir("nix")]), "nix"),
        (world.registry.name("none:1"), "none"),
        (format!("{closed}/os:1"), "refused"),
        (list_for_another_machine(&world), "no variant for this architecture"),
        (truncated_archive(&world), "cut.tar"),
        (damaged_layer(&world), "arrived with the digest"),
        ("not a reference".to_owned(), "character"),
    ];
    for (image, wanted) in table {
        let out = host.osctl(&["rebase", &image]);
        let said = text(&out);
        assert!(!out.status.success(), "{image}: {said}");
        assert!(said.contains(wanted), "{image}: {said}");
        assert!(said.contains("error:"), "{image}: {said}");
        assert_eq!(host.deployments(), before, "{image}");
    }
    host.fsck();
}

/// Every file below a directory with what it is, without the results of jobs.
fn files(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let what = match meta.file_type() {
            kind if kind.is_dir() && path.ends_with("ostree/osctl/jobs") => continue,
            kind if kind.is_dir() => {
                files(&path, found);
                String::new()
            }
            kind if kind.is_symlink() => std::fs::read_link(&path).unwrap().display().to_string(),
            _ => osctl::model::image::Digest::of(&std::fs::read(&path).unwrap()).to_string(),
        };
        found.insert(path, format!("{:o} {what}", meta.mode()));
    }
}

#[test]
fn a_bad_declaration_of_any_kind_leaves_nothing_behind() {
    let world = World::new();
    let host = world.host();
    let fingerprint = || {
        let mut found = BTreeMap::new();
        files(&host.sysroot(), &mut found);
        found
    };
    // There is something to download, to derive and to deploy beside what is wrong.
    world.push_os("2");
    world.declare(&host);
    let layers = layer_digests(&world.images.path().join("os-2"));
    let before = fingerprint();
    for (path, text_of_it, wanted) in [
        (
            "osctl/derive.d/99-bad.yaml",
            "files:\n  - path: /etc/x\n    contents: {inline: x}\n    mode: 644\n",
            "/etc/osctl/derive.d/99-bad.yaml:4:11: files[0].mode: ",
        ),
        (
            "rpm-ostree/origin.d/99-bad.yaml",
            "packages: [vim]\nunits: [sshd.service]\n",
            "/etc/rpm-ostree/origin.d/99-bad.yaml:2:1: units: ",
        ),
        (
            "osctl/derive.d/99-bad.bu",
            "variant: fcos\nversion: 1.5.0\nstorage:\n  disks: [{device: /dev/sda}]\n",
            "/etc/osctl/derive.d/99-bad.bu",
        ),
    ] {
        let path = host.etc().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text_of_it).unwrap();
        world.registry.clear_log();
        for verb in ["upgrade", "reconcile"] {
            let out = host.osctl(&[verb]);
            assert_eq!(out.status.code(), Some(1), "{}", text(&out));
            assert!(text(&out).contains(wanted), "{}", text(&out));
            // To know what the tag is now takes its configuration, and no layer.
            assert!(!world.registry.blobs_sent().iter().any(|sent| layers.contains(sent)), "{verb}");
            let after = fingerprint();
            let changed: Vec<_> = before.iter().filter(|(p, what)| after.get(*p) != Some(what)).collect();
            let new: Vec<_> = after.keys().filter(|p| !before.contains_key(*p)).collect();
            assert!(changed.is_empty() && new.is_empty(), "{verb}: {changed:?} {new:?}");
        }
        std::fs::remove_file(&path).unwrap();
    }
    // And it was only that which was in the way.
    let out = host.osctl(&["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_ne!(fingerprint(), before);
}

fn list_for_another_machine(world: &World) -> String {
    let dir = world.images.path().join("list");
    Image::default().layer(os_layer("9")).write(&dir);
    as_list_for(&dir, "s390x");
    world.registry.push_layout(&dir, "list:1");
    world.registry.name("list:1")
}

fn truncated_archive(world: &World) -> String {
    let (layout, archive) = (world.images.path().join("whole"), world.images.path().join("cut.tar"));
    Image::default().layer(os_layer("9")).write(&layout);
    let (source, target) =
        (format!("oci:{}", layout.display()), format!("oci-archive:{}", archive.display()));
    let copied = Command::new("skopeo").args(["copy", "-q", &source, &target]).output().unwrap();
    assert!(copied.status.success(), "{}", text(&copied));
    let file = std::fs::File::options().write(true).open(&archive).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    target
}

fn damaged_layer(world: &World) -> String {
    let dir = world.images.path().join("damaged");
    Image::default().layer(os_layer("9")).layer(Layer::new().file("usr/lib/x", &[7; 4000])).write(&dir);
    let digest = layer_digests(&dir).pop().unwrap();
    let blob = dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let mut bytes = std::fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    format!("oci:{}", dir.display())
}

#[test]
fn a_registry_that_wants_credentials_says_where_they_belong() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    let private = Registry::with_password();
    private.push(&Image::default().layer(os_layer("9")).created(CREATED), "os:1");
    host.add_registry(&private);
    let out = host.osctl(&["rebase", &private.name("os:1")]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("auth.json"), "{}", text(&out));
    assert_eq!(host.deployments(), before);
    let auth = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{CREDENTIALS}\"}}}}}}", private.address);
    std::fs::write(host.etc().join("osctl/auth.json"), auth).unwrap();
    let out = host.osctl(&["rebase", &private.name("os:1")]);
    assert!(out.status.success(), "{}", text(&out));
    assert!(!text(&out).contains(CREDENTIALS) && !text(&out).contains("secret"), "{}", text(&out));
}

#[test]
fn a_registry_that_vanishes_half_way_costs_only_what_was_not_complete() {
    let mut world = World::new();
    let host = world.host();
    let before = host.deployments();
    let image =
        Image::default().layer(os_layer("9")).layer(Layer::new().file("usr/lib/big", &noise(8 << 20)));
    let dir = world.images.path().join("big");
    image.created(CREATED).write(&dir);
    world.registry.push_layout(&dir, "os:stable");
    let layers = layer_digests(&dir);
    // What is left of the second layer in the registry is its first half, then the connection ends.
    let blob = registry::blob_path(&world.registry, &layers[1].parse().unwrap());
    let whole = std::fs::read(&blob).unwrap();
    std::fs::write(&blob, &whole[..whole.len() / 2]).unwrap();
    world.registry.clear_log();
    let out = host.osctl(&["upgrade"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert_eq!(host.deployments(), before);
    assert!(world.registry.blobs_sent().contains(&layers[0]));
    world.registry.stop();
    let out = host.osctl(&["upgrade"]);
    assert!(text(&out).contains("the running system is unchanged"), "{}", text(&out));
    assert_eq!(host.deployments(), before);
    std::fs::write(&blob, &whole).unwrap();
    world.registry.resume();
    world.registry.clear_log();
    let out = host.osctl(&["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));
    let fetched = world.registry.blobs_sent();
    assert!(fetched.contains(&layers[1]) && !fetched.contains(&layers[0]), "{fetched:?}");
    host.fsck();
}

/// A small file system of its own, unmounted when dropped.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &std::path::Path, image: &std::path::Path, size: u64) -> Small {
        std::fs::File::create(image).unwrap().set_len(size).unwrap();
        let run = |program: &str, args: &[&str]| {
            let out = Command::new(program).args(args).output().unwrap();
            assert!(out.status.success(), "{program}: {}", text(&out));
        };
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()]);
        run("mount", &["-o", "loop", &image.to_string_lossy(), &at.to_string_lossy()]);
        Small(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_before_or_during_the_download_and_nothing_is_staged() {
    let world = World::new();
    let host = world.empty_host();
    std::fs::remove_dir_all(host.sysroot()).unwrap();
    std::fs::create_dir(host.sysroot()).unwrap();
    let _disk = Small::mount(&host.sysroot(), &host.dir.path().join("disk"), 96 << 20);
    host.ostree(&["admin", "init-fs", &host.sysroot().to_string_lossy()]);
    let first = ["rebase", &world.os(), "--stateroot", "test", "--karg", "root=LABEL=root"];
    let out = host.osctl(&first);
    assert!(out.status.success(), "{}", text(&out));
    let before = host.deployments();
    let push = |name: &str, file: &[u8]| {
        let image = Image::default().layer(os_layer("9")).layer(Layer::new().file("usr/lib/big", file));
        world.registry.push(&image.created(CREATED), name);
        world.registry.name(name)
    };
    // The first cannot fit by its size, the second (zeros) only shows when it is unpacked.
    for (image, wanted) in [
        (push("wide:1", &noise(120 << 20)), "nothing was downloaded"),
        (push("bomb:1", &vec![0; 200 << 20]), "the running system is unchanged"),
    ] {
        world.registry.clear_log();
        let out = host.osctl(&["rebase", &image]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains(wanted) && text(&out).contains("hint:"), "{}", text(&out));
        assert_eq!(host.deployments(), before);
        host.fsck();
    }
    // With the disk as full as the failure left it, the host can still be updated to something that fits.
    world.push_os("2");
    let out = host.osctl(&["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));
}

#[test]
fn bad_drop_ins_are_refused_with_file_and_line_before_anything_is_staged() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    for (contents, wanted) in [
        ("nonsense: 1\n", "50-a.yaml:1"),
        ("files:\n  - path: /var/x\n    contents: {inline: x}\n", "tmpfiles"),
        ("files:\n  - path: relative\n    contents: {inline: x}\n", "50-a.yaml:2"),
        ("kernel-arguments: {append: [root=/dev/sda]}\n", "root="),
        ("packages: [-y]\n", "50-a.yaml:1"),
    ] {
        host.drop_in("50-a.yaml", contents);
        let out = host.osctl(&["reconcile"]);
        assert_eq!(out.status.code(), Some(1), "{contents}: {}", text(&out));
        assert!(text(&out).contains(wanted), "{contents}: {}", text(&out));
        assert_eq!(host.deployments(), before);
    }
    std::fs::remove_dir_all(host.etc().join("osctl/derive.d")).unwrap();
    std::fs::write(host.etc().join("osctl/derive.d"), "a file").unwrap();
    let out = host.osctl(&["reconcile"]);
    assert!(!out.status.success() && text(&out).contains("derive.d"), "{}", text(&out));
    std::fs::remove_dir_all(host.etc().join("osctl")).unwrap_or_else(|e| panic!("{e}"));
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "a missing /etc/osctl means nothing to derive: {}", text(&out));
}

#[test]
fn a_directory_that_is_no_sysroot_is_named_with_the_next_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_osctl"))
        .args(["--direct", "--sysroot", &dir.path().to_string_lossy(), "upgrade"])
        .output()
        .unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("not an ostree host") && said.contains("hint:"), "{said}");
}

#[test]
fn drop_ins_that_cannot_be_read_or_are_too_many_are_refused() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    let refused = |wanted: &str| {
        let out = host.osctl(&["reconcile"]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains(wanted), "{}", text(&out));
        assert_eq!(host.deployments(), before);
    };
    let dir = host.etc().join("osctl/derive.d");
    std::fs::create_dir_all(dir.join("50-a.yaml")).unwrap();
    refused("50-a.yaml");
    std::fs::remove_dir(dir.join("50-a.yaml")).unwrap();
    std::os::unix::fs::symlink("50-a.yaml", dir.join("50-a.yaml")).unwrap();
    refused("50-a.yaml");
    std::fs::remove_file(dir.join("50-a.yaml")).unwrap();
    for i in 0..10_000 {
        std::fs::write(dir.join(format!("{i:05}.yaml")), "kernel-arguments: {append: [quiet]}\n").unwrap();
    }
    refused("derive.d");
}

#[test]
fn a_host_of_another_tool_is_shown_and_left_alone() {
    let world = World::new();
    let host = world.host();
    let path = format!("{}.origin", host.deployed().display());
    let ours = std::fs::read_to_string(&path).unwrap();
    world.push_os("2");
    for (keys, shown) in [
        ("[packages]\nrequested=vim;\n", "packages/requested"),
        ("[rpmostree]\nregenerate-initramfs=true\n", "rpmostree/regenerate-initramfs"),
        ("[bootc]\nsoft-reboot=auto\n", "bootc/soft-reboot"),
    ] {
        let text_before = format!("{ours}{keys}");
        std::fs::write(&path, &text_before).unwrap();
        for verb in ["upgrade", "reconcile"] {
            let out = host.osctl(&[verb]);
            let said = text(&out);
            assert_eq!(out.status.code(), Some(1), "{said}");
            assert!(said.contains(shown) && said.contains("osctl adopt --dry-run"), "{said}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text_before);
        assert_eq!(host.status()["deployments"][0]["incompatible"][0], shown);
    }
}
