//! The one task that shows the engine's state on the bus: objects, properties and signals.

use super::bound_image::{self, BoundImageObject};
use super::deployment::{self, DeploymentObject};
use super::job::{self, JobObject};
use super::manager::Manager;
use super::service::{Published, Shared};
use super::{convert, error, path};
use crate::engine::Handle;
use crate::model::job::Job;
use crate::model::status::{Bound, Status};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};

/// 5 Hz: fast enough to look alive, slow enough for a serial console.
const PERIOD: Duration = Duration::from_millis(200);
/// The priority of a job's messages: LOG_INFO.
const INFO: u8 = 6;

/// Properties as last sent.
type Sent = HashMap<String, OwnedValue>;

#[derive(Debug)]
struct Shown<T> {
    slot: Arc<RwLock<T>>,
    sent: Sent,
}

/// Shows one engine's state on one connection.
#[derive(Debug)]
pub(super) struct Publisher {
    connection: zbus::Connection,
    shared: Arc<Shared>,
    handle: Handle,
    jobs: HashMap<String, Shown<Job>>,
    deployments: HashMap<String, Shown<deployment::View>>,
    bound: HashMap<String, Shown<Bound>>,
    manager: Sent,
}

impl Publisher {
    pub fn new(connection: zbus::Connection, shared: Arc<Shared>, handle: Handle) -> Publisher {
        Publisher {
            connection,
            shared,
            handle,
            jobs: HashMap::new(),
            deployments: HashMap::new(),
            bound: HashMap::new(),
            manager: Sent::new(),
        }
    }

    /// Runs until the engine ends.
    pub async fn run(mut self) {
        let mut watch = self.handle.watch();
        loop {
            let new = watch.borrow_and_update().clone();
            if let Err(error) = self.publish(&new).await {
                // The connection is gone, or one signal could not be sent: properties stay readable.
                tracing::warn!(%error, "publishing on the bus");
            }
            let next = Instant::now() + PERIOD;
            if watch.changed().await.is_err() {
                return;
            }
            // Progress only: let the period pass, unless something happens. At its end, or when the
            // engine has ended, what there is by then is shown.
            if let Ok(Err(_)) = tokio::time::timeout_at(next, watch.wait_for(|s| lifecycle(&new, s))).await {
                tracing::debug!("the engine has ended");
            }
        }
    }

    async fn publish(&mut self, new: &Arc<Status>) -> zbus::Result<()> {
        let old = self.shared.published.borrow().clone();
        let root = SignalEmitter::new(&self.connection, path::ROOT)?.into_owned();
        // Jobs that had ended when the daemon started are history: they appear, but did not just happen. One that has
        // not ended came with the call that started us.
        let first = old.status.state == Status::INITIALIZING;
        let history: HashSet<&str> =
            new.jobs.iter().filter(|j| first && j.state.is_final()).map(|j| j.id.as_str()).collect();

        let (came, gone) = self.objects(new).await?;
        let generation = old.generation + u64::from(lifecycle(&old.status, new));
        self.shared.published.send_replace(Published { status: new.clone(), generation });

        for id in came.iter().filter(|id| !history.contains(id.as_str())) {
            Manager::job_added(&root, path::job(id)).await?;
        }
        changes::<Manager>(&self.connection, path::ROOT, &mut self.manager).await?;
        for job in &new.jobs {
            let before = old.status.jobs.iter().find(|j| j.id == job.id);
            if !history.contains(job.id.as_str()) && before != Some(job) {
                signals(&self.connection, before, job).await?;
            }
        }
        if old.status.deployments != new.deployments {
            Manager::deployments_changed(&root).await?;
        }
        for job in gone {
            let path = path::job(&job.id);
            self.connection.object_server().remove::<JobObject, _>(&path).await?;
            Manager::job_removed(&root, &job.id, path, job.state.name(), &job::error_name(&job)).await?;
        }
        Ok(())
    }

    /// Adds, updates and (deployments, bound images) removes objects. Returns the jobs that are new and those to remove.
    async fn objects(&mut self, new: &Status) -> zbus::Result<(Vec<String>, Vec<Job>)> {
        let server = self.connection.object_server();
        let mut came = Vec::new();
        for job in new.jobs.iter().rev() {
            let path = path::job(&job.id);
            match self.jobs.get_mut(&job.id) {
                Some(shown) => {
                    if replace(&shown.slot, job) {
                        changes::<JobObject>(&self.connection, path.as_str(), &mut shown.sent).await?;
                    }
                }
                None => {
                    let slot: job::Slot = Arc::new(RwLock::new(job.clone()));
                    server.at(&path, JobObject::new(self.shared.clone(), slot.clone())).await?;
                    let sent = properties::<JobObject>(&self.connection, path.as_str()).await?;
                    self.jobs.insert(job.id.clone(), Shown { slot, sent });
                    came.push(job.id.clone());
                }
            }
        }
        for bound in &new.bound {
            let path = path::bound(&bound.id);
            match self.bound.get_mut(&bound.id) {
                Some(shown) => {
                    if replace(&shown.slot, bound) {
                        changes::<BoundImageObject>(&self.connection, path.as_str(), &mut shown.sent).await?;
                    }
                }
                None => {
                    let slot: bound_image::Slot = Arc::new(RwLock::new(bound.clone()));
                    server.at(&path, BoundImageObject::new(self.shared.clone(), slot.clone())).await?;
                    let sent = properties::<BoundImageObject>(&self.connection, path.as_str()).await?;
                    self.bound.insert(bound.id.clone(), Shown { slot, sent });
                }
            }
        }
        for deployment in &new.deployments {
            let path = path::deployment(&deployment.id);
            let view = deployment::View::new(deployment, new);
            match self.deployments.get_mut(&deployment.id) {
                Some(shown) => {
                    if replace(&shown.slot, &view) {
                        changes::<DeploymentObject>(&self.connection, path.as_str(), &mut shown.sent).await?;
                    }
                }
                None => {
                    let slot: deployment::Slot = Arc::new(RwLock::new(view));
                    server.at(&path, DeploymentObject::new(self.shared.clone(), slot.clone())).await?;
                    let sent = properties::<DeploymentObject>(&self.connection, path.as_str()).await?;
                    self.deployments.insert(deployment.id.clone(), Shown { slot, sent });
                }
            }
        }
        let left: Vec<String> =
            self.deployments.keys().filter(|id| new.deployment(id).is_none()).cloned().collect();
        for id in left {
            self.deployments.remove(&id);
            server.remove::<DeploymentObject, _>(path::deployment(&id)).await?;
        }
        let left: Vec<String> =
            self.bound.keys().filter(|id| !new.bound.iter().any(|b| b.id == **id)).cloned().collect();
        for id in left {
            self.bound.remove(&id);
            server.remove::<BoundImageObject, _>(path::bound(&id)).await?;
        }
        let left: Vec<String> =
            self.jobs.keys().filter(|id| !new.jobs.iter().any(|j| &j.id == *id)).cloned().collect();
        let gone = left.iter().filter_map(|id| self.jobs.remove(id));
        let gone = gone.map(|s| s.slot.read().unwrap_or_else(PoisonError::into_inner).clone()).collect();
        Ok((came, gone))
    }
}

/// Replaces what an object shows; whether that changed anything.
fn replace<T: Clone + PartialEq>(slot: &RwLock<T>, new: &T) -> bool {
    let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
    if *slot == *new {
        return false;
    }
    slot.clone_from(new);
    true
}

/// Sends what a job said and how it ended since `before`.
async fn signals(connection: &zbus::Connection, before: Option<&Job>, job: &Job) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, path::job(&job.id))?.into_owned();
    for text in job.messages.iter().skip(before.map_or(0, |b| b.messages.len())) {
        JobObject::message(&emitter, INFO, "", text, HashMap::new()).await?;
    }
    if job.state.is_final() && !before.is_some_and(|b| b.state.is_final()) {
        let message = job.failure.as_ref().map(|f| error::text(&f.message, &f.hint)).unwrap_or_default();
        let result = convert::result(job.result.as_ref());
        JobObject::completed(&emitter, job.state.name(), &job::error_name(job), &message, result).await?;
    }
    Ok(())
}

/// All properties of one object, read the way a client reads them.
async fn properties<I: Interface>(connection: &zbus::Connection, path: &str) -> zbus::Result<Sent> {
    let interface = connection.object_server().interface::<_, I>(path).await?;
    let emitter = interface.signal_emitter();
    let object = interface.get().await;
    Ok(object.get_all(connection.object_server(), connection, None, emitter).await?)
}

/// Sends what changed since it was last sent.
async fn changes<I: Interface>(
    connection: &zbus::Connection,
    path: &str,
    sent: &mut Sent,
) -> zbus::Result<()> {
    let now = properties::<I>(connection, path).await?;
    let mut changed: HashMap<&str, Value<'_>> = HashMap::new();
    for (name, value) in &now {
        if sent.get(name) != Some(value) {
            changed.insert(name, value.try_clone()?.into());
        }
    }
    if !changed.is_empty() {
        let path = OwnedObjectPath::try_from(path)?;
        let emitter = SignalEmitter::new(connection, path)?;
        zbus::fdo::Properties::properties_changed(&emitter, I::name(), changed, Cow::Borrowed(&[])).await?;
    }
    *sent = now;
    Ok(())
}

/// Whether anything but the progress of jobs differs.
fn lifecycle(old: &Status, new: &Status) -> bool {
    fn key(j: &Job) -> (&str, crate::model::job::State, bool, usize) {
        (&j.id, j.state, j.point_of_no_return, j.messages.len())
    }
    // Destructured, so that a new field has to be thought of.
    let Status {
        version: _,
        state,
        reasons,
        booted,
        staged,
        rollback,
        deployments,
        bound,
        pending_changes,
        unmet,
        last_outcome,
        rejected,
        rivals,
        jobs,
    } = new;
    *state != old.state
        || *reasons != old.reasons
        || *booted != old.booted
        || *staged != old.staged
        || *rollback != old.rollback
        || *deployments != old.deployments
        || *bound != old.bound
        || *pending_changes != old.pending_changes
        || *unmet != old.unmet
        || *last_outcome != old.last_outcome
        || *rejected != old.rejected
        || *rivals != old.rivals
        || jobs.len() != old.jobs.len()
        || jobs.iter().zip(&old.jobs).any(|(a, b)| key(a) != key(b))
}
