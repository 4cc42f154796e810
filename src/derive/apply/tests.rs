use super::super::testing::{self, *};
use super::*;
use crate::model::manifest::Source;

fn rich() -> Manifest {
    let mut manifest = nodes([
        ("/etc/agent/agent.conf", file("a=1\n")),
        ("/etc/agent/secret", with(file("hunter2"), |f| f.meta.mode = 0o600)),
        ("/etc/hostname", with(file("mine\n"), |f| f.overwrite = true)),
        ("/etc/systemd/system/mine.service", file("[Install]\nWantedBy=multi-user.target\n")),
        ("/usr/lib/agent", directory(0o1750)),
        ("/usr/lib/agent/helper", with(file("#!/bin/sh\n"), |f| f.meta.mode = 0o4755)),
        ("/usr/lib/agent/current", link("helper")),
    ]);
    manifest.units.extend([
        ("mine.service".to_owned(), unit(true)),
        ("old.service".to_owned(), unit(false)),
        ("tty@one.service".to_owned(), unit(true)),
    ]);
    manifest.users.insert("agent".into(), user());
    manifest.kargs_append.push(karg("nosmt"));
    manifest.kargs_delete.push(karg("quiet"));
    manifest
}

#[test]
fn everything_declared_is_in_the_commit_and_the_rest_is_the_base() {
    let scratch = Scratch::new();
    let derived = scratch.derive(&rich()).unwrap();
    let ls = |path: &str| scratch.ls(&derived.commit, path);
    for (path, expected) in [
        ("/usr/etc/agent/agent.conf", "-00644 0 0 4 /usr/etc/agent/agent.conf"),
        ("/usr/etc/agent/secret", "-00600 0 0 7 /usr/etc/agent/secret"),
        ("/usr/etc/hostname", "-00644 0 0 5 /usr/etc/hostname"),
        ("/usr/lib/agent", "d01750 0 0 0 /usr/lib/agent"),
        ("/usr/lib/agent/helper", "-04755 0 0 10 /usr/lib/agent/helper"),
        ("/usr/lib/agent/current", "l00777 0 0 0 /usr/lib/agent/current -> helper"),
        ("/usr/etc/private", "d00700 0 0 0 /usr/etc/private"),
        ("/usr/bin/tool", "-00755 0 0 3 /usr/bin/tool"),
        (
            "/usr/etc/systemd/system/multi-user.target.wants/mine.service",
            "l00777 0 0 0 /usr/etc/systemd/system/multi-user.target.wants/mine.service -> /etc/systemd/system/mine.service",
        ),
        (
            "/usr/etc/systemd/system/multi-user.target.wants/tty@one.service",
            "l00777 0 0 0 /usr/etc/systemd/system/multi-user.target.wants/tty@one.service -> /usr/lib/systemd/system/tty@.service",
        ),
    ] {
        assert_eq!(ls(path), expected);
    }
    assert_eq!(scratch.cat(&derived.commit, "/usr/lib/sysusers.d/osctl-derived.conf"), "u agent -\n");
    assert_eq!(scratch.cat(&derived.commit, "/usr/etc/hostname"), "mine\n");
    assert_eq!(scratch.cat(&scratch.base, "/usr/etc/hostname"), "base\n");

    let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
    for gone in ["/etc/systemd/system/basic.target.wants/old.service", "/etc/systemd/system/older.service"] {
        assert_eq!(tree.kind(gone).unwrap(), None, "{gone}");
    }
    let record = Provenance::read(&tree).unwrap().unwrap();
    assert_eq!(record, derived.provenance);
    assert_eq!(
        record.units["old.service"].links,
        ["/etc/systemd/system/basic.target.wants/old.service", "/etc/systemd/system/older.service"]
    );
    assert_eq!(record.paths["/etc/hostname"].effect, Effect::Replaced);
    assert_eq!(record.users["agent"].drop_in, "50-agent.yaml");
    assert_eq!(base_of(&scratch.repo, &derived.commit).unwrap(), Some(scratch.base.clone()));
    assert_eq!(base_of(&scratch.repo, &scratch.base).unwrap(), None);
    scratch.fsck();
}

#[test]
fn the_metadata_is_a_fixed_list() {
    let scratch = Scratch::new();
    let manifest = rich();
    let derived = scratch.derive(&manifest).unwrap();
    let drop_ins = serde_json::to_string(&derived.provenance.drop_ins).unwrap();
    let expected = [
        ("osctl.base-digest", format!("'{}'", digest())),
        ("osctl.derivation-version", "1".into()),
        ("osctl.drop-ins", format!("'{drop_ins}'")),
        ("osctl.input-digest", format!("'{}'", manifest.input_digest())),
        (
            "osctl.kargs",
            r#"'{"append":[{"arg":"nosmt","drop-in":"50-agent.yaml"}],"delete":[{"arg":"quiet","drop-in":"50-agent.yaml"}]}'"#
                .into(),
        ),
        ("ostree.bootable", "true".into()),
        ("version", "'1'".into()),
    ]
    .map(|(k, v): (&str, String)| (k.to_owned(), v));
    assert_eq!(testing::metadata(&scratch.repo, &derived.commit), expected);
    let object = scratch.repo.load_variant(ostree::ObjectType::Commit, &derived.commit).unwrap();
    assert_eq!(ostree::commit_get_timestamp(&object), 1_700_000_000);
    assert_eq!(ostree::commit_get_parent(&object), None);
}

#[test]
fn same_input_gives_the_same_commit_in_every_repository() {
    let manifest = rich();
    let mut reordered = manifest.clone();
    let source =
        |name: &str| Source { name: name.into(), path: name.into(), digest: Digest::of(name.as_bytes()) };
    reordered.sources = vec![source("99-later.yaml"), source("50-agent.yaml")];

    let bare = Scratch::new();
    let user = Scratch::with(ostree::RepoMode::BareUser, usual());
    let expected = bare.derive(&manifest).unwrap().commit;
    assert_eq!(user.derive(&reordered).unwrap().commit, expected);
    user.fsck();

    // A base that another importer committed: the same tree under another commit checksum.
    let other = Scratch::new();
    let (root, _) = other.repo.read_commit(&other.base, NONE).unwrap();
    let root = root.downcast::<ostree::RepoFile>().unwrap();
    root.ensure_resolved().unwrap();
    let kept = BTreeMap::from([
        ("ostree.bootable", true.to_variant()),
        ("ostree.importer.version", "10.0".to_variant()),
        ("version", "1".to_variant()),
    ])
    .to_variant();
    let base =
        other.repo.write_commit_with_time(None, None, None, Some(&kept), &root, 1_700_000_000, NONE).unwrap();
    assert_ne!(base, other.base);
    let derived = super::commit(&other.repo, &base, &digest(), None, &manifest, hooks(), NONE).unwrap();
    assert_eq!(derived.commit, expected);
}

#[test]
fn other_input_gives_another_commit() {
    let scratch = Scratch::new();
    let one = scratch.derive(&nodes([("/etc/a", file("1"))])).unwrap();
    let two = scratch.derive(&nodes([("/etc/a", file("2"))])).unwrap();
    let karg_only = scratch
        .derive(&Manifest { kargs_append: vec![karg("nosmt")], ..nodes([("/etc/a", file("1"))]) })
        .unwrap();
    assert_ne!(one.commit, two.commit);
    assert_ne!(one.commit, karg_only.commit);
}

#[test]
fn an_empty_manifest_is_the_base_itself() {
    let scratch = Scratch::new();
    let derived = scratch.derive(&Manifest::default()).unwrap();
    assert_eq!(derived.commit, scratch.base);
    assert!(scratch.repo.list_refs(Some(REF_PREFIX), NONE).unwrap().is_empty());
}

#[test]
fn finished_work_is_found_again_and_survives_a_prune() {
    let scratch = Scratch::new();
    let manifest = rich();
    assert_eq!(find(&scratch.repo, &scratch.base, &manifest.input_digest()).unwrap(), None);
    let derived = scratch.derive(&manifest).unwrap();
    scratch.repo.prune(ostree::RepoPruneFlags::REFS_ONLY, 0, NONE).unwrap();
    assert_eq!(
        find(&scratch.repo, &scratch.base, &manifest.input_digest()).unwrap().as_ref(),
        Some(&derived)
    );
    assert_eq!(scratch.derive(&manifest).unwrap(), derived);
}

#[test]
fn a_failure_leaves_no_reference() {
    let scratch = Scratch::new();
    let manifest = nodes([("/etc/a", file("1")), ("/etc/hostname", file("2"))]);
    scratch.derive(&manifest).unwrap_err();
    let cancelled = gio::Cancellable::new();
    cancelled.cancel();
    let error =
        super::commit(&scratch.repo, &scratch.base, &digest(), None, &rich(), hooks(), Some(&cancelled))
            .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(scratch.repo.list_refs(Some(REF_PREFIX), NONE).unwrap().is_empty());
    assert!(scratch.derive(&rich()).is_ok(), "the transaction was not aborted");
}

#[test]
fn what_does_not_fit_the_base_is_refused_by_name() {
    let scratch = Scratch::new();
    let over = |node: Node| with(node, |f| f.overwrite = true);
    let cases = [
        (
            nodes([("/etc/hostname", file("x"))]),
            "50-agent.yaml: /etc/hostname would replace a file of the base",
            "add overwrite: true if that is meant",
        ),
        (
            nodes([("/etc/alias", file("x"))]),
            "50-agent.yaml: /etc/alias would replace a symbolic link of the base",
            "add overwrite: true if that is meant",
        ),
        (
            nodes([("/etc/alias", link("elsewhere"))]),
            "50-agent.yaml: /etc/alias would replace a symbolic link to private of the base",
            "add overwrite: true if that is meant",
        ),
        (
            nodes([("/usr/lib/systemd", over(file("x")))]),
            "50-agent.yaml: /usr/lib/systemd is a directory in the base, not a file",
            "choose another path: a directory is never replaced",
        ),
        (
            nodes([("/usr/lib/systemd", link("x"))]),
            "50-agent.yaml: /usr/lib/systemd is a directory in the base, not a link",
            "choose another path: a directory is never replaced",
        ),
        (
            nodes([("/etc/hostname", directory(0o755))]),
            "50-agent.yaml: /etc/hostname is a file in the base, not a directory",
            "choose another path: a file never becomes a directory",
        ),
        (
            nodes([("/etc/alias", directory(0o755))]),
            "50-agent.yaml: /etc/alias is a symbolic link to private in the base, not a directory",
            "declare the directory that the link points to",
        ),
        (
            nodes([("/etc/private", directory(0o755))]),
            "50-agent.yaml: /etc/private is already a directory with mode 0700 and owner 0:0; a drop-in cannot change it to 0755 0:0",
            "leave the directory out of the drop-in, or declare it with the mode and owner it has",
        ),
        (
            nodes([("/etc/hostname/x", file("x"))]),
            "50-agent.yaml: /etc/hostname/x cannot be placed: /etc/hostname is not a directory",
            "choose another path: a file never becomes a directory",
        ),
        (
            nodes([("/etc/outside/x", file("x"))]),
            "50-agent.yaml: /etc/outside/x leaves /etc through a symbolic link of the base: it is /var/lib/outside/x",
            "declare the path that the link points to, if it is in /usr or /etc",
        ),
        (
            nodes([("/etc/toolink/x", file("x"))]),
            "50-agent.yaml: /etc/toolink/x leaves /etc through a symbolic link of the base: it is /usr/bin/x",
            "declare the path that the link points to, if it is in /usr or /etc",
        ),
        (
            nodes([("/usr/lib/state/x", file("x"))]),
            "50-agent.yaml: /usr/lib/state/x leaves /usr through a symbolic link of the base: it is /var/lib/state/x",
            "declare the path that the link points to, if it is in /usr or /etc",
        ),
        (
            nodes([("/usr/lib/osctl/x", file("x"))]),
            "50-agent.yaml: /usr/lib/osctl/x is /usr/lib/osctl/x, and /usr/lib/osctl is never changed by drop-ins",
            "the symbolic link on the way is the base's: declare another path",
        ),
        (
            nodes([("/etc/alias/x", file("x")), ("/etc/private/x", file("y"))]),
            "50-agent.yaml: /etc/private/x is the same path as /etc/alias/x of 50-agent.yaml",
            "declare it once",
        ),
        (
            nodes([("/etc/l", link("private")), ("/etc/l/x", file("x"))]),
            "50-agent.yaml: /etc/l/x goes through the symbolic link /etc/l that 50-agent.yaml declares",
            "declare the path that the link points to",
        ),
        (
            units([("absent.service", unit(true))]),
            "50-agent.yaml: unit absent.service does not exist: neither the base nor a drop-in has it",
            "add contents: to the unit, or check its name",
        ),
        (
            units([("absent.service", unit(false))]),
            "50-agent.yaml: unit absent.service does not exist: neither the base nor a drop-in has it",
            "add contents: to the unit, or check its name",
        ),
        (
            units([("static.service", unit(true))]),
            "50-agent.yaml: unit static.service has nothing to enable: its [Install] section names no unit",
            "add [Install] with WantedBy= to the unit, or leave enabled: out",
        ),
        (
            units([("masked.service", unit(true))]),
            "50-agent.yaml: unit masked.service is masked: /etc/systemd/system/masked.service is a link to /dev/null",
            "leave enabled: out, or replace the mask by a unit file with overwrite: true",
        ),
        (
            units([("core.service", unit(false))]),
            "50-agent.yaml: unit core.service cannot be disabled: /usr/lib/systemd/system/basic.target.wants/core.service of the base starts it",
            "use mask: true instead of enabled: false",
        ),
    ];
    for (manifest, message, hint) in cases {
        let error = scratch.derive(&manifest).expect_err(message);
        assert_eq!(error.to_string(), message);
        assert_eq!((error.kind, error.hint.as_deref()), (ErrorKind::InvalidDropIn, Some(hint)), "{message}");
        assert_eq!(error.details["drop-in"], "50-agent.yaml");
    }
}

#[test]
fn what_the_base_already_has_is_left_alone() {
    let scratch = Scratch::new();
    let manifest = nodes([
        ("/etc/hostname", file("base\n")),
        ("/etc/alias", link("private")),
        ("/etc/private", directory(0o700)),
    ]);
    let derived = scratch.derive(&manifest).unwrap();
    assert!(derived.provenance.paths.values().all(|p| p.effect == Effect::Unchanged));
    let base = scratch.ls(&scratch.base, "-C");
    assert_eq!(scratch.ls(&derived.commit, "-C").split(' ').count(), base.split(' ').count());
    let etc = |c: &str| {
        run(
            "ostree",
            &["ls", "-dC", &format!("--repo={}", scratch.dir.path().join("repo").display()), c, "/usr/etc"],
        )
    };
    assert_eq!(etc(&derived.commit), etc(&scratch.base));
}

#[test]
fn links_of_the_base_that_stay_in_their_half_are_followed() {
    let scratch = Scratch::new();
    let derived = scratch.derive(&nodes([("/etc/alias/x", file("x"))])).unwrap();
    assert_eq!(scratch.cat(&derived.commit, "/usr/etc/private/x"), "x");
    assert_eq!(scratch.ls(&derived.commit, "/usr/etc/alias"), "l00777 0 0 0 /usr/etc/alias -> private");
}

#[test]
fn masking_is_a_link_and_needs_no_unit() {
    let scratch = Scratch::new();
    let mut manifest = nodes([("/etc/systemd/system/absent.service", link("/dev/null"))]);
    manifest.units.insert(
        "absent.service".into(),
        crate::model::manifest::Unit { owner: owner(), enabled: None, mask: true },
    );
    let derived = scratch.derive(&manifest).unwrap();
    assert!(derived.provenance.units["absent.service"].mask);
}

#[test]
fn the_object_of_a_private_file_is_private() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    let manifest = nodes([("/etc/secret", with(file("hunter2"), |f| f.meta.mode = 0o600))]);
    let derived = scratch.derive(&manifest).unwrap();
    let tree = Tree::open(&scratch.repo, &derived.commit, NONE).unwrap();
    let Some(Entry::File { checksum, .. }) = tree.at("/usr/etc/secret").unwrap() else { panic!() };
    let object = scratch.dir.path().join(format!("repo/objects/{}/{}.file", &checksum[..2], &checksum[2..]));
    assert_eq!(std::fs::metadata(object).unwrap().mode() & 0o7777, 0o600);
    let json = scratch.cat(&derived.commit, provenance::PATH);
    assert!(!json.contains("hunter2") && !json.contains(&hex::encode("hunter2")));
    // Nor can the drop-in's digest be used to guess it.
    let other = nodes([("/etc/secret", with(file("guess"), |f| f.meta.mode = 0o600))]);
    assert_eq!(provenance::contributions(&other), derived.provenance.drop_ins);
}

/// The environment variable that turns the test below into its own traced child: the sizes, comma-separated.
const TRACED: &str = "OSCTL_TEST_DERIVE_REPO";

/// Counts the system calls of one derivation on bases of 300 and of 30,000 files.
#[test]
fn the_cost_follows_the_drop_ins_and_not_the_tree() {
    let manifest = rich();
    if let Ok(repo) = std::env::var(TRACED) {
        let repo = ostree::Repo::new_for_path(repo);
        repo.open(NONE).unwrap();
        let base = repo.require_rev("base").unwrap();
        // What strace counts starts here and ends with the process.
        let derived = super::commit(&repo, &base, &digest(), None, &manifest, hooks(), NONE).unwrap();
        assert_ne!(derived.commit, base.as_str());
        return;
    }
    let calls = |files: usize| {
        let many = (0..files).map(|i| {
            (
                format!("usr/share/d{:03}/f{i:05}", i / 100),
                Base::File(0o644, if i % 2 == 0 { "a" } else { "b" }),
            )
        });
        let all = usual().into_iter().map(|(p, e)| (p.to_owned(), e)).chain(many);
        let scratch = Scratch::with(ostree::RepoMode::Bare, all);
        // libostree syncs every directory of objects at the end of a transaction, and any repository that was
        // used has all 256: a fresh one of 300 files must not look cheaper for lacking them.
        for i in 0..256 {
            std::fs::create_dir_all(scratch.dir.path().join(format!("repo/objects/{i:02x}"))).unwrap();
        }
        let out = scratch.dir.path().join("strace");
        run(
            "env",
            &[
                &format!("{TRACED}={}", scratch.dir.path().join("repo").display()),
                "strace",
                "-f",
                "-c",
                "-o",
                out.to_str().unwrap(),
                std::env::current_exe().unwrap().to_str().unwrap(),
                "--exact",
                "derive::apply::tests::the_cost_follows_the_drop_ins_and_not_the_tree",
                "--test-threads=1",
            ],
        );
        let table = std::fs::read_to_string(out).unwrap();
        let total = table.lines().find(|l| l.ends_with(" total")).expect("strace prints a total");
        // "100.00    0.012345          12      1024        56 total"; the errors column may be empty.
        total.split_whitespace().nth(3).unwrap().parse::<u32>().unwrap()
    };
    let (small, large) = (calls(300), calls(30_000));
    assert!(small > 300, "strace counted only {small} calls: the child did nothing");
    let ratio = f64::from(large) / f64::from(small);
    assert!(ratio < 1.2, "{small} calls on 300 files, {large} on 30,000: ratio {ratio:.2}");
}

/// A policy as small as libselinux and libostree take it: contexts are looked up in the text file, the binary is
/// only hashed.
fn policy() -> Vec<(&'static str, Base<'static>)> {
    const CONTEXTS: &str = "\
/.*\tsystem_u:object_r:default_t:s0
/usr/.*\tsystem_u:object_r:usr_t:s0
/usr/bin/.*\t--\tsystem_u:object_r:bin_t:s0
/etc/.*\tsystem_u:object_r:etc_t:s0
/etc/private(/.*)?\tsystem_u:object_r:private_t:s0
";
    vec![
        ("usr/etc/selinux/config", Base::File(0o644, "SELINUX=enforcing\nSELINUXTYPE=tiny\n")),
        ("usr/etc/selinux/tiny/policy/policy.33", Base::File(0o644, "only hashed")),
        ("usr/etc/selinux/tiny/contexts/files/file_contexts", Base::File(0o644, CONTEXTS)),
    ]
}

#[test]
fn new_entries_are_labelled_by_the_policy_of_the_tree() {
    let scratch = Scratch::with(ostree::RepoMode::Bare, usual().into_iter().chain(policy()));
    let manifest = nodes([
        ("/etc/new/file", file("x")),
        ("/etc/alias/file", file("x")),
        ("/etc/link", link("x")),
        ("/usr/bin/new", with(file("x"), |f| f.meta.mode = 0o755)),
        ("/usr/lib/new", directory(0o755)),
    ]);
    let derived = scratch.derive(&manifest).unwrap();
    let repo = format!("--repo={}", scratch.dir.path().join("repo").display());
    let label = |path: &str| {
        let text = run("ostree", &["ls", "-d", "-X", &repo, &derived.commit, path]);
        text.split("object_r:").nth(1).map(|rest| rest.split(':').next().unwrap().to_owned())
    };
    for (path, expected) in [
        ("/usr/etc/new", Some("etc_t")),
        ("/usr/etc/new/file", Some("etc_t")),
        ("/usr/etc/private/file", Some("private_t")),
        ("/usr/etc/link", Some("etc_t")),
        ("/usr/bin/new", Some("bin_t")),
        ("/usr/lib/new", Some("usr_t")),
        ("/usr/lib/osctl/derived.json", Some("usr_t")),
        // The base's entries, which this base does not label, stay as they are.
        ("/usr/etc/private", None),
        ("/usr/bin/tool", None),
    ] {
        assert_eq!(label(path).as_deref(), expected, "{path}");
    }
    scratch.fsck();

    let manifest = nodes([("/etc/selinux/config", with(file("SELINUX=disabled\n"), |f| f.overwrite = true))]);
    let error = scratch.derive(&manifest).unwrap_err();
    assert_eq!(
        (error.kind, error.to_string().as_str()),
        (
            ErrorKind::Unsupported,
            "50-agent.yaml: /etc/selinux/config would change the SELinux policy of the base"
        )
    );
}

/// The clock, the time zone, the umask and the locale are not inputs.
#[test]
fn the_environment_is_not_an_input() {
    const HERE: &str = "OSCTL_TEST_DERIVE_PRINT";
    if std::env::var_os(HERE).is_some() {
        let commit = Scratch::new().derive(&rich()).unwrap().commit;
        std::fs::write(std::env::var(HERE).unwrap(), commit).unwrap();
        return;
    }
    let expected = Scratch::new().derive(&rich()).unwrap().commit;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("commit");
    let me = std::env::current_exe().unwrap();
    let test = "derive::apply::tests::the_environment_is_not_an_input";
    for (umask, zone, locale) in [("077", "Asia/Tokyo", "tr_TR.UTF-8"), ("000", "America/New_York", "C")] {
        let script = format!(
            "umask {umask}; exec env {HERE}={} TZ={zone} LC_ALL={locale} {} --exact {test}",
            out.display(),
            me.display()
        );
        run("sh", &["-c", &script]);
        assert_eq!(std::fs::read_to_string(&out).unwrap(), expected, "umask {umask}, {zone}, {locale}");
        std::fs::remove_file(&out).unwrap();
    }
}
