//! Packages: solved and installed by the target's own package manager, which never leaves its sandbox.
//!
//! ```text
//! base + requests ──► solve, fetch (network, no rights) ──► Lock + files in the cache
//! base + Lock + files ──► install (root, no network) ──► changed files ──► commit of the base with its packages
//! ```
//!
//! The second line alone is what makes the tree, so the same lock makes the same tree, with or without repositories.

mod apt;
pub mod cache;
mod collect;
pub mod detect;
mod etc;
pub mod layer;
mod room;
mod var;

pub use room::Room;

use crate::engine::cx::Cx;
use crate::model::image::Digest;
use crate::model::lock::{Lock, Manager};
use crate::model::packages::Packages;
use crate::model::{Error, ErrorKind, Result};
use detect::Target;
use std::path::PathBuf;

/// The layers of a [`Room`].
pub const SOLVE: &str = "solve";
/// The layer whose changes become a part of the tree.
pub const INSTALL: &str = "install";

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
    /// Variables for proxies.
    pub proxies: Vec<(String, String)>,
}

/// Finds out which packages are needed, and fetches those that the cache does not have.
pub async fn solve(cx: &Cx, room: &Room, cache: &cache::Cache, question: Question) -> Result<Lock> {
    let cache = cache.clone();
    let work = move |inside: &room::Inside| match question.target.manager {
        Manager::Apt => apt::solve(inside, &cache, &question),
        Manager::Dnf => Err(no_dnf()),
    };
    room.enter(cx, SOLVE, true, work).await
}

/// Fetches what is locked and not in the cache.
pub async fn fetch(cx: &Cx, room: &Room, cache: &cache::Cache, question: Question, lock: Lock) -> Result<()> {
    let cache = cache.clone();
    let work = move |inside: &room::Inside| match question.target.manager {
        Manager::Apt => apt::fetch(inside, &cache, &question, &lock),
        Manager::Dnf => Err(no_dnf()),
    };
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
    let work = move |inside: &room::Inside| match question.target.manager {
        Manager::Apt => apt::resolve_from(inside, &cache, &question, &lock, &files),
        Manager::Dnf => Err(no_dnf()),
    };
    room.enter(cx, SOLVE, true, work).await
}

/// What installing made.
#[derive(Debug, Clone)]
pub struct Installed {
    /// The changed files.
    pub upper: PathBuf,
    /// The lock, with the users that were made.
    pub lock: Lock,
    /// Generated files: path and content.
    pub generated: Vec<(String, Vec<u8>)>,
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
    for package in &lock.packages {
        cache.copy(package, &files.join(file_name(&lock, package)))?;
    }
    let upper = room.upper(INSTALL);
    let work = move |inside: &room::Inside| {
        let before = var::prepare(inside, &target)?;
        let accounts = etc::Accounts::read(inside)?;
        match target.manager {
            Manager::Apt => apt::install(inside, &target, &lock, &files, time)?,
            Manager::Dnf => return Err(no_dnf()),
        }
        let mut generated = Vec::new();
        if let Some(conf) = var::tmpfiles(inside, &before)? {
            generated.push((var::CONF.to_owned(), conf.into_bytes()));
        }
        let mut lock = lock;
        if let Some(conf) = accounts.made_by_packages(inside, &mut lock)? {
            generated.push((etc::CONF.to_owned(), conf.into_bytes()));
        }
        Ok(Installed { upper, lock, generated })
    };
    room.enter(cx, INSTALL, false, work).await
}

/// The name that a package's file has while it is installed.
fn file_name(lock: &Lock, package: &crate::model::lock::LockedPackage) -> String {
    let ending = match lock.manager {
        Manager::Apt => "deb",
        Manager::Dnf => "rpm",
    };
    // Only the architecture tells two packages of one name apart.
    format!("{}_{}.{ending}", package.name.replace(':', "_"), package.architecture)
}

fn no_dnf() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "packages of dnf are not supported by this version; nothing was staged",
    )
    .hint("build an image with the packages, and `osctl rebase` to it")
}
