//! derive.solve and derive.install: the base with its packages.
//!
//! ```text
//! /etc/osctl/derive.lock fits ──────────────────────┐
//! reconcile, and the lock of what boots next fits ──┼─► Lock ─► made before? ─► install
//! otherwise solve ──► repositories cannot be used ──┤
//!                     the cache solves it ──────────┘
//!                     skip: without those drop-ins, keep: try again later, fail: end
//! ```

use crate::derive::packages::cache::Cache;
use crate::derive::packages::detect::{self, Target};
use crate::derive::packages::layer::{self, Layer};
use crate::derive::packages::{self, Question, Room};
use crate::engine::pipeline::Job;
use crate::engine::stages::Pulled;
use crate::engine::unavailable::now;
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::lock::Lock;
use crate::model::manifest::{Manifest, Node};
use crate::model::packages::{Key, OnUnavailable};
use crate::model::unavailable::{DegradedPolicy, GRACE, Instead};
use crate::model::{Error, ErrorKind, Result};
use crate::store::prune;
use crate::store::tree::CommitTree;
use ostree_ext::ostree;
use std::collections::{BTreeMap, BTreeSet};

/// Keys are small.
const MAX_KEY: u64 = 1 << 20;

/// The base with its packages, and what of the drop-ins is in it.
#[derive(Debug)]
pub struct Layered {
    /// `None` if there are no packages.
    pub layer: Option<Layer>,
    /// The drop-ins, without those that are left out.
    pub manifest: Manifest,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Packages that could not be had: what is there instead, and why.
    pub without: Option<(Instead, String)>,
}

/// What a job solves with.
struct Prepared {
    target: Target,
    keys: BTreeMap<String, Vec<u8>>,
    /// The lock of what boots next.
    before: Option<Lock>,
    time: u64,
}

/// The base with the packages that drop-ins ask for.
pub async fn layer(job: &Job<'_>, pulled: &Pulled, manifest: Manifest, resolve: bool) -> Result<Layered> {
    let mut layered = Layered { layer: None, manifest, notes: Vec::new(), without: None };
    if layered.manifest.packages.is_empty() {
        return Ok(layered);
    }
    let prepared = prepare(job, pulled, &layered.manifest).await?;
    let cache = Cache::at(job.env.layout.packages());
    let mut room = None;
    let lock = loop {
        if layered.manifest.packages.is_empty() {
            return Ok(layered);
        }
        let work = locked(job, pulled, &layered, &prepared, &cache, resolve, &mut room);
        let error = match job.cx.step(Step::DeriveSolve, work).await {
            Ok((lock, trouble)) => {
                if let Some(why) = trouble {
                    let note = format!("packages are those of before, because of: {why}");
                    job.cx.message(note.clone());
                    layered.notes.push(note);
                    layered.without = Some((Instead::Kept, why));
                }
                break lock;
            }
            Err(error) => error,
        };
        let skipped = match error.kind {
            ErrorKind::RepoUnavailable => left_out(job, &layered.manifest)?,
            _ => BTreeSet::new(),
        };
        if skipped.is_empty() {
            return Err(error);
        }
        let names = skipped.iter().cloned().collect::<Vec<_>>().join(", ");
        let note = format!("left out, because its packages cannot be had: {names} ({})", error.chain());
        job.cx.message(note.clone());
        layered.notes.push(note);
        layered.without = Some((Instead::LeftOut, error.chain()));
        layered.manifest = layered.manifest.only(|owner| !skipped.contains(owner));
    };
    let (base, digest) = (pulled.base.commit.clone(), lock.digest());
    layered.layer = job.store.run(job.cx, move |s, _| layer::find(&s.repo(), &base, &digest)).await?;
    if layered.layer.is_none() {
        let work = install(job, pulled, &prepared, &cache, lock, room);
        layered.layer = Some(job.cx.step(Step::DeriveInstall, work).await?);
    }
    Ok(layered)
}

/// The drop-ins that may be left out: those that say so, and after the grace all that do not forbid it, if the host is
/// configured so.
fn left_out(job: &Job<'_>, manifest: &Manifest) -> Result<BTreeSet<String>> {
    let mut names = manifest.packages.with_policy(OnUnavailable::Skip);
    let config = job.env.config()?.derive;
    if config.degraded_policy == Some(DegradedPolicy::Skip)
        && let Some(state) = job.env.journal()?.unavailable()?
        && state.is_over(now(), config.grace.unwrap_or(GRACE))
    {
        names.extend(manifest.packages.with_policy(OnUnavailable::Keep));
    }
    Ok(names)
}

/// What the requests come to; with why repositories could not be used, if packages of before are the answer.
async fn locked(
    job: &Job<'_>,
    pulled: &Pulled,
    layered: &Layered,
    prepared: &Prepared,
    cache: &Cache,
    resolve: bool,
    room: &mut Option<Room>,
) -> Result<(Lock, Option<String>)> {
    let request = Lock::request_digest(&layered.manifest.packages);
    let misfit = |lock: &Lock| {
        if lock.manager != prepared.target.manager {
            Some(format!("it is for {}", lock.manager.name()))
        } else if lock.base_digest != pulled.base.digest {
            Some(format!("it is for the base {}", lock.base_digest))
        } else if lock.request_digest != request {
            Some("it is for other requests".to_owned())
        } else {
            None
        }
    };
    let question = Question {
        packages: layered.manifest.packages.clone(),
        keys: prepared.keys.clone(),
        target: prepared.target.clone(),
        base_digest: pulled.base.digest.clone(),
        proxies: proxies(job),
    };
    let (name, handed_in) = job.env.handed_in_lock()?;
    let why_not = handed_in.as_ref().and_then(misfit);
    if job.options.frozen && (handed_in.is_none() || why_not.is_some()) {
        let why = why_not.unwrap_or_else(|| "it does not exist".to_owned());
        return Err(Error::new(
            ErrorKind::LockMismatch,
            format!("{name} cannot be used: {why}; nothing was staged"),
        )
        .hint("make it on a host that has these drop-ins and this image: osctl lock export"));
    }
    if let Some(why) = &why_not {
        job.cx.message(format!("{name} does not count: {why}"));
    }
    let anew = resolve || job.options.update_lock;
    let kept = prepared.before.clone().filter(|lock| !anew && misfit(lock).is_none());
    let handed_in = handed_in.filter(|_| why_not.is_none() && !job.options.update_lock);
    let is_handed_in = handed_in.is_some();
    if let Some(lock) = handed_in.or(kept) {
        if cache.missing(&lock.packages).is_empty() {
            return Ok((lock, None));
        }
        let here = enter(job, pulled, room).await?;
        match packages::fetch(job.cx, here, cache, question.clone(), lock.clone()).await {
            Ok(()) => return Ok((lock, None)),
            // Nobody has that version any more: what is asked for may still be had.
            Err(error) if error.kind == ErrorKind::RepoUnavailable && !is_handed_in => {
                job.cx.message(format!("solving anew: {}", error.chain()));
            }
            Err(error) => return Err(error),
        }
    }
    let here = enter(job, pulled, room).await?;
    let error = match packages::solve(job.cx, here, cache, question.clone()).await {
        Err(error) if error.kind == ErrorKind::RepoUnavailable => error,
        outcome => return Ok((outcome?, None)),
    };
    let ending = layered.manifest.packages.with_policy(OnUnavailable::Fail);
    let usable =
        |lock: &Lock| lock.manager == prepared.target.manager && cache.missing(&lock.packages).is_empty();
    let Some(lock) = prepared.before.clone().filter(|lock| ending.is_empty() && usable(lock)) else {
        return Err(error);
    };
    match packages::resolve_from(job.cx, here, cache, question, lock).await {
        Ok(lock) => Ok((lock, Some(error.chain()))),
        Err(other) => {
            job.cx.message(format!("the packages of before do not solve it either: {}", other.chain()));
            Err(error)
        }
    }
}

async fn enter<'r>(job: &Job<'_>, pulled: &Pulled, room: &'r mut Option<Room>) -> Result<&'r Room> {
    match room {
        Some(room) => Ok(room),
        None => Ok(room.insert(checked_out(job, &pulled.base.commit).await?)),
    }
}

async fn install(
    job: &Job<'_>,
    pulled: &Pulled,
    prepared: &Prepared,
    cache: &Cache,
    lock: Lock,
    mut room: Option<Room>,
) -> Result<Layer> {
    let here = enter(job, pulled, &mut room).await?;
    let target = prepared.target.clone();
    let installed = packages::install(job.cx, here, cache, target.clone(), lock, prepared.time).await?;
    let base = pulled.base.commit.clone();
    let commit = move |s: &ostree::Sysroot, c: &ostree_ext::gio::Cancellable| {
        layer::commit(&s.repo(), &base, &target, &installed, Some(c))
    };
    let made = job.store.run(job.cx, commit).await;
    // What was installed is read until here.
    drop(room);
    made
}

async fn prepare(job: &Job<'_>, pulled: &Pulled, manifest: &Manifest) -> Result<Prepared> {
    let base = pulled.base.commit.clone();
    let next = job.before.next().map(|e| e.deployment.checksum.clone());
    let manifest = manifest.clone();
    let time = pulled.base.created;
    job.store
        .run(job.cx, move |s, _| {
            let repo = s.repo();
            let tree = CommitTree::open(&repo, &base)?;
            let target = detect::target(&tree)?;
            packages::check(target.manager, &manifest.packages)?;
            // One that cannot be read is solved anew.
            let before = next.and_then(|next| recorded(&repo, &next).ok().flatten());
            Ok(Prepared { target, keys: keys(&tree, &manifest)?, before, time })
        })
        .await
}

/// The keys that are files: of a drop-in, or of the base.
fn keys(tree: &CommitTree, manifest: &Manifest) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut keys = BTreeMap::new();
    for (id, repo) in &manifest.packages.repos {
        let Some(Key::File(path)) = &repo.key else { continue };
        let bytes = match manifest.nodes.get(path) {
            Some(Node::File(file)) => file.contents.bytes().map(<[u8]>::to_vec),
            _ => tree.read(path, MAX_KEY)?,
        };
        let missing = || {
            let (owner, where_) = (&repo.owner, "is neither in the image nor in a drop-in");
            let why = format!("{owner}: the key {path} of repository {id} {where_}");
            Error::new(ErrorKind::InvalidDropIn, why).detail("drop-in", owner).detail("path", path)
        };
        keys.insert(path.clone(), bytes.ok_or_else(missing)?);
    }
    Ok(keys)
}

async fn checked_out(job: &Job<'_>, base: &str) -> Result<Room> {
    let room = Room::below(&job.env.layout.work())?;
    let (to, base) = (room.base(), base.to_owned());
    job.store.run(job.cx, move |s, c| layer::check_out(&s.repo(), &base, &to, Some(c))).await?;
    Ok(room)
}

/// As this daemon was told (curl(1), apt.conf(5)).
fn proxies(job: &Job<'_>) -> Vec<(String, String)> {
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
        .iter()
        .filter_map(|name| Some(((*name).to_lowercase(), job.env.variable(name)?.to_owned())))
        .collect()
}

/// The digests of all packages that these commits were made of.
pub fn needed(repo: &ostree::Repo, commits: &[String]) -> Result<BTreeSet<Digest>> {
    let mut needed = BTreeSet::new();
    for commit in commits {
        if let Some(lock) = recorded(repo, commit)? {
            needed.extend(lock.packages.into_iter().map(|p| p.digest));
        }
    }
    Ok(needed)
}

/// The lock that a commit was made with.
pub fn recorded(repo: &ostree::Repo, commit: &str) -> Result<Option<Lock>> {
    if prune::lock_of(repo, commit)?.is_none() {
        return Ok(None);
    }
    layer::lock(repo, commit)
}
