//! Every failpoint, once as an error and once as SIGKILL of the whole process group.

use crate::host::{World, text};
use crate::image::{Image, layer_digests};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

fn names() -> Vec<String> {
    let out = Command::new(env!("CARGO_BIN_EXE_osctld")).arg("--list-failpoints").output().unwrap();
    assert!(out.status.success());
    let all = String::from_utf8(out.stdout).unwrap();
    // Those of a build of an image: `build.rs`; of a verify: `verify.rs`; of a bundle: `bundle.rs`. Packages: integration/packages-test.sh.
    let others =
        ["resolve.bundle", "pull.image", "export.", "verify.content", "verify.forget", "verify.repair"];
    let of_others = |name: &&str| others.iter().any(|other| name.starts_with(other));
    all.lines().filter(|name| !of_others(name)).map(str::to_owned).collect()
}

/// Cuts an upgrade at each of these points: the deployments are the old set or the new set, never another,
/// and the next run completes without fetching again what was complete.
fn cut_at(points: &[String], action: &str) {
    let world = World::new();
    let (layers, app) = reference(&world);
    let tools = world.images.path().join("tools");
    Image::with_file("usr/lib/tools", b"tools").write(&tools);
    world.registry.push_layout(&tools, "tools:1");
    let tools = layer_digests(&tools);
    for point in points {
        let host = world.host();
        let before = host.deployments();
        world.declare(&host);
        host.drop_in(
            "40-tools.yaml",
            &format!("layers: [{{image: \"{}\"}}]\n", world.registry.name("tools:1")),
        );
        world.push_os("2");
        world.registry.clear_log();
        let out = host.osctl_with(&format!("{point}={action}"), &["upgrade"]);
        let what = format!("{point}={action}: {}", text(&out));
        if action == "kill" {
            assert_eq!(out.status.signal(), Some(9), "the point was not passed, {what}");
        } else {
            assert!(text(&out).contains(&format!("failpoint {point}")), "{what}");
        }
        let after = host.deployments();
        let new_set = after.len() == 2 && after[1] == before[0];
        if action == "error" {
            // What was published is not called a failure, although something went wrong on the way.
            assert_eq!(out.status.code(), Some(i32::from(!new_set)), "{what}");
        }
        assert!(after == before || new_set, "{before:?} became {after:?}, {what}");
        if new_set {
            assert!(
                host.podman_images().iter().any(|i| i.ends_with("app:1")),
                "staged without its image, {what}"
            );
        }
        host.fsck();
        let first = world.registry.blobs_sent();
        world.registry.clear_log();
        let retry = host.osctl(&["upgrade"]);
        assert!(retry.status.success(), "{what}\nretry: {}", text(&retry));
        let second = world.registry.blobs_sent();
        let final_set = host.deployments();
        assert_eq!((final_set.len(), &final_set[1]), (2, &before[0]), "{what}");
        host.fsck();
        assert!(host.podman_images().iter().any(|i| i.ends_with("app:1")), "{what}");
        let is_content = |d: &&String| layers.contains(d) || app.contains(d) || tools.contains(d);
        for digest in second.iter().filter(is_content) {
            assert!(!first.contains(digest), "{digest} was complete and was fetched again after {what}");
        }
        world.push_os("1");
    }
}

/// The layer digests of version 2 and of the app.
fn reference(world: &World) -> (Vec<String>, Vec<String>) {
    world.push_os("2");
    let layers = |dir: &str| layer_digests(&world.images.path().join(dir));
    let digests = (layers("os-2"), layers("app"));
    world.push_os("1");
    digests
}

fn half(second: bool) -> Vec<String> {
    let names = names();
    assert!(names.len() >= 36, "{names:?}");
    let (a, b) = names.split_at(names.len() / 2);
    if second { b.to_vec() } else { a.to_vec() }
}

#[test]
fn an_error_in_the_first_half_of_the_pipeline_leaves_the_old_or_the_new_set() {
    cut_at(&half(false), "error");
}

#[test]
fn an_error_in_the_second_half_of_the_pipeline_leaves_the_old_or_the_new_set() {
    cut_at(&half(true), "error");
}

#[test]
fn a_kill_in_the_first_half_of_the_pipeline_leaves_the_old_or_the_new_set() {
    cut_at(&half(false), "kill");
}

#[test]
fn a_kill_in_the_second_half_of_the_pipeline_leaves_the_old_or_the_new_set() {
    cut_at(&half(true), "kill");
}

/// Cuts a rollback at each of its points: either nothing happened, or all of it, the rejection included.
fn cut_rollback_at(action: &str) {
    let world = World::new();
    for point in names().iter().filter(|n| n.starts_with("stage.")) {
        let host = world.host();
        let v1 = host.deployments()[0].clone();
        world.push_os("2");
        assert!(host.osctl(&["upgrade"]).status.success());
        let before = host.deployments();
        let out = host.osctl_with(&format!("{point}={action}"), &["rollback"]);
        let what = format!("{point}={action}: {}", text(&out));
        let rolled_back = host.deployments()[0] == v1;
        assert_eq!(out.status.success(), rolled_back && action == "error", "{what}");
        assert_eq!(host.deployments().len(), before.len(), "{what}");
        // Whatever works on the sysroot next settles what was left; looking does not wait for that.
        assert!(host.osctl(&["reconcile", "--check"]).status.success());
        let rejected = host.status()["rejected"].as_array().unwrap().len();
        assert_eq!(rejected, usize::from(rolled_back), "{what}");
        if !rolled_back {
            assert!(host.osctl(&["rollback"]).status.success(), "{what}");
            assert_eq!(host.deployments()[0], v1, "{what}");
        }
        host.fsck();
        world.push_os("1");
    }
}

#[test]
fn a_rollback_that_is_cut_off_happened_with_its_rejection_or_not_at_all() {
    cut_rollback_at("error");
    cut_rollback_at("kill");
}
