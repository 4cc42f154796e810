//! What is different between two commits, as a layer of an image has it: `/usr/etc` is `/etc`.

use crate::model::{Context, Result};
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeMap;

/// The type of a dirtree object: files, then directories with contents and metadata checksum.
type DirTree = (Vec<(String, Vec<u8>)>, Vec<(String, Vec<u8>, Vec<u8>)>);

/// What becomes of a path of the base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is gone.
    Removed,
    /// A directory with this metadata object: a new one, a changed one, or one on the way to a change.
    Directory(String),
    /// A file or link, by its object.
    Entry(String),
    /// A file that is in neither commit: 0644, root's.
    Written(Vec<u8>),
}

/// Changes by path, without a slash in front. A directory comes before what is in it.
pub type Changes = BTreeMap<String, Change>;

/// What `derived` has else than `base`. Costs as much as differs.
pub fn between(repo: &ostree::Repo, base: &str, derived: &str) -> Result<Changes> {
    let mut changes = Changes::new();
    let (old, new) = (root(repo, base)?, root(repo, derived)?);
    directory(repo, Some(&old), &new, "", &mut changes)?;
    Ok(changes)
}

/// A directory object.
struct Dir {
    contents: String,
    meta: String,
}

fn root(repo: &ostree::Repo, commit: &str) -> Result<Dir> {
    let doing = || format!("reading commit {commit}");
    let object = repo.load_variant(ostree::ObjectType::Commit, commit).doing_with(doing)?;
    // (a{sv}aya(say)sstayay): the last two are the root.
    let checksum = |index| object.child_value(index).data_as_bytes().to_vec();
    Ok(Dir { contents: hex::encode(checksum(6)), meta: hex::encode(checksum(7)) })
}

struct Entries {
    files: BTreeMap<String, String>,
    dirs: BTreeMap<String, Dir>,
}

fn entries(repo: &ostree::Repo, dir: &Dir) -> Result<Entries> {
    let doing = || format!("reading directory {}", dir.contents);
    let tree = repo.load_variant(ostree::ObjectType::DirTree, &dir.contents).doing_with(doing)?;
    let (files, dirs) = tree.try_get::<DirTree>().doing_with(doing)?;
    let dir = |(name, contents, meta)| {
        (name, Dir { contents: hex::encode::<Vec<u8>>(contents), meta: hex::encode::<Vec<u8>>(meta) })
    };
    Ok(Entries {
        files: files.into_iter().map(|(name, sum)| (name, hex::encode(sum))).collect(),
        dirs: dirs.into_iter().map(dir).collect(),
    })
}

/// Compares what is in two directories, which are different.
fn directory(
    repo: &ostree::Repo,
    old: Option<&Dir>,
    new: &Dir,
    path: &str,
    changes: &mut Changes,
) -> Result<()> {
    let now = entries(repo, new)?;
    let before = match old {
        Some(old) => entries(repo, old)?,
        None => Entries { files: BTreeMap::new(), dirs: BTreeMap::new() },
    };
    for (name, object) in &now.files {
        if before.files.get(name) != Some(object) {
            changes.insert(join(path, name), Change::Entry(object.clone()));
        }
    }
    let there = |name: &String| now.files.contains_key(name) || now.dirs.contains_key(name);
    for name in before.files.keys().chain(before.dirs.keys()).filter(|name| !there(name)) {
        changes.insert(join(path, name), Change::Removed);
    }
    for (name, dir) in &now.dirs {
        let was = before.dirs.get(name);
        let same_contents = was.is_some_and(|was| was.contents == dir.contents);
        if same_contents && was.is_some_and(|was| was.meta == dir.meta) {
            continue;
        }
        let path = join(path, name);
        changes.insert(path.clone(), Change::Directory(dir.meta.clone()));
        if !same_contents {
            directory(repo, was, dir, &path, changes)?;
        }
    }
    Ok(())
}

/// The path in an image.
fn join(parent: &str, name: &str) -> String {
    match (parent, name) {
        ("", name) | ("usr", name @ "etc") => name.to_owned(),
        _ => format!("{parent}/{name}"),
    }
}

/// Extended attributes: names and values.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The metadata of a directory.
pub fn directory_meta(repo: &ostree::Repo, checksum: &str) -> Result<(ostree::DirMetaParsed, Attributes)> {
    let doing = || format!("reading directory metadata {checksum}");
    let meta = repo.load_variant(ostree::ObjectType::DirMeta, checksum).doing_with(doing)?;
    // (uuua(ayay)): owner, group, mode, attributes.
    let attributes = attributes(&meta.child_value(3));
    Ok((ostree::DirMetaParsed::from_variant(&meta).doing_with(doing)?, attributes))
}

/// A file or link of the repository: its content if it is a file, and what it is.
pub fn file(
    repo: &ostree::Repo,
    checksum: &str,
) -> Result<(Option<gio::InputStream>, gio::FileInfo, Attributes)> {
    let (stream, info, variant) = repo
        .load_file(checksum, gio::Cancellable::NONE)
        .doing_with(|| format!("reading object {checksum}"))?;
    Ok((stream, info, attributes(&variant)))
}

fn attributes(variant: &glib::Variant) -> Attributes {
    let all: Attributes = variant.get().unwrap_or_default();
    let without_nul = |name: Vec<u8>| name.strip_suffix(b"\0").map(<[u8]>::to_vec).unwrap_or(name);
    all.into_iter().map(|(name, value)| (without_nul(name), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, Scratch, commit_tree};

    #[test]
    fn every_kind_of_change_is_found_with_the_directories_on_the_way() {
        use Base::*;
        let scratch = Scratch::with(
            ostree::RepoMode::Bare,
            [
                ("usr/bin/same", File(0o755, "same")),
                ("usr/lib/gone", File(0o644, "x")),
                ("usr/lib/gone-dir/below", File(0o644, "x")),
                ("usr/lib/mode", Dir(0o755)),
                ("usr/lib/file-to-dir", File(0o644, "x")),
                ("usr/lib/dir-to-link/below", File(0o644, "x")),
                ("usr/etc/changed", File(0o644, "1")),
                ("usr/etc/same/below", File(0o644, "1")),
            ],
        );
        let derived = commit_tree(
            &scratch.repo,
            [
                ("usr/bin/same", File(0o755, "same")),
                ("usr/lib/mode", Dir(0o700)),
                ("usr/lib/file-to-dir/below", File(0o644, "x")),
                ("usr/lib/dir-to-link", Link("mode")),
                ("usr/etc/changed", File(0o644, "2")),
                ("usr/etc/same/below", File(0o644, "1")),
                ("usr/etc/new/below", File(0o644, "1")),
            ],
        );
        let changes = between(&scratch.repo, &scratch.base, &derived).unwrap();
        let kind = |change: &Change| match change {
            Change::Removed => "removed",
            Change::Directory(_) => "directory",
            Change::Entry(_) | Change::Written(_) => "entry",
        };
        let found: Vec<_> = changes.iter().map(|(path, change)| (path.as_str(), kind(change))).collect();
        assert_eq!(
            found,
            [
                ("etc", "directory"),
                ("etc/changed", "entry"),
                ("etc/new", "directory"),
                ("etc/new/below", "entry"),
                ("usr", "directory"),
                ("usr/lib", "directory"),
                ("usr/lib/dir-to-link", "entry"),
                ("usr/lib/file-to-dir", "directory"),
                ("usr/lib/file-to-dir/below", "entry"),
                ("usr/lib/gone", "removed"),
                ("usr/lib/gone-dir", "removed"),
                ("usr/lib/mode", "directory"),
            ]
        );
        assert_eq!(between(&scratch.repo, &derived, &derived).unwrap(), Changes::new());
    }
}
