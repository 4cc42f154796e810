//! Controlled mutation: which changes drop-ins may make, as the builder of the image and the administrator say it.
//!
//! ```toml
//! reason = "ask the platform team"    # shown with a refusal
//! [allow]                             # what is not named here may be changed
//! packages = false                    # nobody may ask for a package
//! override-replace = ["hotfix-*"]     # only these
//! files = ["/etc/agent"]              # only these paths, and what is below them
//! ```
//!
//! Every file can only forbid: what one forbids, no other allows.

use super::deviation::unit_of;
use super::dropin::path::within;
use super::edit::package_of;
use super::manifest::{Manifest, Owner};
use super::table::{Place, Value, in_order};
use super::text::printable;
use super::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};
use toml::de::DeValue;

/// What can be forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Packages,
    Remove,
    Replace,
    Repos,
    Extensions,
    Layers,
    Files,
    Units,
    Users,
    Kargs,
}

/// The keys of `[allow]`, with what a refusal calls one of them.
const KINDS: [(&str, Kind, &str); 10] = [
    ("packages", Kind::Packages, "package"),
    ("override-remove", Kind::Remove, "removal of package"),
    ("override-replace", Kind::Replace, "replacement of package"),
    ("repos", Kind::Repos, "repository"),
    ("extensions", Kind::Extensions, "extension"),
    ("layers", Kind::Layers, "layer"),
    ("files", Kind::Files, "path"),
    ("units", Kind::Units, "unit"),
    ("users", Kind::Users, "user or group"),
    ("kernel-arguments", Kind::Kargs, "kernel argument"),
];

/// One policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    file: String,
    reason: Option<String>,
    /// What is allowed of a kind; a kind that is not here is not restricted.
    allowed: BTreeMap<Kind, Vec<String>>,
}

impl Policy {
    /// Reads one file; `file` is its path, for messages. What is not known is refused.
    pub fn parse(text: &str, file: &str) -> Result<Policy> {
        let place = Place { text, file, manual: "docs/dropins.md" };
        let root = place.parse()?;
        let mut policy = Policy { file: file.to_owned(), reason: None, allowed: BTreeMap::new() };
        for (key, value) in in_order(root.get_ref()) {
            match (&**key.get_ref(), value.get_ref()) {
                ("reason", DeValue::String(reason)) => policy.reason = Some(printable(reason)),
                ("reason", _) => return Err(place.wrong(key, "a text")),
                ("allow", DeValue::Table(kinds)) => {
                    for (key, value) in in_order(kinds) {
                        let Some((_, kind, _)) = KINDS.iter().find(|(name, ..)| name == key.get_ref()) else {
                            return Err(place.unknown(key, &KINDS.map(|(name, ..)| name).join(", ")));
                        };
                        let allowed = allowed(*kind, value).ok_or_else(|| place.wrong(key, wanted(*kind)))?;
                        if let Some(allowed) = allowed {
                            policy.allowed.insert(*kind, allowed);
                        }
                    }
                }
                ("allow", _) => return Err(place.wrong(key, "a table")),
                _ => return Err(place.unknown(key, "reason, [allow]")),
            }
        }
        Ok(policy)
    }

    fn forbids(&self, change: &Change<'_>) -> bool {
        self.allowed.get(&change.kind).is_some_and(|allowed| !allowed.iter().any(|a| change.fits(a)))
    }
}

/// `true`, `false`, or what is allowed. `Some(None)` if nothing is restricted.
fn allowed(kind: Kind, value: Value<'_, '_>) -> Option<Option<Vec<String>>> {
    match value.get_ref() {
        DeValue::Boolean(true) => Some(None),
        DeValue::Boolean(false) => Some(Some(Vec::new())),
        DeValue::Array(items) => {
            let text = |item: &toml::Spanned<DeValue<'_>>| match item.get_ref() {
                DeValue::String(text) if kind != Kind::Files => Some(text.to_string()),
                // Something that never fits would forbid more than it says.
                DeValue::String(path) if path.starts_with('/') && !path.contains(['*', '?']) => {
                    Some(path.trim_end_matches('/').to_owned())
                }
                _ => None,
            };
            items.iter().map(text).collect::<Option<Vec<_>>>().map(Some)
        }
        _ => None,
    }
}

fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Files => "true, false, or a list of absolute paths",
        _ => "true, false, or a list of names, in which * stands for anything",
    }
}

/// One thing that a drop-in changes.
struct Change<'a> {
    kind: Kind,
    name: &'a str,
    by: String,
}

impl Change<'_> {
    fn fits(&self, allowed: &str) -> bool {
        match self.kind {
            Kind::Files => within(self.name, allowed),
            Kind::Replace => matches(allowed, self.name) || matches(allowed, package_of(self.name)),
            _ => matches(allowed, self.name),
        }
    }
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        match name.split_once(part) {
            Some((_, behind)) => name = behind,
            None => return false,
        }
    }
    name.ends_with(end)
}

/// Everything that drop-ins change.
fn changes(manifest: &Manifest) -> Vec<Change<'_>> {
    fn all(owners: &BTreeSet<Owner>) -> String {
        owners.iter().cloned().collect::<Vec<_>>().join(", ")
    }
    let packages = &manifest.packages;
    let requests = [
        (Kind::Packages, &packages.install),
        (Kind::Remove, &packages.remove),
        (Kind::Replace, &packages.replace),
        (Kind::Extensions, &packages.extensions),
    ];
    let mut changes = Vec::new();
    for (kind, requests) in requests {
        changes.extend(requests.iter().map(|(name, owners)| Change { kind, name, by: all(owners) }));
    }
    let mut add = |kind: Kind, name, by: &str| changes.push(Change { kind, name, by: by.to_owned() });
    packages.repos.iter().for_each(|(id, repo)| add(Kind::Repos, id, &repo.owner));
    manifest.layers.iter().for_each(|layer| add(Kind::Layers, &layer.image, &layer.owner));
    for (path, node) in &manifest.nodes {
        // A unit is a unit, however its file is declared.
        match unit_of(path) {
            Some(unit) => add(Kind::Units, unit, node.owner()),
            None => add(Kind::Files, path, node.owner()),
        }
    }
    manifest.units.iter().for_each(|(name, unit)| add(Kind::Units, name, &unit.owner));
    manifest.users.iter().for_each(|(name, user)| add(Kind::Users, name, &user.owner));
    manifest.groups.iter().for_each(|(name, group)| add(Kind::Users, name, &group.owner));
    let kargs = manifest.kargs_append.iter().chain(&manifest.kargs_delete);
    kargs.for_each(|karg| add(Kind::Kargs, &karg.arg, &karg.owner));
    changes
}

/// Refuses what one of the policies forbids; fails with `NotAuthorized`, naming the drop-in and the policy file.
pub fn check(policies: &[Policy], manifest: &Manifest) -> Result<()> {
    let changes = changes(manifest);
    let forbidden = |policy: &Policy| changes.iter().any(|change| policy.forbids(change));
    let Some(policy) = policies.iter().find(|policy| forbidden(policy)) else { return Ok(()) };
    let mut refused = changes.iter().filter(|change| policy.forbids(change));
    let first = refused.next().expect("this policy forbids something");
    let (key, _, what) = KINDS.iter().find(|(_, kind, _)| *kind == first.kind).expect("every kind has a key");
    let more = match refused.count() {
        0 => String::new(),
        n => format!(", and {n} more of what is declared"),
    };
    let reason = policy.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let (by, name, file) = (&first.by, first.name, &policy.file);
    let why = format!("{by}: {what} {name} is forbidden by {file}{reason}{more}; nothing was staged");
    Err(Error::new(ErrorKind::NotAuthorized, why)
        .hint(format!("take it out of {by}, or change {key} in {file}"))
        .detail("drop-in", by)
        .detail("policy", file)
        .detail("key", key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::edit::declared;

    const DROP_IN: &str = "\
packages: [agent, vim]
override-remove: [moby-engine]
override-replace: [kernel-6.9.1-2, fix=1]
repos: [{id: vendor, baseurl: 'https://r.example/', gpgcheck: false}]
extensions: {image: 'r.example/ext:1', packages: [agent]}
layers: [{image: r.example/tools}]
files: [{path: /etc/agent/a.conf, contents: {inline: a}}]
links: [{path: /usr/lib/x, target: y}]
units: [{name: agent.service, contents: '[Service]', dropins: [{name: 1.conf, contents: a}]}, {name: x.timer, mask: true}]
users: [{name: agent, system: true}]
kernel-arguments: {append: [console=ttyS0], delete: [quiet]}
";

    #[test]
    fn what_a_policy_does_not_allow_is_refused_by_its_name() {
        for (policy, refused) in [
            ("", None),
            ("reason = 'x'\n[allow]\n", None),
            ("allow.packages = true", None),
            ("allow.packages = false", Some("package agent")),
            ("allow.packages = ['ag*']", Some("package vim")),
            ("allow.packages = ['a*e*t', 'vim']", None),
            ("allow.packages = ['agen', 'gent', 'vim', 'agent-*']", Some("package agent")),
            ("allow.override-remove = []", Some("removal of package moby-engine")),
            ("allow.override-replace = ['fix']", Some("replacement of package kernel-6.9.1-2")),
            ("allow.override-replace = ['fix=*', 'kernel']", None),
            ("allow.repos = false", Some("repository vendor")),
            ("allow.extensions = ['other/*']", Some("extension r.example/ext:1")),
            ("allow.layers = false", Some("layer r.example/tools")),
            ("allow.layers = ['r.example/*']", None),
            ("allow.files = ['/etc/agent/', '/usr']", None),
            ("allow.files = ['/etc', '/usr/lib/xy']", Some("path /usr/lib/x")),
            ("allow.files = ['/']", None),
            ("allow.units = ['agent.*']", Some("unit x.timer")),
            ("allow.units = ['x.timer']", Some("unit agent.service")),
            ("allow.users = false", Some("user or group agent")),
            ("allow.kernel-arguments = ['console=*']", Some("kernel argument quiet")),
            ("allow.kernel-arguments = ['console=*', 'quiet']", None),
        ] {
            let policy = Policy::parse(policy, "/etc/osctl/policy.d/10-a.toml").unwrap();
            let checked =
                check(&[Policy::parse("", "/p").unwrap(), policy.clone()], &declared(DROP_IN).unwrap());
            let message = checked.err().map(|e| (e.kind, e.to_string()));
            match refused {
                None => assert_eq!(message, None, "{policy:?}"),
                Some(what) => {
                    let (kind, text) = message.unwrap_or_else(|| panic!("{policy:?} refuses nothing"));
                    let start =
                        format!("90-osctl.yaml: {what} is forbidden by /etc/osctl/policy.d/10-a.toml");
                    assert!(kind == ErrorKind::NotAuthorized && text.starts_with(&start), "{text}");
                }
            }
            check(&[policy], &Manifest::default()).unwrap();
        }
    }

    #[test]
    fn a_refusal_gives_the_reason_and_the_key_to_change() {
        let policy = Policy::parse("reason = \"ask us\"\nallow.packages = false\n", "/p.toml").unwrap();
        let error = check(&[policy], &declared(DROP_IN).unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "90-osctl.yaml: package agent is forbidden by /p.toml (ask us), and 1 more of what is declared; nothing was staged"
        );
        assert_eq!(
            error.hint.as_deref(),
            Some("take it out of 90-osctl.yaml, or change packages in /p.toml")
        );
        assert_eq!(
            (error.details["policy"].as_str(), error.details["key"].as_str()),
            ("/p.toml", "packages")
        );
    }

    #[test]
    fn a_mistake_in_a_policy_is_named_and_never_allows_anything() {
        for (text, message) in [
            ("[alow]", "1: unknown key \"alow\""),
            ("allow = false", "1: allow must be a table"),
            ("[allow]\npackage = false", "2: unknown key \"package\""),
            (
                "[allow]\npackages = 'vim'",
                "2: packages must be true, false, or a list of names, in which * stands for anything",
            ),
            ("[allow]\nfiles = ['etc']", "2: files must be true, false, or a list of absolute paths"),
            ("[allow]\nfiles = ['/etc/*']", "2: files must be true, false, or a list of absolute paths"),
            ("reason = 1", "1: reason must be a text"),
        ] {
            let error = Policy::parse(text, "/p.toml").unwrap_err();
            assert_eq!(
                (error.kind, error.to_string()),
                (ErrorKind::InvalidArgument, format!("/p.toml:{message}"))
            );
        }
    }
}
