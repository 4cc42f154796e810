//! cleanup: what no deployment needs any more. A failure here never undoes what was staged.

use crate::derive::packages::cache::Cache;
use crate::engine::pipeline::Job;
use crate::engine::steps::{fetch, packages};
use crate::model::job::{JobResult, Step};
use crate::model::{Error, Result};
use crate::store::prune;

/// Prunes the repository and the bound store, and finishes the job's result.
pub async fn cleanup(job: &Job<'_>, mut result: JobResult) -> Result<JobResult> {
    if let Err(error) = run(job).await {
        // What the job did stands; the next one cleans up again.
        tracing::warn!(job = job.id, error = error.chain(), "cleaning up");
        result
            .notes
            .push(format!("cleaning up failed and is tried again by the next job: {}", error.chain()));
    }
    Ok(result)
}

/// The same where nothing else was done, if earlier jobs left anything. Nothing to do costs no more than a look.
pub async fn leftovers(job: &Job<'_>, result: JobResult) -> Result<JobResult> {
    let any = job.store.run(job.cx, |s, _| prune::has_leftovers(s)).await?;
    let layout = &job.env.layout;
    let dirs = [layout.spool(), layout.bound_spool(), layout.work()];
    let filled = dirs.iter().any(|dir| std::fs::read_dir(dir).is_ok_and(|mut dir| dir.next().is_some()));
    if any || filled { cleanup(job, result).await } else { Ok(result) }
}

async fn run(job: &Job<'_>) -> Result<(), Error> {
    let pruned = job.cx.step(Step::CleanupPrune, job.store.run(job.cx, prune::prune)).await?;
    if pruned.freed > 0 {
        job.cx.message(format!("freed {} MiB of old deployments", pruned.freed >> 20));
    }
    // Of an image that is not wanted any more: the one of this job is in the repository.
    crate::pull::forget_spool(&job.env.layout.spool())?;
    crate::pull::forget_spool(&job.env.layout.bound_spool())?;
    crate::sys::scratch::tidy(&job.env.layout.work())?;
    let cache = Cache::at(job.env.layout.packages());
    let commits: Vec<String> =
        pruned.snapshot.entries.iter().map(|e| e.deployment.checksum.clone()).collect();
    let needed = job.store.run(job.cx, move |s, _| packages::needed(&s.repo(), &commits)).await;
    match needed {
        Ok(needed) => _ = cache.keep_only(&needed)?,
        // Rather too much than too little.
        Err(error) => tracing::warn!(error = error.chain(), "no package is removed"),
    }
    fetch::forget(job, &pruned.snapshot).await?;
    let journal = job.env.journal()?;
    if journal.pending()?.is_some() {
        // What the running system needs may still be needed if the staged one does not come up: after its boot.
        return Ok(());
    }
    job.cx.step(Step::CleanupBound, job.env.collect_bound(job.cx, &journal, &pruned.snapshot)).await
}
