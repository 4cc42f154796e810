//! `osctl lint`.

use crate::cli::{exit, render};
use crate::client::Result;
use crate::model::{Context, Error, ErrorKind};
use std::path::{Path, PathBuf};

/// Arguments of `lint`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A drop-in, a bound-image file, or a directory of them.
    pub path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// CALL SITE: becomes `crate::derive::lint::lint(path)`, and returns `{"files": [...], "problems":
/// [{"file", "line", "message", "hint"}]}`.
fn run_lint(path: &Path) -> crate::model::Result<serde_json::Value> {
    Err(Error::new(ErrorKind::Unsupported, format!("this build cannot lint {}", path.display())))
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<u8> {
    let report = run_lint(&args.path)?;
    if args.json {
        let text = serde_json::to_string(&report).kind(ErrorKind::Internal, "writing the report as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else {
        render::print(&render::lint(&report))?;
    }
    let clean = report["problems"].as_array().is_none_or(Vec::is_empty);
    Ok(if clean { exit::OK } else { exit::FAILED })
}
