//! The client. The only place that reads its environment.

use osctl::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    // https://no-color.org: present and not empty.
    let color = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    cli::main(std::env::args_os().collect(), color)
}
