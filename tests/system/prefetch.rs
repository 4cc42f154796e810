//! Images of mode `prefetch`: never in the way, reported, and brought later.

use crate::host::{Host, World, text};
use crate::image::{Image, layer_digests};

fn bind(world: &World, host: &Host, name: &str) {
    let image = world.registry.name(&format!("{name}:1"));
    host.bind(name, &format!("image = \"{image}\"\nmode = \"prefetch\"\ntls-verify = false\n"));
}

/// Lets the time come at which it is tried again.
fn wait(host: &Host) {
    let path = host.sysroot().join("ostree/osctl/prefetch.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["next"] = 1.into();
    std::fs::write(path, state.to_string()).unwrap();
}

fn ok(host: &Host, args: &[&str]) -> String {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

#[test]
fn an_image_to_prefetch_that_cannot_be_had_is_reported_and_comes_later_into_the_same_deployment() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    // One is nowhere, of the other a layer is lost.
    bind(&world, &host, "nowhere");
    bind(&world, &host, "half");
    let layout = tempfile::tempdir().unwrap();
    Image::with_file("half", b"half").write(layout.path());
    world.registry.push_layout(layout.path(), "half:1");
    let layer = layer_digests(layout.path())[0].parse().unwrap();
    let lost = crate::registry::blob_path(&world.registry, &layer);
    std::fs::rename(&lost, lost.with_extension("away")).unwrap();
    world.push_os("2");

    let said = ok(&host, &["upgrade"]);
    assert!(said.contains("nowhere:1") && said.contains("half:1"), "{said}");
    let staged = host.deployments();
    assert_eq!(host.podman_images(), [world.registry.name("app:1")]);
    let reasons = host.status()["reasons"].to_string();
    assert!(reasons.contains("images to prefetch are missing since"), "{reasons}");

    // It is not due yet; and when it is, it can fail again.
    assert!(ok(&host, &["reconcile", "--retry"]).contains("Nothing is to be tried again now."));
    wait(&host);
    let said = ok(&host, &["reconcile", "--retry"]);
    assert!(said.contains("No image that is missing can be had now."), "{said}");

    std::fs::rename(lost.with_extension("away"), &lost).unwrap();
    world.registry.push(&Image::with_file("nowhere", b"here"), "nowhere:1");
    wait(&host);
    let said = ok(&host, &["reconcile", "--retry"]);
    assert!(said.contains("2 images that were missing: ") && said.contains("half:1"), "{said}");
    let mut images = host.podman_images();
    images.sort();
    assert_eq!(images, ["app:1", "half:1", "nowhere:1"].map(|name| world.registry.name(name)));
    assert_eq!(host.deployments(), staged, "what came is of the deployment that is there");
    assert_eq!(host.status()["reasons"].as_array().map(Vec::len), Some(0));
    assert!(ok(&host, &["reconcile", "--retry"]).contains("Nothing is to be tried again now."));
    // A set that has become whole is no other set.
    assert!(ok(&host, &["upgrade"]).contains("No changes in input."));
    assert_eq!(host.deployments(), staged);
}

#[test]
fn a_job_that_finds_the_registry_again_fills_the_deployment_and_stages_no_other() {
    let world = World::new();
    let host = world.host();
    bind(&world, &host, "late");
    ok(&host, &["reconcile"]);
    let staged = host.deployments();
    assert_eq!(host.podman_images(), [""; 0]);
    world.registry.push(&Image::with_file("late", b"late"), "late:1");
    assert!(ok(&host, &["reconcile"]).contains("No changes in input."));
    assert_eq!(host.podman_images(), [world.registry.name("late:1")]);
    assert_eq!(host.deployments(), staged);
    // One that is there is rather kept than lost when its registry is gone.
    world.registry.lose("late");
    world.push_os("2");
    ok(&host, &["upgrade"]);
    assert_ne!(host.deployments(), staged);
    assert_eq!(host.podman_images(), [world.registry.name("late:1")]);
}
