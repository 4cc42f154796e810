//! What the engine remembers on disk, and how it finds its way after a crash.
//!
//! ```text
//! <state>/intent.json     written before the first visible effect, removed after the last: what was being published
//! <state>/pending.json    what the next boot should come up with, and the boot in which it was staged
//! <state>/outcome.json    what the last such boot came to
//! <state>/rejected.json   inputs that automatic jobs do not go back to
//! <state>/jobs/<id>.json  finished jobs, the last 50 or 30 days
//! <state>/bound/          the bound set of each deployment
//! ```
//! Every file carries a version and is replaced atomically.

use crate::derive::take::Take;
use crate::model::image::Digest;
use crate::model::job::{Event, Failure, Job};
use crate::model::status::{Outcome, Rejected};
use crate::model::{Context, ErrorKind, Result};
use crate::sys::fs::{read_optional, remove_durably, write_atomic};
use cap_std_ext::cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Results are kept for so many jobs ...
const KEEP_JOBS: usize = 50;
/// ... and so long (30 days).
const KEEP_SECONDS: u64 = 30 * 24 * 3600;
const INTENT: &str = "intent.json";
const PENDING: &str = "pending.json";
const OUTCOME: &str = "outcome.json";
const REJECTED: &str = "rejected.json";

/// What is about to become visible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Intent {
    /// The job.
    pub job: String,
    /// The commit.
    pub checksum: String,
    /// The base image.
    pub digest: Option<Digest>,
    /// The boot in which this happens.
    pub boot_id: String,
    /// The ids of the deployments before it.
    #[serde(default)]
    pub before: Vec<String>,
    /// Set for a rollback, which makes no new deployment.
    #[serde(default)]
    pub rollback: Option<Rollback>,
    /// Whether the sysroot is booted, so that the deployment is staged.
    pub staged: bool,
    /// Local copies in `/etc` that give way, to be put back if nothing is published.
    #[serde(default)]
    pub takes: Vec<Take>,
    /// The root of the deployment whose `/etc` that is.
    #[serde(default)]
    pub etc_root: Option<PathBuf>,
}

/// What a rollback is about to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rollback {
    /// The id of the deployment that becomes the default.
    pub to: String,
    /// What automatic jobs refuse from then on.
    pub reject: Option<Rejected>,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}

#[derive(Serialize, Deserialize)]
struct List<T> {
    items: Vec<T>,
}

/// The state directory.
#[derive(Debug)]
pub struct Journal {
    dir: Dir,
}

impl Journal {
    /// A journal in this directory.
    pub fn new(dir: Dir) -> Journal {
        Journal { dir }
    }

    /// The directory itself, for the rooms that keep records beside the journal.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    fn load<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let Some(bytes) = read_optional(&self.dir, name)? else { return Ok(None) };
        let file: Versioned<T> = serde_json::from_slice(&bytes)
            .kind(ErrorKind::Corrupt, format!("decoding {name} of the state directory"))?;
        if file.version != 1 {
            return Err(crate::model::Error::new(
                ErrorKind::Unsupported,
                format!("{name} has version {}, this osctld knows 1", file.version),
            )
            .hint("run the newer osctld that wrote it"));
        }
        Ok(Some(file.value))
    }

    fn save<T: Serialize>(&self, name: &str, value: T) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&Versioned { version: 1, value }).doing("encoding state")?;
        write_atomic(&self.dir, name, &bytes, 0o600)
    }

    /// Records what is about to be published. Nothing may be published before this has returned.
    pub fn begin(&self, intent: &Intent) -> Result<()> {
        self.save(INTENT, intent)
    }

    /// The intent that a crash left behind.
    pub fn intent(&self) -> Result<Option<Intent>> {
        self.load(INTENT)
    }

    /// Records that the intent was carried out: what the next boot should come up with.
    pub fn done(&self, intent: &Intent) -> Result<()> {
        // All of it before the intent goes: a crash in between repeats it.
        if let Some(rollback) = &intent.rollback {
            if let Some(entry) = &rollback.reject {
                self.reject(entry.clone())?;
            }
            // What was staged is discarded with a rollback: nothing is expected of the next boot any more.
            remove_durably(&self.dir, PENDING)?;
        } else if intent.staged {
            self.save(PENDING, intent)?;
        }
        remove_durably(&self.dir, INTENT)
    }

    /// Records that the intent came to nothing.
    pub fn abandon(&self) -> Result<()> {
        remove_durably(&self.dir, INTENT)
    }

    /// What the last boot after a staged deployment came to.
    pub fn outcome(&self) -> Result<Option<Outcome>> {
        self.load(OUTCOME)
    }

    /// Compares what was to boot with what did, once per boot.
    pub fn judge_boot(
        &self,
        boot_id: &str,
        booted: &str,
        finalize_failure: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        let Some(pending) = self.load::<Intent>(PENDING)? else { return Ok(()) };
        if pending.boot_id == boot_id {
            return Ok(());
        }
        let failure = if pending.checksum == booted { None } else { finalize_failure() };
        self.save(OUTCOME, judge(&pending, booted, failure))?;
        remove_durably(&self.dir, PENDING)
    }

    /// What automatic jobs refuse.
    pub fn rejected(&self) -> Result<Vec<Rejected>> {
        Ok(self.load::<List<Rejected>>(REJECTED)?.map(|l| l.items).unwrap_or_default())
    }

    /// Adds an entry to what automatic jobs refuse.
    pub fn reject(&self, entry: Rejected) -> Result<()> {
        let mut items = self.rejected()?;
        items.retain(|r| (&r.digest, &r.input_digest) != (&entry.digest, &entry.input_digest));
        items.push(entry);
        self.save(REJECTED, List { items })
    }

    /// Removes an entry: a person has overridden it.
    pub fn accept(&self, digest: Option<&Digest>, input: Option<&Digest>) -> Result<()> {
        let mut items = self.rejected()?;
        let before = items.len();
        items.retain(|r| (r.digest.as_ref(), r.input_digest.as_ref()) != (digest, input));
        if items.len() == before { Ok(()) } else { self.save(REJECTED, List { items }) }
    }

    /// Keeps a job's state for clients that come later.
    pub fn keep(&self, job: &Job) -> Result<()> {
        self.save(&format!("jobs/{}.json", job.id), job)
    }

    /// The kept jobs, newest first. Jobs that a crash cut off end as `interrupted`; old ones are removed.
    pub fn jobs(&self, now: u64) -> Result<Vec<Job>> {
        let mut jobs: Vec<Job> = Vec::new();
        let names: Vec<String> = match self.dir.read_dir("jobs") {
            Ok(entries) => {
                entries.filter_map(|e| e.ok()).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e).doing("listing kept jobs"),
        };
        for name in names.iter().filter(|n| n.ends_with(".json")) {
            match self.load::<Job>(&format!("jobs/{name}")) {
                Ok(Some(job)) => jobs.push(job),
                Ok(None) => {}
                // A damaged history entry must not keep the daemon from starting.
                Err(error) => {
                    tracing::warn!(name, error = error.chain(), "leaving out a kept job that cannot be read")
                }
            }
        }
        jobs.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
        for job in jobs.iter_mut().filter(|j| !j.state.is_final()) {
            job.apply(&Event::Finished { at: now, outcome: Err(interrupted()) });
            self.keep(job)?;
        }
        let old = jobs
            .iter()
            .enumerate()
            .filter(|(i, j)| *i >= KEEP_JOBS || now.saturating_sub(j.created) > KEEP_SECONDS);
        let old: Vec<String> = old.map(|(_, j)| j.id.clone()).collect();
        for id in &old {
            remove_durably(&self.dir, format!("jobs/{id}.json"))?;
        }
        jobs.retain(|j| !old.contains(&j.id));
        Ok(jobs)
    }
}

fn interrupted() -> Failure {
    Failure {
        kind: ErrorKind::Interrupted,
        message: "osctld ended while this job ran; the deployments are as they were before it, or complete"
            .into(),
        hint: "run the same command again: finished work is kept".into(),
        details: Default::default(),
    }
}

fn judge(pending: &Intent, booted: &str, finalize_failure: Option<String>) -> Outcome {
    let ok = booted == pending.checksum;
    let (phase, message) = match (ok, finalize_failure) {
        (true, _) => ("", "the staged deployment was booted".to_owned()),
        (false, Some(text)) => ("finalize", format!("finalizing the staged deployment failed at shutdown: {}", text.trim())),
        (false, None) => (
            "boot",
            "another deployment was booted than the one that was staged; see: journalctl -b -1 -u ostree-finalize-staged.service".to_owned(),
        ),
    };
    Outcome {
        ok,
        checksum: pending.checksum.clone(),
        digest: pending.digest.clone(),
        phase: phase.into(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::{Initiator, JobResult, State};

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let handle = Dir::open_ambient_dir(dir.path(), cap_std_ext::cap_std::ambient_authority()).unwrap();
        (dir, Journal::new(handle))
    }

    fn intent() -> Intent {
        Intent {
            job: "j".into(),
            checksum: "new".into(),
            digest: None,
            boot_id: "1".into(),
            before: Vec::new(),
            rollback: None,
            staged: true,
            takes: Vec::new(),
            etc_root: None,
        }
    }

    #[test]
    fn an_intent_lasts_until_it_is_done_and_the_next_boot_is_judged_once() {
        let (_dir, journal) = journal();
        journal.begin(&intent()).unwrap();
        assert_eq!(journal.intent().unwrap(), Some(intent()));
        journal.done(&intent()).unwrap();
        assert_eq!(journal.intent().unwrap(), None);
        journal.judge_boot("1", "old", || None).unwrap();
        assert_eq!(journal.outcome().unwrap(), None, "the same boot proves nothing");
        journal.judge_boot("2", "new", || None).unwrap();
        let outcome = journal.outcome().unwrap().unwrap();
        assert!(outcome.ok);
        journal.judge_boot("3", "other", || None).unwrap();
        assert_eq!(journal.outcome().unwrap(), Some(outcome), "judged once");
    }

    #[test]
    fn a_boot_into_something_else_says_where_it_failed() {
        for (stamp, phase) in [(Some("error: no space\n".to_owned()), "finalize"), (None, "boot")] {
            let (_dir, journal) = journal();
            journal.done(&intent()).unwrap();
            journal.judge_boot("2", "old", || stamp).unwrap();
            let outcome = journal.outcome().unwrap().unwrap();
            assert_eq!((outcome.ok, outcome.phase.as_str()), (false, phase));
        }
    }

    #[test]
    fn a_job_that_a_crash_cut_off_is_interrupted_and_old_ones_go() {
        let (_dir, journal) = journal();
        let job = |id: &str, created: u64, done: bool| {
            let mut job = Job::new(id.into(), "upgrade", Initiator::default(), created);
            if done {
                job.apply(&Event::Finished { at: created, outcome: Ok(JobResult::default()) });
            }
            journal.keep(&job).unwrap();
        };
        job("cut", 1000, false);
        job("old", 10, true);
        for i in 0..KEEP_JOBS {
            job(&format!("{i}"), 2000 + i as u64, true);
        }
        let jobs = journal.jobs(3000).unwrap();
        assert_eq!(jobs.len(), KEEP_JOBS);
        assert_eq!(journal.load::<Job>("jobs/old.json").unwrap(), None);
        let (_dir2, other) = self::journal();
        other.keep(&Job::new("cut".into(), "upgrade", Initiator::default(), 1000)).unwrap();
        assert_eq!(other.jobs(1001).unwrap()[0].state, State::Interrupted);
    }

    #[test]
    fn a_rejected_input_is_kept_once_and_can_be_accepted() {
        let (_dir, journal) = journal();
        let entry =
            Rejected { digest: Some(Digest::of(b"a")), input_digest: None, reason: "rolled back".into() };
        journal.reject(entry.clone()).unwrap();
        journal.reject(entry.clone()).unwrap();
        assert_eq!(journal.rejected().unwrap(), [entry]);
        journal.accept(Some(&Digest::of(b"a")), None).unwrap();
        assert_eq!(journal.rejected().unwrap(), []);
    }

    #[test]
    fn state_of_a_newer_version_is_refused() {
        let (_dir, journal) = journal();
        write_atomic(
            journal.dir(),
            "intent.json",
            br#"{"version":2,"job":"x","checksum":"y","digest":null,"boot-id":"","staged":true}"#,
            0o600,
        )
        .unwrap();
        assert_eq!(journal.intent().unwrap_err().kind, ErrorKind::Unsupported);
    }
}
