//! derive.solve and derive.install: the base with its packages.

use crate::derive::packages::cache::Cache;
use crate::derive::packages::detect::{self, Target};
use crate::derive::packages::layer::{self, Layer};
use crate::derive::packages::{self, Question, Room};
use crate::engine::pipeline::Job;
use crate::engine::stages::Pulled;
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::lock::{self, Lock, MAX_LOCK};
use crate::model::manifest::{Manifest, Node};
use crate::model::packages::Key;
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use std::collections::BTreeMap;

/// Keys are small.
const MAX_KEY: u64 = 1 << 20;

/// What a job solves with.
struct Prepared {
    target: Target,
    keys: BTreeMap<String, Vec<u8>>,
    /// The lock of what boots next.
    before: Option<Lock>,
    time: u64,
}

/// The base with the packages that drop-ins ask for; `None` if they ask for none.
pub async fn layer(
    job: &Job<'_>,
    pulled: &Pulled,
    manifest: &Manifest,
    resolve: bool,
) -> Result<Option<Layer>> {
    if manifest.packages.is_empty() {
        return Ok(None);
    }
    let prepared = prepare(job, pulled, manifest).await?;
    let cache = Cache::at(job.env.layout.packages());
    let request = Lock::request_digest(&manifest.packages);
    let fits = |lock: &Lock| {
        lock.request_digest == request
            && lock.base_digest == pulled.base.digest
            && lock.manager == prepared.target.manager
    };
    let kept = prepared.before.as_ref().filter(|lock| !resolve && fits(lock)).cloned();
    let mut room = None;
    let lock = match kept {
        Some(lock) => lock,
        None => {
            let question = Question {
                packages: manifest.packages.clone(),
                keys: prepared.keys.clone(),
                target: prepared.target.clone(),
                base_digest: pulled.base.digest.clone(),
                proxies: proxies(job),
            };
            let work = async {
                let made = checked_out(job, &pulled.base.commit).await?;
                let lock = packages::solve(job.cx, &made, &cache, question).await?;
                Ok((made, lock))
            };
            let (made, lock) = job.cx.step(Step::DeriveSolve, work).await?;
            room = Some(made);
            lock
        }
    };
    let (base, digest) = (pulled.base.commit.clone(), lock.digest());
    let found = job.store.run(job.cx, move |s, _| layer::find(&s.repo(), &base, &digest)).await?;
    if let Some(found) = found {
        return Ok(Some(found));
    }
    let work = async {
        let room = match room {
            Some(room) => room,
            None => checked_out(job, &pulled.base.commit).await?,
        };
        let (target, time) = (prepared.target.clone(), prepared.time);
        let installed = packages::install(job.cx, &room, &cache, target.clone(), lock, time).await?;
        let base = pulled.base.commit.clone();
        let made = job
            .store
            .run(job.cx, move |s, c| layer::commit(&s.repo(), &base, &target, &installed, Some(c)))
            .await;
        drop(room);
        made
    };
    Ok(Some(job.cx.step(Step::DeriveInstall, work).await?))
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
            let before = match next {
                None => None,
                Some(next) => CommitTree::open(&repo, &next)?.read(lock::PATH, MAX_LOCK)?,
            };
            // One that cannot be read is solved anew.
            let before = before.and_then(|bytes| Lock::parse(lock::PATH, &bytes).ok());
            Ok(Prepared { target: detect::target(&tree)?, keys: keys(&tree, &manifest)?, before, time })
        })
        .await
}

/// The keys that are files: of a drop-in, or of the base.
fn keys(tree: &CommitTree, manifest: &Manifest) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut keys = BTreeMap::new();
    for (id, repo) in &manifest.packages.repos {
        let Some(Key::File(path)) = &repo.key else { continue };
        let bytes = match manifest.nodes.get(path) {
            Some(Node::File(file)) => Some(file.contents.clone()),
            _ => tree.read(path, MAX_KEY)?,
        };
        let missing = || {
            let why = format!(
                "{}: the key {path} of repository {id} is neither in the image nor in a drop-in",
                repo.owner
            );
            Error::new(ErrorKind::InvalidDropIn, why).detail("drop-in", &repo.owner).detail("path", path)
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

/// The digests of all packages that deployments were made of.
pub fn needed(trees: impl IntoIterator<Item = CommitTree>) -> Result<std::collections::BTreeSet<Digest>> {
    let mut needed = std::collections::BTreeSet::new();
    for tree in trees {
        if let Some(bytes) = tree.read(lock::PATH, MAX_LOCK)? {
            needed.extend(Lock::parse(lock::PATH, &bytes)?.packages.into_iter().map(|p| p.digest));
        }
    }
    Ok(needed)
}
