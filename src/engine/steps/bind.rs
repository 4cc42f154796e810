//! bind and verify: the app images that the new tree needs, by digest, into the store.

use crate::bound;
use crate::engine::journal::Journal;
use crate::engine::pipeline::Job;
use crate::engine::stages::{CompleteSet, Derived};
use crate::engine::steps::prefetch;
use crate::engine::steps::resolve::fetch_options;
use crate::engine::steps::verify;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec, Mode, Policy};
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::plan;
use crate::model::request::Request;
use crate::model::{Error, ErrorKind, Result};
use crate::pull::{FetchOptions, Patience};
use crate::store::tree::CommitTree;

/// The images that a derived commit asks for, with their digests.
#[derive(Debug)]
pub struct Wanted {
    /// Sorted and free of contradictions.
    pub images: Vec<BoundImage>,
    /// Those of mode `prefetch` whose digest nobody can say now, or could say when the deployment that has them was staged.
    later: Vec<BoundSpec>,
    /// The name of the set's record.
    key: String,
}

impl Wanted {
    /// No image at all.
    pub fn nothing(derived: &Derived) -> Wanted {
        let key = key_of(&derived.commit, &BoundSet::default());
        Wanted { images: Vec::new(), later: Vec::new(), key }
    }

    /// The set, as it is recorded.
    pub fn set(&self) -> Result<BoundSet> {
        BoundSet::new(self.images.clone())
    }

    /// The name of the set's record.
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// The same commit may be deployed with different digests of one tag.
fn key_of(commit: &str, set: &BoundSet) -> String {
    Digest::of(format!("{commit} {}", set.digest()).as_bytes()).hex().to_owned()
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
    let (before, missed) = recorded(job)?;
    // A tag that moved since it was planned is taken as it was planned.
    let mut known = derived.pulled.bound.clone();
    let keeps = |image: &BoundImage| job.keeps_digests || image.spec.policy == Policy::Missing;
    known.extend(before.images.iter().filter(|image| keeps(image)).cloned());
    let find = |spec: &BoundSpec| {
        let found = known.iter().find(|i| i.spec.same_image(spec))?;
        Some(BoundImage { spec: spec.clone(), digest: found.digest.clone() })
    };
    let (kept, new): (Vec<BoundSpec>, Vec<BoundSpec>) = specs.into_iter().partition(|s| find(s).is_some());
    let skopeo = job.env.skopeo()?;
    let patience = fetch_options(job.env, &job.options)?.patience;
    let resolved = bound::resolve(job.cx, &new, &skopeo, patience);
    let fresh = job.cx.step(Step::BindResolve, resolved).await?;
    limit(job, derived.pulled.download, &fresh.images).await?;
    let (mut images, mut later) = (fresh.images, Vec::new());
    images.extend(kept.iter().filter_map(find));
    for (spec, why) in fresh.later {
        warn(job, &[why]);
        // Rather the one of before than none.
        match before.images.iter().find(|image| image.spec.same_image(&spec)) {
            Some(image) => images.push(BoundImage { spec, digest: image.digest.clone() }),
            None => later.push(spec),
        }
    }
    let set = BoundSet::new(images)?;
    // What could not be resolved when the next deployment was staged is no reason to stage another one.
    let is_missed = |image: &&BoundImage| missed.iter().any(|spec| spec.same_image(&image.spec));
    let without = set.images.iter().filter(|image| !is_missed(image)).cloned().collect();
    let as_before = key_of(&derived.commit, &BoundSet::new(without)?);
    let next = job.before.next().and_then(|next| next.origin.bound_set.as_ref());
    if next != Some(&as_before) {
        let key = key_of(&derived.commit, &set);
        return Ok(Wanted { images: set.images, later, key });
    }
    later
        .extend(missed.into_iter().filter(|spec| set.images.iter().any(|image| image.spec.same_image(spec))));
    Ok(Wanted { images: set.images, later, key: as_before })
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

/// How the blobs of bound images are fetched.
pub fn fetching(job: &Job<'_>) -> Result<FetchOptions> {
    let opts = fetch_options(job.env, &job.options)?;
    Ok(FetchOptions { spool: Some(job.env.layout.bound_spool()), ..opts })
}

/// Pulls what is missing, checks that everything is there, and records the set.
pub async fn pull(job: &Job<'_>, wanted: Wanted) -> Result<CompleteSet> {
    let set = wanted.set()?;
    let Wanted { later, key, .. } = wanted;
    let store = job.env.bound_store()?;
    verify::renew(job, &store, &set).await?;
    let warnings = bring(job, &store, &set).await?;
    keep(job, &store, &key, &set, &later).await?;
    warn(job, &warnings);
    job.cx
        .step(Step::VerifySet, async {
            bound::verify_present(job.cx, &store, &set).await?;
            whole(&store, &set)
        })
        .await?;
    let missing = prefetch::unresolved(&set, &later).len() + warnings.len();
    prefetch::note(job, missing, warnings.first())?;
    Ok(CompleteSet::verified(set, key))
}

/// Pulls what is missing of a set. Returns why images to prefetch are missing.
pub async fn bring(job: &Job<'_>, store: &bound::Store, set: &BoundSet) -> Result<Vec<Error>> {
    let opts = fetching(job)?;
    job.cx.step(Step::BindPull, bound::pull_all(job.cx, store, set, &opts)).await
}

/// Makes a set durable under its key, with what podman sees of it.
pub async fn keep(
    job: &Job<'_>,
    store: &bound::Store,
    key: &str,
    set: &BoundSet,
    later: &[BoundSpec],
) -> Result<()> {
    let journal = job.env.journal()?;
    job.cx.step(Step::BindRecord, async { bound::record(journal.dir(), key, set, later) }).await?;
    let kept = bound::Own::at(&job.env.layout.config_root).uses(store.graph_root())?;
    job.cx.step(Step::BindPublish, async { store.publish(key, set, &kept) }).await?;
    Ok(())
}

/// Refuses what the store takes for whole and is not, as far as that shows without reading everything.
fn whole(store: &bound::Store, set: &BoundSet) -> Result<()> {
    let mut checker = store.checker(bound::Depth::Presence)?;
    for image in set.images.iter().filter(|i| i.spec.mode == Mode::Bind) {
        let damage = checker.check(image, &mut |_| Ok(()))?;
        let Some(first) = damage.first() else { continue };
        let why = format!(
            "bound image {}, needed by {}, is damaged: {first}; the running system is unchanged, nothing was staged",
            image.spec.reference.name, image.spec.source
        );
        return Err(Error::new(ErrorKind::BoundImageFailed, why)
            .hint("try again; if that does not help, its registry cannot be reached")
            .detail("image", &image.spec.reference.name)
            .detail("source", &image.spec.source));
    }
    Ok(())
}

/// Images of mode `prefetch` never keep a deployment from being staged.
pub fn warn(job: &Job<'_>, warnings: &[Error]) {
    for warning in warnings {
        job.cx.message(format!("warning: {}", warning.chain()));
    }
}

fn recorded(job: &Job<'_>) -> Result<(BoundSet, Vec<BoundSpec>)> {
    let key = job.before.next().and_then(|e| e.origin.bound_set.clone());
    match key {
        Some(key) => record_of(&job.env.journal()?, &key),
        None => Ok(Default::default()),
    }
}

/// What was recorded under a key, with what could not be resolved. A record that cannot be read is none: it is written anew.
pub fn record_of(journal: &Journal, key: &str) -> Result<(BoundSet, Vec<BoundSpec>)> {
    match bound::recorded_whole(journal.dir(), key) {
        Err(error) if error.kind == ErrorKind::Corrupt => {
            tracing::warn!(error = error.chain(), "as if nothing had been bound");
            Ok(Default::default())
        }
        record => Ok(record?.unwrap_or_default()),
    }
}

/// Whether a request keeps the digests of bound tags that the next deployment has.
pub fn keeps_digests(request: &Request) -> bool {
    matches!(request, Request::Reconcile(_) | Request::EditDerivation { .. })
}
