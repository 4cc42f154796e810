//! What stands on the command line.

use super::{cmd, exit};
use crate::client::Target;
use crate::daemon::Roots;
use crate::model::request::Options;
use clap::CommandFactory as _;
use std::path::PathBuf;

/// Update this image-based host: the OS, its local changes and its app images, as one unit.
#[derive(Debug, clap::Parser)]
#[command(name = "osctl", version, infer_subcommands = false, disable_help_subcommand = true)]
pub struct Osctl {
    /// Where the daemon is.
    #[command(flatten)]
    pub place: Place,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where the daemon is; the system bus if nothing is said.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Where")]
pub struct Place {
    /// Talk to the osctld on the bus at this address.
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub bus: Option<String>,
    /// Talk to the osctld on the session bus.
    #[arg(long, global = true)]
    pub session: bool,
    /// Do the work in this process, with no daemon and no bus.
    #[arg(long, global = true)]
    pub direct: bool,
    /// With --direct: the physical root of the host to manage [default: /].
    #[arg(long, value_name = "DIR", global = true)]
    pub sysroot: Option<PathBuf>,
    /// With --direct, or for config: the root whose etc is read [default: /].
    #[arg(long, value_name = "DIR", global = true)]
    pub config_root: Option<PathBuf>,
    /// With --direct: where state is kept [default: ostree/osctl in the sysroot].
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,
}

impl Place {
    /// The place, where a verb says by itself that it is about a sysroot which no daemon has.
    #[must_use]
    pub fn for_sysroot(mut self) -> Place {
        self.direct |= self.sysroot.is_some() && self.bus.is_none() && !self.session;
        self
    }

    /// The one place that the flags name. clap cannot check flags that may stand before and behind the verb.
    pub fn target(&self, environment: Vec<(String, String)>) -> Result<Target, &'static str> {
        let roots = self.sysroot.is_some() || self.config_root.is_some() || self.state_dir.is_some();
        if roots && !self.direct {
            return Err("--sysroot, --config-root and --state-dir need --direct: a daemon has its own");
        }
        match (&self.bus, self.session, self.direct) {
            (None, false, false) => Ok(Target::System),
            (Some(address), false, false) => Ok(Target::Bus(address.clone())),
            (None, true, false) => Ok(Target::Session),
            (None, false, true) => Ok(Target::Direct(
                Roots {
                    sysroot: self.sysroot.clone().unwrap_or_else(|| "/".into()),
                    config_root: self.config_root.clone().unwrap_or_else(|| "/".into()),
                    state_dir: self.state_dir.clone(),
                    environment,
                },
                Default::default(),
            )),
            _ => Err("only one of --bus, --session and --direct can be used"),
        }
    }
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Show what runs, what is next, and what is going on.
    Status(cmd::status::Args),
    /// Move to the newest image of the tracked reference, with the current drop-ins.
    #[command(visible_alias = "update")]
    Upgrade(cmd::upgrade::Args),
    /// Say what an upgrade, a rebase or a reconcile would bring and take, and download nothing.
    Plan(cmd::plan::Args),
    /// Move to another image, with the current drop-ins.
    #[command(visible_alias = "switch")]
    Rebase(cmd::rebase::Args),
    /// Apply the current drop-ins to the OS that is here.
    Reconcile(cmd::reconcile::Args),
    /// Declare packages in 90-osctl.yaml, and apply the drop-ins.
    Install(cmd::install::Args),
    /// Declare packages no more in 90-osctl.yaml, and apply the drop-ins.
    Uninstall(cmd::uninstall::Args),
    /// Remove or replace packages of the image with 90-osctl.yaml, and apply the drop-ins.
    Override(cmd::overrides::Args),
    /// Show the kernel arguments, or change them with 90-osctl.yaml and apply the drop-ins.
    Kargs(cmd::kargs::Args),
    /// Take over a host that rpm-ostree or bootc manages.
    Adopt(cmd::adopt::Args),
    /// Hand the host back to rpm-ostree or bootc.
    Release(cmd::release::Args),
    /// Make the previous deployment the next boot's.
    Rollback(cmd::rollback::Args),
    /// List, check and fetch the app images that deployments bind.
    Bound(cmd::bound::Args),
    /// Cancel a job.
    Cancel(cmd::cancel::Args),
    /// List active and recent jobs.
    Jobs(cmd::jobs::Args),
    /// Wait for a job to end.
    Wait(cmd::wait::Args),
    /// Keep a deployment from being removed.
    Pin(cmd::pin::Args),
    /// Stop keeping a deployment.
    Unpin(cmd::pin::Args),
    /// Show how what two deployments are made of differs.
    Diff(cmd::diff::Args),
    /// Name the drop-in that a path, package, unit, user or kernel argument came from.
    Why(cmd::why::Args),
    /// Work with the locks of packages.
    Lock(cmd::lock::Args),
    /// Build an image from a base and drop-ins, on any machine.
    Derive(cmd::derive::Args),
    /// Make and look at bundles: updates for hosts without a network.
    Bundle(cmd::bundle::Args),
    /// Check drop-ins and bound-image files, offline and without root.
    Lint(cmd::lint::Args),
    /// Explain the configuration.
    Config(cmd::config::Args),
    /// Write manual pages and shell completions.
    #[command(hide = true)]
    InternalDocs(cmd::docs::Args),
}

impl Verb {
    /// Whether it is of use for a sysroot that is being installed, where there is no daemon yet.
    pub fn fills_a_sysroot(&self) -> bool {
        matches!(self, Verb::Bound(cmd::bound::Args { what: Some(cmd::bound::What::Pull { .. }), .. }))
    }

    /// How the job is followed, if the verb has one.
    pub fn following(&self) -> Option<&Following> {
        match self {
            Verb::Upgrade(args) => Some(&args.following),
            Verb::Plan(args) => Some(&args.following),
            Verb::Rebase(args) => Some(&args.following),
            Verb::Reconcile(args) => Some(&args.following),
            Verb::Install(args) => Some(&args.editing.following),
            Verb::Uninstall(args) => Some(&args.editing.following),
            Verb::Override(args) => Some(&args.editing().following),
            Verb::Kargs(args) => Some(&args.editing.following),
            Verb::Adopt(args) => Some(&args.handing.following),
            Verb::Release(args) => Some(&args.handing.following),
            Verb::Rollback(args) => Some(&args.following),
            Verb::Wait(args) => Some(&args.following),
            Verb::Bound(args) => args.following(),
            Verb::Status(_) | Verb::Cancel(_) | Verb::Jobs(_) | Verb::Pin(_) | Verb::Unpin(_) => None,
            Verb::Why(_)
            | Verb::Diff(_)
            | Verb::Lock(_)
            | Verb::Derive(_)
            | Verb::Bundle(_)
            | Verb::Lint(_)
            | Verb::Config(_)
            | Verb::InternalDocs(_) => None,
        }
    }
}

/// The command line with what every `--help` ends with.
pub fn command() -> clap::Command {
    Osctl::command().mut_subcommands(|verb| verb.after_long_help(exit::help())).after_long_help(exit::help())
}

/// What a job that deploys may do, and when.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Allowed {
    /// Replace a deployment that somebody else staged.
    #[arg(long)]
    pub replace_staged: bool,
    /// Allow what a rollback or a failed boot rejected.
    #[arg(long)]
    pub allow_rejected: bool,
    /// Fail instead of waiting for other jobs.
    #[arg(long)]
    pub no_wait: bool,
}

impl Allowed {
    /// The options with what is allowed.
    pub fn with(self, options: Options) -> Options {
        let Allowed { replace_staged, allow_rejected, no_wait } = self;
        Options { replace_staged, allow_rejected, no_wait, ..options }
    }
}

/// How to follow a job.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Following {
    /// Print nothing but errors.
    #[arg(short, long)]
    pub quiet: bool,
    /// Write progress as JSON lines to this file descriptor.
    #[arg(long, value_name = "FD")]
    pub progress_fd: Option<u32>,
    /// Exit with 77 if nothing changed (for a check: if there is nothing to do).
    #[arg(long)]
    pub unchanged_exit_77: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_long_help_ends_with_the_exit_codes() {
        for words in [["osctl", "--help"].as_slice(), &["osctl", "upgrade", "--help"]] {
            let help = command().try_get_matches_from(words).unwrap_err().to_string();
            assert!(help.contains("Exit codes:") && help.contains(" 77  "), "{help}");
        }
    }

    #[test]
    fn the_place_may_stand_before_and_behind_the_verb() {
        let target = |words: &[&str]| Osctl::parse_from(words).place.target(Vec::new());
        assert!(matches!(target(&["osctl", "status"]), Ok(Target::System)));
        let both = ["osctl", "--direct", "status", "--sysroot", "/x"];
        assert!(matches!(target(&both), Ok(Target::Direct(r, _)) if r.sysroot.as_os_str() == "/x"));
        assert!(target(&["osctl", "status", "--sysroot", "/x"]).is_err());
        let pull = Osctl::parse_from(["osctl", "bound", "pull", "--sysroot", "/x"]);
        assert!(pull.verb.fills_a_sysroot());
        let target_of_pull = pull.place.for_sysroot().target(Vec::new());
        assert!(matches!(target_of_pull, Ok(Target::Direct(r, _)) if r.sysroot.as_os_str() == "/x"));
        assert!(target(&["osctl", "--session", "status", "--bus", "x"]).is_err());
    }
}
