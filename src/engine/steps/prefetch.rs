//! Bound images of mode `prefetch` that could not be had: noted, and tried again later.

use super::bind;
use crate::bound;
use crate::engine::pipeline::Job;
use crate::engine::steps::resolve::fetch_options;
use crate::engine::unavailable::now;
use crate::model::bound::{BoundSet, BoundSpec, Mode};
use crate::model::job::{JobResult, Step};
use crate::model::request::Goal;
use crate::model::unavailable::{Instead, Unavailable};
use crate::model::{Error, Result};

/// Notes how many images are missing, and why the first of them is.
pub fn note(job: &Job<'_>, missing: usize, first: Option<&Error>) -> Result<()> {
    let journal = job.env.journal()?;
    let before = journal.prefetch()?;
    if missing == 0 {
        return if before.is_some() { journal.forget_prefetch() } else { Ok(()) };
    }
    let why = first.map_or_else(|| "the registry has no digest for it".to_owned(), Error::chain);
    let state = Unavailable::again(before.as_ref(), now(), Goal::Reconcile, why, Instead::Nothing);
    tracing::warn!(
        attempts = state.attempts,
        next = state.next,
        why = state.why,
        "images are not prefetched"
    );
    journal.note_prefetch(&state)
}

/// Of what could not be resolved when a set was staged, what still is not in it.
pub fn unresolved(set: &BoundSet, later: &[BoundSpec]) -> Vec<BoundSpec> {
    later.iter().filter(|spec| !set.images.iter().any(|image| image.spec.same_image(spec))).cloned().collect()
}

/// Whether it is time to try again.
pub fn due(job: &Job<'_>) -> Result<bool> {
    Ok(job.env.journal()?.prefetch()?.is_some_and(|state| state.is_due(now())))
}

/// Tries to bring what the deployments miss. Stages nothing and removes nothing.
pub async fn fill(job: &Job<'_>) -> Result<JobResult> {
    let (skopeo, store, journal) = (job.env.skopeo()?, job.env.bound_store()?, job.env.journal()?);
    let patience = fetch_options(job.env, &job.options)?.patience;
    let (mut came, mut missing) = (Vec::new(), Vec::new());
    for key in job.before.entries.iter().filter_map(|entry| entry.origin.bound_set.as_deref()) {
        let Some((set, later)) = bound::recorded_whole(journal.dir(), key)? else { continue };
        let mut absent = Vec::new();
        for image in set.images.iter().filter(|image| image.spec.mode == Mode::Prefetch) {
            if !store.has(image)? {
                absent.push(image.spec.reference.name.clone());
            }
        }
        let wanted = unresolved(&set, &later);
        if absent.is_empty() && wanted.is_empty() {
            continue;
        }
        let resolved = bound::resolve(job.cx, &wanted, &skopeo, patience);
        let fresh = job.cx.step(Step::BindResolve, resolved).await?;
        absent.extend(fresh.images.iter().map(|image| image.spec.reference.name.clone()));
        let set = BoundSet::new(set.images.into_iter().chain(fresh.images).collect())?;
        let mut why: Vec<Error> = fresh.later.into_iter().map(|(_, why)| why).collect();
        // What else a deployment misses is not for this to bring, and no reason to leave the others without theirs.
        let own = set.images.iter().filter(|image| image.spec.mode == Mode::Prefetch).cloned();
        why.extend(bind::bring(job, &store, &BoundSet { images: own.collect() }).await?);
        bind::keep(job, &store, key, &set, &later).await?;
        absent.retain(|name| !why.iter().any(|why| why.details.get("image") == Some(name)));
        came.extend(absent);
        missing.extend(why);
    }
    bind::warn(job, &missing);
    if missing.is_empty() {
        crate::pull::forget_spool(&job.env.layout.bound_spool())?;
    }
    note(job, missing.len(), missing.first())?;
    came.sort();
    came.dedup();
    let summary = match (came.len(), missing.len()) {
        (0, 0) => "No image is missing.".to_owned(),
        (0, _) => "No image that is missing can be had now.".to_owned(),
        (n, _) => format!(
            "{n} image{} that {} missing: {}",
            plural(n, "", "s"),
            plural(n, "was", "were"),
            came.join(", ")
        ),
    };
    Ok(JobResult { changed: !came.is_empty(), summary, ..JobResult::default() })
}

fn plural<'a>(n: usize, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}
