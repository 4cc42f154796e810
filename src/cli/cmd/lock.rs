//! `osctl lock`.

use crate::cli::{Session, exit, render, select};
use crate::client::Result;

/// Arguments of `lock`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do with it.
    #[command(subcommand)]
    pub what: What,
}

/// What can be done with a lock.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Print the lock of a deployment, as /etc/osctl/derive.lock takes it.
    Export {
        /// An id, an index, or booted, staged, default or rollback [default: booted].
        #[arg(long, value_name = "DEPLOYMENT")]
        deployment: Option<String>,
    },
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let What::Export { deployment } = &args.what;
    let status = session.client.status().await?;
    let deployment = select::or_booted(&status, deployment.as_deref())?;
    render::print(&session.client.lock(&deployment.id).await?)?;
    Ok(exit::OK)
}
