use super::*;
use crate::model::lint::LintReport;
use std::os::unix::fs::symlink;

const OK: &str = "[Container]\nImage=quay.io/x/a:1\n";

/// A directory with these files; `->` begins the target of a link.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = temp.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.strip_prefix("->") {
            Some(target) => symlink(target, path).unwrap(),
            None => std::fs::write(path, text).unwrap(),
        }
    }
    temp
}

/// `path [images]` of each file, and its findings as `path:line: error: message`.
fn report(temp: &tempfile::TempDir, below: &str) -> Vec<String> {
    let report = LintReport::new(lint(&temp.path().join(below)).unwrap());
    let prefix = format!("{}/", temp.path().display());
    let mut lines = Vec::new();
    for file in report.files {
        let path = file.path.replace(&prefix, "");
        lines.push(format!("{path} [{}]", file.images.join(" ")));
        for (label, findings) in [("error", &file.errors), ("warning", &file.warnings)] {
            for e in findings {
                let line = e.line.map(|l| format!(":{l}")).unwrap_or_default();
                lines.push(format!("{path}{line}: {label}: {}", e.message.replace(&prefix, "")));
            }
        }
    }
    lines
}

#[test]
fn the_root_of_an_image_is_read_as_discovery_reads_it() {
    let temp = tree(&[
        ("usr/share/containers/systemd/a.container", OK),
        ("usr/share/containers/systemd/a.container.d/1.conf", "[Container]\nImage=quay.io/x/a:2\n"),
        ("usr/lib/bootc/bound-images.d/a.container", "->/usr/share/containers/systemd/a.container"),
        ("usr/lib/bootc/bound-images.d/gone.container", "->/usr/share/containers/systemd/gone.container"),
        ("usr/lib/osctl/bound-images.d/k.kube", "->../../../../etc/containers/systemd/k.kube"),
        ("etc/containers/systemd/k.kube", "[Kube]\nYaml=k.yaml\n"),
        (
            "etc/containers/systemd/k.yaml",
            "kind: Pod\nspec:\n  containers: [{image: quay.io/x/k:1}, {image: k}]\n",
        ),
        ("usr/lib/osctl/bound-images.d/README", "x"),
        ("usr/lib/osctl/bound-images.d/masked.toml", "nonsense"),
        ("etc/osctl/bound-images.d/masked.toml", "->/dev/null"),
        ("usr/lib/osctl/bound-images.d/replaced.toml", "nonsense"),
        ("etc/osctl/bound-images.d/replaced.toml", "image = \"quay.io/x/r:1\"\n"),
        ("usr/share/containers/systemd/unbound.container", "[Container]\nImage=local.build\n"),
        ("usr/share/containers/systemd/broken.container", "[Container]\nImage\n"),
        ("usr/lib/os-release", "ID=test\n"),
        ("usr/share/doc/example.container", "nonsense"),
    ]);
    let expected = [
        "etc/containers/systemd/k.kube []",
        "etc/containers/systemd/k.yaml []",
        "etc/containers/systemd/k.yaml:3: error: image \"k\" names no registry; write it in full, for example quay.io/example/k",
        "etc/osctl/bound-images.d/masked.toml []",
        "etc/osctl/bound-images.d/replaced.toml [quay.io/x/r:1]",
        "usr/lib/bootc/bound-images.d/a.container [quay.io/x/a:2]",
        "usr/lib/bootc/bound-images.d/gone.container []",
        "usr/lib/bootc/bound-images.d/gone.container: error: links to /usr/share/containers/systemd/gone.container, which does not exist in the image",
        "usr/lib/osctl/bound-images.d/README []",
        "usr/lib/osctl/bound-images.d/README: error: does not end in .container, .image or .kube",
        "usr/lib/osctl/bound-images.d/k.kube []",
        "usr/lib/osctl/bound-images.d/masked.toml []",
        "usr/lib/osctl/bound-images.d/replaced.toml []",
        "usr/share/containers/systemd/a.container [quay.io/x/a:2]",
        "usr/share/containers/systemd/a.container.d/1.conf []",
        "usr/share/containers/systemd/broken.container []",
        "usr/share/containers/systemd/broken.container:2: error: \"Image\" is neither [Section] nor Key=value",
        "usr/share/containers/systemd/unbound.container []",
        "usr/share/containers/systemd/unbound.container:2: warning: Image=local.build: a .build file is built on the host, so there is no image to bind",
    ];
    assert_eq!(report(&temp, ""), expected);
    // A part of it is read in the light of the whole.
    let part: Vec<_> = expected.iter().filter(|l| l.starts_with("usr/lib/bootc")).collect();
    assert_eq!(report(&temp, "usr/lib/bootc").iter().collect::<Vec<_>>(), part);
    assert_eq!(
        report(&temp, "usr/lib/bootc/bound-images.d/a.container"),
        ["usr/lib/bootc/bound-images.d/a.container [quay.io/x/a:2]"]
    );
    // An image that was committed before has its /etc in /usr.
    std::fs::rename(temp.path().join("etc"), temp.path().join("usr/etc")).unwrap();
    let moved: Vec<_> = expected.iter().map(|l| l.replace("etc/", "usr/etc/")).collect();
    let mut found = report(&temp, "");
    found.sort();
    let mut moved: Vec<_> = moved.into_iter().map(|l| l.replace("usr/usr/", "usr/")).collect();
    moved.sort();
    assert_eq!(found, moved);
}

#[test]
fn a_source_tree_may_have_its_files_anywhere() {
    let temp = tree(&[
        ("README.md", "x"),
        ("quadlets/web.container", "[Container]\nImage=web.image\n"),
        ("quadlets/web.image", "[Image]\nImage=quay.io/x/web:1\n"),
        ("quadlets/web.container.d/10-a.conf", "[Container]\nPodmanArgs=--arch=arm64\n"),
        ("bound-images.d/web.container", "->/usr/share/containers/systemd/web.container"),
        ("bound-images.d/near.container", "->../quadlets/near.container"),
        ("quadlets/near.container", OK),
        ("bound-images.d/nowhere.container", "->/usr/share/containers/systemd/nowhere.container"),
        ("bound-images.d/.gitkeep", ""),
        ("bound-images.d/data.toml", "image = \"quay.io/x/data:1\"\npolicy = \"never\"\n"),
        ("other/unbound.container", "[Container]\nImage=short\n"),
        ("disk.image", "\u{fffd}"),
        ("rootfs/usr/share/containers/systemd/c.container", OK),
    ]);
    std::fs::write(temp.path().join("disk.image"), b"\xff\xfe").unwrap();
    assert_eq!(
        report(&temp, ""),
        [
            "bound-images.d/data.toml []",
            "bound-images.d/data.toml:2: error: policy \"never\" cannot be bound: nobody would pull the image",
            "bound-images.d/near.container [quay.io/x/a:1]",
            "bound-images.d/nowhere.container []",
            "bound-images.d/nowhere.container: error: links to /usr/share/containers/systemd/nowhere.container, which does not exist in the image",
            "bound-images.d/web.container []",
            "other/unbound.container []",
            "other/unbound.container:2: error: image \"short\" names no registry; write it in full, for example quay.io/example/short",
            "quadlets/near.container [quay.io/x/a:1]",
            "quadlets/web.container []",
            "quadlets/web.container.d/10-a.conf []",
            "quadlets/web.container.d/10-a.conf:2: error: PodmanArgs=--arch changes which image is found or how it is pulled",
            "quadlets/web.image [quay.io/x/web:1]",
            "rootfs/usr/share/containers/systemd/c.container [quay.io/x/a:1]",
        ]
    );
}

#[test]
fn a_container_and_a_toml_of_one_name_mean_one_image() {
    for (place, image) in [
        ("", "quay.io/x/a:1"),
        ("", "quay.io/x/a:1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
    ] {
        let temp =
            tree(&[("app.container", OK), ("bound-images.d/app.toml", &format!("image = \"{image}\"\n"))]);
        let lines = report(&temp, place);
        assert_eq!(lines.len(), 2, "{lines:#?}");
    }
    let toml = "# why\nimage = \"quay.io/x/a:2\"\n";
    let error = "bound-images.d/app.toml:2: error: binds quay.io/x/a:2, but app.container runs quay.io/x/a:1, which nothing binds";
    let temp = tree(&[("app.container", OK), ("bound-images.d/app.toml", toml)]);
    assert!(report(&temp, "").contains(&error.to_owned()), "{:#?}", report(&temp, ""));
    // Bound by another file it starts, so that it may be meant.
    let temp = tree(&[
        ("app.container", OK),
        ("bound-images.d/app.toml", toml),
        ("bound-images.d/app.container", "->../app.container"),
    ]);
    let warning =
        "bound-images.d/app.toml:2: warning: binds quay.io/x/a:2, but app.container runs quay.io/x/a:1";
    assert!(report(&temp, "").contains(&warning.to_owned()), "{:#?}", report(&temp, ""));
    // Two hosts in one repository, each with its own.
    let temp = tree(&[
        ("one/app.container", OK),
        ("one/bound-images.d/app.toml", "image = \"quay.io/x/a:1\"\n"),
        ("two/app.container", "[Container]\nImage=quay.io/x/a:2\n"),
        ("two/bound-images.d/app.toml", toml),
    ]);
    assert_eq!(report(&temp, "").len(), 4, "{:#?}", report(&temp, ""));
}

#[test]
fn one_file_is_checked_with_what_lies_beside_it() {
    let temp = tree(&[
        ("a.container", "[Container]\nImage=b.image\n"),
        ("c.toml", "image = \"quay.io/x/c:1\"\n"),
        ("d.kube", "[Kube]\nYaml=d.yml\n"),
        ("d.yml", "kind: Pod\nspec: {containers: [{image: quay.io/x/d:1}]}\n"),
        ("e.container", OK),
        ("e.container.d/1.conf", "[Container]\nArch=arm64\n"),
        ("f.service", ""),
        ("g.build", "[Build]\nImageTag=localhost/g\n"),
        ("h.kube", "[Kube]\nYaml=h.yml\n"),
        ("h.yml", "kind: Pod\nspec: {containers: [{}]}\n"),
        ("pipe.toml", "->/dev/tty"),
    ]);
    let error = "a.container:2: error: Image=b.image: there is no b.image in the directory of that file";
    assert_eq!(report(&temp, "a.container"), ["a.container []", error]);
    std::fs::write(temp.path().join("b.image"), "[Image]\nImage=quay.io/x/b:1\n").unwrap();
    assert_eq!(report(&temp, "a.container"), ["a.container [quay.io/x/b:1]"]);
    assert_eq!(report(&temp, "c.toml"), ["c.toml [quay.io/x/c:1]"]);
    assert_eq!(report(&temp, "d.kube"), ["d.kube [quay.io/x/d:1]", "d.yml [quay.io/x/d:1]"]);
    let drop_in = "e.container.d/1.conf:2: error: Arch= is not a key of [Container]";
    assert_eq!(report(&temp, "e.container.d/1.conf"), ["e.container []", "e.container.d/1.conf []", drop_in]);
    assert_eq!(
        report(&temp, "f.service"),
        ["f.service []", "f.service: error: does not end in .container, .image or .kube"]
    );
    assert_eq!(
        report(&temp, "g.build"),
        ["g.build []", "g.build: error: a .build file is built on the host, so there is no image to bind"]
    );
    assert_eq!(
        report(&temp, "h.kube"),
        ["h.kube []", "h.yml []", "h.yml:2: error: a container has no image"]
    );
    // A link to where it will be installed.
    symlink("/usr/share/containers/systemd/i.container", temp.path().join("i.container")).unwrap();
    let error = "i.container: error: links to /usr/share/containers/systemd/i.container, which does not exist in the image";
    assert_eq!(report(&temp, "i.container"), ["i.container []", error]);
    assert!(crate::derive::lint::lint(&temp.path().join("i.container")).unwrap().is_empty());
    assert_eq!(lint(&temp.path().join("gone")).unwrap_err().kind, ErrorKind::InvalidArgument);
}

#[test]
fn an_error_has_all_fields_of_the_report() {
    let temp = tree(&[("a.image", "[Image]\nImage=quay.io/x/a:1\nCreds=a:b\n")]);
    let files = lint(&temp.path().join("a.image")).unwrap();
    assert_eq!(
        serde_json::to_value(LintReport::new(files)).unwrap(),
        serde_json::json!({"version": 1, "files": [{
            "path": temp.path().join("a.image"),
            "kind": "quadlet",
            "images": [],
            "errors": [{
                "line": 3,
                "column": null,
                "key": "Creds",
                "message": "Creds= cannot be bound: anybody can read the file",
                "hint": "put the credentials into a file, with podman login --authfile, and write AuthFile=",
            }],
            "warnings": [],
        }]})
    );
}

#[test]
fn the_shipped_examples_are_clean() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = lint(&examples).unwrap();
    let wrong: Vec<_> = files.iter().filter(|f| !(f.errors.is_empty() && f.warnings.is_empty())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let kinds: BTreeSet<_> = files.iter().map(|f| f.kind).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [LintKind::Bound, LintKind::Quadlet]);
}
