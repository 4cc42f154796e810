//! preflight and stage: the last checks, and the one moment when others can see it.

use crate::derive::etc;
use crate::derive::take::{self, Take};
use crate::engine::env::{self, etc_dirs};
use crate::engine::journal::{Intent, Journal};
use crate::engine::pipeline::Job;
use crate::engine::stages::{Derived, Ready};
use crate::engine::steps::bind::{self, Wanted};
use crate::model::job::{JobResult, Step};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::publish::NewDeployment;
use crate::store::tree::CommitTree;
use crate::store::{publish, snapshot};
use ostree_ext::ostree;
use std::path::{Path, PathBuf};

/// What a deployment takes besides its hard links: its own `/etc` and metadata.
const ROOT_RESERVE: u64 = 32 << 20;
/// Boot entries and directories beside kernel and initramfs.
const BOOT_RESERVE: u64 = 1 << 20;

/// A published deployment.
#[derive(Debug)]
#[must_use]
pub struct Staged {
    /// What the job reports.
    pub result: JobResult,
}

/// "No changes in input.", if the next boot already has exactly this.
pub fn unchanged(job: &Job<'_>, derived: &Derived, wanted: &Wanted) -> Result<Option<JobResult>> {
    let Some(next) = job.before.next() else { return Ok(None) };
    let same = next.deployment.checksum == derived.commit
        && next.origin.image == derived.pulled.image
        && next.origin.bound_set == Some(wanted.key()?)
        && next.origin.kargs.as_deref() == Some(&derived.owned_kargs)
        && next.options == derived.kargs;
    Ok(same.then(|| JobResult {
        summary: "No changes in input.".into(),
        digest: Some(derived.pulled.base.digest.clone()),
        deployment: Some(next.deployment.id.clone()),
        ..Default::default()
    }))
}

/// What the `/etc` merge will do, and which local copies give way to declared files.
#[derive(Debug, Default)]
pub struct EtcChanges {
    plan: etc::EtcPlan,
    takes: Vec<Take>,
    root: Option<PathBuf>,
}

/// Space on `/` and `/boot`, and the `/etc` merge, before anything is visible.
pub async fn preflight(job: &Job<'_>, ready: &Ready) -> Result<EtcChanges> {
    let (layout, commit) = (job.env.layout.clone(), ready.commit().to_owned());
    job.cx
        .step(Step::PreflightSpace, job.store.run(job.cx, move |s, _| space(s, &layout.sysroot, &commit)))
        .await?;
    let root = job.before.merge().map(|m| job.env.deployment_root(m));
    let (commit, manifest) = (ready.commit().to_owned(), ready.manifest().clone());
    let work = job.store.run(job.cx, move |s, _| {
        let tree = CommitTree::open(&s.repo(), &commit)?;
        let Some(root) = root else {
            return Ok(EtcChanges { plan: etc::plan(None, &tree, &manifest)?, ..Default::default() });
        };
        let (live, defaults) = etc_dirs(&root)?;
        let plan = etc::plan(Some(etc::Previous { live: &live, defaults: &defaults }), &tree, &manifest)?;
        let takes = take::prepare(&live, plan.to_take().map(|p| p.path.as_str()))?;
        Ok(EtcChanges { plan, takes, root: Some(root) })
    });
    job.cx.step(Step::PreflightEtc, work).await
}

/// Publishes. From the intent to the record it cannot be cancelled.
pub async fn stage(job: &Job<'_>, ready: Ready, etc: EtcChanges) -> Result<Staged> {
    let journal = job.env.journal()?;
    let mut intent = env::intent(job.id, ready.commit(), Some(ready.base().digest.clone()), &job.before);
    intent.takes.clone_from(&etc.takes);
    intent.etc_root = etc.root.clone();
    let discarded: Vec<String> = job.before.staged().iter().map(|e| e.deployment.id.clone()).collect();
    let kept: Vec<String> = etc.plan.kept_local().map(|p| p.path.clone()).collect();
    let mut notes: Vec<String> = kept.iter().map(|p| format!("kept the local version of {p}")).collect();
    notes.extend(etc.takes.iter().map(|t| format!("took the declared version of /etc/{}", t.path)));
    match ready.bound_count() {
        0 => {}
        1 => notes.push("1 bound image is in the store".into()),
        n => notes.push(format!("{n} bound images are in the store")),
    }
    let scope = job.cx.commit_scope()?;
    let id = match publish(job, &journal, &intent, ready.deployment(kept)).await {
        Ok(id) => id,
        Err(error) => {
            settle(job, &journal, &intent).await?;
            return Err(error);
        }
    };
    if !job.before.booted {
        // Nothing runs from this sysroot: the tags follow at once. On a booted host they follow the boot.
        bind::show(job, ready.bound()).await?;
    }
    drop(scope);
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
        },
    })
}

async fn publish(job: &Job<'_>, journal: &Journal, intent: &Intent, new: NewDeployment) -> Result<String> {
    job.cx.step(Step::StageIntent, async { journal.begin(intent) }).await?;
    if let Some(root) = &intent.etc_root {
        let (live, defaults) = etc_dirs(root)?;
        take::take(&live, &defaults, &intent.takes)?;
    }
    let work = job.store.run(job.cx, move |s, c| publish::publish(s, &new, c));
    let id = job.cx.step(Step::StagePublish, work).await?;
    job.cx.step(Step::StageRecord, async { journal.done(intent) }).await?;
    Ok(id)
}

/// A publish that failed half-way may still have published: look, and keep the journal and `/etc` true to it.
pub(super) async fn settle(job: &Job<'_>, journal: &Journal, intent: &Intent) -> Result<()> {
    let expected = intent.clone();
    let there = job
        .store
        .run(job.cx, move |s, _| {
            s.load(ostree_ext::gio::Cancellable::NONE).doing("reading the deployments back")?;
            Ok(env::published(&snapshot::read(s)?, &expected))
        })
        .await?;
    env::settle(journal, intent, there)
}

/// What `--download-only` reports.
pub fn downloaded(ready: &Ready) -> JobResult {
    JobResult {
        changed: true,
        summary: "Downloaded; nothing was staged.".into(),
        digest: Some(ready.base().digest.clone()),
        ..Default::default()
    }
}

/// Refuses a deployment that cannot fit, with the numbers.
fn space(sysroot: &ostree::Sysroot, root: &Path, commit: &str) -> Result<()> {
    let free = crate::sys::fs::free_bytes(&root.join("ostree/repo"))?;
    if free < ROOT_RESERVE {
        return Err(no_space(ErrorKind::NoSpace, &root.display().to_string(), ROOT_RESERVE, free));
    }
    let tree = CommitTree::open(&sysroot.repo(), commit)?;
    let need = boot_size(&tree)? + BOOT_RESERVE;
    let boot = root.join("boot");
    let free = crate::sys::fs::free_bytes(&boot)?;
    if free < need && !snapshot::read(sysroot)?.entries.iter().any(|e| e.deployment.checksum == commit) {
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

/// The bytes of kernel, initramfs and device trees that go to `/boot`.
fn boot_size(tree: &CommitTree) -> Result<u64> {
    let mut sum = 0;
    for version in tree.list("/usr/lib/modules")? {
        for name in ["vmlinuz", "initramfs.img", "devicetree"] {
            if let Some(info) = tree.lookup(&format!("/usr/lib/modules/{version}/{name}"))? {
                sum += u64::try_from(info.size()).unwrap_or(0);
            }
        }
    }
    Ok(sum)
}
