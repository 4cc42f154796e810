//! dnf and rpm.
//!
//! Solving: dnf 5 stores what it would do, and a script gives the same of dnf 4; both leave alone what is excluded, which is
//! every package of the base. Signatures are looked at then, with the keys of the repository that a package is from.
//! Installing: rpm gets the files and orders them. Its database is written anew afterwards, without the time of day.

mod database;
mod read;
mod say;

use super::base::{
    self, Answer, Installed, Known, Package, allowed, exactly, not_kept, unavailable, unsolved,
};
use super::cache::{self, Cache};
use super::detect::Target;
use super::room::Inside;
use super::{
    Backend, FETCH_LIMIT, FILES, INSTALL_LIMIT, Question, SOLVE_LIMIT, extension, fetcher, fetching_user,
    key_of, repositories,
};
use crate::model::lock::{BasePackage, Lock, LockedPackage, Manager};
use crate::model::packages::Packages;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process::Output;
use crate::sys::sandbox::{Sandbox, Who};
use cap_std_ext::cap_std::fs::Dir;
use read::{File, Repository, Transaction};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// dnf 4 answers a program in Python only.
const DNF4: &str = include_str!("dnf4.py");
/// Where that finds its question.
const ASK: &str = "/run/osctl-question.json";
/// Where dnf puts what it would do, in a directory that it makes.
const STORE: &str = "/run/osctl-store";
const NEW: &str = "new";
/// Where repositories are defined, in the target.
const REPOS: &str = "/etc/yum.repos.d";
/// What rpmkeys and the shell need for a package.
const CHECK_LIMIT: Duration = Duration::from_secs(120);
/// A package has one line in what dnf would do, and a repository a few.
const MAX_ANSWER: u64 = 64 << 20;
/// One argument may have 128 KiB (execve(2)).
const MAX_ARGUMENT: usize = 64 << 10;
/// Headers of all packages, for the time that they are changed.
const HEADERS: &str = "tmp/osctl-headers";
const CHANGED: &str = "tmp/osctl-headers-changed";

/// dnf and rpm.
#[derive(Debug)]
pub(super) struct Dnf;

impl Backend for Dnf {
    fn ending(&self) -> &'static str {
        "rpm"
    }

    fn is_transient(&self, path: &str, database: &str) -> bool {
        let of_rpm = path.strip_prefix(database).and_then(|rest| rest.strip_prefix('/'));
        of_rpm.is_some_and(|name| matches!(name, ".rpm.lock" | ".keyring.lock"))
    }

    fn solve(&self, inside: &Inside, cache: &Cache, question: &Question, files: &Path) -> Result<Lock> {
        let session = session(inside, question)?.knowing(cache, question, None, files)?;
        inside.cx.message("reading the metadata of the repositories");
        let mut requests = session.requests(&question.packages)?;
        requests.extend(session.known.files(Manager::Dnf));
        let answer = session.solve(&requests, question)?;
        let (removed, replaced) = session.of_base(&answer)?;
        let packages = session.verified(cache, &answer.new)?;
        Ok(Answer { packages, removed, replaced }.locked(question))
    }

    fn fetch(&self, inside: &Inside, cache: &Cache, question: &Question, lock: &Lock) -> Result<()> {
        let session = session(inside, question)?;
        let missing = cache.missing(&lock.packages);
        let names: Vec<String> = missing
            .iter()
            .map(|p| {
                inside.cx.message(format!("fetching {}", p.describe()));
                read::nevra(&p.name, &p.version, &p.architecture)
            })
            .collect();
        let place = session.fetch(&names)?;
        let mut found = BTreeMap::new();
        for file in names_in(&place)? {
            found.insert(cache::digest(&place, &file)?.0, file);
        }
        for package in missing {
            let file = found.get(&package.digest).ok_or_else(|| {
                unavailable(&format!("{} is another file than the one that is locked", package.describe()))
                    .detail("package", package.describe())
            })?;
            cache.take(package, &place, file)?;
        }
        Ok(())
    }

    fn resolve_from(
        &self,
        inside: &Inside,
        cache: &Cache,
        question: &Question,
        lock: &Lock,
        files: &Path,
    ) -> Result<Lock> {
        let mut session = session(inside, question)?.knowing(cache, question, Some(lock), files)?;
        session.offline = true;
        let requests: Vec<String> = session.known.files(Manager::Dnf).collect();
        let answer = session.solve(&requests, question)?;
        let (removed, replaced) = session.of_base(&answer)?;
        let packages = session.known.all_of(answer.new.into_iter().map(|(package, _)| package))?;
        let packages_of = |name: &str| packages.iter().any(|p: &LockedPackage| p.name == name);
        let asked = read::requests(&question.packages, &session.base);
        if let Some(name) = asked.iter().find(|request| !read::is_met(request, packages_of)) {
            return Err(not_kept(name));
        }
        Ok(Answer { packages, removed, replaced }.locked(question))
    }

    fn install(&self, inside: &Inside, target: &Target, lock: &Lock, files: &Path, time: u64) -> Result<()> {
        inside.make_var(&["tmp", "lib/rpm-state"], None)?;
        let sandbox = inside
            .sandbox(Who::Installer)?
            .show(files.to_owned(), FILES)
            // Compilers of byte code take it as a sign not to write times down.
            .variable("SOURCE_DATE_EPOCH", time.to_string())
            .variable("PYTHONHASHSEED", "0");
        let before = installed(inside, &sandbox)?;
        inside.cx.message(format!("installing {} packages", lock.packages.len()));
        // Signatures were looked at when the lock was made, and its digests since; what is gone makes room first.
        let remove: Vec<String> = lock.removed.iter().map(|p| format!("{}-{}", p.name, p.version)).collect();
        rpm(inside, &sandbox, &["--erase", "--nodeps"], &remove)?;
        let install: Vec<String> = Known(lock.packages.clone()).files(Manager::Dnf).collect();
        rpm(inside, &sandbox, &["--upgrade", "--oldpackage", "--nosignature"], &install)?;
        rewrite_database(inside, &sandbox, target, &before, time)?;
        exactly(&before, &installed(inside, &sandbox)?, lock)
    }
}

/// Which of the two there is.
enum Version {
    /// With the Python that it runs with.
    Four(&'static str),
    Five,
}

/// dnf in the sandbox that has the network, with the base excluded from what may change.
struct Session<'a> {
    inside: &'a Inside,
    sandbox: Sandbox,
    version: Version,
    store: PathBuf,
    base: Installed,
    /// The packages of the base that may change.
    free: BTreeSet<String>,
    /// The only repositories that count; none: those that the target has enabled.
    chosen: Vec<String>,
    /// Those that packages are taken from, enabled or not.
    named: Vec<String>,
    offline: bool,
    known: Known,
}

fn session<'a>(inside: &'a Inside, question: &Question) -> Result<Session<'a>> {
    let owner = fetching_user()?;
    inside.make_var(&["cache/dnf", "cache/libdnf5", "lib/dnf", "log", "tmp"], Some(owner))?;
    let tree = inside.tree()?;
    let version = if tree.exists("usr/bin/dnf5") {
        Version::Five
    } else if tree.exists("usr/libexec/platform-python") {
        Version::Four("/usr/libexec/platform-python")
    } else {
        Version::Four("/usr/bin/python3")
    };
    for (id, repo) in repositories(question) {
        let is_first = question.extensions.iter().any(|directory| directory.id() == id);
        let text = read::repository(&id, &repo, is_first)?;
        inside.put(&format!("usr{REPOS}/osctl-{id}.repo"), text.as_bytes())?;
        if let Some(key) = key_of(&repo, question) {
            inside.put(&format!("usr{}", read::key_path(&id)), key)?;
        }
    }
    // sqlite cannot even read where it cannot write.
    let database = inside.own_copy(&question.target.database, "rpmdb", owner)?;
    let store = inside.own("store", owner)?;
    let sandbox = fetcher(inside, question)?
        .bind(database, question.target.database.clone())
        .bind(store.clone(), STORE)
        .with_user_namespaces();
    let base = installed(inside, &sandbox)?;
    let free = read::freed(&question.packages, &base);
    let mut chosen = read::chosen(&question.packages);
    let named: Vec<String> = question.packages.replace_from.values().cloned().collect();
    if !chosen.is_empty() {
        chosen.extend(question.extensions.iter().map(extension::Directory::id));
        chosen.extend(named.iter().cloned());
    }
    let known = Known::default();
    Ok(Session { inside, sandbox, version, store, base, free, chosen, named, offline: false, known })
}

/// The packages that the database has.
fn installed(inside: &Inside, sandbox: &Sandbox) -> Result<Installed> {
    let done = inside.run(sandbox, "rpm", ["-qa", "--queryformat", read::FORMAT], SOLVE_LIMIT)?;
    if !done.success {
        let why = format!("the package database cannot be read: {}", say::last(&done.stderr));
        return Err(Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged")));
    }
    Ok(read::installed(&String::from_utf8_lossy(&done.stdout)))
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
            let arguments = ["-qp", "--nosignature", "--queryformat", read::FORMAT, file];
            let said = self.inside.run(&self.sandbox, "rpm", arguments, SOLVE_LIMIT)?;
            let found = read::installed(&String::from_utf8_lossy(&said.stdout)).0.pop_first();
            found.filter(|_| said.success).ok_or_else(|| base::unidentified(question, file, &said.stderr))
        })?;
        Ok(self)
    }

    /// The directory that dnf puts something into, which is not there yet.
    fn cleared(&self) -> Result<()> {
        self.inside.clear(&self.store, fetching_user()?)
    }

    /// What dnf put there.
    fn answered(&self) -> Result<Dir> {
        let dir = Dir::open_ambient_dir(&self.store, cap_std_ext::cap_std::ambient_authority());
        dir.and_then(|dir| dir.open_dir(NEW)).doing("opening what dnf answers")
    }

    /// What is asked for. Of what a repository shall replace, the version is the one that it has.
    fn requests(&self, packages: &Packages) -> Result<Vec<String>> {
        let mut requests = Vec::new();
        for request in read::requests(packages, &self.base) {
            match packages.replace_from.get(&request) {
                None => requests.push(request),
                Some(repository) => {
                    let newest = self.newest(&request, repository)?;
                    // It may be the one of the base.
                    if !self.base.0.contains(&newest) {
                        requests.push(read::nevra(&newest.name, &newest.version, &newest.architecture));
                    }
                }
            }
        }
        Ok(requests)
    }

    /// The newest of a package that this repository has, in the architecture of the base's.
    fn newest(&self, name: &str, repository: &str) -> Result<Package> {
        self.cleared()?;
        let repositories = [repository.to_owned()];
        let (done, said) = match self.version {
            Version::Four(python) => {
                let done = self.four(python, "newest", &repositories, &[name.to_owned()], &[])?;
                let said = if done.success { text(&self.answered()?, "newest")? } else { String::new() };
                (done, said)
            }
            Version::Five => {
                let fixed =
                    ["repoquery", "--available", "--latest-limit=1", "--queryformat=%{full_nevra}\n", name];
                let done = self.five(&repositories, &fixed.map(str::to_owned))?;
                let said = String::from_utf8_lossy(&done.stdout).into_owned();
                (done, said)
            }
        };
        if !done.success {
            return Err(say::failed(&done.stderr));
        }
        let found: Vec<Package> = said.lines().filter_map(read::split).filter(|p| p.name == name).collect();
        let fits = |p: &&Package| self.base.has(name, Some(&p.architecture));
        let newest = found.iter().find(fits).or(found.first());
        newest.cloned().ok_or_else(|| unsolved(format!("repository {repository} has no package {name}")))
    }

    fn five(&self, repositories: &[String], arguments: &[String]) -> Result<Output> {
        // It wants to be root, which it is in a user namespace, over nothing.
        let mut all: Vec<String> = ["--map-root-user", "dnf5", "--assumeyes"].map(str::to_owned).into();
        let fixed = ["obsoletes=0", "installonlypkgs=", "*.skip_if_unavailable=0", "keepcache=1"];
        // The one that runs is no part of the target.
        all.push("--setopt=protect_running_kernel=0".to_owned());
        all.extend(fixed.map(|setting| format!("--setopt={setting}")));
        if self.offline {
            all.push("--disable-repo=*".to_owned());
        } else {
            let (how, ids) = if repositories.is_empty() {
                ("enable-repo", &self.named[..])
            } else {
                ("repo", repositories)
            };
            all.extend(ids.iter().map(|id| format!("--{how}={id}")));
        }
        all.extend(arguments.iter().cloned());
        self.inside.run(&self.sandbox, "unshare", all, FETCH_LIMIT)
    }

    fn four(
        &self,
        python: &str,
        what: &str,
        repositories: &[String],
        install: &[String],
        remove: &[String],
    ) -> Result<Output> {
        let held: Vec<&str> = self.held().collect();
        let question = serde_json::json!({
            "install": install, "remove": remove, "held": held, "packages": what,
            "repos": repositories, "named": self.named, "offline": self.offline, "place": format!("{STORE}/{NEW}"),
        });
        let place = self.inside.own("question", fetching_user()?)?;
        let file = place.join("question.json");
        std::fs::write(&file, question.to_string()).doing("writing the question for dnf")?;
        let sandbox = self.sandbox.clone().show(file, ASK);
        self.inside.run(&sandbox, python, ["-c", DNF4, ASK], FETCH_LIMIT)
    }

    fn held(&self) -> impl Iterator<Item = &str> {
        self.base.names().into_iter().filter(|name| !self.free.contains(*name))
    }

    /// What dnf would do, with the files of what is new.
    fn solve(&self, install: &[String], question: &Question) -> Result<Transaction> {
        let remove: Vec<String> = question.packages.remove.keys().cloned().collect();
        self.cleared()?;
        if install.is_empty() && remove.is_empty() {
            return Ok(Transaction::default());
        }
        let done = match self.version {
            Version::Four(python) => self.four(python, "solve", &self.chosen, install, &remove)?,
            Version::Five => {
                let mut arguments = read::excludes(self.held(), MAX_ARGUMENT);
                arguments.extend(["do", "--allow-downgrade"].map(str::to_owned));
                for (action, names) in [("install", install), ("remove", &remove)] {
                    if !names.is_empty() {
                        arguments.push(format!("--action={action}"));
                        arguments.extend(names.iter().cloned());
                    }
                }
                arguments.push(format!("--store={STORE}/{NEW}"));
                self.five(&self.chosen, &arguments)?
            }
        };
        if !done.success {
            return Err(say::failed(&done.stderr));
        }
        // There is nothing to do where it stored nothing.
        match self.store.join(NEW).symlink_metadata() {
            Ok(_) => read::transaction(&text(&self.answered()?, "transaction.json")?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Transaction::default()),
            Err(e) => Err(e).doing("looking for what dnf answers"),
        }
    }

    /// What of the base would go, and what of it would be replaced, if somebody named it.
    fn of_base(&self, answer: &Transaction) -> Result<(Vec<BasePackage>, Vec<BasePackage>)> {
        let (removed, replaced) = answer.of_base();
        allowed(&removed, &replaced, &self.free)?;
        Ok((removed, replaced))
    }

    /// Takes the packages into the cache that are signed as their repositories promise.
    fn verified(&self, cache: &Cache, packages: &[(Package, File)]) -> Result<Vec<LockedPackage>> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        let repositories = self.repositories()?;
        let place = self.answered()?;
        let mut ready = BTreeSet::new();
        let mut locked = Vec::new();
        for (package, file) in packages {
            if let Some(known) = self.known.find(&package.name, &package.architecture, &package.version) {
                locked.push(known.clone());
                continue;
            }
            let repository = repositories
                .iter()
                .find(|r| r.id == file.repository)
                .ok_or_else(|| unavailable(&format!("dnf has {} of no repository", package.name)))?;
            if repository.is_signed {
                if ready.insert(&repository.id) {
                    self.import(repository)?;
                }
                self.check(repository, package, &file.path)?;
            }
            let (digest, size) = cache::digest(&place, &file.path)?;
            let package = LockedPackage {
                name: package.name.clone(),
                version: package.version.clone(),
                architecture: package.architecture.clone(),
                digest,
                size,
                source: repository.id.clone(),
            };
            cache.take(&package, &place, &file.path)?;
            locked.push(package);
        }
        Ok(locked)
    }

    fn repositories(&self) -> Result<Vec<Repository>> {
        match self.version {
            Version::Four(_) => read::repositories(&text(&self.answered()?, "repos.json")?),
            Version::Five => {
                let done = self.five(&self.chosen, &["repo", "info", "--json"].map(str::to_owned))?;
                if !done.success {
                    return Err(say::failed(&done.stderr));
                }
                read::repositories(&String::from_utf8_lossy(&done.stdout))
            }
        }
    }

    /// The database of keys of a repository, as the sandbox sees it.
    fn keys(repository: &Repository) -> String {
        format!("/var/tmp/osctl-keys-{}", repository.id)
    }

    fn import(&self, repository: &Repository) -> Result<()> {
        let mut arguments = vec!["--dbpath".to_owned(), Self::keys(repository), "--import".to_owned()];
        arguments.extend(repository.key_files()?);
        let done = self.inside.run(&self.sandbox, "rpmkeys", arguments, CHECK_LIMIT)?;
        if !done.success {
            let (id, why) = (&repository.id, say::last(&done.stderr));
            return Err(unavailable(&format!("the keys of repository {id} cannot be read: {why}")));
        }
        Ok(())
    }

    fn check(&self, repository: &Repository, package: &Package, file: &str) -> Result<()> {
        let arguments = [
            "--dbpath",
            &Self::keys(repository),
            "--define",
            "_pkgverify_level all",
            "--checksig",
            &format!("{STORE}/{NEW}/{file}"),
        ];
        let done = self.inside.run(&self.sandbox, "rpmkeys", arguments, CHECK_LIMIT)?;
        if done.success {
            return Ok(());
        }
        let why = format!("{} of repository {} is not signed with its keys", package.name, repository.id);
        Err(unavailable(&why).detail("package", &package.name))
    }

    /// Fetches packages by their full names, and returns where they are.
    fn fetch(&self, names: &[String]) -> Result<Dir> {
        self.cleared()?;
        let done = match self.version {
            Version::Four(python) => self.four(python, "fetch", &self.chosen, names, &[])?,
            Version::Five => {
                let mut arguments = vec!["download".to_owned(), format!("--destdir={STORE}/{NEW}/packages")];
                arguments.extend(names.iter().cloned());
                self.five(&self.chosen, &arguments)?
            }
        };
        if !done.success {
            return Err(unavailable(&say::last(&done.stderr)));
        }
        self.answered()?.open_dir("packages").doing("opening what was fetched")
    }
}

fn names_in(dir: &Dir) -> Result<Vec<String>> {
    let doing = "listing what was fetched";
    let mut names = Vec::new();
    for entry in dir.entries().doing(doing)? {
        names.extend(entry.doing(doing)?.file_name().into_string());
    }
    Ok(names)
}

/// A text that a program without rights wrote.
fn text(place: &Dir, name: &str) -> Result<String> {
    let bytes = cache::read(place, name, MAX_ANSWER)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn rpm(inside: &Inside, sandbox: &Sandbox, how: &[&str], what: &[String]) -> Result<()> {
    if what.is_empty() {
        return Ok(());
    }
    // Both outputs in the order in which they came. Its plugins talk to the host.
    let mut arguments: Vec<String> =
        ["-c", "exec rpm \"$@\" 2>&1", "rpm", "--noplugins"].map(str::to_owned).into();
    arguments.extend(how.iter().map(|a| (*a).to_owned()));
    arguments.extend(what.iter().cloned());
    let done = inside.run(sandbox, "/bin/sh", arguments, INSTALL_LIMIT)?;
    let said = String::from_utf8_lossy(&done.stdout);
    // To rpm, a script after installing may fail.
    if !done.success || say::has_failed_script(&said) {
        return Err(say::not_installed(&said));
    }
    said.lines().for_each(|line| tracing::debug!(line, "rpm"));
    Ok(())
}

/// Writes the database anew: it says when each package was installed, and in which order.
fn rewrite_database(
    inside: &Inside,
    sandbox: &Sandbox,
    target: &Target,
    before: &Installed,
    time: u64,
) -> Result<()> {
    let doing = "writing the package database anew";
    let shell = |script: &str| -> Result<()> {
        let arguments = ["-c", script, "sh", &target.database];
        let done = inside.run(sandbox, "/bin/sh", arguments, SOLVE_LIMIT)?;
        if done.success {
            return Ok(());
        }
        let why = say::last(&done.stderr);
        Err(Error::new(ErrorKind::Unsupported, format!("{doing}: rpm cannot: {why}; nothing was staged")))
    };
    shell(&format!("rpmdb --exportdb >/var/{HEADERS}"))?;
    let var = Dir::open_ambient_dir(inside.var(), cap_std_ext::cap_std::ambient_authority()).doing(doing)?;
    let from = std::io::BufReader::new(cache::open(&var, HEADERS).doing(doing)?);
    let mut options = cap_std_ext::cap_std::fs::OpenOptions::new();
    let to = var.open_with(CHANGED, options.write(true).create_new(true)).doing(doing)?;
    let time = u32::try_from(time).unwrap_or(u32::MAX);
    database::normalise(from, std::io::BufWriter::new(to), before, time)?;
    // Files beside a database of sqlite are what it has not got yet: there is none once it is closed.
    shell(&format!(
        "set -e; cd \"$1\"; rm -f rpmdb.sqlite rpmdb.sqlite-* Packages.db Index.db; \
         rpmdb --importdb </var/{CHANGED}; [ ! -s rpmdb.sqlite-wal ]; rm -f rpmdb.sqlite-*"
    ))?;
    let file = format!("{}/rpmdb.sqlite", target.database.trim_start_matches('/'));
    match inside.tree()?.exists(&file) {
        true => database::leave_wal(&inside.tree()?, &file),
        false => Ok(()),
    }
}
