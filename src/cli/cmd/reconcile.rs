//! `osctl reconcile`.

use crate::cli::args::Following;
use crate::cli::{Session, follow};
use crate::client::Result;
use crate::model::request::{Options, Request};

/// Arguments of `reconcile`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Say what would change, and do nothing.
    #[arg(long, visible_alias = "dry-run")]
    pub check: bool,
    /// Get everything ready, but stage nothing.
    #[arg(long)]
    pub download_only: bool,
    /// Install exactly the packages of /etc/osctl/derive.lock, or fail.
    #[arg(long, conflicts_with = "update_lock")]
    pub frozen: bool,
    /// Solve packages anew, although those of before still fit.
    #[arg(long)]
    pub update_lock: bool,
    /// Try again what failed because packages could not be had, be it this or an upgrade, if that is due; else do nothing.
    #[arg(long, conflicts_with_all = ["frozen", "update_lock", "check"])]
    pub retry: bool,
    /// Replace a deployment that somebody else staged.
    #[arg(long)]
    pub replace_staged: bool,
    /// Allow what a rollback or a failed boot rejected.
    #[arg(long)]
    pub allow_rejected: bool,
    /// Fail instead of waiting for other jobs.
    #[arg(long)]
    pub no_wait: bool,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> Request {
        Request::Reconcile(Options {
            dry_run: self.check,
            download_only: self.download_only,
            frozen: self.frozen,
            update_lock: self.update_lock,
            retry: self.retry,
            replace_staged: self.replace_staged,
            allow_rejected: self.allow_rejected,
            no_wait: self.no_wait,
            ..Options::default()
        })
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    follow::run(session, &args.request(), &args.following).await
}
