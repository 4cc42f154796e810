//! Layers: the content of other images on top of the base, below everything else that drop-ins declare.
//!
//! The rules are those of declared files: only `/usr` and `/etc`; never what belongs to the system's identity; a file of
//! the base is replaced only if the drop-in says so; a directory never becomes a file, nor a file a directory. What the
//! base has exactly is left alone, so an image that was built on top of the base brings only what it changed.

use super::mtree::{Entry, Tree, as_booted, is_same_object, meta_of};
use crate::model::dropin::path::{forbidden, is_kernel, within};
use crate::model::layers::LayerImage;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};

/// As many paths as fit on a screen.
const LISTED: usize = 20;
/// A package manager's database says what is in the tree: one of another tree would lie.
const DATABASES: [&str; 4] =
    ["/usr/lib/sysimage/rpm", "/usr/share/rpm", "/usr/lib/sysimage/dpkg", "/usr/share/dpkg-db"];

/// An image that is in the repository, and how it is put on top.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What the drop-in says.
    pub asked: LayerImage,
    /// Its commit.
    pub commit: String,
}

/// The commit of a base with layers on top of it, lowest first. It is deployed by nobody, and kept by no reference.
///
/// Fails with `InvalidDropIn` where a layer has what it may not bring, naming the drop-in and the paths.
pub fn commit(
    repo: &ostree::Repo,
    base: &str,
    layers: &[Layer],
    cancellable: Option<&gio::Cancellable>,
) -> Result<String> {
    let doing = "putting layers on top of the base";
    let transaction = repo.auto_transaction(cancellable).doing(doing)?;
    let tree = Tree::open(repo, base, cancellable)?;
    let below = Tree::open(repo, base, cancellable)?;
    for layer in layers {
        let (root, _) =
            repo.read_commit(&layer.commit, cancellable).doing_with(|| reading(&layer.asked.image))?;
        let (tree, refused) = (&tree, Refused::default());
        let mut above = Above { repo, base: &below, tree, layer, refused, cancellable };
        above.directory(&root, "")?;
        above.refused.into_error(&layer.asked)?;
    }
    let base = repo.load_variant(ostree::ObjectType::Commit, base).doing(doing)?;
    let (time, none) = (ostree::commit_get_timestamp(&base), None::<&glib::Variant>);
    let root = tree.write()?;
    let commit =
        repo.write_commit_with_time(None, None, None, none, &root, time, cancellable).doing(doing)?;
    transaction.commit(cancellable).doing(doing)?;
    Ok(commit.into())
}

fn reading(image: &str) -> String {
    format!("reading the layer {image}")
}

/// Paths that a layer may not bring, by the reason.
#[derive(Default)]
struct Refused {
    outside: Vec<String>,
    never: Vec<String>,
    replaced: Vec<String>,
    shape: Vec<String>,
}

impl Refused {
    fn into_error(self, asked: &LayerImage) -> Result<()> {
        let reasons = [
            (
                self.outside,
                "has what is outside /usr and /etc",
                "build the layer FROM scratch, with only what it adds; /opt is /usr/lib/opt, and state is tmpfiles.d(5)",
            ),
            (self.never, "has what is never changed by drop-ins", "leave it out of the layer"),
            (
                self.shape,
                "has a directory where the base has a file or a link, or the other way round",
                "build the layer with the paths that the base has: /usr/bin instead of /bin",
            ),
            (
                self.replaced,
                "would replace files of the base",
                "say `overwrite: true` beside the image if that is meant",
            ),
        ];
        let Some((paths, why, hint)) = reasons.into_iter().find(|(paths, ..)| !paths.is_empty()) else {
            return Ok(());
        };
        let mut listed = paths.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
        if paths.len() > LISTED {
            listed.push_str(&format!(" and {} more", paths.len() - LISTED));
        }
        let (owner, image) = (&asked.owner, &asked.image);
        Err(Error::new(
            ErrorKind::InvalidDropIn,
            format!("{owner}: the layer {image} {why}: {listed}; nothing was staged"),
        )
        .detail("drop-in", owner)
        .detail("paths", paths.iter().take(LISTED).cloned().collect::<Vec<_>>().join("\n"))
        .hint(hint))
    }
}

struct Above<'a> {
    repo: &'a ostree::Repo,
    /// The base as it is.
    base: &'a Tree<'a>,
    /// The base with the layers so far.
    tree: &'a Tree<'a>,
    layer: &'a Layer,
    refused: Refused,
    cancellable: Option<&'a gio::Cancellable>,
}

impl Above<'_> {
    fn directory(&mut self, dir: &gio::File, at: &str) -> Result<()> {
        let doing = || reading(&self.layer.asked.image);
        let flags = gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS;
        let children =
            dir.enumerate_children("standard::*,unix::*", flags, self.cancellable).doing_with(doing)?;
        while let Some(info) = children.next_file(self.cancellable).doing_with(doing)? {
            let name = info.name();
            let name = name
                .to_str()
                .ok_or_else(|| Error::new(ErrorKind::Internal, "a name in the repository is not UTF-8"))?;
            let (path, child) = (format!("{at}/{name}"), dir.child(name));
            match info.file_type() {
                gio::FileType::Directory if is_inside(&path) => {
                    if self.has_directory(&path, &info)? {
                        self.directory(&child, &path)?;
                    }
                }
                // What is empty in an image is a place to mount something.
                gio::FileType::Directory => self.directory(&child, &path)?,
                _ => self.leaf(&child, &path, &info)?,
            }
        }
        Ok(())
    }

    /// Makes a directory that the base does not have; one that it has stays as it is. Whether it can be gone into.
    fn has_directory(&mut self, path: &str, info: &gio::FileInfo) -> Result<bool> {
        match self.tree.at(path)? {
            Some(Entry::Directory(_)) => {}
            Some(Entry::File { .. } | Entry::Link { .. }) => {
                self.refused.shape.push(shown(path));
                return Ok(false);
            }
            None if is_never(path) => {}
            None => self.tree.put_directory(path, &meta_of(info))?,
        }
        Ok(true)
    }

    fn leaf(&mut self, file: &gio::File, path: &str, info: &gio::FileInfo) -> Result<()> {
        let file = file.downcast_ref::<ostree::RepoFile>().expect("a child of a RepoFile is one");
        let checksum = file.checksum();
        let there = self.tree.at(path)?;
        // What it has of the base was not put there by it, whatever a layer below made of it.
        let same = self.is_same(there.as_ref(), (&checksum, info))?
            || self.is_same(self.base.at(path)?.as_ref(), (&checksum, info))?;
        if same || is_dropping(path, info) {
            return Ok(());
        }
        if !is_inside(path) {
            self.refused.outside.push(shown(path));
        } else if is_never(path) {
            self.refused.never.push(shown(path));
        } else if matches!(there, Some(Entry::Directory(_))) {
            self.refused.shape.push(shown(path));
        } else if there.is_some() && !self.layer.asked.overwrite {
            self.refused.replaced.push(shown(path));
        } else {
            self.tree.put_object(path, &checksum)?;
        }
        Ok(())
    }

    /// Whether an entry is this object, but for its label.
    fn is_same(&self, entry: Option<&Entry>, (checksum, info): (&str, &gio::FileInfo)) -> Result<bool> {
        match entry {
            Some(Entry::File { checksum: has, info: its }) => {
                is_same_object(self.repo, (has, its), (checksum, info), self.cancellable)
            }
            Some(Entry::Link { target }) => {
                Ok(info.symlink_target().is_some_and(|t| t.to_str() == Some(target.as_str())))
            }
            Some(Entry::Directory(_)) | None => Ok(false),
        }
    }
}

/// The system's identity, the policy that everything is labelled by, what packages are there, and what boots.
fn is_never(path: &str) -> bool {
    Tree::is_policy(path)
        || forbidden(&as_booted(path)).is_some()
        || DATABASES.iter().any(|top| within(path, top))
        || is_kernel(path)
}

/// Whether a path of a commit is one that is deployed. `/etc` is `/usr/etc` there.
fn is_inside(path: &str) -> bool {
    within(path, "/usr")
}

/// What container tools leave behind.
fn is_dropping(path: &str, info: &gio::FileInfo) -> bool {
    let is_empty = info.file_type() == gio::FileType::Regular && info.size() == 0;
    matches!(path, "/.dockerenv" | "/.dockerinit" | "/.containerenv")
        || is_empty && matches!(path, "/usr/etc/hostname" | "/usr/etc/hosts" | "/usr/etc/resolv.conf")
}

fn shown(path: &str) -> String {
    one_line(&as_booted(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, NONE, Scratch, commit_tree};

    fn layer(scratch: &Scratch, overwrite: bool, entries: Vec<(&str, Base<'_>)>) -> Layer {
        let asked = LayerImage { image: "r.io/tools".into(), owner: "50-a.yaml".into(), overwrite };
        Layer { asked, commit: commit_tree(&scratch.repo, entries) }
    }

    #[test]
    fn a_layer_brings_what_it_has_and_leaves_alone_what_is_there_already() {
        let scratch = Scratch::new();
        let low = layer(
            &scratch,
            false,
            vec![
                ("usr/bin/new", Base::File(0o755, "1")),
                ("usr/lib/new/deep/file", Base::File(0o600, "2")),
                ("usr/etc/new.conf", Base::File(0o644, "3")),
                ("usr/lib/link", Base::Link("new")),
                // As in the base, and what container tools leave behind.
                ("usr/bin/tool", Base::File(0o755, "elf")),
                ("usr/etc/alias", Base::Link("private")),
                ("usr/etc/private", Base::Dir(0o755)),
                ("usr/etc/resolv.conf", Base::File(0o644, "")),
                ("tmp", Base::Dir(0o1777)),
                (".dockerenv", Base::File(0o644, "")),
            ],
        );
        let high = layer(
            &scratch,
            true,
            vec![
                ("usr/bin/new", Base::File(0o755, "of the upper layer")),
                ("usr/lib/os-release", Base::File(0o644, "ID=other\n")),
            ],
        );
        let commit = commit(&scratch.repo, &scratch.base, &[low.clone(), high], NONE).unwrap();
        for (path, text) in [
            ("/usr/bin/new", "of the upper layer"),
            ("/usr/lib/new/deep/file", "2"),
            ("/usr/etc/new.conf", "3"),
            ("/usr/lib/os-release", "ID=other\n"),
            ("/usr/bin/tool", "elf"),
        ] {
            assert_eq!(scratch.cat(&commit, path), text, "{path}");
        }
        assert!(scratch.ls(&commit, "/usr/lib/link").ends_with("/usr/lib/link -> new"));
        assert!(scratch.ls(&commit, "/usr/etc/private").starts_with("d00700"));
        let diff = crate::derive::testing::run(
            "ostree",
            &[
                "diff",
                &format!("--repo={}", scratch.dir.path().join("repo").display()),
                &scratch.base,
                &commit,
            ],
        );
        let mut changed: Vec<&str> = diff.lines().collect();
        changed.sort_unstable();
        assert_eq!(
            changed,
            [
                "A    /usr/bin/new",
                "A    /usr/etc/new.conf",
                "A    /usr/lib/link",
                "A    /usr/lib/new",
                "A    /usr/lib/new/deep",
                "A    /usr/lib/new/deep/file",
                "M    /usr/lib/os-release",
            ]
        );
        let again = super::commit(&scratch.repo, &scratch.base, &[low], NONE).unwrap();
        assert_ne!(again, commit);
        scratch.fsck();
    }

    #[test]
    fn what_an_image_has_of_the_base_takes_nothing_back_from_the_layers_below_it() {
        let scratch = Scratch::new();
        let release = |text| ("usr/lib/os-release", Base::File(0o644, text));
        let low = layer(&scratch, true, vec![release("ID=of-the-lower\n")]);
        let high = layer(&scratch, true, vec![release("ID=test\n"), ("usr/lib/new", Base::File(0o644, "x"))]);
        let commit = commit(&scratch.repo, &scratch.base, &[low, high], NONE).unwrap();
        assert_eq!(scratch.cat(&commit, "/usr/lib/os-release"), "ID=of-the-lower\n");
        assert_eq!(scratch.cat(&commit, "/usr/lib/new"), "x");
    }

    #[test]
    fn a_link_is_never_taken_for_what_container_tools_leave_behind() {
        let scratch = Scratch::new();
        let high = layer(
            &scratch,
            false,
            vec![
                ("usr/etc/resolv.conf", Base::Link("../run/systemd/resolve/stub-resolv.conf")),
                ("usr/etc/hosts", Base::File(0o644, "")),
            ],
        );
        let commit = commit(&scratch.repo, &scratch.base, &[high], NONE).unwrap();
        assert!(scratch.ls(&commit, "/usr/etc/resolv.conf").ends_with("stub-resolv.conf"));
        let tree = crate::store::tree::CommitTree::open(&scratch.repo, &commit).unwrap();
        assert!(tree.lookup("/usr/etc/hosts").unwrap().is_none());
    }

    #[test]
    fn what_a_layer_may_not_bring_is_refused_by_its_path() {
        let scratch = Scratch::new();
        for (entry, overwrite, why) in [
            (
                ("usr/lib/modules/6.1.0/vmlinuz", Base::File(0o644, "x")),
                true,
                "never changed by drop-ins: /usr/lib/modules/6.1.0/vmlinuz",
            ),
            (
                ("usr/etc/selinux/config", Base::File(0o644, "x")),
                true,
                "never changed by drop-ins: /etc/selinux/config",
            ),
            (("usr/lib/state/x/y", Base::File(0o644, "x")), true, "or the other way round: /usr/lib/state;"),
            (
                ("opt/agent/data", Base::File(0o644, "x")),
                true,
                "has what is outside /usr and /etc: /opt/agent/data",
            ),
            (("var/lib/x", Base::File(0o644, "x")), true, "has what is outside /usr and /etc: /var/lib/x"),
            (("bin", Base::Link("usr/bin")), true, "has what is outside /usr and /etc: /bin"),
            (
                ("usr/etc/passwd", Base::File(0o644, "x")),
                true,
                "has what is never changed by drop-ins: /etc/passwd",
            ),
            (
                ("usr/lib/osctl/derive.d/a.yaml", Base::File(0o644, "x")),
                true,
                "never changed by drop-ins: /usr/lib/osctl/derive.d/a.yaml",
            ),
            (
                ("usr/lib/sysimage/rpm/rpmdb.sqlite", Base::File(0o644, "x")),
                true,
                "never changed by drop-ins: /usr/lib/sysimage/rpm/rpmdb.sqlite",
            ),
            (
                ("usr/lib/os-release", Base::File(0o644, "ID=other")),
                false,
                "would replace files of the base: /usr/lib/os-release",
            ),
            (
                ("usr/lib/os-release", Base::File(0o600, "ID=test\n")),
                false,
                "would replace files of the base: /usr/lib/os-release",
            ),
            (("usr/etc/alias", Base::Link("other")), false, "would replace files of the base: /etc/alias"),
            (
                ("usr/bin", Base::File(0o644, "x")),
                true,
                "has a directory where the base has a file or a link, or the other way round: /usr/bin",
            ),
            (("usr/bin/tool/x", Base::File(0o644, "x")), true, "or the other way round: /usr/bin/tool"),
            (("usr/lib/state/x", Base::File(0o644, "x")), true, "or the other way round: /usr/lib/state"),
        ] {
            let shown = entry.0;
            let layer = layer(&scratch, overwrite, vec![entry]);
            let error = commit(&scratch.repo, &scratch.base, &[layer], NONE).unwrap_err();
            assert_eq!(
                (error.kind, error.details["drop-in"].as_str()),
                (ErrorKind::InvalidDropIn, "50-a.yaml")
            );
            let text = error.to_string();
            assert!(
                text.starts_with("50-a.yaml: the layer r.io/tools ") && text.contains(why),
                "{shown}: {text}"
            );
            assert!(error.hint.is_some(), "{shown}");
        }
    }
}
