//! What is said before anything is downloaded, and that it holds.

use crate::host::{Host, World, read, text};
use crate::image::{Image, Layer, layer_digests, noise, os_layer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Everything that the registry sent, by its access log. The registry writes its line after the last byte.
fn traffic(world: &World) -> u64 {
    std::thread::sleep(Duration::from_millis(50));
    world.registry.requests().iter().map(|r| r.bytes).sum()
}

fn plan(host: &Host, args: &[&str]) -> Value {
    let out = host.osctl(&[&["plan", "--json"], args].concat());
    assert!(out.status.success(), "{}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out)))
}

fn part<'p>(plan: &'p Value, kind: &str) -> &'p Value {
    plan["parts"].as_array().unwrap().iter().find(|p| p["kind"] == kind).unwrap()
}

fn ok(host: &Host, args: &[&str]) -> String {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

/// Sizes of the layers of a layout.
fn layer_sizes(layout: &Path) -> Vec<u64> {
    let size = |digest: &String| {
        let hex = digest.trim_start_matches("sha256:");
        std::fs::metadata(layout.join("blobs/sha256").join(hex)).unwrap().len()
    };
    layer_digests(layout).iter().map(size).collect()
}

#[test]
fn a_plan_of_a_hundred_layers_and_bound_images_reads_manifests_only_and_is_what_is_then_downloaded() {
    let world = World::new();
    let host = world.host();
    let large = world.images.path().join("large");
    let mut image = Image::default().layer(os_layer("2")).label("org.opencontainers.image.version", "2");
    for i in 0..99_u8 {
        image =
            image.layer(Layer::new().file(&format!("usr/lib/part{i}"), &[noise(20_000), vec![i]].concat()));
    }
    image.created("2026-01-02T00:00:00Z").write(&large);
    world.registry.push_layout(&large, "os:stable");
    let app = world.images.path().join("large-app");
    Image::with_file("app", &noise(400_000)).layer(Layer::new().file("more", b"more")).write(&app);
    world.registry.push_layout(&app, "app:1");
    world.registry.push(&Image::with_file("other", &noise(300_000)), "other:1");
    for name in ["app", "other"] {
        let toml = format!("image = \"{}/{name}:1\"\ntls-verify = false\n", world.registry.address);
        host.bind(name, &toml);
    }
    let layers = [layer_digests(&large), layer_digests(&app)].concat();

    let image = world.os();
    let mut plans = Vec::new();
    for args in [&[][..], &[image.as_str()]] {
        world.registry.clear_log();
        plans.push(plan(&host, args));
        let sent = world.registry.blobs_sent();
        assert!(!sent.iter().any(|blob| layers.contains(blob)) && sent.len() <= 1, "{sent:?}");
        assert!(traffic(&world) < 1_000_000, "{} bytes", traffic(&world));
    }
    world.registry.clear_log();
    let check = ok(&host, &["upgrade", "--check"]);
    let sent = world.registry.blobs_sent();
    assert!(!sent.iter().any(|blob| layers.contains(blob)) && sent.len() <= 1, "{sent:?}");
    assert!(traffic(&world) < 1_000_000, "{} bytes", traffic(&world));
    assert!(check.contains("(103 of 103 layers), with 2 of 2 bound images"), "{check}");
    assert!(check.contains("Update available: 2") && check.contains("to write: about "), "{check}");

    let plan = &plans[0];
    let (os, bound) = (part(plan, "os"), part(plan, "bound"));
    let sum: u64 = layer_sizes(&large).iter().sum();
    assert_eq!((os["download"].as_u64(), os["full-download"].as_u64()), (Some(sum), Some(sum)));
    assert_eq!((&os["layers-new"], &os["layers-total"]), (&100.into(), &100.into()));
    assert_eq!(bound["download"].as_u64(), Some(layer_sizes(&app).iter().sum()));
    assert_eq!((&plan["target"]["version"], &plan["current"]["version"]), (&"2".into(), &"1".into()));
    assert!(os["estimated"] == true && os["unpacked"].as_u64().unwrap() > sum);
    assert!(part(plan, "boot")["unpacked"].as_u64().unwrap() > 0);
    assert!(plan["notes"][0].as_str().unwrap().contains("may bind other app images"), "{plan}");
    assert_eq!(plans[1]["download"], plan["download"]);

    world.registry.clear_log();
    ok(&host, &["upgrade"]);
    let manifests = 300_000;
    let (sent, said) = (traffic(&world), plan["download"].as_u64().unwrap());
    assert!((said..said + manifests).contains(&sent), "{said} bytes were planned, {sent} sent");

    let now = self::plan(&host, &[]);
    assert_eq!((&now["changed"], &now["download"], &now["unpacked"]), (&false.into(), &0.into(), &0.into()));
    assert!(now["parts"].as_array().unwrap().iter().all(|p| p["estimated"] == false), "{now}");
    assert!(now["file-systems"].as_array().unwrap().iter().all(|fs| fs["need"] == 0), "{now}");
    assert_eq!(host.osctl(&["plan", "--unchanged-exit-77"]).status.code(), Some(77));
}

#[test]
fn what_is_here_is_not_counted() {
    let world = World::new();
    let host = world.host();
    world.push_os("2");
    let sizes = layer_sizes(&world.images.path().join("os-2"));
    assert_eq!(plan(&host, &[])["download"].as_u64(), Some(sizes.iter().sum()));
    // The next version shares one layer with the one that is deployed.
    ok(&host, &["upgrade"]);
    let image = Image::default().layer(os_layer("2")).layer(Layer::new().file("usr/lib/version", b"3"));
    let shared = world.images.path().join("shared");
    image.created("2026-01-03T00:00:00Z").write(&shared);
    world.registry.push_layout(&shared, "os:stable");
    let found = plan(&host, &[]);
    let os = part(&found, "os");
    assert_eq!((&os["layers-new"], &os["layers-total"]), (&1.into(), &2.into()));
    assert_eq!(os["download"].as_u64(), Some(layer_sizes(&shared)[1]));
    // The kernel is in the layer that is here.
    assert_eq!(
        (&part(&found, "boot")["unpacked"], &part(&found, "boot")["estimated"]),
        (&0.into(), &true.into())
    );
    // Downloaded and not deployed: nothing is guessed any more, and the kernel is the one that is there.
    ok(&host, &["upgrade", "--download-only"]);
    let found = plan(&host, &[]);
    assert_eq!(
        (&found["changed"], &found["download"], &found["unpacked"]),
        (&true.into(), &0.into(), &0.into())
    );
    assert!(found["parts"].as_array().unwrap().iter().all(|p| p["estimated"] == false), "{found}");

    host.bind("app", &format!("image = \"{}/app:1\"\ntls-verify = false\n", world.registry.address));
    let found = plan(&host, &["--reconcile"]);
    assert_eq!((&found["changed"], &part(&found, "bound")["layers-new"]), (&true.into(), &1.into()));
    ok(&host, &["reconcile"]);
    drop(world);
    let found = plan(&host, &["--reconcile"]);
    assert_eq!(
        (&found["changed"], &part(&found, "bound")["download"]),
        (&false.into(), &0.into()),
        "{found}"
    );
}

/// A small file system, unmounted when dropped.
struct Full(PathBuf);

impl Full {
    /// Mounts so many KiB, of which these many are taken.
    fn mount(at: PathBuf, size: u64, taken: usize) -> Full {
        let options = format!("size={size}k");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status();
        assert!(done.unwrap().success());
        std::fs::write(at.join("ballast"), noise(taken << 10)).unwrap();
        Full(at)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_kernel_that_does_not_fit_is_refused_before_the_download_and_one_that_stays_is_not() {
    let world = World::new();
    let host = world.host();
    let boot = host.sysroot().join("boot");
    let keep = host.dir.path().join("boot");
    Command::new("cp").arg("-a").arg(&boot).arg(&keep).status().unwrap();
    let _full = Full::mount(boot.clone(), 2048, 1500);
    Command::new("cp").arg("-a").arg(keep.join(".")).arg(&boot).status().unwrap();
    let before = host.deployments();

    world.push_os("2");
    world.registry.clear_log();
    let out = host.osctl(&["upgrade"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(
        text(&out).contains("/boot has ") && text(&out).contains("nothing was downloaded"),
        "{}",
        text(&out)
    );
    assert!(world.registry.blobs_sent().len() <= 1, "only the configuration");
    let failure = host.status()["jobs"][0]["failure"].clone();
    assert_eq!((&failure["kind"], &failure["details"]["fs"]), (&"BootNoSpace".into(), &boot.to_str().into()));
    assert_eq!(host.deployments(), before);

    let image = Image::default().layer(os_layer("1")).layer(Layer::new().file("usr/lib/version", b"3"));
    world.registry.push(&image.created("2026-01-03T00:00:00Z"), "os:stable");
    ok(&host, &["upgrade"]);
}

#[test]
fn the_first_deployment_can_be_planned() {
    let world = World::new();
    let host = world.empty_host();
    let found = plan(&host, &[&world.os()]);
    assert_eq!((&found["changed"], &found["current"]), (&true.into(), &Value::Null));
    assert_eq!(found["download"], found["full-download"]);
    let out = host.osctl(&["plan"]);
    assert!(text(&out).contains("osctl rebase IMAGE"), "{}", text(&out));
}

#[test]
fn what_stands_in_the_way_is_a_line_of_the_plan_and_an_error_of_the_update() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    world.push_os("2");
    let need = plan(&host, &[])["download"].as_u64().unwrap();
    let less = (need - 1).to_string();
    let out = ok(&host, &["plan", "--max-bytes", &less]);
    assert!(out.contains("it would be refused: ") && out.contains("are allowed"), "{out}");
    world.registry.clear_log();
    let out = host.osctl(&["upgrade", "--max-bytes", &less]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains(&format!("--max-bytes {need}")), "{}", text(&out));
    assert!(world.registry.blobs_sent().len() <= 1, "only the configuration");
    assert_eq!(host.deployments(), before);
    let failure = host.status()["jobs"][0]["failure"].clone();
    assert_eq!((&failure["kind"], &failure["details"]["limit"]), (&"Rejected".into(), &less.into()));

    host.bind("app", &format!("image = \"{}/gone:1\"\ntls-verify = false\n", world.registry.address));
    let out = ok(&host, &["upgrade", "--check"]);
    assert!(out.contains("gone:1") && out.contains("it would be refused: "), "{out}");
    std::fs::remove_dir_all(host.etc().join("osctl/bound-images.d")).unwrap();
    ok(&host, &["upgrade", "--max-bytes", &need.to_string()]);
}

#[test]
fn an_image_that_only_the_new_tree_binds_counts_as_well() {
    let world = World::new();
    let host = world.host();
    let before = host.deployments();
    world.registry.push(&Image::with_file("big", &noise(500_000)), "big:1");
    let toml = format!("image = \"{}/big:1\"\ntls-verify = false\n", world.registry.address);
    let dirs = Layer::new().dir("usr/lib/osctl").dir("usr/lib/osctl/bound-images.d");
    let image = Image::default()
        .layer(os_layer("2"))
        .layer(dirs.file("usr/lib/osctl/bound-images.d/big.toml", toml.as_bytes()))
        .created("2026-01-02T00:00:00Z");
    world.registry.push(&image, "os:stable");
    let out = host.osctl(&["upgrade", "--max-bytes", "100K"]);
    assert!(text(&out).contains("are allowed; nothing was staged"), "{}", text(&out));
    assert_eq!(host.deployments(), before);
    // The tree is here now, and tells.
    assert_eq!(part(&plan(&host, &[]), "bound")["layers-new"], 1);
    ok(&host, &["upgrade", "--max-bytes", "1M"]);
}

#[test]
fn a_tag_that_moves_behind_the_plan_does_not_change_what_is_pulled() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    world.push_os("2");
    let planned = plan(&host, &[]);
    let mut child = host
        .command(&["upgrade"])
        .env("OSCTL_FAILPOINTS", "plan.check.done=stop")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let start = Instant::now();
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not stop");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.push_os("3");
    world.registry.push(&Image::with_file("app", b"moved"), "app:1");
    Command::new("kill").args(["-CONT", &child.id().to_string()]).status().unwrap();
    assert!(child.wait().unwrap().success());

    assert_eq!(read(&host.deployed(), "usr/lib/version"), "2");
    let status = host.status();
    let deployed = &status["deployments"][0];
    assert_eq!(deployed["digest"], planned["target"]["digest"]);
    assert_eq!(deployed["bound-images"][0]["digest"], part(&planned, "bound")["digest"]);
    assert_eq!(host.podman_digest("app:1"), part(&planned, "bound")["digest"].as_str().unwrap());
    ok(&host, &["upgrade"]);
    assert_eq!(read(&host.deployed(), "usr/lib/version"), "3");
}
