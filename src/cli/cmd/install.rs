//! `osctl install`.

use super::editing::Editing;
use crate::cli::Session;
use crate::client::Result;
use crate::model::edit::What;
use crate::model::request::Request;

/// Arguments of `install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of packages.
    #[arg(required = true, value_name = "PACKAGE")]
    pub packages: Vec<String>,
    /// Ask no more for this package; can be repeated.
    #[arg(long, value_name = "PACKAGE")]
    pub uninstall: Vec<String>,
    /// Accepted for those who are used to it: a package that the image has already may always be asked for.
    #[arg(long)]
    pub allow_inactive: bool,
    /// How to edit.
    #[command(flatten)]
    pub editing: Editing,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> crate::model::Result<Request> {
        let wishes = [(What::Install, &*self.packages), (What::Uninstall, &*self.uninstall)];
        self.editing.request(wishes, false)
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    args.editing.run(&args.request()?, session).await
}
