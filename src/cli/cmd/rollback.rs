//! `osctl rollback`.

use crate::cli::args::Following;
use crate::cli::{Session, follow};
use crate::client::Result;
use crate::model::request::Request;

/// Arguments of `rollback`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Let automatic jobs go back to what is rolled back from.
    #[arg(long)]
    pub no_reject: bool,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    follow::run(session, &Request::Rollback { reject: !args.no_reject }, &args.following).await
}
