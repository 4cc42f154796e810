//! Layers: other images on top of the base, by digest.

use crate::host::{Host, World, read, text};
use crate::image::{Image, Layer};

/// Pushes version `n` of the tools as this tag, and returns its digest.
fn push(world: &World, tag: &str, n: &str) -> String {
    let layer = Layer::new().file("usr/lib/tools/version", n.as_bytes()).file("etc/tools.conf", n.as_bytes());
    world.registry.push(&Image::default().layer(layer), tag).to_string()
}

/// A host that puts this image on top of its base.
fn host(world: &World, tag: &str) -> Host {
    let host = world.host();
    host.drop_in("40-tools.yaml", &format!("layers: [{{image: \"{}\"}}]\n", world.registry.name(tag)));
    host
}

fn succeeds(host: &Host, args: &[&str]) -> String {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

fn fails(host: &Host, args: &[&str], why: &str) {
    let before = host.deployments();
    let out = host.osctl(args);
    assert!(!out.status.success() && text(&out).contains(why), "{args:?}: {}", text(&out));
    assert_eq!(host.deployments(), before);
}

fn tools(host: &Host) -> String {
    read(&host.deployed(), "usr/lib/tools/version")
}

#[test]
fn a_layer_stays_at_its_digest_until_somebody_upgrades() {
    let world = World::new();
    let one = push(&world, "tools:1", "one");
    let host = host(&world, "tools:1");
    succeeds(&host, &["reconcile"]);
    assert_eq!((tools(&host).as_str(), read(&host.deployed(), "etc/tools.conf").as_str()), ("one", "one"));
    let image = world.registry.name("tools:1");
    let request = host.status()["deployments"][0]["derivation"]["packages"][0].clone();
    assert_eq!((&request["request"], &request["asked"]), (&image.clone().into(), &"layer".into()));
    assert_eq!((&request["version"], &request["owners"][0]), (&one.into(), &"40-tools.yaml".into()));
    assert!(succeeds(&host, &["status"]).contains("Deviates: 1 layer"));
    assert!(succeeds(&host, &["why", &image]).contains("40-tools.yaml"));

    let two = push(&world, "tools:1", "two");
    assert!(succeeds(&host, &["reconcile"]).contains("No changes in input."));
    host.drop_in("50-file.yaml", "files: [{path: /usr/lib/more, contents: {inline: x}}]\n");
    succeeds(&host, &["reconcile"]);
    assert_eq!(tools(&host), "one");
    succeeds(&host, &["upgrade"]);
    assert_eq!(tools(&host), "two");
    let lock = succeeds(&host, &["lock", "export"]);
    assert!(lock.contains(&two) && lock.contains(&image), "{lock}");

    // Nothing of it is fetched again to derive from it.
    world.registry.lose("tools");
    host.drop_in("50-file.yaml", "files: [{path: /usr/lib/other, contents: {inline: x}}]\n");
    succeeds(&host, &["reconcile"]);
    assert_eq!(tools(&host), "two");
    std::fs::remove_file(host.etc().join("osctl/derive.d/40-tools.yaml")).unwrap();
    succeeds(&host, &["reconcile"]);
    assert!(!host.deployed().join("usr/lib/tools").exists());
    host.fsck();
}

#[test]
fn the_same_layer_gives_the_same_commit_on_two_hosts_and_a_lock_brings_it_to_a_third() {
    let world = World::new();
    push(&world, "tools:1", "one");
    let hosts = [host(&world, "tools:1"), host(&world, "tools:1")];
    hosts.iter().for_each(|host| drop(succeeds(host, &["reconcile"])));
    let commit = |host: &Host| host.deployments()[0].split('.').next().unwrap().to_owned();
    assert_eq!(commit(&hosts[0]), commit(&hosts[1]));

    let lock = hosts[0].osctl(&["lock", "export"]).stdout;
    let mut without: serde_json::Value = serde_json::from_slice(&lock).unwrap();
    without["images"] = serde_json::json!({});
    std::fs::write(hosts[1].etc().join("osctl/derive.lock"), without.to_string()).unwrap();
    fails(&hosts[1], &["reconcile", "--frozen"], "it does not have the images that are asked for");
    push(&world, "tools:1", "two");
    let third = host(&world, "tools:1");
    std::fs::write(third.etc().join("osctl/derive.lock"), lock).unwrap();
    succeeds(&third, &["reconcile", "--frozen"]);
    assert_eq!((tools(&third).as_str(), commit(&third)), ("one", commit(&hosts[0])));
}

#[test]
fn a_layer_can_be_named_by_what_the_base_says_of_itself() {
    let world = World::new();
    push(&world, "tools:1", "for 1");
    push(&world, "tools:2", "for 2");
    let host = host(&world, "tools:{version}");
    succeeds(&host, &["reconcile"]);
    assert_eq!(tools(&host), "for 1");
    world.push_os("2");
    succeeds(&host, &["upgrade"]);
    assert_eq!((tools(&host).as_str(), read(&host.deployed(), "usr/lib/version").as_str()), ("for 2", "2"));
    host.drop_in("40-tools.yaml", "layers: [{image: 'r.io/tools:{label:nope}'}]\n");
    fails(&host, &["reconcile"], "the base image has no label nope");
}

#[test]
fn a_layer_that_cannot_be_had_is_that_of_before_or_left_out_or_the_end() {
    let world = World::new();
    push(&world, "tools:1", "one");
    let host = host(&world, "tools:1");
    succeeds(&host, &["reconcile"]);
    world.registry.lose("tools");
    world.push_os("2");
    let said = succeeds(&host, &["upgrade"]);
    assert!(said.contains("those of before") && said.contains("40-tools.yaml"), "{said}");
    assert_eq!((tools(&host).as_str(), read(&host.deployed(), "usr/lib/version").as_str()), ("one", "2"));
    assert_eq!(host.osctl(&["status", "--fail-if-degraded"]).status.code(), Some(6));

    let tools_image = world.registry.name("tools:1");
    let one = |policy: &str| format!("layers: [{{image: \"{tools_image}\"}}]\non-unavailable: {policy}\n");
    host.drop_in("40-tools.yaml", &one("fail"));
    fails(&host, &["reconcile", "--update-lock"], "cannot be had");
    host.drop_in("40-tools.yaml", &one("skip"));

    // One that was never here has nothing of before, and others are not left out with it.
    let image = world.registry.name("gone:1");
    let drop_in =
        |policy: &str| host.drop_in("60-gone.yaml", &format!("layers: [{{image: \"{image}\"}}]\n{policy}"));
    push(&world, "tools:1", "one");
    drop_in("");
    fails(&host, &["reconcile"], "the image docker://");
    drop_in("on-unavailable: fail\n");
    fails(&host, &["reconcile"], "cannot be had");
    drop_in("on-unavailable: skip\n");
    assert!(succeeds(&host, &["reconcile"]).contains("60-gone.yaml"));
    assert_eq!(tools(&host), "one");
}

#[test]
fn a_layer_replaces_files_of_the_base_only_if_it_is_told_to() {
    let world = World::new();
    let layer = Layer::new().file("usr/lib/version", b"of the layer");
    world.registry.push(&Image::default().layer(layer), "tools:1");
    let host = host(&world, "tools:1");
    fails(&host, &["reconcile"], "would replace files of the base: /usr/lib/version");
    let image = world.registry.name("tools:1");
    host.drop_in("40-tools.yaml", &format!("layers: [{{image: \"{image}\", overwrite: true}}]\n"));
    succeeds(&host, &["reconcile"]);
    assert_eq!(read(&host.deployed(), "usr/lib/version"), "of the layer");
    // The image of an OS is none to put on top of another, but what is the same changes nothing.
    let os = format!("layers: [{{image: \"{}\"}}]\n", world.os());
    host.drop_in("40-tools.yaml", &os);
    succeeds(&host, &["reconcile"]);
    world.push_os("2");
    fails(&host, &["reconcile", "--update-lock"], "never changed by drop-ins: /usr/lib/modules/6.1/vmlinuz");
}

#[test]
fn a_policy_can_forbid_layers() {
    let world = World::new();
    push(&world, "tools:1", "one");
    let host = host(&world, "tools:1");
    std::fs::create_dir_all(host.etc().join("osctl/policy.d")).unwrap();
    std::fs::write(host.etc().join("osctl/policy.d/1.toml"), "allow.layers = []\n").unwrap();
    fails(&host, &["reconcile"], "is forbidden by /etc/osctl/policy.d/1.toml");
}
