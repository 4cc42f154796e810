//! What the verbs share that edit a drop-in and reconcile.

use crate::cli::args::{Allowed, Following};
use crate::cli::{Session, follow};
use crate::client::Result;
use crate::model::edit::{Edit, What};
use crate::model::request::{Options, Request};
use crate::model::{Error, ErrorKind};

/// How an edit is made.
#[derive(Debug, Default, clap::Args)]
pub struct Editing {
    /// Take what is declared already, or is not there to be removed, for done.
    #[arg(long)]
    pub idempotent: bool,
    /// Say what would change, and do nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Accepted for those who are used to it: nothing is ever asked.
    #[arg(short = 'y', long = "assumeyes", visible_alias = "yes")]
    pub yes: bool,
    /// Refused: nothing is changed in the running system.
    #[arg(short = 'A', long)]
    pub apply_live: bool,
    /// What is allowed.
    #[command(flatten)]
    pub allowed: Allowed,
    /// How to follow the job.
    #[command(flatten)]
    pub following: Following,
}

impl Editing {
    /// The request for these wishes.
    pub fn request<'a>(
        &self,
        wishes: impl IntoIterator<Item = (What, &'a [String])>,
        reset_all: bool,
    ) -> crate::model::Result<Request> {
        if self.apply_live {
            return Err(refused(
                "--apply-live",
                "nothing can be changed in the running system by this version",
            )
            .hint("leave it out, and reboot"));
        }
        let one = |(what, items): (What, &'a [String])| items.iter().map(move |item| (what, item.clone()));
        let edit = Edit::new(wishes.into_iter().flat_map(one).collect(), reset_all, self.idempotent)?;
        let options = self.allowed.with(Options { dry_run: self.dry_run, ..Options::default() });
        Ok(Request::EditDerivation { edit, options })
    }

    /// Submits the request and follows its job.
    pub async fn run(&self, request: &Request, session: &Session) -> Result<u8> {
        follow::run(session, request, &self.following).await
    }
}

/// An option of other tools that is known, and refused.
pub(super) fn refused(option: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{option} is not served: {why}; nothing was changed"))
}
