//! Bundles: made from a registry, installed without one.

use crate::host::{Host, World, text};
use crate::image::{Image, as_list_for, layer_digests};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `osctl bundle create`, as on a machine that is no host of ours.
fn create(world: &World, host: &Host, target: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osctl"));
    command.args(["bundle", "create", &world.os(), "-o", target]).args(more);
    command.env("TMPDIR", host.dir.path()).process_group(0);
    host.environment(&mut command);
    command
}

fn ok(out: &Output) -> String {
    assert!(out.status.success(), "{}", text(out));
    text(out)
}

/// The root with the drop-ins of a host.
fn config(host: &Host) -> String {
    host.dir.path().join("config").display().to_string()
}

fn path(host: &Host, name: &str) -> String {
    host.dir.path().join(name).display().to_string()
}

/// A world whose host binds an app and puts a layer on top, and for which there is version 2.
fn world() -> (World, Host) {
    let world = World::new();
    let host = world.host();
    declare(&world, &host);
    let tools = world.images.path().join("tools");
    Image::with_file("usr/lib/tools", b"tools").write(&tools);
    world.registry.push_layout(&tools, "tools:1");
    world.push_os("2");
    (world, host)
}

fn declare(world: &World, host: &Host) {
    world.declare(host);
    let layer = format!("layers: [{{image: \"{}\"}}]\n", world.registry.name("tools:1"));
    host.drop_in("40-tools.yaml", &layer);
}

fn is_complete(host: &Host) {
    assert_eq!(std::fs::read_to_string(host.deployed().join("usr/lib/version")).unwrap(), "2");
    assert_eq!(std::fs::read_to_string(host.deployed().join("usr/lib/tools")).unwrap(), "tools");
    assert!(host.podman_images().iter().any(|image| image.ends_with("app:1")));
    host.fsck();
}

#[test]
fn a_host_without_a_network_gets_the_os_its_layers_and_its_bound_images_from_a_bundle() {
    let (mut world, host) = world();
    let (dir, tar) = (path(&host, "bundle"), path(&host, "bundle.tar"));
    let said = ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    assert!(said.contains(&format!("Wrote {dir}")), "{said}");
    ok(&create(&world, &host, &format!("oci-archive:{tar}"), &["-i", &config(&host)]).output().unwrap());
    for bundle in [&dir, &tar] {
        let list = ok(&host.command(&["bundle", "list", bundle]).output().unwrap());
        for (name, role) in [("os:stable", "os"), ("app:1", "bound"), ("tools:1", "layer")] {
            let line =
                list.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {list}"));
            assert!(line.trim_end().ends_with(role), "{line}");
        }
    }
    world.registry.stop();
    let image = host.status()["deployments"][0]["image"].clone();

    let before = host.deployments();
    ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    assert_eq!(host.deployments()[1..], before[..]);
    is_complete(&host);
    assert_eq!(host.status()["deployments"][0]["image"], image, "it goes on following its registry");
    let again = ok(&host.osctl(&["upgrade", "--from-bundle", &tar]));
    assert!(again.contains("No "), "{again}");

    // A new host, from the archive.
    let fresh = world.empty_host();
    declare(&world, &fresh);
    let (os, kargs) = (world.os(), ["--stateroot", "test", "--karg", "root=LABEL=root"]);
    ok(&fresh.osctl(&[&["rebase", &os, "--from-bundle", &tar], &kargs[..]].concat()));
    is_complete(&fresh);
}

#[test]
fn what_a_bundle_does_not_have_is_said_and_nothing_is_asked_of_the_network() {
    let (world, host) = world();
    let bare = path(&host, "bare");
    ok(&create(&world, &host, &bare, &[]).output().unwrap());
    let before = host.deployments();
    world.registry.clear_log();
    let refused = |args: &[&str], wanted: &str| {
        let out = host.osctl(args);
        assert!(!out.status.success() && text(&out).contains(wanted), "{args:?}: {}", text(&out));
        assert_eq!(host.deployments(), before);
    };
    refused(&["upgrade", "--from-bundle", &bare], "the bundle does not have");
    std::fs::remove_file(host.etc().join("osctl/derive.d/40-tools.yaml")).unwrap();
    let app = format!("osctl bundle create --image {}", world.registry.name("app:1"));
    refused(&["upgrade", "--from-bundle", &bare], &app);
    refused(&["rebase", "r.io/other:1", "--from-bundle", &bare], "does not have docker://r.io/other:1");
    let nothing = path(&host, "nothing");
    refused(&["upgrade", "--from-bundle", &nothing], "opening the bundle");
    std::fs::create_dir(&nothing).unwrap();
    refused(&["upgrade", "--from-bundle", &nothing], "osctl bundle create");
    assert_eq!(world.registry.requests(), []);
    // With it, everything is there.
    ok(&create(&world, &host, &bare, &["--image", &world.registry.name("app:1")]).output().unwrap());
    world.registry.clear_log();
    ok(&host.osctl(&["upgrade", "--from-bundle", &bare]));
    assert_eq!(world.registry.requests(), []);
    // Another OS than the host's is no upgrade.
    let other = world.registry.name("other:1");
    world.registry.push_layout(&world.images.path().join("os-2"), "other:1");
    ok(&host.osctl(&["rebase", &other]));
    let out = host.osctl(&["upgrade", "--from-bundle", &bare]);
    let hint = format!("osctl rebase docker://{} --from-bundle", world.os());
    assert!(!out.status.success() && text(&out).contains(&hint), "{}", text(&out));
}

#[test]
fn a_bundle_that_was_changed_is_found_out_by_its_digests() {
    let (world, host) = world();
    let dir = path(&host, "bundle");
    ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    let before = host.deployments();
    // In the order in which they are fetched: what came whole is kept.
    for image in ["os-2", "tools", "app"] {
        let layer = layer_digests(&world.images.path().join(image)).pop().unwrap();
        let blob = Path::new(&dir).join("blobs/sha256").join(layer.trim_start_matches("sha256:"));
        let good = std::fs::read(&blob).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&blob, bad).unwrap();
        let out = host.osctl(&["upgrade", "--from-bundle", &dir]);
        assert!(!out.status.success(), "{image}: {}", text(&out));
        assert!(text(&out).contains("digest"), "{image}: {}", text(&out));
        assert_eq!(host.deployments(), before, "{image}");
        std::fs::write(&blob, good).unwrap();
    }
    ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    is_complete(&host);
}

#[test]
fn an_import_that_is_cut_off_leaves_the_old_or_the_new_set() {
    let (mut world, host) = world();
    let dir = path(&host, "bundle");
    ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    world.registry.stop();
    for (point, action) in [
        ("resolve.bundle", "error"),
        ("resolve.bundle", "kill"),
        ("pull.layers", "kill"),
        ("derive.images", "kill"),
        ("bind.pull", "kill"),
        ("bind.store", "kill"),
    ] {
        let before = host.deployments();
        let out = host.osctl_with(&format!("{point}={action}"), &["upgrade", "--from-bundle", &dir]);
        let expected = if action == "kill" { (None, Some(9)) } else { (Some(1), None) };
        assert_eq!((out.status.code(), out.status.signal()), expected, "{point}: {}", text(&out));
        assert_eq!(host.deployments(), before, "{point}");
    }
    ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    is_complete(&host);
}

#[test]
fn a_bundle_that_is_cut_off_is_none_and_is_finished_without_fetching_again_what_is_there() {
    let (world, host) = world();
    let dir = path(&host, "bundle");
    let config = config(&host);
    let out =
        create(&world, &host, &dir, &["-i", &config]).env("OSCTL_FAILPOINTS", "export.publish=kill").output();
    assert_eq!(out.unwrap().status.signal(), Some(9));
    let out = host.osctl(&["upgrade", "--from-bundle", &dir]);
    assert!(!out.status.success() && text(&out).contains("may not be complete"), "{}", text(&out));
    world.registry.clear_log();
    ok(&create(&world, &host, &dir, &["-i", &config]).output().unwrap());
    let layers = ["os-2", "app", "tools"].map(|image| layer_digests(&world.images.path().join(image)));
    let sent = world.registry.blobs_sent();
    assert!(!layers.iter().flatten().any(|layer| sent.contains(layer)), "{sent:?}");
    ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    is_complete(&host);
    // What is no bundle is left alone.
    let other = PathBuf::from(path(&host, "other"));
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("precious"), "").unwrap();
    let out = create(&world, &host, &other.display().to_string(), &[]).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("is no bundle"), "{}", text(&out));
    assert!(other.join("precious").exists());
}

#[test]
fn lists_of_manifests_go_along_and_what_is_only_wished_for_may_be_missing() {
    let (mut world, host) = world();
    let list = world.images.path().join("list");
    Image::with_file("hello", b"of a list").write(&list);
    let instance = layer_digests(&list).pop().unwrap();
    as_list_for(&list, "amd64");
    let index = std::fs::read(list.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    world.registry.push_layout(&list, "list:1");
    let address = world.registry.address.clone();
    let toml = |image: &str, mode: &str| {
        format!("image = \"{address}/{image}\"\nmode = \"{mode}\"\ntls-verify = false\n")
    };
    host.bind("list", &toml("list:1", "bind"));
    host.bind("pinned", &toml(&format!("list@{digest}"), "bind"));
    host.bind("wish", &toml("wish:1", "prefetch"));
    let dir = path(&host, "bundle");
    let said = ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    assert!(said.contains("wish:1 is not in the bundle"), "{said}");
    let blob = Path::new(&dir).join("blobs/sha256").join(instance.trim_start_matches("sha256:"));
    assert!(blob.is_file());
    world.registry.stop();
    // TLS that the bundle does not have is none of its registry's.
    for bound in ["list", "pinned"] {
        let file = host.etc().join(format!("osctl/bound-images.d/{bound}.toml"));
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text.replace("tls-verify = false", "tls-verify = true")).unwrap();
    }
    let said = ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    assert!(said.contains("wish:1"), "{said}");
    is_complete(&host);
    assert!(host.podman_images().iter().any(|image| image.ends_with("list:1")), "{:?}", host.podman_images());
}

#[test]
fn a_layout_that_skopeo_wrote_is_a_bundle_if_its_images_have_their_whole_names() {
    let (world, host) = world();
    std::fs::remove_dir_all(host.etc().join("osctl/derive.d")).unwrap();
    let dir = path(&host, "layout");
    for image in [world.os(), world.registry.name("app:1")] {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--preserve-digests", "--src-tls-verify=false"]);
        let out = skopeo.arg(format!("docker://{image}")).arg(format!("oci:{dir}:{image}")).output().unwrap();
        ok(&out);
    }
    world.registry.clear_log();
    ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    assert_eq!(world.registry.requests(), []);
    assert!(host.podman_images().iter().any(|image| image.ends_with("app:1")));
}

#[test]
fn what_the_host_says_about_registries_sends_nobody_elsewhere_and_blocks_as_ever() {
    let (world, host) = world();
    let dir = path(&host, "bundle");
    ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    world.registry.clear_log();
    // A mirror of each repository, and logins and certificates of which nothing is here.
    let conf = host.etc().join("containers/registries.conf.d");
    std::fs::create_dir_all(&conf).unwrap();
    let mirror = |name: &str| {
        let name = world.registry.name(name);
        format!("[[registry]]\nprefix = \"{name}\"\nlocation = \"127.0.0.1:1/{name}\"\ninsecure = true\n")
    };
    std::fs::write(conf.join("99-mirror.conf"), ["os", "app", "tools"].map(mirror).concat()).unwrap();
    let file = host.etc().join("osctl/bound-images.d/app.toml");
    let toml = std::fs::read_to_string(&file).unwrap();
    let more = "auth-file = \"/etc/none.json\"\ncert-dir = \"/etc/none\"\n";
    std::fs::write(&file, toml + more).unwrap();
    let said = ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    assert!(said.contains("no signature policy vouches for"), "{said}");
    is_complete(&host);
    assert_eq!(world.registry.requests(), []);

    let blocked = format!(
        "[[registry]]\nprefix = \"{}\"\nlocation = \"r.io\"\nblocked = true\n",
        world.registry.address
    );
    std::fs::write(conf.join("99-mirror.conf"), blocked).unwrap();
    let out = host.osctl(&["rebase", &world.os(), "--from-bundle", &dir]);
    assert!(!out.status.success() && text(&out).contains("blocks the registry"), "{}", text(&out));
}

#[test]
fn a_layer_that_the_bundle_lacks_is_not_replaced_by_that_of_before() {
    let (world, host) = world();
    ok(&host.osctl(&["reconcile"]));
    let before = host.deployments();
    let bare = path(&host, "bare");
    ok(&create(&world, &host, &bare, &["--image", &world.registry.name("app:1")]).output().unwrap());
    let out = host.osctl(&["upgrade", "--from-bundle", &bare]);
    let hint = format!("--image {}", world.registry.name("tools:1"));
    assert!(!out.status.success() && text(&out).contains(&hint), "{}", text(&out));
    assert_eq!(host.deployments(), before);
}

#[test]
fn an_import_leaves_nothing_behind_and_says_nothing_of_where_it_reads() {
    let (world, host) = world();
    let dir = path(&host, "bundle");
    ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    let layer = layer_digests(&world.images.path().join("os-2")).pop().unwrap();
    std::fs::remove_file(Path::new(&dir).join("blobs/sha256").join(layer.trim_start_matches("sha256:")))
        .unwrap();
    let out = host.osctl(&["upgrade", "--from-bundle", &dir]);
    assert!(!out.status.success() && text(&out).contains("the bundle"), "{}", text(&out));
    let said = text(&out) + &host.status().to_string();
    let token = |word: &str| word.len() == 32 && word.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(!said.split(|c: char| !c.is_ascii_alphanumeric()).any(token), "{said}");
    ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    let out = host.osctl_with("pull.layers=kill", &["upgrade", "--from-bundle", &dir]);
    assert_eq!(out.status.signal(), Some(9));
    ok(&host.osctl(&["upgrade", "--from-bundle", &dir]));
    let left = std::fs::read_dir(host.sysroot().join("ostree/osctl/tmp")).unwrap();
    let left: Vec<_> =
        left.map(|entry| entry.unwrap().file_name()).filter(|n| n != "no-logins.json").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_bound_file_says_about_its_registry_counts_for_its_signatures_too() {
    let (world, host) = world();
    let dir = path(&host, "bundle");
    // Nobody but the bound file knows that this registry has no TLS.
    let other = crate::registry::Registry::start();
    other.push(&Image::with_file("x", b"x"), "x:1");
    host.bind("x", &format!("image = \"{}/x:1\"\ntls-verify = false\n", other.address));
    let said = ok(&create(&world, &host, &dir, &["-i", &config(&host)]).output().unwrap());
    assert!(said.contains("x:1"), "{said}");
}
