//! Discovery in real commits.

use super::*;
use crate::model::ErrorKind;
use cap_std_ext::cap_std::ambient_authority;
use ostree_ext::{gio, ostree};
use std::os::unix::fs::symlink;
use std::path::Path;

#[derive(Clone, Copy)]
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
            "a.toml: does not end in .container, .image or .kube",
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
            "a.service: does not end in .container, .image or .kube",
        ),
        (
            "build",
            vec![(at("a.build"), Link("/usr/x"))],
            "a.build: a .build file is built on the host, so there is no image to bind",
        ),
        (
            "no YAML",
            vec![
                (at("a.kube"), Link("/usr/share/containers/systemd/a.kube")),
                (format!("{Q}/a.kube"), File("[Kube]\nYaml=a.yaml\n")),
            ],
            "/usr/share/containers/systemd/a.kube:2: Yaml=a.yaml: there is no /usr/share/containers/systemd/a.yaml in the image",
        ),
        (
            "YAML that leaves the tree",
            vec![
                (at("a.kube"), Link("/usr/share/containers/systemd/a.kube")),
                (format!("{Q}/a.kube"), File("[Kube]\nYaml=../../../../../a.yaml\n")),
            ],
            "/usr/share/containers/systemd/a.kube:2: Yaml=../../../../../a.yaml: the path leaves the tree",
        ),
        (
            "a mistake in YAML",
            vec![
                (at("a.kube"), Link("/usr/share/containers/systemd/a.kube")),
                (format!("{Q}/a.kube"), File("[Kube]\nYaml=/usr/share/a.yaml\n")),
                ("/usr/share/a.yaml".into(), File("kind: Pod\nspec:\n  containers: [{image: a}]\n")),
            ],
            "/usr/share/a.yaml:3:24: spec.containers[0].image: image \"a\" names no registry; write it in full, for example quay.io/example/a",
        ),
        (
            "an image that is built",
            vec![
                (at("a.kube"), Link("/usr/share/containers/systemd/a.kube")),
                (format!("{Q}/a.kube"), File("[Kube]\nYaml=a.yaml\nSetWorkingDirectory=yaml\n")),
                (format!("{Q}/a.yaml"), File("kind: Pod\nspec:\n  containers: [{image: localhost/app:1}]\n")),
                (format!("{Q}/app/Containerfile"), File("FROM scratch\n")),
            ],
            "/usr/share/containers/systemd/a.yaml:3: spec.containers[0].image: localhost/app:1 is built on the host from /usr/share/containers/systemd/app/Containerfile, so there is no image to bind",
        ),
        (
            "a drop-in",
            vec![
                (at("a-b.container"), Link("/usr/share/containers/systemd/a-b.container")),
                (format!("{Q}/a-b.container"), File(OK)),
                (format!("{Q}/a-.container.d/1.conf"), File("\n[Container]\nImage=a\n")),
            ],
            "/usr/share/containers/systemd/a-.container.d/1.conf:3: image \"a\" names no registry; write it in full, for example quay.io/example/a",
        ),
        (
            "another platform",
            vec![
                (at("a.image"), Link("/usr/share/containers/systemd/a.image")),
                (format!("{Q}/a.image"), File("[Image]\nImage=quay.io/x/a:1\nArch=arm64\n")),
                (at("b.container"), Link("/usr/share/containers/systemd/b.container")),
                (format!("{Q}/b.container"), File(OK)),
            ],
            "b.container: binds quay.io/x/a:1 for another platform than /usr/lib/bootc/bound-images.d/a.image does",
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
            "/usr/a.container: is larger than 1 MiB",
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
        ("a.container", File(OK), "a.container: is not a link"),
        ("a.service", File(OK), "a.service: does not end in .toml, .container, .image or .kube"),
        (
            "a.container",
            Link("/etc/containers/systemd/a.container"),
            "a.container: links to /etc/containers/systemd/a.container, which does not exist in the image",
        ),
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

const SYSTEMD: &str = "/usr/share/containers/systemd";

/// The images of one link in bootc's directory to `name` in podman's, given what lies in the tree.
fn images_of(name: &str, tree: &[(&str, &str)]) -> String {
    let link = format!("/usr/lib/bootc/bound-images.d/{name}");
    let target = format!("{SYSTEMD}/{name}");
    let mut all = vec![(link.as_str(), Link(&target))];
    all.extend(tree.iter().map(|(path, text)| match text.strip_prefix("->") {
        Some(target) => (*path, Link(target)),
        None => (*path, File(text)),
    }));
    match found(&all, &[]) {
        Ok(lines) => {
            let images: Vec<_> = lines.iter().map(|l| l.replace(&format!("{link} "), "")).collect();
            images.join(" ")
        }
        Err(e) => format!("error: {e}"),
    }
}

#[test]
fn units_and_drop_ins_are_looked_for_as_podman_does() {
    const ETC: &str = "/usr/etc/containers/systemd";
    let q = |rest: &str| format!("{SYSTEMD}/{rest}");
    let e = |rest: &str| format!("{ETC}/{rest}");
    let image = |name: &str| format!("[Container]\nImage=quay.io/x/{name}\n");
    let (unit, one, two) = (image("unit"), image("one"), image("two"));
    /// The linked name, what is in the tree, and the images.
    type Row<'a> = (&'a str, Vec<(String, &'a str)>, &'a str);
    let table: Vec<Row> = vec![
        // Names of drop-ins: the last in name order counts, wherever it is.
        (
            "a.container",
            vec![
                (q("a.container"), &unit),
                (q("a.container.d/9.conf"), &one),
                (e("container.d/8.conf"), &two),
            ],
            "quay.io/x/one",
        ),
        (
            "a.container",
            vec![
                (q("a.container"), &unit),
                (q("a.container.d/8.conf"), &one),
                (e("container.d/9.conf"), &two),
            ],
            "quay.io/x/two",
        ),
        // Of one name, /etc comes first, then what is more specific.
        (
            "a.container",
            vec![
                (q("a.container"), &unit),
                (q("a.container.d/1.conf"), &one),
                (e("container.d/1.conf"), &two),
            ],
            "quay.io/x/two",
        ),
        (
            "a-b.container",
            vec![
                (q("a-b.container"), &unit),
                (q("a-.container.d/1.conf"), &one),
                (q("a-b.container.d/1.conf"), &two),
            ],
            "quay.io/x/two",
        ),
        (
            "a-b.container",
            vec![
                (q("a-b.container"), &unit),
                (q("a-.container.d/1.conf"), &one),
                (q("container.d/1.conf"), &two),
            ],
            "quay.io/x/one",
        ),
        (
            "a-b.container",
            vec![(q("a-b.container"), &unit), (q("b-.container.d/1.conf"), &one)],
            "quay.io/x/unit",
        ),
        // Drop-ins in a directory below, masked ones, and other files.
        (
            "a.container",
            vec![(q("a.container"), &unit), (q("sub/a.container.d/1.conf"), &one)],
            "quay.io/x/one",
        ),
        (
            "a.container",
            vec![
                (q("a.container"), &unit),
                (q("a.container.d/1.conf"), &one),
                (e("a.container.d/1.conf"), "->/dev/null"),
            ],
            "quay.io/x/unit",
        ),
        ("a.container", vec![(q("a.container"), &unit), (q("a.container.d/1.txt"), &one)], "quay.io/x/unit"),
        ("a.container", vec![(q("a.container"), &unit), (q("b.container.d/1.conf"), &one)], "quay.io/x/unit"),
        // Templates and instances.
        (
            "a@.container",
            vec![(q("a@.container"), &unit), (q("a@.container.d/1.conf"), &one)],
            "quay.io/x/one",
        ),
        (
            "a@1.container",
            vec![
                (q("a@1.container"), "->a@.container"),
                (q("a@.container"), &unit),
                (q("a@.container.d/1.conf"), &one),
            ],
            "quay.io/x/one",
        ),
        (
            "a@1.container",
            vec![
                (q("a@1.container"), "->a@.container"),
                (q("a@.container"), &unit),
                (q("a@1.container.d/1.conf"), &two),
                (q("a@.container.d/1.conf"), &one),
            ],
            "quay.io/x/two",
        ),
        (
            "a@1.container",
            vec![
                (q("a@1.container"), "->a@.container"),
                (q("a@.container"), &unit),
                (q("a@2.container.d/1.conf"), &one),
            ],
            "quay.io/x/unit",
        ),
        // Which unit: /etc hides /usr, directories before those below them, users have their own.
        ("a.container", vec![(q("a.container"), &unit), (e("sub/a.container"), &one)], "quay.io/x/one"),
        ("a.container", vec![(q("a.container"), &unit), (e("users/a.container"), &one)], "quay.io/x/unit"),
        ("a.container", vec![(q("a.container"), &unit), (e("x.d/a.container"), &one)], "quay.io/x/unit"),
        ("a.container", vec![(q("a.container"), &unit), (e("a.container"), "->/dev/null")], ""),
        (
            "a.container",
            vec![
                (q("a.container"), &unit),
                (e("vendor"), "->/usr/lib/vendor"),
                ("/usr/lib/vendor/a.container".into(), &one),
            ],
            "quay.io/x/one",
        ),
        // References.
        (
            "a.container",
            vec![
                (q("a.container"), "[Container]\nImage=b.image\n"),
                (q("b.image"), "[Image]\nImage=quay.io/x/b\n"),
                (e("image.d/1.conf"), "[Image]\nImage=quay.io/x/c\n"),
            ],
            "quay.io/x/c",
        ),
        (
            "a.container",
            vec![
                (q("a.container"), "[Container]\nImage=quay.io/x/a\nVolume=v.volume:/v\n"),
                (q("v.volume"), "[Volume]\nDriver=image\nImage=b.image\n"),
                (q("b.image"), "[Image]\nImage=quay.io/x/b\n"),
            ],
            "quay.io/x/a quay.io/x/b",
        ),
        (
            "a.container",
            vec![(q("a.container"), "[Container]\nImage=quay.io/x/a\nVolume=v.volume:/v\n")],
            "quay.io/x/a",
        ),
        (
            "a.container",
            vec![
                (q("a.container"), "[Container]\nImage=../b.image\n"),
                (q("b.image"), "[Image]\nImage=quay.io/x/b\n"),
            ],
            "error: /usr/share/containers/systemd/a.container:2: Image=../b.image: there is no ../b.image in /etc/containers/systemd or /usr/share/containers/systemd",
        ),
        // Kubernetes: relative to where podman found the unit, which is in /etc here.
        (
            "a.kube",
            vec![
                (q("a.kube"), "[Kube]\nYaml=k/a.yaml\n"),
                (
                    q("k/a.yaml"),
                    "kind: Pod\nspec: {containers: [{image: quay.io/x/b}, {image: quay.io/x/a}]}\n",
                ),
            ],
            "quay.io/x/a quay.io/x/b",
        ),
        (
            "a.kube",
            vec![
                (q("a.kube"), "nonsense"),
                (e("a.kube"), "[Kube]\nYaml=a.yaml\n"),
                (q("a.yaml"), "nonsense"),
                (e("a.yaml"), "kind: Pod\nspec: {containers: [{image: quay.io/x/a}]}\n"),
            ],
            "quay.io/x/a",
        ),
        // Built only where podman runs.
        (
            "a.kube",
            vec![
                (q("a.kube"), "[Kube]\nYaml=a.yaml\n"),
                (q("a.yaml"), "kind: Pod\nspec: {containers: [{image: quay.io/x/a}]}\n"),
                (q("a/Containerfile"), "FROM x\n"),
            ],
            "quay.io/x/a",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, tree, expected) in &table {
        let tree: Vec<_> = tree.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let got = images_of(name, &tree);
        if got != *expected {
            wrong.push((name, tree, *expected, got));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_administrator_may_link_to_quadlets_and_change_those_of_the_image() {
    let tree = [
        ("/usr/share/containers/systemd/a.container", File(OK)),
        ("/usr/share/containers/systemd/own.container", File("[Container]\nImage=quay.io/x/own:1")),
        ("/usr/lib/bootc/bound-images.d/a.container", Link("/usr/share/containers/systemd/a.container")),
        ("/usr/etc/containers/systemd/b.container", File("[Container]\nImage=quay.io/x/b:new")),
        ("/usr/lib/bootc/bound-images.d/b.container", Link("/etc/containers/systemd/b.container")),
    ];
    let own =
        ("/etc/osctl/bound-images.d/own.container", Link("/usr/share/containers/systemd/own.container"));
    let changed = ("/etc/containers/systemd/a.container", File("[Container]\nImage=quay.io/x/changed:1"));
    let kept = ("/etc/containers/systemd/b.container", File("[Container]\nImage=quay.io/x/b:old"));
    let images = |host: &[(&str, Put)]| {
        let lines = found(&tree, host).map_err(|e| e.to_string())?;
        Ok::<_, String>(
            lines.iter().map(|l| l.rsplit(' ').next().unwrap().to_owned()).collect::<Vec<_>>().join(" "),
        )
    };
    assert_eq!(images(&[own]).unwrap(), "quay.io/x/a:1 quay.io/x/b:new quay.io/x/own:1");
    // Not a deployment: its /etc is not what will be booted.
    assert_eq!(images(&[changed]).unwrap(), "quay.io/x/a:1 quay.io/x/b:new");
    // A deployment: what was changed stays, what was not is replaced by the new one.
    let vendor = ("/usr/etc/containers/systemd/b.container", File("[Container]\nImage=quay.io/x/b:old"));
    assert_eq!(images(&[changed, kept, vendor]).unwrap(), "quay.io/x/b:new quay.io/x/changed:1");
    let edited = (kept.0, File("[Container]\nImage=quay.io/x/b:own"));
    assert_eq!(images(&[edited, vendor]).unwrap(), "quay.io/x/a:1 quay.io/x/b:own");
    // Removed by hand: it will not be there, so the link leads nowhere.
    assert_eq!(
        images(&[vendor]).unwrap_err(),
        "/usr/lib/bootc/bound-images.d/b.container: links to /etc/containers/systemd/b.container, which does not exist in the image"
    );
}
