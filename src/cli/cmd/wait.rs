//! `osctl wait`.

use crate::cli::args::Following;
use crate::cli::{Session, exit, follow, render};
use crate::client::Result;
use crate::model::job::State;
use crate::model::status::Status;

/// Arguments of `wait`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// The job; the active one if none is named.
    pub job: Option<String>,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

/// The job that runs, or the one that is next.
pub(super) fn active(status: &Status) -> Option<String> {
    let waiting = status.jobs.iter().rev().filter(|j| !j.state.is_final());
    waiting.min_by_key(|j| j.state == State::Queued).map(|j| j.id.clone())
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let id = match &args.job {
        Some(id) => id.clone(),
        None => match active(&session.client.status().await?) {
            Some(id) => id,
            None => {
                render::print("No job is running.\n")?;
                return Ok(exit::OK);
            }
        },
    };
    follow::job(session, &id, &args.following).await
}
