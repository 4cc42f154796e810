//! What the verbs share that change the owner of a host.

use crate::cli::args::Following;
use crate::cli::{Session, exit, follow, render};
use crate::client::Result;
use crate::model::request::{Options, Request};
use crate::model::{Context, Error, ErrorKind};

/// How a host changes its owner.
#[derive(Debug, Default, clap::Args)]
pub struct Handing {
    /// Say what would become of what, and do nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Do without what cannot be expressed; --dry-run lists it.
    #[arg(long)]
    pub lossy: bool,
    /// Print JSON (docs/handover.schema.json).
    #[arg(long)]
    pub json: bool,
    /// Replace a deployment that somebody else staged.
    #[arg(long)]
    pub replace_staged: bool,
    /// Fail instead of waiting for other jobs.
    #[arg(long)]
    pub no_wait: bool,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

impl Handing {
    /// The options of the request.
    pub fn options(&self) -> Options {
        Options {
            dry_run: self.dry_run,
            lossy: self.lossy,
            replace_staged: self.replace_staged,
            no_wait: self.no_wait,
            ..Options::default()
        }
    }

    /// Submits the request, follows its job, and says what became of what.
    pub async fn run(&self, request: &Request, session: &Session) -> Result<u8> {
        let Some(id) = session.client.submit(request).await? else { return Ok(exit::OK) };
        let Some(result) = follow::to_end(session, &id, &self.following).await? else {
            return Ok(exit::DETACHED);
        };
        if !self.json && !self.dry_run {
            return follow::finished(session, &result, &self.following).await;
        }
        let handover = result.handover.as_deref().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the daemon sent no handover that this osctl can read")
                .hint("osctl and osctld may be of different versions: systemctl restart osctld.service")
        })?;
        if self.json {
            let text = serde_json::to_string(handover);
            let text = text.kind(ErrorKind::Internal, "writing the handover as JSON")?;
            render::print(&format!("{text}\n"))?;
        } else if !self.following.quiet {
            render::print(&render::handover::human(&result.summary, handover))?;
        }
        Ok(follow::code(&result, &self.following))
    }
}
