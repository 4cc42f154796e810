//! The daemon's life: own the name, start the engine, serve, drain, leave.

mod idle;
mod log;
pub mod worker;

pub use log::init as log;

use crate::dbus::{Authority, NAME, Service};
use crate::engine::failpoint::Failpoints;
use crate::engine::{Engine, Handle, Setup};
use crate::model::{Context, Error, ErrorKind, Result};
use futures_util::StreamExt;
use idle::Idle;
use libsystemd::daemon::NotifyState;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use zbus::fdo::{RequestNameFlags, RequestNameReply};

/// How long the running job may take to end after SIGTERM. `TimeoutStopSec=` of the unit is longer.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a call that was sent before the name was released may need to reach us.
const STRAGGLERS: Duration = Duration::from_millis(100);

/// Where the host is. The same for the daemon and for `osctl --direct`.
#[derive(Debug, Clone, clap::Args)]
pub struct Roots {
    /// The physical root of the host to manage.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub sysroot: PathBuf,
    /// The root whose etc/osctl is read.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub config_root: PathBuf,
    /// Where state is kept [default: ostree/osctl in the sysroot].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The environment that the binary was started with; children get proxies and certificate paths of it.
    #[arg(skip)]
    pub environment: Vec<(String, String)>,
}

impl Roots {
    /// Starts an engine on this host.
    pub fn engine(&self, failpoints: Failpoints) -> Handle {
        Engine::start(Setup {
            sysroot: self.sysroot.clone(),
            config_root: self.config_root.clone(),
            state_dir: self.state_dir.clone(),
            failpoints,
            environment: self.environment.clone(),
        })
    }
}

/// The variables that are text; others are none that a proxy or a certificate path could be in.
pub fn environment(variables: std::env::VarsOs) -> Vec<(String, String)> {
    let text = |(k, v): (OsString, OsString)| Some((k.into_string().ok()?, v.into_string().ok()?));
    variables.filter_map(text).collect()
}

/// osctld: owns the OS deployments of this host.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "osctld", version)]
pub struct Args {
    /// Where the host is.
    #[command(flatten)]
    pub roots: Roots,
    /// Serve on this bus, for our own uid only [default: the system bus].
    #[arg(long, value_name = "ADDRESS", conflicts_with = "session")]
    pub bus: Option<String>,
    /// Serve on the session bus, for our own uid only.
    #[arg(long)]
    pub session: bool,
    /// Exit after this long without a job, a call and a client that watches.
    #[arg(long, value_name = "SECONDS")]
    pub idle_exit: Option<u64>,
    /// Take note of this boot (what the last update came to, which digests the names of bound images mean) and exit.
    /// Needs no bus.
    #[arg(long, conflicts_with_all = ["bus", "session", "idle_exit"])]
    pub boot: bool,
    /// Print the names of all failpoints and exit.
    #[arg(long)]
    pub list_failpoints: bool,
}

/// Why the daemon stops serving.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Told,
    Idle,
    BusLost,
}

/// Serves until told to stop, idle, or cut off from the bus, which is an error.
pub async fn run(args: Args, failpoints: Failpoints) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).doing("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).doing("listening for SIGINT")?;

    let service = connect(&args).await?;
    let connection = service.connection().clone();
    // From here on every message of the bus is seen: the stream also tells when the bus goes away.
    let mut messages = zbus::MessageStream::from(&connection);
    watch_clients(&connection).await?;
    own_name(&connection).await?;
    // Only the owner of the name touches the disk.
    let handle = args.roots.engine(failpoints);
    service.attach(handle.clone());
    notify(&[NotifyState::Ready, NotifyState::Status("Serving org.osctl1".into())]);
    tracing::info!(name = NAME, sysroot = %args.roots.sysroot.display(), "serving");

    let mut idle = Idle::new(args.idle_exit.map(Duration::from_secs));
    let end = loop {
        tokio::select! {
            _ = terminate.recv() => break End::Told,
            _ = interrupt.recv() => break End::Told,
            message = messages.next() => match message {
                Some(Ok(message)) => idle.message(&message),
                Some(Err(error)) => {
                    tracing::debug!(%error, "reading from the bus");
                    break End::BusLost;
                }
                None => break End::BusLost,
            },
            () = idle.elapsed() => if !service.busy() { break End::Idle } else { idle.touch() },
        }
    };
    leave(&end, &connection, &service, &handle).await
}

/// Takes note of this boot: recovers from a crash, judges the last update, and gives the bound images of the booted
/// deployment their names.
pub async fn boot(args: Args, failpoints: Failpoints) -> Result<()> {
    let handle = args.roots.engine(failpoints);
    let settled = handle.reload().await;
    let status = handle.status();
    handle.drain().await?;
    settled?;
    for problem in &status.reasons {
        tracing::error!("{problem}");
    }
    match &status.last_outcome {
        Some(outcome) if outcome.ok => tracing::info!(checksum = outcome.checksum, "{}", outcome.message),
        Some(outcome) => {
            tracing::error!(checksum = outcome.checksum, phase = outcome.phase, "{}", outcome.message)
        }
        None => tracing::info!("no update was waiting for this boot"),
    }
    Ok(())
}

async fn connect(args: &Args) -> Result<Service> {
    let (builder, authority, what) = match (&args.bus, args.session) {
        (Some(address), _) => {
            let builder = zbus::connection::Builder::address(address.as_str());
            (builder, Authority::OwnUid, format!("connecting to the bus at {address}"))
        }
        (None, true) => {
            (zbus::connection::Builder::session(), Authority::OwnUid, "connecting to the session bus".into())
        }
        (None, false) => {
            (zbus::connection::Builder::system(), Authority::Polkit, "connecting to the system bus".into())
        }
    };
    match builder {
        Ok(builder) => Service::connect(builder, authority).await,
        Err(error) => Err(error),
    }
    .doing(what)
}

/// Lets the bus tell who leaves it. The signals come in the stream of all messages, in order with the calls.
async fn watch_clients(connection: &zbus::Connection) -> Result<()> {
    let watching = "watching clients";
    let bus = zbus::fdo::DBusProxy::new(connection).await.doing(watching)?;
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.DBus")
        .and_then(|r| r.interface("org.freedesktop.DBus"))
        .and_then(|r| r.member("NameOwnerChanged"))
        .doing(watching)?
        .build();
    bus.add_match_rule(rule).await.doing(watching)
}

async fn own_name(connection: &zbus::Connection) -> Result<()> {
    let taken = || {
        Error::new(ErrorKind::Conflict, format!("another osctld owns {NAME} on this bus"))
            .hint("systemctl status osctld.service shows it; two daemons must never run on one host")
    };
    match connection.request_name_with_flags(NAME, RequestNameFlags::DoNotQueue.into()).await {
        Ok(RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner) => Ok(()),
        Ok(RequestNameReply::InQueue | RequestNameReply::Exists) | Err(zbus::Error::NameTaken) => {
            Err(taken())
        }
        Err(error) => Err(error).kind(ErrorKind::NotAuthorized, format!("owning {NAME} on the bus")),
    }
}

async fn leave(end: &End, connection: &zbus::Connection, service: &Service, handle: &Handle) -> Result<()> {
    tracing::info!(reason = ?end, "leaving");
    notify(&[NotifyState::Stopping]);
    if *end != End::BusLost {
        // The name goes first: the next call activates our successor instead of meeting a closed door.
        if let Err(error) = connection.release_name(NAME).await {
            tracing::debug!(%error, "releasing the name, ignored because we leave");
        }
        tokio::time::sleep(STRAGGLERS).await;
    }
    // After idleness a job can only come from a call that overtook the release: it may run to its end.
    while *end == End::Idle && service.busy() {
        tokio::time::sleep(STRAGGLERS).await;
    }
    drain(handle).await?;
    match end {
        End::Told | End::Idle => Ok(()),
        End::BusLost => Err(Error::new(ErrorKind::Interrupted, "the connection to the bus is lost")
            .hint("systemd restarts osctld.service when the bus is back")),
    }
}

/// Waits for the running job: for ever where it writes the boot entries, and else for a while only.
async fn drain(handle: &Handle) -> Result<()> {
    let drained = handle.drain();
    tokio::pin!(drained);
    loop {
        match tokio::time::timeout(DRAIN, &mut drained).await {
            Ok(drained) => return drained,
            Err(_) if handle.status().jobs.iter().any(|j| j.point_of_no_return && !j.state.is_final()) => {
                tracing::info!("waiting for a job that is past its point of no return");
            }
            // Safe: what a killed job leaves behind is recovered at the next start.
            Err(_) => {
                tracing::warn!(seconds = DRAIN.as_secs(), "leaving in the middle of a job");
                return Ok(());
            }
        }
    }
}

fn notify(state: &[NotifyState]) {
    // Without NOTIFY_SOCKET this does nothing.
    if let Err(error) = libsystemd::daemon::notify(false, state) {
        tracing::debug!(%error, "notifying systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::actor::Command;
    use crate::model::job::{Event, Initiator, Job};
    use crate::model::status::Status;
    use std::sync::Arc;
    use tokio::sync::{mpsc, watch};

    #[tokio::test(start_paused = true)]
    async fn a_drain_has_an_end_but_never_in_the_middle_of_the_boot_entries() {
        let mut job = Job::new("1".into(), "upgrade", Initiator::default(), 1);
        job.apply(&Event::Started { at: 1 });
        let status = |job: &Job| Arc::new(Status { jobs: vec![job.clone()], ..Status::initializing() });
        let (commands, mut inbox) = mpsc::channel(1);
        let (publish, watch) = watch::channel(status(&job));
        let handle = Handle::from_parts(commands, watch);
        let (asked, mut asked_for) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Command::Drain { reply }) = inbox.recv().await {
                asked.send(reply).unwrap();
            }
        });
        let start = tokio::time::Instant::now();
        drain(&handle).await.unwrap();
        assert!(start.elapsed() < 2 * DRAIN, "a job that hangs is left");

        job.apply(&Event::PointOfNoReturn);
        publish.send_replace(status(&job));
        let waiting = drain(&handle);
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(20 * DRAIN, &mut waiting).await.is_err(), "it is waited for");
        let _ = asked_for.recv().await.unwrap();
        asked_for.recv().await.unwrap().send(()).unwrap();
        waiting.await.unwrap();
    }
}
