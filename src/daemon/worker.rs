//! The other lives of our binaries.

use std::process::ExitCode;

/// Runs as a worker of a pull job, if we were started as one.
pub fn worker() -> Option<ExitCode> {
    (std::env::args_os().nth(1)? == crate::pull::WORKER_ARG).then(crate::pull::worker_main)
}
