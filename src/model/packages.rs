//! What drop-ins ask of the package manager of the target, without any package manager's own rules.

use super::image::Digest;
use super::manifest::Owner;
use std::collections::{BTreeMap, BTreeSet};

/// What to do about a drop-in whose packages cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnavailable {
    /// Rebuild from the cache if that works, else stay on what runs, degraded, and try again.
    #[default]
    Keep,
    /// Leave the drop-in out, and say so.
    Skip,
    /// End the job.
    Fail,
}

/// A repository that is used only while deriving.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Repo {
    /// The drop-in that declares it.
    pub owner: Owner,
    /// The URLs that it is at. Never with credentials.
    pub baseurl: Vec<String>,
    /// apt: the distributions, `bookworm`; `./` where the index is at the URL itself.
    pub suites: Vec<String>,
    /// apt: the components, `main`.
    pub components: Vec<String>,
    /// dnf: where the list of its mirrors is.
    pub metalink: Option<String>,
    /// dnf: where the plain list of its mirrors is.
    pub mirrorlist: Option<String>,
    /// The keys that may sign it. `None` says in the drop-in that nobody does.
    pub key: Option<Key>,
}

/// The public keys of a repository.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Key {
    /// A file of the target, or one that a drop-in declares.
    File(String),
    /// The keys themselves.
    Inline(#[serde(with = "hex")] Vec<u8>),
}

/// How a request for a package file begins.
pub const LOCAL: &str = "local:";

/// A package file beside a drop-in.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LocalPackage {
    /// Where it lies, as the administrator would write it. Does not matter to what is made of it.
    #[serde(skip)]
    pub path: String,
    /// The digest of the file.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Everything that drop-ins ask of the package manager. Several may ask for the same.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct Packages {
    /// Packages to install, as they were requested.
    pub install: BTreeMap<String, BTreeSet<Owner>>,
    /// Packages of the base to remove.
    pub remove: BTreeMap<String, BTreeSet<Owner>>,
    /// Packages of the base to replace, with the version: `name=version` or `name-version`; the name alone if it is in
    /// `replace_from`.
    pub replace: BTreeMap<String, BTreeSet<Owner>>,
    /// The id of the repository that a package in `replace` is taken from, in whatever version it has there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replace_from: BTreeMap<String, String>,
    /// Repositories by their id.
    pub repos: BTreeMap<String, Repo>,
    /// The ids of the repositories that are used beside [`Packages::repos`]; if there are none, those that the target has
    /// enabled.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub enabled_repos: BTreeMap<String, BTreeSet<Owner>>,
    /// Images that carry a repository for the base, by their references: see [`super::layers::expand`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, BTreeSet<Owner>>,
    /// Package files that lie beside drop-ins, by the request that names each: [`LOCAL`] and the file.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub local: BTreeMap<String, LocalPackage>,
    /// What to do about a drop-in whose packages cannot be had; decides nothing about those that can.
    #[serde(skip)]
    pub on_unavailable: BTreeMap<Owner, OnUnavailable>,
}

impl Packages {
    /// Whether the package manager has nothing to do.
    pub fn is_empty(&self) -> bool {
        self.install.is_empty() && self.remove.is_empty() && self.replace.is_empty()
    }

    /// The drop-ins that ask for something.
    pub fn owners(&self) -> BTreeSet<&str> {
        let requests = [&self.install, &self.remove, &self.replace, &self.enabled_repos, &self.extensions];
        let requests = requests.into_iter().flat_map(BTreeMap::values);
        let owners = requests.flatten().map(String::as_str);
        owners.chain(self.repos.values().map(|r| r.owner.as_str())).collect()
    }

    /// What the drop-ins ask for that `keep` names.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Packages {
        let kept = |requests: &BTreeMap<String, BTreeSet<Owner>>| {
            let kept = requests
                .iter()
                .map(|(name, by)| (name.clone(), by.iter().filter(|o| keep(o)).cloned().collect()));
            kept.filter(|(_, by): &(_, BTreeSet<Owner>)| !by.is_empty()).collect::<BTreeMap<_, _>>()
        };
        let (install, replace) = (kept(&self.install), kept(&self.replace));
        let asked = |name: &String| install.contains_key(name) || replace.contains_key(name);
        let local = self.local.iter().filter(|(name, _)| asked(name));
        let local = local.map(|(name, l)| (name.clone(), l.clone())).collect();
        let from = self.replace_from.iter().filter(|(name, _)| replace.contains_key(*name));
        let repos = self.repos.iter().filter(|(_, r)| keep(&r.owner));
        let policy = self.on_unavailable.iter().filter(|(o, _)| keep(o));
        Packages {
            local,
            install,
            extensions: kept(&self.extensions),
            remove: kept(&self.remove),
            replace_from: from.map(|(name, repo)| (name.clone(), repo.clone())).collect(),
            replace,
            enabled_repos: kept(&self.enabled_repos),
            repos: repos.map(|(id, r)| (id.clone(), r.clone())).collect(),
            on_unavailable: policy.map(|(o, p)| (o.clone(), *p)).collect(),
        }
    }

    /// The drop-ins that ask for this package or this image.
    pub fn asking(&self, name: &str) -> Option<String> {
        let requests = [&self.install, &self.remove, &self.replace, &self.extensions];
        let requests = requests.into_iter().flatten().filter(|(request, _)| asks_for(request, name));
        let owners: BTreeSet<&str> = requests.flat_map(|(_, by)| by).map(String::as_str).collect();
        (!owners.is_empty()).then(|| owners.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// The drop-ins that ask for something and have this policy.
    pub fn with_policy(&self, policy: OnUnavailable) -> BTreeSet<Owner> {
        let has = |owner: &&str| self.on_unavailable.get(*owner).copied().unwrap_or_default() == policy;
        self.owners().into_iter().filter(has).map(str::to_owned).collect()
    }
}

/// Whether a request is for this package: by its name, perhaps with a version or an architecture.
pub fn asks_for(request: &str, package: &str) -> bool {
    match request.strip_prefix(package) {
        Some(rest) => {
            rest.is_empty()
                || rest.starts_with([':', '=', '.'])
                || rest.strip_prefix('-').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
        }
        None => false,
    }
}

/// The name of a package and nothing else: no version, no pattern, no option, nothing that a package manager would take
/// for a file, a group or a removal.
///
/// Debian policy 5.6.1 and the names of RPM packages, with an architecture behind `:` or `.`; a trailing `-` or `+` is an
/// operator of apt, and allowed only in names such as `g++`.
pub fn is_name(text: &str) -> bool {
    let start = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:".contains(&b));
    let operator = text.ends_with('-') || (text.ends_with('+') && !text.ends_with("++"));
    start && rest && !operator && text.len() <= 200
}

/// A package and the version that it shall have, in the form of apt (`name=version`) or of rpm (`name-version`).
pub fn is_versioned(text: &str) -> bool {
    let version = |v: &str| {
        v.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && v.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._:~^".contains(&b))
    };
    let split = text.split_once('=').or_else(|| {
        // An rpm's version starts at a dash with a digit behind it; there may be an epoch.
        let at = text.match_indices('-').map(|(at, _)| at);
        let digit = |at: &usize| text.as_bytes().get(at + 1).is_some_and(u8::is_ascii_digit);
        at.filter(digit).map(|at| (&text[..at], &text[at + 1..])).next()
    });
    text.len() <= 300 && split.is_some_and(|(name, v)| is_name(name) && version(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_option_pattern_file_or_operator() {
        for name in
            ["vim", "g++", "libstdc++6", "libc6:amd64", "NetworkManager-wifi", "0ad", "python3.11", "_x"]
        {
            assert!(is_name(name), "{name}");
        }
        for name in
            ["", "-y", "vim-", "vim+", "a b", "./x.deb", "/x", "a*", "^x", "@group", "a=1", "a/b", "ä", "x\n"]
        {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_replacement_names_its_version() {
        for text in ["kernel-6.9.1-2", "vim=2:9.0.1378-2+deb12u2", "a-b-1:2~rc1-3.fc40"] {
            assert!(is_versioned(text), "{text}");
        }
        for text in ["vim", "vim=", "=1", "vim=-1", "vim=1 2", "-x-1", "a-b"] {
            assert!(!is_versioned(text), "{text}");
        }
    }
}
