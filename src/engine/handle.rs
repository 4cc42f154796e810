//! How everybody else talks to the engine.

use super::actor::Command;
use crate::model::difference::Between;
use crate::model::job::{Initiator, Job};
use crate::model::lock::Lock;
use crate::model::request::Request;
use crate::model::status::Status;
use crate::model::{Error, ErrorKind, Result};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// A cheap handle to the running engine.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Arc<Status>>,
}

impl Handle {
    /// A handle to whoever receives `commands` and publishes `status`.
    pub fn from_parts(commands: mpsc::Sender<Command>, status: watch::Receiver<Arc<Status>>) -> Handle {
        Handle { commands, status }
    }

    /// Queues a request and returns its job.
    ///
    /// A request equal to one that is queued or running joins it: the same job is returned. With
    /// `no_wait`, fails with `Busy` where it would have to wait.
    pub async fn submit(&self, request: Request, initiator: Initiator) -> Result<Job> {
        self.ask(|reply| Command::Submit { request, initiator, reply }).await?
    }

    /// Asks a job to stop and returns once it has been told. `TooLate` past the point of no return.
    pub async fn cancel(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.ask(|reply| Command::Cancel { id, reply }).await?
    }

    /// The latest published state; never waits.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// A receiver that wakes at every change of the state, at most five times a second for progress.
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Reads the sysroot and the drop-ins again; returns when what an earlier process left is settled, too.
    pub async fn reload(&self) -> Result<()> {
        self.ask(|reply| Command::Reload { reply }).await?
    }

    /// The job with this id, as it is now.
    pub fn job(&self, id: &str) -> Option<Job> {
        self.status.borrow().jobs.iter().find(|j| j.id == id).cloned()
    }

    /// Waits for a job to end and returns its final state.
    pub async fn wait(&self, id: &str) -> Result<Job> {
        let mut watch = self.watch();
        loop {
            let job = watch.borrow_and_update().jobs.iter().find(|j| j.id == id).cloned();
            match job {
                Some(job) if job.state.is_final() => return Ok(job),
                Some(_) => {}
                None => return Err(Error::new(ErrorKind::InvalidArgument, format!("there is no job {id}"))),
            }
            watch.changed().await.map_err(|_| gone())?;
        }
    }

    /// The lock that the packages of a deployed commit were made with; `None` if it has none. Never waits for a job.
    pub async fn lock(&self, checksum: &str) -> Result<Option<Lock>> {
        let checksum = checksum.to_owned();
        self.ask(|reply| Command::Lock { checksum, reply }).await?
    }

    /// How what two deployed commits were derived from differs. Never waits for a job.
    pub async fn diff(&self, from: &str, to: &str) -> Result<Between> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.ask(|reply| Command::Diff { from, to, reply }).await?
    }

    /// Waits until the engine has nothing to do, then ends it. New requests are refused from now on.
    pub async fn drain(&self) -> Result<()> {
        self.ask(|reply| Command::Drain { reply }).await
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(make(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Interrupted, "the engine has ended").hint("systemctl restart osctld.service")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::actor::{Engine, Setup};
    use crate::engine::failpoint::Failpoints;
    use crate::model::request::Options;
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_job_that_came_before_the_sysroot_was_found_to_be_none_ends() {
        // Where it comes in time to be queued is up to the clock.
        for pause in (0..40).map(|n| Duration::from_micros(n * 100)) {
            let dir = tempfile::tempdir().unwrap();
            let engine = Engine::start(Setup {
                sysroot: dir.path().to_owned(),
                config_root: dir.path().to_owned(),
                state_dir: None,
                failpoints: Failpoints::default(),
                environment: Vec::new(),
            });
            tokio::time::sleep(pause).await;
            let initiator = Initiator { client_id: "test".into(), uid: 0, unit: String::new() };
            // Later it is refused at once.
            let Ok(job) = engine.submit(Request::Upgrade(Options::default()), initiator).await else {
                continue;
            };
            let ended = tokio::time::timeout(Duration::from_secs(20), engine.wait(&job.id)).await;
            assert!(ended.expect("it ends").unwrap().failure.is_some(), "after {pause:?}");
        }
    }
}
