//! The client. The only place that reads its environment.

use osctl::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    // --direct runs the engine in this process, and its workers are this binary again.
    if let Some(code) = osctl::daemon::worker::worker() {
        return code;
    }
    // https://no-color.org: present and not empty.
    let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let environment = osctl::daemon::environment(std::env::vars_os());
    cli::main(std::env::args_os().collect(), environment, color)
}
