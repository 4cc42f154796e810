//! The client of `org.osctl1`: over a bus, or over a socket pair to an engine of our own.

mod job;
pub mod proxy;

use crate::daemon::Roots;
use crate::dbus::{Authority, NAME, Service, convert, error, path};
use crate::engine::Handle;
use crate::engine::failpoint::Failpoints;
use crate::model::difference::Between;
use crate::model::job::Job;
use crate::model::request::{BoundName, Request};
use crate::model::status::Status;
use crate::model::{Context, Error, ErrorKind};
use futures_util::StreamExt;
use std::os::fd::AsFd;
use std::time::Duration;
use zbus::zvariant::{OwnedObjectPath, Value};

/// A job is read again at least this often, whatever signals say or miss.
const REREAD: Duration = Duration::from_secs(2);
/// How long a daemon that has just started may need before we show that it is still loading. As long as the bus waits
/// for an activated service: a host that is still booting can take seconds for what else takes milliseconds.
const LOADING: Duration = Duration::from_secs(25);
/// How often a daemon that is loading is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(30);
/// How long a restarting daemon may be away while we follow a job.
const RESTART: Duration = Duration::from_secs(30);

/// Why a call came to nothing.
#[derive(Debug)]
pub enum Failure {
    /// There is nobody to talk to.
    NoDaemon(Error),
    /// The daemon, or we, said no.
    Refused(Error),
}

/// Result of talking to the daemon.
pub type Result<T> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Refused(error)
    }
}

/// Where the daemon is.
#[derive(Debug, Clone)]
pub enum Target {
    /// On the system bus.
    System,
    /// On the session bus.
    Session,
    /// On the bus at this address.
    Bus(String),
    /// Nowhere: run the engine in this process.
    Direct(Roots, Failpoints),
}

impl Target {
    /// The same, with failpoints for an engine in this process. A daemon has its own.
    pub fn armed(self, failpoints: Failpoints) -> Target {
        match self {
            Target::Direct(roots, _) => Target::Direct(roots, failpoints),
            Target::System | Target::Session | Target::Bus(_) => self,
        }
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    connection: zbus::Connection,
    /// The other end of the socket pair, which serves.
    direct: Option<(Service, Handle)>,
    label: String,
}

impl Client {
    /// Connects. `label` is what we call ourselves in job lists.
    pub async fn connect(target: &Target, label: &str) -> Result<Client> {
        let builder = match target {
            Target::System => zbus::connection::Builder::system(),
            Target::Session => zbus::connection::Builder::session(),
            Target::Bus(address) => zbus::connection::Builder::address(address.as_str()),
            Target::Direct(roots, points) => {
                return Client::direct(roots.engine(points.clone()), label).await;
            }
        };
        let connection = match builder {
            Ok(builder) => builder.build().await,
            Err(error) => Err(error),
        };
        let connection = connection.map_err(|e| {
            let what = match target {
                Target::Bus(address) => format!("cannot reach the bus at {address}"),
                Target::Session => "cannot reach the session bus".into(),
                Target::System | Target::Direct(..) => "cannot reach the system bus".into(),
            };
            Failure::NoDaemon(
                Error::new(ErrorKind::Internal, what)
                    .source(e)
                    .hint("without a bus, run this one command in-process: sudo osctl --direct ..."),
            )
        })?;
        Ok(Client { connection, direct: None, label: label.to_owned() })
    }

    /// Serves an engine of our own to ourselves.
    pub async fn direct(handle: Handle, label: &str) -> Result<Client> {
        let (ours, theirs) = tokio::net::UnixStream::pair().doing("making a socket pair")?;
        let guid = zbus::Guid::generate();
        let server = zbus::connection::Builder::unix_stream(theirs).server(guid).doing("making a server")?;
        let client = zbus::connection::Builder::unix_stream(ours).p2p();
        let server = Service::connect(server.p2p(), Authority::Peer);
        let (service, connection) =
            tokio::try_join!(server, client.build()).doing("connecting to ourselves")?;
        service.attach(handle.clone());
        Ok(Client { connection, direct: Some((service, handle)), label: label.to_owned() })
    }

    /// Whether jobs end with this process.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Ends an engine of our own; a daemon is left alone.
    pub async fn close(self) {
        if let Some((_service, handle)) = self.direct
            && let Err(error) = handle.drain().await
        {
            tracing::debug!(error = %error.chain(), "draining");
        }
    }

    /// Submits a request and returns the id of its job. A `Pin` returns when it is done, without one.
    pub async fn submit(&self, request: &Request) -> Result<Option<String>> {
        let manager = proxy::ManagerProxy::new(&self.connection).await.map_err(failure)?;
        let mut options = request.options().map(convert::encode).unwrap_or_default();
        options.insert("client-id".into(), Value::from(self.label.clone()));
        let path = match request {
            Request::Check(_) => manager.check(&options).await,
            Request::Plan { goal, .. } => {
                options.extend(convert::encode_goal(goal));
                manager.plan(&options).await
            }
            Request::Upgrade(_) => manager.upgrade(&options).await,
            Request::Rebase { image, .. } => manager.rebase(&image.to_string(), &options).await,
            Request::ImportBundle { bundle, image, .. } => {
                options.extend(image.iter().map(|i| ("image".to_owned(), Value::from(i.to_string()))));
                manager.import_bundle(bundle.as_fd().into(), &options).await
            }
            Request::Reconcile(_) => manager.reconcile(&options).await,
            Request::EditDerivation { edit, .. } => {
                options.extend(convert::encode_edit(edit));
                manager.edit_derivation(&options).await
            }
            Request::Adopt(_) => manager.adopt(&options).await,
            Request::Release { to, .. } => {
                options.extend(to.map(|tool| ("to".to_owned(), Value::from(tool.name()))));
                manager.release(&options).await
            }
            Request::Rollback { reject } => {
                options.insert("reject".into(), Value::from(*reject));
                manager.rollback(&options).await
            }
            Request::Verify { what, .. } => {
                let what: Vec<&str> = what.iter().map(|s| s.name()).collect();
                manager.verify(&what, &options).await
            }
            Request::PullBound { only: None, .. } => manager.pull_bound(&options).await,
            Request::PullBound { only: Some(only), .. } => {
                let path = self.bound(only).await?;
                let proxy = proxy::BoundImageProxy::new(&self.connection, path).await;
                proxy.map_err(failure)?.pull(&options).await
            }
            Request::Pin { deployment, pinned } => {
                let proxy = proxy::DeploymentProxy::new(&self.connection, path::deployment(deployment)).await;
                proxy.map_err(failure)?.set_pinned(*pinned).await.map_err(failure)?;
                return Ok(None);
            }
        };
        let path = path.map_err(failure)?;
        path::job_id(path.as_str()).map(Some).ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("{} is not the path of a job", path.as_str())).into()
        })
    }

    /// The object of a bound image.
    async fn bound(&self, name: &BoundName) -> Result<OwnedObjectPath> {
        let status = self.status().await?;
        let found = status.bound.iter().find(|b| b.reference == name.reference && b.digest == name.digest);
        let found = found.ok_or_else(|| {
            let why = format!("there is no bound image {} with the digest {}", name.reference, name.digest);
            Error::new(ErrorKind::InvalidArgument, why).hint("see: osctl bound list")
        })?;
        Ok(path::bound(&found.id))
    }

    /// The lock of a deployment's packages, as the text of a file.
    pub async fn lock(&self, deployment: &str) -> Result<String> {
        let proxy = proxy::DeploymentProxy::new(&self.connection, path::deployment(deployment)).await;
        proxy.map_err(failure)?.export_lock().await.map_err(failure)
    }

    /// How what two deployments were derived from differs.
    pub async fn diff(&self, from: &str, to: &str) -> Result<Between> {
        let (from, to) = (path::deployment(from), path::deployment(to));
        let manager = proxy::ManagerProxy::new(&self.connection).await.map_err(failure)?;
        let answer = manager.diff(&from, &to).await.map_err(failure)?;
        Ok(convert::to_between(&answer))
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, id: &str) -> Result<()> {
        let proxy = proxy::JobProxy::new(&self.connection, path::job(id)).await.map_err(failure)?;
        proxy.cancel(&convert::Out::new()).await.map_err(failure).map_err(|f| no_such_job(f, id))
    }

    /// The whole state, as the JSON that the daemon wrote.
    ///
    /// A daemon that our call has just started knows nothing yet: it gets a moment to look.
    pub async fn describe(&self) -> Result<String> {
        #[derive(serde::Deserialize)]
        struct Head {
            state: String,
        }
        let manager = proxy::ManagerProxy::new(&self.connection).await.map_err(failure)?;
        let start = tokio::time::Instant::now();
        loop {
            let text = manager.describe().await.map_err(failure)?;
            let head: Head =
                serde_json::from_str(&text).kind(ErrorKind::Internal, "reading what the daemon describes")?;
            if head.state != Status::INITIALIZING || start.elapsed() > LOADING {
                return Ok(text);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The whole state.
    pub async fn status(&self) -> Result<Status> {
        let text = self.describe().await?;
        Ok(serde_json::from_str(&text).kind(ErrorKind::Internal, "reading what the daemon describes")?)
    }

    /// A job as it is now.
    pub async fn job(&self, id: &str) -> Result<Job> {
        let proxy = zbus::fdo::PropertiesProxy::builder(&self.connection)
            .destination(NAME)
            .and_then(|b| b.path(path::job(id)))
            .map_err(failure)?
            .build()
            .await
            .map_err(failure)?;
        let interface = zbus::names::InterfaceName::from_static_str_unchecked("org.osctl1.Job");
        let properties = proxy.get_all(interface).await;
        let properties = properties.map_err(|e| no_such_job(failure(e.into()), id))?;
        Ok(job::parse(&properties)?)
    }

    /// Follows a job to its end: `seen` gets every state that we see, the last one included.
    ///
    /// Signals only wake us, the state is always read: a job that ended before we looked, a missed signal
    /// and a daemon that restarted in between are all the same case.
    pub async fn follow(&self, id: &str, mut seen: impl FnMut(&Job)) -> Result<Job> {
        let rule = zbus::MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .path(path::job(id))
            .map_err(failure)?
            .build();
        let mut signals =
            zbus::MessageStream::for_match_rule(rule, &self.connection, None).await.map_err(failure)?;
        let mut away: Option<tokio::time::Instant> = None;
        let mut known = false;
        loop {
            match self.job(id).await {
                Ok(job) => {
                    (away, known) = (None, true);
                    seen(&job);
                    if job.state.is_final() {
                        return Ok(job);
                    }
                }
                // We may have started a daemon that has not read its history yet. One that has knows all jobs.
                Err(Failure::Refused(error)) if !known && away.is_none() => {
                    if !self.status().await?.jobs.iter().any(|j| j.id == id) {
                        return Err(error.into());
                    }
                    known = true;
                }
                // A restarting daemon has no name first, and then not all its history.
                Err(Failure::NoDaemon(_) | Failure::Refused(_))
                    if away.get_or_insert_with(tokio::time::Instant::now).elapsed() < RESTART
                        && self.direct.is_none() => {}
                Err(failure) => return Err(failure),
            }
            let pause = if away.is_some() { REREAD / 8 } else { REREAD };
            // Time out: read again anyway.
            if let Ok(None) = tokio::time::timeout(pause, signals.next()).await {
                let error = Error::new(ErrorKind::Interrupted, "the connection to the bus is lost")
                    .hint(format!("when it is back: osctl wait {id}"));
                return Err(Failure::NoDaemon(error));
            }
        }
    }
}

fn no_such_job(failure: Failure, id: &str) -> Failure {
    match failure {
        Failure::Refused(e) if e.kind == ErrorKind::InvalidArgument => {
            let error = Error::new(ErrorKind::InvalidArgument, format!("there is no job {id}"));
            error.hint("osctl jobs lists them").source(e).into()
        }
        other => other,
    }
}

/// What an error of the bus means to us.
fn failure(error: zbus::Error) -> Failure {
    let no_daemon = |cause: zbus::Error| {
        Failure::NoDaemon(
            Error::new(ErrorKind::Internal, "osctld is not running and could not be started")
                .source(cause)
                .hint("systemctl start osctld.service, or run this one command in-process: sudo osctl --direct ..."),
        )
    };
    match error {
        zbus::Error::MethodError(ref name, ref text, _) => {
            if absent(name.as_str()) {
                return no_daemon(error);
            }
            error::parse(name.as_str(), text.as_deref().unwrap_or("the daemon gave no reason")).into()
        }
        zbus::Error::FDO(ref fdo) => {
            use zbus::DBusError as _;
            let name = fdo.name().to_string();
            if absent(&name) {
                return no_daemon(error);
            }
            error::parse(&name, fdo.description().unwrap_or("the daemon gave no reason")).into()
        }
        zbus::Error::InputOutput(_) => Failure::NoDaemon(
            Error::new(ErrorKind::Interrupted, "the connection to the bus is lost").source(error),
        ),
        other => Error::new(ErrorKind::Internal, "talking to the daemon").source(other).into(),
    }
}

/// Whether the bus says that there is no service and that it cannot start one.
fn absent(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("org.freedesktop.DBus.Error.") else {
        return name.starts_with("org.freedesktop.systemd1.");
    };
    matches!(rest, "ServiceUnknown" | "NameHasNoOwner" | "NoReply" | "Disconnected" | "TimedOut")
        || rest.starts_with("Spawn.")
}
