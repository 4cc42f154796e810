//! The daemon. The only place that reads its environment.

use clap::Parser as _;
use osctl::daemon::{self, Args, worker};
use osctl::engine::failpoint::Failpoints;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = worker::worker() {
        return code;
    }
    let mut args = Args::parse();
    args.roots.environment = daemon::environment(std::env::vars_os());
    if args.list_failpoints {
        let text = Failpoints::names().join("\n");
        // Nobody reading is no failure.
        let _ = writeln!(std::io::stdout(), "{text}");
        return ExitCode::SUCCESS;
    }
    let env = |name| std::env::var(name).ok();
    daemon::log(env("JOURNAL_STREAM").as_deref(), env("OSCTL_LOG").as_deref());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = Failpoints::parse(&env("OSCTL_FAILPOINTS").unwrap_or_default()).and_then(|points| {
        use osctl::model::Context as _;
        let runtime = runtime.doing("starting the runtime")?;
        let ended = if args.boot {
            runtime.block_on(daemon::boot(args, points))
        } else {
            runtime.block_on(daemon::run(args, points))
        };
        // Dropping it would wait for a thread that hangs in a system call, however long ago we gave up on it.
        runtime.shutdown_background();
        ended
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(hint = error.hint.as_deref(), "{}", error.chain());
            ExitCode::FAILURE
        }
    }
}
