//! Where the daemon's log goes.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Logs to the journal where standard error leads there, else to standard error.
///
/// `journal_stream` is `$JOURNAL_STREAM` and `filter` is `$OSCTL_LOG`; both are read by the binary.
pub fn init(journal_stream: Option<&str>, filter: Option<&str>) {
    // zbus and the container libraries log each message at info.
    let filter = EnvFilter::try_new(filter.unwrap_or("warn,osctl=info"))
        .unwrap_or_else(|_| EnvFilter::new("warn,osctl=info"));
    let registry = tracing_subscriber::registry().with(filter);
    // Without the prefix F_ that the layer puts before our fields by default.
    let journal = stderr_is(journal_stream)
        .then(|| tracing_journald::layer().ok())
        .flatten()
        .map(|layer| layer.with_field_prefix(None).with_syslog_identifier("osctld".into()));
    let started = match journal {
        Some(journal) => registry.with(journal).try_init(),
        None => registry
            .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false))
            .try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "a log is set up already");
    }
}

/// Whether standard error is the stream that systemd describes as `device:inode`.
fn stderr_is(stream: Option<&str>) -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    stream.is_some_and(|s| s == format!("{}:{}", stat.st_dev, stat.st_ino))
}
