//! Following a job on behalf of a verb: progress, Ctrl-C, and what to say at the end.

use super::args::Following;
use super::render::progress::Progress;
use super::{Session, exit, render};
use crate::client::Result;
use crate::model::job::Job;
use crate::model::request::Request;
use crate::model::{Context, Error, ErrorKind};
use std::time::Duration;

/// How long after the first Ctrl-C a second one cancels.
const AGAIN: Duration = Duration::from_secs(2);

/// Submits the request and follows its job to the end.
pub(super) async fn run(session: &Session, request: &Request, following: &Following) -> Result<u8> {
    match session.client.submit(request).await? {
        Some(id) => job(session, &id, following).await,
        None => Ok(exit::OK),
    }
}

/// Follows a job to its end.
pub(super) async fn job(session: &Session, id: &str, following: &Following) -> Result<u8> {
    let mut progress = Progress::new(&session.terminal, following.quiet, following.progress_fd)?;
    let ended = {
        let follow = session.client.follow(id, |job| progress.update(job));
        tokio::pin!(follow);
        tokio::select! {
            ended = &mut follow => Some(ended?),
            pressed = tokio::signal::ctrl_c() => {
                pressed.doing("waiting for Ctrl-C")?;
                if cancel_instead(session, id).await? { Some(follow.await?) } else { None }
            }
        }
    };
    let Some(job) = ended else {
        progress.clear();
        return Ok(exit::DETACHED);
    };
    progress.finish(&job);
    finished(session, job, following).await
}

/// After Ctrl-C: whether to cancel (then the job is told) or to leave it alone.
async fn cancel_instead(session: &Session, id: &str) -> Result<bool> {
    let cancel = if session.client.is_direct() {
        // Nobody goes on with it when we leave.
        true
    } else {
        render::note(&format!("Job {id} goes on in the background (osctl wait {id})."));
        if session.terminal.interactive {
            render::note("Press Ctrl-C again now to cancel it.");
            matches!(tokio::time::timeout(AGAIN, tokio::signal::ctrl_c()).await, Ok(Ok(())))
        } else {
            false
        }
    };
    if cancel {
        match session.client.cancel(id).await {
            Ok(()) => {}
            // It will end on its own very soon.
            Err(crate::client::Failure::Refused(e)) if e.kind == ErrorKind::TooLate => {
                render::note("It is too late to cancel.");
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(cancel)
}

async fn finished(session: &Session, job: Job, following: &Following) -> Result<u8> {
    if let Some(failure) = job.failure {
        return Err(Error::from(failure).into());
    }
    let Some(result) = job.result else {
        return Err(Error::new(ErrorKind::Internal, format!("job {} ended without a result", job.id)).into());
    };
    if !following.quiet {
        let reboot = result.changed && result.deployment.is_some() && {
            let status = session.client.status().await?;
            status.reboot_needed() && status.next().map(|d| &d.id) == result.deployment.as_ref()
        };
        render::print(&render::result(&result, reboot))?;
    }
    Ok(if following.unchanged_exit_77 && !result.changed { exit::UNCHANGED } else { exit::OK })
}
