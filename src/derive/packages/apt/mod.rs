//! apt and dpkg.
//!
//! Solving: every package of the base is put on hold, so apt either finds an answer that leaves them alone or names them.
//! Installing: apt gets the files and orders them; without lists it can find nothing else.

mod read;
mod say;

use super::base::{self, Answer, Installed, Known, Package, allowed, exactly, names};
use super::cache::Cache;
use super::detect::Target;
use super::room::Inside;
use super::{
    Backend, FETCH_LIMIT, FILES, INSTALL_LIMIT, Question, SOLVE_LIMIT, fetcher, fetching_user, key_of,
    repositories,
};
use crate::model::lock::{BasePackage, Lock, LockedPackage, Manager};
use crate::model::{Context, Result};
use crate::sys::process::Output;
use crate::sys::sandbox::{Sandbox, Who};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use read::{Changes, arguments, changes, freed, hold, installed, packages, source};
use say::{scriptlet_failed, unavailable, unsolvable};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// apt's default for a connection is two minutes; a slow mirror has a handful of indexes.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);

/// What every call has in common. It cannot become another user, and nobody else is at work here.
const OPTIONS: [&str; 8] = [
    "-oAPT::Sandbox::User=root",
    "-oDebug::NoLocking=true",
    "-oAcquire::Languages=none",
    "-oAcquire::ForceHash=sha256",
    "-oAcquire::Retries=3",
    "-oAPT::Update::Error-Mode=any",
    "-oAPT::Get::Assume-Yes=true",
    "-oDpkg::Use-Pty=false",
];
/// Where our repositories are, in the target.
const SOURCES: &str = "/etc/apt/sources.list.d";
/// Where apt is told which of them come first (apt_preferences(5)).
const PREFERENCES: &str = "/etc/apt/preferences.d/osctl";
/// dpkg's own directory, as its programs see it.
const ADMIN: &str = "/var/lib/dpkg";
/// Without it, scripts of System V would start services in the sandbox.
const POLICY: &str = "usr/sbin/policy-rc.d";

/// apt and dpkg.
#[derive(Debug)]
pub(super) struct Apt;

impl Backend for Apt {
    fn ending(&self) -> &'static str {
        "deb"
    }

    fn is_transient(&self, path: &str, database: &str) -> bool {
        let of_dpkg = path.strip_prefix(database).and_then(|rest| rest.strip_prefix('/'));
        let old = |name: &str| name.ends_with("-old");
        path.trim_start_matches('/') == POLICY
            || of_dpkg.is_some_and(|name| {
                matches!(name, "lock" | "lock-frontend" | "triggers/Lock" | "available") || old(name)
            })
    }

    fn solve(&self, inside: &Inside, cache: &Cache, question: &Question, files: &Path) -> Result<Lock> {
        let session = session(inside, question)?.knowing(cache, question, None, files)?;
        let apt = |arguments: &[&str], limit| session.apt(arguments, limit);
        inside.cx.message("reading the package lists");
        let updated = apt(&["-qq", "update"], UPDATE_LIMIT)?;
        if !updated.success {
            return Err(unavailable(&updated.stderr));
        }
        for name in names(&question.packages.install).filter(|name| name.contains(['.', '+'])) {
            // apt would take it for a regular expression where no package has the name.
            let known = inside.run(&session.sandbox, "apt-cache", ["pkgnames", name], SOLVE_LIMIT)?;
            if !String::from_utf8_lossy(&known.stdout).lines().any(|line| line == name) {
                return Err(unsolvable("", &format!("E: Unable to locate package {name}")));
            }
        }
        let mut wanted = arguments(&question.packages, &session.base);
        wanted.extend(session.known.files(Manager::Apt));
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let (changes, removed, replaced) = session.simulate(&wanted)?;
        let listed = apt(&[&["-qq", "--print-uris"], &wanted[..]].concat(), SOLVE_LIMIT)?;
        if !listed.success {
            return Err(unsolvable(&String::from_utf8_lossy(&listed.stdout), &listed.stderr));
        }
        let packages = packages(&changes, &session.known, &String::from_utf8_lossy(&listed.stdout))?;
        session.fetch(cache, &packages)?;
        Ok(Answer { packages, removed, replaced }.locked(question))
    }

    /// From where it was found: no list is needed for that.
    fn fetch(&self, inside: &Inside, cache: &Cache, question: &Question, lock: &Lock) -> Result<()> {
        session(inside, question)?.fetch(cache, &lock.packages)
    }

    fn resolve_from(
        &self,
        inside: &Inside,
        cache: &Cache,
        question: &Question,
        lock: &Lock,
        files: &Path,
    ) -> Result<Lock> {
        let session = session(inside, question)?.knowing(cache, question, Some(lock), files)?;
        let mut wanted = arguments(&question.packages, &session.base);
        // What is replaced has its file.
        wanted.retain(|argument| !question.packages.replace.contains_key(argument));
        wanted.extend(session.known.files(Manager::Apt));
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let (changes, removed, replaced) = session.simulate(&wanted)?;
        let new = changes.install.into_iter().map(|((name, architecture), (_, version))| Package {
            name,
            architecture,
            version,
        });
        let packages = session.known.all_of(new)?;
        Ok(Answer { packages, removed, replaced }.locked(question))
    }

    fn install(&self, inside: &Inside, target: &Target, lock: &Lock, files: &Path, time: u64) -> Result<()> {
        inside.make_var(&["lib/apt/lists/partial", "cache/apt/archives/partial", "log/apt"], None)?;
        inside.make_mount_point("lib/dpkg")?;
        inside.put(POLICY, b"#!/bin/sh\n# Nothing is started while a tree is made.\nexit 101\n")?;
        let tree = inside.tree()?;
        let executable = cap_std_ext::cap_std::fs::PermissionsExt::from_mode(0o755);
        tree.set_permissions(POLICY, executable).doing("preparing dpkg")?;
        let sandbox = inside
            .sandbox(Who::Installer)?
            .bind(inside.real(&target.database)?, ADMIN)
            .show(files.to_owned(), FILES)
            .variable("DEBIAN_FRONTEND", "noninteractive")
            .variable("DEBCONF_NONINTERACTIVE_SEEN", "true")
            // Compilers of byte code take it as a sign not to write times down.
            .variable("SOURCE_DATE_EPOCH", time.to_string())
            .variable("PYTHONHASHSEED", "0");
        let status = format!("{}/status", target.database);
        let read = || inside.text(&status);
        let before = installed(&read()?);
        let mut arguments: Vec<String> = OPTIONS.iter().map(|o| (*o).to_owned()).collect();
        // The base's are not upgraded, and nothing is found that was not locked.
        let fixed = [
            "-q",
            "--no-install-recommends",
            "--allow-downgrades",
            "-oDpkg::Options::=--force-confdef",
            "-oDpkg::Options::=--force-confold",
            "-oDpkg::Options::=--force-unsafe-io",
            "install",
        ];
        arguments.extend(fixed.map(str::to_owned));
        arguments.extend(Known(lock.packages.clone()).files(Manager::Apt));
        arguments.extend(lock.removed.iter().map(|package| format!("{}-", package.name)));
        inside.cx.message(format!("installing {} packages", lock.packages.len()));
        // Both outputs in the order in which they came.
        let script = ["-c", "exec apt-get \"$@\" 2>&1", "apt-get"].map(str::to_owned);
        let done = inside.run(&sandbox, "/bin/sh", script.into_iter().chain(arguments), INSTALL_LIMIT)?;
        let said = String::from_utf8_lossy(&done.stdout);
        if !done.success {
            return Err(scriptlet_failed(&said));
        }
        said.lines().for_each(|line| tracing::debug!(line, "dpkg"));
        let after = installed(&read()?);
        exactly(&before, &after, lock)
    }
}

/// apt in the sandbox that has the network, with the base on hold.
struct Session<'a> {
    inside: &'a Inside,
    sandbox: Sandbox,
    base: Installed,
    /// The packages of the base that may change.
    free: BTreeSet<String>,
    known: Known,
}

impl<'a> Session<'a> {
    /// With the files of packages that are here: those of drop-ins, and what of a lock may be installed.
    fn knowing(
        mut self,
        cache: &Cache,
        question: &Question,
        lock: Option<&Lock>,
        files: &Path,
    ) -> Result<Session<'a>> {
        self.sandbox = self.sandbox.show(files.to_owned(), FILES);
        let of_base = (&self.base, &mut self.free);
        self.known = Known::gather((cache, files), (question, lock), of_base, |file| {
            let arguments = ["--show", "--showformat", read::FORMAT, file];
            let said = self.inside.run(&self.sandbox, "dpkg-deb", arguments, SOLVE_LIMIT)?;
            let package = read::package(&String::from_utf8_lossy(&said.stdout));
            package.filter(|_| said.success).ok_or_else(|| base::unidentified(question, file, &said.stderr))
        })?;
        // What is held would not be replaced by a file either.
        self.hold(question)?;
        Ok(self)
    }

    fn hold(&self, question: &Question) -> Result<()> {
        let status = format!("{}/status", question.target.database);
        let text = self.inside.text(&status)?;
        self.inside.put(&status, hold(&text, &self.free).as_bytes())
    }

    fn apt(&self, arguments: &[&str], limit: Duration) -> Result<Output> {
        self.inside.run(&self.sandbox, "apt-get", OPTIONS.iter().chain(arguments), limit)
    }

    /// Fetches the packages that the cache does not have.
    fn fetch(&self, cache: &Cache, packages: &[LockedPackage]) -> Result<()> {
        const PLACE: &str = "tmp";
        for package in cache.missing(packages) {
            self.inside.cx.message(format!("fetching {}", package.describe()));
            let name = package.digest.hex();
            let (path, digest) = (format!("/var/{PLACE}/{name}"), format!("SHA256:{name}"));
            let arguments = ["-oAPT::Sandbox::User=root", "download-file", &package.source, &path, &digest];
            let done = self.inside.run(&self.sandbox, "/usr/lib/apt/apt-helper", arguments, FETCH_LIMIT)?;
            if !done.success {
                return Err(unavailable(&done.stderr).detail("package", package.describe()));
            }
            let var = Dir::open_ambient_dir(self.inside.var(), ambient_authority()).doing("opening /var")?;
            let place = var.open_dir(PLACE).doing("opening what was fetched")?;
            cache.take(package, &place, name)?;
            // Twice what is wanted need not fit.
            place.remove_file(name).doing("removing what was fetched")?;
        }
        Ok(())
    }

    /// What apt would do to have all this, if that leaves the base alone.
    fn simulate(&self, wanted: &[&str]) -> Result<(Changes, Vec<BasePackage>, Vec<BasePackage>)> {
        let done = self.apt(&[&["-s"], wanted].concat(), SOLVE_LIMIT)?;
        let text = String::from_utf8_lossy(&done.stdout);
        if !done.success {
            return Err(unsolvable(&text, &done.stderr));
        }
        let changes = changes(&text);
        let (removed, replaced) = changes.of_base(&self.base);
        allowed(&removed, &replaced, &self.free)?;
        Ok((changes, removed, replaced))
    }
}

fn session<'a>(inside: &'a Inside, question: &Question) -> Result<Session<'a>> {
    let var = ["lib/apt/lists/partial", "cache/apt/archives/partial", "log/apt", "tmp", "lib/dpkg"];
    inside.make_var(&var, fetching_user()?.into())?;
    let database = &question.target.database;
    let base = installed(&inside.text(&format!("{database}/status"))?);
    let free = freed(&question.packages);
    for (id, repo) in repositories(question) {
        let key = key_of(&repo, question);
        let (list, keyring) = source(&id, &repo, key)?;
        inside.put(&format!("usr{SOURCES}/osctl-{id}.sources"), list.as_bytes())?;
        if let (Some(path), Some(key)) = (keyring, key) {
            inside.put(&format!("usr{path}"), key)?;
        }
    }
    if !question.extensions.is_empty() {
        inside.put(&format!("usr{PREFERENCES}"), read::FIRST.as_bytes())?;
    }
    let sandbox = fetcher(inside, question)?.show(inside.real(database)?, ADMIN);
    Ok(Session { inside, sandbox, base, free, known: Known::default() })
}
