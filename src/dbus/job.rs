//! `org.osctl1.Job`.

use super::convert::{self, Dict, Out, Verb, decode};
use super::error::{self, Result};
use super::service::Shared;
use crate::model::job::Job;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::Value;

/// A job as the bus shows it, replaced by the publisher only.
pub(super) type Slot = Arc<RwLock<Job>>;

/// One job's object.
#[derive(Debug)]
pub struct JobObject {
    shared: Arc<Shared>,
    slot: Slot,
}

impl JobObject {
    pub(super) fn new(shared: Arc<Shared>, slot: Slot) -> JobObject {
        JobObject { shared, slot }
    }

    fn get<T>(&self, read: impl FnOnce(&Job) -> T) -> T {
        // A poisoned lock still holds a whole job: it is only ever replaced.
        read(&self.slot.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[zbus::interface(name = "org.osctl1.Job")]
impl JobObject {
    /// Asks the job to stop. One's own job needs no further right.
    async fn cancel(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<()> {
        decode(Verb::Cancel, &options)?;
        let (id, owner, kind) = self.get(|j| (j.id.clone(), j.initiator.uid, j.kind.clone()));
        if self.shared.uid(connection, &call).await? != owner {
            let details = HashMap::from([("verb", "cancel".to_owned()), ("kind", kind)]);
            self.shared.authorise(connection, &call, &["org.osctl1.cancel"], &details).await?;
        }
        Ok(self.shared.engine().await?.cancel(&id).await?)
    }

    /// A UUID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.get(|j| j.id.clone())
    }

    /// What was asked: `upgrade`, `rebase`, ...
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> String {
        self.get(|j| j.kind.clone())
    }

    /// `queued`, `running`, `cancelling`, `succeeded`, `failed`, `cancelled` or `interrupted`.
    #[zbus(property)]
    fn state(&self) -> String {
        self.get(|j| j.state.name().to_owned())
    }

    /// Phase and step, `pull.layers`; empty before the first.
    #[zbus(property)]
    fn phase(&self) -> String {
        self.get(|j| j.step.clone())
    }

    /// 0 to 1, never falling.
    #[zbus(property)]
    fn progress(&self) -> f64 {
        self.get(|j| j.progress)
    }

    /// Whether `Progress` says something already.
    #[zbus(property)]
    fn progress_valid(&self) -> bool {
        self.get(|j| j.started != 0)
    }

    /// Bytes of the current step.
    #[zbus(property)]
    fn bytes_done(&self) -> u64 {
        self.get(|j| j.bytes_done)
    }

    /// Bytes of the current step in all; 0 if unknown.
    #[zbus(property)]
    fn bytes_total(&self) -> u64 {
        self.get(|j| j.bytes_total)
    }

    /// Items of the current step.
    #[zbus(property)]
    fn items_done(&self) -> u32 {
        self.get(|j| j.items_done)
    }

    /// Items of the current step in all.
    #[zbus(property)]
    fn items_total(&self) -> u32 {
        self.get(|j| j.items_total)
    }

    /// What is worked on.
    #[zbus(property)]
    fn current_item(&self) -> String {
        self.get(|j| j.current_item.clone())
    }

    /// Items that are on their way, by name: bytes so far, and in all.
    #[zbus(property)]
    fn parts(&self) -> Vec<(String, u64, u64)> {
        self.get(|j| j.parts.iter().map(|(name, (done, total))| (name.clone(), *done, *total)).collect())
    }

    /// Who asked: client id, uid, unit.
    #[zbus(property(emits_changed_signal = "const"))]
    fn initiator(&self) -> (String, u32, String) {
        self.get(|j| (j.initiator.client_id.clone(), j.initiator.uid, j.initiator.unit.clone()))
    }

    /// Seconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created(&self) -> u64 {
        self.get(|j| j.created)
    }

    /// Seconds since the epoch; 0 if not started.
    #[zbus(property)]
    fn started(&self) -> u64 {
        self.get(|j| j.started)
    }

    /// Seconds since the epoch; 0 if not finished.
    #[zbus(property)]
    fn finished(&self) -> u64 {
        self.get(|j| j.finished)
    }

    /// Whether `Cancel` can still do something.
    #[zbus(property)]
    fn cancelable(&self) -> bool {
        self.get(Job::cancelable)
    }

    /// Whether `Cancel` is refused.
    #[zbus(property)]
    fn point_of_no_return(&self) -> bool {
        self.get(|j| j.point_of_no_return)
    }

    /// `org.osctl1.Error.<Kind>`; empty unless it failed.
    #[zbus(property)]
    fn error_name(&self) -> String {
        self.get(error_name)
    }

    /// What failed, with its causes.
    #[zbus(property)]
    fn error_message(&self) -> String {
        self.get(|j| j.failure.as_ref().map(|f| f.message.clone()).unwrap_or_default())
    }

    /// Facts about the failure; `hint` is what to type next.
    #[zbus(property)]
    fn error_details(&self) -> Out {
        self.get(|j| convert::failure(j.failure.as_ref()))
    }

    /// Whether the same request can succeed later.
    #[zbus(property)]
    fn retryable(&self) -> bool {
        self.get(|j| j.failure.as_ref().is_some_and(|f| f.kind.retryable()))
    }

    /// What it did: `changed b`, `summary s`, `deployment o`, `digest s`, `discarded ao`, `notes as`; of a check or a
    /// plan `plan s`, as JSON (docs/plan.schema.json); of an adopt or a release `handover s`
    /// (docs/handover.schema.json); of a verify `verified s`, of one that failed as well.
    #[zbus(property)]
    fn result(&self) -> Out {
        self.get(|j| convert::result(j.result.as_ref()))
    }

    /// What it said so far.
    #[zbus(property)]
    fn messages(&self) -> Vec<String> {
        self.get(|j| j.messages.clone())
    }

    /// The end.
    #[zbus(signal)]
    pub(super) async fn completed(
        emitter: &SignalEmitter<'_>,
        outcome: &str,
        error_name: &str,
        message: &str,
        result: HashMap<String, Value<'_>>,
    ) -> zbus::Result<()>;

    /// A line for people. `priority` as in syslog.
    #[zbus(signal)]
    pub(super) async fn message(
        emitter: &SignalEmitter<'_>,
        priority: u8,
        message_id: &str,
        text: &str,
        fields: HashMap<String, Value<'_>>,
    ) -> zbus::Result<()>;
}

/// The D-Bus name of the job's error; empty if it has none.
pub(super) fn error_name(job: &Job) -> String {
    job.failure.as_ref().map(|f| error::name(f.kind)).unwrap_or_default()
}
