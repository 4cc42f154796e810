//! `osctl adopt` and `osctl release`: hosts of other tools, by the origin files that those write.

use crate::host::{Host, World, read, text};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

fn origin_file(host: &Host, index: usize) -> PathBuf {
    host.sysroot().join("ostree/deploy/test/deploy").join(format!("{}.origin", host.deployments()[index]))
}

fn origin(host: &Host) -> String {
    std::fs::read_to_string(origin_file(host, 0)).unwrap()
}

fn adopted(host: &Host) -> Option<String> {
    std::fs::read_to_string(host.etc().join("osctl/derive.d/50-adopted.yaml")).ok()
}

/// Gives the deployment the origin that another tool would have written.
fn foreign(world: &World, host: &Host, keys: &str) {
    let reference = format!("ostree-unverified-registry:{}", world.os());
    let text = format!("[origin]\ncontainer-image-reference={reference}\n{keys}");
    std::fs::write(origin_file(host, 0), text).unwrap();
}

fn ok(host: &Host, args: &[&str]) -> String {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

fn refused(host: &Host, args: &[&str], code: i32, wanted: &str) {
    let state = || (host.deployments(), origin(host), adopted(host), host.boot_entry());
    let before = state();
    let out = host.osctl(args);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out));
    assert!(text(&out).contains(wanted), "{args:?}: {}", text(&out));
    assert_eq!(state(), before, "{args:?}");
}

fn json(host: &Host, args: &[&str]) -> serde_json::Value {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out)))
}

#[test]
fn a_plain_host_of_another_tool_becomes_ours_with_the_same_image() {
    let world = World::new();
    let host = world.host();
    let digest = host.status()["deployments"][0]["digest"].clone();
    foreign(&world, &host, "custom-url=https://example.com\n");
    world.push_os("2");
    refused(&host, &["upgrade"], 1, "osctl adopt --dry-run");

    let said = ok(&host, &["adopt", "--dry-run"]);
    assert!(said.contains("Dropped:\n  origin/custom-url https://example.com: "), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(host.deployments().len(), 1);

    let before = host.boot_entry();
    let said = ok(&host, &["adopt"]);
    assert!(said.contains("dropped origin/custom-url"), "{said}");
    assert_eq!(host.deployments().len(), 2);
    let arguments = |entry: &str| {
        let line = entry.lines().find(|l| l.starts_with("options ")).unwrap();
        line.split_whitespace().filter(|a| !a.starts_with("ostree=")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(arguments(&host.boot_entry()), arguments(&before));
    let status = host.status();
    assert_eq!(status["deployments"][0]["digest"], digest, "it is no upgrade");
    assert_eq!(status["deployments"][0]["incompatible"].as_array().unwrap().len(), 0);
    assert!(origin(&host).contains("[osctl]") && !origin(&host).contains("custom-url"), "{}", origin(&host));
    assert_eq!(adopted(&host), None);
    host.fsck();

    assert!(ok(&host, &["adopt"]).contains("Nothing to do: osctl manages this host."));
    assert_eq!(json(&host, &["adopt", "--json"])["to"], "osctl");
    ok(&host, &["upgrade"]);
    assert_eq!(read(&host.deployed(), "usr/lib/version"), "2");
}

#[test]
fn drop_ins_that_are_there_already_are_applied_with_the_take_over() {
    let world = World::new();
    let host = world.host();
    foreign(&world, &host, "");
    world.declare(&host);
    ok(&host, &["adopt"]);
    assert_eq!(read(&host.deployed(), "etc/agent.conf"), "mode=on\n");
    assert!(host.boot_entry().contains(" nosmt"), "{}", host.boot_entry());
    assert!(origin(&host).contains("unconfigured-state="), "{}", origin(&host));
    assert!(host.podman_images().iter().any(|i| i.ends_with("app:1")));
}

#[test]
fn what_cannot_be_taken_over_is_refused_by_name_and_nothing_changes() {
    let world = World::new();
    let host = world.host();
    let sum = "0".repeat(64);
    for (keys, wanted) in [
        ("[bootc]\nsoft-reboot=auto\n", "bootc/soft-reboot=auto: osctl does not know"),
        ("[packages]\nfuture=x\n", "packages/future=x: osctl does not know"),
        ("refspec=fedora:x\n", "origin/refspec=fedora:x"),
        ("[rpmostree]\nregenerate-initramfs=true\n", "rpmostree/regenerate-initramfs true"),
        (
            &*format!("[packages]\nrequested-local={sum}:agent-1-2.x86_64;\n"),
            "requested-local agent-1-2.x86_64",
        ),
    ] {
        foreign(&world, &host, keys);
        let name = host.status()["deployments"][0]["incompatible"][0].as_str().unwrap().to_owned();
        assert!(wanted.contains(name.rsplit('/').next().unwrap()), "{name} is shown");
        for verb in ["upgrade", "reconcile", "release"] {
            refused(&host, &[verb], 1, &name);
        }
        refused(&host, &["adopt"], 1, wanted);
    }
    // What would be lost is said, and lost only if somebody agrees.
    let lost = json(&host, &["adopt", "--dry-run", "--json"])["lost"].clone();
    assert_eq!(lost[0]["what"], "packages/requested-local agent-1-2.x86_64");
    ok(&host, &["adopt", "--lossy"]);
    assert!(
        origin(&host).contains("[osctl]") && !origin(&host).contains("requested-local"),
        "{}",
        origin(&host)
    );
}

#[test]
fn a_take_over_that_fails_leaves_origin_drop_ins_and_deployments_as_they_were() {
    let world = World::new();
    let host = world.host();
    foreign(&world, &host, "[packages]\nrequested=vim;\n[overrides]\nremove=moby-engine;\n");
    let plan = json(&host, &["adopt", "--dry-run", "--json"]);
    let contents = plan["drop-in"]["contents"].as_str().unwrap();
    assert!(contents.ends_with("packages:\n  - 'vim'\noverride-remove:\n  - 'moby-engine'\n"), "{contents}");
    // These trees have no package manager.
    refused(&host, &["adopt"], 1, "");
    assert!(!host.etc().join("osctl/derive.d").exists() || adopted(&host).is_none());
    host.drop_in("50-adopted.yaml", "kernel-arguments: {append: [mine]}\n");
    refused(&host, &["adopt"], 1, "50-adopted.yaml is there already");
    host.fsck();
}

#[test]
fn a_base_that_is_gone_is_no_base_to_take_over() {
    let world = World::new();
    let host = world.host();
    // What rpm-ostree makes of a base: a commit on top that says so.
    let repo = format!("--repo={}", host.sysroot().join("ostree/repo").display());
    let base = host.deployments()[0].split('.').next().unwrap().to_owned();
    let layered = |parent: &str| {
        let tree = format!("--tree=ref={base}");
        let commit = host.ostree(&[
            "commit",
            &repo,
            "--orphan",
            "--bootable",
            "--add-metadata=rpmostree.clientlayer=true",
            &format!("--parent={parent}"),
            &tree,
            "-s",
            parent,
        ]);
        commit.trim().to_owned()
    };
    let sysroot = format!("--sysroot={}", host.sysroot().display());
    let deploy = |commit: &str| {
        host.ostree(&["admin", "deploy", &sysroot, "--os=test", "--karg-append=x", commit]);
        foreign(&world, &host, "");
    };
    deploy(&layered(&base));
    ok(&host, &["adopt"]);
    assert_eq!(host.deployments()[0].split('.').next().unwrap(), base, "the base without the layer");
    deploy(&layered(&"0".repeat(64)));
    refused(&host, &["adopt"], 1, "is not in the repository any more");
}

#[test]
fn a_host_is_handed_back_with_an_origin_that_others_take() {
    let world = World::new();
    let host = world.host();
    world.declare(&host);
    ok(&host, &["reconcile"]);
    refused(&host, &["release"], 2, "neither rpm-ostree nor bootc");
    refused(&host, &["release", "--to", "dnf"], 2, "handed back to \"dnf\"");
    refused(
        &host,
        &["release", "--to", "bootc"],
        1,
        "bootc cannot express what this host has: path /etc/agent.conf",
    );
    let said = ok(&host, &["release", "--to", "rpm-ostree", "--dry-run"]);
    for line in [
        "Lost (needs --lossy):\n  path /etc/agent.conf: 50-agent.yaml declares it",
        "  bound image docker://",
        "  kernel argument nosmt: it is the host's own from then on; 60-args.yaml has put it there",
        "Note: the drop-ins stay where they are",
    ] {
        assert!(said.contains(line), "{line} is missing in {said}");
    }
    let (before, base) =
        (host.deployments(), host.status()["deployments"][0]["base-checksum"].as_str().unwrap().to_owned());

    let said = ok(&host, &["release", "--to", "bootc", "--lossy"]);
    assert!(said.contains("lost path /etc/agent.conf"), "{said}");
    let after = host.deployments();
    assert_eq!((after[0].split('.').next().unwrap(), &after[1]), (&*base, &before[0]));
    let image =
        format!("[origin]\ncontainer-image-reference=ostree-unverified-image:docker://{}\n", world.os());
    assert_eq!(origin(&host), image, "bootc and rpm-ostree refuse other groups, and unconfigured-state");
    assert!(!host.deployed().join("etc/agent.conf").exists());
    assert!(host.boot_entry().contains(" nosmt"), "{}", host.boot_entry());
    assert!(host.etc().join("osctl/derive.d/50-agent.yaml").exists());
    host.fsck();
    refused(&host, &["release", "--to", "bootc"], 1, "osctl does not manage");

    // And back again, with the drop-ins, which have stayed.
    ok(&host, &["adopt"]);
    assert_eq!(read(&host.deployed(), "etc/agent.conf"), "mode=on\n");
    assert!(host.status()["deployments"][0]["derivation"]["kargs"].to_string().contains("nosmt"));
}

/// Cuts the verb at each point from the first visible effect on: the host is the one's or the other's.
fn cut_at(action: &str) {
    let world = World::new();
    let points = ["intent", "publish", "record"];
    for point in points.iter().flat_map(|p| [format!("stage.{p}"), format!("stage.{p}.done")]) {
        let host = world.host();
        foreign(&world, &host, "");
        let cut = |args: &[&str]| {
            let before = (host.deployments(), origin(&host));
            let out = host.osctl_with(&format!("{point}={action}"), args);
            let what = format!("{point}={action} {args:?}: {}", text(&out));
            if action == "kill" {
                assert_eq!(out.status.signal(), Some(9), "the point was not passed, {what}");
            }
            let published = host.deployments().len() > before.0.len() || host.deployments()[0] != before.0[0];
            assert_eq!(origin(&host) != before.1, published, "{what}");
            host.fsck();
            published
        };
        if !cut(&["adopt"]) {
            ok(&host, &["adopt"]);
        }
        assert!(origin(&host).contains("[osctl]"), "{point}={action}");
        if !cut(&["release", "--to", "bootc"]) {
            ok(&host, &["release", "--to", "bootc"]);
        }
        assert!(!origin(&host).contains("[osctl]"), "{point}={action}");
    }
}

#[test]
fn a_take_over_or_a_release_that_is_cut_off_happened_or_did_not() {
    cut_at("error");
    cut_at("kill");
}
