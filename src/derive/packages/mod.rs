//! Packages: solved and installed by the target's own package manager, which never leaves its sandbox.
//!
//! ```text
//! base + requests ──► solve, fetch (network, no rights) ──► Lock + files in the cache
//! base + Lock + files ──► install (root, no network) ──► changed files ──► commit of the base with its packages
//! ```
//!
//! The second line alone is what makes the tree, so the same lock makes the same tree, with or without repositories.

mod apt;
mod base;
pub mod cache;
mod collect;
pub mod detect;
mod dnf;
mod etc;
pub mod extension;
mod kernel;
pub mod layer;
mod room;
mod var;

pub use room::Room;

use crate::engine::cx::Cx;
use crate::model::image::Digest;
use crate::model::layers::Digests;
use crate::model::lock::{Lock, LockedPackage, Manager};
use crate::model::packages::{Key, Packages, Repo};
use crate::model::{Error, ErrorKind, Result};
use crate::sys::sandbox::{Sandbox, Who};
use crate::sys::user;
use base::Known;
use detect::Target;
use room::Inside;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The layers of a [`Room`].
pub const SOLVE: &str = "solve";
/// The layer whose changes become a part of the tree.
pub const INSTALL: &str = "install";

const SOLVE_LIMIT: Duration = Duration::from_secs(300);
const FETCH_LIMIT: Duration = Duration::from_secs(3600);
/// Whatever scriptlets do, it ends. Initramfs and modules take minutes on slow machines.
const INSTALL_LIMIT: Duration = Duration::from_secs(1800);
/// Where the package files are while they are installed. Directly in a directory that is there: bwrap makes those on the
/// way for root only.
const FILES: &str = "/run/osctl-packages";

/// What osctl needs of a package manager. All of it works on the tree that it is inside of.
trait Backend: Sync {
    /// How the names of its package files end.
    fn ending(&self) -> &'static str;

    /// Whether a file is only there while packages are installed, or says when and in which order that was.
    fn is_transient(&self, path: &str, database: &str) -> bool;

    /// Finds out which packages are needed, and brings those into the cache that it does not have. `files` is an empty
    /// directory.
    fn solve(&self, inside: &Inside, cache: &cache::Cache, question: &Question, files: &Path)
    -> Result<Lock>;

    /// Brings what is locked into the cache.
    fn fetch(&self, inside: &Inside, cache: &cache::Cache, question: &Question, lock: &Lock) -> Result<()>;

    /// Solves with what a lock of before names and the cache has, without a network: on another base some of it may not
    /// be needed any more, and nothing else may be. `files` is an empty directory.
    fn resolve_from(
        &self,
        inside: &Inside,
        cache: &cache::Cache,
        question: &Question,
        lock: &Lock,
        files: &Path,
    ) -> Result<Lock>;

    /// Installs what is locked from the directory `files`, at a `time` in seconds since 1970.
    fn install(&self, inside: &Inside, target: &Target, lock: &Lock, files: &Path, time: u64) -> Result<()>;
}

fn backend(manager: Manager) -> &'static dyn Backend {
    match manager {
        Manager::Apt => &apt::Apt,
        Manager::Dnf => &dnf::Dnf,
    }
}

/// What solving needs beside the tree.
#[derive(Debug, Clone)]
pub struct Question {
    /// What is asked for.
    pub packages: Packages,
    /// Keys of repositories that are files, read already.
    pub keys: std::collections::BTreeMap<String, Vec<u8>>,
    /// The package manager and its database.
    pub target: Target,
    /// The manifest digest of the base.
    pub base_digest: Digest,
    /// The digest of everything that is asked for ([`Lock::request_digest`]).
    pub request: Digest,
    /// The digests of the images that it is made with, by their references.
    pub images: Digests,
    /// Directories that are repositories, beside [`Packages::repos`].
    pub extensions: Vec<extension::Directory>,
    /// Variables for proxies.
    pub proxies: Vec<(String, String)>,
}

/// Fails with `Unsupported` where this package manager cannot do what drop-ins ask for.
pub fn check(manager: Manager, packages: &Packages) -> Result<()> {
    if manager == Manager::Dnf {
        return Ok(());
    }
    let chosen = packages.enabled_repos.iter().next().map(|(id, by)| (id, by, "is to be enabled"));
    let from = packages.replace_from.iter().next();
    let from = from.map(|(name, id)| (id, &packages.replace[name], "is to replace packages"));
    let Some((id, owners, what)) = chosen.or(from) else { return Ok(()) };
    let owners = owners.iter().cloned().collect::<Vec<_>>().join(", ");
    let why =
        format!("{owners}: repository {id} {what}, and apt has no ids of repositories; nothing was staged");
    let hint = "declare the repository in repos: of a drop-in in /etc/osctl/derive.d, and a version in override-replace:";
    Err(Error::new(ErrorKind::Unsupported, why).detail("drop-in", owners).hint(hint))
}

/// Finds out which packages are needed, and fetches those that the cache does not have.
pub async fn solve(cx: &Cx, room: &Room, cache: &cache::Cache, question: Question) -> Result<Lock> {
    let (cache, files) = (cache.clone(), room.dir("local")?);
    let work =
        move |inside: &Inside| backend(question.target.manager).solve(inside, &cache, &question, &files);
    room.enter(cx, SOLVE, true, work).await
}

/// Fetches what is locked and not in the cache.
pub async fn fetch(cx: &Cx, room: &Room, cache: &cache::Cache, question: Question, lock: Lock) -> Result<()> {
    let cache = cache.clone();
    let work =
        move |inside: &Inside| backend(question.target.manager).fetch(inside, &cache, &question, &lock);
    room.enter(cx, SOLVE, true, work).await
}

/// Solves for another base with what a lock names and the cache has, without a network.
pub async fn resolve_from(
    cx: &Cx,
    room: &Room,
    cache: &cache::Cache,
    question: Question,
    lock: Lock,
) -> Result<Lock> {
    let (cache, files) = (cache.clone(), room.dir("kept")?);
    let work = move |inside: &Inside| {
        backend(question.target.manager).resolve_from(inside, &cache, &question, &lock, &files)
    };
    room.enter(cx, SOLVE, true, work).await
}

/// What installing made.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The changed files, and whose database is among them; `None` if no package was installed.
    pub changes: Option<(PathBuf, Target)>,
    /// The lock, with the users that were made.
    pub lock: Lock,
    /// Generated files: path and content.
    pub generated: Vec<(String, Vec<u8>)>,
    /// The version of the kernel, if packages changed something of it.
    pub kernel: Option<String>,
}

/// Installs exactly what is locked, without a network.
pub async fn install(
    cx: &Cx,
    room: &Room,
    cache: &cache::Cache,
    target: Target,
    lock: Lock,
    time: u64,
) -> Result<Installed> {
    let files = room.dir("packages")?;
    Known(lock.packages.clone()).provide(target.manager, cache, &files)?;
    let upper = room.upper(INSTALL);
    let work = move |inside: &Inside| {
        let before = var::prepare(inside, &target)?;
        etc::prepare(inside)?;
        let accounts = etc::Accounts::read(inside)?;
        let kernels = kernel::before(inside)?;
        backend(target.manager).install(inside, &target, &lock, &files, time)?;
        let kernel = kernel::finish(inside, &target, &upper, &kernels, time)?;
        let mut generated = Vec::new();
        if let Some(conf) = var::tmpfiles(inside, &before)? {
            generated.push((var::CONF.to_owned(), conf.into_bytes()));
        }
        let mut lock = lock;
        if let Some(conf) = accounts.made_by_packages(inside, &mut lock)? {
            generated.push((etc::CONF.to_owned(), conf.into_bytes()));
        }
        Ok(Installed { changes: Some((upper, target)), lock, generated, kernel })
    };
    room.enter(cx, INSTALL, false, work).await
}

/// The name that a package's file has while it is installed.
fn file_name(manager: Manager, package: &LockedPackage) -> String {
    // Only the architecture tells two packages of one name apart.
    let ending = backend(manager).ending();
    format!("{}_{}.{ending}", package.name.replace(':', "_"), package.architecture)
}

/// The key of a repository, if it has one.
fn key_of<'q>(repo: &'q Repo, question: &'q Question) -> Option<&'q [u8]> {
    match repo.key.as_ref()? {
        Key::Inline(bytes) => Some(bytes),
        Key::File(path) => question.keys.get(path).map(Vec::as_slice),
    }
}

/// Whoever solves and fetches.
fn fetching_user() -> Result<(u32, u32)> {
    user::fetcher().ok_or_else(|| Error::new(ErrorKind::NotAuthorized, "packages need a daemon that is root"))
}

/// The sandbox that has the network, which finds names as the host does.
fn fetcher(inside: &Inside, question: &Question) -> Result<Sandbox> {
    let (uid, gid) = fetching_user()?;
    let mut sandbox = inside.sandbox(Who::Fetcher { uid, gid })?;
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        // Links into /run are followed.
        if let Ok(real) = std::fs::canonicalize(file) {
            inside.put(&format!("usr{file}"), b"")?;
            sandbox = sandbox.show(real, file);
        }
    }
    for (name, value) in &question.proxies {
        sandbox = sandbox.variable(name, value);
    }
    for directory in &question.extensions {
        sandbox = sandbox.show(directory.real.clone(), directory.seen());
    }
    Ok(sandbox)
}

/// The repositories of a question, with how each is declared: those of drop-ins, and directories.
fn repositories(question: &Question) -> impl Iterator<Item = (String, Cow<'_, Repo>)> {
    let declared = question.packages.repos.iter().map(|(id, repo)| (id.clone(), Cow::Borrowed(repo)));
    let directories = question.extensions.iter();
    declared.chain(directories.map(|d| (d.id(), Cow::Owned(d.repository(question.target.manager)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_choose_a_repository_says_so() {
        let mut packages = Packages::default();
        packages.replace.insert("glibc".into(), ["origin.d/b.yaml".into()].into());
        check(Manager::Apt, &packages).unwrap();
        packages.replace_from.insert("glibc".into(), "updates".into());
        let message = |manager, packages: &Packages| {
            let error = check(manager, packages).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
            error.to_string()
        };
        assert_eq!(
            message(Manager::Apt, &packages),
            "origin.d/b.yaml: repository updates is to replace packages, and apt has no ids of repositories; nothing was staged"
        );
        check(Manager::Dnf, &packages).unwrap();
        packages.replace_from.clear();
        packages.enabled_repos.insert("fedora".into(), ["origin.d/a.yaml".into()].into());
        check(Manager::Dnf, &packages).unwrap();
        assert_eq!(
            message(Manager::Apt, &packages),
            "origin.d/a.yaml: repository fedora is to be enabled, and apt has no ids of repositories; nothing was staged"
        );
    }
}
