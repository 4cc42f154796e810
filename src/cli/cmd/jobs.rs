//! `osctl jobs`.

use crate::cli::{Session, exit, render};
use crate::client::Result;
use crate::model::{Context, ErrorKind};

/// Arguments of `jobs`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Print a JSON array.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let status = session.client.status().await?;
    if args.json {
        let text = serde_json::to_string(&status.jobs).kind(ErrorKind::Internal, "writing jobs as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else {
        render::print(&render::status::jobs(&status.jobs))?;
    }
    Ok(exit::OK)
}
