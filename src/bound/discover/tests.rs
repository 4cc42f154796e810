//! Discovery in real commits.

use super::*;
use cap_std_ext::cap_std::ambient_authority;
use ostree_ext::{gio, ostree};
use std::os::unix::fs::symlink;
use std::path::Path;

enum Put<'a> {
    File(&'a str),
    Link(&'a str),
}
use Put::{File, Link};

const OK: &str = "[Container]\nImage=quay.io/x/a:1\n";

fn write(root: &Path, path: &str, put: &Put) {
    let path = root.join(path.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    match put {
        File(text) => std::fs::write(path, text).unwrap(),
        Link(target) => symlink(target, path).unwrap(),
    }
}

/// Discovers in a commit of `tree` with `host` as the configuration root; `source image` lines or the error.
fn found(tree: &[(&str, Put)], host: &[(&str, Put)]) -> Result<Vec<String>> {
    let temp = tempfile::tempdir().unwrap();
    let (root, config) = (temp.path().join("tree"), temp.path().join("host"));
    std::fs::create_dir_all(root.join("usr")).unwrap();
    std::fs::create_dir_all(&config).unwrap();
    tree.iter().for_each(|(path, put)| write(&root, path, put));
    host.iter().for_each(|(path, put)| write(&config, path, put));
    let repo = ostree::Repo::new_for_path(temp.path().join("repo"));
    repo.create(ostree::RepoMode::BareUser, gio::Cancellable::NONE).unwrap();
    let no = gio::Cancellable::NONE;
    repo.prepare_transaction(no).unwrap();
    let mtree = ostree::MutableTree::new();
    repo.write_directory_to_mtree(&gio::File::for_path(&root), &mtree, None, no).unwrap();
    let file = repo.write_mtree(&mtree, no).unwrap();
    let file = gio::prelude::Cast::downcast::<ostree::RepoFile>(file).unwrap();
    let commit = repo.write_commit(None, None, None, None, &file, no).unwrap();
    repo.commit_transaction(no).unwrap();
    let tree = CommitTree::open(&repo, &commit).unwrap();
    let config = Dir::open_ambient_dir(&config, ambient_authority()).unwrap();
    let specs = discover(&tree, &config)?;
    Ok(specs.into_iter().map(|s| format!("{} {}", s.source, s.reference.name)).collect())
}

#[test]
fn links_and_toml_of_the_image_and_of_the_administrator_are_found() {
    assert_eq!(found(&[], &[]).unwrap(), [""; 0]);
    let got = found(
        &[
            ("/usr/share/containers/systemd/a.container", File(OK)),
            ("/usr/lib/bootc/bound-images.d/a.container", Link("/usr/share/containers/systemd/a.container")),
            ("/usr/lib/osctl/bound-images.d/b.image", Link("../../../share/containers/systemd/b.image")),
            ("/usr/share/containers/systemd/b.image", File("[Image]\nImage=quay.io/x/b:1")),
            (
                "/usr/lib/osctl/bound-images.d/c.container",
                Link("../../../etc/containers/systemd/c.container"),
            ),
            ("/usr/etc/containers/systemd/c.container", File("[Container]\nImage=d.image")),
            ("/usr/share/containers/systemd/sub/d.image", File("[Image]\nImage=quay.io/x/d:1")),
            ("/usr/lib/osctl/bound-images.d/e.toml", File("image = \"quay.io/x/e:1\"")),
            ("/usr/lib/osctl/bound-images.d/masked.toml", File("nonsense")),
            ("/usr/lib/osctl/bound-images.d/replaced.toml", File("nonsense")),
            ("/usr/lib/bootc/bound-images.d/f.container", Link("/etc/containers/systemd/f.container")),
            ("/usr/etc/containers/systemd/f.container", File(OK)),
            ("/usr/etc/containers/systemd/f.container.d/1.conf", File("[Container]\nImage=quay.io/x/f:2")),
            ("/usr/share/containers/systemd/g.container", File(OK)),
            ("/usr/etc/containers/systemd/g.container", File("[Container]\nImage=quay.io/x/g:etc")),
            ("/usr/lib/bootc/bound-images.d/g.container", Link("/usr/share/containers/systemd/g.container")),
            ("/usr/lib/bootc/bound-images.d/h.container", Link("/usr/share/containers/systemd/nothing")),
        ],
        &[
            ("/etc/osctl/bound-images.d/masked.toml", Link("/dev/null")),
            ("/etc/osctl/bound-images.d/h.container", Link("/dev/null")),
            ("/etc/osctl/bound-images.d/replaced.toml", File("image = \"quay.io/x/r:1\"")),
            ("/etc/osctl/bound-images.d/z.toml", File("image = \"quay.io/x/z:1\"")),
        ],
    );
    assert_eq!(
        got.unwrap(),
        [
            "/usr/lib/bootc/bound-images.d/a.container quay.io/x/a:1",
            "/usr/lib/osctl/bound-images.d/b.image quay.io/x/b:1",
            "/usr/lib/osctl/bound-images.d/c.container quay.io/x/d:1",
            "/usr/lib/osctl/bound-images.d/e.toml quay.io/x/e:1",
            "/usr/lib/bootc/bound-images.d/f.container quay.io/x/f:2",
            "/usr/lib/bootc/bound-images.d/g.container quay.io/x/g:etc",
            "/etc/osctl/bound-images.d/replaced.toml quay.io/x/r:1",
            "/etc/osctl/bound-images.d/z.toml quay.io/x/z:1",
        ]
    );
}

#[test]
fn whatever_is_wrong_in_the_tree_names_its_file() {
    const B: &str = "/usr/lib/bootc/bound-images.d";
    const Q: &str = "/usr/share/containers/systemd";
    let at = |name: &str| format!("{B}/{name}");
    let big = format!("[Container]\nImage=quay.io/x/a:1\n{}", "# x\n".repeat(300_000));
    /// What it is about, what is in the tree, and what is said.
    type Row<'a> = (&'a str, Vec<(String, Put<'a>)>, &'a str);
    let table: Vec<Row> = vec![
        ("a file", vec![(at("a.container"), File(OK))], "a.container: is not a link"),
        (
            "a TOML for bootc",
            vec![(at("a.toml"), File("image=\"quay.io/x/a\""))],
            "a.toml: does not end in .container or .image",
        ),
        (
            "dangling",
            vec![(at("a.container"), Link("/usr/share/nothing.container"))],
            "a.container: links to /usr/share/nothing.container, which does not exist in the image",
        ),
        (
            "a loop",
            vec![(at("a.container"), Link("b.container")), (at("b.container"), Link("a.container"))],
            "a.container: is part of a loop of links",
        ),
        (
            "climbing",
            vec![(at("a.container"), Link("../../../../../etc/a.container"))],
            "a.container: links to ../../../../../etc/a.container, which leaves the tree",
        ),
        (
            "suffix",
            vec![(at("a.service"), Link("/usr/x"))],
            "a.service: does not end in .container or .image",
        ),
        (
            "build",
            vec![(at("a.build"), Link("/usr/x"))],
            "a.build: a .build file is built on the host, so there is no image to bind",
        ),
        (
            "kube",
            vec![(at("a.kube"), Link("/usr/x"))],
            "a.kube: binding a .kube file is not supported by this version",
        ),
        (
            "type",
            vec![(at("a.container"), Link("/usr/a.image")), ("/usr/a.image".into(), File(OK))],
            "a.container: links to /usr/a.image, which is a file of another type",
        ),
        (
            "directory",
            vec![(at("a.container"), Link("/usr/lib"))],
            "a.container: /usr/lib is a directory, not a file",
        ),
        (
            "no such image file",
            vec![
                (at("a.container"), Link("/usr/share/containers/systemd/a.container")),
                (format!("{Q}/a.container"), File("[Container]\n\nImage=b.image")),
            ],
            "/usr/share/containers/systemd/a.container:3: Image=b.image: there is no b.image in /etc/containers/systemd or /usr/share/containers/systemd",
        ),
        (
            "line",
            vec![
                (at("a.container"), Link("/usr/share/containers/systemd/a.container")),
                (format!("{Q}/a.container"), File("[Container]\nImage=a")),
            ],
            "/usr/share/containers/systemd/a.container:2: image \"a\" names no registry; write it in full, for example quay.io/example/a",
        ),
        (
            "too large",
            vec![(at("a.container"), Link("/usr/a.container")), ("/usr/a.container".into(), File(&big))],
            "a.container: is larger than 1 MiB",
        ),
    ];
    for (what, tree, expected) in table {
        let tree: Vec<(&str, Put)> = tree
            .iter()
            .map(|(p, put)| {
                (
                    p.as_str(),
                    match put {
                        File(t) => File(t),
                        Link(t) => Link(t),
                    },
                )
            })
            .collect();
        let error = found(&tree, &[]).expect_err(what);
        let expected = if expected.starts_with('/') { expected.to_owned() } else { at(expected) };
        assert_eq!((error.to_string(), error.kind), (expected, ErrorKind::InvalidDropIn), "{what}");
        assert!(error.details.contains_key("file"), "{what}");
    }
}

#[test]
fn whatever_is_wrong_on_the_host_names_its_file() {
    const A: &str = "/etc/osctl/bound-images.d";
    let at = |name: &str| format!("{A}/{name}");
    for (name, put, expected) in [
        ("a.container", File(OK), "a.container: does not end in .toml"),
        ("a.toml", File("image = \"quay.io/x/a:1\"\nfoo = 1"), "a.toml:2: unknown key \"foo\""),
        ("a.toml", Link("/nothing"), "a.toml: is a link to a file that does not exist"),
        ("a.toml", Link("nothing"), "a.toml: is a link to a file that does not exist"),
        ("a.toml/x", File(""), "a.toml: is not a regular file"),
    ] {
        let error = found(&[], &[(&at(name), put)]).expect_err(expected);
        let text = error.to_string();
        // A link out of the directory is refused by the kernel's or cap-std's rules, whose text is not ours.
        let expected = at(expected);
        assert!(text == expected || text == format!("{A}/a.toml: cannot be read"), "{text}");
    }
    let error = found(&[], &[("/etc/osctl/bound-images.d", File(""))]).unwrap_err();
    assert_eq!(error.to_string(), "/etc/osctl/bound-images.d: is not a directory");
}

#[test]
fn text_that_is_not_utf8_and_files_that_others_can_write_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("etc/osctl/bound-images.d");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("a.toml"), b"# one\nimage = \"\xff\"").unwrap();
    let root = Dir::open_ambient_dir(temp.path(), ambient_authority()).unwrap();
    assert_eq!(
        read_admin(&root).unwrap_err().to_string(),
        "/etc/osctl/bound-images.d/a.toml:2: is not UTF-8"
    );
    std::fs::set_permissions(dir.join("a.toml"), PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(
        read_admin(&root).unwrap_err().to_string(),
        "/etc/osctl/bound-images.d/a.toml: can be written by others than root"
    );
}

#[test]
fn lint_gives_the_same_messages_offline() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name);
    let lint = |name: &str| super::super::lint_path(&path(name)).map_err(|e| e.to_string());
    std::fs::write(path("a.container"), "[Container]\nImage=b.image\n").unwrap();
    assert_eq!(
        lint("a.container"),
        Err(format!("{}:2: Image=b.image: there is no b.image beside it", path("a.container").display()))
    );
    std::fs::write(path("b.image"), "[Image]\nImage=quay.io/x/b:1\n").unwrap();
    std::fs::write(path("c.toml"), "image = \"quay.io/x/c:1\"\n").unwrap();
    assert_eq!(lint("a.container"), Ok(vec!["quay.io/x/b:1".to_owned()]));
    assert_eq!(lint("c.toml"), Ok(vec!["quay.io/x/c:1".to_owned()]));
    std::fs::write(path("d.kube"), "").unwrap();
    assert_eq!(
        lint("d.kube"),
        Err(format!("{}: binding a .kube file is not supported by this version", path("d.kube").display()))
    );
}

#[test]
fn relative_links_lead_from_where_they_really_are() {
    for (dir, at) in [
        ("/usr/lib/osctl/bound-images.d", "../../share/vendor/bound"),
        ("/usr/lib/osctl/bound-images.d", "/usr/share/vendor/bound"),
    ] {
        let got = found(
            &[
                (dir, Link(at)),
                ("/usr/share/vendor/bound/a.container", Link("../../containers/systemd/a.container")),
                ("/usr/share/containers/systemd/a.container", File(OK)),
            ],
            &[],
        );
        let got = got.unwrap_or_else(|e| panic!("{at}: {}", e.chain()));
        assert_eq!(got, ["/usr/lib/osctl/bound-images.d/a.container quay.io/x/a:1"], "{at}");
    }
}
