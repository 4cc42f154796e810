//! The exit codes: one table.

use crate::client::Failure;
use crate::model::ErrorKind;

/// Done.
pub const OK: u8 = 0;
/// Failed or cancelled.
pub const FAILED: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// Something else runs (`--no-wait`).
pub const BUSY: u8 = 3;
/// Not authorised.
pub const NOT_AUTHORIZED: u8 = 4;
/// No daemon.
pub const NO_DAEMON: u8 = 5;
/// Degraded (`--fail-if-degraded`).
pub const DEGRADED: u8 = 6;
/// Unchanged or pending, when asked for.
pub const UNCHANGED: u8 = 77;
/// Detached by Ctrl-C.
pub const DETACHED: u8 = 130;

/// What each code says.
pub const TABLE: &[(u8, &str)] = &[
    (OK, "Done."),
    (FAILED, "It failed or was cancelled."),
    (USAGE, "The command line, or a value in it, makes no sense."),
    (BUSY, "Something else runs, and --no-wait was given."),
    (NOT_AUTHORIZED, "Not authorised."),
    (NO_DAEMON, "The daemon cannot be reached."),
    (DEGRADED, "Something is wrong with the host (status --fail-if-degraded)."),
    (
        UNCHANGED,
        "Nothing changed (--unchanged-exit-77), or the next boot runs another deployment (status --pending-exit-77).",
    ),
    (DETACHED, "Ctrl-C: the job goes on without us."),
];

/// The table as `--help` shows it.
pub fn help() -> String {
    let lines = TABLE.iter().map(|(code, meaning)| format!("\n  {code:>3}  {meaning}"));
    format!("Exit codes:{}", lines.collect::<String>())
}

/// The code of a failure.
pub fn of(failure: &Failure) -> u8 {
    match failure {
        Failure::NoDaemon(_) => NO_DAEMON,
        Failure::Refused(error) => of_kind(error.kind),
    }
}

/// The code of an error.
pub fn of_kind(kind: ErrorKind) -> u8 {
    use ErrorKind as K;
    match kind {
        K::InvalidArgument => USAGE,
        K::Busy => BUSY,
        K::NotAuthorized => NOT_AUTHORIZED,
        K::Conflict
        | K::TooLate
        | K::Unsupported
        | K::Degraded
        | K::WrongState
        | K::Cancelled
        | K::Interrupted
        | K::InvalidDropIn
        | K::UnsupportedStanza
        | K::Specifier
        | K::NoUpdate
        | K::Rejected
        | K::Downgrade
        | K::DigestMismatch
        | K::ImageNotFound
        | K::AuthRequired
        | K::SignatureRejected
        | K::RegistryUnavailable
        | K::RateLimited
        | K::RepoUnavailable
        | K::DepsolveFailed
        | K::LockMismatch
        | K::ScriptletFailed
        | K::BoundImageFailed
        | K::NoSpace
        | K::BootNoSpace
        | K::EtcConflict
        | K::NotBooted
        | K::ReadOnly
        | K::Corrupt
        | K::Internal => FAILED,
    }
}
