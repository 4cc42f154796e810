//! The command line in three layers: [`args`] to a request, [`crate::client`] to the daemon, [`render`] to people.

pub mod args;
pub mod cmd;
pub mod exit;
mod follow;
pub mod render;

use crate::client::{Client, Failure, Result, Target};
use crate::engine::failpoint::Failpoints;
use crate::model::{Context, Error, ErrorKind};
use args::{Osctl, Verb};
use clap::{CommandFactory as _, Parser as _};
use render::Terminal;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// What a verb needs besides its own arguments.
#[derive(Debug)]
pub struct Session {
    /// The daemon.
    pub client: Client,
    /// How to print.
    pub terminal: Terminal,
}

/// Runs the command line and returns its exit code.
///
/// `failpoints` are for `--direct`, which runs the engine in this process with this `environment`.
pub fn main(
    argv: Vec<OsString>,
    environment: Vec<(String, String)>,
    color: bool,
    failpoints: crate::model::Result<Failpoints>,
) -> ExitCode {
    let terminal = Terminal::detect(color);
    let osctl = Osctl::parse_from(&argv);
    let config_root = osctl.place.config_root.clone().unwrap_or_else(|| "/".into());
    let target = match osctl.place.target(environment) {
        Ok(target) => target,
        Err(text) => Osctl::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit(),
    };
    let run = || run(osctl.verb, &target.armed(failpoints?), &config_root, &terminal, &argv);
    let code = run().unwrap_or_else(|failure| {
        render::failure(&terminal, &failure);
        exit::of(&failure)
    });
    ExitCode::from(code)
}

fn run(
    verb: Verb,
    target: &Target,
    config_root: &Path,
    terminal: &Terminal,
    argv: &[OsString],
) -> Result<u8> {
    // These need no daemon.
    match &verb {
        Verb::Lint(args) => return cmd::lint::run(args),
        Verb::Config(args) => return cmd::config::run(args, config_root),
        Verb::InternalDocs(args) => return cmd::docs::run(args),
        _ => {}
    }
    if matches!(target, Target::Direct(..)) && !rustix::process::geteuid().is_root() {
        let words: Vec<_> = argv.iter().skip(1).map(|a| a.to_string_lossy()).collect();
        return Err(Error::new(ErrorKind::NotAuthorized, "--direct changes the host itself and needs root")
            .hint(format!("sudo osctl {}", words.join(" ")))
            .into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.doing("starting the runtime")?;
    let code = runtime.block_on(async {
        let client = Client::connect(target, "osctl").await?;
        let session = Session { client, terminal: terminal.clone() };
        let code = dispatch(verb, &session).await;
        session.client.close().await;
        code
    });
    // The engine has drained, the answer is known: nothing that is left may keep the person waiting.
    runtime.shutdown_background();
    code
}

async fn dispatch(verb: Verb, session: &Session) -> Result<u8> {
    match verb {
        Verb::Status(args) => cmd::status::run(&args, session).await,
        Verb::Upgrade(args) => cmd::upgrade::run(&args, session).await,
        Verb::Rebase(args) => cmd::rebase::run(&args, session).await,
        Verb::Reconcile(args) => cmd::reconcile::run(&args, session).await,
        Verb::Rollback(args) => cmd::rollback::run(&args, session).await,
        Verb::Cancel(args) => cmd::cancel::run(&args, session).await,
        Verb::Jobs(args) => cmd::jobs::run(&args, session).await,
        Verb::Wait(args) => cmd::wait::run(&args, session).await,
        Verb::Pin(args) => cmd::pin::run(&args, true, session).await,
        Verb::Unpin(args) => cmd::pin::run(&args, false, session).await,
        Verb::Lint(_) | Verb::Config(_) | Verb::InternalDocs(_) => {
            Err(Failure::Refused(Error::new(ErrorKind::Internal, "this verb needs no daemon")))
        }
    }
}
