//! release: the base of a deployment of ours, as the origin of another tool has it.

use crate::bound;
use crate::engine::pipeline::Job;
use crate::engine::stages::{Derived, Pulled};
use crate::engine::steps::{permit, resolve};
use crate::model::bound::BoundSet;
use crate::model::handover::{self, Handover, Releasable, Tool};
use crate::model::job::JobResult;
use crate::model::kargs::Owned;
use crate::model::lock::{self, Lock, Manager};
use crate::model::manifest::Manifest;
use crate::model::{Error, ErrorKind, Result};
use crate::store::snapshot::Entry;
use crate::store::tree::CommitTree;

/// The timer that would take the host back.
const OUR_TIMER: &str = "osctl-upgrade.timer";

/// What is to be done.
#[derive(Debug)]
pub enum Release {
    /// Nothing more than to say this.
    Said(JobResult),
    /// To deploy this.
    Agreed(Box<Derived>, Box<Handover>),
}

/// What the image and the deployment say about the tools.
#[derive(Debug)]
struct Found {
    tools: Vec<Tool>,
    rpm: bool,
}

/// Says what handing back comes to, and refuses what cannot be, or would lose something that nobody agreed to lose.
pub async fn prepare(job: &Job<'_>, to: Option<Tool>) -> Result<Release> {
    permit::owned(&job.view())?;
    let Some(entry) = job.before.next() else { return Err(resolve::no_deployment()) };
    if !entry.origin.is_ours() {
        let why = format!("osctl does not manage {}; nothing was changed", entry.deployment.id);
        return Err(
            Error::new(ErrorKind::WrongState, why).hint("it is handed back already; see: osctl status")
        );
    }
    let found = found(job, entry).await?;
    let tool = to.map_or_else(|| only(&found.tools), Ok)?;
    let bound = bound(job, entry)?;
    let mut handover = handover::release(
        tool,
        &Releasable {
            image: entry.deployment.image.as_ref(),
            derivation: &entry.deployment.derivation,
            bound: &bound,
            rpm: found.rpm,
            has_tool: found.tools.contains(&tool),
        },
    );
    handover.notes.push(format!(
        "the drop-ins stay where they are, for nobody; an upgrade of osctl would take the host back: \
         systemctl disable --now {OUR_TIMER}"
    ));
    if job.options.dry_run {
        return Ok(Release::Said(JobResult {
            changed: true,
            summary: format!("The host can be handed back to {tool}; nothing was changed."),
            digest: entry.deployment.digest.clone(),
            handover: Some(Box::new(handover)),
            ..Default::default()
        }));
    }
    handover.agreed(job.options.lossy)?;
    let derived = without_ours(entry, &handover)?;
    Ok(Release::Agreed(Box::new(derived), Box::new(handover)))
}

/// The base of the deployment with nothing derived. All arguments stay as they are.
fn without_ours(entry: &Entry, handover: &Handover) -> Result<Derived> {
    let base = resolve::base_of(entry)?;
    Ok(Derived {
        commit: base.commit.clone(),
        pulled: Pulled {
            base,
            image: entry.deployment.image.clone(),
            stateroot: None,
            verification: entry.origin.verification.clone(),
            bound: Vec::new(),
            download: 0,
        },
        manifest: Manifest::default(),
        kargs: entry.options.clone(),
        owned_kargs: Owned::default().to_json(),
        notes: Vec::new(),
        without: None,
        released: Some(handover.origin.clone()),
    })
}

async fn found(job: &Job<'_>, entry: &Entry) -> Result<Found> {
    let (base, checksum) = (entry.deployment.base_checksum.clone(), entry.deployment.checksum.clone());
    let work = job.store.run(job.cx, move |s, _| {
        let repo = s.repo();
        let tree = CommitTree::open(&repo, &base)?;
        let mut tools = Vec::new();
        for tool in Tool::ALL {
            if tree.lookup(&format!("/usr/bin/{tool}"))?.is_some() {
                tools.push(*tool);
            }
        }
        let text = CommitTree::open(&repo, &checksum)?.read(lock::PATH, lock::MAX_LOCK)?;
        let lock = text.map(|text| Lock::parse(lock::PATH, &text)).transpose()?;
        // Without a lock the package manager was not asked.
        Ok(Found { tools, rpm: lock.is_none_or(|lock| lock.manager != Some(Manager::Apt)) })
    });
    work.await
}

fn only(tools: &[Tool]) -> Result<Tool> {
    match tools {
        [tool] => Ok(*tool),
        [] => Err(Error::new(
            ErrorKind::InvalidArgument,
            "the image has neither rpm-ostree nor bootc; nothing was changed",
        )
        .hint("say whom the host is for: --to rpm-ostree, or --to bootc")),
        [..] => Err(Error::new(
            ErrorKind::InvalidArgument,
            "the image has rpm-ostree and bootc; nothing was changed",
        )
        .hint("say whom the host is for: --to rpm-ostree, or --to bootc")),
    }
}

fn bound(job: &Job<'_>, entry: &Entry) -> Result<BoundSet> {
    let Some(key) = &entry.origin.bound_set else { return Ok(BoundSet::default()) };
    bound::recorded(job.env.journal()?.dir(), key)?.ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, format!("the record bound/{key} is missing; nothing was changed"))
            .hint("make it again with: osctl reconcile")
    })
}
