//! What the engine remembers on disk, and how it finds its way after a crash.
//!
//! ```text
//! <state>/intent.json     written before the first visible effect, removed after the last: what was being published
//! <state>/pending.json    what the next boot should come up with, and the boot in which it was staged
//! <state>/outcome.json    what the last such boot came to
//! <state>/rejected.json   inputs that automatic jobs do not go back to
//! <state>/unavailable.json  packages that cannot be had, and when that is tried again
//! <state>/prefetch.json     bound images to prefetch that are missing, and when that is tried again
//! <state>/jobs/<id>.json  finished jobs, the last 50 or 30 days
//! <state>/bound/          the bound set of each deployment
//! ```
//! Every file carries a version and is replaced atomically.

use crate::derive::read;
use crate::derive::take::Take;
use crate::model::image::Digest;
use crate::model::job::{Event, Failure, Job};
use crate::model::status::{Outcome, Rejected};
use crate::model::unavailable::Unavailable;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs::{read_optional, remove_durably, write_atomic};
use cap_std_ext::cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

/// Results of jobs are kept for so long (30 days).
const KEEP_SECONDS: u64 = 30 * 24 * 3600;
const INTENT: &str = "intent.json";
const PENDING: &str = "pending.json";
const OUTCOME: &str = "outcome.json";
const REJECTED: &str = "rejected.json";
const UNAVAILABLE: &str = "unavailable.json";
const PREFETCH: &str = "prefetch.json";

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
    /// A rejected input that a person wants all the same.
    #[serde(default)]
    pub accepts: Option<Key>,
    /// Local copies in `/etc` that give way until the merge is over.
    #[serde(default)]
    pub takes: Vec<Take>,
    /// The same of the staged deployment that this one replaces.
    #[serde(default)]
    pub carried: Vec<Take>,
    /// The id of the deployment whose `/etc` that is.
    #[serde(default)]
    pub etc_of: Option<String>,
    /// The drop-in that is written with the deployment.
    #[serde(default)]
    pub edited: Option<Edited>,
}

impl Intent {
    /// Everything that gave way, in the order in which it did.
    pub fn all_takes(&self) -> Vec<Take> {
        self.carried.iter().chain(&self.takes).cloned().collect()
    }
}

/// A new text of a drop-in that the daemon writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edited {
    /// The file name of the drop-in.
    pub name: String,
    /// The digest of the text that it is made from; `None` if there was no file.
    pub before: Option<Digest>,
    /// The text.
    pub after: String,
    /// What a person should know.
    #[serde(skip)]
    pub notes: Vec<String>,
}

impl Edited {
    /// Where the drop-in is.
    pub fn path(&self) -> String {
        format!("{}/{}", read::HOST_DIR, self.name)
    }

    /// The drop-in for whoever reads before it is written.
    pub fn upcoming(&self) -> read::Upcoming<'_> {
        read::Upcoming { name: &self.name, text: &self.after }
    }
}

/// What the next boot should come up with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pending {
    /// The id of the deployment.
    pub deployment: String,
    /// How it came to be.
    #[serde(flatten)]
    pub intent: Intent,
}

/// An input that can be rejected: a base and what is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Key {
    /// The base image.
    pub digest: Option<Digest>,
    /// The merged declarations.
    pub input_digest: Option<Digest>,
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

/// The jobs of earlier processes.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Newest first. Those that a crash cut off have ended as `interrupted`.
    pub jobs: Vec<Job>,
    cut: Vec<String>,
    old: Vec<String>,
}

/// The state directory.
#[derive(Debug)]
pub struct Journal {
    dir: Dir,
}

impl Journal {
    /// Results are kept for so many jobs.
    pub const KEEP: usize = 50;

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
        let file: Versioned<T> = serde_json::from_slice(&bytes).map_err(|e| {
            let error = Error::new(ErrorKind::Corrupt, format!("{name} in the state directory is damaged"));
            error
                .hint(format!("the deployments are not: move ostree/osctl/{name} away, and see osctl status"))
                .source(e)
        })?;
        if file.version != 1 {
            return Err(Error::new(
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

    /// Records that the intent was carried out, by the deployment with this id.
    pub fn done(&self, intent: &Intent, deployment: &str) -> Result<()> {
        // All of it before the intent goes: a crash in between repeats it.
        if let Some(key) = &intent.accepts {
            self.accept(key)?;
        }
        if let Some(rollback) = &intent.rollback {
            if let Some(entry) = &rollback.reject {
                self.reject(entry.clone())?;
            }
        } else if intent.staged {
            // The drop-in is written: from here on it is the administrator's again.
            let intent = Intent { edited: None, ..intent.clone() };
            self.save(PENDING, Pending { deployment: deployment.to_owned(), intent })?;
        }
        remove_durably(&self.dir, INTENT)
    }

    /// Records that the intent came to nothing.
    pub fn abandon(&self) -> Result<()> {
        remove_durably(&self.dir, INTENT)
    }

    /// What the next boot should come up with.
    pub fn pending(&self) -> Result<Option<Pending>> {
        self.load(PENDING)
    }

    /// Nothing is expected of the next boot any more.
    pub fn forget_pending(&self) -> Result<()> {
        remove_durably(&self.dir, PENDING)
    }

    /// What the last boot after a staged deployment came to.
    pub fn outcome(&self) -> Result<Option<Outcome>> {
        self.load(OUTCOME)
    }

    /// Compares what was to boot with what did.
    pub fn judge(
        &self,
        pending: &Pending,
        booted: &str,
        shadowed: Vec<String>,
        finalize_failure: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        let failure = if pending.deployment == booted { None } else { finalize_failure() };
        self.save(OUTCOME, judge(pending, booted, shadowed, failure))
    }

    /// Packages that cannot be had, if there are such.
    pub fn unavailable(&self) -> Result<Option<Unavailable>> {
        self.load(UNAVAILABLE)
    }

    /// Notes that packages cannot be had.
    pub fn note_unavailable(&self, state: &Unavailable) -> Result<()> {
        self.save(UNAVAILABLE, state)
    }

    /// All packages can be had again.
    pub fn forget_unavailable(&self) -> Result<()> {
        remove_durably(&self.dir, UNAVAILABLE)
    }

    /// Bound images to prefetch that are missing, if there are such.
    pub fn prefetch(&self) -> Result<Option<Unavailable>> {
        self.load(PREFETCH)
    }

    /// Notes that bound images to prefetch are missing.
    pub fn note_prefetch(&self, state: &Unavailable) -> Result<()> {
        self.save(PREFETCH, state)
    }

    /// All bound images are there.
    pub fn forget_prefetch(&self) -> Result<()> {
        remove_durably(&self.dir, PREFETCH)
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
    fn accept(&self, key: &Key) -> Result<()> {
        let mut items = self.rejected()?;
        let before = items.len();
        items.retain(|r| (&r.digest, &r.input_digest) != (&key.digest, &key.input_digest));
        if items.len() == before { Ok(()) } else { self.save(REJECTED, List { items }) }
    }

    /// Keeps a job's state for clients that come later.
    pub fn keep(&self, job: &Job) -> Result<()> {
        self.save(&format!("jobs/{}.json", job.id), job)
    }

    /// Forgets a job.
    pub fn forget(&self, id: &str) -> Result<()> {
        remove_durably(&self.dir, format!("jobs/{id}.json"))
    }

    /// The kept jobs. Writes nothing: [`Journal::tidy`] does.
    pub fn history(&self, now: u64) -> Result<History> {
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
        // Ids begin with their time: they tell the order within a second.
        jobs.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| b.id.cmp(&a.id)));
        let mut cut = Vec::new();
        for job in jobs.iter_mut().filter(|j| !j.state.is_final()) {
            job.apply(&Event::Finished { at: now, outcome: Err(interrupted()) });
            cut.push(job.id.clone());
        }
        let old =
            |(i, j): &(usize, &Job)| *i >= Journal::KEEP || now.saturating_sub(j.created) > KEEP_SECONDS;
        let keep = jobs.iter().enumerate().take_while(|at| !old(at)).count();
        let old = jobs.drain(keep..).map(|j| j.id).collect();
        Ok(History { jobs, cut, old })
    }

    /// Writes down what [`Journal::history`] found: the ends of jobs that a crash cut off, and that old ones are gone.
    pub fn tidy(&self, history: &History) -> Result<()> {
        for job in history.jobs.iter().filter(|j| history.cut.contains(&j.id)) {
            self.keep(job)?;
        }
        history.old.iter().try_for_each(|id| self.forget(id))
    }
}

/// How a job ends that nobody ended.
pub fn interrupted() -> Failure {
    Failure {
        kind: ErrorKind::Interrupted,
        message: "osctld ended while this job ran; the deployments are as they were before it, or complete"
            .into(),
        hint: "run the same command again: finished work is kept".into(),
        details: Default::default(),
    }
}

fn judge(
    pending: &Pending,
    booted: &str,
    shadowed: Vec<String>,
    finalize_failure: Option<String>,
) -> Outcome {
    let ok = booted == pending.deployment;
    let (phase, message) = match (ok, finalize_failure) {
        (true, _) if shadowed.is_empty() => ("", "the staged deployment was booted".to_owned()),
        (true, _) => (
            "",
            format!("the staged deployment was booted, but local changes in /etc won over: {}", shadowed.join(", ")),
        ),
        (false, Some(text)) => {
            ("finalize", format!("finalizing the staged deployment failed at shutdown: {}", text.trim()))
        }
        (false, None) => (
            "boot",
            "another deployment was booted than the one that was staged; see: journalctl -b -1 -u ostree-finalize-staged.service".to_owned(),
        ),
    };
    Outcome {
        ok,
        checksum: pending.intent.checksum.clone(),
        digest: pending.intent.digest.clone(),
        phase: phase.into(),
        message,
        shadowed,
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
            accepts: None,
            staged: true,
            takes: Vec::new(),
            carried: Vec::new(),
            etc_of: None,
            edited: None,
        }
    }

    #[test]
    fn an_intent_lasts_until_it_is_done_and_then_waits_for_the_boot() {
        let (_dir, journal) = journal();
        journal.begin(&intent()).unwrap();
        assert_eq!(journal.intent().unwrap(), Some(intent()));
        journal.done(&intent(), "os-new.0").unwrap();
        assert_eq!(journal.intent().unwrap(), None);
        let pending = journal.pending().unwrap().unwrap();
        assert_eq!(pending, Pending { deployment: "os-new.0".into(), intent: intent() });
        journal.judge(&pending, "os-new.0", vec!["/etc/a".into()], || panic!("it was booted")).unwrap();
        journal.forget_pending().unwrap();
        let outcome = journal.outcome().unwrap().unwrap();
        assert!(outcome.ok && outcome.message.contains("/etc/a"), "{outcome:?}");
        assert_eq!(journal.pending().unwrap(), None);
    }

    #[test]
    fn a_boot_into_something_else_says_where_it_failed() {
        let pending = Pending { deployment: "os-new.1".into(), intent: intent() };
        for (stamp, phase) in [(Some("error: no space\n".to_owned()), "finalize"), (None, "boot")] {
            // The same commit in an older deployment is not what was staged.
            let outcome = judge(&pending, "os-new.0", Vec::new(), stamp);
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
        for i in 0..Journal::KEEP {
            job(&format!("{i}"), 2000 + i as u64, true);
        }
        let history = journal.history(3000).unwrap();
        assert_eq!(history.jobs.len(), Journal::KEEP);
        journal.tidy(&history).unwrap();
        assert_eq!(journal.load::<Job>("jobs/old.json").unwrap(), None);
        let (_dir2, other) = self::journal();
        other.keep(&Job::new("cut".into(), "upgrade", Initiator::default(), 1000)).unwrap();
        let history = other.history(1001).unwrap();
        assert_eq!(history.jobs[0].state, State::Interrupted);
        assert_eq!(other.load::<Job>("jobs/cut.json").unwrap().unwrap().state, State::Queued, "read only");
        other.tidy(&history).unwrap();
        assert_eq!(other.load::<Job>("jobs/cut.json").unwrap().unwrap().state, State::Interrupted);
    }

    #[test]
    fn a_rejected_input_is_kept_once_and_can_be_accepted() {
        let (_dir, journal) = journal();
        let entry =
            Rejected { digest: Some(Digest::of(b"a")), input_digest: None, reason: "rolled back".into() };
        journal.reject(entry.clone()).unwrap();
        journal.reject(entry.clone()).unwrap();
        assert_eq!(journal.rejected().unwrap(), [entry]);
        journal.accept(&Key { digest: Some(Digest::of(b"a")), input_digest: None }).unwrap();
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
