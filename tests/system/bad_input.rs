//! What must fail must say so, and change nothing.

use crate::host::{World, text};
use crate::image::{Layer, layout, os_layer};
use std::process::Command;

const CREATED: &str = "2026-01-09T00:00:00Z";

#[test]
fn bad_images_are_refused_by_name_and_change_nothing() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    let push = |name: &str, layers: Vec<Layer>| {
        let dir = world.images.path().join(name);
        layout(&dir, layers, &[], CREATED);
        world.registry.push(&dir, &format!("{name}:1"));
        format!("{}/{name}:1", world.registry.address)
    };
    let archive = world.images.path().join("cut.tar");
    std::fs::write(&archive, [0u8; 700]).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let table = [
        (
            push("unmerged", vec![Layer::new().dir("usr").dir("usr/bin").dir("etc").file("usr/bin/x", b"x")]),
            vec!["no /bin, which must be a link to usr/bin"],
        ),
        (
            push("kernel", vec![os_layer("9"), Layer::new().file("usr/lib/modules/.wh.6.1", b"")]),
            vec!["kernel"],
        ),
        (push("var", vec![os_layer("9").dir("var/lib").file("var/lib/db", b"x")]), vec!["/var/lib/db"]),
        (push("top", vec![os_layer("9").dir("nix")]), vec!["nix"]),
        (format!("{}/none:1", world.registry.address), vec!["none"]),
        (format!("{closed}/os:1"), vec!["registry", "refused"]),
        (format!("oci-archive:{}", archive.display()), vec!["cut.tar"]),
        ("not a reference".to_owned(), vec!["character"]),
    ];
    for (image, wanted) in table {
        let out = host.osctl(&["rebase", &image]);
        let said = text(&out);
        assert!(!out.status.success(), "{image}: {said}");
        assert!(wanted.iter().any(|w| said.contains(w)), "{image}: {said}");
        assert!(said.contains("error:"), "{image}: {said}");
        assert_eq!(host.deployments(), before, "{image}");
    }
    host.fsck();
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
        ("packages: [vim]\n", "50-a.yaml:1"),
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
fn a_host_of_rpm_ostree_is_shown_and_left_alone() {
    let world = World::new();
    let host = world.host();
    let origin = format!("{}.origin", host.deployed().display());
    let text_before = std::fs::read_to_string(&origin).unwrap() + "[packages]\nrequested=vim;\n";
    std::fs::write(&origin, &text_before).unwrap();
    world.push_os("2");
    let out = host.osctl(&["upgrade"]);
    assert!(!out.status.success() && text(&out).contains("packages/requested"), "{}", text(&out));
    assert!(text(&out).contains("rpm-ostree"), "{}", text(&out));
    assert_eq!(std::fs::read_to_string(&origin).unwrap(), text_before);
    assert_eq!(host.status()["deployments"][0]["incompatible"][0], "packages/requested");
}
