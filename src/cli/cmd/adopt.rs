//! `osctl adopt`.

use super::handing::Handing;
use crate::cli::Session;
use crate::client::Result;
use crate::model::request::{Options, Request};

/// Arguments of `adopt`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Allow what a rollback or a failed boot rejected.
    #[arg(long)]
    pub allow_rejected: bool,
    /// How to do it.
    #[command(flatten)]
    pub handing: Handing,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> Request {
        Request::Adopt(Options { allow_rejected: self.allow_rejected, ..self.handing.options() })
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    args.handing.run(&args.request(), session).await
}
