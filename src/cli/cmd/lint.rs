//! `osctl lint`.

use crate::cli::{exit, render};
use crate::client::Result;
use crate::derive::lint::lint;
use crate::model::{Context, ErrorKind};
use std::path::PathBuf;

/// Arguments of `lint`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A drop-in, a treefile in an origin.d, a bound-image file, or a directory of them.
    pub path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<u8> {
    let report = lint(&args.path, &crate::bound::lint_path)?;
    if args.json {
        let text = serde_json::to_string(&report).kind(ErrorKind::Internal, "writing the report as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else {
        render::print(&render::lint(&report))?;
    }
    Ok(if report.is_clean() { exit::OK } else { exit::FAILED })
}
