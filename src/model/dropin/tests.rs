//! One row per rule, with the exact message.

use super::*;
use crate::model::manifest::OnConflict;
use proptest::prelude::*;

/// The table of refusals: declaration, kind, message, hint.
pub(super) const BAD: &str = include_str!("bad.txt");
/// Every key that is served.
pub(super) const EVERYTHING: &str = include_str!("everything.yaml");

fn text(name: &str, yaml: &str) -> Text {
    Text { name: name.into(), path: name.into(), bytes: yaml.as_bytes().to_vec() }
}

/// What lies beside every drop-in of these tests.
pub(super) struct Files;

impl Beside for Files {
    fn file(&self, name: &str) -> Result<Local> {
        let local = |bytes: &[u8], private| Ok(Local { bytes: bytes.to_vec(), private });
        match name {
            "conf/a" => local(b"local", false),
            "agent.deb" | "hotfix.rpm" => local(b"package", false),
            "a.service" => local(b"[Install]\nWantedBy=x.target\n", false),
            "a.gz" => {
                local(b"\x1f\x8b\x08\0\0\0\0\0\x02\xff\xcb\xc9ON\xcc\x01\0\xe8\x88\xd6\x8b\x05\0\0\0", false)
            }
            "binary" => local(b"\xff", false),
            "key" => local(b"secret", true),
            "bomb.gz" => {
                use std::io::Write;
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&vec![0; MAX_CONTENTS as usize + 1]).unwrap();
                local(&gzip.finish().unwrap(), false)
            }
            "big" => local(&vec![0; MAX_CONTENTS as usize + 1], false),
            _ => Err(Error::new(ErrorKind::InvalidDropIn, format!("{name} does not exist"))),
        }
    }

    fn tree(&self, name: &str) -> Result<Vec<Leaf>> {
        let leaf = |path: &str, kind| Leaf { path: path.to_owned(), kind };
        let file = |text: &str, private, executable| LeafKind::File {
            contents: Local { bytes: text.into(), private },
            executable,
        };
        match name {
            "tree" => Ok(vec![
                leaf("agent.conf", file("conf", false, false)),
                leaf("bin", LeafKind::Directory),
                leaf("bin/agent", file("#!", false, true)),
                leaf("link", LeafKind::Link("agent.conf".into())),
            ]),
            "secret" => Ok(vec![leaf("key", file("k", true, false))]),
            "passwd" => Ok(vec![leaf("passwd", file("root", false, false))]),
            "away" => Ok(vec![leaf("l", LeafKind::Link("../../../x".into()))]),
            "" => Ok(vec![leaf("etc/all", file("all", false, false))]),
            _ => Err(Error::new(ErrorKind::InvalidDropIn, format!("{name} does not exist"))),
        }
    }
}

pub(super) fn compile_all(files: &[(&str, &str)]) -> Result<Manifest> {
    let dropins: Vec<(Text, &dyn Beside)> = files.iter().map(|(n, y)| (text(n, y), &Files as _)).collect();
    compile(&dropins)
}

pub(super) fn one(yaml: &str) -> Result<Manifest> {
    compile_all(&[("a.yaml", yaml)])
}

pub(super) fn manifest(yaml: &str) -> Manifest {
    one(yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"))
}

/// Every row: drop-in => kind, message, hint.
#[test]
fn bad_input_is_refused_with_its_place() {
    let count = check_refusals(BAD, "a.yaml");
    assert!(count >= 120, "{count} rows");
}

/// Compares the rows of a table of refusals with what is said of each, and returns how many they are.
pub(super) fn check_refusals(rows: &str, name: &str) -> usize {
    let mut count = 0;
    let mut wrong = String::new();
    for row in rows.split("\n====\n").filter(|r| !r.trim().is_empty()) {
        let (yaml, expected) = row.split_once("\n--\n").unwrap_or_else(|| panic!("no result: {row}"));
        let yaml = yaml.trim_start_matches('\n');
        let found = match compile_all(&[(name, yaml)]) {
            Ok(_) => "accepted".to_owned(),
            Err(e) => {
                let hint = e.hint.as_deref().map(|h| format!("\nhint: {h}")).unwrap_or_default();
                // A parse failure has no key; a rule that is about the whole drop-in has none either.
                assert!(["file", "line", "column"].iter().all(|d| e.details.contains_key(*d)), "{e}");
                format!("{} {e}{hint}", e.kind.name())
            }
        };
        count += 1;
        if found != expected.trim_end() {
            wrong.push_str(&format!("{yaml}\n--\n{found}\n====\n"));
        }
    }
    assert!(wrong.is_empty(), "these differ:\n{wrong}");
    count
}

#[test]
fn what_was_wrong_is_in_the_details() {
    let error = one("files:\n  - path: /etc/a\n    contents: {inline: x}\n    mode: 644\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        "a.yaml:4:11: files[0].mode: `644` is not an octal mode with a leading zero"
    );
    let details: Vec<_> = error.details.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(details, ["column=11", "file=a.yaml", "key=files[0].mode", "line=4"]);
}

#[test]
fn bytes_that_are_not_text_and_too_many_bytes_are_refused() {
    let refuse = |bytes: Vec<u8>| {
        let text = Text { name: "a.yaml".into(), path: "/etc/osctl/derive.d/a.yaml".into(), bytes };
        decode(&text, &Files).unwrap_err().to_string()
    };
    assert_eq!(refuse(b"files: []\n# \xc3\xa4\xff\n".to_vec()), "/etc/osctl/derive.d/a.yaml:2:4: not UTF-8");
    assert_eq!(
        refuse(vec![b'#'; MAX_DROPIN as usize + 1]),
        "/etc/osctl/derive.d/a.yaml: 1048577 bytes are more than the 1048576 that a drop-in may have"
    );
}

#[test]
fn forbidden_paths_are_refused_in_every_spelling() {
    for path in [
        "/etc/osctl",
        "/etc/osctl/osctld.toml",
        "/usr/lib/osctl/x",
        "/usr/etc/x",
        "/boot/x",
        "/ostree/x",
        "/sysroot/x",
        "/var/x",
        "/home/x",
        "/run/x",
        "/etc/machine-id",
        "/etc/passwd",
        "/etc/shadow",
        "/etc/group",
        "/etc/gshadow",
        "/etc/fstab",
        "/etc//passwd",
        "/etc/./passwd",
        "//etc/passwd",
        "/./etc/passwd",
        "/usr//lib/./osctl/x",
        "/opt/x",
        "/srv/x",
        "/bin/x",
        "/lib/x",
        "/tmp/x",
        "/root/x",
        "/dev/x",
        "/proc/x",
        "/mnt/x",
        "/",
        "/etc",
        "/usr",
        "/usr/lib",
        "/etcetera",
        "/usrx/a",
        "/etc/x/",
        "/etc/x/.",
        "/etc/../etc/x",
        "/etc/..",
        "etc/x",
        "./etc/x",
        "",
        "~/x",
    ] {
        for kind in ["files:\n- contents: {inline: x}\n  ", "links:\n- target: x\n  "] {
            let error = one(&format!("{kind}path: {}\n", serde_json::to_string(path).unwrap())).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidDropIn, "{path}");
            assert!(error.details["key"].ends_with("[0].path"), "{error}");
        }
    }
    for path in ["/etc/passwd.d/x", "/usr/lib/osctlx", "/etc/osctl.conf", "/usr/etcx", "/etc/fstab.d"] {
        manifest(&format!("files: [{{path: {path}, contents: {{inline: x}}}}]"));
    }
    // A directory that holds a forbidden path can still get another mode.
    manifest("directories: [{path: /usr/lib, mode: 0755}]");
}

#[test]
fn modes_are_read_as_they_are_written() {
    for (written, mode) in [
        ("0644", 0o644),
        ("\"0644\"", 0o644),
        ("'0600'", 0o600),
        ("0o755", 0o755),
        ("\"0o755\"", 0o755),
        ("04755", 0o4755),
        ("00640", 0o640),
        ("07777", 0o7777),
        ("0", 0),
        ("0000", 0),
    ] {
        let found = manifest(&format!("files: [{{path: /etc/a, contents: {{inline: x}}, mode: {written}}}]"));
        let Node::File(file) = &found.nodes["/etc/a"] else { panic!() };
        assert_eq!(file.meta.mode, mode, "{written}");
    }
}

#[test]
fn everything_in_one_drop_in() {
    let m = manifest(EVERYTHING);
    let nodes: Vec<_> = m.nodes.keys().map(String::as_str).collect();
    assert_eq!(
        nodes,
        [
            "/etc/a/b",
            "/etc/dir",
            "/etc/dir2",
            "/etc/l",
            "/etc/systemd/system/a.service",
            "/etc/systemd/system/a.service.d/10-l.conf",
            "/etc/systemd/system/b.service",
            "/usr/bin/tool",
            "/usr/share/agent/data",
        ]
    );
    let Node::File(plain) = &m.nodes["/etc/a/b"] else { panic!() };
    assert_eq!(
        (plain.meta.mode, plain.meta.uid, plain.on_conflict, plain.overwrite),
        (0o644, 0, OnConflict::KeepLocal, false)
    );
    assert_eq!(plain.contents.bytes(), Some(&b"x y\n"[..]));
    let Node::File(tool) = &m.nodes["/usr/bin/tool"] else { panic!() };
    assert_eq!((tool.meta.mode, tool.meta.uid, tool.meta.gid), (0o755, 7, 0));
    assert_eq!(
        (tool.contents.bytes().unwrap(), tool.on_conflict, tool.overwrite),
        (&b"local"[..], OnConflict::Take, true)
    );
    let Node::Directory(dir) = &m.nodes["/etc/dir"] else { panic!() };
    assert_eq!((dir.meta.mode, dir.meta.gid), (0o755, 12));
    let Node::Link(mask) = &m.nodes["/etc/systemd/system/b.service"] else { panic!() };
    assert_eq!(mask.target, "/dev/null");
    let units: Vec<_> = m.units.iter().map(|(n, u)| (n.as_str(), u.enabled, u.mask)).collect();
    assert_eq!(
        units,
        [("a.service", Some(true), false), ("b.service", None, true), ("c@x.socket", Some(false), false)]
    );
    let kargs = |k: &[Karg]| k.iter().map(|k| format!("{}:{}", k.owner, k.arg)).collect::<Vec<_>>();
    assert_eq!(kargs(&m.kargs_append), ["a.yaml:nosmt", "a.yaml:a=\"b c\""]);
    assert_eq!(kargs(&m.kargs_delete), ["a.yaml:quiet"]);
    assert_eq!(
        sysusers_conf(&m).unwrap(),
        "# System users declared by osctl drop-ins. Written by osctl.\n\n# a.yaml\nu agent 480 \"An \\\"agent\\\" 5%%\" /var/lib/agent /usr/sbin/nologin\n\n# a.yaml\nu b - - - -\n"
    );
}

#[test]
fn an_empty_drop_in_declares_nothing() {
    for yaml in ["", "# only a comment\n", "---\n", "null\n", "{}", "files: []\nlinks: []\n"] {
        assert!(manifest(yaml).is_empty(), "{yaml:?}");
    }
    assert_eq!(sysusers_conf(&Manifest::default()), None);
}

#[test]
fn drop_ins_merge_in_the_given_order_and_nothing_is_declared_twice() {
    let file = |path: &str| format!("files: [{{path: {path}, contents: {{inline: x}}}}]");
    let m = compile_all(&[
        ("10-a.yaml", "kernel-arguments: {append: [b]}"),
        ("20-b.yaml", &format!("kernel-arguments: {{append: [a]}}\n{}", file("/etc/x"))),
        ("30-c.yaml", "kernel-arguments: {delete: [b]}\ndirectories: [{path: /etc/d}]"),
    ])
    .unwrap();
    assert_eq!(
        m.sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["10-a.yaml", "20-b.yaml", "30-c.yaml"]
    );
    assert_eq!(m.kargs_append.iter().map(|k| k.arg.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(m.nodes["/etc/x"].owner(), "20-b.yaml");

    for (a, b, message) in [
        (
            file("/etc/x"),
            file("/etc//x"),
            "b.yaml:1:16: files[0].path: /etc/x is already declared by a.yaml line 1",
        ),
        (
            file("/etc/x"),
            "links: [{path: /etc/x, target: y}]".into(),
            "b.yaml:1:16: links[0].path: /etc/x is already declared by a.yaml line 1",
        ),
        (
            file("/etc/x"),
            "directories: [{path: /etc/x}]".into(),
            "b.yaml:1:22: directories[0].path: /etc/x is already declared by a.yaml line 1",
        ),
        (
            file("/etc/x"),
            file("/etc/x/y"),
            "b.yaml:1:16: files[0].path: /etc/x/y lies below /etc/x, which a.yaml declares as a file",
        ),
        (
            "links: [{path: /etc/x, target: /var}]".into(),
            file("/etc/x/y/z"),
            "b.yaml:1:16: files[0].path: /etc/x/y/z lies below /etc/x, which a.yaml declares as a link",
        ),
        (
            file("/etc/x/y"),
            file("/etc/x"),
            "b.yaml:1:16: files[0].path: /etc/x is no directory, but a.yaml declares /etc/x/y below it",
        ),
        (
            "units: [{name: u.service, enabled: true}]".into(),
            "units: [{name: u.service, enabled: false}]".into(),
            "b.yaml:1:16: units[0].name: unit u.service is already declared by a.yaml line 1",
        ),
        (
            "units: [{name: u.service, contents: x}]".into(),
            "units: [{name: u.service, mask: true}]".into(),
            "b.yaml:1:16: units[0].name: /etc/systemd/system/u.service is already declared by a.yaml line 1",
        ),
        (
            file("/etc/systemd/system/u.service"),
            "units: [{name: u.service, contents: x}]".into(),
            "b.yaml:1:37: units[0].contents: /etc/systemd/system/u.service is already declared by a.yaml line 1",
        ),
        (
            "users: [{name: u, system: true}]".into(),
            "users: [{name: u, system: true}]".into(),
            "b.yaml:1:16: users[0].name: user u is already declared by a.yaml line 1",
        ),
        (
            "users: [{name: u, system: true, uid: 7}]".into(),
            "users: [{name: v, system: true, uid: 7}]".into(),
            "b.yaml:1:16: users[0].name: uid 7 is already declared by a.yaml line 1",
        ),
    ] {
        let error = compile_all(&[("a.yaml", &a), ("b.yaml", &b)]).unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::InvalidDropIn, message));
    }
    // Two drop-ins may each add something to one unit.
    compile_all(&[
        ("a.yaml", "units: [{name: u.service, dropins: [{name: a.conf, contents: x}]}]"),
        ("b.yaml", "units: [{name: u.service, enabled: true, dropins: [{name: b.conf, contents: x}]}]"),
    ])
    .unwrap();
}

proptest! {
    #[test]
    fn no_text_makes_decoding_panic(yaml in "\\PC*") {
        let _ = one(&yaml);
    }

    #[test]
    fn no_nearly_right_text_makes_decoding_panic(
        yaml in "(files:|units:|users:|links:|kernel-arguments:|  - |path: |name: |mode: |contents: |inline: |\\{|\\}|\\[|\\]|, |\n|&a |\\*a|/etc/x|0644|true|~|\"|'|\\||>|!!str |\\? |---\n){0,30}"
    ) {
        if let Err(e) = one(&yaml) {
            prop_assert!(e.details.contains_key("line"), "{}", e);
        }
    }

    #[test]
    fn contents_paths_and_modes_survive_the_way(contents in "[ -~äß\n\t]{0,60}", name in "[a-zA-Z0-9._ :#-]{1,20}", mode in 0u32..=0o7777) {
        prop_assume!(name != "." && name != ".." && !["passwd", "shadow", "group", "osctl"].contains(&name.as_str()));
        let path = format!("/etc/d/{name}");
        let yaml = format!(
            "files:\n- path: {}\n  contents: {{inline: {}}}\n  mode: 0{mode:o}\n",
            serde_json::to_string(&path).unwrap(), serde_json::to_string(&contents).unwrap()
        );
        let m = one(&yaml).unwrap();
        let Node::File(file) = &m.nodes[&path] else { panic!() };
        prop_assert_eq!(file.contents.bytes(), Some(contents.as_bytes()));
        prop_assert_eq!(file.meta.mode, mode);
    }

    #[test]
    fn accepted_paths_are_normal_and_allowed(path in "(/|\\.|\\.\\.|etc|usr|lib|osctl|passwd|x){0,8}") {
        if let Ok(normal) = path::declared(&path, false) {
            prop_assert!(normal.starts_with("/etc/") || normal.starts_with("/usr/"));
            prop_assert!(normal.split("/").skip(1).all(|c| !["", ".", ".."].contains(&c)));
            prop_assert_eq!(path::declared(&normal, false), Ok(normal.clone()));
        }
    }
}

#[test]
fn a_local_file_that_is_private_needs_a_mode() {
    let file = |mode: &str| format!("files:\n  - path: /etc/key\n    contents: {{local: key}}\n{mode}");
    let error = one(&file("")).unwrap_err();
    assert!(error.to_string().starts_with("a.yaml:3"), "{error}");
    assert!(error.hint.unwrap().contains("0600"));
    one(&file("    mode: 0600\n")).unwrap();
}
