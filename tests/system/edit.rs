//! `osctl kargs` and its like: a drop-in is edited and applied, both or neither.

use crate::host::{Host, World, text};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

fn file(host: &Host) -> PathBuf {
    host.etc().join("osctl/derive.d/90-osctl.yaml")
}

fn declared(host: &Host) -> Option<String> {
    std::fs::read_to_string(file(host)).ok()
}

fn refused(host: &Host, args: &[&str], code: i32, wanted: &str) {
    let before = (host.deployments(), declared(host));
    let out = host.osctl(args);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out));
    assert!(text(&out).contains(wanted), "{args:?}: {}", text(&out));
    assert_eq!((host.deployments(), declared(host)), before, "{args:?}");
}

fn ok(host: &Host, args: &[&str]) -> String {
    let out = host.osctl(args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

#[test]
fn an_argument_comes_and_goes_with_its_line_in_the_drop_in() {
    let world = World::new();
    let host = world.host();
    let said = ok(&host, &["kargs", "--append=nosmt", "--append-if-missing=quiet"]);
    assert!(said.contains("90-osctl.yaml: added nosmt (kernel-arguments.append)"), "{said}");
    assert!(host.boot_entry().contains(" nosmt quiet"), "{}", host.boot_entry());
    let first = declared(&host).unwrap();
    assert!(first.starts_with("# ") && first.ends_with("append:\n    - nosmt\n    - quiet\n"), "{first}");
    assert_eq!(ok(&host, &["kargs"]).lines().nth(1), Some("root=LABEL=root nosmt quiet"));
    assert!(ok(&host, &["kargs", "--owner"]).contains("nosmt (90-osctl.yaml)\n"));

    // What a person writes into it stays.
    std::fs::write(file(&host), first.replace("- nosmt", "- nosmt   # for the auditors")).unwrap();
    ok(&host, &["kargs", "--delete=quiet", "--replace=nosmt=force"]);
    assert!(declared(&host).unwrap().contains("    # for the auditors\n    - nosmt=force\n"));
    assert!(host.boot_entry().contains(" nosmt=force"), "{}", host.boot_entry());
    assert_eq!(host.status()["pending-changes"].as_array().unwrap().len(), 0);

    refused(&host, &["kargs", "--append=nosmt=force"], 1, "is already there");
    assert!(ok(&host, &["kargs", "--append=nosmt=force", "--idempotent"]).contains("No changes in input."));
    refused(&host, &["kargs", "--delete=absent"], 1, "there is no kernel argument absent");
    let before = (host.deployments(), declared(&host));
    let said = ok(&host, &["kargs", "-n", "--append=later"]);
    assert!(said.contains("add kernel argument later (90-osctl.yaml)"), "{said}");
    assert_eq!((host.deployments(), declared(&host)), before);
}

#[test]
fn what_makes_no_sense_or_belongs_to_another_drop_in_changes_nothing() {
    let world = World::new();
    let host = world.host();
    host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\npackages: [theirs]\n");
    refused(
        &host,
        &["uninstall", "theirs"],
        1,
        "package theirs is requested by 60-args.yaml, which is not edited",
    );
    refused(&host, &["install", "theirs"], 1, "already requested by 60-args.yaml");
    refused(&host, &["kargs", "--append=nosmt"], 1, "is already there");
    refused(&host, &["install", "./agent.deb"], 2, "is not the name of a package");
    refused(&host, &["kargs", "--append=root=x"], 2, "`root=` belongs to the installation");
    refused(&host, &["install", "-A", "agent"], 1, "--apply-live is not served");
    host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\n");
    // These trees have no package manager: the job fails, and with it the edit.
    refused(&host, &["install", "agent"], 1, "");
    assert_eq!(declared(&host), None);
    host.drop_in("90-osctl.yaml", "packages: &anchor [a]\n");
    refused(&host, &["kargs", "--append=x"], 1, "90-osctl.yaml:1");
    std::fs::remove_file(file(&host)).unwrap();
    std::os::unix::fs::symlink("/dev/null", file(&host)).unwrap();
    refused(&host, &["kargs", "--append=x"], 1, "is masked");
}

#[test]
fn a_drop_in_that_is_written_while_the_job_runs_is_not_lost() {
    let world = World::new();
    let host = world.host();
    let mut job = host.command(&["kargs", "--append=nosmt"]);
    let child = job
        .env("OSCTL_FAILPOINTS", "bind.discover=stop")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let stat = format!("/proc/{}/stat", child.id());
    let stopped =
        || std::fs::read_to_string(&stat).is_ok_and(|s| s.rsplit(") ").next().unwrap_or("").starts_with('T'));
    while !stopped() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mine = "kernel-arguments: {append: [mine]}\n";
    host.drop_in("90-osctl.yaml", mine);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("was changed while the job ran; nothing was staged"), "{}", text(&out));
    assert_eq!((host.deployments().len(), declared(&host).as_deref()), (1, Some(mine)));
}

#[test]
fn everything_that_a_drop_in_brought_is_counted_and_traced_back_to_it() {
    let world = World::new();
    let host = world.host();
    assert!(!ok(&host, &["status"]).contains("Deviates"));
    refused(&host, &["why", "/etc/agent.conf"], 1, "is about \"/etc/agent.conf\"");
    world.declare(&host);
    ok(&host, &["reconcile"]);
    let status = ok(&host, &["status"]);
    assert!(status.contains("Deviates: 1 file, 1 unit, 1 kernel argument\n"), "{status}");
    let why = |name: &str| ok(&host, &["why", name, "--deployment", "0"]);
    assert!(why("/etc/agent.conf").contains("/etc/agent.conf: added (50-agent.yaml)\n"));
    assert!(why("agent.service").contains("unit agent.service: enabled (50-agent.yaml)\n"));
    assert!(why("nosmt").contains("kernel argument nosmt: appended (60-args.yaml)\n"));
    assert!(why("root").contains("kernel argument root=LABEL=root: this host's own\n"));
    refused(&host, &["why", "/usr/lib/version", "--deployment", "0"], 1, "no drop-in of ");
}

/// Cuts an edit at each point from the first visible effect on.
fn cut_at(action: &str) {
    let world = World::new();
    for point in
        ["intent", "publish", "record"].iter().flat_map(|p| [format!("stage.{p}"), format!("stage.{p}.done")])
    {
        let host = world.host();
        let old = "# mine\nkernel-arguments: {append: [old]}\n";
        host.drop_in("90-osctl.yaml", old);
        ok(&host, &["reconcile"]);
        let before = host.deployments();
        let out = host.osctl_with(&format!("{point}={action}"), &["kargs", "--append=new"]);
        let what = format!("{point}={action}: {}", text(&out));
        if action == "kill" {
            assert_eq!(out.status.signal(), Some(9), "the point was not passed, {what}");
        }
        // Whatever works on the sysroot next settles what was left.
        ok(&host, &["reconcile", "--check"]);
        let published = host.deployments() != before;
        let expected = if published { "# mine\nkernel-arguments: {append: [old, new]}\n" } else { old };
        assert_eq!(declared(&host).as_deref(), Some(expected), "{what}");
        assert_eq!(host.boot_entry().contains(" new"), published, "{what}");
        assert_eq!(host.status()["pending-changes"].as_array().unwrap().len(), 0, "{what}");
        if published {
            assert!(
                ok(&host, &["kargs", "--append-if-missing=new"]).contains("No changes in input."),
                "{what}"
            );
        } else {
            ok(&host, &["kargs", "--append=new"]);
        }
        host.fsck();
    }
}

#[test]
fn an_edit_that_is_cut_off_is_in_the_file_and_in_the_deployment_or_in_neither() {
    cut_at("error");
    cut_at("kill");
}
