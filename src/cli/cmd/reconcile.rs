//! `osctl reconcile`.

use crate::cli::args::{Allowed, Following};
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
    /// What is allowed.
    #[command(flatten)]
    pub allowed: Allowed,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> Request {
        Request::Reconcile(self.allowed.with(Options {
            dry_run: self.check,
            download_only: self.download_only,
            frozen: self.frozen,
            update_lock: self.update_lock,
            retry: self.retry,
            ..Options::default()
        }))
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    follow::run(session, &args.request(), &args.following).await
}
