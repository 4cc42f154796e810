//! The rules that decide whether this can be trusted, each shown on a real sysroot.

use crate::host::{Host, World, read, text};
use crate::image::{Image, Layer, os_layer};

fn ok(host: &Host, args: &[&str]) -> String {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

fn refused(host: &Host, args: &[&str], wanted: &str) {
    let before = host.deployments();
    let out = host.osctl(args);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {}", text(&out));
    assert!(text(&out).contains(wanted), "{args:?}: {}", text(&out));
    assert_eq!(host.deployments(), before);
}

const TAKE: &str = "files:\n  - path: /etc/default.conf\n    contents: {inline: \"declared\\n\"}\n    overwrite: true\non-conflict: take\n";

#[test]
fn what_a_drop_in_took_comes_back_with_the_deployment_that_had_it() {
    let world = World::new();
    let host = world.host();
    let old = host.deployed();
    std::fs::write(old.join("etc/default.conf"), "by hand\n").unwrap();
    host.drop_in("50-a.yaml", TAKE);
    let said = ok(&host, &["reconcile"]);
    assert!(said.contains("took the declared version of /etc/default.conf"), "{said}");
    assert_eq!(read(&host.deployed(), "etc/default.conf"), "declared\n");
    assert_eq!(read(&old, "etc/default.conf"), "by hand\n");
    ok(&host, &["rollback"]);
    assert_eq!(host.deployed(), old);
}

#[test]
fn a_crash_after_taking_is_undone_by_whatever_job_comes_next() {
    let world = World::new();
    let host = world.host();
    let old = host.deployed();
    std::fs::write(old.join("etc/default.conf"), "by hand\n").unwrap();
    host.drop_in("50-a.yaml", TAKE);
    host.osctl_with("stage.publish=kill", &["reconcile"]);
    assert_eq!(read(&old, "etc/default.conf"), "default of 1\n", "it gave way");
    std::fs::remove_file(host.etc().join("osctl/derive.d/50-a.yaml")).unwrap();
    assert!(ok(&host, &["reconcile"]).contains("No changes in input."));
    assert_eq!(read(&old, "etc/default.conf"), "by hand\n");
    assert!(!old.join("etc/default.conf.osctl-saved-1").exists());
}

#[test]
fn bound_images_of_a_deployment_whose_record_is_lost_are_kept_and_come_back_if_removed() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    ok(&host, &["reconcile"]);
    let image = [world.registry.name("app:1")];
    assert_eq!(host.podman_images(), image);

    std::fs::remove_dir_all(host.sysroot().join("ostree/osctl/bound")).unwrap();
    std::fs::remove_file(host.etc().join("osctl/bound-images.d/app.toml")).unwrap();
    world.push_os("2");
    let said = ok(&host, &["upgrade"]);
    assert!(said.contains("no bound image was removed"), "{said}");
    assert_eq!(host.podman_images(), [""; 0]);
    assert_eq!(host.podman_images_of(&host.deployments()[1]), image, "the rollback deployment needs it");

    host.bind("app", &format!("image = \"{}\"\nmode = \"bind\"\ntls-verify = false\n", image[0]));
    ok(&host, &["reconcile"]);
    for part in ["storage", "storage-index"] {
        std::fs::remove_dir_all(host.sysroot().join("ostree/osctl").join(part)).unwrap();
    }
    assert!(ok(&host, &["reconcile"]).contains("No changes in input."));
    ok(&host, &["rebase", &world.os(), "--allow-downgrade"]);
    assert_eq!(host.podman_images(), image);
}

#[test]
fn a_tag_follows_its_deployment_also_after_a_crash_and_a_rollback() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    ok(&host, &["reconcile"]);
    let first = host.podman_digest("app:1");
    world.registry.push(&Image::with_file("app", b"#!/bin/false\n"), "app:1");
    host.osctl_with("stage.record.done=kill", &["upgrade"]);
    assert!(ok(&host, &["upgrade"]).contains("No changes in input."));
    assert_ne!(host.podman_digest("app:1"), first);
    ok(&host, &["rollback"]);
    assert_eq!(host.podman_digest("app:1"), first);
}

#[test]
fn an_argument_with_spaces_is_one_argument_for_ever() {
    let world = World::new();
    let host = world.host();
    host.drop_in("60-a.yaml", "kernel-arguments: {append: ['dyndbg=\"file a.c +p\"']}\n");
    ok(&host, &["reconcile"]);
    assert!(ok(&host, &["reconcile"]).contains("No changes in input."));
    assert_eq!(host.boot_entry().matches("dyndbg").count(), 1, "{}", host.boot_entry());
    std::fs::remove_file(host.etc().join("osctl/derive.d/60-a.yaml")).unwrap();
    ok(&host, &["reconcile"]);
    assert!(!host.boot_entry().contains("dyndbg"), "{}", host.boot_entry());
    let bad = host.osctl(&["rebase", &world.os(), "--karg", "a\nlinux /evil"]);
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad));
    let late = host.osctl(&["rebase", &world.os(), "--karg", "foo=1"]);
    assert!(text(&late).contains("drop-in"), "{}", text(&late));
}

#[test]
fn going_back_to_a_rejected_deployment_by_hand_accepts_it_again() {
    let world = World::new();
    let host = world.host();
    world.push_os("2");
    ok(&host, &["upgrade"]);
    let v2 = host.deployments()[0].clone();
    ok(&host, &["rollback"]);
    refused(&host, &["upgrade"], "rejected");
    refused(&host, &["upgrade", "--dry-run"], "rejected");
    ok(&host, &["rollback"]);
    assert_eq!(host.deployments()[0], v2);
    assert!(ok(&host, &["upgrade"]).contains("No changes in input."));
}

#[test]
fn nothing_is_derived_from_a_sealed_tree_nor_with_an_id_that_the_host_gave_away() {
    let world = World::new();
    let host = world.host();
    std::fs::write(host.deployed().join("etc/passwd"), "other:x:777:777::/:/bin/sh\n").unwrap();
    host.drop_in("50-a.yaml", "users: [{name: agent, system: true, uid: 777}]\n");
    refused(&host, &["reconcile"], "which /etc/passwd gives to other");
    host.drop_in("50-a.yaml", "users: [{name: agent, system: true, uid: 778}]\n");
    ok(&host, &["reconcile", "--check"]);
    let sealed = Layer::new()
        .dir("usr/lib/ostree")
        .file("usr/lib/ostree/prepare-root.conf", b"[composefs]\nenabled = signed\n");
    world.registry.push(&Image::default().layer(os_layer("9")).layer(sealed), "sealed:1");
    refused(&host, &["rebase", &world.registry.name("sealed:1")], "its composefs is signed");
}

#[test]
fn what_a_policy_forbids_is_refused_by_the_name_of_its_file() {
    let world = World::new();
    let host = world.host();
    let forbidden = |args: &[&str], wanted: &str| {
        let before = host.deployments();
        let out = host.osctl(args);
        assert_eq!(out.status.code(), Some(4), "{args:?}: {}", text(&out));
        assert!(text(&out).contains(wanted), "{args:?}: {}", text(&out));
        assert_eq!(host.deployments(), before);
    };
    let policy = host.etc().join("osctl/policy.d/10-site.toml");
    std::fs::create_dir_all(policy.parent().unwrap()).unwrap();
    std::fs::write(&policy, "reason = \"ask us\"\nallow.kernel-arguments = [\"console=*\"]\n").unwrap();
    world.push_os("2");
    world.registry.clear_log();
    host.drop_in("50-a.yaml", "kernel-arguments: {append: [nosmt]}\n");
    let said = "50-a.yaml: kernel argument nosmt is forbidden by /etc/osctl/policy.d/10-site.toml (ask us)";
    forbidden(&["upgrade"], said);
    assert!(world.registry.blobs_sent().len() <= 1, "only the configuration");
    assert!(host.status()["pending-changes"][0].as_str().unwrap().contains(said), "{}", host.status());
    assert!(ok(&host, &["upgrade", "--check"]).contains(said));
    host.drop_in("50-a.yaml", "kernel-arguments: {append: [console=ttyS0]}\n");
    ok(&host, &["upgrade"]);
    forbidden(&["kargs", "--append=nosmt"], "90-osctl.yaml: kernel argument nosmt is forbidden by");
    assert!(!host.etc().join("osctl/derive.d/90-osctl.yaml").exists());

    // What an image forbids is known when its tree is here.
    let vendor = Layer::new()
        .dir("usr/lib/osctl")
        .dir("usr/lib/osctl/policy.d")
        .file("usr/lib/osctl/policy.d/50-vendor.toml", b"allow.kernel-arguments = false\n");
    world.registry.push(&Image::default().layer(os_layer("9")).layer(vendor), "strict:1");
    let strict = world.registry.name("strict:1");
    forbidden(&["rebase", &strict], "console=ttyS0 is forbidden by /usr/lib/osctl/policy.d/50-vendor.toml");
    std::os::unix::fs::symlink("/dev/null", policy.with_file_name("50-vendor.toml")).unwrap();
    ok(&host, &["rebase", &strict]);
    std::fs::write(&policy, "[alow]\n").unwrap();
    let out = host.osctl(&["reconcile"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
    assert!(text(&out).contains("/etc/osctl/policy.d/10-site.toml:1: unknown key"), "{}", text(&out));
}

#[test]
fn a_wrong_drop_in_is_said_before_anything_is_downloaded() {
    let world = World::new();
    let host = world.host();
    world.push_os("2");
    host.drop_in("50-a.yaml", "nonsense: 1\n");
    world.registry.clear_log();
    refused(&host, &["upgrade"], "50-a.yaml:1");
    assert!(world.registry.blobs_sent().len() <= 1, "only the configuration");
}

#[test]
fn a_wrong_setting_is_said_by_jobs_and_status_and_keeps_nobody_from_rolling_back() {
    let world = World::new();
    let host = world.host();
    let v1 = host.deployments()[0].clone();
    world.push_os("2");
    ok(&host, &["upgrade"]);
    std::fs::write(host.etc().join("osctl/osctld.toml"), "[pull]\nconections = 2\n").unwrap();
    let said = "/etc/osctl/osctld.toml:2: unknown key \"conections\"";
    for args in [["upgrade"].as_slice(), &["upgrade", "--check"], &["reconcile"]] {
        let out = host.osctl(args);
        assert_eq!(out.status.code(), Some(2), "{}", text(&out));
        assert!(text(&out).contains(said) && text(&out).contains("importers"), "{}", text(&out));
    }
    let status = host.status();
    assert_eq!((&status["state"], &status["reasons"][0]), (&"degraded".into(), &said.into()), "{status}");
    ok(&host, &["rollback"]);
    assert_eq!(host.deployments()[0], v1);
    std::fs::write(host.etc().join("osctl/osctld.toml"), "[pull]\nconnections = 2\n").unwrap();
    assert!(ok(&host, &["reconcile"]).contains("No changes in input."));
}

#[test]
fn refs_of_other_programs_and_the_last_download_survive_a_cleanup() {
    let world = World::new();
    let host = world.host();
    let repo = format!("--repo={}", host.sysroot().join("ostree/repo").display());
    let base = host.status()["deployments"][0]["base-checksum"].as_str().unwrap().to_owned();
    let theirs = "ostree/container/image/docker_3A__2F__2F_quay_2E_io/admin/other_3A_1";
    host.ostree(&["refs", &repo, &base, &format!("--create={theirs}")]);
    world.push_os("2");
    ok(&host, &["upgrade", "--download-only"]);
    host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\n");
    ok(&host, &["reconcile"]);
    world.registry.clear_log();
    ok(&host, &["upgrade"]);
    assert!(
        world.registry.blobs_sent().len() <= 1,
        "the layers were here: {:?}",
        world.registry.blobs_sent()
    );
    world.push_os("3");
    ok(&host, &["upgrade"]);
    assert!(host.ostree(&["refs", &repo]).contains(theirs));
}

#[test]
fn an_origin_that_a_newer_osctl_wrote_can_be_seen_and_rolled_back_from() {
    let world = World::new();
    let host = world.host();
    let v1 = host.deployments()[0].clone();
    world.push_os("2");
    ok(&host, &["upgrade"]);
    let origin = host.deployed().with_extension("0.origin");
    let origin =
        if origin.exists() { origin } else { format!("{}.origin", host.deployed().display()).into() };
    let newer =
        std::fs::read_to_string(&origin).unwrap().replace("kargs={\"version\":1", "kargs={\"version\":2");
    std::fs::write(&origin, newer).unwrap();
    let status = host.status();
    assert_eq!(status["deployments"].as_array().unwrap().len(), 2);
    ok(&host, &["rollback"]);
    assert_eq!(host.deployments()[0], v1);
}

#[test]
fn an_image_that_a_container_of_the_administrator_stands_on_is_not_collected() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    ok(&host, &["reconcile"]);
    let own = tempfile::tempdir().unwrap();
    let conf = format!("[storage]\ngraphroot = \"{}/root\"\n", own.path().display());
    std::fs::create_dir_all(host.etc().join("containers")).unwrap();
    // The configuration root stands for `/`: a store outside of it is reached through a link.
    let inside = host.etc().parent().unwrap().join(own.path().strip_prefix("/").unwrap());
    std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(own.path(), inside).unwrap();
    std::fs::write(host.etc().join("containers/storage.conf"), conf).unwrap();
    let container =
        host.podman_of(own.path(), &["create", "--pull=never", "--network=none", &host.podman_images()[0]]);
    let first = host.podman_digest("app:1");
    for content in ["2", "3", "4"] {
        world.registry.push(&Image::with_file("app", content.as_bytes()), "app:1");
        ok(&host, &["upgrade"]);
    }
    let index = host.sysroot().join("ostree/osctl/storage-index");
    let kept = std::fs::read_dir(index).unwrap().map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
    let kept: Vec<String> = kept.collect();
    assert!(kept.iter().any(|k| k.contains(&first)), "{first}: {kept:?}");
    assert_eq!(kept.len(), 3, "those of two deployments, and the container's: {kept:?}");
    // A repair writes the layer anew, and the container finds it.
    let find = "grep -rlx '#!/bin/true' --include=app . | head -n 1 | xargs truncate -s 0";
    let storage = host.sysroot().join("ostree/osctl/storage/overlay");
    assert!(
        std::process::Command::new("sh").args(["-c", find]).current_dir(storage).status().unwrap().success()
    );
    let said = ok(&host, &["bound", "verify"]);
    assert!(said.contains("epaired"), "{said}");
    let mounted = host.podman_of(own.path(), &["mount", container.trim()]);
    assert_eq!(read(std::path::Path::new(mounted.trim()), "app"), "#!/bin/true\n");
    host.podman_of(own.path(), &["umount", container.trim()]);
    host.podman_of(own.path(), &["rm", container.trim()]);
    // podman's overlay driver leaves a bind mount on its own root.
    std::process::Command::new("umount").arg(own.path().join("root/overlay")).output().unwrap();
}

#[test]
fn a_bound_tag_keeps_its_digest_where_the_file_says_so_or_another_file_has_it() {
    let world = World::new();
    let host = world.host();
    let image =
        |more: &str| format!("image = \"{}\"\ntls-verify = false\n{more}", world.registry.name("app:1"));
    host.bind("a", &image("policy = \"missing\"\n"));
    ok(&host, &["upgrade"]);
    let first = host.podman_digest("app:1");
    world.registry.push(&Image::with_file("app", b"moved"), "app:1");
    world.push_os("2");
    ok(&host, &["upgrade"]);
    assert_eq!(host.podman_digest("app:1"), first, "an upgrade asks for it only if there is none");
    // Another file that asks for the same is no reason to ask the registry what the tag means now.
    host.bind("b", &image("mode = \"prefetch\"\n"));
    ok(&host, &["reconcile"]);
    assert_eq!(host.podman_digest("app:1"), first);
    host.bind("a", &image(""));
    ok(&host, &["reconcile"]);
    assert_eq!(host.podman_digest("app:1"), first);
    ok(&host, &["upgrade"]);
    assert_ne!(host.podman_digest("app:1"), first);
}

#[test]
fn a_record_of_bound_images_that_is_damaged_is_written_anew() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    ok(&host, &["reconcile"]);
    let dir = host.sysroot().join("ostree/osctl/bound");
    for entry in std::fs::read_dir(&dir).unwrap() {
        std::fs::write(entry.unwrap().path(), "{").unwrap();
    }
    ok(&host, &["upgrade"]);
    assert_eq!(host.status()["deployments"][0]["bound-images"].as_array().map(Vec::len), Some(1));
    assert_eq!(host.podman_images(), [world.registry.name("app:1")]);
}
