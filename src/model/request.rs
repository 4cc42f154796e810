//! What a client can ask for. Parsed once, at the edge; everything else derives from it.

use super::edit::Edit;
use super::handover::Tool;
use super::image::{Digest, ImageRef, Transport};
use super::{Error, ErrorKind, Result};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Options that several requests share.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Options {
    /// Refuse any other target than this digest.
    pub require_digest: Option<Digest>,
    /// Pull, derive and bind, but stage nothing.
    pub download_only: bool,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Take a target that is older than what runs.
    pub allow_downgrade: bool,
    /// Replace a deployment that somebody else staged.
    pub replace_staged: bool,
    /// Take an input that was rejected before.
    pub allow_rejected: bool,
    /// Fetch at most so many bytes a second.
    pub rate_limit: Option<NonZeroU64>,
    /// Refuse an update that would download more bytes than this.
    pub max_bytes: Option<u64>,
    /// Take an image that is verified less than what runs.
    pub allow_unverified: bool,
    /// Drop files that a plain image carries in `/var`.
    pub drop_var: bool,
    /// Fail with `Busy` instead of waiting in the queue.
    pub no_wait: bool,
    /// Install exactly the packages of `/etc/osctl/derive.lock`, or fail.
    pub frozen: bool,
    /// Solve packages anew although the lock of before still fits.
    pub update_lock: bool,
    /// Do again what could not be done because packages were not to be had, if that is due, and nothing otherwise.
    pub retry: bool,
    /// Do without what the other tool, or osctl, cannot express.
    pub lossy: bool,
    /// Kernel arguments of a first deployment.
    pub kargs: Vec<String>,
    /// The stateroot of a first deployment.
    pub stateroot: Option<String>,
}

/// Checks the name of a stateroot: a directory below `ostree/deploy`, and a part of ref names and boot entries.
pub fn stateroot(name: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(plain) {
        let error = Error::new(ErrorKind::InvalidArgument, format!("{name:?} is not a name for a stateroot"));
        return Err(error.hint("letters, digits, dots, dashes and underscores: --stateroot default"));
    }
    Ok(name.to_owned())
}

/// What a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// An upgrade.
    Upgrade,
    /// A rebase to this image.
    Rebase(ImageRef),
    /// A reconcile.
    Reconcile,
}

/// What can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// The bound images of all deployments.
    Bound,
}

impl Subject {
    /// Every subject.
    pub const ALL: &'static [Subject] = &[Subject::Bound];

    /// The name on the bus.
    pub fn name(self) -> &'static str {
        match self {
            Subject::Bound => "bound",
        }
    }
}

/// A bound image by its name and digest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BoundName {
    /// The reference.
    pub reference: ImageRef,
    /// The digest.
    pub digest: Digest,
}

/// An open directory or file that a client handed over. Each is another one, whatever it is of.
#[derive(Debug, Clone)]
pub struct Handed(Arc<OwnedFd>);

impl Handed {
    /// What was handed over.
    pub fn new(file: OwnedFd) -> Handed {
        Handed(Arc::new(file))
    }

    /// The open file, again.
    pub fn try_clone(&self) -> std::io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Handed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl PartialEq for Handed {
    fn eq(&self, other: &Handed) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Handed {}

/// One request to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Look for a newer image, download nothing.
    Check(Options),
    /// Say what an upgrade, a rebase or a reconcile would bring and take, and download nothing.
    Plan {
        /// Which of them.
        goal: Goal,
        /// The options that it would have.
        options: Options,
    },
    /// Move to the newest image of the tracked reference, with the current drop-ins.
    Upgrade(Options),
    /// Move to another image reference, with the current drop-ins.
    Rebase {
        /// The new reference.
        image: ImageRef,
        /// The rest.
        options: Options,
    },
    /// Upgrade, or move to another image reference, with images from a bundle and none from the network.
    ImportBundle {
        /// The bundle.
        bundle: Handed,
        /// The new reference; `None` for the tracked one.
        image: Option<ImageRef>,
        /// The rest.
        options: Options,
    },
    /// Apply the current drop-ins to the base that is here.
    Reconcile(Options),
    /// Change what the drop-in declares that the daemon writes, and apply the drop-ins to the base that is here.
    EditDerivation {
        /// What is asked for.
        edit: Edit,
        /// The rest.
        options: Options,
    },
    /// Take over a host that another tool manages.
    Adopt(Options),
    /// Hand the host back to another tool.
    Release {
        /// Which one; `None` for the only one that the image has.
        to: Option<Tool>,
        /// The rest.
        options: Options,
    },
    /// Make the previous deployment the next boot's.
    Rollback {
        /// Keep automatic jobs from going back to what was rolled back from.
        reject: bool,
    },
    /// Keep a deployment, or stop keeping it.
    Pin {
        /// The deployment's id.
        deployment: String,
        /// Keep it or not.
        pinned: bool,
    },
    /// Check stored content against its digests, and repair what is damaged.
    Verify {
        /// What to check.
        what: Vec<Subject>,
        /// The rest.
        options: Options,
    },
    /// Fetch what is missing of the bound images that deployments have.
    PullBound {
        /// Only this one.
        only: Option<BoundName>,
        /// The rest.
        options: Options,
    },
}

impl Request {
    /// The kind of the job, as it stands in `Job.Kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Request::Check(_) => "check",
            Request::Plan { .. } => "plan",
            Request::Upgrade(_) => "upgrade",
            Request::Rebase { .. } => "rebase",
            Request::ImportBundle { .. } => "import-bundle",
            Request::Reconcile(_) => "reconcile",
            Request::EditDerivation { .. } => "edit",
            Request::Adopt(_) => "adopt",
            Request::Release { .. } => "release",
            Request::Rollback { .. } => "rollback",
            Request::Pin { .. } => "pin",
            Request::Verify { .. } => "verify",
            Request::PullBound { .. } => "pull-bound",
        }
    }

    /// The shared options, where the request has them.
    pub fn options(&self) -> Option<&Options> {
        match self {
            Request::Check(o) | Request::Upgrade(o) | Request::Reconcile(o) | Request::Adopt(o) => Some(o),
            Request::Plan { options, .. }
            | Request::Rebase { options, .. }
            | Request::ImportBundle { options, .. }
            | Request::EditDerivation { options, .. }
            | Request::Release { options, .. }
            | Request::Verify { options, .. }
            | Request::PullBound { options, .. } => Some(options),
            Request::Rollback { .. } | Request::Pin { .. } => None,
        }
    }

    /// The polkit actions that the caller needs, all of them.
    pub fn actions(&self) -> Vec<&'static str> {
        let mut actions = vec![match self {
            Request::Check(_) => "org.osctl1.check",
            // It loosens nothing: no option counts. But whoever names a path of this host makes root read it.
            Request::Plan { goal: Goal::Rebase(image), .. } if image.transport != Transport::Registry => {
                return vec!["org.osctl1.check", "org.osctl1.rebase"];
            }
            Request::Plan { .. } => return vec!["org.osctl1.check"],
            Request::Upgrade(o) if o.download_only => "org.osctl1.download",
            Request::Upgrade(_) => "org.osctl1.upgrade",
            // Whoever brings the images chooses what boots, under whatever name.
            Request::Rebase { .. } | Request::ImportBundle { .. } => "org.osctl1.rebase",
            Request::Reconcile(o) | Request::Adopt(o) if o.dry_run => "org.osctl1.check",
            Request::Release { options, .. } if options.dry_run => "org.osctl1.check",
            // A dry run as well: whoever names a package makes root solve and install it, if only aside.
            Request::Reconcile(_) | Request::EditDerivation { .. } => "org.osctl1.derive",
            Request::Adopt(_) | Request::Release { .. } => "org.osctl1.derive",
            Request::Rollback { .. } => "org.osctl1.rollback",
            Request::Pin { .. } => "org.osctl1.manage",
            // A dry run as well: it reads every file of every image.
            Request::Verify { .. } | Request::PullBound { .. } => "org.osctl1.manage",
        }];
        if self.options().is_some_and(|o| o.require_digest.is_some() || o.allow_downgrade) {
            actions.push("org.osctl1.upgrade-to-version");
        }
        if self.options().is_some_and(|o| o.replace_staged || o.allow_rejected) {
            actions.push("org.osctl1.manage");
        }
        if self.options().is_some_and(|o| o.allow_unverified) {
            actions.push("org.osctl1.lower-verification");
        }
        actions
    }

    /// Whether the request changes deployments (and so waits for the sysroot lock).
    pub fn mutates(&self) -> bool {
        match self {
            Request::Check(_) | Request::Plan { .. } => false,
            Request::Upgrade(_) | Request::Rebase { .. } | Request::ImportBundle { .. } => true,
            Request::Reconcile(_) => true,
            Request::EditDerivation { .. } | Request::Adopt(_) | Request::Release { .. } => true,
            Request::Rollback { .. } | Request::Pin { .. } => true,
            // The store of bound images is written under the same lock.
            Request::Verify { .. } | Request::PullBound { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stateroot_is_one_plain_word() {
        for name in ["default", "my_os-1.0", "-x"] {
            assert_eq!(stateroot(name).unwrap(), name);
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(256)] {
            assert_eq!(stateroot(name).unwrap_err().kind, ErrorKind::InvalidArgument, "{name}");
        }
    }

    #[test]
    fn what_an_option_loosens_needs_its_own_action() {
        let upgrade = |o| Request::Upgrade(o).actions();
        assert_eq!(upgrade(Options::default()), ["org.osctl1.upgrade"]);
        assert_eq!(upgrade(Options { download_only: true, ..Default::default() }), ["org.osctl1.download"]);
        assert_eq!(
            upgrade(Options { allow_downgrade: true, allow_rejected: true, ..Default::default() }),
            ["org.osctl1.upgrade", "org.osctl1.upgrade-to-version", "org.osctl1.manage"]
        );
        assert_eq!(
            upgrade(Options { allow_unverified: true, ..Default::default() }),
            ["org.osctl1.upgrade", "org.osctl1.lower-verification"]
        );
    }

    #[test]
    fn who_changes_the_owner_of_a_host_may_change_its_drop_ins() {
        for dry_run in [false, true] {
            let options = Options { dry_run, lossy: true, ..Default::default() };
            let expected = if dry_run { "org.osctl1.check" } else { "org.osctl1.derive" };
            assert_eq!(Request::Adopt(options.clone()).actions(), [expected]);
            assert_eq!(Request::Release { to: None, options }.actions(), [expected]);
        }
    }

    #[test]
    fn a_plan_needs_no_more_than_a_look_unless_it_reads_files_of_this_host() {
        let options = Options { allow_unverified: true, allow_downgrade: true, ..Default::default() };
        let plan = |goal| Request::Plan { goal, options: options.clone() }.actions();
        let rebase = |image: &str| plan(Goal::Rebase(image.parse().unwrap()));
        assert_eq!(plan(Goal::Upgrade), ["org.osctl1.check"]);
        assert_eq!(plan(Goal::Reconcile), ["org.osctl1.check"]);
        assert_eq!(rebase("r.io/os:1"), ["org.osctl1.check"]);
        assert_eq!(rebase("oci-archive:/root/x"), ["org.osctl1.check", "org.osctl1.rebase"]);
    }
}
