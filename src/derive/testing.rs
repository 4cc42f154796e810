//! Real repositories and small manifests for the tests of this room.

use super::apply::{Hooks, commit};
use crate::model::image::Digest;
use crate::model::manifest::*;
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeMap;

pub const NONE: Option<&gio::Cancellable> = None;

/// A repository in a temporary directory with one base commit.
pub struct Scratch {
    pub dir: tempfile::TempDir,
    pub repo: ostree::Repo,
    pub base: String,
}

/// An entry of a base tree: a file's content, a link's target, or a directory.
pub enum Base<'a> {
    File(u32, &'a str),
    Link(&'a str),
    Dir(u32),
}

/// The tree that most tests start from.
pub fn usual() -> Vec<(&'static str, Base<'static>)> {
    use Base::*;
    vec![
        ("usr/bin/tool", File(0o755, "elf")),
        ("usr/lib/os-release", File(0o644, "ID=test\n")),
        ("usr/lib/systemd/system/agent.service", File(0o644, "[Install]\nWantedBy=multi-user.target\n")),
        ("usr/lib/systemd/system/tty@.service", File(0o644, "[Install]\nWantedBy=multi-user.target\n")),
        ("usr/lib/systemd/system/static.service", File(0o644, "[Service]\n")),
        ("usr/lib/systemd/system/core.service", File(0o644, "[Install]\nWantedBy=basic.target\n")),
        ("usr/lib/systemd/system/basic.target.wants/core.service", Link("../core.service")),
        (
            "usr/etc/systemd/system/basic.target.wants/old.service",
            Link("/usr/lib/systemd/system/old.service"),
        ),
        ("usr/lib/systemd/system/old.service", File(0o644, "[Install]\nWantedBy=basic.target\n")),
        ("usr/etc/systemd/system/older.service", Link("/usr/lib/systemd/system/old.service")),
        ("usr/etc/systemd/system/masked.service", Link("/dev/null")),
        ("usr/etc/hostname", File(0o644, "base\n")),
        ("usr/etc/private", Dir(0o700)),
        ("usr/etc/alias", Link("private")),
        ("usr/etc/outside", Link("/var/lib/outside")),
        ("usr/etc/toolink", Link("../usr/bin")),
        ("usr/lib/state", Link("/var/lib/state")),
    ]
}

impl Scratch {
    pub fn new() -> Scratch {
        Self::with(ostree::RepoMode::Bare, usual())
    }

    pub fn with<'a>(
        mode: ostree::RepoMode,
        entries: impl IntoIterator<Item = (impl AsRef<str>, Base<'a>)>,
    ) -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        let repo = ostree::Repo::new_for_path(dir.path().join("repo"));
        repo.create(mode, NONE).unwrap();
        let base = commit_tree(&repo, entries);
        Scratch { dir, repo, base }
    }

    pub fn derive(&self, manifest: &Manifest) -> crate::model::Result<super::apply::Derived> {
        commit(&self.repo, &self.base, &digest(), None, manifest, hooks(), NONE)
    }

    /// `mode uid:gid content` or `-> target` of an entry of a commit, asked from the ostree program.
    pub fn ls(&self, commit: &str, path: &str) -> String {
        let repo = format!("--repo={}", self.dir.path().join("repo").display());
        run("ostree", &["ls", &repo, commit, path])
            .lines()
            .next()
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub fn cat(&self, commit: &str, path: &str) -> String {
        run("ostree", &["cat", &format!("--repo={}", self.dir.path().join("repo").display()), commit, path])
    }

    pub fn fsck(&self) {
        run("ostree", &["fsck", "-q", &format!("--repo={}", self.dir.path().join("repo").display())]);
    }
}

pub fn run(program: &str, args: &[&str]) -> String {
    let out = std::process::Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn dirmeta(repo: &ostree::Repo, mode: u32) -> String {
    let info = gio::FileInfo::new();
    info.set_attribute_uint32("unix::uid", 0);
    info.set_attribute_uint32("unix::gid", 0);
    info.set_attribute_uint32("unix::mode", 0o040_000 | mode);
    let object = ostree::create_directory_metadata(&info, None);
    repo.write_metadata(ostree::ObjectType::DirMeta, None, &object, NONE).unwrap().to_hex()
}

/// Commits a tree made of these entries, with a fixed time and bootable metadata.
pub fn commit_tree<'a>(
    repo: &ostree::Repo,
    entries: impl IntoIterator<Item = (impl AsRef<str>, Base<'a>)>,
) -> String {
    let transaction = repo.auto_transaction(NONE).unwrap();
    let tree = ostree::MutableTree::new();
    let plain = dirmeta(repo, 0o755);
    // Bases of 30,000 files have two contents.
    let mut written: BTreeMap<(u32, String), glib::GString> = BTreeMap::new();
    tree.set_metadata_checksum(&plain);
    for (path, entry) in entries {
        let path = path.as_ref();
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap();
        let mut dir = tree.clone();
        for part in parts {
            let is_new = dir.lookup(part).is_err();
            dir = dir.ensure_dir(part).unwrap();
            if is_new {
                dir.set_metadata_checksum(&plain);
            }
        }
        let object = match entry {
            Base::Dir(mode) => {
                let sub = dir.ensure_dir(name).unwrap();
                sub.set_metadata_checksum(&dirmeta(repo, mode));
                continue;
            }
            Base::File(mode, text) => written
                .entry((mode, text.to_owned()))
                .or_insert_with(|| {
                    repo.write_regfile_inline(None, 0, 0, 0o100_000 | mode, None, text.as_bytes(), NONE)
                        .unwrap()
                })
                .clone(),
            Base::Link(target) => repo.write_symlink(None, 0, 0, None, target, NONE).unwrap(),
        };
        dir.replace_file(name, &object).unwrap();
    }
    let root = repo.write_mtree(&tree, NONE).unwrap().downcast::<ostree::RepoFile>().unwrap();
    let metadata = BTreeMap::from([
        ("ostree.bootable", true.to_variant()),
        ("ostree.importer.version", "9.9".to_variant()),
        ("version", "1".to_variant()),
    ])
    .to_variant();
    let commit =
        repo.write_commit_with_time(None, None, None, Some(&metadata), &root, 1_700_000_000, NONE).unwrap();
    repo.transaction_set_ref(None, "base", Some(&commit));
    transaction.commit(NONE).unwrap();
    commit.into()
}

/// The metadata of a commit: keys, and values in GVariant text.
pub fn metadata(repo: &ostree::Repo, commit: &str) -> Vec<(String, String)> {
    let object: glib::Variant = repo.load_variant(ostree::ObjectType::Commit, commit).unwrap();
    (object.child_value(0).iter())
        .map(|e| {
            (
                e.child_value(0).get::<String>().unwrap(),
                e.child_value(1).as_variant().unwrap().print(false).into(),
            )
        })
        .collect()
}

pub fn digest() -> Digest {
    Digest::of(b"the base image")
}

/// Enough of `[Install]` for these tests.
pub fn hooks() -> Hooks {
    Hooks {
        install_links: |name, text| {
            Ok(text
                .lines()
                .filter_map(|l| l.strip_prefix("WantedBy="))
                .map(|by| {
                    (format!("/etc/systemd/system/{by}.wants/{name}"), {
                        let (prefix, rest) = name.split_once('@').unwrap_or((name, ""));
                        match rest.rsplit_once('.') {
                            Some((_, suffix)) => format!("/usr/lib/systemd/system/{prefix}@.{suffix}"),
                            None => format!("/usr/lib/systemd/system/{name}"),
                        }
                    })
                })
                .collect())
        },
        sysusers: |m| {
            (!m.users.is_empty()).then(|| m.users.keys().map(|name| format!("u {name} -\n")).collect())
        },
    }
}

pub fn owner() -> Owner {
    "50-agent.yaml".into()
}

pub fn file(contents: &str) -> Node {
    Node::File(File {
        owner: owner(),
        meta: Meta { mode: 0o644, uid: 0, gid: 0 },
        contents: contents.into(),
        overwrite: false,
        on_conflict: OnConflict::Error,
    })
}

/// The same file with other properties.
pub fn with(node: Node, change: impl FnOnce(&mut File)) -> Node {
    match node {
        Node::File(mut f) => {
            change(&mut f);
            Node::File(f)
        }
        other => other,
    }
}

pub fn link(target: &str) -> Node {
    Node::Link(Link {
        owner: owner(),
        target: target.into(),
        overwrite: false,
        on_conflict: OnConflict::Error,
    })
}

pub fn directory(mode: u32) -> Node {
    Node::Directory(Directory { owner: owner(), meta: Meta { mode, uid: 0, gid: 0 } })
}

pub fn unit(enabled: bool) -> Unit {
    Unit { owner: owner(), enabled: Some(enabled), mask: false }
}

pub fn nodes<const N: usize>(list: [(&str, Node); N]) -> Manifest {
    Manifest { nodes: list.into_iter().map(|(p, n)| (p.to_owned(), n)).collect(), ..Manifest::default() }
}

pub fn units<const N: usize>(list: [(&str, Unit); N]) -> Manifest {
    Manifest { units: list.into_iter().map(|(n, u)| (n.to_owned(), u)).collect(), ..Manifest::default() }
}

pub fn user() -> User {
    User { owner: owner(), uid: None, gecos: None, home: None, shell: None }
}

pub fn karg(arg: &str) -> Karg {
    Karg { owner: owner(), arg: arg.into() }
}
