//! The pipeline, in one screen.

use super::cx::Cx;
use super::env::Env;
use super::journal::Edited;
use super::settle;
use super::stages::{Ready, Target};
use super::steps::adopt::{self, Adoption};
use super::steps::bind::{self, Wanted};
use super::steps::release::{self, Release};
use super::steps::{
    cleanup, derive, edit, import, permit, plan, prefetch, pull, resolve, rollback, stage, verify,
};
use super::unavailable;
use crate::derive::read::Upcoming;
use crate::model::handover::Tool;
use crate::model::job::JobResult;
use crate::model::request::{Goal, Options, Request, Subject};
use crate::model::{Error, ErrorKind, Result};
use crate::store::locked::Locked;
use crate::store::snapshot::Snapshot;

/// What every step of one job shares.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub cx: &'a Cx,
    pub env: &'a Env,
    pub id: &'a str,
    pub store: Locked,
    pub before: Snapshot,
    pub options: Options,
    pub keeps_digests: bool,
    /// Whether we staged what is staged; another program may have done so with our origin in it.
    pub staged_is_ours: bool,
    /// Whether another tool's deployment is taken over.
    pub adopts: bool,
    /// The drop-in that is written with the deployment.
    pub edited: Option<Edited>,
}

/// What deciding needs, whether the sysroot is locked or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub cx: &'a Cx,
    pub env: &'a Env,
    pub options: &'a Options,
    pub before: &'a Snapshot,
    pub keeps_digests: bool,
    pub staged_is_ours: bool,
    /// Whether another tool's deployment is taken over.
    pub adopts: bool,
    /// The drop-in that is written with the deployment.
    pub edited: Option<Upcoming<'a>>,
}

impl Job<'_> {
    /// The job, without the right to change anything.
    pub fn view(&self) -> View<'_> {
        View {
            cx: self.cx,
            env: self.env,
            options: &self.options,
            before: &self.before,
            keeps_digests: self.keeps_digests,
            staged_is_ours: self.staged_is_ours,
            adopts: self.adopts,
            edited: self.edited.as_ref().map(Edited::upcoming),
        }
    }
}

/// Runs a request to its end.
pub(super) async fn run(cx: &Cx, env: &Env, id: &str, request: Request) -> Result<JobResult> {
    match &request {
        Request::Check(options) => return plan::describe(cx, env, &Goal::Upgrade, options).await,
        Request::Plan { goal, options } => return plan::describe(cx, env, goal, options).await,
        Request::Upgrade(_) | Request::Rebase { .. } | Request::Reconcile(_) => {}
        Request::ImportBundle { .. } => {}
        Request::EditDerivation { .. } | Request::Adopt(_) | Request::Release { .. } => {}
        Request::Rollback { .. } | Request::Pin { .. } => {}
        Request::Verify { .. } | Request::PullBound { .. } => {}
    }
    let media = match &request {
        Request::ImportBundle { bundle, .. } => Some(import::open(cx, bundle).await?),
        _ => None,
    };
    let store = Locked::acquire(cx, &env.layout).await?;
    let imported = match media {
        Some(media) => Some(import::serve(env, media).await?),
        None => None,
    };
    let env = imported.as_ref().map_or(env, |imported| &imported.env);
    // An earlier process may have died, or another program discarded what was staged, since we looked last.
    let journal = env.journal()?;
    let (before, _) = settle::leftovers(cx, env, &store, &journal).await?;
    let pending = journal.pending()?;
    let staged_is_ours = before.staged_is(pending.as_ref().map(|p| p.deployment.as_str()));
    let options = request.options().cloned().unwrap_or_default();
    let keeps_digests = bind::keeps_digests(&request);
    let (adopts, edited) = (false, None);
    let mut job = Job { cx, env, id, store, before, options, keeps_digests, staged_is_ours, adopts, edited };
    match request {
        Request::Check(_) | Request::Plan { .. } => {
            Err(Error::new(ErrorKind::Internal, "what only looks takes no lock"))
        }
        Request::Upgrade(_) => update(&job, Goal::Upgrade).await,
        Request::Rebase { image, .. } => update(&job, Goal::Rebase(image)).await,
        Request::ImportBundle { image, .. } => update(&job, import::goal(&job, image)?).await,
        Request::Reconcile(options) if options.retry => match unavailable::due(&job)? {
            Some(goal) => update(&job, goal).await,
            None if prefetch::due(&job)? => prefetch::fill(&job).await,
            None => {
                Ok(JobResult { summary: "Nothing is to be tried again now.".into(), ..JobResult::default() })
            }
        },
        Request::Reconcile(_) => update(&job, Goal::Reconcile).await,
        Request::EditDerivation { edit, .. } => {
            job.edited = edit::prepare(&job, &edit).await?;
            update(&job, Goal::Reconcile).await
        }
        Request::Adopt(_) => take_over(&mut job).await,
        Request::Release { to, .. } => hand_back(&job, to).await,
        Request::Rollback { reject } => rollback::rollback(&job, reject).await,
        Request::Pin { deployment, pinned } => rollback::pin(&job, deployment, pinned).await,
        Request::Verify { what, .. } => match what.as_slice() {
            [] => Err(Error::new(ErrorKind::InvalidArgument, "nothing is named that could be verified")),
            [Subject::Bound, ..] => verify::verify(&job).await,
        },
        Request::PullBound { only, .. } => verify::pull(&job, only).await,
    }
}

/// resolve, plan, pull, derive, bind, verify, preflight, stage, cleanup: whole or not at all.
async fn update(job: &Job<'_>, goal: Goal) -> Result<JobResult> {
    // What another tool owns is said first: the other hints would lead nowhere.
    permit::owned(&job.view())?;
    // Packages get their updates with those of the OS; a reconcile keeps what still fits.
    let resolve = !matches!(goal, Goal::Reconcile);
    let target = resolve::target(&job.view(), &goal).await?;
    import::warn(job, &target);
    onward(job, &goal, target, resolve).await
}

/// The same for a base that another tool has deployed, with what it knows as a drop-in.
async fn take_over(job: &mut Job<'_>) -> Result<JobResult> {
    match adopt::prepare(job).await? {
        Adoption::Said(result) => Ok(result),
        Adoption::Agreed(target, handover) => {
            let result = onward(job, &Goal::Reconcile, target, true).await?;
            Ok(result.handed_over(handover))
        }
    }
}

/// The base without what was derived from it, for another tool.
async fn hand_back(job: &Job<'_>, to: Option<Tool>) -> Result<JobResult> {
    match release::prepare(job, to).await? {
        Release::Said(result) => Ok(result),
        Release::Agreed(derived, handover) => {
            let bound = bind::pull(job, Wanted::nothing(&derived)).await?;
            let ready = Ready::new(*derived, bound);
            let kept = stage::preflight(job, &ready).await?;
            let staged = stage::stage(job, ready, kept).await?;
            let mut result = cleanup::cleanup(job, staged.result).await?;
            // Packages that could not be had are not osctl's to try again. What is published is no failure.
            if let Err(error) = job.env.journal().and_then(|journal| journal.forget_unavailable()) {
                result.notes.push(format!("osctl-retry.timer may take the host back: {}", error.chain()));
            }
            Ok(result.handed_over(handover))
        }
    }
}

async fn onward(job: &Job<'_>, goal: &Goal, target: Target, resolve: bool) -> Result<JobResult> {
    let planned = plan::plan(job, target).await?;
    let pulled = pull::pull(job, planned).await?;
    let derived = derive::derive(job, pulled, resolve).await;
    unavailable::note(job, goal, resolve || job.options.update_lock, &derived)?;
    let derived = derived?;
    let wanted = bind::discover(job, &derived).await?;
    if let Some(unchanged) = stage::unchanged(job, &derived, &wanted)? {
        if !job.options.dry_run {
            // Says nothing new where all images are there; brings back what somebody removed.
            drop(bind::pull(job, wanted).await?);
        }
        return cleanup::leftovers(job, edit::alone(job, unchanged)?).await;
    }
    derive::refuse_rejected(job, &derived)?;
    if job.options.dry_run {
        return derive::describe(job, &derived, &wanted).await;
    }
    let bound = bind::pull(job, wanted).await?;
    let ready = Ready::new(derived, bound);
    let kept = stage::preflight(job, &ready).await?;
    if job.options.download_only {
        return Ok(stage::downloaded(&ready));
    }
    let staged = stage::stage(job, ready, kept).await?;
    cleanup::cleanup(job, staged.result).await
}
