//! `osctl release`.

use super::handing::Handing;
use crate::cli::Session;
use crate::client;
use crate::model::handover::Tool;
use crate::model::request::Request;

/// Arguments of `release`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Who gets the host: rpm-ostree or bootc [default: the only one that the image has].
    #[arg(long, value_name = "TOOL", value_parser = tool)]
    pub to: Option<Tool>,
    /// How to do it.
    #[command(flatten)]
    pub handing: Handing,
}

fn tool(text: &str) -> Result<Tool, String> {
    text.parse()
        .map_err(|error: crate::model::Error| format!("{error}; {}", error.advice().unwrap_or_default()))
}

impl Args {
    /// What is asked.
    pub fn request(&self) -> Request {
        Request::Release { to: self.to, options: self.handing.options() }
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> client::Result<u8> {
    args.handing.run(&args.request(), session).await
}
