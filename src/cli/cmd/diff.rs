//! `osctl diff`.

use crate::cli::{Session, exit, render, select};
use crate::client::Result;
use crate::model::{Context, ErrorKind};

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An id, an index, or booted, staged, default or rollback [default: booted, or rollback where nothing is].
    pub from: Option<String>,
    /// The same for the other side [default: what boots next].
    pub to: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let status = session.client.status().await?;
    let before = if status.booted.is_some() { "booted" } else { "rollback" };
    let from = select::named(&status, args.from.as_deref().unwrap_or(before))?;
    let next = if status.staged.is_some() { "staged" } else { "default" };
    let to = select::named(&status, args.to.as_deref().unwrap_or(next))?;
    let between = session.client.diff(&from.id, &to.id).await?;
    if args.json {
        let text = serde_json::to_string(&render::diff::json(from, to, &between));
        render::print(&(text.kind(ErrorKind::Internal, "writing the differences as JSON")? + "\n"))?;
    } else {
        render::print(&render::diff::text(from, to, &between))?;
    }
    Ok(exit::OK)
}
