//! What the `/etc` merge will do to declared paths, before anything is staged.
//!
//! libostree merges at finalization: it compares the merge deployment's `etc` with its `usr/etc`, and replays every
//! local change (removed, then modified, then added entries, parents first) on a copy of the new tree's `usr/etc`. A local change
//! wins over what a drop-in declares; some combinations make the whole finalization fail, silently, at
//! shutdown. [`plan`] finds both:
//!
//! | local | new tree | libostree |
//! |---|---|---|
//! | unchanged | anything | takes the new |
//! | changed file or link | file, link, nothing | keeps the local |
//! | changed file or link | directory | **fails** |
//! | added directory | file, link, nothing | replaces it by the local directory |
//! | changed or removed below a directory | that directory is a file | **fails** |
//! | sockets, devices | | are skipped |
//!
//! A parent that is a symbolic link in the new tree and a directory here is refused although libostree would follow it:
//! it follows on the *running* host, out of the new deployment.
//! Extended attributes are not compared, as in libostree.

use super::provenance::Provenance;
use crate::model::manifest::{Manifest, Node, OnConflict};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind, kind_of};
use cap_std_ext::cap_std::fs::{Dir, FileType, Metadata, MetadataExt};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind as Io;

/// Nobody keeps configuration files of this size; they are compared by size and metadata only up to here.
const COMPARE_LIMIT: u64 = 1 << 30;

/// How a declared path fares in the merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The declared content will be there.
    Taken,
    /// The administrator already has exactly the declared content.
    Identical,
    /// A local change wins.
    Shadowed,
    /// Here is a directory and there a file, or the reverse.
    TypeConflict,
}

/// One declared path of `/etc`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EtcPath {
    /// As declared, `/etc/...`.
    pub path: String,
    /// The drop-in.
    pub drop_in: String,
    /// How it fares.
    pub standing: Standing,
    /// What its drop-in says about conflicts.
    pub on_conflict: OnConflict,
}

/// What the merge will do to the declared paths.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EtcPlan {
    /// All declared paths of `/etc`, in path order.
    pub paths: Vec<EtcPath>,
}

impl EtcPlan {
    /// The paths where a local change wins, with the drop-in's consent: to be shown in every status.
    pub fn kept_local(&self) -> impl Iterator<Item = &EtcPath> {
        self.shadowed(OnConflict::KeepLocal)
    }

    /// The paths whose local copy is to be saved and reset before staging: see [`super::take`].
    pub fn to_take(&self) -> impl Iterator<Item = &EtcPath> {
        self.shadowed(OnConflict::Take)
    }

    fn shadowed(&self, policy: OnConflict) -> impl Iterator<Item = &EtcPath> {
        self.paths.iter().filter(move |p| p.standing == Standing::Shadowed && p.on_conflict == policy)
    }
}

/// The `/etc` of the deployment that the merge starts from.
#[derive(Debug, Clone, Copy)]
pub struct Previous<'a> {
    /// Its `etc`.
    pub live: &'a Dir,
    /// Its `usr/etc`.
    pub defaults: &'a Dir,
}

/// Plans the merge into a new tree. Without a previous deployment everything is taken.
///
/// Fails with `EtcConflict` where a local change shadows a declared path and its drop-in says `error`, where a
/// declared path changes its type, and where libostree could not merge. All paths are in the details.
pub fn plan(previous: Option<Previous<'_>>, new_tree: &CommitTree, manifest: &Manifest) -> Result<EtcPlan> {
    let mut declared = declared(new_tree, manifest)?;
    let Some(previous) = previous else {
        return Ok(EtcPlan { paths: declared.into_values().map(|d| d.path).collect() });
    };
    let changes = Changes::read(previous)?;
    for disabled in still_enabled(new_tree, &changes)? {
        declared.insert(disabled.path.path.clone(), disabled);
    }
    for wanted in declared.values_mut() {
        wanted.path.standing = standing(previous.live, new_tree, &changes, wanted)?;
    }
    let plan = EtcPlan { paths: declared.into_values().map(|d| d.path).collect() };

    let taken: BTreeSet<&str> = plan.to_take().map(|p| relative(&p.path)).collect();
    let merge = changes.cannot_merge(new_tree, &taken)?;
    let of = |standing: Standing| {
        plan.paths.iter().filter(move |p| {
            p.standing == standing
                && (standing == Standing::TypeConflict || p.on_conflict == OnConflict::Error)
        })
    };
    let shadowed: Vec<&EtcPath> = of(Standing::Shadowed).collect();
    let retyped: Vec<&EtcPath> = of(Standing::TypeConflict).collect();
    if shadowed.is_empty() && retyped.is_empty() && merge.is_empty() {
        return Ok(plan);
    }
    Err(conflict(&shadowed, &retyped, &merge))
}

/// What differs from the defaults, as `/etc/...`: everything that libostree's merge would carry over.
pub fn locally_changed(of: Previous<'_>) -> Result<BTreeSet<String>> {
    Ok(Changes::read(of)?.all.into_keys().map(|path| format!("/etc/{path}")).collect())
}

fn conflict(shadowed: &[&EtcPath], retyped: &[&EtcPath], merge: &[String]) -> Error {
    let name = |paths: &[&EtcPath]| {
        paths.iter().map(|p| format!("{} ({})", p.path, p.drop_in)).collect::<Vec<_>>().join(", ")
    };
    let mut parts = Vec::new();
    if !shadowed.is_empty() {
        parts.push(format!("changed by hand and declared: {}", name(shadowed)));
    }
    if !retyped.is_empty() {
        parts.push(format!("a directory on one side and a file on the other: {}", name(retyped)));
    }
    if !merge.is_empty() {
        parts.push(format!("local changes that do not fit the new tree: {}", merge.join(", ")));
    }
    let hint = if shadowed.is_empty() {
        "move the local files away; `ostree admin config-diff` lists local changes"
    } else {
        "undo the local changes, or set on-conflict: keep-local or take in the drop-in; `ostree admin config-diff` lists local changes"
    };
    let mut error =
        Error::new(ErrorKind::EtcConflict, format!("/etc cannot be merged: {}", parts.join("; "))).hint(hint);
    let lines = |paths: &[&EtcPath]| paths.iter().map(|p| p.path.as_str()).collect::<Vec<_>>().join("\n");
    for (key, value) in
        [("shadowed", lines(shadowed)), ("type-conflict", lines(retyped)), ("merge", merge.join("\n"))]
    {
        if !value.is_empty() {
            error = error.detail(key, value);
        }
    }
    error
}

/// A declared path, and what of it matters.
struct Declared {
    path: EtcPath,
    /// Only the last part of a link's target counts (links that enable units).
    by_name: bool,
}

fn declared(new_tree: &CommitTree, manifest: &Manifest) -> Result<BTreeMap<String, Declared>> {
    let mut all = BTreeMap::new();
    let mut add = |path: &str, drop_in: &str, on_conflict, by_name| {
        let record = EtcPath {
            path: path.to_owned(),
            drop_in: drop_in.to_owned(),
            standing: Standing::Taken,
            on_conflict,
        };
        all.insert(path.to_owned(), Declared { path: record, by_name });
    };
    for (path, node) in manifest.nodes.iter().filter(|(path, _)| path.starts_with("/etc/")) {
        // Through a link of the base the file is elsewhere, and that is where the merge meets it.
        let real = new_tree.resolve(path, false)?.unwrap_or_else(|| path.clone());
        let on_conflict = match node {
            Node::File(f) => f.on_conflict,
            Node::Link(l) => l.on_conflict,
            Node::Directory(_) => OnConflict::Error,
        };
        add(&super::mtree::as_booted(&real), node.owner(), on_conflict, false);
    }
    let units = Provenance::read(new_tree)?.map(|p| p.units).unwrap_or_default();
    for unit in units.values() {
        for link in &unit.links {
            add(link, &unit.drop_in, OnConflict::Error, true);
        }
    }
    Ok(all)
}

/// Links that the administrator made by hand and that start a unit which a drop-in disables.
fn still_enabled(new_tree: &CommitTree, changes: &Changes) -> Result<Vec<Declared>> {
    let units = Provenance::read(new_tree)?.map(|p| p.units).unwrap_or_default();
    let mut all = Vec::new();
    for (path, change) in &changes.all {
        let Some((dir, name)) = path.strip_prefix("systemd/system/").and_then(|p| p.split_once('/')) else {
            continue;
        };
        let requests = [".wants", ".requires", ".upholds"].iter().any(|suffix| dir.ends_with(suffix));
        if *change == Change::Removed || !requests {
            continue;
        }
        if let Some(unit) = units.get(name).filter(|u| u.enabled == Some(false)) {
            all.push(Declared {
                path: EtcPath {
                    path: format!("/etc/{path}"),
                    drop_in: unit.drop_in.clone(),
                    standing: Standing::Taken,
                    on_conflict: OnConflict::Error,
                },
                by_name: true,
            });
        }
    }
    Ok(all)
}

fn standing(live: &Dir, new_tree: &CommitTree, changes: &Changes, wanted: &Declared) -> Result<Standing> {
    let path = relative(&wanted.path.path);
    for parent in parents(path) {
        match changes.all.get(parent) {
            // The removal is replayed, and takes the declared path with it.
            Some(Change::Removed) => return Ok(Standing::Shadowed),
            Some(Change::Kept(kind)) if *kind != Local::Directory => return Ok(Standing::TypeConflict),
            Some(Change::Kept(_)) | None => {}
        }
    }
    let Some(change) = changes.all.get(path) else { return Ok(Standing::Taken) };
    let new = new_tree.lookup(&wanted.path.path)?;
    let Change::Kept(local) = change else {
        return Ok(if new.is_none() { Standing::Identical } else { Standing::Shadowed });
    };
    let Some(new) = new else { return Ok(Standing::Shadowed) };
    let info = |name: &str| new.attribute_uint32(name);
    let meta = entry(live, path)?;
    let same_meta = meta.as_ref().is_some_and(|m| {
        m.uid() == info("unix::uid")
            && m.gid() == info("unix::gid")
            && (m.mode() ^ info("unix::mode")) & 0o7777 == 0
    });
    let same = match (kind_of(&new), local) {
        (Kind::Directory, Local::Directory) => same_meta,
        (Kind::Directory, _) | (_, Local::Directory) => return Ok(Standing::TypeConflict),
        (Kind::Link, Local::Link) => {
            let has = live.read_link_contents(path).doing_with(|| format!("reading /etc/{path}"))?;
            let wants = new.symlink_target().unwrap_or_default();
            if wanted.by_name { has.file_name() == wants.file_name() } else { has == wants }
        }
        (Kind::File, Local::File) => {
            same_meta
                && meta.is_some_and(|m| i64::try_from(m.len()).is_ok_and(|len| len == new.size()))
                && new_tree.read(&wanted.path.path, COMPARE_LIMIT)?.as_deref()
                    == Some(&*live.read(path).doing_with(|| format!("reading /etc/{path}"))?)
        }
        (Kind::File | Kind::Link, Local::File | Local::Link | Local::Special) => false,
    };
    Ok(if same { Standing::Identical } else { Standing::Shadowed })
}

/// The kind of a local entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    File,
    Directory,
    Link,
    /// Sockets, pipes and devices, which the merge leaves behind.
    Special,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Removed,
    /// Added or modified, and now of this kind.
    Kept(Local),
}

/// All local changes, by path relative to `/etc`, as `ostree admin config-diff` finds them.
struct Changes {
    /// In path order: a parent comes before what is below it.
    all: BTreeMap<String, Change>,
}

impl Changes {
    fn read(previous: Previous<'_>) -> Result<Changes> {
        let mut changes = Changes { all: BTreeMap::new() };
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            let (old, new) = (names(previous.defaults, &dir)?, names(previous.live, &dir)?);
            for name in old.union(&new) {
                let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
                let (before, after) = (entry(previous.defaults, &path)?, entry(previous.live, &path)?);
                let Some(after) = after else {
                    if before.is_some() {
                        changes.all.insert(path, Change::Removed);
                    }
                    continue;
                };
                let kind = local_kind(&after.file_type());
                let before_kind = before.as_ref().map(|b| local_kind(&b.file_type()));
                let same = match &before {
                    Some(before) => before_kind == Some(kind) && same(previous, &path, kind, before, &after)?,
                    None => false,
                };
                if !same {
                    changes.all.insert(path.clone(), Change::Kept(kind));
                }
                // Below an added directory everything is added; what became a directory is copied whole.
                if kind == Local::Directory && before_kind.is_none_or(|b| b == kind) {
                    todo.push(path);
                }
            }
        }
        Ok(changes)
    }

    /// The changes that libostree cannot replay on the new tree.
    fn cannot_merge(&self, new_tree: &CommitTree, reset: &BTreeSet<&str>) -> Result<Vec<String>> {
        // Local directories that replaced what the new tree has there.
        let mut ours: BTreeSet<&str> = BTreeSet::new();
        let mut failing = Vec::new();
        let removed_first = (self.all.iter().filter(|(_, c)| **c == Change::Removed))
            .chain(self.all.iter().filter(|(_, c)| **c != Change::Removed));
        for (path, change) in removed_first {
            if reset.contains(path.as_str()) {
                continue;
            }
            let mut missing = false;
            let mut blocked = false;
            for parent in parents(path) {
                if missing || ours.contains(parent) {
                    missing = true; // the local parent, or one that the merge makes like it
                    continue;
                }
                match new_tree.kind(&format!("/etc/{parent}"))? {
                    Some(Kind::Directory) => {}
                    None => missing = true,
                    Some(Kind::File | Kind::Link) => blocked = true,
                }
            }
            let clash = match change {
                Change::Removed => false,
                Change::Kept(_) if missing => false,
                Change::Kept(local) => {
                    let new = new_tree.kind(&format!("/etc/{path}"))?;
                    if *local == Local::Directory && new != Some(Kind::Directory) {
                        ours.insert(path);
                    }
                    *local != Local::Directory && new == Some(Kind::Directory)
                }
            };
            if blocked || clash {
                failing.push(format!("/etc/{path}"));
            }
        }
        failing.sort();
        Ok(failing)
    }
}

fn same(
    previous: Previous<'_>,
    path: &str,
    kind: Local,
    before: &Metadata,
    after: &Metadata,
) -> Result<bool> {
    let what = || format!("comparing /etc/{path}");
    let meta = |m: &Metadata| (m.mode() & 0o7777, m.uid(), m.gid());
    if meta(before) != meta(after) {
        return Ok(false);
    }
    Ok(match kind {
        Local::Directory | Local::Special => true,
        Local::Link => {
            previous.defaults.read_link_contents(path).doing_with(what)?
                == previous.live.read_link_contents(path).doing_with(what)?
        }
        Local::File => {
            before.len() == after.len()
                && ((before.dev(), before.ino()) == (after.dev(), after.ino())
                    || previous.defaults.read(path).doing_with(what)?
                        == previous.live.read(path).doing_with(what)?)
        }
    })
}

fn local_kind(kind: &FileType) -> Local {
    if kind.is_dir() {
        Local::Directory
    } else if kind.is_symlink() {
        Local::Link
    } else if kind.is_file() {
        Local::File
    } else {
        Local::Special
    }
}

/// The metadata of an entry, links not followed; `None` if nothing is there.
pub(super) fn entry(dir: &Dir, path: &str) -> Result<Option<Metadata>> {
    match dir.symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if matches!(e.kind(), Io::NotFound | Io::NotADirectory) => Ok(None),
        Err(e) => Err(e).doing_with(|| format!("looking at /etc/{path}")),
    }
}

fn names(dir: &Dir, path: &str) -> Result<BTreeSet<String>> {
    let what = || format!("listing /etc/{path}");
    let at = if path.is_empty() { "." } else { path };
    let entries = match dir.read_dir(at) {
        Ok(entries) => entries,
        Err(e) if e.kind() == Io::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(e).doing_with(what),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry.doing_with(what)?.file_name();
        match name.into_string() {
            Ok(name) => drop(names.insert(name)),
            // Declared paths and trees are UTF-8, so such an entry can only be a local one, which is kept.
            Err(name) => tracing::debug!(?name, dir = path, "ignoring a name that is not UTF-8"),
        }
    }
    Ok(names)
}

fn relative(path: &str) -> &str {
    path.strip_prefix("/etc/").unwrap_or(path)
}

/// `a`, `a/b` of `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(i, _)| &path[..i])
}

#[cfg(test)]
mod tests;
