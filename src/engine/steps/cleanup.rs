//! cleanup: what no deployment needs any more. A failure here never undoes what was staged.

use crate::bound;
use crate::engine::pipeline::Job;
use crate::model::job::{JobResult, Step};
use crate::model::{Error, ErrorKind, Result};
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
    let any = job.store.run(job.cx, |s, _| prune::has_leftovers(s)).await;
    if any? { cleanup(job, result).await } else { Ok(result) }
}

async fn run(job: &Job<'_>) -> Result<(), Error> {
    let pruned = job.cx.step(Step::CleanupPrune, job.store.run(job.cx, prune::prune)).await?;
    if pruned.freed > 0 {
        job.cx.message(format!("freed {} MiB of old deployments", pruned.freed >> 20));
    }
    let journal = job.env.journal()?;
    let keep: Vec<String> =
        pruned.snapshot.entries.iter().filter_map(|e| e.origin.bound_set.clone()).collect();
    let mut sets = Vec::new();
    for key in &keep {
        let set = bound::recorded(journal.dir(), key)?;
        // Unknown is not nothing: without its record a deployment may need any image of the store.
        sets.push(set.ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the record bound/{key} is missing; no bound image was removed"),
            )
        })?);
    }
    let store = job.env.bound_store()?;
    job.cx
        .step(Step::CleanupBound, async {
            bound::collect(job.cx, &store, &sets).await?;
            let keep: Vec<&str> = keep.iter().map(String::as_str).collect();
            bound::prune_records(journal.dir(), &keep)
        })
        .await?;
    Ok(())
}
