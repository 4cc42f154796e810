//! derive.solve: the lock of a derivation.
//!
//! ```text
//! /etc/osctl/derive.lock fits ──────────────────────┐
//! reconcile, and the lock of what boots next fits ──┼─► Lock
//! otherwise solve ──► repositories cannot be used ──┤
//!                     the cache solves it ──────────┘
//! ```

use super::images::Images;
use super::packages::{Prepared, enter};
use crate::derive::compose;
use crate::derive::packages::cache::Cache;
use crate::derive::packages::detect::Target;
use crate::derive::packages::{self, Question, Room};
use crate::derive::read;
use crate::engine::pipeline::Job;
use crate::engine::stages::Pulled;
use crate::model::image::Digest;
use crate::model::lock::{self, Lock, LockedPackage};
use crate::model::manifest::Manifest;
use crate::model::packages::OnUnavailable;
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use std::collections::BTreeSet;
use tokio::sync::OnceCell;

/// A lock that counts before anything is solved.
pub(super) struct Chosen {
    /// `None` if everything is solved anew.
    pub lock: Option<Lock>,
    /// Whether somebody handed it in, who then wants that and nothing else.
    pub is_handed_in: bool,
    /// The digest of everything that is asked for.
    request: Digest,
}

/// The lock that fits what is asked, if there is one: what was handed in, or what boots next is made of.
///
/// `resolve` says that the latter does not count.
pub(super) fn choose(
    job: &Job<'_>,
    pulled: &Pulled,
    manifest: &Manifest,
    prepared: &Prepared,
    resolve: bool,
) -> Result<Chosen> {
    let request = Lock::request_digest(&manifest.packages, &manifest.layers);
    let manager = prepared.target.as_ref().map(|target| target.manager);
    let layers = manifest.layers.iter().map(|layer| &layer.image);
    let asked: BTreeSet<&String> = layers.chain(manifest.packages.extensions.keys()).collect();
    let misfit = |lock: &Lock| {
        if lock.manager != manager {
            let is_for = lock.manager.map_or("images only", |manager| manager.name());
            Some(format!("it is for {is_for}"))
        } else if lock.base_digest != pulled.base.digest {
            Some(format!("it is for the base {}", lock.base_digest))
        } else if lock.request_digest != request {
            Some("it is for other requests".to_owned())
        } else if !lock.images.keys().collect::<BTreeSet<_>>().eq(&asked) {
            Some("it does not have the images that are asked for".to_owned())
        } else {
            None
        }
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
    Ok(Chosen { is_handed_in: handed_in.is_some(), lock: handed_in.or(kept), request })
}

/// What solving works with.
pub(super) struct Solving<'s> {
    /// What is asked for.
    pub manifest: &'s Manifest,
    /// What was found out before.
    pub prepared: &'s Prepared,
    /// The images that it is made with.
    pub images: &'s Images,
    /// Where package files are kept.
    pub cache: &'s Cache,
    /// The commit of the base.
    pub base: &'s str,
    /// The commit of the base with its layers, once somebody wants it: see [`Solving::on`].
    pub composed: &'s OnceCell<String>,
}

impl Solving<'_> {
    /// The commit that packages are installed on. It is made when it is needed: most jobs find what they made before.
    pub async fn on(&self, job: &Job<'_>) -> Result<&str> {
        let compose = async || -> Result<String> {
            if self.images.layers.is_empty() {
                return Ok(self.base.to_owned());
            }
            let (base, layers) = (self.base.to_owned(), self.images.layers.clone());
            job.store.run(job.cx, move |s, c| compose::commit(&s.repo(), &base, &layers, Some(c))).await
        };
        Ok(self.composed.get_or_try_init(compose).await?)
    }
}

/// What the requests come to; with why repositories could not be used, if packages of before are the answer.
pub(super) async fn lock(
    job: &Job<'_>,
    pulled: &Pulled,
    chosen: &Chosen,
    solving: &Solving<'_>,
    room: &mut Option<Room>,
) -> Result<(Lock, Option<String>)> {
    let Solving { manifest, prepared, images, cache, .. } = *solving;
    let request = chosen.request.clone();
    let Some(target) = &prepared.target else {
        if let Some(lock) = &chosen.lock {
            return Ok((lock.clone(), None));
        }
        let lock = Lock {
            version: lock::VERSION,
            base_digest: pulled.base.digest.clone(),
            request_digest: request,
            manager: None,
            packages: Vec::new(),
            removed: Vec::new(),
            replaced: Vec::new(),
            images: images.digests.clone(),
            users: Default::default(),
            groups: Default::default(),
        };
        return Ok((lock, images.trouble.clone()));
    };
    keep_local(job, pulled, solving).await?;
    if let Some(lock) = &chosen.lock
        && cache.missing(&lock.packages).is_empty()
    {
        return Ok((lock.clone(), None));
    }
    let here = enter(job, solving, room).await?;
    let question = Question {
        packages: manifest.packages.clone(),
        keys: prepared.keys.clone(),
        target: target.clone(),
        base_digest: pulled.base.digest.clone(),
        request,
        images: images.digests.clone(),
        extensions: images.directories(here),
        proxies: proxies(job),
    };
    if let Some(lock) = &chosen.lock {
        match packages::fetch(job.cx, here, cache, question.clone(), lock.clone()).await {
            Ok(()) => return Ok((lock.clone(), None)),
            // Nobody has that version any more: what is asked for may still be had.
            Err(error) if error.kind == ErrorKind::RepoUnavailable && !chosen.is_handed_in => {
                job.cx.message(format!("solving anew: {}", error.reason()));
            }
            Err(error) => return Err(error),
        }
    }
    let error = match packages::solve(job.cx, here, cache, question.clone()).await {
        Err(error) if error.kind == ErrorKind::RepoUnavailable => error,
        outcome => return Ok((outcome?, images.trouble.clone())),
    };
    let lock = prepared.before.clone().filter(|lock| is_usable(lock, target, manifest, cache));
    let Some(lock) = lock else { return Err(error) };
    match packages::resolve_from(job.cx, here, cache, question, lock).await {
        Ok(lock) => Ok((lock, Some(error.reason()))),
        Err(other) => {
            job.cx.message(format!("the packages of before do not solve it either: {}", other.reason()));
            Err(error)
        }
    }
}

/// Whether what another base was derived with may be used again: all of it is here, and nobody forbids it.
fn is_usable(lock: &Lock, target: &Target, manifest: &Manifest, cache: &Cache) -> bool {
    manifest.with_policy(OnUnavailable::Fail).is_empty()
        && lock.manager == Some(target.manager)
        && cache.missing(&lock.packages).is_empty()
}

/// Brings the package files that lie beside drop-ins into the cache.
async fn keep_local(job: &Job<'_>, pulled: &Pulled, solving: &Solving<'_>) -> Result<()> {
    let local = solving.manifest.packages.local.iter();
    let files: Vec<LockedPackage> =
        local.map(|(request, file)| LockedPackage::of_file(request, file)).collect();
    let missing: Vec<LockedPackage> = solving.cache.missing(&files).into_iter().cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (source, cache) = (job.env.drop_ins()?, solving.cache.clone());
    let base = pulled.base.commit.clone();
    let keep = move |s: &ostree_ext::ostree::Sysroot, _: &_| {
        let tree = CommitTree::open(&s.repo(), &base)?;
        missing.iter().try_for_each(|file| cache.keep(file, read::package(&source, &tree, &file.name)?))
    };
    job.store.run(job.cx, keep).await
}

/// As this daemon was told (curl(1), apt.conf(5)).
fn proxies(job: &Job<'_>) -> Vec<(String, String)> {
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
        .iter()
        .filter_map(|name| Some(((*name).to_lowercase(), job.env.variable(name)?.to_owned())))
        .collect()
}
