//! What is remembered of packages that cannot be had, from one job to the next.

use super::pipeline::Job;
use super::stages::Derived;
use crate::model::request::Goal;
use crate::model::unavailable::{Instead, Unavailable};
use crate::model::{ErrorKind, Result};
use std::time::SystemTime;

/// Notes what deriving came to. `anew`: repositories were asked, if there was anything to ask for.
pub fn note(job: &Job<'_>, goal: &Goal, anew: bool, derived: &Result<Derived>) -> Result<()> {
    if job.options.dry_run {
        return Ok(());
    }
    if (job.edited.is_some() || job.adopts) && derived.is_err() {
        // The edit, or the taking over, has come to nothing with its job: what it asked for is not declared.
        return Ok(());
    }
    let trouble = match derived {
        Ok(derived) => derived.without.clone(),
        Err(error) if error.kind == ErrorKind::RepoUnavailable => Some((Instead::Nothing, error.chain())),
        // It says nothing about repositories.
        Err(_) => return Ok(()),
    };
    // Who asks for nothing any more needs no repository.
    let anew = anew
        || derived.as_ref().is_ok_and(|d| d.manifest.packages.is_empty() && d.manifest.layers.is_empty());
    let journal = job.env.journal()?;
    let before = journal.unavailable()?;
    match (trouble, before) {
        (Some((instead, why)), before) => {
            let goal = match &before {
                // The bundle that an update came from may be gone by then: it takes the place of nothing.
                Some(before) if job.env.offered().is_some() => before.goal.clone(),
                None if job.env.offered().is_some() => Goal::Reconcile,
                _ => goal.clone(),
            };
            let state = Unavailable::again(before.as_ref(), now(), goal, why, instead);
            tracing::warn!(
                attempts = state.attempts,
                next = state.next,
                why = state.why,
                "packages cannot be had"
            );
            journal.note_unavailable(&state)
        }
        (None, Some(before)) if before.is_settled_by(goal, anew) => journal.forget_unavailable(),
        (None, _) => Ok(()),
    }
}

/// What a retry is to do now; `None` if nothing is due.
pub fn due(job: &Job<'_>) -> Result<Option<Goal>> {
    let state = job.env.journal()?.unavailable()?;
    Ok(state.filter(|state| state.is_due(now())).map(|state| state.goal))
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
