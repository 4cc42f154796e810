//! The actor that owns the queue: one job runs, others wait, everybody reads the published status.

use super::cx::Cx;
use super::env::Env;
use super::failpoint::Failpoints;
use super::handle::Handle;
use super::journal::{History, Journal};
use super::pipeline;
use super::unavailable::now;
use crate::model::difference::Between;
use crate::model::job::{Event, Failure, Initiator, Job, State};
use crate::model::lock::Lock;
use crate::model::request::Request;
use crate::model::status::Status;
use crate::model::{Error, ErrorKind, Result};
use crate::store::sysroot::Layout;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
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
    /// Read the sysroot again, after recovery if that is under way or failed before.
    Reload {
        /// When done.
        reply: oneshot::Sender<Result<()>>,
    },
    /// Read the lock that a deployment was made with.
    Lock {
        /// The commit of the deployment.
        checksum: String,
        /// The lock, if it has one.
        reply: oneshot::Sender<Result<Option<Lock>>>,
    },
    /// Compare what two deployments were derived from.
    Diff {
        /// The commit of one.
        from: String,
        /// The commit of the other.
        to: String,
        /// What differs.
        reply: oneshot::Sender<Result<Between>>,
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
            problems: Vec::new(),
            history: History::default(),
            recovery: None,
            reloads: Vec::new(),
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
    uid: u32,
}

struct Running {
    id: String,
    request: Request,
    uid: u32,
    cx: Cx,
}

/// What the crash of an earlier process left is settled beside the actor: it may have to wait for the sysroot's lock,
/// and nobody who only looks shall wait with it.
struct Recovery {
    cx: Cx,
    outcome: oneshot::Receiver<Result<Vec<String>>>,
}

struct Actor {
    env: Arc<Env>,
    failpoints: Arc<Failpoints>,
    publish: watch::Sender<Arc<Status>>,
    events: mpsc::UnboundedSender<(String, Event)>,
    status: Status,
    fatal: Option<Failure>,
    /// What keeps the host from being whole, and does not keep it from being updated.
    problems: Vec<String>,
    history: History,
    recovery: Option<Recovery>,
    reloads: Vec<oneshot::Sender<Result<()>>>,
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
        self.recover();
        let mut tick = tokio::time::interval(PUBLISH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look = tokio::time::interval(WATCH_SYSROOT);
        let mut dirty = false;
        let mut asked = true;
        while asked || self.running.is_some() || self.recovery.is_some() || !self.queue.is_empty() {
            tokio::select! {
                command = inbox.recv(), if asked => match command {
                    Some(command) => self.command(command).await,
                    // Every handle is gone: nobody can ask for anything any more. What was asked for is still done.
                    None => asked = false,
                },
                Some((id, event)) = events.recv() => {
                    let urgent = !matches!(event, Event::Bytes { .. } | Event::Part { .. } | Event::Items { .. });
                    self.event(&id, &event).await;
                    if urgent { self.publish() } else { dirty = true }
                }
                _ = tick.tick(), if dirty => {
                    dirty = false;
                    self.publish();
                }
                _ = look.tick() => if self.running.is_none() && self.env.changed() {
                    self.refresh().await;
                },
                outcome = recovered(&mut self.recovery), if self.recovery.is_some() => {
                    self.recovery = None;
                    self.settled(outcome).await;
                }
            }
            self.start_next();
            if self.running.is_none()
                && self.recovery.is_none()
                && let Some(done) = self.draining.take()
            {
                // The asker may be gone; we end anyway.
                let _ = done.send(());
                return;
            }
        }
    }

    /// Reads everything for the first time.
    async fn load(&mut self) {
        match self.env.history(now()) {
            Ok(history) => {
                self.status.jobs.clone_from(&history.jobs);
                self.history = history;
            }
            Err(error) => tracing::warn!(error = error.chain(), "reading the jobs of before"),
        }
        self.refresh().await;
    }

    /// Starts to settle what an earlier process left.
    fn recover(&mut self) {
        let cx = Cx::new(CancellationToken::new(), Arc::new(|_| {}), self.failpoints.clone());
        let (env, history) = (self.env.clone(), std::mem::take(&mut self.history));
        let (reply, outcome) = oneshot::channel();
        let runtime = tokio::runtime::Handle::current();
        let own = cx.clone();
        // A thread of its own, as for jobs.
        tokio::task::spawn_blocking(move || drop(reply.send(runtime.block_on(env.recover(&own, &history)))));
        self.recovery = Some(Recovery { cx, outcome });
    }

    /// Everything is settled, or cannot be.
    async fn settled(&mut self, outcome: Result<Vec<String>>) {
        match outcome {
            Ok(problems) => {
                self.fatal = None;
                self.problems = problems;
            }
            Err(error) => {
                tracing::error!(error = error.chain(), "the engine cannot work on this sysroot");
                self.fatal = Some(Failure::from(&error));
            }
        }
        self.refresh().await;
        for reply in std::mem::take(&mut self.reloads) {
            // The asker may be gone.
            drop(reply.send(self.fatal.as_ref().map_or(Ok(()), |f| Err(error_of(f)))));
        }
        if let Some(fatal) = self.fatal.clone() {
            for waiting in std::mem::take(&mut self.queue) {
                self.event(&waiting.id, &Event::Finished { at: now(), outcome: Err(fatal.clone()) }).await;
            }
            // Whoever waits for them hears of it: nothing else may happen here for long.
            self.publish();
        }
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
        } else {
            self.status.reasons.extend(self.problems.iter().cloned());
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
                if self.fatal.is_some() && self.recovery.is_none() {
                    self.recover();
                }
                if self.recovery.is_some() {
                    self.reloads.push(reply);
                } else {
                    self.refresh().await;
                    drop(reply.send(Ok(())));
                }
            }
            Command::Lock { checksum, reply } => {
                let env = self.env.clone();
                // Beside the actor: reading from the disk keeps nobody waiting.
                tokio::task::spawn_blocking(move || drop(reply.send(env.lock(&checksum))));
            }
            Command::Diff { from, to, reply } => {
                let env = self.env.clone();
                tokio::task::spawn_blocking(move || drop(reply.send(env.diff(&from, &to))));
            }
            Command::Drain { reply } => {
                if let Some(recovery) = &self.recovery {
                    // Waiting for the lock ends; settling, once it has begun, is finished.
                    recovery.cx.cancel();
                }
                for waiting in std::mem::take(&mut self.queue) {
                    let error = Error::new(ErrorKind::Interrupted, "osctld stopped before the job had begun")
                        .hint("run the same command again");
                    self.event(
                        &waiting.id,
                        &Event::Finished { at: now(), outcome: Err(Failure::from(&error)) },
                    )
                    .await;
                }
                self.publish();
                if let Some(running) = &self.running
                    && !running.cx.cancel()
                {
                    tracing::info!(job = running.id, "waiting for a job past its point of no return");
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
        // A job that has read the drop-ins does not know what was edited since.
        let joinable = |id: &String| self.status.jobs.iter().any(|j| &j.id == id && !j.has_read_drop_ins());
        // Whose job it is may cancel it: nobody gets that right by asking for the same.
        let equal = |asked: &Request, uid| *asked == request && uid == initiator.uid;
        let running =
            self.running.iter().filter(|r| equal(&r.request, r.uid) && joinable(&r.id)).map(|r| &r.id);
        let queued = self.queue.iter().filter(|w| equal(&w.request, w.uid)).map(|w| &w.id);
        let same = running.chain(queued).next();
        if let Some(job) = same.and_then(|id| self.status.jobs.iter().find(|j| &j.id == id))
            && job.state != State::Cancelling
        {
            return Ok(job.clone());
        }
        let waits = self.running.is_some() || self.recovery.is_some() || !self.queue.is_empty();
        if waits && request.options().is_some_and(|o| o.no_wait) {
            let what = match &self.running {
                Some(running) => format!("another job runs: {}", running.request.kind()),
                None if self.recovery.is_some() => "osctld is still starting".into(),
                None => "other jobs are queued".into(),
            };
            return Err(Error::new(ErrorKind::Busy, what)
                .hint("leave out --no-wait to wait for it, or see: osctl jobs"));
        }
        if self.queue.len() >= QUEUE_LIMIT {
            return Err(Error::new(ErrorKind::Busy, "the queue is full").hint("see: osctl jobs"));
        }
        let uid = initiator.uid;
        let job = Job::new(uuid::Uuid::now_v7().to_string(), request.kind(), initiator, now());
        // Before libostree has made /sysroot writable this cannot work; it is kept again when it starts.
        if let Err(error) = self.env.keep(&job).await {
            tracing::debug!(job = job.id, error = error.chain(), "keeping a queued job");
        }
        self.status.jobs.insert(0, job.clone());
        self.queue.push_back(Waiting { id: job.id.clone(), request, uid });
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
                if job.state.is_final() || !running.cx.cancel() {
                    return Err(Error::new(
                        ErrorKind::TooLate,
                        "the job is publishing its deployment and cannot be cancelled",
                    )
                    .hint("wait for it, then undo it with: osctl rollback"));
                }
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
        match event {
            // Nobody cancelled it but we, who are leaving.
            Event::Finished { at, outcome: Err(failure) }
                if failure.kind == ErrorKind::Cancelled && job.state == State::Running =>
            {
                job.apply(&Event::Finished { at: *at, outcome: Err(super::journal::interrupted()) });
            }
            event => job.apply(event),
        }
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
        if finished {
            self.trim();
        }
        if finished && self.running.as_ref().is_some_and(|r| r.id == id) {
            self.running = None;
            self.refresh().await;
        }
    }

    /// Forgets the oldest jobs that have ended.
    fn trim(&mut self) {
        let mut ended = 0;
        let mut gone = Vec::new();
        self.status.jobs.retain(|job| {
            ended += usize::from(job.state.is_final());
            let keep = !job.state.is_final() || ended <= Journal::KEEP;
            if !keep {
                gone.push(job.id.clone());
            }
            keep
        });
        for id in gone {
            if let Err(error) = self.env.forget(&id) {
                tracing::warn!(job = id, error = error.chain(), "an old job could not be removed");
            }
        }
    }

    fn start_next(&mut self) {
        if self.running.is_some() || self.recovery.is_some() {
            return;
        }
        let Some(next) = self.queue.pop_front() else { return };
        let (events, id) = (self.events.clone(), next.id.clone());
        let send = move |event| {
            // The actor outlives its jobs; if it is gone, nobody is left to tell.
            drop(events.send((id.clone(), event)));
        };
        let cx = Cx::new(CancellationToken::new(), Arc::new(send.clone()), self.failpoints.clone());
        let own = cx.clone();
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
        self.running = Some(Running { id: next.id, request: next.request, uid: next.uid, cx: own });
    }

    fn publish(&mut self) {
        let busy = self.running.is_some() || !self.queue.is_empty();
        if matches!(self.status.state.as_str(), "idle" | "busy" | "degraded") {
            let state = match (busy, self.status.reasons.is_empty()) {
                (true, _) => "busy",
                (false, true) => "idle",
                (false, false) => "degraded",
            };
            self.status.state = state.into();
        }
        self.publish.send_replace(Arc::new(self.status.clone()));
    }
}

/// The end of a recovery; a thread that died is its failure.
async fn recovered(recovery: &mut Option<Recovery>) -> Result<Vec<String>> {
    let Some(recovery) = recovery else { return std::future::pending().await };
    (&mut recovery.outcome)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the recovery crashed; this is a bug")))
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
