use super::super::take::{self, Take};
use super::super::testing::*;
use super::*;
use cap_std_ext::cap_std::ambient_authority;
use ostree_ext::ostree;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A local change, or an entry of a default tree.
#[derive(Clone, Copy, Debug)]
enum Do {
    Write(&'static str, &'static str),
    Mode(&'static str, u32),
    Dir(&'static str),
    Link(&'static str, &'static str),
    Remove(&'static str),
    Fifo(&'static str),
}
use Do::*;

fn apply(root: &Path, ops: &[Do]) {
    for op in ops {
        match *op {
            Write(path, text) => {
                std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
                std::fs::write(root.join(path), text).unwrap();
            }
            Mode(path, mode) => {
                std::fs::set_permissions(root.join(path), PermissionsExt::from_mode(mode)).unwrap()
            }
            Dir(path) => std::fs::create_dir_all(root.join(path)).unwrap(),
            Link(path, target) => std::os::unix::fs::symlink(target, root.join(path)).unwrap(),
            Remove(path) => match std::fs::remove_file(root.join(path)) {
                Ok(()) => (),
                Err(_) => std::fs::remove_dir_all(root.join(path)).unwrap(),
            },
            Fifo(path) => drop(run("mkfifo", &[root.join(path).to_str().unwrap()])),
        }
    }
}

/// The directories of a deployment: `live` and `defaults`.
struct Host(tempfile::TempDir);

impl Host {
    fn new(defaults: &[Do], local: &[Do]) -> Host {
        let dir = tempfile::tempdir().unwrap();
        for name in ["live", "defaults"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            apply(&dir.path().join(name), defaults);
        }
        apply(&dir.path().join("live"), local);
        Host(dir)
    }

    fn open(&self, name: &str) -> cap_std_ext::cap_std::fs::Dir {
        cap_std_ext::cap_std::fs::Dir::open_ambient_dir(self.0.path().join(name), ambient_authority())
            .unwrap()
    }

    fn plan(&self, tree: &CommitTree, manifest: &Manifest) -> Result<EtcPlan> {
        let (live, defaults) = (self.open("live"), self.open("defaults"));
        plan(Some(Previous { live: &live, defaults: &defaults }), tree, manifest)
    }
}

fn etc(ops: &[Do]) -> Vec<(String, Base<'static>)> {
    let entry = |op: &Do| match *op {
        Write(path, text) => (format!("usr/etc/{path}"), Base::File(0o644, text)),
        Dir(path) => (format!("usr/etc/{path}"), Base::Dir(0o755)),
        Link(path, target) => (format!("usr/etc/{path}"), Base::Link(target)),
        Mode(..) | Remove(_) | Fifo(_) => panic!("{op:?} is a local change"),
    };
    ops.iter().map(entry).collect()
}

/// What the merge can replay, and what not: (name, old defaults, local changes, new defaults, failing paths).
type Case = (&'static str, &'static [Do], &'static [Do], &'static [Do], &'static [&'static str]);

const MERGES: &[Case] = &[
    ("nothing local", &[Write("a", "1")], &[], &[Dir("a")], &[]),
    ("modified file", &[Write("a", "1")], &[Write("a", "2")], &[Write("a", "3")], &[]),
    (
        "modified file, new directory",
        &[Write("a", "1")],
        &[Write("a", "2")],
        &[Write("a/b", "3")],
        &["/etc/a"],
    ),
    ("added file, new directory", &[], &[Write("a", "2")], &[Write("a/b", "3")], &["/etc/a"]),
    ("added link, new directory", &[], &[Link("a", "b")], &[Dir("a")], &["/etc/a"]),
    (
        "modified below a new file",
        &[Write("d/x", "1")],
        &[Write("d/x", "2")],
        &[Write("d", "3")],
        &["/etc/d/x"],
    ),
    ("removed below a new file", &[Write("d/x", "1")], &[Remove("d/x")], &[Write("d", "3")], &["/etc/d/x"]),
    (
        "added below a new file",
        &[Dir("d")],
        &[Write("d/e/x", "2")],
        &[Write("d", "3")],
        &["/etc/d/e", "/etc/d/e/x"],
    ),
    ("removed directory, new file", &[Write("d/x", "1")], &[Remove("d")], &[Write("d", "3")], &[]),
    ("added directory, new file", &[], &[Write("d/x", "2")], &[Write("d", "3")], &[]),
    ("parent is gone", &[Write("d/x", "1")], &[Write("d/x", "2")], &[], &[]),
    ("file became directory", &[Write("a", "1")], &[Remove("a"), Write("a/b", "2")], &[Write("a", "3")], &[]),
    (
        "both became directories",
        &[Write("a", "1")],
        &[Remove("a"), Write("a/b", "2")],
        &[Write("a/c", "3")],
        &[],
    ),
    ("pipe", &[], &[Fifo("p")], &[], &[]),
    ("pipe, new directory", &[], &[Fifo("p")], &[Dir("p")], &["/etc/p"]),
    (
        "directory changed too",
        &[Write("d/x", "1")],
        &[Mode("d", 0o700), Write("d/x", "2")],
        &[Write("d", "3")],
        &[],
    ),
];

#[test]
fn the_simulation_names_what_cannot_be_merged() {
    for (name, old, local, new, failing) in MERGES {
        let scratch = Scratch::with(ostree::RepoMode::Bare, etc(new));
        let tree = CommitTree::open(&scratch.repo, &scratch.base).unwrap();
        let found = Host::new(old, local).plan(&tree, &Manifest::default());
        let paths = match &found {
            Ok(_) => Vec::new(),
            Err(e) => e.details["merge"].split('\n').collect(),
        };
        assert_eq!(paths, *failing, "{name}");
    }
}

/// The same table, asked from libostree: a real merge fails exactly where the simulation says so.
#[test]
fn libostree_fails_exactly_where_the_simulation_does() {
    for (name, old, local, new, failing) in MERGES {
        let dir = tempfile::tempdir().unwrap();
        let sysroot = dir.path().to_str().unwrap();
        let at = format!("--sysroot={sysroot}");
        run("ostree", &["admin", "init-fs", sysroot]);
        run("ostree", &["admin", &at, "os-init", "test"]);
        let repo = ostree::Repo::new_for_path(dir.path().join("ostree/repo"));
        repo.open(NONE).unwrap();
        let deploy = |entries: &[Do]| {
            let mut all = etc(entries);
            all.push(("usr/lib/modules/1/vmlinuz".into(), Base::File(0o644, "kernel")));
            all.push(("usr/lib/modules/1/initramfs.img".into(), Base::File(0o644, "initramfs")));
            all.push(("usr/etc/os-release".into(), Base::File(0o644, "PRETTY_NAME=test\n")));
            commit_tree(&repo, all);
            std::process::Command::new("ostree")
                .args(["admin", &at, "deploy", "--os=test", "base"])
                .output()
                .unwrap()
        };
        let first = deploy(old);
        assert!(first.status.success(), "{name}: {}", String::from_utf8_lossy(&first.stderr));
        let deployment = std::fs::read_dir(dir.path().join("ostree/deploy/test/deploy"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.is_dir())
            .unwrap();
        apply(&deployment.join("etc"), local);
        let second = deploy(new);
        let text = String::from_utf8_lossy(&second.stderr).into_owned();
        run("sh", &["-c", &format!("chattr -i {sysroot}/ostree/deploy/test/deploy/*.? 2>/dev/null; true")]);
        assert_eq!(second.status.success(), failing.is_empty(), "{name}: {text}");
    }
}

#[test]
fn every_declared_path_has_a_standing() {
    use Standing::*;
    let over = |text| with(file(text), |f| f.overwrite = true);
    type Row = (&'static str, &'static [Do], &'static [Do], Node, Standing);
    let cases: &[Row] = &[
        ("new", &[], &[], file("mine"), Taken),
        ("untouched default", &[Write("f", "1")], &[], over("mine"), Taken),
        ("edited", &[Write("f", "1")], &[Write("f", "2")], over("mine"), Shadowed),
        ("edited to the same", &[Write("f", "1")], &[Write("f", "mine")], over("mine"), Identical),
        ("only local", &[], &[Write("f", "2")], file("mine"), Shadowed),
        ("only local and the same", &[], &[Write("f", "mine")], file("mine"), Identical),
        ("other mode", &[Write("f", "1")], &[Mode("f", 0o600)], over("mine"), Shadowed),
        ("removed", &[Write("f", "1")], &[Remove("f")], over("mine"), Shadowed),
        ("link instead", &[Write("f", "1")], &[Remove("f"), Link("f", "x")], over("mine"), Shadowed),
        ("directory instead", &[Write("f", "1")], &[Remove("f"), Dir("f")], over("mine"), TypeConflict),
        ("declared directory, local file", &[], &[Write("f", "2")], directory(0o755), TypeConflict),
        ("declared directory, same local", &[], &[Dir("f"), Mode("f", 0o755)], directory(0o755), Identical),
        ("same link", &[], &[Link("f", "x")], link("x"), Identical),
        ("other link", &[], &[Link("f", "y")], link("x"), Shadowed),
    ];
    for (name, old, local, node, expected) in cases {
        let scratch = Scratch::with(ostree::RepoMode::Bare, etc(old).into_iter().chain(etc(&[Dir("keep")])));
        let manifest = nodes([("/etc/f", node.clone())]);
        let derived = scratch.derive(&manifest).unwrap();
        let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
        let host = Host::new(old, local);
        let changes =
            Changes::read(Previous { live: &host.open("live"), defaults: &host.open("defaults") }).unwrap();
        let wanted = declared(&tree, &manifest).unwrap().remove("/etc/f").unwrap();
        assert_eq!(standing(&host.open("live"), &tree, &changes, &wanted).unwrap(), *expected, "{name}");
    }
}

#[test]
fn a_conflict_names_all_paths_and_what_to_do() {
    let scratch = Scratch::with(ostree::RepoMode::Bare, etc(&[Dir("x")]));
    let manifest =
        nodes([("/etc/a", file("1")), ("/etc/b/c", file("1")), ("/etc/d", file("1")), ("/etc/e", file("1"))]);
    let derived = scratch.derive(&manifest).unwrap();
    let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
    let host = Host::new(
        &[Dir("x")],
        &[
            Write("a", "2"),
            Write("b/c", "2"),
            Dir("d"),
            Write("x/y", "fine"),
            Write("e", "1"),
            Mode("e", 0o644),
        ],
    );
    let error = host.plan(&tree, &manifest).unwrap_err();
    assert_eq!(error.kind, ErrorKind::EtcConflict);
    assert_eq!(
        error.to_string(),
        "/etc cannot be merged: changed by hand and declared: /etc/a (50-agent.yaml), /etc/b/c (50-agent.yaml); a directory on one side and a file on the other: /etc/d (50-agent.yaml)"
    );
    assert_eq!(error.details["shadowed"], "/etc/a\n/etc/b/c");
    assert_eq!(error.details["type-conflict"], "/etc/d");
    assert!(error.hint.unwrap().contains("on-conflict: keep-local or take"));
}

#[test]
fn drop_ins_decide_what_becomes_of_local_changes() {
    let scratch = Scratch::with(ostree::RepoMode::Bare, etc(&[Write("t", "default")]));
    let policy = |p| with(file("declared"), |f| (f.on_conflict, f.overwrite) = (p, true));
    let manifest = nodes([("/etc/k", policy(OnConflict::KeepLocal)), ("/etc/t", policy(OnConflict::Take))]);
    let derived = scratch.derive(&manifest).unwrap();
    let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
    let host = Host::new(&[Write("t", "default")], &[Write("t", "local"), Write("k", "local")]);
    let plan = host.plan(&tree, &manifest).unwrap();
    assert_eq!(plan.kept_local().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["/etc/k"]);
    assert_eq!(plan.to_take().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["/etc/t"]);
}

#[test]
fn without_a_previous_deployment_everything_is_taken() {
    let scratch = Scratch::new();
    let manifest = nodes([("/etc/a", file("1")), ("/usr/lib/b", file("1"))]);
    let derived = scratch.derive(&manifest).unwrap();
    let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
    let plan = plan(None, &tree, &manifest).unwrap();
    assert_eq!(plan.paths.len(), 1);
    assert_eq!((plan.paths[0].path.as_str(), plan.paths[0].standing), ("/etc/a", Standing::Taken));
}

#[test]
fn a_unit_that_the_admin_enabled_by_hand_is_not_silently_disabled_or_doubled() {
    let scratch = Scratch::new();
    let mut manifest = units([("old.service", unit(false)), ("agent.service", unit(true))]);
    let derived = scratch.derive(&manifest).unwrap();
    let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
    let wants = "systemd/system/multi-user.target.wants";
    let host = Host::new(
        &[Dir("systemd/system/multi-user.target.wants")],
        &[Link("systemd/system/multi-user.target.wants/agent.service", "../agent.service")],
    );
    let plan = host.plan(&tree, &manifest).unwrap();
    let agent = plan.paths.iter().find(|p| p.path == format!("/etc/{wants}/agent.service")).unwrap();
    assert_eq!(agent.standing, Standing::Identical);

    manifest.units.remove("agent.service");
    let host = Host::new(
        &[Dir("systemd/system/multi-user.target.wants")],
        &[Link("systemd/system/multi-user.target.wants/old.service", "x")],
    );
    let error = host.plan(&tree, &manifest).unwrap_err();
    assert_eq!(error.details["shadowed"], format!("/etc/{wants}/old.service"));
}

#[test]
fn taking_can_be_repeated_and_undone_at_every_point() {
    let defaults = [Write("f", "default"), Write("gone", "default"), Link("l", "default")];
    let local = [
        Write("f", "local"),
        Remove("gone"),
        Remove("l"),
        Link("l", "local"),
        Write("only", "local"),
        Mode("f", 0o640),
    ];
    let read = |host: &Host, path: &str| std::fs::read_to_string(host.0.path().join("live").join(path)).ok();
    let list = |host: &Host| {
        run(
            "sh",
            &[
                "-c",
                &format!(
                    "cd {} && find . ! -name . -printf '%p %M %l\\n' | sort",
                    host.0.path().join("live").display()
                ),
            ],
        )
    };
    let paths = ["/etc/f", "/etc/gone", "/etc/l", "/etc/only"];
    for crash_after in 0..=4 {
        let host = Host::new(&defaults, &local);
        let (live, old) = (host.open("live"), host.open("defaults"));
        let before = list(&host);
        let takes = take::prepare(&live, paths).unwrap();
        assert_eq!(takes[0], Take { path: "f".into(), saved: Some("f.osctl-saved-1".into()) });
        assert_eq!(takes[1], Take { path: "gone".into(), saved: None });
        take::take(&live, &old, &takes[..crash_after]).unwrap();
        if crash_after == 3 {
            // Killed between saving and resetting.
            live.hard_link("only", &live, "only.osctl-saved-1").unwrap();
        }
        if crash_after < 4 {
            take::restore(&live, &old, &takes).unwrap();
            // A removal that was not yet reset is restored to a removal.
            assert_eq!(list(&host), before, "undone after {crash_after}");
        }
        take::take(&live, &old, &takes).unwrap();
        take::take(&live, &old, &takes).unwrap();
        assert_eq!(read(&host, "f").as_deref(), Some("default"));
        assert_eq!(read(&host, "f.osctl-saved-1").as_deref(), Some("local"));
        assert_eq!(read(&host, "gone").as_deref(), Some("default"));
        assert_eq!(
            (read(&host, "only"), read(&host, "only.osctl-saved-1").as_deref()),
            (None, Some("local"))
        );
        assert_eq!(std::fs::read_link(host.0.path().join("live/l")).unwrap(), Path::new("default"));
        // What was saved are local additions; the taken paths are local changes no more.
        let changes = Changes::read(Previous { live: &live, defaults: &old }).unwrap();
        assert_eq!(
            changes.all.keys().collect::<Vec<_>>(),
            ["f.osctl-saved-1", "l.osctl-saved-1", "only.osctl-saved-1"]
        );
        take::restore(&live, &old, &takes).unwrap();
        assert_eq!(list(&host), before);
    }
}
