//! The main job, its results as foreign tools read them, and its rules.

use crate::host::{World, read, text};
use crate::image::{Image, Layer, os_layer};

#[test]
fn an_upgrade_brings_image_drop_ins_arguments_and_bound_images_as_one_unit() {
    let world = World::new();
    let host = world.host();
    let v1 = host.deployments();
    world.declare(&host);
    world.push_os("2");
    let out = host.osctl(&["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));

    let all = host.deployments();
    assert_eq!((all.len(), &all[1]), (2, &v1[0]), "the previous deployment is kept for rollback");
    let root = host.deployed();
    assert_eq!(read(&root, "usr/lib/version"), "2");
    assert_eq!(read(&root, "etc/agent.conf"), "mode=on\n");
    assert_eq!(read(&root, "usr/etc/agent.conf"), "mode=on\n");
    assert!(root.join("etc/systemd/system/multi-user.target.wants/agent.service").is_symlink());
    let entry = host.boot_entry();
    assert!(entry.contains("nosmt") && entry.contains("root=LABEL=root"), "{entry}");
    assert_eq!(host.podman_images(), [format!("{}/app:1", world.registry.address)]);
    host.fsck();

    let status = host.status();
    let new = &status["deployments"][0];
    assert_eq!(new["version"], "2");
    assert_eq!(new["image"], format!("docker://{}", world.os()));
    assert_eq!(new["derivation"]["drop-ins"][0]["name"], "50-agent.yaml");
    assert_eq!(new["bound-images"][0]["mode"], "bind");
    assert_eq!(status["jobs"][0]["state"], "succeeded");

    let again = host.osctl(&["upgrade"]);
    assert!(again.status.success() && text(&again).contains("No changes in input."), "{}", text(&again));
    let unchanged = host.osctl(&["upgrade", "--unchanged-exit-77"]);
    assert_eq!(unchanged.status.code(), Some(77), "{}", text(&unchanged));
    assert_eq!(host.deployments(), all);
}

#[test]
fn a_bound_image_that_is_missing_leaves_everything_as_it_was_and_is_named() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    world.declare(&host);
    world.push_os("2");
    world.registry.lose("app");
    let out = host.osctl(&["upgrade"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    let said = text(&out);
    assert!(said.contains("app:1") && said.contains("app.toml"), "{said}");
    assert_eq!(host.deployments(), before);
    host.fsck();
}

#[test]
fn reconcile_applies_and_removes_drop_ins_without_the_registry() {
    let world = World::new();
    let host = world.host();
    host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\n");
    drop(world);
    let check = host.osctl(&["reconcile", "--check"]);
    assert!(check.status.success() && text(&check).contains("nosmt"), "{}", text(&check));
    assert!(!host.boot_entry().contains("nosmt"));
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    assert!(host.boot_entry().contains("nosmt"));
    std::fs::remove_file(host.etc().join("osctl/derive.d/60-args.yaml")).unwrap();
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    assert!(!host.boot_entry().contains("nosmt"), "{}", host.boot_entry());
    assert!(host.boot_entry().contains("root=LABEL=root"));
}

#[test]
fn after_a_rollback_the_same_input_is_refused_until_a_person_overrides_it() {
    let world = World::new();
    let host = world.host();
    let v1 = host.deployments();
    world.declare(&host);
    let drop_ins = read(&host.etc(), "osctl/derive.d/50-agent.yaml");
    world.push_os("2");
    assert!(host.osctl(&["upgrade"]).status.success());
    let out = host.osctl(&["rollback"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(host.deployments()[0], v1[0]);
    assert_eq!(
        read(&host.etc(), "osctl/derive.d/50-agent.yaml"),
        drop_ins,
        "rollback never touches /etc/osctl"
    );
    let refused = host.osctl(&["upgrade"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("--allow-rejected"), "{}", text(&refused));
    assert_eq!(host.deployments()[0], v1[0]);
    let forced = host.osctl(&["upgrade", "--allow-rejected"]);
    assert!(forced.status.success(), "{}", text(&forced));
    assert_ne!(host.deployments()[0], v1[0]);
}

#[test]
fn a_local_change_of_a_declared_file_is_a_conflict_unless_the_drop_in_says_otherwise() {
    let world = World::new();
    let host = world.host();
    let file = |on: &str| {
        format!(
            "files:\n  - path: /etc/default.conf\n    contents: {{inline: \"declared\\n\"}}\n    overwrite: true\n{on}"
        )
    };
    std::fs::write(host.deployed().join("etc/default.conf"), "by hand\n").unwrap();
    host.drop_in("50-a.yaml", &file(""));
    let before = host.deployments();
    let out = host.osctl(&["reconcile"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("/etc/default.conf"), "{}", text(&out));
    assert_eq!(host.deployments(), before);
    host.drop_in("50-a.yaml", &file("on-conflict: keep-local\n"));
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(read(&host.deployed(), "etc/default.conf"), "by hand\n");
    assert_eq!(read(&host.deployed(), "usr/etc/default.conf"), "declared\n");
}

#[test]
fn a_pinned_deployment_stays_and_what_no_deployment_needs_goes() {
    let world = World::new();
    let host = world.host();
    let v1 = host.deployments()[0].clone();
    let out = host.osctl(&["pin", "0"]);
    assert!(out.status.success(), "{}", text(&out));
    for version in ["2", "3", "4"] {
        world.push_os(version);
        let out = host.osctl(&["upgrade"]);
        assert!(out.status.success(), "{}", text(&out));
    }
    let all = host.deployments();
    assert_eq!(all.len(), 3, "default, rollback and the pinned one: {all:?}");
    assert!(all.contains(&v1));
    host.fsck();
    let refs = host.ostree(&[
        "refs",
        &format!("--repo={}", host.sysroot().join("ostree/repo").display()),
        "--list",
        "ostree/container/baseimage",
    ]);
    let bases = refs.lines().filter(|r| !r.ends_with("/latest"));
    assert_eq!(bases.count(), 3, "{refs}");
}

#[test]
fn check_downloads_no_layer_and_says_what_there_is() {
    let world = World::new();
    let host = world.host();
    let out = host.osctl(&["upgrade", "--check", "--unchanged-exit-77"]);
    assert_eq!(out.status.code(), Some(77), "{}", text(&out));
    world.push_os("2");
    world.registry.clear_log();
    let out = host.osctl(&["upgrade", "--check"]);
    assert!(out.status.success() && text(&out).contains('2'), "{}", text(&out));
    assert!(world.registry.blobs_sent().len() <= 1, "only the configuration");
}

#[test]
fn podman_of_the_image_is_told_where_the_bound_images_are_and_the_deployment_says_so() {
    let world = World::new();
    let conf = "# the vendor's\n[storage]\ndriver = \"overlay\"\n";
    for (file, content) in [
        ("usr/share/containers/storage.conf", None),
        ("usr/share/containers/storage.conf", Some(conf)),
        ("etc/containers/storage.conf", Some(conf)),
    ] {
        let mut layer = Layer::new().file("usr/bin/podman", b"").dir("usr/share").dir("usr/share/containers");
        layer = layer.dir("etc/containers");
        if let Some(content) = content {
            layer = layer.file(file, content.as_bytes());
        }
        let image = Image::default().layer(os_layer("1")).layer(layer);
        world.registry.push(&image.created("2026-01-09T00:00:00Z"), "os:stable");
        let host = world.empty_host();
        let ok = |args: &[&str]| {
            let out = host.osctl(args);
            assert!(out.status.success(), "{args:?}: {}", text(&out));
            text(&out)
        };
        ok(&["rebase", &world.os(), "--stateroot", "test"]);
        let there = host.deployed().join(file);
        assert_eq!(
            std::fs::read_to_string(&there).ok().as_deref(),
            content,
            "nothing is bound: nothing changes"
        );
        host.bind("app", &format!("image = \"{}/app:1\"\ntls-verify = false\n", world.registry.address));
        assert!(host.status()["pending-changes"].to_string().contains("bound-images.d"));
        ok(&["reconcile"]);
        let merged = read(&host.deployed(), file);
        assert!(merged.contains("additionalimagestores = [\"/usr/lib/osctl/storage\"]"), "{merged}");
        assert!(content.is_none_or(|content| merged.starts_with(content)), "{merged}");
        assert_eq!(host.status()["pending-changes"].as_array().map(Vec::len), Some(0));
        assert!(ok(&["why", &format!("/{file}")]).contains("bound-images.d"));
        assert!(ok(&["reconcile"]).contains("No changes in input."));
        let own = host.etc().join("containers/storage.conf");
        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        std::fs::write(&own, conf).unwrap();
        let said = ok(&["reconcile"]);
        let of_the_image = file.starts_with("etc/");
        assert_eq!(said.contains("podman will not find the bound images"), !of_the_image, "{said}");
        std::fs::remove_file(&own).unwrap();
        std::fs::remove_file(host.etc().join("osctl/bound-images.d/app.toml")).unwrap();
        ok(&["reconcile"]);
        assert_eq!(std::fs::read_to_string(host.deployed().join(file)).ok().as_deref(), content);
    }
}
