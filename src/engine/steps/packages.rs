//! The base with its layers and its packages.
//!
//! ```text
//! derive.images ──► derive.solve ──► Lock ──► made before? ──► derive.install
//!        └──────────────┴──► cannot be had ──► skip: without those drop-ins, keep: try again later, fail: end
//! ```

use crate::derive::packages::cache::Cache;
use crate::derive::packages::detect::{self, Target};
use crate::derive::packages::layer::{self, Layer};
use crate::derive::packages::{self, Installed, Room};
use crate::engine::pipeline::Job;
use crate::engine::stages::Pulled;
use crate::engine::steps::images::{self, Images};
use crate::engine::steps::lock::{self, Chosen, Solving};
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
use tokio::sync::OnceCell;

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

/// What is known before anything is fetched.
pub(super) struct Prepared {
    /// The package manager and its database; `None` if nothing is asked of it.
    pub target: Option<Target>,
    /// Keys of repositories that are files.
    pub keys: BTreeMap<String, Vec<u8>>,
    /// The lock of what boots next.
    pub before: Option<Lock>,
    time: u64,
}

/// The base with the packages that drop-ins ask for.
pub async fn layer(job: &Job<'_>, pulled: &Pulled, manifest: Manifest, resolve: bool) -> Result<Layered> {
    let mut layered = Layered { layer: None, manifest, notes: Vec::new(), without: None };
    let cache = Cache::at(job.env.layout.packages());
    let mut room = None;
    let (prepared, images, composed, lock) = loop {
        if layered.manifest.packages.is_empty() && layered.manifest.layers.is_empty() {
            return Ok(layered);
        }
        let prepared = prepare(job, pulled, &layered.manifest).await?;
        let chosen = lock::choose(job, pulled, &layered.manifest, &prepared, resolve)?;
        let error = match solved(job, pulled, &layered.manifest, &prepared, &chosen, &cache, &mut room).await
        {
            Ok(Solved { images, composed, lock, trouble }) => {
                if let Some(why) = trouble {
                    let note = format!("packages are those of before, because of: {why}");
                    job.cx.message(note.clone());
                    layered.notes.push(note);
                    // What is left out says more.
                    layered.without.get_or_insert((Instead::Kept, why));
                }
                break (prepared, images, composed, lock);
            }
            Err(error) => error,
        };
        let skipped = match error.kind {
            ErrorKind::RepoUnavailable => left_out(job, &layered.manifest, &error)?,
            _ => BTreeSet::new(),
        };
        if skipped.is_empty() {
            return Err(error);
        }
        let names = skipped.iter().cloned().collect::<Vec<_>>().join(", ");
        let note = format!("left out, because its packages cannot be had: {names} ({})", error.reason());
        job.cx.message(note.clone());
        layered.notes.push(note);
        layered.without = Some((Instead::LeftOut, error.reason()));
        layered.manifest = layered.manifest.only(|owner| !skipped.contains(owner));
        // It has what the other drop-ins asked for, too.
        room = None;
    };
    let (base, digest) = (pulled.base.commit.clone(), lock.digest());
    layered.layer = job.store.run(job.cx, move |s, _| layer::find(&s.repo(), &base, &digest)).await?;
    if layered.layer.is_none() {
        let (manifest, cache) = (&layered.manifest, &cache);
        let solving = Solving {
            manifest,
            prepared: &prepared,
            images: &images,
            cache,
            base: &pulled.base.commit,
            composed: &composed,
        };
        let work = install(job, pulled, &solving, lock, room);
        layered.layer = Some(job.cx.step(Step::DeriveInstall, work).await?);
    }
    Ok(layered)
}

/// What the requests came to.
struct Solved {
    images: Images,
    /// The commit of the base with its layers, if it was needed.
    composed: OnceCell<String>,
    lock: Lock,
    /// Why something of before is used.
    trouble: Option<String>,
}

async fn solved(
    job: &Job<'_>,
    pulled: &Pulled,
    manifest: &Manifest,
    prepared: &Prepared,
    chosen: &Chosen,
    cache: &Cache,
    room: &mut Option<Room>,
) -> Result<Solved> {
    let complete = chosen.lock.as_ref().is_some_and(|lock| cache.missing(&lock.packages).is_empty());
    let manager = prepared.target.as_ref().filter(|_| !complete).map(|target| target.manager);
    let bring = images::bring(job, pulled, manifest, chosen, prepared.before.as_ref(), manager);
    let images = match manifest.layers.is_empty() && manifest.packages.extensions.is_empty() {
        true => Images::default(),
        false => job.cx.step(Step::DeriveImages, bring).await?,
    };
    let composed = OnceCell::new();
    let base = &pulled.base.commit;
    let solving = Solving { manifest, prepared, images: &images, cache, base, composed: &composed };
    let work = lock::lock(job, pulled, chosen, &solving, room);
    let (lock, trouble) = job.cx.step(Step::DeriveSolve, work).await?;
    Ok(Solved { images, composed, lock, trouble })
}

/// The drop-ins that may be left out: those that say so, and after the grace all that do not forbid it, if the host is
/// configured so.
///
/// Whose image it is that cannot be had is known; of packages nobody knows.
fn left_out(job: &Job<'_>, manifest: &Manifest, error: &Error) -> Result<BTreeSet<String>> {
    let mut names = manifest.with_policy(OnUnavailable::Skip);
    let config = job.env.config()?.derive;
    if config.degraded_policy == Some(DegradedPolicy::Skip)
        && let Some(state) = job.env.journal()?.unavailable()?
        && state.is_over(now(), config.grace.unwrap_or(GRACE))
    {
        names.extend(manifest.with_policy(OnUnavailable::Keep));
    }
    Ok(match error.details.get(images::MISSING_OF) {
        Some(owners) => {
            let owners: BTreeSet<String> = owners.lines().map(str::to_owned).collect();
            if owners.is_subset(&names) { owners } else { BTreeSet::new() }
        }
        None => names,
    })
}

/// The room that packages are solved and installed in.
pub(super) async fn enter<'r>(
    job: &Job<'_>,
    solving: &Solving<'_>,
    room: &'r mut Option<Room>,
) -> Result<&'r Room> {
    match room {
        Some(room) => Ok(room),
        None => Ok(room.insert(checked_out(job, solving).await?)),
    }
}

async fn install(
    job: &Job<'_>,
    pulled: &Pulled,
    solving: &Solving<'_>,
    lock: Lock,
    mut room: Option<Room>,
) -> Result<Layer> {
    let installed = match solving.prepared.target.clone() {
        None => Installed { changes: None, lock, generated: Vec::new(), kernel: None },
        Some(target) => {
            let here = enter(job, solving, &mut room).await?;
            packages::install(job.cx, here, solving.cache, target, lock, solving.prepared.time).await?
        }
    };
    let (base, on) = (pulled.base.commit.clone(), solving.on(job).await?.to_owned());
    let commit = move |s: &ostree::Sysroot, c: &ostree_ext::gio::Cancellable| {
        layer::commit(&s.repo(), &base, &on, &installed, Some(c))
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
            let target = match manifest.packages.is_empty() {
                true => None,
                false => Some(detect::target(&tree)?),
            };
            if let Some(target) = &target {
                packages::check(target.manager, &manifest.packages)?;
            }
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

async fn checked_out(job: &Job<'_>, solving: &Solving<'_>) -> Result<Room> {
    let room = Room::below(&job.env.layout.work())?;
    let on = solving.on(job).await?.to_owned();
    let (to, trees) = (room.base(), solving.images.trees(&room));
    let check_out = move |s: &ostree::Sysroot, c: &ostree_ext::gio::Cancellable| {
        let all = std::iter::once((on, to)).chain(trees);
        let repo = s.repo();
        all.into_iter().try_for_each(|(commit, to)| layer::check_out(&repo, &commit, &to, Some(c)))
    };
    job.store.run(job.cx, check_out).await?;
    Ok(room)
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
