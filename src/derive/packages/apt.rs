//! apt and dpkg.
//!
//! Solving: every package of the base is put on hold, so apt either finds an answer that leaves them alone or names them.
//! Installing: apt gets the files and orders them; without lists it can find nothing else.

use super::cache::Cache;
use super::detect::Target;
use super::room::Inside;
use super::{Question, file_name};
use crate::model::image::Digest;
use crate::model::lock::{self, BasePackage, Lock, LockedPackage, Manager};
use crate::model::packages::{Key, Packages, Repo};
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process::{Output, tail};
use crate::sys::sandbox::{Sandbox, Who};
use crate::sys::user;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// apt's default for a connection is two minutes; a slow mirror has a handful of indexes.
const UPDATE_LIMIT: Duration = Duration::from_secs(600);
const SOLVE_LIMIT: Duration = Duration::from_secs(300);
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
/// Whatever scriptlets do, it ends. Initramfs and modules take minutes on slow machines.
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);
/// Lines of output that an error shows.
const SHOWN: usize = 25;

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
/// Where our repositories and keys are, in the target.
const SOURCES: &str = "/etc/apt/sources.list.d";
const KEYS: &str = "/etc/apt/keyrings";
/// Where the package files are while they are installed. Directly in a directory that is there: bwrap makes those on the
/// way for root only.
const FILES: &str = "/run/osctl-packages";
/// dpkg's own directory, as its programs see it.
const ADMIN: &str = "/var/lib/dpkg";
/// Without it, scripts of System V would start services in the sandbox.
const POLICY: &str = "usr/sbin/policy-rc.d";

/// Files that are only there while packages are installed, or say when and in which order that was.
pub(super) fn is_transient(path: &str, database: &str) -> bool {
    let of_dpkg = path.strip_prefix(database).and_then(|rest| rest.strip_prefix('/'));
    let old = |name: &str| name.ends_with("-old");
    path.trim_start_matches('/') == POLICY
        || of_dpkg.is_some_and(|name| {
            matches!(name, "lock" | "lock-frontend" | "triggers/Lock" | "available") || old(name)
        })
}

/// apt in the sandbox that has the network, with the base on hold.
struct Session<'a> {
    inside: &'a Inside,
    sandbox: Sandbox,
    base: Installed,
    /// The packages of the base that may change.
    free: BTreeSet<String>,
}

impl Session<'_> {
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
        let (removed, replaced) = allowed(&changes, &self.base, &self.free)?;
        Ok((changes, removed, replaced))
    }
}

fn session<'a>(inside: &'a Inside, question: &Question) -> Result<Session<'a>> {
    let owner = user::fetcher();
    let var = ["lib/apt/lists/partial", "cache/apt/archives/partial", "log/apt", "tmp", "lib/dpkg"];
    inside.make_var(&var, owner)?;
    let database = &question.target.database;
    let status = format!("{database}/status");
    let text = inside.text(&status)?;
    let base = installed(&text);
    let free = freed(&question.packages);
    inside.put(&status, hold(&text, &free).as_bytes())?;
    for (id, repo) in &question.packages.repos {
        let key = match &repo.key {
            Some(Key::Inline(bytes)) => Some(bytes),
            Some(Key::File(path)) => question.keys.get(path),
            None => None,
        };
        let (list, keyring) = source(id, repo, key.map(Vec::as_slice))?;
        inside.put(&format!("usr{SOURCES}/osctl-{id}.sources"), list.as_bytes())?;
        if let (Some(path), Some(key)) = (keyring, key) {
            inside.put(&format!("usr{path}"), key)?;
        }
    }
    let (uid, gid) =
        owner.ok_or_else(|| Error::new(ErrorKind::NotAuthorized, "packages need a daemon that is root"))?;
    let mut sandbox = inside.sandbox(Who::Fetcher { uid, gid })?.show(inside.real(database)?, ADMIN);
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        // As the host resolves names; links into /run are followed.
        if let Ok(real) = std::fs::canonicalize(file) {
            inside.put(&format!("usr{file}"), b"")?;
            sandbox = sandbox.show(real, file);
        }
    }
    for (name, value) in &question.proxies {
        sandbox = sandbox.variable(name, value);
    }
    Ok(Session { inside, sandbox, base, free })
}

/// Fetches what is locked and not here, from where it was found. No list is needed for that.
pub(super) fn fetch(inside: &Inside, cache: &Cache, question: &Question, lock: &Lock) -> Result<()> {
    let session = session(inside, question)?;
    session.fetch(cache, &lock.packages)
}

/// Solves with what a lock of before names and the cache has, without a network: on another base some of it may not be
/// needed any more, and nothing else may be.
pub(super) fn resolve_from(
    inside: &Inside,
    cache: &Cache,
    question: &Question,
    lock: &Lock,
    files: &Path,
) -> Result<Lock> {
    let mut session = session(inside, question)?;
    let of_base = |p: &&LockedPackage| session.base.keys().any(|(name, _)| *name == p.name);
    let replaced = |p: &&LockedPackage| session.free.contains(&p.name);
    let known: Vec<&LockedPackage> = lock.packages.iter().filter(|p| !of_base(p) || replaced(p)).collect();
    for package in &known {
        cache.copy(package, &files.join(file_name(lock, package)))?;
    }
    session.sandbox = session.sandbox.show(files.to_owned(), FILES);
    let mut wanted = arguments(&question.packages, &session.base);
    // What is replaced has its file.
    wanted.retain(|argument| !question.packages.replace.contains_key(argument));
    wanted.extend(known.iter().map(|package| format!("{FILES}/{}", file_name(lock, package))));
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let (changes, removed, replaced) = session.simulate(&wanted)?;
    let mut packages = Vec::new();
    for ((name, architecture), (_, version)) in changes.install {
        let same =
            |p: &&&LockedPackage| p.name == name && p.architecture == architecture && p.version == version;
        let package = known.iter().find(same);
        let package =
            package.ok_or_else(|| unsolved(format!("{name} is not among the packages that are kept")))?;
        packages.push((*package).clone());
    }
    Ok(locked(question, packages, removed, replaced))
}

/// Solves, and fetches what is missing.
pub(super) fn solve(inside: &Inside, cache: &Cache, question: &Question) -> Result<Lock> {
    let session = session(inside, question)?;
    let apt = |arguments: &[&str], limit| session.apt(arguments, limit);
    inside.cx.message("reading the package lists");
    let updated = apt(&["-qq", "update"], UPDATE_LIMIT)?;
    if !updated.success {
        return Err(unavailable(&updated.stderr));
    }
    for name in question.packages.install.keys().filter(|name| name.contains(['.', '+'])) {
        // apt would take it for a regular expression where no package has the name.
        let known = inside.run(&session.sandbox, "apt-cache", ["pkgnames", name], SOLVE_LIMIT)?;
        if !String::from_utf8_lossy(&known.stdout).lines().any(|line| line == name) {
            return Err(unsolvable("", &format!("E: Unable to locate package {name}")));
        }
    }
    let wanted = arguments(&question.packages, &session.base);
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let (changes, removed, replaced) = session.simulate(&wanted)?;
    let listed = apt(&[&["-qq", "--print-uris"], &wanted[..]].concat(), SOLVE_LIMIT)?;
    if !listed.success {
        return Err(unsolvable(&String::from_utf8_lossy(&listed.stdout), &listed.stderr));
    }
    let mut found = packages(&changes, &String::from_utf8_lossy(&listed.stdout))?;
    found.sort();
    session.fetch(cache, &found)?;
    Ok(locked(question, found, removed, replaced))
}

/// The lock of an answer. Who the packages make is known when they were installed.
fn locked(
    question: &Question,
    packages: Vec<LockedPackage>,
    removed: Vec<BasePackage>,
    replaced: Vec<BasePackage>,
) -> Lock {
    Lock {
        version: lock::VERSION,
        base_digest: question.base_digest.clone(),
        request_digest: Lock::request_digest(&question.packages),
        manager: Manager::Apt,
        packages,
        removed,
        replaced,
        users: BTreeMap::new(),
        groups: BTreeMap::new(),
    }
}

/// Installs what is locked from files.
pub(super) fn install(inside: &Inside, target: &Target, lock: &Lock, files: &Path, time: u64) -> Result<()> {
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
    arguments.extend(lock.packages.iter().map(|package| format!("{FILES}/{}", file_name(lock, package))));
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

/// A package of dpkg's database: name and architecture.
type Installed = BTreeMap<(String, String), String>;

/// The packages that are installed, with their versions.
fn installed(status: &str) -> Installed {
    let field = |stanza: &str, name: &str| -> Option<String> {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(|v| v.trim().to_owned())
    };
    let package = |stanza: &str| {
        let state = field(stanza, "Status")?;
        let here = state.ends_with(" installed");
        let key = (field(stanza, "Package")?, field(stanza, "Architecture")?);
        here.then_some((key, field(stanza, "Version")?))
    };
    status.split("\n\n").filter_map(package).collect()
}

/// The names of packages that requests may change.
fn freed(packages: &Packages) -> BTreeSet<String> {
    let bare = |name: &str| name.split([':', '=']).next().unwrap_or_default().to_owned();
    packages.remove.keys().chain(packages.replace.keys()).map(|name| bare(name)).collect()
}

/// The database with every package on hold, but for those that may be changed.
fn hold(status: &str, free: &BTreeSet<String>) -> String {
    let mut name = "";
    let mut out = String::with_capacity(status.len());
    for line in status.lines() {
        if let Some(package) = line.strip_prefix("Package: ") {
            name = package.trim();
        }
        match line {
            "Status: install ok installed" if !free.contains(name) => {
                out.push_str("Status: hold ok installed")
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The arguments of `apt-get` for what is asked.
///
/// What the base has is not: apt would want to have the newest of it, and the base is on hold.
fn arguments(packages: &Packages, base: &Installed) -> Vec<String> {
    let here = |request: &String| {
        let (name, arch) = request.split_once(':').map_or((request.as_str(), None), |(n, a)| (n, Some(a)));
        base.keys().any(|(n, a)| n == name && arch.is_none_or(|arch| arch == a))
    };
    let mut all = vec!["--allow-downgrades".to_owned(), "install".to_owned()];
    all.extend(packages.install.keys().filter(|request| !here(request)).cloned());
    all.extend(packages.replace.keys().cloned());
    all.extend(packages.remove.keys().map(|name| format!("{name}-")));
    all
}

/// A source in deb822 format (sources.list(5)), and where its key belongs.
fn source(id: &str, repo: &Repo, key: Option<&[u8]>) -> Result<(String, Option<String>)> {
    if repo.baseurl.is_empty() {
        let why = format!("{}: repository {id} has no baseurl, which apt needs", repo.owner);
        return Err(Error::new(ErrorKind::InvalidDropIn, why).detail("drop-in", &repo.owner));
    }
    let flat = repo.suites.is_empty();
    let suites = if flat { "./".to_owned() } else { repo.suites.join(" ") };
    let mut text = format!("Types: deb\nURIs: {}\nSuites: {suites}\n", repo.baseurl.join(" "));
    let components = match repo.components.is_empty() {
        // A flat repository has none.
        true if flat => String::new(),
        true => "main".to_owned(),
        false => repo.components.join(" "),
    };
    if !components.is_empty() {
        text.push_str(&format!("Components: {components}\n"));
    }
    let keyring = match (&repo.key, key) {
        (None, _) => {
            text.push_str("Trusted: yes\n");
            None
        }
        (Some(_), Some(key)) => {
            // apt goes by the ending.
            let ending = if key.starts_with(b"-----BEGIN PGP") { "asc" } else { "gpg" };
            let path = format!("{KEYS}/osctl-{id}.{ending}");
            text.push_str(&format!("Signed-By: {path}\n"));
            Some(path)
        }
        (Some(_), None) => {
            return Err(Error::new(ErrorKind::Internal, format!("the key of repository {id} was not read")));
        }
    };
    Ok((text, keyring))
}

/// What apt would do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Name and architecture: the version before, and the one to come.
    install: BTreeMap<(String, String), (Option<String>, String)>,
    /// Name, and the version before.
    remove: BTreeMap<String, String>,
}

/// Reads the lines `Inst NAME [OLD] (NEW ORIGIN [ARCH])` and `Remv NAME [OLD]` of a simulation (apt-get(8), -s).
fn changes(text: &str) -> Changes {
    let mut changes = Changes::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (verb, Some(name)) = (words.next(), words.next()) else { continue };
        let old = words.next().and_then(|w| w.strip_prefix('[')?.strip_suffix(']')).map(str::to_owned);
        let name = name.split(':').next().unwrap_or(name).to_owned();
        match verb {
            Some("Inst") => {
                let Some(new) = line.split_once(" (").map(|(_, rest)| rest) else { continue };
                let version = new.split_whitespace().next().unwrap_or_default().to_owned();
                let arch = new.split_once('[').and_then(|(_, a)| a.split(']').next()).unwrap_or_default();
                changes.install.insert((name, arch.to_owned()), (old, version));
            }
            Some("Remv" | "Purg") => _ = changes.remove.insert(name, old.unwrap_or_default()),
            _ => {}
        }
    }
    changes
}

/// What of the base would go and be replaced, if that was asked for.
fn allowed(
    changes: &Changes,
    base: &Installed,
    free: &BTreeSet<String>,
) -> Result<(Vec<BasePackage>, Vec<BasePackage>)> {
    let of_base = |name: &str| base.keys().any(|(n, _)| n == name);
    let gone = changes.remove.iter().filter(|(name, _)| of_base(name));
    let other = changes.install.iter().filter_map(|((name, _), (old, _))| Some((name, old.as_ref()?)));
    let record =
        |(name, version): (&String, &String)| BasePackage { name: name.clone(), version: version.clone() };
    let (removed, replaced): (Vec<_>, Vec<_>) = (gone.map(record).collect(), other.map(record).collect());
    let touched: Vec<&str> = removed
        .iter()
        .chain(&replaced)
        .map(|p| p.name.as_str())
        .filter(|name| !free.contains(*name))
        .collect();
    if touched.is_empty() {
        return Ok((removed, replaced));
    }
    Err(touches_base(&touched))
}

fn touches_base(names: &[&str]) -> Error {
    unsolved(format!("the packages of the base would have to change: {}", names.join(", ")))
        .detail("packages", names.join(" "))
        .hint("take a base image that fits, or name them in override-replace or override-remove")
}

/// The packages, with their digests and where they are.
///
/// `--print-uris` has lines of `'URI' FILE SIZE SHA256:DIGEST`, without names: the file's name has them.
fn packages(changes: &Changes, uris: &str) -> Result<Vec<LockedPackage>> {
    let mut left = changes.install.clone();
    let mut found = Vec::new();
    for line in uris.lines() {
        let Some((uri, rest)) = line.strip_prefix('\'').and_then(|l| l.split_once("' ")) else { continue };
        let bad =
            || unsolved(format!("apt says of a package what osctl does not understand: {}", one_line(line)));
        let words: Vec<&str> = rest.split_whitespace().collect();
        let [file, size, digest] = words[..] else { return Err(bad()) };
        let (digest, size) =
            (digest.strip_prefix("SHA256:").ok_or_else(bad)?, size.parse().map_err(|_| bad())?);
        let digest =
            format!("sha256:{}", digest.to_ascii_lowercase()).parse::<Digest>().map_err(|_| bad())?;
        let parts: Vec<&str> = file.strip_suffix(".deb").ok_or_else(bad)?.split('_').collect();
        let [name, version, arch] = parts[..] else { return Err(bad()) };
        if file.contains('/') {
            return Err(bad());
        }
        let key = (name.to_owned(), arch.to_owned());
        let Some((_, expected)) = left.remove(&key) else { return Err(bad()) };
        if version.replace("%3a", ":") != expected {
            return Err(bad());
        }
        let package = LockedPackage {
            name: key.0,
            version: expected,
            architecture: key.1,
            digest,
            size,
            source: without_login(uri),
        };
        found.push(package);
    }
    match left.keys().next() {
        None => Ok(found),
        Some((name, _)) => Err(unsolved(format!("apt does not say where {name} is"))
            .hint("a repository on the host's disk cannot be used: serve it by http")),
    }
}

fn without_login(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => uri.to_owned(),
    }
}

/// Whether exactly what is locked was done.
fn exactly(before: &Installed, after: &Installed, lock: &Lock) -> Result<()> {
    let mut expected = before.clone();
    expected.retain(|(name, _), _| !lock.removed.iter().any(|p| p.name == *name));
    for package in &lock.packages {
        let key = (package.name.clone(), package.architecture.clone());
        expected.insert(key, package.version.clone());
    }
    if expected == *after {
        return Ok(());
    }
    let differs = expected.iter().filter(|(k, v)| after.get(*k) != Some(v)).map(|(k, _)| k);
    let more = after.keys().filter(|k| !expected.contains_key(*k));
    let names: Vec<String> = differs.chain(more).map(|(name, _)| name.clone()).collect();
    let what =
        format!("installing made something else than was locked: {}; nothing was staged", names.join(", "));
    Err(Error::new(ErrorKind::LockMismatch, what)
        .detail("packages", names.join(" "))
        .hint("solve anew with: osctl reconcile --update-lock"))
}

fn unsolved(why: String) -> Error {
    let why = crate::model::text::without_logins(&why);
    Error::new(ErrorKind::DepsolveFailed, format!("{why}; nothing was staged"))
}

/// What apt says about requests that cannot be met.
fn unsolvable(stdout: &str, stderr: &str) -> Error {
    let missing: Vec<&str> = stderr
        .lines()
        .filter_map(|l| {
            l.strip_prefix("E: Unable to locate package ").or_else(|| {
                let rest = l.strip_prefix("E: Package '")?;
                rest.strip_suffix("' has no installation candidate")
            })
        })
        .collect();
    if !missing.is_empty() {
        return unsolved(format!("no repository has {}", missing.join(", ")))
            .detail("packages", missing.join(" "))
            .hint("look at the spelling, and at the repositories of the image and of the drop-ins");
    }
    let version = stderr.lines().find_map(|l| l.strip_prefix("E: Version "));
    if let Some(version) = version {
        return unsolved(format!("no repository has the version {}", one_line(version)));
    }
    let block = |start: &str| -> Vec<String> {
        let lines = stdout.lines().skip_while(|l| !l.starts_with(start)).skip(1);
        let lines = lines.take_while(|l| l.starts_with(' '));
        lines.map(|l| one_line(&l.split_whitespace().collect::<Vec<_>>().join(" "))).collect()
    };
    let held = block("The following held packages will be changed");
    if !held.is_empty() {
        return touches_base(&held.join(" ").split(' ').collect::<Vec<_>>());
    }
    let problems = block("The following packages have unmet dependencies");
    if problems.is_empty() {
        return unsolved(format!("apt finds no solution: {}", one_line(&tail(stderr, SHOWN))));
    }
    unsolved(format!("the requests do not fit the base: {}", problems.join("; ")))
        .detail("problems", problems.join("\n"))
        .hint("take a base image that fits, or name the packages in override-replace or override-remove")
}

fn unavailable(stderr: &str) -> Error {
    let errors: Vec<&str> = stderr.lines().filter(|l| l.starts_with("E: ")).collect();
    let why = if errors.is_empty() { tail(stderr, SHOWN) } else { errors.join("; ") };
    let why = crate::model::text::without_logins(&one_line(&why));
    Error::new(
        ErrorKind::RepoUnavailable,
        format!("the package repositories cannot be used: {why}; nothing was staged"),
    )
    .hint("it is tried again; `on-unavailable: skip` in the drop-in goes on without its packages")
}

fn scriptlet_failed(output: &str) -> Error {
    let package = output.lines().find_map(|l| {
        let rest = l.trim_start().strip_prefix("dpkg: error processing ")?;
        let rest = rest.strip_prefix("package ").or_else(|| rest.strip_prefix("archive "))?;
        rest.split_whitespace().next()
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n\
        Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
        Package: moby\nStatus: install ok installed\nArchitecture: all\nVersion: 1:2-3\n";

    fn base() -> Installed {
        installed(STATUS)
    }

    /// As apt 2.6.1 prints it.
    const SIMULATED: &str = "\
Reading package lists...
The following NEW packages will be installed:
  tree
Remv moby [1:2-3]
Inst libc6 [2.36-9] (2.36-10 Debian:12.15/oldstable [amd64])
Inst tree (2.1.0-1 Debian:12.15/oldstable, Debian-Security:12 [amd64]) []
Inst libx:i386 (1-1 Debian:12.15/oldstable [i386])
Conf tree (2.1.0-1 Debian:12.15/oldstable [amd64])
";

    #[test]
    fn only_what_is_installed_counts() {
        let names: Vec<String> = base().into_iter().map(|((n, a), v)| format!("{n} {a} {v}")).collect();
        assert_eq!(names, ["libc6 amd64 2.36-9", "moby all 1:2-3"]);
    }

    #[test]
    fn everything_is_held_but_what_requests_name() {
        let held = hold(STATUS, &BTreeSet::from(["moby".to_owned()]));
        assert!(held.contains("Package: libc6\nStatus: hold ok installed\n"), "{held}");
        assert!(held.contains("Package: moby\nStatus: install ok installed\n"), "{held}");
        assert!(held.contains("deinstall ok config-files"), "{held}");
    }

    #[test]
    fn a_simulation_is_read_line_by_line() {
        let changes = changes(SIMULATED);
        assert_eq!(changes.remove, BTreeMap::from([("moby".into(), "1:2-3".into())]));
        let install: Vec<String> = (changes.install.iter())
            .map(|((name, arch), (old, new))| {
                format!("{name} {arch} {} {new}", old.as_deref().unwrap_or("-"))
            })
            .collect();
        assert_eq!(install, ["libc6 amd64 2.36-9 2.36-10", "libx i386 - 1-1", "tree amd64 - 2.1.0-1"]);
    }

    #[test]
    fn the_base_changes_only_where_a_request_names_it() {
        let changes = changes(SIMULATED);
        let free = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let error = allowed(&changes, &base(), &free(&["moby"])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::DepsolveFailed);
        assert_eq!(
            error.to_string(),
            "the packages of the base would have to change: libc6; nothing was staged"
        );
        let (removed, replaced) = allowed(&changes, &base(), &free(&["moby", "libc6"])).unwrap();
        assert_eq!((removed[0].name.as_str(), removed[0].version.as_str()), ("moby", "1:2-3"));
        assert_eq!((replaced[0].name.as_str(), replaced[0].version.as_str()), ("libc6", "2.36-9"));
    }

    #[test]
    fn the_files_are_those_of_the_simulation_and_hide_no_login() {
        let changes = changes("Inst vim (2:9.0-2 X [amd64])\n");
        let digest = "ab".repeat(32);
        let line = |file: &str, hash: &str| format!("'http://u:p@r.example/pool/x.deb' {file} 12 {hash}\n");
        let good = line("vim_2%3a9.0-2_amd64.deb", &format!("SHA256:{digest}"));
        let found = packages(&changes, &good).unwrap();
        let package = &found[0];
        assert_eq!(package.describe(), "vim 2:9.0-2 (amd64)");
        assert_eq!((package.size, package.digest.hex()), (12, digest.as_str()));
        assert_eq!(package.source, "http://r.example/pool/x.deb");
        for bad in [
            line("vim_2%3a9.0-3_amd64.deb", &format!("SHA256:{digest}")),
            line("vim_2%3a9.0-2_amd64.deb", "MD5Sum:00"),
            line("../vim_2%3a9.0-2_amd64.deb", &format!("SHA256:{digest}")),
            format!("{good}{good}"),
            String::new(),
        ] {
            assert_eq!(packages(&changes, &bad).unwrap_err().kind, ErrorKind::DepsolveFailed, "{bad}");
        }
    }

    #[test]
    fn a_repository_is_a_source_with_its_key_beside_it() {
        let repo = |suites: &[&str], key: Option<Key>| Repo {
            owner: "a.yaml".into(),
            baseurl: vec!["https://r.example/debian".into()],
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
            components: Vec::new(),
            metalink: None,
            mirrorlist: None,
            key,
        };
        let inline = || Some(Key::Inline(Vec::new()));
        let (text, key) =
            source("v", &repo(&["bookworm"], inline()), Some(b"-----BEGIN PGP PUBLIC")).unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: https://r.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/osctl-v.asc\n"
        );
        assert_eq!(key.as_deref(), Some("/etc/apt/keyrings/osctl-v.asc"));
        let (text, key) = source("v", &repo(&[], None), None).unwrap();
        assert_eq!(text, "Types: deb\nURIs: https://r.example/debian\nSuites: ./\nTrusted: yes\n");
        assert_eq!(key, None);
        let mirrors = Repo { baseurl: Vec::new(), metalink: Some("https://m".into()), ..repo(&[], None) };
        assert_eq!(source("v", &mirrors, None).unwrap_err().kind, ErrorKind::InvalidDropIn);
    }

    #[test]
    fn what_apt_complains_about_is_said_with_its_names() {
        let unmet = "Some packages could not be installed.\n\
            The following packages have unmet dependencies:\n agent : Depends: libc6 (>= 3) but 2.36-9 is to be installed\n         Conflicts: moby\nE: x\n";
        for (stdout, stderr, expected) in [
            (
                "",
                "E: Unable to locate package nope\nE: Unable to locate package no\n",
                "no repository has nope, no",
            ),
            ("", "E: Package 'virtual' has no installation candidate\n", "no repository has virtual"),
            (
                "",
                "E: Version '9' for 'vim' was not found\n",
                "no repository has the version '9' for 'vim' was not found",
            ),
            (
                "The following held packages will be changed:\n  libc6 dbus\n  tar\n0 upgraded\n",
                "E: Held packages were changed and -y was used without --allow-change-held-packages.\n",
                "the packages of the base would have to change: libc6, dbus, tar",
            ),
            (
                unmet,
                "E: Unable to correct problems, you have held broken packages.\n",
                "the requests do not fit the base: agent : Depends: libc6 (>= 3) but 2.36-9 is to be installed; Conflicts: moby",
            ),
        ] {
            let error = unsolvable(stdout, stderr);
            assert_eq!(error.kind, ErrorKind::DepsolveFailed);
            assert_eq!(error.to_string(), format!("{expected}; nothing was staged"));
        }
        let error = unavailable("W: x\nE: Failed to fetch http://u:p@r/x  Could not connect\n");
        assert!(error.to_string().contains("E: Failed to fetch http://r/x  Could not connect"), "{error}");
    }

    #[test]
    fn a_failing_script_names_its_package_and_what_it_said() {
        let error = scriptlet_failed(
            "Setting up a (1) ...\nboom\ndpkg: error processing package a (--configure):\n x\n",
        );
        assert_eq!(error.kind, ErrorKind::ScriptletFailed);
        assert!(
            error
                .to_string()
                .starts_with("a cannot be installed; nothing was staged:\nSetting up a (1) ...\nboom")
        );
        assert_eq!(error.details["package"], "a");
    }

    #[test]
    fn something_else_than_the_lock_is_noticed() {
        let package = |name: &str, version: &str| LockedPackage {
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
            manager: Manager::Apt,
            packages: vec![package("tree", "2")],
            removed: vec![BasePackage { name: "moby".into(), version: "1:2-3".into() }],
            replaced: Vec::new(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        let mut after = base();
        after.remove(&("moby".into(), "all".into()));
        after.insert(("tree".into(), "amd64".into()), "2".into());
        exactly(&base(), &after, &lock).unwrap();
        after.insert(("more".into(), "amd64".into()), "1".into());
        after.insert(("libc6".into(), "amd64".into()), "3".into());
        let error = exactly(&base(), &after, &lock).unwrap_err();
        assert_eq!((error.kind, error.details["packages"].as_str()), (ErrorKind::LockMismatch, "libc6 more"));
    }
}
