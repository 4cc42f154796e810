//! Following a job on behalf of a verb: progress, Ctrl-C, and what to say at the end.

use super::args::Following;
use super::render::progress::Progress;
use super::{Session, exit, render};
use crate::client::{Failure, Result};
use crate::model::job::{Job, JobResult};
use crate::model::request::Request;
use crate::model::{Context, Error, ErrorKind};
use futures_util::{Stream, StreamExt as _};
use std::cell::RefCell;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long after the first Ctrl-C a second one cancels.
const AGAIN: Duration = Duration::from_secs(2);

/// Submits the request and follows its job to the end.
pub(super) async fn run(session: &Session, request: &Request, following: &Following) -> Result<u8> {
    match session.client.submit(request).await? {
        Some(id) => job(session, &id, following).await,
        None => Ok(exit::OK),
    }
}

/// Follows a job to its end, and says what it did.
pub(super) async fn job(session: &Session, id: &str, following: &Following) -> Result<u8> {
    match to_end(session, id, following).await? {
        Some(result) => finished(session, &result, following).await,
        None => Ok(exit::DETACHED),
    }
}

/// Follows a job to its end and returns what it did; `None` if whoever watches has left.
pub(super) async fn to_end(session: &Session, id: &str, following: &Following) -> Result<Option<JobResult>> {
    let Some(job) = ended(session, id, following).await? else { return Ok(None) };
    if let Some(failure) = job.failure {
        return Err(Error::from(failure).into());
    }
    let id = job.id;
    let ended = || Error::new(ErrorKind::Internal, format!("job {id} ended without a result"));
    Ok(Some(job.result.ok_or_else(ended)?))
}

/// Follows a job to its end and returns it, failed or not; `None` if whoever watches has left.
pub(super) async fn ended(session: &Session, id: &str, following: &Following) -> Result<Option<Job>> {
    let mut interrupts = signal(SignalKind::interrupt()).doing("listening for Ctrl-C")?;
    let presses = futures_util::stream::poll_fn(|cx| interrupts.poll_recv(cx));
    let progress = Progress::new(&session.terminal, following.quiet, session.progress.clone());
    let progress = RefCell::new(progress);
    let first = match (session.client.is_direct(), session.terminal.interactive) {
        (true, _) => First::Cancels,
        (false, true) => First::Offers,
        (false, false) => First::Leaves,
    };
    let ended = watch(
        id,
        first,
        session.client.follow(id, |job| progress.borrow_mut().update(job)),
        presses,
        session.client.cancel(id),
        |text| progress.borrow().note(text),
    )
    .await;
    let mut progress = progress.into_inner();
    let Some(job) = ended.inspect_err(|_| progress.clear())? else {
        progress.clear();
        return Ok(None);
    };
    progress.finish(&job);
    Ok(Some(job))
}

/// What the first Ctrl-C does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    /// Cancel: nobody goes on with the job when we leave.
    Cancels,
    /// Leave, unless a second one comes that cancels.
    Offers,
    /// Leave: nobody is there to press again.
    Leaves,
}

/// Waits for the job's end, or until whoever watches has left (`None`). Once the job was told to stop, the next press
/// leaves: however long a job takes, nobody is held.
async fn watch(
    id: &str,
    first: First,
    follow: impl Future<Output = Result<Job>>,
    mut presses: impl Stream<Item = ()> + Unpin,
    cancel: impl Future<Output = Result<()>>,
    say: impl Fn(&str),
) -> Result<Option<Job>> {
    tokio::pin!(follow, cancel);
    let mut offered: Option<tokio::time::Instant> = None;
    let (mut cancelling, mut told) = (false, false);
    loop {
        tokio::select! {
            ended = &mut follow => return ended.map(Some),
            Some(()) = presses.next() => {
                if cancelling {
                    say(&match first {
                        First::Cancels => "Leaving in the middle; the next osctl command cleans up.".to_owned(),
                        First::Offers | First::Leaves => background(id),
                    });
                    return Ok(None);
                }
                if offered.take().is_some() || first == First::Cancels {
                    cancelling = true;
                    continue;
                }
                say(&background(id));
                if first == First::Leaves {
                    return Ok(None);
                }
                say("Press Ctrl-C again now to cancel it.");
                offered = Some(tokio::time::Instant::now() + AGAIN);
            }
            () = until(offered) => return Ok(None),
            // A person may be asked for a password first.
            answer = &mut cancel, if cancelling && !told => {
                told = true;
                match answer {
                    Ok(()) => {}
                    // It ends on its own very soon, or has ended.
                    Err(Failure::Refused(e)) if matches!(e.kind, ErrorKind::TooLate | ErrorKind::WrongState) => {
                        say("It is too late to cancel.");
                    }
                    Err(failure) => return Err(failure),
                }
            }
        }
    }
}

fn background(id: &str) -> String {
    format!("Job {id} goes on in the background (osctl wait {id}).")
}

async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Prints what a job did. Returns the exit code.
pub(super) async fn finished(session: &Session, result: &JobResult, following: &Following) -> Result<u8> {
    if !following.quiet {
        let reboot = result.changed && result.deployment.is_some() && {
            let status = session.client.status().await?;
            status.reboot_needed() && status.next().map(|d| &d.id) == result.deployment.as_ref()
        };
        render::print(&render::result(result, reboot))?;
    }
    Ok(code(result, following))
}

/// The exit code of a job that succeeded.
pub(super) fn code(result: &JobResult, following: &Following) -> u8 {
    if following.unchanged_exit_77 && !result.changed { exit::UNCHANGED } else { exit::OK }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    /// Watches a job that never ends while somebody presses after these pauses, in seconds.
    async fn pressed(
        first: First,
        pauses: &[u64],
        cancel: impl Future<Output = Result<()>>,
    ) -> (Result<Option<Job>>, Vec<String>) {
        let said = RefCell::new(Vec::new());
        let presses = futures_util::stream::iter(pauses.to_vec())
            .then(|pause| tokio::time::sleep(Duration::from_secs(pause)))
            .chain(futures_util::stream::pending());
        let watching = watch("7", first, pending(), Box::pin(presses), cancel, |text| {
            said.borrow_mut().push(text.to_owned());
        });
        let ended = tokio::time::timeout(Duration::from_secs(3600), watching).await;
        let ended = ended.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "it still watches").into()));
        (ended, said.into_inner())
    }

    const BACKGROUND: &str = "Job 7 goes on in the background (osctl wait 7).";
    const AGAIN_NOW: &str = "Press Ctrl-C again now to cancel it.";
    const LEAVING: &str = "Leaving in the middle; the next osctl command cleans up.";
    const LATE: &str = "It is too late to cancel.";

    #[tokio::test(start_paused = true)]
    async fn however_a_job_hangs_ctrl_c_leaves_in_the_end() {
        let cases: [(First, &[u64], &[&str]); 5] = [
            (First::Leaves, &[0], &[BACKGROUND]),
            (First::Offers, &[0], &[BACKGROUND, AGAIN_NOW]),
            (First::Offers, &[0, 5], &[BACKGROUND, AGAIN_NOW]),
            (First::Offers, &[0, 1, 9], &[BACKGROUND, AGAIN_NOW, BACKGROUND]),
            (First::Cancels, &[0, 9], &[LEAVING]),
        ];
        for (first, pauses, expected) in cases {
            let (ended, said) = pressed(first, pauses, ready(Ok(()))).await;
            assert!(matches!(ended, Ok(None)), "{first:?} {pauses:?}: {ended:?}");
            assert_eq!(said, expected, "{first:?} {pauses:?}");
        }
        let (ended, _) = pressed(First::Cancels, &[0, 1], pending()).await;
        assert!(matches!(ended, Ok(None)), "even while the daemon does not answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_that_comes_too_late_is_no_failure() {
        for kind in [ErrorKind::TooLate, ErrorKind::WrongState] {
            let cancel = ready(Err(Error::new(kind, "no").into()));
            let (ended, said) = pressed(First::Cancels, &[0, 9], cancel).await;
            assert!(matches!(ended, Ok(None)), "{ended:?}");
            assert_eq!(said, [LATE, LEAVING]);
        }
        let cancel = ready(Err(Error::new(ErrorKind::NotAuthorized, "no").into()));
        let (ended, _) = pressed(First::Cancels, &[0], cancel).await;
        assert!(matches!(ended, Err(Failure::Refused(e)) if e.kind == ErrorKind::NotAuthorized));
    }
}
