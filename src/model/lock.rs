//! The lock: exactly what a derivation resolved to.
//!
//! It is in the derived commit (`/usr/lib/osctl/derive.lock`), so that the same tree can be made again when every
//! repository has gone on, or gone. Nothing in it depends on a host: no time, no path, no credentials.

use super::difference::{Changed, LockChange};
use super::error::{Context, Error, ErrorKind, Result};
use super::image::Digest;
use super::layers::{Digests, LayerImage};
use super::packages::{LocalPackage, Packages, is_name};
use std::collections::{BTreeMap, BTreeSet};

/// Where the lock of a derived tree is.
pub const PATH: &str = "/usr/lib/osctl/derive.lock";
/// The version of the format.
pub const VERSION: u32 = 1;
/// A lock of ten thousand packages is some two megabytes.
pub const MAX_LOCK: u64 = 32 << 20;

/// Whose packages they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// apt and dpkg.
    Apt,
    /// dnf and rpm.
    Dnf,
}

impl Manager {
    /// The program that solves.
    pub fn name(self) -> &'static str {
        match self {
            Manager::Apt => "apt",
            Manager::Dnf => "dnf",
        }
    }
}

/// One package that was added to the base, or that replaces one of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its version, with epoch and release.
    pub version: String,
    /// Its architecture, in the package manager's words.
    pub architecture: String,
    /// The digest of the package file.
    pub digest: Digest,
    /// The size of the package file in bytes.
    pub size: u64,
    /// Where it was found: a URL without credentials.
    pub source: String,
}

impl LockedPackage {
    /// A package file beside a drop-in, of which nobody has looked yet what it is: named by where it lies.
    pub fn of_file(request: &str, file: &LocalPackage) -> LockedPackage {
        LockedPackage {
            name: file.path.clone(),
            version: String::new(),
            architecture: String::new(),
            digest: file.digest.clone(),
            size: file.size,
            source: request.to_owned(),
        }
    }

    /// `name version (architecture)`
    pub fn describe(&self) -> String {
        format!("{} {} ({})", self.name, self.version, self.architecture)
    }
}

/// A package of the base that is removed, or replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BasePackage {
    /// Its name.
    pub name: String,
    /// The version that the base has.
    pub version: String,
}

/// A user that packages made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedUser {
    /// Its number.
    pub uid: u32,
    /// The number of its first group.
    pub gid: u32,
}

/// What a derivation resolved to. Lists are sorted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lock {
    /// [`VERSION`].
    pub version: u32,
    /// The manifest digest of the base that was solved against.
    pub base_digest: Digest,
    /// The digest of what was asked for ([`Lock::request_digest`]).
    pub request_digest: Digest,
    /// Whose packages they are; `None` if there are only images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<Manager>,
    /// What is installed.
    pub packages: Vec<LockedPackage>,
    /// What of the base is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<BasePackage>,
    /// What of the base is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<BasePackage>,
    /// The digests of the images that it was made with, by their references.
    #[serde(default, skip_serializing_if = "Digests::is_empty")]
    pub images: Digests,
    /// Users that the packages made, known after they were installed once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<String, LockedUser>,
    /// Groups that the packages made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, u32>,
}

impl Lock {
    /// The digest of what drop-ins ask of the package manager, and of images: a lock fits no other request.
    pub fn request_digest(packages: &Packages, layers: &[LayerImage]) -> Digest {
        let names = |requests: &BTreeMap<String, std::collections::BTreeSet<String>>| {
            requests.keys().cloned().collect::<Vec<_>>()
        };
        // Who asks does not matter, nor where: the same packages are the answer.
        let repos: BTreeMap<_, _> = packages
            .repos
            .iter()
            .map(|(id, r)| (id, (&r.baseurl, &r.suites, &r.components, &r.metalink, &r.mirrorlist, &r.key)))
            .collect();
        let asked = (names(&packages.install), names(&packages.remove), names(&packages.replace), repos);
        let choice = (names(&packages.enabled_repos), &packages.replace_from);
        let layers: Vec<_> = layers.iter().map(|layer| (&layer.image, layer.overwrite)).collect();
        let images = (names(&packages.extensions), &packages.local, layers);
        // A lock that was made before there was a choice, or images, still fits.
        let has_choice = !choice.0.is_empty() || !choice.1.is_empty();
        let has_images = !images.0.is_empty() || !images.1.is_empty() || !images.2.is_empty();
        let bytes = match (has_choice, has_images) {
            (false, false) => serde_json::to_vec(&asked),
            (true, false) => serde_json::to_vec(&(asked, choice)),
            (_, true) => serde_json::to_vec(&(asked, choice, images)),
        };
        Digest::of(&bytes.expect("maps with string keys always serialise"))
    }

    /// The digest of what decides the tree: not of who was asked, or where the packages were found.
    pub fn digest(&self) -> Digest {
        let mut decides = self.clone();
        decides.packages.iter_mut().for_each(|package| package.source.clear());
        // They follow from the packages and the base, and are not known before.
        decides.users.clear();
        decides.groups.clear();
        Digest::of(&serde_json::to_vec(&decides).expect("records of strings always serialise"))
    }

    /// How this lock differs from the one before. `by` says who asks for a package or an image.
    pub fn changes(&self, before: Option<&Lock>, by: impl Fn(&str) -> Option<String>) -> Vec<LockChange> {
        let change = |what, name: &str, from: Option<&str>, to: Option<&str>| LockChange {
            what,
            name: name.to_owned(),
            from: from.map(str::to_owned),
            to: to.map(str::to_owned),
            by: by(name),
        };
        let versions = |lock: Option<&Lock>| -> BTreeMap<(String, String), String> {
            let packages = lock.into_iter().flat_map(|lock| &lock.packages);
            packages.map(|p| ((p.name.clone(), p.architecture.clone()), p.version.clone())).collect()
        };
        let (was, now) = (versions(before), versions(Some(self)));
        let base: BTreeMap<&str, &str> =
            self.replaced.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        let mut changes = Vec::new();
        for (key @ (name, _), version) in now.iter().filter(|(key, version)| was.get(*key) != Some(*version))
        {
            let old = was.get(key).map(String::as_str).or(base.get(name.as_str()).copied());
            changes.push(change(Changed::Package, name, old, Some(version)));
        }
        for ((name, _), version) in was.iter().filter(|(key, _)| !now.contains_key(*key)) {
            changes.push(change(Changed::Package, name, Some(version), None));
        }
        let gone = |lock: Option<&Lock>| -> BTreeSet<BasePackage> {
            lock.into_iter().flat_map(|lock| lock.removed.iter().cloned()).collect()
        };
        let (was, now) = (gone(before), gone(Some(self)));
        changes
            .extend(now.difference(&was).map(|p| change(Changed::OfBase, &p.name, Some(&p.version), None)));
        changes
            .extend(was.difference(&now).map(|p| change(Changed::OfBase, &p.name, None, Some(&p.version))));
        let none = Digests::new();
        let was = before.map_or(&none, |lock| &lock.images);
        for (image, digest) in self.images.iter().filter(|(image, digest)| was.get(*image) != Some(digest)) {
            changes.push(change(
                Changed::Image,
                image,
                was.get(image).map(Digest::as_str),
                Some(digest.as_str()),
            ));
        }
        for (image, digest) in was.iter().filter(|(image, _)| !self.images.contains_key(*image)) {
            changes.push(change(Changed::Image, image, Some(digest.as_str()), None));
        }
        changes
    }

    /// The text of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("records of strings always serialise");
        bytes.push(b'\n');
        bytes
    }

    /// Reads the text of a file; `from` names it in errors.
    pub fn parse(from: &str, bytes: &[u8]) -> Result<Lock> {
        let lock: Lock =
            serde_json::from_slice(bytes).kind(ErrorKind::LockMismatch, format!("{from} is not a lock"))?;
        if lock.version != VERSION {
            let why = format!("{from} has version {}, this osctl knows version {VERSION}", lock.version);
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let named = |name: &str, version: &str| {
            is_name(name) && !version.is_empty() && version.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
        };
        let packages = lock.packages.iter().map(|p| (&p.name, &p.version));
        let base = lock.removed.iter().chain(&lock.replaced).map(|p| (&p.name, &p.version));
        if let Some((name, version)) = packages.chain(base).find(|(name, version)| !named(name, version)) {
            let what = crate::model::text::one_line(&format!("{name} {version}"));
            return Err(Error::new(ErrorKind::LockMismatch, format!("{from} names no package: {what}")));
        }
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_new_lock_changes_is_said_with_who_asks_for_it() {
        let package = |text: &str| {
            let (name, version) = text.split_once(' ').unwrap();
            let (name, version) = (name.to_owned(), version.to_owned());
            let digest = Digest::of(text.as_bytes());
            LockedPackage {
                name,
                version,
                architecture: "all".into(),
                digest,
                size: 1,
                source: String::new(),
            }
        };
        let of_base = |name: &str| BasePackage { name: name.into(), version: "1".into() };
        let lock = |packages: &[&str], removed: &[&str], replaced: &[&str], images: &[(&str, &str)]| Lock {
            version: VERSION,
            base_digest: Digest::of(b"base"),
            request_digest: Digest::of(b""),
            manager: Some(Manager::Apt),
            packages: packages.iter().map(|text| package(text)).collect(),
            removed: removed.iter().map(|name| of_base(name)).collect(),
            replaced: replaced.iter().map(|name| of_base(name)).collect(),
            images: images.iter().map(|(name, d)| ((*name).to_owned(), Digest::of(d.as_bytes()))).collect(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        let by =
            |name: &str| ["agent", "vim", "moby", "r.io/ext"].contains(&name).then(|| "50-a.yaml".to_owned());
        let before = lock(&["agent 1", "common 1", "old 1"], &["gone"], &[], &[("r.io/ext", "1")]);
        let now = lock(&["agent 1", "common 2", "new 1", "vim 2"], &["moby"], &["vim"], &[("r.io/ext", "2")]);
        let taken = format!("change r.io/ext {} to {} (50-a.yaml)", Digest::of(b"1"), Digest::of(b"2"));
        let lines = |changes: Vec<LockChange>| changes.iter().map(LockChange::to_string).collect::<Vec<_>>();
        assert_eq!(
            lines(now.changes(Some(&before), by)),
            [
                "change common 1 to 2 (needed by what is requested)",
                "install new 1 (needed by what is requested)",
                "change vim 1 to 2 (50-a.yaml)",
                "uninstall old 1 (nothing asks for it)",
                "remove moby 1 (50-a.yaml)",
                "bring back gone 1 (nothing asks for it)",
                taken.as_str(),
            ]
        );
        assert!(now.changes(Some(&now), by).is_empty());
        assert_eq!(before.changes(None, by).len(), 5);
        let undone: Vec<LockChange> = before.changes(None, by).into_iter().map(LockChange::undone).collect();
        assert_eq!(lines(undone)[0], "uninstall agent 1 (50-a.yaml)");
    }

    #[test]
    fn a_choice_of_repositories_is_another_request_and_none_is_what_it_was() {
        let digest = |packages: &Packages| Lock::request_digest(packages, &[]).to_string();
        let mut packages = Packages::default();
        packages.install.insert("vim".into(), ["a.yaml".into()].into());
        // Locks in deployments have it.
        let before = digest(&packages);
        assert_eq!(before, "sha256:daf082aaf9a5c92ff41652cdbbf3507f15dfc332dc708e81eb93320d224f83c2");
        packages.enabled_repos.insert("fedora".into(), ["a.yaml".into()].into());
        let chosen = digest(&packages);
        packages.replace_from.insert("vim".into(), "fedora".into());
        assert!(before != chosen && chosen != digest(&packages));
        let layer = |image: &str, overwrite| LayerImage { image: image.into(), owner: "a".into(), overwrite };
        let with = |layers: &[LayerImage]| Lock::request_digest(&packages, layers);
        let one = with(&[layer("r.io/a", false)]);
        assert!(
            one != with(&[])
                && one != with(&[layer("r.io/a", true)])
                && one != with(&[layer("r.io/b", false)])
        );
        packages.extensions.insert("r.io/ext".into(), ["a.yaml".into()].into());
        assert_ne!(one, Lock::request_digest(&packages, &[layer("r.io/a", false)]));
    }

    fn package() -> impl Strategy<Value = LockedPackage> {
        ("[a-z0-9][a-z0-9:.+]{0,9}[a-z]", "[0-9][!-.0-~]{0,9}", "[a-z0-9]{0,5}", any::<u64>(), "\\PC{0,9}")
            .prop_map(|(name, version, architecture, size, source)| LockedPackage {
                digest: Digest::of(name.as_bytes()),
                name,
                version,
                architecture,
                size,
                source,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(
            packages in prop::collection::vec(package(), 0..4),
            users in prop::collection::btree_map("\\PC{0,5}", (any::<u32>(), any::<u32>()), 0..3),
            groups in prop::collection::btree_map("\\PC{0,5}", any::<u32>(), 0..3),
        ) {
            let base = |p: &LockedPackage| BasePackage { name: p.name.clone(), version: p.version.clone() };
            let lock = Lock {
                images: Digests::new(),
                version: VERSION,
                base_digest: Digest::of(b"base"),
                request_digest: Digest::of(b"request"),
                manager: Some(Manager::Dnf),
                removed: packages.iter().map(base).collect(),
                replaced: packages.iter().map(base).collect(),
                packages,
                users: users.into_iter().map(|(name, (uid, gid))| (name, LockedUser { uid, gid })).collect(),
                groups,
            };
            prop_assert_eq!(Lock::parse("a", &lock.to_bytes()).unwrap(), lock);
        }

        #[test]
        fn no_bytes_make_parsing_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(Lock::parse("a", &bytes).is_err());
        }
    }
}
