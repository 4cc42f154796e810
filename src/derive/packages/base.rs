//! The packages of the base: they stay as they are, but for what a request names.

use super::cache::Cache;
use super::{FILES, Question, backend, file_name};
use crate::model::lock::{self, BasePackage, Lock, LockedPackage, Manager};
use crate::model::packages::{LOCAL, LocalPackage, is_name};
use crate::model::text::{one_line, without_logins};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process::tail;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Lines of output that an error shows.
pub(super) const SHOWN: usize = 25;

/// A package that a database has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub name: String,
    pub architecture: String,
    pub version: String,
}

impl Package {
    pub(super) fn of(package: &LockedPackage) -> Package {
        Package {
            name: package.name.clone(),
            architecture: package.architecture.clone(),
            version: package.version.clone(),
        }
    }

    fn is(&self, of_base: &BasePackage) -> bool {
        self.name == of_base.name && self.version == of_base.version
    }
}

/// All packages that a database has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Installed(pub BTreeSet<Package>);

impl Installed {
    /// Whether a package of this name is there, in any version.
    pub(super) fn has(&self, name: &str, architecture: Option<&str>) -> bool {
        self.0.iter().any(|p| p.name == name && architecture.is_none_or(|a| a == p.architecture))
    }

    /// The names, each once.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|p| p.name.as_str()).collect()
    }
}

/// The requests for packages by their names.
pub(super) fn names<V>(requests: &BTreeMap<String, V>) -> impl Iterator<Item = &String> {
    requests.keys().filter(|request| !request.starts_with(LOCAL))
}

/// Packages whose files are there before anything is fetched: of drop-ins, and of a lock of before.
#[derive(Debug, Clone, Default)]
pub(super) struct Known(pub Vec<LockedPackage>);

impl Known {
    /// Puts into `files`, which the sandbox sees at [`FILES`], what drop-ins bring, and what of a lock is not in the base or may
    /// replace what is. What files replace may change, and gets into `free`. `identify` says what a file is.
    pub(super) fn gather(
        (cache, files): (&Cache, &Path),
        (question, lock): (&Question, Option<&Lock>),
        (base, free): (&Installed, &mut BTreeSet<String>),
        identify: impl Fn(&str) -> Result<Package>,
    ) -> Result<Known> {
        let local = local(cache, question, files, identify)?;
        let replacing = local.iter().filter(|(request, _)| question.packages.replace.contains_key(*request));
        free.extend(replacing.map(|(_, package)| package.name.clone()));
        let same = |p: &LockedPackage| base.0.contains(&Package::of(p));
        let mut known: Vec<LockedPackage> = local.into_values().filter(|p| !same(p)).collect();
        let wanted = |p: &&LockedPackage| !base.has(&p.name, None) || free.contains(&p.name);
        for package in lock.iter().flat_map(|lock| &lock.packages).filter(wanted) {
            if !known.iter().any(|k| (&k.name, &k.architecture) == (&package.name, &package.architecture)) {
                known.push(package.clone());
            }
        }
        let known = Known(known);
        known.provide(question.target.manager, cache, files)?;
        Ok(known)
    }

    /// The packages that a package manager would install, all of which are here.
    pub(super) fn all_of(&self, new: impl Iterator<Item = Package>) -> Result<Vec<LockedPackage>> {
        let one = |p: Package| {
            let found = self.find(&p.name, &p.architecture, &p.version);
            found.cloned().ok_or_else(|| not_kept(&p.name))
        };
        new.map(one).collect()
    }

    /// The one that a package manager would take.
    pub(super) fn find(&self, name: &str, architecture: &str, version: &str) -> Option<&LockedPackage> {
        let is_it =
            |p: &&LockedPackage| p.name == name && p.architecture == architecture && p.version == version;
        self.0.iter().find(is_it)
    }

    /// Where the sandbox has the files.
    pub(super) fn files(&self, manager: Manager) -> impl Iterator<Item = String> {
        self.0.iter().map(move |package| format!("{FILES}/{}", file_name(manager, package)))
    }

    /// Puts the files into a directory of ours.
    pub(super) fn provide(&self, manager: Manager, cache: &Cache, files: &Path) -> Result<()> {
        self.0.iter().try_for_each(|p| cache.copy(p, &files.join(file_name(manager, p))))
    }
}

/// Puts the package files of drop-ins into `files`, and finds out what they are.
fn local(
    cache: &Cache,
    question: &Question,
    files: &Path,
    identify: impl Fn(&str) -> Result<Package>,
) -> Result<BTreeMap<String, LockedPackage>> {
    let manager = question.target.manager;
    let ending = format!(".{}", backend(manager).ending());
    let mut found = BTreeMap::new();
    for (request, file) in &question.packages.local {
        if !request.ends_with(&ending) {
            let why = format!("{}: it is no package of {}; nothing was staged", file.path, manager.name());
            return Err(Error::new(ErrorKind::InvalidDropIn, why).detail("file", &file.path));
        }
        let mut package = LockedPackage::of_file(request, file);
        let name = format!("{}{ending}", file.digest.hex());
        cache.copy(&package, &files.join(&name))?;
        let is = identify(&format!("{FILES}/{name}"))?;
        (package.name, package.version, package.architecture) = (is.name, is.version, is.architecture);
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !is_name(&package.name) || !plain(&package.version) || !plain(&package.architecture) {
            return Err(unidentified(question, &name, "its name or its version is none"));
        }
        let to = files.join(file_name(manager, &package));
        if to.exists() {
            let why =
                format!("{}: another package file has {}, too; nothing was staged", file.path, package.name);
            return Err(Error::new(ErrorKind::InvalidDropIn, why).detail("file", &file.path));
        }
        std::fs::rename(files.join(&name), to).doing_with(|| format!("providing {}", file.path))?;
        found.insert(request.clone(), package);
    }
    Ok(found)
}

/// A package file that its own package manager does not know what it is.
pub(super) fn unidentified(question: &Question, file: &str, why: &str) -> Error {
    let is_it = |l: &&LocalPackage| file.contains(l.digest.hex());
    let path = question.packages.local.values().find(is_it).map_or(file, |local| &local.path);
    let why = format!("{path}: it is no package: {}; nothing was staged", one_line(why));
    Error::new(ErrorKind::InvalidDropIn, why).detail("file", path)
}

/// What a package manager would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// What would be there, with its file.
    pub packages: Vec<LockedPackage>,
    /// What of the base would not.
    pub removed: Vec<BasePackage>,
    /// What of the base would be there in another version: the one that it has.
    pub replaced: Vec<BasePackage>,
}

impl Answer {
    /// The lock. Who the packages make is known when they were installed.
    pub(super) fn locked(mut self, question: &Question) -> Lock {
        self.packages.sort();
        self.removed.sort();
        self.replaced.sort();
        Lock {
            version: lock::VERSION,
            base_digest: question.base_digest.clone(),
            request_digest: question.request.clone(),
            manager: Some(question.target.manager),
            images: question.images.clone(),
            packages: self.packages,
            removed: self.removed,
            replaced: self.replaced,
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        }
    }
}

/// Fails if more of the base would change than a request names.
pub(super) fn allowed(
    removed: &[BasePackage],
    replaced: &[BasePackage],
    free: &BTreeSet<String>,
) -> Result<()> {
    let all = removed.iter().chain(replaced).map(|p| p.name.as_str());
    let touched: Vec<&str> = all.filter(|name| !free.contains(*name)).collect();
    if touched.is_empty() { Ok(()) } else { Err(touches(&touched)) }
}

pub(super) fn touches(names: &[&str]) -> Error {
    unsolved(format!("the packages of the base would have to change: {}", names.join(", ")))
        .detail("packages", names.join(" "))
        .hint("take a base image that fits, or name them in override-replace or override-remove")
}

pub(super) fn unsolved(why: String) -> Error {
    let why = without_logins(&why);
    Error::new(ErrorKind::DepsolveFailed, format!("{why}; nothing was staged"))
}

/// Requests that fit neither the base nor each other, with what the package manager says of them.
pub(super) fn unfitting(problems: &[String]) -> Error {
    unsolved(format!("the requests do not fit the base: {}", problems.join("; ")))
        .detail("problems", problems.join("\n"))
        .hint("take a base image that fits, or name the packages in override-replace or override-remove")
}

/// A package that would be needed, and is not here.
pub(super) fn not_kept(name: &str) -> Error {
    unsolved(format!("{name} is not among the packages that are kept"))
}

/// Names that no repository has.
pub(super) fn nobody_has(names: &[&str]) -> Error {
    unsolved(format!("no repository has {}", names.join(", ")))
        .detail("packages", names.join(" "))
        .hint("look at the spelling, and at the repositories of the image and of the drop-ins")
}

/// Repositories that cannot be used.
pub(super) fn unavailable(why: &str) -> Error {
    let why = without_logins(&one_line(why));
    Error::new(
        ErrorKind::RepoUnavailable,
        format!("the package repositories cannot be used: {why}; nothing was staged"),
    )
    .hint("it is tried again; `on-unavailable: skip` in the drop-in goes on without its packages")
}

/// Installing that failed, with what was said last.
pub(super) fn not_installed(package: Option<&str>, output: &str) -> Error {
    let what = match package {
        Some(package) => format!("{} cannot be installed", one_line(package)),
        None => "the packages cannot be installed".to_owned(),
    };
    let shown: Vec<String> = tail(output, SHOWN).lines().map(one_line).collect();
    let error =
        Error::new(ErrorKind::ScriptletFailed, format!("{what}; nothing was staged:\n{}", shown.join("\n")));
    let error = error.hint("the package needs what the sandbox does not have, or is broken: leave it out, or put it into the image");
    match package {
        Some(package) => error.detail("package", one_line(package)),
        None => error,
    }
}

/// Fails if something else was done than is locked.
pub(super) fn exactly(before: &Installed, after: &Installed, lock: &Lock) -> Result<()> {
    let mut expected = before.clone();
    expected.0.retain(|package| !lock.removed.iter().chain(&lock.replaced).any(|gone| package.is(gone)));
    expected.0.extend(lock.packages.iter().map(Package::of));
    if expected == *after {
        return Ok(());
    }
    let differs: BTreeSet<&str> =
        expected.0.symmetric_difference(&after.0).map(|package| package.name.as_str()).collect();
    let names: Vec<&str> = differs.into_iter().collect();
    let what =
        format!("installing made something else than was locked: {}; nothing was staged", names.join(", "));
    Err(Error::new(ErrorKind::LockMismatch, what)
        .detail("packages", names.join(" "))
        .hint("solve anew with: osctl reconcile --update-lock"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Digest;

    fn package(name: &str, version: &str) -> Package {
        Package { name: name.into(), architecture: "amd64".into(), version: version.into() }
    }

    fn of_base(name: &str, version: &str) -> BasePackage {
        BasePackage { name: name.into(), version: version.into() }
    }

    #[test]
    fn the_base_changes_only_where_a_request_names_it() {
        let free = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let (removed, replaced) = ([of_base("moby", "1")], [of_base("libc6", "2")]);
        let error = allowed(&removed, &replaced, &free(&["moby"])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::DepsolveFailed);
        let expected = "the packages of the base would have to change: libc6; nothing was staged";
        assert_eq!(error.to_string(), expected);
        allowed(&removed, &replaced, &free(&["moby", "libc6"])).unwrap();
    }

    #[test]
    fn something_else_than_the_lock_is_noticed() {
        let locked = |name: &str, version: &str| LockedPackage {
            name: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            digest: Digest::of(b""),
            size: 0,
            source: String::new(),
        };
        let lock = Lock {
            version: lock::VERSION,
            base_digest: Digest::of(b""),
            request_digest: Digest::of(b""),
            manager: Some(Manager::Apt),
            images: BTreeMap::new(),
            packages: vec![locked("tree", "2"), locked("vim", "2")],
            removed: vec![of_base("moby", "1")],
            replaced: vec![of_base("vim", "1")],
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        // Two kernels are one package twice.
        let before =
            ["moby 1", "vim 1", "kernel 5", "kernel 6"].map(|p| p.split_once(' ').unwrap()).into_iter();
        let before = Installed(before.map(|(n, v)| package(n, v)).collect());
        let mut after = before.clone();
        after.0.remove(&package("moby", "1"));
        after.0.remove(&package("vim", "1"));
        after.0.extend([package("tree", "2"), package("vim", "2")]);
        exactly(&before, &after, &lock).unwrap();
        after.0.insert(package("more", "1"));
        after.0.remove(&package("kernel", "5"));
        let error = exactly(&before, &after, &lock).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LockMismatch);
        assert_eq!(error.details["packages"], "kernel more");
    }
}
