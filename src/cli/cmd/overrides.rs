//! `osctl override`.

use super::editing::Editing;
use crate::cli::Session;
use crate::client::Result;
use crate::model::edit::What;
use crate::model::request::Request;

/// Arguments of `override`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do about packages of the image.
    #[command(subcommand)]
    pub how: How,
}

/// What can be done about packages of the image.
#[derive(Debug, clap::Subcommand)]
pub enum How {
    /// Remove packages of the image.
    Remove {
        /// Names of packages.
        #[arg(required = true, value_name = "PACKAGE")]
        packages: Vec<String>,
        /// Install this package instead; can be repeated.
        #[arg(long, value_name = "PACKAGE")]
        install: Vec<String>,
        /// How to edit.
        #[command(flatten)]
        editing: Editing,
    },
    /// Take packages of the image in another version.
    Replace {
        /// NAME=VERSION for apt, NAME-VERSION for rpm.
        #[arg(required = true, value_name = "PACKAGE")]
        packages: Vec<String>,
        /// Remove this package of the image; can be repeated.
        #[arg(long, value_name = "PACKAGE")]
        remove: Vec<String>,
        /// Install this package; can be repeated.
        #[arg(long, value_name = "PACKAGE")]
        install: Vec<String>,
        /// How to edit.
        #[command(flatten)]
        editing: Editing,
    },
    /// Take packages as the image has them.
    Reset {
        /// Names of packages that were removed or replaced.
        #[arg(required_unless_present = "all", value_name = "PACKAGE")]
        packages: Vec<String>,
        /// All of them.
        #[arg(short, long, conflicts_with = "packages")]
        all: bool,
        /// Ask no more for this package; can be repeated.
        #[arg(long, value_name = "PACKAGE")]
        uninstall: Vec<String>,
        /// How to edit.
        #[command(flatten)]
        editing: Editing,
    },
}

impl Args {
    /// How to edit.
    pub fn editing(&self) -> &Editing {
        match &self.how {
            How::Remove { editing, .. } | How::Replace { editing, .. } | How::Reset { editing, .. } => {
                editing
            }
        }
    }

    /// What is asked.
    pub fn request(&self) -> crate::model::Result<Request> {
        let (wishes, all): (Vec<(What, &[String])>, bool) = match &self.how {
            How::Remove { packages, install, .. } => {
                (vec![(What::OverrideRemove, packages), (What::Install, install)], false)
            }
            How::Replace { packages, remove, install, .. } => {
                let more = vec![(What::OverrideRemove, &**remove), (What::Install, install)];
                ([vec![(What::OverrideReplace, &**packages)], more].concat(), false)
            }
            How::Reset { packages, all, uninstall, .. } => {
                (vec![(What::OverrideReset, packages), (What::Uninstall, uninstall)], *all)
            }
        };
        self.editing().request(wishes, all)
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    args.editing().run(&args.request()?, session).await
}
