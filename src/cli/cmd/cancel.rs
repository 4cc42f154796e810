//! `osctl cancel`.

use crate::cli::{Session, exit, render};
use crate::client::Result;
use crate::model::job::State;
use crate::model::{Error, ErrorKind};

/// Arguments of `cancel`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// The job; the active one if none is named.
    pub job: Option<String>,
}

/// Runs the verb: returns when the job has ended.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let id = match &args.job {
        Some(id) => id.clone(),
        None => match super::wait::active(&session.client.status().await?) {
            Some(id) => id,
            None => {
                return Err(Error::new(ErrorKind::WrongState, "there is no job to cancel")
                    .hint("osctl jobs lists what ended")
                    .into());
            }
        },
    };
    session.client.cancel(&id).await?;
    let job = session.client.follow(&id, |_| {}).await?;
    if job.state == State::Cancelled {
        render::print(&format!("Cancelled job {id}; the running system is unchanged.\n"))?;
        Ok(exit::OK)
    } else {
        let state = job.state.name();
        Err(Error::new(ErrorKind::TooLate, format!("job {id} could not be cancelled: it has {state}")).into())
    }
}
