//! rollback and pin: no new deployment is made.

use crate::engine::env;
use crate::engine::journal::{Intent, Journal, Key, Rollback};
use crate::engine::pipeline::Job;
use crate::engine::steps::{cleanup, stage};
use crate::model::job::{JobResult, Step};
use crate::model::status::{Deployment, Rejected};
use crate::model::{Error, ErrorKind, Result};
use crate::store::publish as store_publish;
use crate::store::snapshot;

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
    let rejected = |from: &Deployment| Rejected {
        digest: from.digest.clone(),
        input_digest: from.derivation.input_digest.clone(),
        reason: format!("rolled back from {}", from.id),
    };
    let intent = Intent {
        rollback: Some(Rollback {
            to: target.deployment.id.clone(),
            reject: from.as_ref().filter(|_| reject).map(rejected),
        }),
        // A person goes there on purpose.
        accepts: Some(Key {
            digest: target.deployment.digest.clone(),
            input_digest: target.deployment.derivation.input_digest.clone(),
        }),
        ..env::intent(job.id, &target.deployment.checksum, target.deployment.digest.clone(), &job.before)
    };
    job.cx.commit()?;
    let discarded: Vec<String> = job.before.staged().iter().map(|e| e.deployment.id.clone()).collect();
    let published = publish(job, &journal, &intent, target.deployment.id.clone()).await;
    let (_, error) = stage::end(job, &journal, &intent, published.err()).await?;
    let mut notes: Vec<String> = Vec::new();
    notes.extend(error.map(|e| format!("it is done, although not everything went well: {}", e.chain())));
    notes.extend(pending(job).await?);
    Ok(JobResult {
        changed: true,
        summary: format!("Rolled back: the next boot takes {}", target.deployment.id),
        deployment: Some(target.deployment.id.clone()),
        digest: target.deployment.digest.clone(),
        discarded,
        notes,
        ..Default::default()
    })
}

async fn publish(job: &Job<'_>, journal: &Journal, intent: &Intent, to: String) -> Result<()> {
    job.cx.step(Step::StageIntent, async { journal.begin(intent) }).await?;
    let work = job.store.run(job.cx, move |s, c| store_publish::make_default(s, &to, c));
    job.cx.step(Step::StagePublish, work).await
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
    job.store.run(job.cx, move |s, _| store_publish::set_pinned(s, &wanted, pinned)).await?;
    let summary = format!("{} {id}", if pinned { "Pinned" } else { "Unpinned" });
    let result = JobResult { changed: true, summary, deployment: Some(id), ..Default::default() };
    // Whoever unpins wants the space back.
    if pinned { Ok(result) } else { cleanup::cleanup(job, result).await }
}

/// How the drop-ins that are in `/etc` now differ from what the next boot was derived from.
async fn pending(job: &Job<'_>) -> Result<Vec<String>> {
    let config = job.env.config_root()?;
    job.store
        .run(job.cx, move |s, _| {
            let after = snapshot::read(s)?;
            let pending = super::derive::pending(&s.repo(), &after, &config, None);
            Ok(pending
                .lines
                .into_iter()
                .map(|l| format!("not in the deployment you go back to: {l}"))
                .collect())
        })
        .await
}
