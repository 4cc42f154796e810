//! bind and verify: the app images that the new tree needs, by digest, into the store.

use crate::bound;
use crate::engine::pipeline::Job;
use crate::engine::stages::{CompleteSet, Derived};
use crate::engine::steps::resolve::fetch_options;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::plan;
use crate::model::request::Request;
use crate::model::{Error, Result};
use crate::pull::{FetchOptions, Patience};
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
    /// No image at all.
    pub fn nothing(derived: &Derived) -> Wanted {
        Wanted { images: Vec::new(), commit: derived.commit.clone() }
    }

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
/// What was planned keeps its digest, and reconciling keeps those that the next deployment has; the registries are asked
/// for the others.
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
    // A tag that moved since it was planned is taken as it was planned.
    let mut known = derived.pulled.bound.clone();
    known.extend(if job.keeps_digests { recorded(job)?.images } else { Vec::new() });
    let find = |spec: &BoundSpec| known.iter().find(|i| i.spec == *spec);
    let (kept, new): (Vec<BoundSpec>, Vec<BoundSpec>) = specs.into_iter().partition(|s| find(s).is_some());
    let skopeo = job.env.skopeo()?;
    let patience = fetch_options(job.env, &job.options)?.patience;
    let resolved = bound::resolve(job.cx, &new, &skopeo, patience);
    let fresh = job.cx.step(Step::BindResolve, resolved).await?;
    warn(job, &fresh.warnings);
    limit(job, derived.pulled.download, &fresh.images).await?;
    let kept = kept.iter().filter_map(find).cloned();
    let set = BoundSet::new(kept.chain(fresh.images).collect())?;
    Ok(Wanted { images: set.images, commit: derived.commit.clone() })
}

/// Refuses what the plan could not know: images that only the new tree binds, beyond what the caller wants.
async fn limit(job: &Job<'_>, planned: u64, new: &[BoundImage]) -> Result<()> {
    let Some(limit) = job.options.max_bytes.filter(|_| !new.is_empty()) else { return Ok(()) };
    let specs: Vec<BoundSpec> = new.iter().map(|i| i.spec.clone()).collect();
    let (keep, skopeo) = (BoundSet { images: new.to_vec() }, job.env.skopeo()?);
    let store = bound::Store::existing(&job.env.layout.sysroot, job.env.skopeo()?)?;
    let mut need = planned;
    for (_, found) in
        bound::estimate(job.cx, &specs, &keep, &skopeo, Patience::default(), store.as_ref()).await?
    {
        need = need.saturating_add(found?.part.download);
    }
    if need > limit { Err(plan::too_much(need, limit, "staged")) } else { Ok(()) }
}

/// Pulls what is missing, checks that everything is there, and records the set.
pub async fn pull(job: &Job<'_>, wanted: Wanted) -> Result<CompleteSet> {
    let (set, key) = (wanted.set()?, wanted.key()?);
    let store = job.env.bound_store()?;
    let opts = fetch_options(job.env, &job.options)?;
    let opts = FetchOptions { spool: Some(job.env.layout.bound_spool()), ..opts };
    let warnings = job.cx.step(Step::BindPull, bound::pull_all(job.cx, &store, &set, &opts)).await?;
    warn(job, &warnings);
    let journal = job.env.journal()?;
    job.cx.step(Step::BindRecord, async { bound::record(journal.dir(), &key, &set) }).await?;
    let nothing = BoundSet::default();
    job.cx.step(Step::BindPublish, async { store.publish(&key, &set, &nothing) }).await?;
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
    matches!(request, Request::Reconcile(_) | Request::EditDerivation { .. })
}
