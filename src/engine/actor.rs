//! The actor that owns the queue: one job runs, others wait, everybody reads the published status.

use super::cx::Cx;
use super::env::Env;
use super::failpoint::Failpoints;
use super::handle::Handle;
use super::pipeline;
use crate::model::job::{Event, Failure, Initiator, Job, State};
use crate::model::request::Request;
use crate::model::status::Status;
use crate::model::{Error, ErrorKind, Result};
use crate::store::sysroot::Layout;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// 5 Hz: fast enough to look alive, slow enough for a serial console.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// Jobs that wait at the same time. A client that queues more is broken.
const QUEUE_LIMIT: usize = 64;
/// How often other programs' changes to the deployments are looked for.
const WATCH_SYSROOT: Duration = Duration::from_secs(5);

/// What a handle asks of the engine.
#[derive(Debug)]
pub enum Command {
    /// Queue a request.
    Submit {
        /// What.
        request: Request,
        /// Who.
        initiator: Initiator,
        /// The queued job.
        reply: oneshot::Sender<Result<Job>>,
    },
    /// Ask a job to stop.
    Cancel {
        /// Which.
        id: String,
        /// Whether it was told.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Read the sysroot again.
    Reload {
        /// When done.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Take nothing new, stop what can be stopped, end.
    Drain {
        /// When nothing runs any more.
        reply: oneshot::Sender<()>,
    },
}

/// What the engine works on.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The sysroot; `/` on a host.
    pub sysroot: PathBuf,
    /// The root whose `etc/osctl` is read.
    pub config_root: PathBuf,
    /// The state directory, if not `<sysroot>/ostree/osctl`.
    pub state_dir: Option<PathBuf>,
    /// Armed failpoints.
    pub failpoints: Failpoints,
    /// The environment, of which children get proxies and certificate paths.
    pub environment: Vec<(String, String)>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Starts the engine on the current tokio runtime and returns at once, before anything was read.
    pub fn start(setup: Setup) -> Handle {
        let layout = Layout::new(setup.sysroot, setup.config_root, setup.state_dir);
        let (commands, inbox) = mpsc::channel(QUEUE_LIMIT);
        let (publish, status) = watch::channel(Arc::new(Status::initializing()));
        let (events, event_inbox) = mpsc::unbounded_channel();
        let actor = Actor {
            env: Arc::new(Env::new(layout, setup.environment)),
            failpoints: Arc::new(setup.failpoints),
            publish,
            events,
            status: Status::initializing(),
            fatal: None,
            loading: false,
            queue: VecDeque::new(),
            running: None,
            draining: None,
        };
        tokio::spawn(actor.run(inbox, event_inbox));
        Handle::from_parts(commands, status)
    }
}

struct Waiting {
    id: String,
    request: Request,
}

struct Running {
    id: String,
    request: Request,
    token: CancellationToken,
}

struct Actor {
    env: Arc<Env>,
    failpoints: Arc<Failpoints>,
    publish: watch::Sender<Arc<Status>>,
    events: mpsc::UnboundedSender<(String, Event)>,
    status: Status,
    fatal: Option<Failure>,
    loading: bool,
    queue: VecDeque<Waiting>,
    running: Option<Running>,
    draining: Option<oneshot::Sender<()>>,
}

impl Actor {
    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut events: mpsc::UnboundedReceiver<(String, Event)>,
    ) {
        self.load().await;
        let mut tick = tokio::time::interval(PUBLISH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(WATCH_SYSROOT);
        let mut dirty = false;
        let mut asked = true;
        while asked || self.running.is_some() || !self.queue.is_empty() {
            tokio::select! {
                command = inbox.recv(), if asked => match command {
                    Some(command) => self.command(command).await,
                    // Every handle is gone: nobody can ask for anything any more. What was asked for is still done.
                    None => asked = false,
                },
                Some((id, event)) = events.recv() => {
                    let urgent = !matches!(event, Event::Bytes { .. } | Event::Items { .. });
                    self.event(&id, &event).await;
                    if urgent { self.publish() } else { dirty = true }
                }
                _ = tick.tick(), if dirty => {
                    dirty = false;
                    self.publish();
                }
                _ = look.tick(), if self.running.is_none() && self.env.changed() => self.refresh().await,
            }
            self.start_next();
            if self.running.is_none()
                && let Some(done) = self.draining.take()
            {
                // The asker may be gone; we end anyway.
                let _ = done.send(());
                return;
            }
        }
    }

    /// Reads everything for those who only look, recovers from a crash, which may have to wait for the sysroot's
    /// lock, and reads again.
    async fn load(&mut self) {
        self.loading = true;
        self.refresh().await;
        self.loading = false;
        let now = now();
        let env = self.env.clone();
        match env.recover(&Cx::detached(), now).await {
            Ok(jobs) => self.status.jobs = jobs,
            Err(error) => {
                tracing::error!(error = error.chain(), "the engine cannot work on this sysroot");
                self.fatal = Some(Failure::from(&error));
            }
        }
        self.refresh().await;
    }

    /// Reads the sysroot and the drop-ins again, without the lock.
    async fn refresh(&mut self) {
        match self.env.read().await {
            Ok(status) => {
                self.status = Status { jobs: std::mem::take(&mut self.status.jobs), ..status };
            }
            Err(error) => {
                tracing::warn!(error = error.chain(), "reading the sysroot");
                self.status.state = "read-only".into();
                self.status.reasons = vec![reason(&Failure::from(&error))];
            }
        }
        if let Some(fatal) = &self.fatal {
            self.status.state = "read-only".into();
            self.status.reasons = vec![reason(fatal)];
        }
        self.publish();
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Submit { request, initiator, reply } => {
                let answer = self.submit(request, initiator).await;
                self.publish();
                // A client that died after its call leaves a job that goes on: that is the promise.
                drop(reply.send(answer));
            }
            Command::Cancel { id, reply } => {
                let answer = self.cancel(&id).await;
                self.publish();
                drop(reply.send(answer));
            }
            Command::Reload { reply } => {
                if self.fatal.is_some() {
                    self.fatal = None;
                    let jobs = std::mem::take(&mut self.status.jobs);
                    self.load().await;
                    if !jobs.is_empty() {
                        self.status.jobs = jobs;
                    }
                } else {
                    self.refresh().await;
                }
                drop(reply.send(self.fatal.as_ref().map_or(Ok(()), |f| Err(error_of(f)))));
            }
            Command::Drain { reply } => {
                for waiting in std::mem::take(&mut self.queue) {
                    let error = Error::new(
                        ErrorKind::Cancelled,
                        "osctld is stopping; the running system is unchanged",
                    );
                    self.event(
                        &waiting.id,
                        &Event::Finished { at: now(), outcome: Err(Failure::from(&error)) },
                    )
                    .await;
                }
                if let Some(id) = self.running.as_ref().map(|r| r.id.clone())
                    && let Err(error) = self.cancel(&id).await
                {
                    tracing::info!(
                        job = id,
                        error = error.chain(),
                        "waiting for the running job instead of cancelling it"
                    );
                }
                self.draining = Some(reply);
            }
        }
    }

    async fn submit(&mut self, request: Request, initiator: Initiator) -> Result<Job> {
        if let Some(fatal) = &self.fatal {
            return Err(error_of(fatal));
        }
        if self.draining.is_some() {
            return Err(
                Error::new(ErrorKind::Interrupted, "osctld is stopping").hint("try again in a few seconds")
            );
        }
        let same = self.running.iter().filter(|r| r.request == request).map(|r| &r.id);
        let same = same.chain(self.queue.iter().filter(|w| w.request == request).map(|w| &w.id)).next();
        if let Some(job) = same.and_then(|id| self.status.jobs.iter().find(|j| &j.id == id))
            && job.state != State::Cancelling
        {
            return Ok(job.clone());
        }
        let waits = self.running.is_some() || !self.queue.is_empty();
        if waits && request.options().is_some_and(|o| o.no_wait) {
            let kind = self.running.as_ref().map_or("queued", |r| r.request.kind());
            return Err(Error::new(ErrorKind::Busy, format!("another job runs: {kind}"))
                .hint("leave out --no-wait to wait for it, or see: osctl jobs"));
        }
        if self.queue.len() >= QUEUE_LIMIT {
            return Err(Error::new(ErrorKind::Busy, "the queue is full").hint("see: osctl jobs"));
        }
        let job = Job::new(uuid::Uuid::new_v4().to_string(), request.kind(), initiator, now());
        self.env.keep(&job).await?;
        self.status.jobs.insert(0, job.clone());
        self.queue.push_back(Waiting { id: job.id.clone(), request });
        Ok(job)
    }

    async fn cancel(&mut self, id: &str) -> Result<()> {
        if let Some(at) = self.queue.iter().position(|w| w.id == id) {
            self.queue.remove(at);
            let error = Error::new(ErrorKind::Cancelled, "the job was cancelled before it started");
            self.event(id, &Event::Finished { at: now(), outcome: Err(Failure::from(&error)) }).await;
            return Ok(());
        }
        let job = self.status.jobs.iter().find(|j| j.id == id);
        match (job, &self.running) {
            (Some(job), Some(running)) if running.id == id => {
                if job.point_of_no_return {
                    return Err(Error::new(
                        ErrorKind::TooLate,
                        "the job is publishing its deployment and cannot be cancelled",
                    )
                    .hint("wait for it, then undo it with: osctl rollback"));
                }
                running.token.cancel();
                self.event(id, &Event::Cancelling).await;
                Ok(())
            }
            (Some(_), _) => Err(Error::new(ErrorKind::WrongState, format!("job {id} has already ended"))),
            (None, _) => Err(Error::new(ErrorKind::InvalidArgument, format!("there is no job {id}"))
                .hint("see: osctl jobs")),
        }
    }

    async fn event(&mut self, id: &str, event: &Event) {
        let Some(job) = self.status.jobs.iter_mut().find(|j| j.id == id) else { return };
        job.apply(event);
        let finished = matches!(event, Event::Finished { .. });
        if finished || matches!(event, Event::Started { .. }) {
            let job = job.clone();
            if finished {
                tracing::info!(job = id, kind = job.kind, state = job.state.name(), "job ended");
            }
            if let Err(error) = self.env.keep(&job).await {
                tracing::warn!(job = id, error = error.chain(), "the job's state could not be kept");
            }
        }
        if finished && self.running.as_ref().is_some_and(|r| r.id == id) {
            self.running = None;
            self.refresh().await;
        }
    }

    fn start_next(&mut self) {
        if self.running.is_some() {
            return;
        }
        let Some(next) = self.queue.pop_front() else { return };
        let token = CancellationToken::new();
        let (events, id) = (self.events.clone(), next.id.clone());
        let send = move |event| {
            // The actor outlives its jobs; if it is gone, nobody is left to tell.
            drop(events.send((id.clone(), event)));
        };
        let cx = Cx::new(token.clone(), Arc::new(send.clone()), self.failpoints.clone());
        let (env, request) = (self.env.clone(), next.request.clone());
        let job = next.id.clone();
        send(Event::Started { at: now() });
        tokio::spawn(async move {
            // A thread of its own: libostree's handles may not move between threads at an await, and a panic below
            // must end the job, not the actor.
            let runtime = tokio::runtime::Handle::current();
            let work = tokio::task::spawn_blocking(move || {
                runtime.block_on(pipeline::run(&cx, &env, &job, request))
            });
            let outcome = match work.await {
                Ok(Ok(result)) => Ok(result),
                Ok(Err(error)) => {
                    tracing::warn!(error = error.chain(), "job failed");
                    Err(Failure::from(&error))
                }
                Err(panic) => Err(Failure::from(
                    &Error::new(ErrorKind::Internal, "the job crashed; this is a bug").source(panic),
                )),
            };
            send(Event::Finished { at: now(), outcome });
        });
        self.running = Some(Running { id: next.id, request: next.request, token });
    }

    fn publish(&mut self) {
        let busy = self.running.is_some() || !self.queue.is_empty();
        match (self.status.state.as_str(), busy) {
            ("idle", _) if self.loading => self.status.state = Status::INITIALIZING.into(),
            ("idle", true) => self.status.state = "busy".into(),
            ("busy", false) => self.status.state = "idle".into(),
            _ => {}
        }
        self.publish.send_replace(Arc::new(self.status.clone()));
    }
}

fn reason(failure: &Failure) -> String {
    if failure.hint.is_empty() {
        failure.message.clone()
    } else {
        format!("{}; {}", failure.message, failure.hint)
    }
}

fn error_of(failure: &Failure) -> Error {
    let mut error = Error::new(failure.kind, failure.message.clone());
    error.details = failure.details.clone();
    if failure.hint.is_empty() { error } else { error.hint(failure.hint.clone()) }
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
