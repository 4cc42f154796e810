use super::super::tests::{Files, check_refusals};
use super::super::{Text, compile, decode, sysusers_conf};
use crate::model::contents::{Contents, Expected, Remote};
use crate::model::error::Result;
use crate::model::manifest::{Manifest, Meta, Node};
use proptest::prelude::*;

fn one(bytes: &[u8]) -> Result<Manifest> {
    let text = Text { name: "a.bu".into(), path: "a.bu".into(), bytes: bytes.to_vec() };
    compile(&[(text, &Files)])
}

/// An fcos configuration of the newest version.
fn fcos(rest: &str) -> Manifest {
    one(format!("variant: fcos\nversion: 1.7.0\n{rest}").as_bytes()).unwrap_or_else(|e| panic!("{rest}: {e}"))
}

#[test]
fn bad_input_is_refused_with_its_place() {
    let count = check_refusals(include_str!("bad.txt"), "a.bu");
    assert!(count >= 60, "{count} rows");
}

#[test]
fn everything_in_one_configuration() {
    let m = fcos(
        r#"
storage:
  files:
    - path: /etc/agent.conf
      overwrite: true
      mode: 0600
      user: {id: 7}
      group: {name: root}
      contents: {inline: "a", verification: {hash: sha256-ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb}}
      append: [{inline: b}, {local: conf/a}]
    - path: /etc/local
      contents: {local: conf/a}
    - path: /etc/unpacked
      contents: {local: a.gz, compression: gzip}
    - path: /etc/text
      contents: {source: 'data:text/plain;charset=utf-8,a%20b%2Cc,+', compression: null}
    - path: /etc/base64
      contents: {source: 'DATA:;base64,/wA=', compression: ''}
    - path: /etc/base64-bare
      contents: {source: 'data:;base64,%2FwA'}
  directories: [{path: /etc/dir, mode: 493, overwrite: false, group: {id: 12}}]
  links: [{path: /etc/l, target: ../usr/x, hard: false, user: {name: root}}]
systemd:
  units:
    - name: a.service
      enabled: true
      contents_local: a.service
    - {name: b.service, mask: true}
    - {name: c.service, dropins: [{name: 10-l.conf, contents: "[Service]\n"}, {name: 20-l.conf, contents_local: conf/a}]}
passwd:
  users: [{name: agent, system: true, uid: 480, gecos: An agent, home_dir: /var/lib/agent, shell: /usr/sbin/nologin, no_create_home: true, no_user_group: false, should_exist: true}]
  groups: [{name: agents, system: true, gid: 481}, {name: others, system: true}]
kernel_arguments: {should_exist: [nosmt], should_not_exist: [quiet]}
"#,
    );
    let contents = |path: &str| match &m.nodes[path] {
        Node::File(file) => {
            (file.meta.mode, String::from_utf8_lossy(file.contents.bytes().unwrap()).into_owned())
        }
        node => panic!("{node:?}"),
    };
    for (path, mode, text) in [
        ("/etc/agent.conf", 0o600, "ablocal"),
        ("/etc/local", 0o644, "local"),
        ("/etc/unpacked", 0o644, "local"),
        ("/etc/text", 0o644, "a b,c,+"),
        ("/etc/base64", 0o644, "\u{fffd}\0"),
        ("/etc/base64-bare", 0o644, "\u{fffd}\0"),
        ("/etc/systemd/system/a.service", 0o644, "[Install]\nWantedBy=x.target\n"),
        ("/etc/systemd/system/c.service.d/10-l.conf", 0o644, "[Service]\n"),
        ("/etc/systemd/system/c.service.d/20-l.conf", 0o644, "local"),
    ] {
        assert_eq!(contents(path), (mode, text.to_owned()), "{path}");
    }
    let Node::File(agent) = &m.nodes["/etc/agent.conf"] else { panic!() };
    assert!(agent.overwrite);
    assert_eq!((agent.meta.uid, agent.meta.gid), (7, 0));
    let Node::Directory(dir) = &m.nodes["/etc/dir"] else { panic!() };
    assert_eq!(dir.meta, Meta { mode: 0o755, uid: 0, gid: 12 });
    let Node::Link(link) = &m.nodes["/etc/l"] else { panic!() };
    assert_eq!(link.target, "../usr/x");
    assert_eq!(m.nodes.len(), 12);
    let units: Vec<_> = m.units.iter().map(|(n, u)| (n.as_str(), u.enabled, u.mask)).collect();
    assert_eq!(units, [("a.service", Some(true), false), ("b.service", None, true)]);
    assert_eq!((m.kargs_append[0].arg.as_str(), m.kargs_delete[0].arg.as_str()), ("nosmt", "quiet"));
    assert_eq!(
        sysusers_conf(&m).unwrap(),
        "# System users declared by osctl drop-ins. Written by osctl.\n\n# a.bu\ng agents 481\n\n# a.bu\ng others -\n\
         \n# a.bu\nu agent 480 \"An agent\" /var/lib/agent /usr/sbin/nologin\n"
    );
}

#[test]
fn every_variant_declares_the_same() {
    let file = "storage: {files: [{path: /etc/a, contents: {inline: x}}]}";
    let of = |head: &str| one(format!("{head}\n{file}").as_bytes()).unwrap().input_digest();
    let fcos = of("variant: fcos\nversion: 1.0.0");
    for head in [
        "variant: fcos\nversion: 1.7.0",
        "variant: flatcar\nversion: 1.1.0",
        "variant: openshift\nversion: 4.8.0",
        "variant: openshift\nversion: \"5.0.0\"",
        "variant: r4e\nversion: 1.0.0",
        "variant: fiot\nversion: 1.0.0",
    ] {
        assert_eq!(of(head), fcos, "{head}");
    }
    let ours = Text { name: "a.bu".into(), path: "a.yaml".into(), bytes: Vec::new() };
    assert!(decode(&ours, &Files).unwrap().source().name == "a.bu");
    let m = one(b"variant: openshift\nversion: 4.14.0\nopenshift: {kernel_arguments: [nosmt]}").unwrap();
    assert_eq!(m.kargs_append[0].arg, "nosmt");
}

#[test]
fn a_download_is_known_by_its_digest() {
    let digits = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let butane = |head: &str| {
        format!(
            "{head}\nstorage: {{files: [{{path: /etc/a, contents: {{source: 'https://h/x.gz?k', compression: gzip, \
             verification: {{hash: sha256-{digits}}}}}}}]}}"
        )
    };
    let m = one(butane("variant: fcos\nversion: 1.7.0").as_bytes()).unwrap();
    let Node::File(file) = &m.nodes["/etc/a"] else { panic!() };
    let digest = Expected::Sha256(digits.into());
    let remote = Remote { url: "https://h/x.gz?k".into(), digest: digest.clone(), gzip: true };
    assert_eq!(file.contents, Contents::Remote(remote));
    let ours = Text {
        name: "a.yaml".into(),
        path: "a.yaml".into(),
        bytes: format!("files: [{{path: /etc/a, contents: {{source: 'HTTP://h:80/x', sha256: {digits}}}}}]")
            .into(),
    };
    let m = compile(&[(ours, &Files)]).unwrap();
    let Node::File(file) = &m.nodes["/etc/a"] else { panic!() };
    assert_eq!(file.contents, Contents::Remote(Remote { url: "HTTP://h:80/x".into(), digest, gzip: false }));
}

#[test]
fn trees_become_files_and_links_with_what_other_sections_say_of_them() {
    let modes = |m: &Manifest| -> Vec<(String, String)> {
        let shown = |node: &Node| match node {
            Node::File(f) => format!("{:o} {}:{}", f.meta.mode, f.meta.uid, f.meta.gid),
            Node::Directory(d) => format!("dir {:o} {}:{}", d.meta.mode, d.meta.uid, d.meta.gid),
            Node::Link(l) => format!("-> {}", l.target),
        };
        m.nodes.iter().map(|(path, node)| (path.clone(), shown(node))).collect()
    };
    let rows: &[(&str, &[(&str, &str)])] = &[
        (
            "storage: {trees: [{local: tree, path: /etc/t}]}",
            &[
                ("/etc/t/agent.conf", "644 0:0"),
                ("/etc/t/bin/agent", "755 0:0"),
                ("/etc/t/link", "-> agent.conf"),
            ],
        ),
        ("storage: {trees: [{local: ., path: /}]}", &[("/etc/all", "644 0:0")]),
        ("storage: {trees: [{local: ''}]}", &[("/etc/all", "644 0:0")]),
        (
            "storage: {trees: [{local: tree/, path: /usr/t/, file_mode: 0600, dir_mode: 0700, group: {id: 5}}], links: [{path: /usr/t/link}]}",
            &[
                ("/usr/t", "dir 700 0:5"),
                ("/usr/t/agent.conf", "600 0:5"),
                ("/usr/t/bin", "dir 700 0:5"),
                ("/usr/t/bin/agent", "600 0:5"),
                ("/usr/t/link", "-> agent.conf"),
            ],
        ),
        (
            "storage:\n  trees: [{local: tree, path: /etc}, {local: secret, path: /etc}]\n  files: [{path: /etc/key, mode: 0600, user: {id: 3}}, {path: /etc/bin/agent, overwrite: true}]\n  links: [{path: /etc/link, overwrite: true}]",
            &[
                ("/etc/agent.conf", "644 0:0"),
                ("/etc/bin/agent", "755 0:0"),
                ("/etc/key", "600 3:0"),
                ("/etc/link", "-> agent.conf"),
            ],
        ),
    ];
    for (yaml, expected) in rows {
        let expected: Vec<_> = expected.iter().map(|(p, m)| ((*p).to_owned(), (*m).to_owned())).collect();
        assert_eq!(modes(&fcos(yaml)), expected, "{yaml}");
    }
}

#[test]
fn modes_are_read_as_yaml_1_1_reads_numbers() {
    for (written, mode) in [
        ("0644", 0o644),
        ("0o644", 0o644),
        ("420", 0o644),
        ("493", 0o755),
        ("384", 0o600),
        ("416", 0o640),
        ("0", 0),
        ("04755", 0o4755),
        ("4095", 0o7777),
        ("292", 0o444),
    ] {
        let m = fcos(&format!(
            "storage: {{files: [{{path: /etc/a, contents: {{inline: x}}, mode: {written}}}]}}"
        ));
        let Node::File(file) = &m.nodes["/etc/a"] else { panic!() };
        assert_eq!(file.meta.mode, mode, "{written}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_decoding_panic(text in "\\PC*") {
        if let Err(e) = one(text.as_bytes()) {
            prop_assert!(e.details.contains_key("file"), "{}", e);
        }
    }

    #[test]
    fn no_nearly_right_text_makes_decoding_panic(
        rest in "(storage:|systemd:|passwd:|  files:|  trees:|  units:|  users:|kernel_arguments:|    - |  |path: |name: |mode: |contents: |inline: |local: |source: |append: |\\{|\\}|\\[|\\]|, |\n|&a |/etc/x|tree|0644|644|true|~|data:,%|data:;base64,|gzip|\"|'|\\|){0,30}"
    ) {
        if let Err(e) = one(format!("variant: fcos\nversion: 1.7.0\n{rest}").as_bytes()) {
            prop_assert!(e.details.contains_key("file") && e.details.contains_key("line"), "{}", e);
        }
    }

    #[test]
    fn data_urls_give_back_what_was_put_in(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        use base64::Engine as _;
        let escaped: String = bytes.iter().map(|b| format!("%{b:02x}")).collect();
        let base64 = base64::engine::general_purpose::STANDARD.encode(&bytes);
        for url in [format!("data:,{escaped}"), format!("data:x/y;a=b;base64,{base64}")] {
            let m = fcos(&format!("storage: {{files: [{{path: /etc/a, contents: {{source: '{url}'}}}}]}}"));
            let Node::File(file) = &m.nodes["/etc/a"] else { panic!() };
            prop_assert_eq!(file.contents.bytes(), Some(&bytes[..]));
        }
    }
}
