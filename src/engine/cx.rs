//! What a running job carries through the pipeline: cancellation, progress and failpoints.

use super::failpoint::Failpoints;
use crate::model::job::{Event, Step};
use crate::model::{Error, ErrorKind, Result};
use std::future::Future;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Takes the events of one job. Never blocks.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// The context of one job. Cheap to clone; every clone is the same job.
#[derive(Clone)]
pub struct Cx {
    token: CancellationToken,
    sink: Sink,
    failpoints: Arc<Failpoints>,
}

impl std::fmt::Debug for Cx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx").field("cancelled", &self.token.is_cancelled()).finish_non_exhaustive()
    }
}

impl Cx {
    /// A context that reports to `sink` and stops when `token` is cancelled.
    pub fn new(token: CancellationToken, sink: Sink, failpoints: Arc<Failpoints>) -> Cx {
        Cx { token, sink, failpoints }
    }

    /// A context that nobody listens to, for work outside a job and for tests.
    pub fn detached() -> Cx {
        Cx::new(CancellationToken::new(), Arc::new(|_| {}), Arc::default())
    }

    /// Fails with `Cancelled` if somebody cancelled the job. Call it between units of work.
    pub fn checkpoint(&self) -> Result<()> {
        if self.token.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Waits until somebody cancels the job.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Runs one step: announces it, checks for cancellation, passes its two failpoints.
    ///
    /// The work itself is not dropped on cancellation: it must watch [`Cx::cancelled`] or call
    /// [`Cx::checkpoint`], so that what it holds is released in order.
    pub async fn step<T>(&self, step: Step, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.checkpoint()?;
        (self.sink)(Event::Step(step));
        self.pass(step.name()).await?;
        let value = work.await?;
        self.pass(&format!("{}.done", step.name())).await?;
        Ok(value)
    }

    async fn pass(&self, name: &str) -> Result<()> {
        tokio::select! {
            passed = self.failpoints.pass(name) => passed,
            () = self.cancelled() => Err(cancelled()),
        }
    }

    /// Runs `work` and drops it when the job is cancelled. Only for work that holds nothing.
    pub async fn or_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.cancelled() => Err(cancelled()),
        }
    }

    /// Reports bytes of the current step.
    pub fn bytes(&self, done: u64, total: u64) {
        (self.sink)(Event::Bytes { done, total });
    }

    /// Reports items of the current step.
    pub fn items(&self, done: u32, total: u32, current: &str) {
        (self.sink)(Event::Items { done, total, current: current.to_owned() });
    }

    /// Says a line to people.
    pub fn message(&self, text: impl Into<String>) {
        (self.sink)(Event::Message(text.into()));
    }

    /// Enters the part that cannot be cancelled; it ends when the guard is dropped.
    ///
    /// Fails if somebody cancelled just before.
    pub fn commit_scope(&self) -> Result<CommitScope> {
        (self.sink)(Event::PointOfNoReturn(true));
        let scope = CommitScope(self.sink.clone());
        self.checkpoint()?;
        Ok(scope)
    }
}

/// While it lives, the job cannot be cancelled.
#[must_use = "the scope ends when the guard is dropped"]
pub struct CommitScope(Sink);

impl std::fmt::Debug for CommitScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CommitScope")
    }
}

impl Drop for CommitScope {
    fn drop(&mut self) {
        (self.0)(Event::PointOfNoReturn(false));
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the job was cancelled; the running system is unchanged")
}
