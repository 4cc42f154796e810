//! Work in this process, with no daemon and no host: shown as a job is, which nobody else knows of.

use super::args::Following;
use super::render::Terminal;
use super::render::progress::Progress;
use crate::client::Result;
use crate::engine::cx::{Cx, Sink};
use crate::engine::failpoint::Failpoints;
use crate::model::job::{Event, Failure, Initiator, Job, JobResult};
use crate::model::{Context, Error, ErrorKind};
use crate::sys::fd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Bytes of a transfer are shown no more often.
const OFTEN: Duration = Duration::from_millis(200);

/// How work is shown.
#[derive(Debug)]
pub struct Alone<'a> {
    /// The kind of job that it is shown as.
    pub kind: &'static str,
    /// What the state is if somebody leaves in the middle: `nothing was built`.
    pub nothing: &'static str,
    /// How it is followed.
    pub following: &'a Following,
    /// Where it is shown.
    pub terminal: &'a Terminal,
}

impl Alone<'_> {
    /// Does the work, and shows its progress. The first Ctrl-C cancels it, the second leaves it.
    pub fn run<T>(
        &self,
        failpoints: Failpoints,
        work: impl AsyncFnOnce(&Cx) -> crate::model::Result<T>,
        result: impl Fn(&T) -> JobResult,
    ) -> Result<T> {
        let file = self.following.progress_fd.map(fd::inherited).transpose()?.map(Arc::new);
        let progress = Progress::new(self.terminal, self.following.quiet, file);
        let shown = Arc::new(Mutex::new(Shown::new(self.kind, progress)));
        let sink: Sink = {
            let shown = shown.clone();
            Arc::new(move |event| shown.lock().expect("no holder of this lock panics").tell(&event))
        };
        let cx = Cx::new(CancellationToken::new(), sink, Arc::new(failpoints));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.doing("starting the runtime")?;
        let done = runtime.block_on(async {
            let mut interrupts = signal(SignalKind::interrupt()).doing("listening for Ctrl-C")?;
            let work = work(&cx);
            tokio::pin!(work);
            tokio::select! {
                done = &mut work => return done,
                _ = interrupts.recv() => drop(cx.cancel()),
            }
            tokio::select! {
                done = &mut work => done,
                _ = interrupts.recv() => {
                    Err(Error::new(ErrorKind::Cancelled, format!("left in the middle; {}", self.nothing)))
                }
            }
        });
        runtime.shutdown_background();
        let outcome = done.as_ref().map(result).map_err(Failure::from);
        shown.lock().expect("no holder of this lock panics").end(outcome);
        Ok(done?)
    }
}

struct Shown {
    job: Job,
    progress: Progress,
    last: Instant,
}

impl Shown {
    fn new(kind: &'static str, progress: Progress) -> Shown {
        let mut job = Job::new("build".into(), kind, Initiator::default(), now());
        job.apply(&Event::Started { at: now() });
        Shown { job, progress, last: Instant::now() }
    }

    fn tell(&mut self, event: &Event) {
        self.job.apply(event);
        if matches!(event, Event::Step(_) | Event::Message(_)) || self.last.elapsed() > OFTEN {
            self.progress.update(&self.job);
            self.last = Instant::now();
        }
    }

    fn end(&mut self, outcome: std::result::Result<JobResult, Failure>) {
        self.job.apply(&Event::Finished { at: now(), outcome });
        self.progress.finish(&self.job);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
