//! `osctl pin` and `osctl unpin`.

use crate::cli::{Session, exit, render, select};
use crate::client::Result;
use crate::model::request::Request;

/// Arguments of `pin` and `unpin`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An id, an index, or booted, staged, default or rollback.
    pub deployment: String,
}

/// Runs the verb.
pub async fn run(args: &Args, pinned: bool, session: &Session) -> Result<u8> {
    let status = session.client.status().await?;
    let deployment = select::named(&status, &args.deployment)?;
    session.client.submit(&Request::Pin { deployment: deployment.id.clone(), pinned }).await?;
    let verb = if pinned { "Pinned" } else { "Unpinned" };
    render::print(&format!("{verb} {}.\n", deployment.id))?;
    Ok(exit::OK)
}
