//! From what somebody asks for to changes of lists: what is there already, what belongs to another drop-in.

use super::{Change, Edit, List, NAME, What};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::manifest::Manifest;
use std::collections::{BTreeMap, BTreeSet};

/// What is known about the host.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What [`NAME`] declares.
    pub own: &'a Manifest,
    /// What all drop-ins declare, [`NAME`] among them.
    pub all: &'a Manifest,
    /// The kernel arguments of the next boot that no drop-in put there.
    pub present: &'a [String],
}

/// What an edit comes to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Planned {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// The changes that make it so. What is so already is an error, unless the edit says that it is fine.
pub fn plan(edit: &Edit, facts: &Facts<'_>) -> Result<Planned> {
    let mut state = State::new(edit, facts);
    for (what, item) in edit.wishes() {
        match what {
            What::Install => state.request(List::Packages, item)?,
            What::OverrideRemove => state.request(List::Remove, item)?,
            What::OverrideReplace => state.replace(item)?,
            What::Uninstall => state.uninstall(item)?,
            What::OverrideReset => state.reset(item)?,
            What::KargsAppend => state.append(item, edit.idempotent())?,
            What::KargsAppendIfMissing => state.append(item, true)?,
            What::KargsDelete => state.delete(item, edit.idempotent())?,
            What::KargsDeleteIfPresent => state.delete(item, true)?,
            What::KargsReplace => state.exchange(item)?,
        }
    }
    if edit.reset_all() {
        state.reset_all();
    }
    Ok(state.planned)
}

/// The lists while they are changed.
struct State<'a> {
    facts: &'a Facts<'a>,
    idempotent: bool,
    own: [(List, Vec<String>); 5],
    planned: Planned,
}

impl<'a> State<'a> {
    fn new(edit: &Edit, facts: &'a Facts<'a>) -> State<'a> {
        let requests = |map: &BTreeMap<String, BTreeSet<String>>| map.keys().cloned().collect();
        let own = facts.own;
        State {
            facts,
            idempotent: edit.idempotent(),
            own: [
                (List::Packages, requests(&own.packages.install)),
                (List::Remove, requests(&own.packages.remove)),
                (List::Replace, requests(&own.packages.replace)),
                (List::Append, own.kargs_append.iter().map(|k| k.arg.clone()).collect()),
                (List::Delete, own.kargs_delete.iter().map(|k| k.arg.clone()).collect()),
            ],
            planned: Planned::default(),
        }
    }

    fn list(&self, list: List) -> &[String] {
        self.own.iter().find(|(l, _)| *l == list).map_or(&[], |(_, items)| items)
    }

    fn has(&self, list: List, item: &str) -> bool {
        self.list(list).iter().any(|i| i == item)
    }

    fn change(&mut self, list: List, item: &str, add: bool) {
        let (_, items) =
            self.own.iter_mut().find(|(l, _)| *l == list).expect("every list is one of the five");
        if add {
            items.push(item.to_owned())
        } else {
            items.retain(|i| i != item)
        }
        self.planned.changes.push(Change { list, item: item.to_owned(), add });
    }

    /// What other drop-ins have in this list, with their names.
    fn others(&self, list: List) -> Vec<(&'a str, String)> {
        let all = self.facts.all;
        let requests = |map: &'a BTreeMap<String, BTreeSet<String>>| {
            let by = |owners: &BTreeSet<String>| {
                owners.iter().filter(|o| *o != NAME).cloned().collect::<Vec<_>>().join(", ")
            };
            map.iter()
                .map(|(item, owners)| (item.as_str(), by(owners)))
                .filter(|(_, by)| !by.is_empty())
                .collect()
        };
        let kargs = match list {
            List::Packages => return requests(&all.packages.install),
            List::Remove => return requests(&all.packages.remove),
            List::Replace => return requests(&all.packages.replace),
            List::Append => &all.kargs_append,
            List::Delete => &all.kargs_delete,
        };
        kargs.iter().filter(|k| k.owner != NAME).map(|k| (k.arg.as_str(), k.owner.clone())).collect()
    }

    /// Which drop-in has this in a list: ours, or another one.
    fn declarer(&self, list: List, item: &str) -> Option<String> {
        if self.has(list, item) {
            return Some(NAME.to_owned());
        }
        self.others(list).into_iter().find(|(i, _)| *i == item).map(|(_, by)| by)
    }

    /// An entry that shall be in the list.
    fn request(&mut self, list: List, item: &str) -> Result<()> {
        match self.declarer(list, item) {
            None => self.change(list, item, true),
            Some(_) if self.idempotent => {}
            Some(by) => {
                let what = if list == List::Packages { "package" } else { "override of package" };
                return Err(wrong(format!("{what} {item} is already requested by {by}"))
                    .hint("nothing is to be done; --idempotent takes that for success"));
            }
        }
        Ok(())
    }

    /// A package in this version, and in no other.
    fn replace(&mut self, spec: &str) -> Result<()> {
        let name = package_of(spec);
        let other = self.others(List::Replace).into_iter().find(|(s, _)| *s != spec && package_of(s) == name);
        if let Some((other, by)) = other {
            return Err(wrong(format!("{by} replaces {name} by {other}")).hint(format!("change it in {by}")));
        }
        let before: Vec<String> = self
            .list(List::Replace)
            .iter()
            .filter(|s| *s != spec && package_of(s) == name)
            .cloned()
            .collect();
        before.iter().for_each(|old| self.change(List::Replace, old, false));
        self.request(List::Replace, spec)
    }

    fn uninstall(&mut self, name: &str) -> Result<()> {
        let by = self.others(List::Packages).into_iter().find(|(n, _)| *n == name).map(|(_, by)| by);
        match (self.has(List::Packages, name), by) {
            (true, by) => {
                self.change(List::Packages, name, false);
                self.planned.notes.extend(by.map(|by| format!("package {name} is still requested by {by}")));
            }
            (false, Some(by)) => {
                return Err(wrong(format!("package {name} is requested by {by}, which is not edited"))
                    .hint(format!("remove it from {by}, then: osctl reconcile")));
            }
            (false, None) if self.idempotent => {}
            (false, None) => {
                return Err(wrong(format!("no drop-in requests the package {name}"))
                    .hint(format!("a package of the image is removed by: osctl override remove {name}")));
            }
        }
        Ok(())
    }

    fn reset(&mut self, item: &str) -> Result<()> {
        let fits =
            |list: List, entry: &str| entry == item || (list == List::Replace && package_of(entry) == item);
        let lists = [List::Remove, List::Replace];
        let mut own = Vec::new();
        let mut by = BTreeSet::new();
        for list in lists {
            own.extend(self.list(list).iter().filter(|e| fits(list, e)).map(|e| (list, e.clone())));
            by.extend(self.others(list).into_iter().filter(|(e, _)| fits(list, e)).map(|(_, by)| by));
        }
        let by = by.into_iter().collect::<Vec<_>>().join(", ");
        own.iter().for_each(|(list, entry)| self.change(*list, entry, false));
        match (own.is_empty(), by.is_empty()) {
            (false, true) => {}
            (false, false) => self.planned.notes.push(format!("package {item} is still overridden by {by}")),
            (true, false) => {
                return Err(wrong(format!("package {item} is overridden by {by}, which is not edited"))
                    .hint(format!("remove it from {by}, then: osctl reconcile")));
            }
            (true, true) if self.idempotent => {}
            (true, true) => {
                return Err(wrong(format!("no drop-in overrides the package {item}"))
                    .hint("see what is overridden with: osctl status -v"));
            }
        }
        Ok(())
    }

    fn reset_all(&mut self) {
        for list in [List::Remove, List::Replace] {
            for entry in self.list(list).to_vec() {
                self.change(list, &entry, false);
            }
            let still = self.others(list);
            let notes = still.into_iter().map(|(entry, by)| format!("{entry} is still overridden by {by}"));
            self.planned.notes.extend(notes);
        }
    }

    /// The arguments that the next boot has because of others than us.
    fn foreign(&self) -> Vec<&str> {
        let deleted = self.others(List::Delete);
        let appended = self.others(List::Append);
        let all =
            self.facts.present.iter().map(String::as_str).chain(appended.into_iter().map(|(arg, _)| arg));
        all.filter(|arg| !deleted.iter().any(|(gone, _)| gone == arg)).collect()
    }

    /// Every argument that the next boot will have, as far as that is known.
    fn arguments(&self) -> Vec<String> {
        let mut all: Vec<String> = self.foreign().into_iter().map(str::to_owned).collect();
        all.retain(|arg| !self.has(List::Delete, arg));
        all.extend_from_slice(self.list(List::Append));
        all.dedup();
        all
    }

    fn append(&mut self, arg: &str, fine: bool) -> Result<()> {
        if self.has(List::Delete, arg) {
            self.change(List::Delete, arg, false);
            if self.foreign().contains(&arg) {
                return Ok(());
            }
        }
        if self.arguments().iter().any(|a| a == arg) {
            if fine {
                return Ok(());
            }
            return Err(wrong(format!("the kernel argument {arg} is already there"))
                .hint("an argument is there once; --append-if-missing takes that for success"));
        }
        if let Some((_, by)) = self.others(List::Delete).into_iter().find(|(gone, _)| *gone == arg) {
            return Err(wrong(format!("the kernel argument {arg} is deleted by {by}"))
                .hint(format!("remove it from {by}, then: osctl reconcile")));
        }
        self.change(List::Append, arg, true);
        Ok(())
    }

    fn delete(&mut self, wanted: &str, fine: bool) -> Result<()> {
        let arguments = self.arguments();
        let named: Vec<&String> = match arguments.iter().find(|a| *a == wanted) {
            Some(exact) => vec![exact],
            None if wanted.contains('=') => Vec::new(),
            // Only its name was given.
            None => arguments.iter().filter(|a| key_of(a) == wanted).collect(),
        };
        match named.as_slice() {
            [] if fine => Ok(()),
            [] => Err(wrong(format!("there is no kernel argument {wanted}"))
                .hint("they are listed by: osctl kargs")),
            [arg] => {
                self.take_away(arg);
                Ok(())
            }
            several => {
                let several = several.iter().map(|a| a.as_str()).collect::<Vec<_>>().join(", ");
                Err(wrong(format!("{wanted} is there more than once: {several}"))
                    .hint("give it with its value"))
            }
        }
    }

    fn take_away(&mut self, arg: &str) {
        if self.has(List::Append, arg) {
            self.change(List::Append, arg, false);
        }
        if self.foreign().contains(&arg) {
            self.change(List::Delete, arg, true);
        }
    }

    /// `KEY=NEW`, or `KEY=OLD=NEW`.
    fn exchange(&mut self, wanted: &str) -> Result<()> {
        let (key, values) = wanted.split_once('=').expect("it was checked when it was parsed");
        let arguments = self.arguments();
        let old = values.split_once('=').map(|(old, new)| (format!("{key}={old}"), format!("{key}={new}")));
        let (old, new) = match old.filter(|(old, _)| arguments.contains(old)) {
            Some(pair) => pair,
            None => {
                let named: Vec<&String> = arguments.iter().filter(|a| key_of(a) == key).collect();
                let [old] = named.as_slice() else {
                    let how = if named.is_empty() { "not there" } else { "there more than once" };
                    return Err(wrong(format!("the kernel argument {key} is {how}"))
                        .hint("they are listed by: osctl kargs; of several write KEY=OLD=NEW"));
                };
                ((*old).clone(), wanted.to_owned())
            }
        };
        if old == new {
            return self.append(&new, self.idempotent);
        }
        self.take_away(&old);
        self.append(&new, false)
    }
}

fn wrong(why: String) -> Error {
    Error::new(ErrorKind::WrongState, format!("{why}; nothing was changed"))
}

fn key_of(arg: &str) -> &str {
    arg.split('=').next().unwrap_or_default()
}

/// The package of `NAME=VERSION`, `NAME-VERSION` or `NAME-VERSION-RELEASE`.
pub fn package_of(spec: &str) -> &str {
    if let Some((name, _)) = spec.split_once('=') {
        return name;
    }
    let digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let Some((rest, last)) = spec.rsplit_once('-') else { return spec };
    match rest.rsplit_once('-') {
        // The name itself may end in a number: the version is what is in front of the release.
        Some((name, version)) if digit(version) && digit(last) => name,
        _ if digit(last) => rest,
        _ => spec,
    }
}
