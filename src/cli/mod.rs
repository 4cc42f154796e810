//! The command line in three layers: [`args`] to a request, [`crate::client`] to the daemon, [`render`] to people.

mod alone;
pub mod args;
pub mod cmd;
pub mod exit;
mod follow;
pub mod render;
mod select;

use crate::client::{Client, Failure, Result, Target};
use crate::engine::failpoint::Failpoints;
use crate::model::{Context, Error, ErrorKind};
use crate::sys::{fd, mounts};
use args::{Osctl, Verb};
use clap::FromArgMatches as _;
use render::Terminal;
use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// What a verb needs besides its own arguments.
#[derive(Debug)]
pub struct Session {
    /// The daemon.
    pub client: Client,
    /// How to print.
    pub terminal: Terminal,
    /// Where JSON lines about the progress go.
    pub progress: Option<Arc<File>>,
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
    let matches = args::command().get_matches_from(&argv);
    let Osctl { place, verb } = Osctl::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let config_root = place.config_root.clone().unwrap_or_else(|| "/".into());
    let run = || {
        if let Some(code) = offline(&verb, &config_root)? {
            return Ok(code);
        }
        if let Verb::Derive(args) = &verb {
            return cmd::derive::run(args, &terminal, &config_root, environment, failpoints?);
        }
        if let Verb::Bundle(args) = &verb {
            return cmd::bundle::run(args, &terminal, &config_root, environment, failpoints?);
        }
        let place = if verb.fills_a_sysroot() { place.for_sysroot() } else { place };
        let target = match place.target(environment) {
            Ok(target) => target,
            Err(text) => args::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit(),
        };
        run(verb, &target.armed(failpoints?), &terminal, &argv)
    };
    let code = run().unwrap_or_else(|failure| {
        render::failure(&terminal, &failure);
        exit::of(&failure)
    });
    ExitCode::from(code)
}

/// Runs a verb that needs no daemon, wherever that is.
fn offline(verb: &Verb, config_root: &Path) -> Result<Option<u8>> {
    match verb {
        Verb::Lint(args) => cmd::lint::run(args).map(Some),
        Verb::Config(args) => cmd::config::run(args, config_root).map(Some),
        Verb::InternalDocs(args) => cmd::docs::run(args).map(Some),
        _ => Ok(None),
    }
}

fn run(verb: Verb, target: &Target, terminal: &Terminal, argv: &[OsString]) -> Result<u8> {
    // What makes no sense is refused before anybody is asked for anything.
    match &verb {
        Verb::Upgrade(args) => drop(args.request()?),
        Verb::Rebase(args) => drop(args.request()?),
        Verb::Plan(args) => drop(args.request()?),
        Verb::Install(args) => drop(args.request()?),
        Verb::Uninstall(args) => drop(args.request()?),
        Verb::Override(args) => drop(args.request()?),
        Verb::Kargs(args) => drop(args.request()?),
        _ => {}
    }
    let progress = verb.following().and_then(|f| f.progress_fd).map(fd::inherited).transpose()?.map(Arc::new);
    if matches!(target, Target::Direct(..)) && !rustix::process::geteuid().is_root() {
        let words: Vec<_> = argv.iter().skip(1).map(|a| a.to_string_lossy()).collect();
        return Err(Error::new(ErrorKind::NotAuthorized, "--direct changes the host itself and needs root")
            .hint(format!("sudo osctl {}", words.join(" ")))
            .into());
    }
    if let Target::Direct(roots, _) = target
        && roots.sysroot == Path::new("/")
    {
        // Before there are threads. Where it is not allowed, reading still is; who wants to write is told then.
        let _ = mounts::unshare();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.doing("starting the runtime")?;
    let code = runtime.block_on(async {
        let client = Client::connect(target, "osctl").await?;
        let session = Session { client, terminal: terminal.clone(), progress };
        let code = dispatch(verb, &session).await;
        // Who left does not wait for what was left.
        if !matches!(code, Ok(exit::DETACHED)) {
            session.client.close().await;
        }
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
        Verb::Plan(args) => cmd::plan::run(&args, session).await,
        Verb::Rebase(args) => cmd::rebase::run(&args, session).await,
        Verb::Reconcile(args) => cmd::reconcile::run(&args, session).await,
        Verb::Install(args) => cmd::install::run(&args, session).await,
        Verb::Uninstall(args) => cmd::uninstall::run(&args, session).await,
        Verb::Override(args) => cmd::overrides::run(&args, session).await,
        Verb::Kargs(args) => cmd::kargs::run(&args, session).await,
        Verb::Adopt(args) => cmd::adopt::run(&args, session).await,
        Verb::Release(args) => cmd::release::run(&args, session).await,
        Verb::Rollback(args) => cmd::rollback::run(&args, session).await,
        Verb::Bound(args) => cmd::bound::run(&args, session).await,
        Verb::Cancel(args) => cmd::cancel::run(&args, session).await,
        Verb::Jobs(args) => cmd::jobs::run(&args, session).await,
        Verb::Wait(args) => cmd::wait::run(&args, session).await,
        Verb::Pin(args) => cmd::pin::run(&args, true, session).await,
        Verb::Unpin(args) => cmd::pin::run(&args, false, session).await,
        Verb::Diff(args) => cmd::diff::run(&args, session).await,
        Verb::Why(args) => cmd::why::run(&args, session).await,
        Verb::Lock(args) => cmd::lock::run(&args, session).await,
        Verb::Derive(_) | Verb::Bundle(_) | Verb::Lint(_) | Verb::Config(_) | Verb::InternalDocs(_) => {
            Err(Failure::Refused(Error::new(ErrorKind::Internal, "this verb needs no daemon")))
        }
    }
}
