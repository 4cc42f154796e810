//! cleanup: what no deployment needs any more. A failure here never undoes what was staged.

use crate::bound;
use crate::engine::pipeline::Job;
use crate::engine::steps::stage::Staged;
use crate::model::job::{JobResult, Step};
use crate::model::{Error, Result};
use crate::store::prune;

/// Prunes the repository and the bound store, and finishes the job's result.
pub async fn cleanup(job: &Job<'_>, staged: Staged) -> Result<JobResult> {
    let mut result = staged.result;
    if let Err(error) = run(job).await {
        // The deployment stands; the next job cleans up again.
        tracing::warn!(job = job.id, error = error.chain(), "cleaning up");
        result
            .notes
            .push(format!("cleaning up failed and is tried again by the next job: {}", error.chain()));
    }
    Ok(result)
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
        sets.extend(bound::recorded(journal.dir(), key)?);
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
