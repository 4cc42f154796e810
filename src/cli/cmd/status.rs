//! `osctl status`.

use crate::cli::{Session, exit, render};
use crate::client::Result;
use crate::model::status::Status;
use crate::model::{Context, ErrorKind};

/// Arguments of `status`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Args {
    /// Show checksums, owners of kernel arguments, derived files and labels.
    #[arg(short, long)]
    pub verbose: bool,
    /// Show the booted deployment only.
    #[arg(short, long)]
    pub booted: bool,
    /// Print JSON (docs/status.schema.json).
    #[arg(long)]
    pub json: bool,
    /// Exit with 77 if the next boot runs another deployment.
    #[arg(long)]
    pub pending_exit_77: bool,
    /// Exit with 6 if something is wrong.
    #[arg(long)]
    pub fail_if_degraded: bool,
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let text = session.client.describe().await?;
    let mut status: Status =
        serde_json::from_str(&text).kind(ErrorKind::Internal, "reading what the daemon describes")?;
    let code = code(args, &status);
    if args.booted {
        only_booted(&mut status);
    }
    if args.json && !args.booted {
        // Byte for byte what Describe answers.
        render::print(&format!("{text}\n"))?;
    } else if args.json {
        let text = serde_json::to_string(&status).kind(ErrorKind::Internal, "writing the status as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else {
        render::print(&render::status::human(&status, args.verbose))?;
    }
    Ok(code)
}

/// Leaves the booted deployment, and no id of another.
fn only_booted(status: &mut Status) {
    status.deployments.retain(|d| d.booted);
    let shown: Vec<String> = status.deployments.iter().map(|d| d.id.clone()).collect();
    for id in [&mut status.staged, &mut status.rollback] {
        id.take_if(|id| !shown.contains(id));
    }
}

fn code(args: &Args, status: &Status) -> u8 {
    let degraded = matches!(status.state.as_str(), "degraded" | "read-only")
        || status.last_outcome.as_ref().is_some_and(|o| !o.ok);
    if args.fail_if_degraded && degraded {
        exit::DEGRADED
    } else if args.pending_exit_77 && status.next().is_some_and(|d| d.staged || status.reboot_needed()) {
        exit::UNCHANGED
    } else {
        exit::OK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_booted_deployment_alone_leaves_no_dangling_ids() {
        let golden = include_str!("../render/status/golden/status.json");
        let mut status: Status = serde_json::from_str(golden).unwrap();
        assert!(status.staged.is_some() && status.rollback.is_some());
        only_booted(&mut status);
        assert_eq!((status.staged.as_ref(), status.rollback.as_ref()), (None, None));
        assert_eq!(status.deployments.len(), 1);
        assert_eq!(status.booted, Some(status.deployments[0].id.clone()));
    }
}
