//! `osctl upgrade`.

use crate::cli::args::{Allowed, Following};
use crate::cli::{Session, follow};
use crate::client::Result;
use crate::model::bytes;
use crate::model::image::Digest;
use crate::model::request::{Handed, Options, Request};
use crate::model::{Context, ErrorKind};
use std::num::NonZeroU64;
use std::path::PathBuf;

/// Arguments of `upgrade`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Only look; download nothing.
    #[arg(long, conflicts_with_all = ["download_only", "dry_run", "from_bundle"])]
    pub check: bool,
    /// What to allow and require.
    #[command(flatten)]
    pub limits: Limits,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

/// Options that upgrade and rebase share.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Limits {
    /// Take all images from this bundle and none from the network: a directory or a tar file made by osctl bundle create.
    #[arg(long, value_name = "PATH")]
    pub from_bundle: Option<PathBuf>,
    /// Get everything ready, but stage nothing.
    #[arg(long)]
    pub download_only: bool,
    /// Fail unless the target has this digest.
    #[arg(long, value_name = "DIGEST")]
    pub require_digest: Option<Digest>,
    /// Allow an image that is older than what runs.
    #[arg(long)]
    pub allow_downgrade: bool,
    /// Install exactly the packages of /etc/osctl/derive.lock, or fail.
    #[arg(long)]
    pub frozen: bool,
    /// Allow an image that is verified less than what runs.
    #[arg(long)]
    pub allow_unverified: bool,
    /// Refuse an update that would download more than this: 500M, 1Gi.
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse)]
    pub max_bytes: Option<u64>,
    /// Download at most so many bytes a second of the OS image: 500K, 2Mi.
    #[arg(long, value_name = "BYTES", value_parser = bytes::parse_rate)]
    pub rate_limit: Option<NonZeroU64>,
    /// Drop files that a plain image carries in /var.
    #[arg(long)]
    pub drop_var: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// What is allowed in any case.
    #[command(flatten)]
    pub allowed: Allowed,
}

impl Limits {
    /// The options of the request.
    pub fn options(&self) -> Options {
        self.allowed.with(Options {
            require_digest: self.require_digest.clone(),
            download_only: self.download_only,
            dry_run: self.dry_run,
            allow_downgrade: self.allow_downgrade,
            rate_limit: self.rate_limit,
            max_bytes: self.max_bytes,
            allow_unverified: self.allow_unverified,
            drop_var: self.drop_var,
            frozen: self.frozen,
            ..Options::default()
        })
    }

    /// The bundle that was named, opened: the daemon may not see the path, or not be allowed to.
    pub fn bundle(&self) -> crate::model::Result<Option<Handed>> {
        let open = |path: &PathBuf| {
            let file = std::fs::File::open(path);
            file.kind(ErrorKind::InvalidArgument, format!("opening the bundle {}", path.display()))
        };
        Ok(self.from_bundle.as_ref().map(open).transpose()?.map(|file| Handed::new(file.into())))
    }
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> crate::model::Result<Request> {
        if self.check {
            // A check has nothing to require or allow.
            let options = Options { no_wait: self.limits.allowed.no_wait, ..Options::default() };
            return Ok(Request::Check(options));
        }
        let options = self.limits.options();
        Ok(match self.limits.bundle()? {
            Some(bundle) => Request::ImportBundle { bundle, image: None, options },
            None => Request::Upgrade(options),
        })
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    follow::run(session, &args.request()?, &args.following).await
}
