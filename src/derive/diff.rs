//! What a new manifest would change against what a deployment was derived from.
//!
//! For `osctl reconcile --check` and the property `pending-changes`. Contents are compared with the deployment's tree, not with
//! recorded digests: a digest of a single small secret could be guessed.

use super::mtree;
use super::provenance::{self, Asked, KargRecord, PathKind, Provenance};
use crate::model::difference::{Difference, Differences, Subject, Verb};
use crate::model::image::Digest;
use crate::model::manifest::{Manifest, Meta, Node};
use crate::model::{Context, Result};
use crate::store::tree::{CommitTree, Kind, kind_of};
use std::collections::{BTreeMap, BTreeSet};

/// No declared file is larger than this.
const COMPARE_LIMIT: u64 = 1 << 30;

/// Compares a deployment's tree with a manifest.
///
/// A tree without a record was not derived: everything declared is added. Same input digest means no
/// differences, without looking at any content.
pub fn compare(deployed: &CommitTree, manifest: &Manifest) -> Result<Differences> {
    let before = Provenance::read(deployed)?;
    let before = before.as_ref();
    let changed = match before {
        Some(before) => before.input_digest != manifest.input_digest(),
        None => !manifest.is_empty(),
    };
    if !changed {
        return Ok(Differences::default());
    }
    let mut all = Vec::new();

    // Directories at or above a declared path are not compared: only what is declared is.
    let old: BTreeMap<&str, (&str, PathKind)> = before
        .iter()
        .flat_map(|b| &b.paths)
        .map(|(path, r)| (path.as_str(), (r.drop_in.as_str(), r.kind)))
        .collect();
    for (path, node) in &manifest.nodes {
        let change = match old.get(path.as_str()) {
            None => Verb::Added,
            Some((drop_in, _)) if *drop_in == node.owner() && is_there(deployed, path, node)? => continue,
            Some(_) => Verb::Changed,
        };
        all.push(difference(Subject::Path, path, change, node.owner()));
    }
    let gone = old.iter().filter(|(path, _)| !manifest.nodes.contains_key(**path));
    all.extend(gone.map(|(path, (drop_in, _))| difference(Subject::Path, path, Verb::Removed, drop_in)));

    keyed(
        &mut all,
        Subject::Unit,
        before
            .iter()
            .flat_map(|b| &b.units)
            .map(|(n, u)| (n.as_str(), u.drop_in.as_str(), (u.enabled, u.mask))),
        manifest.units.iter().map(|(n, u)| (n.as_str(), u.owner.as_str(), (u.enabled, u.mask))),
    );
    keyed(
        &mut all,
        Subject::User,
        before.iter().flat_map(|b| &b.users).map(|(n, u)| (n.as_str(), u.drop_in.as_str(), &u.digest)),
        provenance::users(manifest).iter().map(|(n, u)| (n.as_str(), u.drop_in.as_str(), &u.digest)),
    );
    keyed(
        &mut all,
        Subject::Group,
        before.iter().flat_map(|b| &b.groups).map(|(n, g)| (n.as_str(), g.drop_in.as_str(), &g.digest)),
        provenance::groups(manifest).iter().map(|(n, g)| (n.as_str(), g.drop_in.as_str(), &g.digest)),
    );
    let now = provenance::kargs(manifest);
    let none = provenance::KargRecords::default();
    let was = before.map_or(&none, |b| &b.kernel_arguments);
    kargs(&mut all, Subject::KernelArgument, &was.append, &now.append);
    kargs(&mut all, Subject::DeletedKernelArgument, &was.delete, &now.delete);
    packages(&mut all, before, manifest);
    all.sort_by(|a, b| (a.subject, &a.name, a.change).cmp(&(b.subject, &b.name, b.change)));
    Ok(Differences { changed, list: all })
}

/// Compares what two deployments were derived from. Of paths that both declare, what the trees have there is compared.
pub fn between(from: &CommitTree, to: &CommitTree) -> Result<Vec<Difference>> {
    let (was, now) = (Provenance::read(from)?, Provenance::read(to)?);
    let (was, now) = (was.as_ref(), now.as_ref());
    let mut all = Vec::new();
    let paths = |side: Option<&Provenance>, tree: &CommitTree| -> Result<BTreeMap<String, (String, There)>> {
        let records = side.into_iter().flat_map(|p| &p.paths);
        records.map(|(path, r)| Ok((path.clone(), (r.drop_in.clone(), there(tree, path)?)))).collect()
    };
    let (old, new) = (paths(was, from)?, paths(now, to)?);
    keyed(
        &mut all,
        Subject::Path,
        old.iter().map(|(path, (by, there))| (path.as_str(), by.as_str(), there)),
        new.iter().map(|(path, (by, there))| (path.as_str(), by.as_str(), there)),
    );
    let units = |side: Option<&'_ Provenance>| side.map(|p| p.units.clone()).unwrap_or_default();
    let (old, new) = (units(was), units(now));
    keyed(
        &mut all,
        Subject::Unit,
        old.iter().map(|(name, u)| (name.as_str(), u.drop_in.as_str(), (u.enabled, u.mask))),
        new.iter().map(|(name, u)| (name.as_str(), u.drop_in.as_str(), (u.enabled, u.mask))),
    );
    for (subject, of) in [
        (Subject::User, (|p: &Provenance| p.users.clone()) as fn(&Provenance) -> _),
        (Subject::Group, |p: &Provenance| p.groups.clone()),
    ] {
        let (old, new) = (was.map(of).unwrap_or_default(), now.map(of).unwrap_or_default());
        keyed(
            &mut all,
            subject,
            old.iter().map(|(name, u)| (name.as_str(), u.drop_in.as_str(), &u.digest)),
            new.iter().map(|(name, u)| (name.as_str(), u.drop_in.as_str(), &u.digest)),
        );
    }
    let none = provenance::KargRecords::default();
    let (old, new) = (was.map_or(&none, |p| &p.kernel_arguments), now.map_or(&none, |p| &p.kernel_arguments));
    kargs(&mut all, Subject::KernelArgument, &old.append, &new.append);
    kargs(&mut all, Subject::DeletedKernelArgument, &old.delete, &new.delete);
    for (subject, asked) in REQUESTS {
        let (old, new) = (requested(was, asked), requested(now, asked));
        requests(&mut all, subject, &old, &new);
    }
    all.sort_by(|a, b| (a.subject, &a.name, a.change).cmp(&(b.subject, &b.name, b.change)));
    Ok(all)
}

/// What a tree has at a path: owner and mode, and the content or where a link leads.
#[derive(PartialEq)]
enum There {
    Nothing,
    File(Meta, Option<String>),
    Directory(Meta),
    Link(Option<std::path::PathBuf>),
}

fn there(tree: &CommitTree, path: &str) -> Result<There> {
    let Some(info) = tree.lookup(path)? else { return Ok(There::Nothing) };
    Ok(match kind_of(&info) {
        Kind::File => There::File(mtree::meta_of(&info), tree.checksum(path)?),
        Kind::Directory => There::Directory(mtree::meta_of(&info)),
        Kind::Link => There::Link(info.symlink_target()),
    })
}

/// The input digest that a deployment's tree was derived from; `None` if nothing was derived.
pub fn recorded_input(deployed: &CommitTree) -> Result<Option<Digest>> {
    Ok(Provenance::read(deployed)?.map(|p| p.input_digest))
}

fn difference(subject: Subject, name: &str, change: Verb, drop_in: &str) -> Difference {
    Difference { subject, name: name.to_owned(), change, drop_in: drop_in.to_owned() }
}

/// Compares things that have a name, an owner and a value.
fn keyed<'a, V: PartialEq>(
    all: &mut Vec<Difference>,
    subject: Subject,
    before: impl Iterator<Item = (&'a str, &'a str, V)>,
    now: impl Iterator<Item = (&'a str, &'a str, V)>,
) {
    let mut before: BTreeMap<&str, (&str, V)> = before.map(|(name, owner, v)| (name, (owner, v))).collect();
    for (name, owner, value) in now {
        match before.remove(name) {
            None => all.push(difference(subject, name, Verb::Added, owner)),
            Some(was) if was == (owner, value) => {}
            Some(_) => all.push(difference(subject, name, Verb::Changed, owner)),
        }
    }
    all.extend(before.into_iter().map(|(name, (owner, _))| difference(subject, name, Verb::Removed, owner)));
}

/// A request belongs to all drop-ins that make it.
fn packages(all: &mut Vec<Difference>, before: Option<&Provenance>, manifest: &Manifest) {
    let layers = manifest.layers.iter().map(|l| (l.image.clone(), BTreeSet::from([l.owner.clone()])));
    let (now, layers) = (&manifest.packages, layers.collect());
    for (subject, asked) in REQUESTS {
        let now = match asked {
            Asked::Install => &now.install,
            Asked::Remove => &now.remove,
            Asked::Replace => &now.replace,
            Asked::Extension => &now.extensions,
            Asked::Layer => &layers,
        };
        let now: Vec<(String, String)> = now.iter().map(|(name, by)| (name.clone(), joined(by))).collect();
        requests(all, subject, &requested(before, asked), &now);
    }
}

/// What is said of each kind of request.
const REQUESTS: [(Subject, Asked); 5] = [
    (Subject::Package, Asked::Install),
    (Subject::RemovedPackage, Asked::Remove),
    (Subject::ReplacedPackage, Asked::Replace),
    (Subject::Extension, Asked::Extension),
    (Subject::Layer, Asked::Layer),
];

fn joined(owners: &BTreeSet<String>) -> String {
    owners.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// The requests of a kind that a deployment was derived from, each with its drop-ins.
fn requested(side: Option<&Provenance>, asked: Asked) -> Vec<(String, String)> {
    let records = side.into_iter().flat_map(|p| &p.packages).filter(|(_, record)| record.asked == asked);
    records.map(|(name, record)| (name.clone(), joined(&record.drop_ins))).collect()
}

fn requests(all: &mut Vec<Difference>, subject: Subject, was: &[(String, String)], now: &[(String, String)]) {
    keyed(
        all,
        subject,
        was.iter().map(|(name, by)| (name.as_str(), by.as_str(), ())),
        now.iter().map(|(name, by)| (name.as_str(), by.as_str(), ())),
    );
}

/// An argument may be there more than once.
fn kargs(all: &mut Vec<Difference>, subject: Subject, before: &[KargRecord], now: &[KargRecord]) {
    let mut left: Vec<&KargRecord> = before.iter().collect();
    for arg in now {
        match left.iter().position(|l| *l == arg) {
            Some(i) => drop(left.remove(i)),
            None => all.push(difference(subject, &arg.arg, Verb::Added, &arg.drop_in)),
        }
    }
    all.extend(left.into_iter().map(|l| difference(subject, &l.arg, Verb::Removed, &l.drop_in)));
}

/// Whether a tree has exactly this at a path.
fn is_there(tree: &CommitTree, path: &str, node: &Node) -> Result<bool> {
    let Some(info) = tree.lookup(path)? else { return Ok(false) };
    let meta: Meta = mtree::meta_of(&info);
    Ok(match (node, kind_of(&info)) {
        (Node::File(f), Kind::File) => {
            meta == f.meta
                && f.contents.bytes().is_none_or(|bytes| u64::try_from(info.size()) == Ok(bytes.len() as u64))
                && tree
                    .read(path, COMPARE_LIMIT)
                    .doing_with(|| format!("comparing {path}"))?
                    .is_some_and(|has| f.contents.is(&has))
        }
        (Node::Directory(d), Kind::Directory) => meta == d.meta,
        (Node::Link(l), Kind::Link) => {
            info.symlink_target().is_some_and(|has| has.to_str() == Some(l.target.as_str()))
        }
        (Node::File(_) | Node::Directory(_) | Node::Link(_), Kind::File | Kind::Directory | Kind::Link) => {
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn every_kind_of_difference_is_named_with_its_drop_in() {
        let scratch = Scratch::new();
        let mut before = nodes([
            ("/etc/a", file("1")),
            ("/etc/b", file("1")),
            ("/etc/c", file("1")),
            ("/etc/m", with(file("1"), |f| f.meta.mode = 0o600)),
            ("/etc/x", link("y")),
            ("/usr/lib/d", directory(0o755)),
        ]);
        before.units = units([("old.service", unit(false)), ("agent.service", unit(true))]).units;
        before.users.insert("agent".into(), user());
        before.users.insert("other".into(), user());
        let group = |gid| crate::model::manifest::Group { owner: owner(), gid };
        before.groups.insert("agents".into(), group(None));
        before.groups.insert("gone".into(), group(None));
        before.kargs_append = vec![karg("nosmt"), karg("twice"), karg("twice")];
        before.kargs_delete = vec![karg("quiet")];
        let derived = scratch.derive(&before).unwrap();
        let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
        assert_eq!(compare(&tree, &before).unwrap(), Differences::default());

        let mut now = nodes([
            ("/etc/a", file("1")),
            ("/etc/b", file("2")),
            ("/etc/m", file("1")),
            ("/etc/n", file("1")),
            ("/etc/x", link("z")),
            ("/usr/lib/d", directory(0o755)),
        ]);
        now.units = units([("old.service", unit(true)), ("tty@a.service", unit(true))]).units;
        now.users.insert("agent".into(), crate::model::manifest::User { uid: Some(77), ..user() });
        now.groups.insert("agents".into(), group(Some(78)));
        now.kargs_append = vec![karg("twice"), karg("mitigations=auto")];
        assert_eq!(
            compare(&tree, &now).unwrap().lines(),
            [
                "change /etc/b (50-agent.yaml)",
                "remove /etc/c (50-agent.yaml)",
                "change /etc/m (50-agent.yaml)",
                "add /etc/n (50-agent.yaml)",
                "change /etc/x (50-agent.yaml)",
                "remove unit agent.service (50-agent.yaml)",
                "change unit old.service (50-agent.yaml)",
                "add unit tty@a.service (50-agent.yaml)",
                "change user agent (50-agent.yaml)",
                "remove user other (50-agent.yaml)",
                "change group agents (50-agent.yaml)",
                "remove group gone (50-agent.yaml)",
                "add kernel argument mitigations=auto (50-agent.yaml)",
                "remove kernel argument nosmt (50-agent.yaml)",
                "remove kernel argument twice (50-agent.yaml)",
                "remove deletion of kernel argument quiet (50-agent.yaml)",
            ]
        );
    }

    #[test]
    fn a_change_of_order_is_a_change() {
        let scratch = Scratch::new();
        let kargs = |a, b| Manifest { kargs_append: vec![karg(a), karg(b)], ..Manifest::default() };
        let derived = scratch.derive(&kargs("a", "b")).unwrap();
        let tree = CommitTree::open(&scratch.repo, &derived.commit).unwrap();
        let differences = compare(&tree, &kargs("b", "a")).unwrap();
        assert!(differences.changed && differences.list.is_empty());
        assert_eq!(
            differences.lines(),
            ["change order of kernel arguments, a repository, or a policy such as overwrite"]
        );
    }

    #[test]
    fn on_a_tree_without_record_everything_is_added() {
        let scratch = Scratch::new();
        let tree = CommitTree::open(&scratch.repo, &scratch.base).unwrap();
        assert_eq!(recorded_input(&tree).unwrap(), None);
        let differences = compare(&tree, &nodes([("/etc/hostname", file("base\n"))])).unwrap();
        assert_eq!(
            serde_json::to_string(&differences).unwrap(),
            r#"{"changed":true,"list":[{"subject":"path","name":"/etc/hostname","change":"added","drop-in":"50-agent.yaml"}]}"#
        );
        assert_eq!(compare(&tree, &Manifest::default()).unwrap(), Differences::default());
    }
}
