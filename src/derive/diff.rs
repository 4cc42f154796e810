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

    let now = Declared::of_manifest(manifest);
    Declared::of_record(before).compare(&now, &mut all);
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
    keyed(&mut all, Subject::Path, each(&old), each(&new));
    Declared::of_record(was).compare(&Declared::of_record(now), &mut all);
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

/// What is declared beside paths: each with the drop-ins that do.
#[derive(Default)]
struct Declared {
    units: BTreeMap<String, (String, (Option<bool>, bool))>,
    users: BTreeMap<String, (String, Digest)>,
    groups: BTreeMap<String, (String, Digest)>,
    kargs: provenance::KargRecords,
    /// A request belongs to all drop-ins that make it.
    requests: BTreeMap<(Asked, String), (String, ())>,
}

impl Declared {
    /// What a deployment was derived from.
    fn of_record(record: Option<&Provenance>) -> Declared {
        let Some(record) = record else { return Declared::default() };
        let units = record.units.iter();
        let requests = record.packages.iter();
        Declared {
            units: units.map(|(n, u)| (n.clone(), (u.drop_in.clone(), (u.enabled, u.mask)))).collect(),
            users: digests(&record.users),
            groups: digests(&record.groups),
            kargs: record.kernel_arguments.clone(),
            requests: requests.map(|(n, r)| ((r.asked, n.clone()), (joined(&r.drop_ins), ()))).collect(),
        }
    }

    /// What a manifest would have.
    fn of_manifest(manifest: &Manifest) -> Declared {
        let packages = &manifest.packages;
        let named = [
            (Asked::Install, &packages.install),
            (Asked::Remove, &packages.remove),
            (Asked::Replace, &packages.replace),
            (Asked::Extension, &packages.extensions),
        ];
        let named = named
            .into_iter()
            .flat_map(|(asked, of)| of.iter().map(move |(n, by)| ((asked, n.clone()), (joined(by), ()))));
        let layers = manifest.layers.iter().map(|l| ((Asked::Layer, l.image.clone()), (l.owner.clone(), ())));
        let units = manifest.units.iter();
        Declared {
            units: units.map(|(n, u)| (n.clone(), (u.owner.clone(), (u.enabled, u.mask)))).collect(),
            users: digests(&provenance::users(manifest)),
            groups: digests(&provenance::groups(manifest)),
            kargs: provenance::kargs(manifest),
            requests: named.chain(layers).collect(),
        }
    }

    fn compare(&self, now: &Declared, all: &mut Vec<Difference>) {
        keyed(all, Subject::Unit, each(&self.units), each(&now.units));
        keyed(all, Subject::User, each(&self.users), each(&now.users));
        keyed(all, Subject::Group, each(&self.groups), each(&now.groups));
        kargs(all, Subject::KernelArgument, &self.kargs.append, &now.kargs.append);
        kargs(all, Subject::DeletedKernelArgument, &self.kargs.delete, &now.kargs.delete);
        for (subject, asked) in REQUESTS {
            keyed(all, subject, self.asked(asked), now.asked(asked));
        }
    }

    fn asked(&self, asked: Asked) -> impl Iterator<Item = (&str, &str, &())> {
        let requests = self.requests.iter().filter(move |((kind, _), _)| *kind == asked);
        requests.map(|((_, name), (by, nothing))| (name.as_str(), by.as_str(), nothing))
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

fn digests(of: &BTreeMap<String, provenance::UserRecord>) -> BTreeMap<String, (String, Digest)> {
    of.iter().map(|(name, u)| (name.clone(), (u.drop_in.clone(), u.digest.clone()))).collect()
}

fn each<V>(of: &BTreeMap<String, (String, V)>) -> impl Iterator<Item = (&str, &str, &V)> {
    of.iter().map(|(name, (by, value))| (name.as_str(), by.as_str(), value))
}

fn joined(owners: &BTreeSet<String>) -> String {
    owners.iter().cloned().collect::<Vec<_>>().join(", ")
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
