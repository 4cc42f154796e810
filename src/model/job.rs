//! Jobs: their states, phases and steps, and the one reducer that folds events into a job's state.

use super::error::ErrorKind;
use super::handover::Handover;
use super::image::Digest;
use super::plan::Plan;
use super::text::printable;
use super::verified::Verified;
use std::collections::BTreeMap;

macro_rules! steps {
    ($($step:ident = $phase:ident $name:literal,)*) => {
        /// One step of the pipeline. Each is a cancellation checkpoint and a failpoint.
        ///
        /// The enum is the only way to run a step (`Cx::step`), so a step without a failpoint cannot exist.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Step { $(#[doc = $name] $step,)* }

        impl Step {
            /// Every step, in pipeline order.
            pub const ALL: &'static [Step] = &[$(Step::$step,)*];

            /// The step's name, `phase.what`: used by failpoints, progress and messages.
            pub fn name(self) -> &'static str {
                match self { $(Step::$step => $name,)* }
            }

            /// The phase that the step belongs to.
            pub fn phase(self) -> Phase {
                match self { $(Step::$step => Phase::$phase,)* }
            }
        }
    };
}

steps! {
    ResolveBundle = Resolve "resolve.bundle",
    ResolveImage = Resolve "resolve.image",
    PlanCheck = Plan "plan.check",
    PullImage = Pull "pull.image",
    PullLayers = Pull "pull.layers",
    PullRecord = Pull "pull.record",
    DeriveRead = Derive "derive.read",
    DeriveFetch = Derive "derive.fetch",
    DeriveImages = Derive "derive.images",
    DeriveSolve = Derive "derive.solve",
    DeriveInstall = Derive "derive.install",
    DeriveCommit = Derive "derive.commit",
    ExportLayer = Export "export.layer",
    ExportPublish = Export "export.publish",
    BindDiscover = Bind "bind.discover",
    BindResolve = Bind "bind.resolve",
    BindPull = Bind "bind.pull",
    BindStore = Bind "bind.store",
    BindRecord = Bind "bind.record",
    BindPublish = Bind "bind.publish",
    VerifySet = Verify "verify.set",
    VerifyContent = Verify "verify.content",
    VerifyForget = Verify "verify.forget",
    VerifyRepair = Verify "verify.repair",
    PreflightSpace = Preflight "preflight.space",
    PreflightEtc = Preflight "preflight.etc",
    StageIntent = Stage "stage.intent",
    StagePublish = Stage "stage.publish",
    StageRecord = Stage "stage.record",
    CleanupPrune = Cleanup "cleanup.prune",
    CleanupBound = Cleanup "cleanup.bound",
}

/// The phases of the pipeline; the only phase names there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // the names are the documentation: DESIGN's data flow
pub enum Phase {
    Resolve,
    Plan,
    Pull,
    Derive,
    /// Of a build only, which has none of those behind it.
    Export,
    Bind,
    Verify,
    Preflight,
    Stage,
    Cleanup,
}

/// What a job is doing, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Waits for the jobs before it.
    Queued,
    /// Runs.
    Running,
    /// Was told to stop and has not stopped yet.
    Cancelling,
    /// Ended as asked.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Ended because somebody cancelled it.
    Cancelled,
    /// The daemon ended while it ran.
    Interrupted,
}

impl State {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        !matches!(self, State::Queued | State::Running | State::Cancelling)
    }

    /// Every state.
    pub const ALL: &'static [State] = &[
        State::Queued,
        State::Running,
        State::Cancelling,
        State::Succeeded,
        State::Failed,
        State::Cancelled,
        State::Interrupted,
    ];

    /// The name on the bus.
    pub fn name(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Cancelling => "cancelling",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::Interrupted => "interrupted",
        }
    }
}

/// Who asked for a job.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Initiator {
    /// What the client calls itself. A label for people.
    pub client_id: String,
    /// The caller's uid, from the bus.
    pub uid: u32,
    /// The caller's unit, from the bus credentials; empty if unknown.
    pub unit: String,
}

/// How a job failed, as it is kept and sent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The kind, by name in the API.
    pub kind: ErrorKind,
    /// The message with its causes.
    pub message: String,
    /// What to type next; empty if there is nothing.
    pub hint: String,
    /// Machine-readable facts.
    pub details: BTreeMap<String, String>,
}

/// As many items are never on their way at a time.
const MAX_PARTS: usize = 64;
/// More lines nobody reads.
const MAX_MESSAGES: usize = 100;
impl From<&super::error::Error> for Failure {
    fn from(e: &super::error::Error) -> Self {
        Failure {
            kind: e.kind,
            message: printable(&e.chain()),
            hint: printable(e.advice().unwrap_or_default()),
            details: e.details.iter().map(|(k, v)| (k.clone(), printable(v))).collect(),
        }
    }
}

impl From<Failure> for super::error::Error {
    fn from(f: Failure) -> Self {
        let mut error = super::error::Error::new(f.kind, f.message);
        if !f.hint.is_empty() {
            error = error.hint(f.hint);
        }
        error.details = f.details;
        error
    }
}

/// What a successful job did.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct JobResult {
    /// Whether anything changed (or, for a check, would change).
    pub changed: bool,
    /// One line for people: `No changes in input.`, `Staged 1.2.3.`
    pub summary: String,
    /// The deployment that was made, by id.
    pub deployment: Option<String>,
    /// The digest of the base image.
    pub digest: Option<Digest>,
    /// Deployments that this job discarded.
    pub discarded: Vec<String>,
    /// Further lines: what would change, conflicts that were kept, differences after a rollback.
    pub notes: Vec<String>,
    /// What an update would bring and take: of a check or a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Box<Plan>>,
    /// What became of what another tool knows: of an adopt or a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Box<Handover>>,
    /// What was checked, and what became of it: of a verify.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Box<Verified>>,
}

impl JobResult {
    fn printable(&self) -> JobResult {
        JobResult {
            summary: printable(&self.summary),
            notes: self.notes.iter().map(|n| printable(n)).collect(),
            ..self.clone()
        }
    }

    /// The same, with what became of what the other tool knows.
    #[must_use]
    pub fn handed_over(mut self, handover: Box<Handover>) -> JobResult {
        self.notes.splice(0..0, handover.lines());
        self.handover = Some(handover);
        self
    }
}

/// What a running job says.
#[derive(Debug, Clone)]
pub enum Event {
    /// The job leaves the queue.
    Started {
        /// Seconds since the epoch.
        at: u64,
    },
    /// A step begins.
    Step(Step),
    /// Bytes of the current step.
    Bytes {
        /// So far.
        done: u64,
        /// In all; 0 if unknown.
        total: u64,
    },
    /// Bytes of one item (a layer) of the current step.
    Part {
        /// The item, by its digest.
        name: String,
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// Items (layers, images, files) of the current step.
    Items {
        /// So far.
        done: u32,
        /// In all.
        total: u32,
        /// What is worked on.
        current: String,
    },
    /// A line for people.
    Message(String),
    /// What is known, should the job fail.
    Found(Box<JobResult>),
    /// Somebody asked the job to stop.
    Cancelling,
    /// From here on it cannot be cancelled.
    PointOfNoReturn,
    /// The end; comes exactly once and last.
    Finished {
        /// Seconds since the epoch.
        at: u64,
        /// How it ended.
        outcome: Result<JobResult, Failure>,
    },
}

/// A job, as it is shown, sent and kept on disk.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// A UUID.
    pub id: String,
    /// What was asked: `upgrade`, `rebase`, ...
    pub kind: String,
    /// What it is doing.
    pub state: State,
    /// The current or last step by name, `pull.layers`; empty before the first.
    pub step: String,
    /// 0 to 1, never decreasing, 1 only at the end.
    pub progress: f64,
    /// Bytes of the current step.
    pub bytes_done: u64,
    /// Bytes of the current step in all; 0 if unknown.
    pub bytes_total: u64,
    /// Items of the current step.
    pub items_done: u32,
    /// Items of the current step in all.
    pub items_total: u32,
    /// What is worked on.
    pub current_item: String,
    /// The items that are on their way: bytes so far, and in all, by name.
    #[serde(default)]
    pub parts: BTreeMap<String, (u64, u64)>,
    /// Who asked.
    pub initiator: Initiator,
    /// Seconds since the epoch.
    pub created: u64,
    /// Seconds since the epoch; 0 if not started.
    pub started: u64,
    /// Seconds since the epoch; 0 if not finished.
    pub finished: u64,
    /// Whether `Cancel` is refused.
    pub point_of_no_return: bool,
    /// How it failed.
    pub failure: Option<Failure>,
    /// What it did; of a job that failed what it found, if it keeps that.
    pub result: Option<JobResult>,
    /// What it said.
    pub messages: Vec<String>,
}

impl Job {
    /// A queued job.
    pub fn new(id: String, kind: &str, initiator: Initiator, now: u64) -> Job {
        Job {
            id,
            kind: kind.to_owned(),
            state: State::Queued,
            step: String::new(),
            progress: 0.0,
            bytes_done: 0,
            bytes_total: 0,
            items_done: 0,
            items_total: 0,
            current_item: String::new(),
            parts: BTreeMap::new(),
            initiator,
            created: now,
            started: 0,
            finished: 0,
            point_of_no_return: false,
            failure: None,
            result: None,
            messages: Vec::new(),
        }
    }

    /// Whether the job is at or past the step that reads the drop-ins.
    pub fn has_read_drop_ins(&self) -> bool {
        let mut before = Step::ALL.iter().take_while(|s| **s != Step::DeriveRead);
        !self.step.is_empty() && before.all(|s| s.name() != self.step)
    }

    /// Whether `Cancel` can still do something.
    pub fn cancelable(&self) -> bool {
        !self.state.is_final() && !self.point_of_no_return && self.state != State::Cancelling
    }

    /// Folds one event into the state. Events after the end are ignored.
    pub fn apply(&mut self, event: &Event) {
        if self.state.is_final() {
            return;
        }
        match event {
            Event::Started { at } => {
                self.started = *at;
                self.state = State::Running;
            }
            Event::Step(step) => {
                self.step = step.name().to_owned();
                (self.bytes_done, self.bytes_total) = (0, 0);
                (self.items_done, self.items_total) = (0, 0);
                self.current_item.clear();
                self.parts.clear();
                self.raise(progress_of(*step, 0.0));
            }
            Event::Bytes { done, total } => {
                self.bytes_done = (*done).max(self.bytes_done);
                self.bytes_total = *total;
                if *total > 0 {
                    self.raise_within(self.bytes_done as f64 / *total as f64);
                }
            }
            Event::Part { name, done, total } => {
                if done >= total {
                    self.parts.remove(name);
                } else if self.parts.len() < MAX_PARTS || self.parts.contains_key(name) {
                    let part = self.parts.entry(printable(name)).or_default();
                    *part = (part.0.max(*done), *total);
                }
            }
            Event::Items { done, total, current } => {
                self.items_done = *done;
                self.items_total = *total;
                self.current_item = printable(current);
                if self.bytes_total == 0 && *total > 0 {
                    self.raise_within(f64::from(*done) / f64::from(*total));
                }
            }
            Event::Message(text) => {
                // A flood of notes would be sent anew with every change.
                if self.messages.len() < MAX_MESSAGES {
                    self.messages.push(printable(text));
                }
            }
            Event::Found(result) => self.result = Some(result.printable()),
            Event::Cancelling => self.state = State::Cancelling,
            Event::PointOfNoReturn => self.point_of_no_return = true,
            Event::Finished { at, outcome } => {
                self.finished = *at;
                self.parts.clear();
                self.point_of_no_return = false;
                match outcome {
                    Ok(result) => {
                        self.state = State::Succeeded;
                        self.progress = 1.0;
                        self.result = Some(result.printable());
                    }
                    Err(failure) => {
                        self.state = match failure.kind {
                            ErrorKind::Cancelled => State::Cancelled,
                            ErrorKind::Interrupted => State::Interrupted,
                            _ => State::Failed,
                        };
                        self.failure = Some(failure.clone());
                    }
                }
            }
        }
    }

    fn raise_within(&mut self, fraction: f64) {
        if let Some(step) = Step::ALL.iter().find(|s| s.name() == self.step) {
            self.raise(progress_of(*step, fraction.clamp(0.0, 1.0)));
        }
    }

    fn raise(&mut self, progress: f64) {
        self.progress = self.progress.max(progress);
    }
}

/// The share of the whole that a step stands for. Pulling dominates; weights only have to look right.
fn weight(step: Step) -> f64 {
    match step {
        Step::PullLayers => 60.0,
        Step::BindPull | Step::VerifyContent | Step::VerifyRepair => 15.0,
        Step::DeriveCommit | Step::StagePublish => 5.0,
        _ => 1.0,
    }
}

/// The overall progress at a fraction of a step: below 1 until the job has finished.
fn progress_of(step: Step, fraction: f64) -> f64 {
    let total: f64 = Step::ALL.iter().map(|s| weight(*s)).sum();
    let before: f64 = Step::ALL.iter().take_while(|s| **s != step).map(|s| weight(*s)).sum();
    0.99 * (before + fraction * weight(step)) / total
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn job() -> Job {
        Job::new("1".into(), "upgrade", Initiator::default(), 1)
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..Step::ALL.len()).prop_map(|i| Event::Step(Step::ALL[i])),
            (any::<u32>(), any::<u32>()).prop_map(|(d, t)| Event::Bytes { done: d.into(), total: t.into() }),
            (any::<u32>(), any::<u32>()).prop_map(|(done, total)| Event::Items {
                done,
                total,
                current: String::new()
            }),
        ]
    }

    proptest! {
        #[test]
        fn progress_never_falls_and_reaches_one_only_at_the_end(events in proptest::collection::vec(any_event(), 0..50)) {
            let mut job = job();
            job.apply(&Event::Started { at: 2 });
            let mut last = 0.0;
            for event in &events {
                job.apply(event);
                prop_assert!(job.progress >= last && job.progress < 1.0);
                last = job.progress;
            }
            job.apply(&Event::Finished { at: 3, outcome: Ok(JobResult::default()) });
            prop_assert_eq!(job.progress, 1.0);
        }
    }

    #[test]
    fn nothing_changes_a_finished_job() {
        let mut job = job();
        let failure = Failure {
            kind: ErrorKind::Cancelled,
            message: "x".into(),
            hint: String::new(),
            details: BTreeMap::new(),
        };
        job.apply(&Event::Finished { at: 3, outcome: Err(failure) });
        assert_eq!(job.state, State::Cancelled);
        let before = job.clone();
        job.apply(&Event::Finished { at: 4, outcome: Ok(JobResult::default()) });
        job.apply(&Event::Cancelling);
        assert_eq!(job, before);
    }

    #[test]
    fn step_names_begin_with_their_phase_and_are_unique() {
        let mut names = std::collections::HashSet::new();
        for step in Step::ALL {
            let phase = serde_json::to_value(step.phase()).unwrap();
            assert!(step.name().starts_with(&format!("{}.", phase.as_str().unwrap())), "{}", step.name());
            assert!(names.insert(step.name()));
        }
    }
}
