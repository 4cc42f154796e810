use super::*;
use crate::model::dropin::MAX_DROPIN;
use crate::model::manifest::Node;
use cap_std_ext::cap_std::ambient_authority;
use ostree_ext::gio::prelude::Cast;
use rustix::fs::{FileType, Mode};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A config root in a temporary directory.
struct Host {
    tmp: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { tmp: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(host.dropins()).unwrap();
        host.mode(HOST_DIR, 0o755);
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.tmp.path().join(path.trim_start_matches('/'))
    }

    fn dropins(&self) -> PathBuf {
        self.path(HOST_DIR)
    }

    fn mode(&self, path: &str, mode: u32) {
        std::fs::set_permissions(self.path(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn write(&self, name: &str, text: &str) -> &Host {
        let path = format!("{HOST_DIR}/{name}");
        std::fs::create_dir_all(self.path(&path).parent().unwrap()).unwrap();
        std::fs::write(self.path(&path), text).unwrap();
        self.mode(&path, 0o644);
        self
    }

    fn treefile(&self, name: &str, text: &str) -> &Host {
        let path = format!("{ORIGIN_DIR}/{name}");
        std::fs::create_dir_all(self.path(ORIGIN_DIR)).unwrap();
        self.mode(ORIGIN_DIR, 0o755);
        std::fs::write(self.path(&path), text).unwrap();
        self.mode(&path, 0o644);
        self
    }

    fn read(&self) -> Result<Manifest> {
        read(&Dir::open_ambient_dir(self.tmp.path(), ambient_authority()).unwrap(), None)
    }

    fn refusal(&self) -> (ErrorKind, String) {
        let error = self.read().unwrap_err();
        assert!(error.details.contains_key("file"), "{error}");
        (error.kind, error.to_string())
    }

    fn invalid(&self, message: &str) {
        assert_eq!(self.refusal(), (ErrorKind::InvalidDropIn, message.to_owned()));
    }
}

const KARG: &str = "kernel-arguments: {append: [a]}\n";

#[test]
fn missing_directories_are_fine() {
    let host = Host { tmp: tempfile::tempdir().unwrap() };
    assert!(host.read().unwrap().is_empty());
    std::fs::create_dir_all(host.path("etc/osctl")).unwrap();
    assert!(host.read().unwrap().is_empty());
}

#[test]
fn drop_ins_are_read_in_name_order_and_other_files_are_ignored() {
    let host = Host::new();
    host.write("20-b.yaml", "kernel-arguments: {append: [b]}").write("10-a.yaml", KARG);
    for name in ["README", "README.md", "x.yaml.disabled", "x.yaml~", ".x.yaml", "#x.yaml#", "x.yml", ".x.bu"]
    {
        host.write(name, "not: [valid");
    }
    symlink("/dev/null", host.dropins().join("30-c.yaml")).unwrap();
    let m = host.read().unwrap();
    let sources: Vec<_> = m.sources.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(sources, ["/etc/osctl/derive.d/10-a.yaml", "/etc/osctl/derive.d/20-b.yaml"]);
    assert_eq!(m.kargs_append.iter().map(|k| k.arg.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn local_contents_are_read_below_the_directory_only() {
    let host = Host::new();
    let dropin = |name: &str| format!("files: [{{path: /etc/x, contents: {{local: {name}}}}}]");
    host.write("a.yaml", &dropin("sub/conf")).write("sub/conf", "bytes");
    host.mode("/etc/osctl/derive.d/sub", 0o755);
    let m = host.read().unwrap();
    let Node::File(file) = &m.nodes["/etc/x"] else { panic!() };
    assert_eq!(file.contents.bytes(), Some(&b"bytes"[..]));

    let place = "/etc/osctl/derive.d/a.yaml:1:42: files[0].contents.local: ";
    host.write("a.yaml", &dropin("gone"));
    host.invalid(&format!("{place}/etc/osctl/derive.d/gone: does not exist"));
    host.write("a.yaml", &dropin("sub"));
    host.invalid(&format!("{place}/etc/osctl/derive.d/sub: is not a regular file"));
    symlink("/etc/hostname", host.dropins().join("link")).unwrap();
    host.write("a.yaml", &dropin("link"));
    host.invalid(&format!("{place}/etc/osctl/derive.d/link: is a symbolic link"));
    symlink("/etc", host.dropins().join("dir")).unwrap();
    host.write("a.yaml", &dropin("dir/hostname"));
    host.invalid(&format!("{place}/etc/osctl/derive.d/dir: is not a directory"));
    host.write("a.yaml", &dropin("sub/conf")).mode("/etc/osctl/derive.d/sub/conf", 0o664);
    host.invalid(&format!(
        "{place}/etc/osctl/derive.d/sub/conf: can be written by group or others (mode 0664)"
    ));
}

#[test]
fn what_others_can_write_is_refused() {
    let host = Host::new();
    host.write("a.yaml", KARG).mode("/etc/osctl/derive.d/a.yaml", 0o646);
    host.invalid("/etc/osctl/derive.d/a.yaml: can be written by group or others (mode 0646)");
    host.mode("/etc/osctl/derive.d/a.yaml", 0o600);
    host.read().unwrap();
    host.mode(HOST_DIR, 0o777);
    host.invalid("/etc/osctl/derive.d: can be written by group or others (mode 0777)");
    host.mode(HOST_DIR, 0o755);
    // Only root can give a file away.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(host.dropins().join("a.yaml"), Some(12345), None).unwrap();
        host.invalid("/etc/osctl/derive.d/a.yaml: belongs to uid 12345 and not to root");
        std::os::unix::fs::chown(host.dropins().join("a.yaml"), Some(0), None).unwrap();
        std::os::unix::fs::chown(host.dropins(), Some(12345), None).unwrap();
        host.invalid("/etc/osctl/derive.d: belongs to uid 12345 and not to root");
    }
}

#[test]
fn what_is_not_a_file_is_refused() {
    let host = Host::new();
    host.write("a.yaml/x", "");
    host.invalid("/etc/osctl/derive.d/a.yaml: is not a regular file");
    std::fs::remove_dir_all(host.dropins().join("a.yaml")).unwrap();
    symlink("b", host.dropins().join("a.yaml")).unwrap();
    host.invalid("/etc/osctl/derive.d/a.yaml: is a symbolic link");
    std::fs::remove_file(host.dropins().join("a.yaml")).unwrap();
    // Nobody writes into this FIFO: reading it must not wait.
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, host.dropins().join("a.yaml"), FileType::Fifo, mode, 0).unwrap();
    host.invalid("/etc/osctl/derive.d/a.yaml: is not a regular file");
    std::fs::remove_file(host.dropins().join("a.yaml")).unwrap();
    host.write("a.yaml", &"#".repeat(MAX_DROPIN as usize + 1));
    host.invalid("/etc/osctl/derive.d/a.yaml: 1048577 bytes are more than 1048576");
}

#[test]
fn a_directory_that_is_none_is_refused() {
    let host = Host::new();
    std::fs::remove_dir(host.dropins()).unwrap();
    std::fs::write(host.dropins(), "x").unwrap();
    host.invalid("/etc/osctl/derive.d: is not a directory");
    std::fs::remove_file(host.dropins()).unwrap();
    symlink("elsewhere", host.dropins()).unwrap();
    host.invalid("/etc/osctl/derive.d: is not a directory");
    std::fs::remove_dir_all(host.path("etc/osctl")).unwrap();
    std::fs::write(host.path("etc/osctl"), "x").unwrap();
    host.invalid("/etc/osctl/derive.d: cannot be read");
}

#[test]
fn ten_thousand_drop_ins_are_refused_before_any_is_read() {
    let host = Host::new();
    for i in 0..10_000 {
        // None could be opened: the refusal cannot have looked inside.
        symlink("nowhere", host.dropins().join(format!("{i}.yaml"))).unwrap();
    }
    host.invalid("/etc/osctl/derive.d: more than 1000 drop-ins");
}

#[test]
fn treefiles_are_merged_by_name_and_have_owners_of_their_own() {
    let host = Host::new();
    host.write("20-b.yaml", KARG).write("10-a.yaml", "packages: [a]");
    for (name, text) in [
        ("20-b.yaml", "packages: [b]"),
        ("15-c.yaml", "repos: [fedora]"),
        ("x.json", "{"),
        ("x.yml", "["),
        (".x.yaml", "["),
    ] {
        host.treefile(name, text);
    }
    symlink("/dev/null", host.path(ORIGIN_DIR).join("10-a.yaml")).unwrap();
    let manifest = host.read().unwrap();
    let sources: Vec<_> = manifest.sources.iter().map(|s| (s.name.as_str(), s.path.as_str())).collect();
    assert_eq!(
        sources,
        [
            ("10-a.yaml", "/etc/osctl/derive.d/10-a.yaml"),
            ("origin.d/15-c.yaml", "/etc/rpm-ostree/origin.d/15-c.yaml"),
            ("20-b.yaml", "/etc/osctl/derive.d/20-b.yaml"),
            ("origin.d/20-b.yaml", "/etc/rpm-ostree/origin.d/20-b.yaml"),
        ]
    );
    assert!(manifest.packages.install["b"].contains("origin.d/20-b.yaml"));
    assert_eq!(manifest.kargs_append[0].owner, "20-b.yaml");
}

#[test]
fn treefiles_are_trusted_and_refused_as_drop_ins_are() {
    let host = Host::new();
    host.treefile("a.yaml", "packages: [a]\nref: x\n");
    let message =
        "/etc/rpm-ostree/origin.d/a.yaml:2:1: ref: says how an image is composed, and does nothing on a host";
    assert_eq!(host.refusal(), (ErrorKind::UnsupportedStanza, message.to_owned()));
    host.treefile("a.yaml", "packages: [a]").mode("/etc/rpm-ostree/origin.d/a.yaml", 0o664);
    host.invalid("/etc/rpm-ostree/origin.d/a.yaml: can be written by group or others (mode 0664)");
    host.mode("/etc/rpm-ostree/origin.d/a.yaml", 0o644);
    host.mode(ORIGIN_DIR, 0o775);
    host.invalid("/etc/rpm-ostree/origin.d: can be written by group or others (mode 0775)");
    host.mode(ORIGIN_DIR, 0o755);
    host.read().unwrap();
    host.treefile("a.yaml", &"#".repeat(MAX_DROPIN as usize + 1));
    host.invalid("/etc/rpm-ostree/origin.d/a.yaml: 1048577 bytes are more than 1048576");
    std::fs::remove_file(host.path("/etc/rpm-ostree/origin.d/a.yaml")).unwrap();
    symlink("b", host.path("/etc/rpm-ostree/origin.d/a.yaml")).unwrap();
    host.invalid("/etc/rpm-ostree/origin.d/a.yaml: is a symbolic link");
    std::fs::remove_dir_all(host.path(ORIGIN_DIR)).unwrap();
    std::fs::write(host.path(ORIGIN_DIR), "").unwrap();
    host.invalid("/etc/rpm-ostree/origin.d: is not a directory");
}

const BUTANE: &str = "variant: fcos\nversion: 1.7.0\n";

#[test]
fn a_butane_tree_is_read_below_the_directory_only() {
    let host = Host::new();
    let tree = |local: &str| format!("{BUTANE}storage: {{trees: [{{local: {local}, path: /usr/t}}]}}");
    host.write("a.bu", &tree("data"))
        .write("data/x", "x")
        .write("data/sub/run", "#!")
        .write("data/sub/.hidden", "h");
    for (path, mode) in [("data", 0o755), ("data/sub", 0o755), ("data/sub/run", 0o755)] {
        host.mode(&format!("{HOST_DIR}/{path}"), mode);
    }
    symlink("../sub", host.dropins().join("data/link")).unwrap();
    std::fs::create_dir(host.dropins().join("data/empty")).unwrap();
    host.mode("/etc/osctl/derive.d/data/empty", 0o755);
    let m = host.read().unwrap();
    let found: Vec<_> = m
        .nodes
        .iter()
        .map(|(path, node)| match node {
            Node::File(f) => format!("{path} {:o}", f.meta.mode),
            Node::Link(l) => format!("{path} -> {}", l.target),
            Node::Directory(_) => format!("{path}/"),
        })
        .collect();
    assert_eq!(
        found,
        ["/usr/t/link -> ../sub", "/usr/t/sub/.hidden 644", "/usr/t/sub/run 755", "/usr/t/x 644"]
    );

    let place = "/etc/osctl/derive.d/a.bu:3:27: storage.trees[0].local: ";
    for (local, message) in [
        ("gone", "/etc/osctl/derive.d/gone: does not exist"),
        ("data/x", "/etc/osctl/derive.d/data/x: is not a directory"),
        ("data/link", "/etc/osctl/derive.d/data/link: is not a directory"),
    ] {
        host.write("a.bu", &tree(local));
        host.invalid(&format!("{place}{message}"));
    }
    host.write("a.bu", &tree("data")).mode("/etc/osctl/derive.d/data/sub/run", 0o777);
    host.invalid(&format!(
        "{place}/etc/osctl/derive.d/data/sub/run: can be written by group or others (mode 0777)"
    ));
    host.mode("/etc/osctl/derive.d/data/sub/run", 0o755);
    host.mode("/etc/osctl/derive.d/data/sub", 0o775);
    host.invalid(&format!(
        "{place}/etc/osctl/derive.d/data/sub: can be written by group or others (mode 0775)"
    ));
    host.mode("/etc/osctl/derive.d/data/sub", 0o755);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, host.dropins().join("data/fifo"), FileType::Fifo, mode, 0).unwrap();
    host.invalid(&format!("{place}/etc/osctl/derive.d/data/fifo: is not a regular file"));
}

/// A commit with these vendor files; `->` at the start of the text makes a link.
fn tree(tmp: &tempfile::TempDir, files: &[(&str, &str)]) -> CommitTree {
    use ostree_ext::{gio, ostree};
    let root = tmp.path().join("tree");
    for (name, text) in files {
        let path = root.join("usr/lib/osctl/derive.d").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.strip_prefix("->") {
            Some(target) => symlink(target, path).unwrap(),
            None => std::fs::write(path, text).unwrap(),
        }
    }
    let none = gio::Cancellable::NONE;
    let repo = ostree::Repo::create_at(
        rustix::fs::CWD.as_raw_fd(),
        tmp.path().join("repo").to_str().unwrap(),
        ostree::RepoMode::BareUser,
        None,
        none,
    )
    .unwrap();
    let mtree = ostree::MutableTree::new();
    repo.prepare_transaction(none).unwrap();
    repo.write_dfd_to_mtree(rustix::fs::CWD.as_raw_fd(), root.to_str().unwrap(), &mtree, None, none).unwrap();
    let written = repo.write_mtree(&mtree, none).unwrap();
    let commit = repo
        .write_commit(None, None, None, None, written.downcast_ref::<ostree::RepoFile>().unwrap(), none)
        .unwrap();
    repo.commit_transaction(none).unwrap();
    CommitTree::open(&repo, &commit).unwrap()
}

#[test]
fn the_hosts_file_replaces_or_masks_the_vendors() {
    let tmp = tempfile::tempdir().unwrap();
    let karg = |name: &str| format!("kernel-arguments: {{append: [{name}]}}");
    let tree = tree(
        &tmp,
        &[
            ("10-a.yaml", &karg("vendor-a")),
            ("20-b.yaml", &karg("vendor-b")),
            ("30-c.yaml", &karg("vendor-c")),
            ("40-d.bu", "not: [valid"),
            ("45-d.bu", &format!("{BUTANE}storage: {{trees: [{{local: data, path: /usr/t}}]}}")),
            ("50-e.yaml", "->/dev/null"),
            ("60-f.yaml", "files: [{path: /etc/x, contents: {local: data/x}}]"),
            ("data/x", "vendor bytes"),
            ("data/l", "->x"),
            ("README", "x"),
        ],
    );
    let host = Host::new();
    host.write("20-b.yaml", &karg("host-b")).write("25-n.yaml", &karg("host-n"));
    for name in ["30-c.yaml", "40-d.bu"] {
        symlink("/dev/null", host.dropins().join(name)).unwrap();
    }
    let root = Dir::open_ambient_dir(host.tmp.path(), ambient_authority()).unwrap();
    let m = read(&root, Some(&tree)).unwrap();
    let args: Vec<_> = m.kargs_append.iter().map(|k| k.arg.as_str()).collect();
    assert_eq!(args, ["vendor-a", "host-b", "host-n"]);
    let sources: Vec<_> = m.sources.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(
        sources,
        [
            "/usr/lib/osctl/derive.d/10-a.yaml",
            "/etc/osctl/derive.d/20-b.yaml",
            "/etc/osctl/derive.d/25-n.yaml",
            "/usr/lib/osctl/derive.d/45-d.bu",
            "/usr/lib/osctl/derive.d/60-f.yaml",
        ]
    );
    let Node::File(file) = &m.nodes["/etc/x"] else { panic!() };
    assert_eq!(file.contents.bytes(), Some(&b"vendor bytes"[..]));
    let Node::File(file) = &m.nodes["/usr/t/x"] else { panic!() };
    assert_eq!(file.contents.bytes(), Some(&b"vendor bytes"[..]));
    assert!(matches!(&m.nodes["/usr/t/l"], Node::Link(l) if l.target == "x"));
}

#[test]
fn a_vendor_tree_cannot_lead_out() {
    for target in ["->/usr/lib/osctl/secret", "->../secret"] {
        let tmp = tempfile::tempdir().unwrap();
        let dropin = format!("{BUTANE}storage: {{trees: [{{local: out, path: /usr/t}}]}}");
        let tree = tree(&tmp, &[("a.bu", &dropin), ("../secret/x", "secret"), ("out", target)]);
        let host = Host::new();
        let root = Dir::open_ambient_dir(host.tmp.path(), ambient_authority()).unwrap();
        let error = read(&root, Some(&tree)).unwrap_err().to_string();
        assert!(error.starts_with("/usr/lib/osctl/derive.d/a.bu:3:27: storage.trees[0].local: "), "{error}");
    }
}

#[test]
fn a_vendor_local_file_cannot_lead_out() {
    for target in ["->/usr/lib/osctl/secret", "->../secret"] {
        let tmp = tempfile::tempdir().unwrap();
        let tree = tree(
            &tmp,
            &[
                ("a.yaml", "files: [{path: /etc/x, contents: {local: out/x}}]"),
                ("../secret/x", "secret"),
                ("out", target),
            ],
        );
        let host = Host::new();
        let root = Dir::open_ambient_dir(host.tmp.path(), ambient_authority()).unwrap();
        assert_eq!(
            read(&root, Some(&tree)).unwrap_err().to_string(),
            "/usr/lib/osctl/derive.d/a.yaml:1:42: files[0].contents.local: \
             /usr/lib/osctl/derive.d/out/x: leaves the directory of the drop-ins"
        );
    }
}

#[test]
fn a_directory_a_root_or_a_file_can_be_named_whoever_wrote_it() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("root/etc/osctl/derive.d");
    std::fs::create_dir_all(&dir).unwrap();
    let declares = |path: &str| format!("files: [{{path: {path}, contents: {{local: beside}}}}]\n");
    for (name, text) in
        [("10-a.yaml", declares("/etc/a")), ("20-b.yaml", declares("/etc/b")), ("beside", "x".to_owned())]
    {
        std::fs::write(dir.join(name), text).unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    std::os::unix::fs::symlink("/dev/null", dir.join("30-c.yaml")).unwrap();
    let named = |path: &std::path::Path| {
        let source = Source::named(path)?;
        let paths: Vec<String> = read_from(&source, None)?.nodes.into_keys().collect();
        Ok::<_, Error>((paths.join(" "), source.names()?))
    };
    let all =
        vec![("10-a.yaml".to_owned(), true), ("20-b.yaml".to_owned(), true), ("30-c.yaml".to_owned(), false)];
    assert_eq!(named(&dir).unwrap(), ("/etc/a /etc/b".to_owned(), all.clone()));
    assert_eq!(named(&tmp.path().join("root")).unwrap().1, all);
    assert_eq!(named(&dir.join("20-b.yaml")).unwrap(), ("/etc/b".to_owned(), all[1..2].to_vec()));
    for (path, expected) in [("beside", "is not named like a drop-in"), ("missing", "cannot be read")] {
        let error = named(&dir.join(path)).unwrap_err();
        assert!(error.to_string().contains(&format!("{path}: {expected}")), "{error}");
    }
}
