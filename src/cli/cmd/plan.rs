//! `osctl plan`.

use crate::cli::args::Following;
use crate::cli::{Session, exit, follow, render};
use crate::client::Result;
use crate::model::bytes;
use crate::model::request::{Goal, Options, Request};
use crate::model::{Context, Error, ErrorKind};

/// Arguments of `plan`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Plan a rebase to this image; without one, an upgrade.
    pub image: Option<String>,
    /// Plan a reconcile.
    #[arg(long, conflicts_with = "image")]
    pub reconcile: bool,
    /// Show the sizes of each part.
    #[arg(long)]
    pub sizes: bool,
    /// Print JSON (docs/plan.schema.json).
    #[arg(long)]
    pub json: bool,
    /// Say whether more than this would be downloaded: 500M, 1Gi.
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse, conflicts_with = "reconcile")]
    pub max_bytes: Option<u64>,
    /// Fail instead of waiting for other jobs.
    #[arg(long)]
    pub no_wait: bool,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> crate::model::Result<Request> {
        let goal = match &self.image {
            Some(image) => Goal::Rebase(image.parse()?),
            None if self.reconcile => Goal::Reconcile,
            None => Goal::Upgrade,
        };
        let options = Options { max_bytes: self.max_bytes, no_wait: self.no_wait, ..Options::default() };
        Ok(Request::Plan { goal, options })
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let Some(id) = session.client.submit(&args.request()?).await? else { return Ok(exit::OK) };
    let Some(result) = follow::to_end(session, &id, &args.following).await? else {
        return Ok(exit::DETACHED);
    };
    let plan = result.plan.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Internal, "the daemon sent no plan that this osctl can read")
            .hint("osctl and osctld may be of different versions: systemctl restart osctld.service")
    })?;
    if args.json {
        let text = serde_json::to_string(plan).kind(ErrorKind::Internal, "writing the plan as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else if !args.following.quiet {
        render::print(&render::plan::human(&result.summary, plan, args.sizes))?;
    }
    Ok(follow::code(&result, &args.following))
}
