//! rollback and pin: no new deployment is made.

use crate::engine::env;
use crate::engine::pipeline::Job;
use crate::model::job::{JobResult, Step};
use crate::model::status::Rejected;
use crate::model::{Error, ErrorKind, Result};
use crate::store::{publish, snapshot};

/// Makes the previous deployment the next boot's. Never touches `/etc/osctl`.
pub async fn rollback(job: &Job<'_>, reject: bool) -> Result<JobResult> {
    let target = job.before.rollback().ok_or_else(|| {
        Error::new(
            ErrorKind::WrongState,
            "there is no previous deployment to roll back to; nothing was changed",
        )
        .hint("see: osctl status")
    })?;
    let from = job.before.next().map(|e| e.deployment.clone());
    let journal = job.env.journal()?;
    let intent = env::intent(job.id, &target.deployment.checksum, target.deployment.digest.clone(), false);
    job.cx.step(Step::StageIntent, async { journal.begin(&intent) }).await?;
    let scope = job.cx.commit_scope()?;
    let id = target.deployment.id.clone();
    let discarded = job
        .cx
        .step(Step::StagePublish, job.store.run(job.cx, move |s, c| publish::make_default(s, &id, c)))
        .await?;
    let mut notes: Vec<String> =
        discarded.iter().map(|d| format!("discarded the staged deployment {d}")).collect();
    job.cx
        .step(Step::StageRecord, async {
            if let (true, Some(from)) = (reject, &from) {
                journal.reject(Rejected {
                    digest: from.digest.clone(),
                    input_digest: from.derivation.input_digest.clone(),
                    reason: format!("rolled back from {}", from.id),
                })?;
            }
            journal.forget_pending()?;
            journal.done(&intent)
        })
        .await?;
    drop(scope);
    notes.extend(pending(job).await?);
    Ok(JobResult {
        changed: true,
        summary: format!("Rolled back: the next boot takes {}", target.deployment.id),
        deployment: Some(target.deployment.id.clone()),
        digest: target.deployment.digest.clone(),
        discarded,
        notes,
    })
}

/// Keeps a deployment from being removed, or stops doing so.
pub async fn pin(job: &Job<'_>, id: String, pinned: bool) -> Result<JobResult> {
    let wanted = id.clone();
    let entry = job.before.entries.iter().find(|e| e.deployment.id == id);
    if entry.is_some_and(|e| e.deployment.pinned == pinned) {
        return Ok(JobResult {
            summary: "Nothing to do.".into(),
            deployment: Some(id),
            ..Default::default()
        });
    }
    job.store.run(job.cx, move |s, _| publish::set_pinned(s, &wanted, pinned)).await?;
    let summary = format!("{} {id}", if pinned { "Pinned" } else { "Unpinned" });
    Ok(JobResult { changed: true, summary, deployment: Some(id), ..Default::default() })
}

/// How the drop-ins that are in `/etc` now differ from what the next boot was derived from.
async fn pending(job: &Job<'_>) -> Result<Vec<String>> {
    let config = job.env.config_root()?;
    job.store
        .run(job.cx, move |s, _| {
            let after = snapshot::read(s)?;
            let lines = super::derive::pending(&s.repo(), &after, &config);
            Ok(lines.into_iter().map(|l| format!("not in the deployment you go back to: {l}")).collect())
        })
        .await
}
