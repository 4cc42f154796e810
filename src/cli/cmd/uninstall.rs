//! `osctl uninstall`.

use super::editing::Editing;
use crate::cli::Session;
use crate::client::Result;
use crate::model::edit::What;
use crate::model::request::Request;

/// Arguments of `uninstall`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of packages.
    #[arg(required = true, value_name = "PACKAGE")]
    pub packages: Vec<String>,
    /// Ask for this package instead; can be repeated.
    #[arg(long, value_name = "PACKAGE")]
    pub install: Vec<String>,
    /// How to edit.
    #[command(flatten)]
    pub editing: Editing,
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> crate::model::Result<Request> {
        let wishes = [(What::Uninstall, &*self.packages), (What::Install, &*self.install)];
        self.editing.request(wishes, false)
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    args.editing.run(&args.request()?, session).await
}
