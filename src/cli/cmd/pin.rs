//! `osctl pin` and `osctl unpin`.

use crate::cli::{Session, exit, render};
use crate::client::Result;
use crate::model::request::Request;
use crate::model::status::{Deployment, Status};
use crate::model::{Error, ErrorKind};

/// Arguments of `pin` and `unpin`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An id, an index, or booted, staged, default or rollback.
    pub deployment: String,
}

fn find<'s>(status: &'s Status, name: &str) -> crate::model::Result<&'s Deployment> {
    let by_id = |id: &Option<String>| id.as_deref().and_then(|id| status.deployment(id));
    let found = match name {
        "booted" => by_id(&status.booted),
        "staged" => by_id(&status.staged),
        "rollback" => by_id(&status.rollback),
        "default" => status.deployments.iter().find(|d| d.default),
        other => status.deployment(other).or_else(|| {
            other.parse::<u32>().ok().and_then(|i| status.deployments.iter().find(|d| d.index == i))
        }),
    };
    found.ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, format!("there is no deployment {name:?}"))
            .hint("osctl status -v lists ids; an index or booted, staged, default, rollback do as well")
    })
}

/// Runs the verb.
pub async fn run(args: &Args, pinned: bool, session: &Session) -> Result<u8> {
    let status = session.client.status().await?;
    let deployment = find(&status, &args.deployment)?;
    session.client.submit(&Request::Pin { deployment: deployment.id.clone(), pinned }).await?;
    let verb = if pinned { "Pinned" } else { "Unpinned" };
    render::print(&format!("{verb} {}.\n", deployment.id))?;
    Ok(exit::OK)
}
