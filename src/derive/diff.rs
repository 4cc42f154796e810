//! How the drop-ins of now differ from what a deployment was derived from.

use super::provenance::Provenance;
use crate::model::manifest::Manifest;
use crate::model::manifest::Node;
use std::collections::{BTreeMap, BTreeSet};

/// One line for people per difference: what, and which drop-in asks for it. Empty if nothing differs.
///
/// Contents are compared by drop-in (a record holds no content): a path is listed as changed if its drop-in
/// declares something else than before.
pub fn lines(recorded: Option<&Provenance>, now: &Manifest) -> Vec<String> {
    if recorded.map(|r| &r.input_digest) == Some(&now.input_digest()) || (recorded.is_none() && now.is_empty()) {
        return Vec::new();
    }
    let changed = changed_drop_ins(recorded, now);
    let mut lines = Vec::new();
    let paths_then = recorded.map(|r| names(&r.paths, |p| &p.drop_in)).unwrap_or_default();
    let paths_now = now.nodes.iter().map(|(p, n)| (p.as_str(), n.owner())).collect();
    compare("", &paths_then, &paths_now, &changed, &mut lines);
    let units_then = recorded.map(|r| names(&r.units, |u| &u.drop_in)).unwrap_or_default();
    compare("unit ", &units_then, &names(&now.units, |u| &u.owner), &changed, &mut lines);
    let users_then = recorded.map(|r| names(&r.users, |u| &u.drop_in)).unwrap_or_default();
    compare("user ", &users_then, &names(&now.users, |u| &u.owner), &changed, &mut lines);
    let kargs = recorded.map(|r| r.kernel_arguments.clone()).unwrap_or_default();
    let then = kargs.append.iter().map(|k| (k.arg.as_str(), k.drop_in.as_str())).collect();
    let wanted = now.kargs_append.iter().map(|k| (k.arg.as_str(), k.owner.as_str())).collect();
    compare("kernel argument ", &then, &wanted, &BTreeSet::new(), &mut lines);
    let then = kargs.delete.iter().map(|k| (k.arg.as_str(), k.drop_in.as_str())).collect();
    let wanted = now.kargs_delete.iter().map(|k| (k.arg.as_str(), k.owner.as_str())).collect();
    compare("deletion of kernel argument ", &then, &wanted, &BTreeSet::new(), &mut lines);
    if lines.is_empty() {
        lines.push("order of kernel arguments".to_owned());
    }
    lines
}

type Owned<'a> = BTreeMap<&'a str, &'a str>;

fn names<'a, V>(map: &'a BTreeMap<String, V>, owner: impl Fn(&'a V) -> &'a String) -> Owned<'a> {
    map.iter().map(|(name, v)| (name.as_str(), owner(v).as_str())).collect()
}

fn compare(what: &str, then: &Owned<'_>, now: &Owned<'_>, changed: &BTreeSet<String>, lines: &mut Vec<String>) {
    for (name, owner) in now {
        match then.get(name) {
            None => lines.push(format!("add {what}{name} ({owner})")),
            Some(before) if before != owner => lines.push(format!("change {what}{name} ({before} -> {owner})")),
            Some(_) if changed.contains(*owner) => lines.push(format!("change {what}{name} ({owner})")),
            Some(_) => {}
        }
    }
    for (name, owner) in then.iter().filter(|(name, _)| !now.contains_key(*name)) {
        lines.push(format!("remove {what}{name} ({owner})"));
    }
}

/// Drop-ins that declare something else than the record says; contents of private files included.
fn changed_drop_ins(recorded: Option<&Provenance>, now: &Manifest) -> BTreeSet<String> {
    let Some(recorded) = recorded else { return BTreeSet::new() };
    let then: BTreeMap<&str, _> = recorded.drop_ins.iter().map(|d| (d.name.as_str(), &d.digest)).collect();
    let mut changed: BTreeSet<String> = super::provenance::contributions(now)
        .into_iter()
        .filter(|d| then.get(d.name.as_str()).is_some_and(|before| **before != d.digest))
        .map(|d| d.name)
        .collect();
    if changed.is_empty() {
        // Only the content of private files can differ now: their record holds no digest of it.
        let private = |n: &&Node| matches!(n, Node::File(f) if f.meta.mode & 0o077 == 0);
        changed.extend(now.nodes.values().filter(private).map(|n| n.owner().to_owned()));
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Digest;
    use crate::model::manifest::{File, Karg, Meta, OnConflict};

    fn manifest(contents: &str, mode: u32, kargs: &[&str]) -> Manifest {
        let file = File {
            owner: "50-a.yaml".into(),
            meta: Meta { mode, uid: 0, gid: 0 },
            contents: contents.into(),
            overwrite: false,
            on_conflict: OnConflict::Error,
        };
        let karg = |a: &&str| Karg { owner: "60-b.yaml".into(), arg: (*a).into() };
        Manifest {
            nodes: [("/etc/a".to_owned(), Node::File(file))].into(),
            kargs_append: kargs.iter().map(karg).collect(),
            ..Default::default()
        }
    }

    fn record(manifest: &Manifest) -> Provenance {
        use super::super::provenance::{Effect, PathKind, PathRecord};
        let mut record = Provenance::new(&Digest::of(b"base"), manifest.input_digest(), manifest);
        for (path, node) in &manifest.nodes {
            let entry = PathRecord { drop_in: node.owner().into(), kind: PathKind::File, effect: Effect::Added };
            record.paths.insert(path.clone(), entry);
        }
        record
    }

    #[test]
    fn each_difference_is_one_line_with_its_drop_in() {
        let one = manifest("x", 0o644, &["nosmt"]);
        for (then, now, expected) in [
            (None, Manifest::default(), vec![]),
            (None, one.clone(), vec!["add /etc/a (50-a.yaml)", "add kernel argument nosmt (60-b.yaml)"]),
            (Some(one.clone()), one.clone(), vec![]),
            (Some(one.clone()), manifest("y", 0o644, &["nosmt"]), vec!["change /etc/a (50-a.yaml)"]),
            (Some(manifest("x", 0o600, &[])), manifest("y", 0o600, &[]), vec!["change /etc/a (50-a.yaml)"]),
            (
                Some(one.clone()),
                Manifest::default(),
                vec!["remove /etc/a (50-a.yaml)", "remove kernel argument nosmt (60-b.yaml)"],
            ),
            (
                Some(manifest("x", 0o644, &["a", "b"])),
                manifest("x", 0o644, &["b", "a"]),
                vec!["order of kernel arguments"],
            ),
        ] {
            let recorded = then.as_ref().map(record);
            assert_eq!(lines(recorded.as_ref(), &now), expected);
        }
    }
}
