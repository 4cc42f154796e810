//! `osctl lint`.

use crate::cli::{exit, render};
use crate::client::Result;
use crate::model::lint::LintReport;
use crate::model::{Context, ErrorKind};
use crate::{bound, derive};
use std::path::PathBuf;

/// Arguments of `lint`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A drop-in, a bound-image file or a quadlet file, a directory of them, or the root of an image.
    pub path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<u8> {
    let mut files = derive::lint::lint(&args.path)?;
    if files.is_empty() || args.path.is_dir() {
        files.extend(bound::lint(&args.path)?);
    }
    let report = LintReport::new(files);
    if args.json {
        let text = serde_json::to_string(&report).kind(ErrorKind::Internal, "writing the report as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else {
        render::print(&render::lint(&report))?;
    }
    Ok(if report.is_clean() { exit::OK } else { exit::FAILED })
}
