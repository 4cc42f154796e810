//! The state of the host as everybody sees it: `osctl status --json`, `Describe()`, the bus objects.
//!
//! The schema is `docs/status.schema.json`. Nothing secret is ever put in here.

use super::bound::{BoundSet, Mode};
use super::deviation::{Asked, Effect};
use super::image::{Digest, ImageRef};
use super::job::Job;
use super::verification::Verification;
use super::verified::Damage;
use std::collections::BTreeMap;

/// A kernel argument of a boot entry and who put it there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnedKarg {
    /// The argument.
    pub arg: String,
    /// `local`, `vendor`, or the name of a drop-in.
    pub owner: String,
}

/// What was derived on top of the base.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Derivation {
    /// Digest of the merged declarations.
    pub input_digest: Option<Digest>,
    /// The drop-ins.
    pub drop_ins: Vec<DropIn>,
    /// What was asked of the package manager, and what became of it.
    pub packages: Vec<PackageRequest>,
    /// Derived paths, each with its drop-in.
    pub files: Vec<OwnedPath>,
    /// Units that were enabled, disabled or masked, each with its drop-in.
    #[serde(default)]
    pub units: Vec<OwnedUnit>,
    /// Users, each with its drop-in.
    #[serde(default)]
    pub users: Vec<OwnedUser>,
    /// Groups beside those of the users, each with its drop-in.
    #[serde(default)]
    pub groups: Vec<OwnedUser>,
    /// Kernel arguments, each with its owner.
    pub kargs: Vec<OwnedKarg>,
    /// Kernel arguments that a drop-in took away, each with that.
    #[serde(default)]
    pub deleted_kargs: Vec<OwnedKarg>,
    /// `/etc` paths where the local version was kept.
    pub kept_local: Vec<String>,
}

/// A drop-in that contributes to a deployment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DropIn {
    /// File name, `50-agent.yaml`.
    pub name: String,
    /// Digest of what it declares; comments do not count.
    pub digest: Digest,
}

/// A derived path and the drop-in that declares it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnedPath {
    /// The path.
    pub path: String,
    /// The drop-in.
    pub owner: String,
    /// What it did to the base; `None` if nobody noted that.
    #[serde(default)]
    pub effect: Option<Effect>,
}

/// A unit whose state a drop-in declares.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnedUnit {
    /// Its name.
    pub name: String,
    /// The drop-in.
    pub owner: String,
    /// Enabled, disabled, or left alone.
    pub enabled: Option<bool>,
    /// Masked.
    pub mask: bool,
    /// The links that were made to enable it, or removed to disable it.
    pub links: Vec<String>,
}

/// A user or a group, and the drop-in that declares it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OwnedUser {
    /// The name.
    pub name: String,
    /// The drop-in.
    pub owner: String,
}

/// A request to the package manager, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PackageRequest {
    /// As it was made: a name, or a name with a version.
    pub request: String,
    /// What is asked.
    pub asked: Asked,
    /// What became of it.
    pub outcome: super::deviation::Outcome,
    /// The drop-ins that ask.
    pub owners: Vec<String>,
    /// The version that the tree has because of it.
    pub version: Option<String>,
}

/// A request to the package manager that drop-ins make now, and that the next boot does not have.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unmet {
    /// As it was made.
    pub request: String,
    /// What is asked.
    pub asked: Asked,
    /// The drop-ins that ask.
    pub owner: String,
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Deployment {
    /// `<stateroot>-<checksum>.<serial>`; stable for the deployment's life.
    pub id: String,
    /// Position in the boot menu, 0 first.
    pub index: u32,
    /// The stateroot.
    pub stateroot: String,
    /// The ostree commit.
    pub checksum: String,
    /// The commit of the base image.
    pub base_checksum: String,
    /// The tracked image, if the origin has one that we understand.
    pub image: Option<ImageRef>,
    /// The digest of the base image.
    pub digest: Option<Digest>,
    /// The version label.
    pub version: String,
    /// The commit's time, seconds since the epoch.
    pub timestamp: u64,
    /// Runs now.
    pub booted: bool,
    /// Will run after the next boot, and is still to be finalised.
    pub staged: bool,
    /// Is what the bootloader takes by default.
    pub default: bool,
    /// Kept by `osctl pin`.
    pub pinned: bool,
    /// What vouched for the image; `None` if nobody noted that.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// What was derived.
    pub derivation: Derivation,
    /// What is bound. Shown without the paths of credentials files, which are nobody's business who only looks.
    #[serde(serialize_with = "without_auth_files")]
    pub bound_images: BoundSet,
    /// Labels of the image, incl. `org.opencontainers.image.source` and `.revision`.
    pub labels: BTreeMap<String, String>,
    /// Why osctl will not touch this deployment's origin (unknown keys); empty if it is ours to manage.
    pub incompatible: Vec<String>,
}

fn without_auth_files<S: serde::Serializer>(set: &BoundSet, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Shown<'a> {
        reference: &'a ImageRef,
        mode: Mode,
        tls_verify: Option<bool>,
        source: &'a str,
        digest: &'a Digest,
    }
    // Named one by one: a field that is added is secret until somebody thinks about it.
    serializer.collect_seq(set.images.iter().map(|image| Shown {
        reference: &image.spec.reference,
        mode: image.spec.mode,
        tls_verify: image.spec.tls_verify,
        source: &image.spec.source,
        digest: &image.digest,
    }))
}

/// In what condition a bound image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoundState {
    /// It is in the store.
    Present,
    /// It is not, or not all of it.
    Missing,
    /// It is, and the last check found that it is not as it was published.
    Damaged,
}

impl BoundState {
    /// The name on the bus.
    pub fn name(self) -> &'static str {
        match self {
            BoundState::Present => "present",
            BoundState::Missing => "missing",
            BoundState::Damaged => "damaged",
        }
    }
}

/// A bound image of one or more deployments.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Bound {
    /// The name of its object: the first 12 digits of the digest, with a suffix where references share that.
    pub id: String,
    /// As it was asked for.
    pub reference: ImageRef,
    /// The per-architecture manifest digest.
    pub digest: Digest,
    /// `bind` if any deployment asks for that.
    pub mode: Mode,
    /// The file that asks for it, in the first of the deployments.
    pub source: String,
    /// Whether it is there.
    pub state: BoundState,
    /// The bytes of its unpacked layers; 0 if it is missing.
    pub size: u64,
    /// When all of it was last checked, seconds since the epoch; 0 if that was never done since it was fetched.
    pub checked: u64,
    /// What was found then.
    pub damage: Vec<Damage>,
    /// The ids of the deployments that have it.
    pub deployments: Vec<String>,
}

impl Bound {
    /// What keeps the host from being whole, with what to do; nothing where this image does not.
    pub fn complaint(&self) -> Option<String> {
        match (self.state, self.mode) {
            (BoundState::Damaged, _) => Some(format!(
                "the bound image {} is damaged; osctl bound verify repairs it from its registry",
                self.reference.name
            )),
            (BoundState::Missing, Mode::Bind) => Some(format!(
                "the bound image {} is missing; fetch it with osctl bound pull",
                self.reference.name
            )),
            (BoundState::Present, _) | (BoundState::Missing, Mode::Prefetch) => None,
        }
    }
}

/// What the last boot into a new deployment came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// Whether the deployment that was staged is the one that booted.
    pub ok: bool,
    /// The commit that was to boot.
    pub checksum: String,
    /// The base digest.
    pub digest: Option<Digest>,
    /// Where it failed: `finalize` or `boot`; empty if it did not.
    pub phase: String,
    /// What happened, and where to look.
    pub message: String,
    /// Declared paths of `/etc` where a local change that came after staging won.
    #[serde(default)]
    pub shadowed: Vec<String>,
}

/// A base digest and input that automatic jobs do not go back to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rejected {
    /// The base image.
    pub digest: Option<Digest>,
    /// The merged declarations.
    pub input_digest: Option<Digest>,
    /// Why.
    pub reason: String,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The version of this format: 1.
    pub version: u32,
    /// `initializing`, `idle`, `busy`, `degraded` or `read-only`.
    pub state: String,
    /// Why the state is degraded or read-only, with what to do.
    pub reasons: Vec<String>,
    /// The booted deployment's id.
    pub booted: Option<String>,
    /// The staged deployment's id.
    pub staged: Option<String>,
    /// The id of the deployment that `rollback` would go to.
    pub rollback: Option<String>,
    /// All deployments, in boot order, the staged one first.
    pub deployments: Vec<Deployment>,
    /// The bound images of all deployments, sorted by reference.
    #[serde(default)]
    pub bound: Vec<Bound>,
    /// Whether the drop-ins differ from what the default deployment was derived from; what differs.
    pub pending_changes: Vec<String>,
    /// Requests to the package manager that are not met yet.
    #[serde(default)]
    pub unmet: Vec<Unmet>,
    /// What the last boot into a new deployment came to.
    pub last_outcome: Option<Outcome>,
    /// What automatic jobs refuse.
    pub rejected: Vec<Rejected>,
    /// Enabled units of other updaters on this host.
    pub rivals: Vec<String>,
    /// Active and recent jobs, newest first.
    pub jobs: Vec<Job>,
}

impl Status {
    /// The state of an engine that has not read everything yet.
    pub const INITIALIZING: &str = "initializing";

    /// A status before anything was read.
    pub fn initializing() -> Status {
        Status {
            version: 1,
            state: Status::INITIALIZING.into(),
            reasons: Vec::new(),
            booted: None,
            staged: None,
            rollback: None,
            deployments: Vec::new(),
            bound: Vec::new(),
            pending_changes: Vec::new(),
            unmet: Vec::new(),
            last_outcome: None,
            rejected: Vec::new(),
            rivals: Vec::new(),
            jobs: Vec::new(),
        }
    }

    /// The deployment that the bootloader takes next: the staged one, else the default one.
    pub fn next(&self) -> Option<&Deployment> {
        self.deployments.iter().find(|d| d.staged).or_else(|| self.deployments.iter().find(|d| d.default))
    }

    /// What is known about why requests are not met: what the last job that could have met them said.
    pub fn why_unmet(&self, unmet: &Unmet) -> Option<&str> {
        let derives =
            |job: &&Job| ["upgrade", "rebase", "reconcile", "edit", "adopt"].contains(&job.kind.as_str());
        let last = self.jobs.iter().find(|job| derives(job) && job.state.is_final())?;
        let names = |note: &&String| unmet.owner.split(", ").any(|owner| note.contains(owner));
        let noted = || last.result.as_ref()?.notes.iter().find(names).map(String::as_str);
        last.failure.as_ref().map(|failure| failure.message.as_str()).or_else(noted)
    }

    /// Whether the next boot runs another deployment than this one.
    pub fn reboot_needed(&self) -> bool {
        self.booted.is_some() && self.next().is_some_and(|d| !d.booted)
    }

    /// The deployment with this id.
    pub fn deployment(&self, id: &str) -> Option<&Deployment> {
        self.deployments.iter().find(|d| d.id == id)
    }
}
