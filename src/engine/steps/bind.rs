//! bind and verify: the app images that the new tree needs, by digest, into the store.

use crate::bound;
use crate::engine::pipeline::Job;
use crate::engine::stages::{CompleteSet, Derived};
use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::request::Request;
use crate::model::{Error, Result};
use crate::store::tree::CommitTree;

/// The images that a derived commit asks for, with their digests.
#[derive(Debug)]
pub struct Wanted {
    /// Sorted and free of contradictions.
    pub images: Vec<BoundImage>,
    /// The commit that asks.
    pub commit: String,
}

impl Wanted {
    /// The set, as it is recorded.
    pub fn set(&self) -> Result<BoundSet> {
        BoundSet::new(self.images.clone())
    }

    /// The name of the set's record: the same commit may be deployed with different digests of one tag.
    pub fn key(&self) -> Result<String> {
        let both = format!("{} {}", self.commit, self.set()?.digest());
        Ok(Digest::of(both.as_bytes()).hex().to_owned())
    }
}

/// Finds what is asked for, and the digest of each.
///
/// Reconciling keeps the digests that the next deployment has; anything else asks the registries again.
pub async fn discover(job: &Job<'_>, derived: &Derived) -> Result<Wanted> {
    let (commit, config) = (derived.commit.clone(), job.env.config_root()?);
    let specs = job
        .cx
        .step(
            Step::BindDiscover,
            job.store
                .run(job.cx, move |s, _| bound::discover(&CommitTree::open(&s.repo(), &commit)?, &config)),
        )
        .await?;
    let recorded = if job.keeps_digests { recorded(job)? } else { BoundSet::default() };
    let (known, new): (Vec<BoundSpec>, Vec<BoundSpec>) =
        specs.into_iter().partition(|s| recorded.images.iter().any(|i| i.spec == *s));
    let skopeo = job.env.skopeo()?;
    let fresh = job.cx.step(Step::BindResolve, bound::resolve(job.cx, &new, &skopeo)).await?;
    warn(job, &fresh.warnings);
    let kept = recorded.images.into_iter().filter(|i| known.contains(&i.spec));
    let set = BoundSet::new(kept.chain(fresh.images).collect())?;
    Ok(Wanted { images: set.images, commit: derived.commit.clone() })
}

/// Pulls what is missing, checks that everything is there, and records the set.
pub async fn pull(job: &Job<'_>, wanted: Wanted) -> Result<CompleteSet> {
    let (set, key) = (wanted.set()?, wanted.key()?);
    let store = job.env.bound_store()?;
    let warnings = job.cx.step(Step::BindPull, bound::pull_all(job.cx, &store, &set)).await?;
    warn(job, &warnings);
    let journal = job.env.journal()?;
    job.cx.step(Step::BindRecord, async { bound::record(journal.dir(), &key, &set) }).await?;
    job.cx.step(Step::VerifySet, bound::verify_present(job.cx, &store, &set)).await?;
    Ok(CompleteSet::verified(set, key))
}

/// Images of mode `prefetch` never keep a deployment from being staged.
fn warn(job: &Job<'_>, warnings: &[Error]) {
    for warning in warnings {
        job.cx.message(format!("warning: {}", warning.chain()));
    }
}

fn recorded(job: &Job<'_>) -> Result<BoundSet> {
    let key = job.before.next().and_then(|e| e.origin.bound_set.clone());
    match key {
        Some(key) => Ok(bound::recorded(job.env.journal()?.dir(), &key)?.unwrap_or_default()),
        None => Ok(BoundSet::default()),
    }
}

/// Whether a request keeps the digests of bound tags that the next deployment has.
pub fn keeps_digests(request: &Request) -> bool {
    matches!(request, Request::Reconcile(_))
}
