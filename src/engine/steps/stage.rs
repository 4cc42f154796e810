//! preflight and stage: the last checks, and the one moment when others can see it.

use crate::derive::etc;
use crate::derive::take::{self, Take};
use crate::engine::env;
use crate::engine::journal::{Intent, Journal, Key};
use crate::engine::pipeline::Job;
use crate::engine::settle::{self, etc_dirs};
use crate::engine::stages::{Derived, Ready};
use crate::engine::steps::bind::Wanted;
use crate::engine::steps::edit;
use crate::model::job::{JobResult, Step};
use crate::model::verification::Verification;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::publish::NewDeployment;
use crate::store::tree::CommitTree;
use crate::store::{boot, publish, snapshot};
use ostree_ext::{gio, ostree};
use std::path::{Path, PathBuf};

/// What a deployment takes besides its hard links: its own `/etc` and metadata.
pub(super) const ROOT_RESERVE: u64 = 32 << 20;
/// Boot entries and directories beside kernel and initramfs.
pub(super) const BOOT_RESERVE: u64 = 1 << 20;

/// A published deployment.
#[derive(Debug)]
#[must_use]
pub struct Staged {
    /// What the job reports.
    pub result: JobResult,
}

/// "No changes in input.", if the next boot already has exactly this.
pub fn unchanged(job: &Job<'_>, derived: &Derived, wanted: &Wanted) -> Result<Option<JobResult>> {
    // What another tool deployed is not ours, however much alike it is.
    let Some(next) = job.before.next().filter(|_| !job.adopts) else { return Ok(None) };
    let level = |v: &Option<Verification>| v.as_ref().map(|v| v.level).unwrap_or_default();
    let same = next.deployment.checksum == derived.commit
        // A signature that is asked for from now on is to be asked for ever after.
        && level(&next.origin.verification) == level(&derived.pulled.verification)
        && next.origin.image == derived.pulled.image
        && next.origin.bound_set.as_deref() == Some(wanted.key())
        && next.origin.kargs.as_deref() == Some(&derived.owned_kargs)
        && next.options == derived.kargs;
    Ok(same.then(|| JobResult {
        summary: "No changes in input.".into(),
        digest: Some(derived.pulled.base.digest.clone()),
        deployment: Some(next.deployment.id.clone()),
        notes: derived.notes.clone(),
        ..Default::default()
    }))
}

/// What the `/etc` merge will do, and which local copies give way to declared files.
#[derive(Debug, Default)]
pub struct EtcChanges {
    plan: etc::EtcPlan,
    takes: Vec<Take>,
    /// The deployment that is merged from: its id and its root.
    of: Option<(String, PathBuf)>,
}

/// Space on `/` and `/boot`, and the `/etc` merge, before anything is visible.
pub async fn preflight(job: &Job<'_>, ready: &Ready) -> Result<EtcChanges> {
    let (layout, commit) = (job.env.layout.clone(), ready.commit().to_owned());
    job.cx
        .step(Step::PreflightSpace, job.store.run(job.cx, move |s, _| space(s, &layout.sysroot, &commit)))
        .await?;
    let of = job.before.merge().map(|m| (m.deployment.id.clone(), job.env.deployment_root(m)));
    let (commit, manifest) = (ready.commit().to_owned(), ready.manifest().clone());
    let work = job.store.run(job.cx, move |s, _| {
        let tree = CommitTree::open(&s.repo(), &commit)?;
        let Some((id, root)) = of else {
            return Ok(EtcChanges { plan: etc::plan(None, &tree, &manifest)?, ..Default::default() });
        };
        let (live, defaults) = etc_dirs(&root)?;
        let plan = etc::plan(Some(etc::Previous { live: &live, defaults: &defaults }), &tree, &manifest)?;
        let takes = take::prepare(&live, plan.to_take().map(|p| p.path.as_str()))?;
        Ok(EtcChanges { plan, takes, of: Some((id, root)) })
    });
    job.cx.step(Step::PreflightEtc, work).await
}

/// Publishes. From the intent on it cannot be cancelled.
pub async fn stage(job: &Job<'_>, ready: Ready, etc: EtcChanges) -> Result<Staged> {
    if let Some(edited) = &job.edited {
        edit::still(&job.env.config_root()?, edited)?;
    }
    let journal = job.env.journal()?;
    let intent = intent(job, &journal, &ready, &etc)?;
    let discarded: Vec<String> = job.before.staged().iter().map(|e| e.deployment.id.clone()).collect();
    let mut notes: Vec<String> = job.edited.iter().flat_map(|edited| edited.notes.clone()).collect();
    notes.extend(self::notes(&ready, &etc));
    let kept: Vec<String> = etc.plan.kept_local().map(|p| p.path.clone()).collect();
    job.cx.commit()?;
    let root = etc.of.as_ref().map(|(_, root)| root.as_path());
    let published = publish(job, &journal, &intent, root, ready.deployment(kept)).await;
    let id = match end(job, &journal, &intent, published.err()).await? {
        (id, None) => id,
        (id, Some(error)) => {
            notes.push(format!("it is there, although not everything went well: {}", error.chain()));
            id
        }
    };
    let version = ready.base().version.clone().unwrap_or_else(|| ready.base().digest.to_string());
    let verb = if job.before.booted { "Staged" } else { "Deployed" };
    tracing::info!(job = job.id, deployment = id, "published");
    Ok(Staged {
        result: JobResult {
            changed: true,
            summary: format!("{verb} {version}; it boots next"),
            deployment: Some(id),
            digest: Some(ready.base().digest.clone()),
            discarded,
            notes,
            ..Default::default()
        },
    })
}

/// What is about to be published, with all that a crash must not lose.
fn intent(job: &Job<'_>, journal: &Journal, ready: &Ready, etc: &EtcChanges) -> Result<Intent> {
    let mut intent = env::intent(job.id, ready.commit(), Some(ready.base().digest.clone()), &job.before);
    intent.takes.clone_from(&etc.takes);
    intent.edited.clone_from(&job.edited);
    intent.etc_of = etc.of.as_ref().map(|(id, _)| id.clone());
    if job.options.allow_rejected {
        intent.accepts = Some(Key { digest: Some(ready.base().digest.clone()), input_digest: ready.input() });
    }
    // The staged deployment that this one replaces took files, too: they are still owed to the same `/etc`.
    if let Some(pending) = journal.pending()?.filter(|p| p.intent.etc_of == intent.etc_of) {
        intent.carried = pending.intent.all_takes();
    }
    Ok(intent)
}

fn notes(ready: &Ready, etc: &EtcChanges) -> Vec<String> {
    let mut notes: Vec<String> =
        etc.plan.kept_local().map(|p| format!("kept the local version of {}", p.path)).collect();
    notes.extend_from_slice(ready.notes());
    for take in &etc.takes {
        let saved = take.saved.as_ref().map(|s| format!(" (yours is /etc/{s})")).unwrap_or_default();
        notes.push(format!("took the declared version of /etc/{}{saved}", take.path));
    }
    match ready.bound().images.len() {
        0 => {}
        1 => notes.push("1 bound image is in the store".into()),
        n => notes.push(format!("{n} bound images are in the store")),
    }
    notes
}

async fn publish(
    job: &Job<'_>,
    journal: &Journal,
    intent: &Intent,
    etc: Option<&Path>,
    new: NewDeployment,
) -> Result<()> {
    job.cx.step(Step::StageIntent, async { journal.begin(intent) }).await?;
    if let Some(root) = etc.filter(|_| !intent.takes.is_empty()) {
        let (live, defaults) = etc_dirs(root)?;
        take::take(&live, &defaults, &intent.takes)?;
    }
    let work = job.store.run(job.cx, move |s, c| publish::publish(s, &new, c));
    job.cx.step(Step::StagePublish, work).await?;
    Ok(())
}

/// Ends the intent. A publish that failed half-way may still have published: look, and stay true to it.
///
/// Returns the id of the deployment, and the error where there was one all the same.
pub(super) async fn end(
    job: &Job<'_>,
    journal: &Journal,
    intent: &Intent,
    mut error: Option<Error>,
) -> Result<(String, Option<Error>)> {
    let ended = match job.cx.step(Step::StageRecord, record(job, journal, intent)).await {
        Ok(ended) => ended,
        Err(first) => {
            error.get_or_insert(first);
            // Once more; if that fails, too, the intent stays, and the next job or the next start settles it.
            record(job, journal, intent).await?
        }
    };
    match (ended, error) {
        (Some(id), error) => Ok((id, error)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::new(
            ErrorKind::Internal,
            "libostree published nothing; the running system is unchanged",
        )),
    }
}

async fn record(job: &Job<'_>, journal: &Journal, intent: &Intent) -> Result<Option<String>> {
    let read = |s: &ostree::Sysroot, _: &gio::Cancellable| {
        s.load(gio::Cancellable::NONE).doing("reading the deployments back")?;
        snapshot::read(s)
    };
    settle::end(job.env, journal, &job.store.run(job.cx, read).await?, intent)
}

/// What `--download-only` reports.
pub fn downloaded(ready: &Ready) -> JobResult {
    JobResult {
        changed: true,
        summary: "Downloaded; nothing was staged.".into(),
        digest: Some(ready.base().digest.clone()),
        notes: ready.notes().to_vec(),
        ..Default::default()
    }
}

/// Refuses a deployment that cannot fit, with the numbers.
fn space(sysroot: &ostree::Sysroot, root: &Path, commit: &str) -> Result<()> {
    let free = crate::sys::fs::free_bytes(&root.join("ostree/repo"))?;
    if free < ROOT_RESERVE {
        return Err(no_space(ErrorKind::NoSpace, &root.display().to_string(), ROOT_RESERVE, free));
    }
    let files = boot::needed(&sysroot.repo(), &snapshot::read(sysroot)?, commit)?;
    if files == 0 {
        return Ok(());
    }
    let need = files.saturating_add(BOOT_RESERVE);
    let boot = root.join("boot");
    let free = crate::sys::fs::free_bytes(&boot)?;
    if free < need {
        return Err(no_space(ErrorKind::BootNoSpace, &boot.display().to_string(), need, free));
    }
    Ok(())
}

fn no_space(kind: ErrorKind, fs: &str, need: u64, have: u64) -> Error {
    Error::new(kind, format!("{fs} has {have} bytes free and the deployment needs {need}; nothing was staged, the running system is unchanged"))
        .hint("drop a pinned deployment with: osctl unpin ID, or free space by hand")
        .detail("fs", fs)
        .detail("need", need)
        .detail("have", have)
}
