//! The other lives of the `osctld` binary.

use std::process::ExitCode;

/// Runs as a worker of a pull job, if we were started as one.
pub fn worker() -> Option<ExitCode> {
    None
}
