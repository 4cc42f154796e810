//! The client. The only place that reads its environment.

use osctl::cli;
use osctl::daemon::worker;
use osctl::engine::failpoint::Failpoints;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = worker::worker() {
        return code;
    }
    // https://no-color.org: present and not empty.
    let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let failpoints = Failpoints::parse(&std::env::var("OSCTL_FAILPOINTS").unwrap_or_default());
    let environment = osctl::daemon::environment(std::env::vars_os());
    cli::main(std::env::args_os().collect(), environment, color, failpoints)
}
