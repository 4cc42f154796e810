//! What a running job carries through the pipeline: cancellation, progress and failpoints.

use super::failpoint::Failpoints;
use crate::model::job::{Event, JobResult, Step};
use crate::model::{Error, ErrorKind, Result};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tokio_util::sync::CancellationToken;

/// Takes the events of one job. Never blocks.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// The context of one job. Cheap to clone; every clone is the same job.
#[derive(Clone)]
pub struct Cx {
    token: CancellationToken,
    gate: Arc<AtomicU8>,
    sink: Sink,
    failpoints: Arc<Failpoints>,
}

/// The gate between cancelling and publishing: whoever moves it first wins, and it never moves again.
const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

impl std::fmt::Debug for Cx {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx").field("cancelled", &self.token.is_cancelled()).finish_non_exhaustive()
    }
}

impl Cx {
    /// A context that reports to `sink` and stops when `token` is cancelled.
    pub fn new(token: CancellationToken, sink: Sink, failpoints: Arc<Failpoints>) -> Cx {
        Cx { token, gate: Arc::new(AtomicU8::new(OPEN)), sink, failpoints }
    }

    /// Tells the job to stop. False if it is past its point of no return, where nothing stops it.
    pub fn cancel(&self) -> bool {
        let moved = self.gate.compare_exchange(OPEN, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        if matches!(moved, Ok(_) | Err(CANCELLED)) {
            self.token.cancel();
            return true;
        }
        false
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

    /// Reports bytes of one item of the current step.
    pub fn part(&self, name: &str, done: u64, total: u64) {
        (self.sink)(Event::Part { name: name.to_owned(), done, total });
    }

    /// Reports items of the current step.
    pub fn items(&self, done: u32, total: u32, current: &str) {
        (self.sink)(Event::Items { done, total, current: current.to_owned() });
    }

    /// Says a line to people.
    pub fn message(&self, text: impl Into<String>) {
        (self.sink)(Event::Message(text.into()));
    }

    /// Keeps what is known should the job fail.
    pub fn found(&self, result: JobResult) {
        (self.sink)(Event::Found(Box::new(result)));
    }

    /// Passes the point of no return: from here on [`Cx::cancel`] has no effect. Fails if somebody was faster.
    pub fn commit(&self) -> Result<()> {
        self.checkpoint()?;
        let moved = self.gate.compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire);
        if moved == Err(CANCELLED) {
            return Err(cancelled());
        }
        (self.sink)(Event::PointOfNoReturn);
        Ok(())
    }
}

pub(crate) fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the job was cancelled; the running system is unchanged")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_and_committing_exclude_each_other() {
        let cx = Cx::detached();
        cx.commit().unwrap();
        assert!(!cx.cancel());
        cx.checkpoint().unwrap();
        let cx = Cx::detached();
        assert!(cx.cancel() && cx.cancel());
        assert_eq!(cx.commit().unwrap_err().kind, ErrorKind::Cancelled);
    }
}
