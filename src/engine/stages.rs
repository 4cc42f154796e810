//! The types that carry the order of the pipeline: each can only be made from the one before it.
//!
//! ```text
//! Resolved -> Planned -> Pulled -> Derived -> Ready(Derived, complete BoundSet) -> Staged
//! ```

use crate::model::bound::{BoundImage, BoundSet};
use crate::model::handover::Key;
use crate::model::image::{Digest, ImageRef};
use crate::model::manifest::Manifest;
use crate::model::unavailable::Instead;
use crate::model::verification::Verification;
use crate::pull::{Base, Resolved};
use crate::store::origin::Origin;
use crate::store::publish::NewDeployment;

/// A target that policy allows.
#[derive(Debug)]
#[must_use]
pub struct Planned {
    pub(super) target: Target,
    pub(super) stateroot: Option<String>,
    /// The bound images that are known before the tree is here, with the digests that will be bound.
    pub(super) bound: Vec<BoundImage>,
    /// What was said to be downloaded.
    pub(super) download: u64,
}

/// What to derive from.
#[derive(Debug)]
pub enum Target {
    /// An image that may have to be pulled.
    Image {
        /// What it is.
        resolved: Box<Resolved>,
        /// What vouches for it.
        verification: Verification,
    },
    /// The base that a deployment here has.
    Present {
        /// The base.
        base: Base,
        /// The image it tracks.
        image: Option<ImageRef>,
        /// What vouched for it.
        verification: Option<Verification>,
    },
}

/// A base that is in the repository, whole and verified.
#[derive(Debug)]
#[must_use]
pub struct Pulled {
    pub(super) base: Base,
    pub(super) image: Option<ImageRef>,
    pub(super) stateroot: Option<String>,
    pub(super) verification: Option<Verification>,
    pub(super) bound: Vec<BoundImage>,
    pub(super) download: u64,
}

/// The base with the drop-ins applied.
#[derive(Debug)]
#[must_use]
pub struct Derived {
    pub(super) pulled: Pulled,
    pub(super) commit: String,
    pub(super) manifest: Manifest,
    pub(super) kargs: Vec<String>,
    pub(super) owned_kargs: String,
    /// What a person should know.
    pub(super) notes: Vec<String>,
    /// Packages that could not be had: what is there instead, and why.
    pub(super) without: Option<(Instead, String)>,
    /// The keys of the tool that it is handed back to.
    pub(super) released: Option<Vec<Key>>,
}

impl Derived {
    /// The digest of the input, where there is one.
    pub(super) fn input(&self) -> Option<Digest> {
        (!self.manifest.is_empty()).then(|| self.manifest.input_digest())
    }
}

/// A bound set whose images of mode `bind` are all in the store, checked after the last pull.
#[derive(Debug)]
#[must_use]
pub struct CompleteSet {
    set: BoundSet,
    key: String,
}

impl CompleteSet {
    /// Only `verify` makes one, after it has looked at the store.
    pub(super) fn verified(set: BoundSet, key: String) -> CompleteSet {
        CompleteSet { set, key }
    }
}

/// Everything that a deployment needs is here. The only thing that can be staged.
#[derive(Debug)]
#[must_use = "stage it or drop it to leave the system as it is"]
pub struct Ready {
    derived: Derived,
    bound: CompleteSet,
}

impl Ready {
    /// Joins what was derived with what is bound.
    pub(super) fn new(derived: Derived, bound: CompleteSet) -> Ready {
        Ready { derived, bound }
    }

    /// The commit that will be deployed.
    pub fn commit(&self) -> &str {
        &self.derived.commit
    }

    /// The base image.
    pub fn base(&self) -> &Base {
        &self.derived.pulled.base
    }

    /// The merged drop-ins.
    pub fn manifest(&self) -> &Manifest {
        &self.derived.manifest
    }

    /// What a person should know about what was derived.
    pub fn notes(&self) -> &[String] {
        &self.derived.notes
    }

    /// The images that are bound.
    pub fn bound(&self) -> &BoundSet {
        &self.bound.set
    }

    /// The digest of what is declared, where something is.
    pub fn input(&self) -> Option<Digest> {
        self.derived.input()
    }

    /// What the store publishes.
    pub(super) fn deployment(&self, kept_local: Vec<String>) -> NewDeployment {
        let base = self.base();
        NewDeployment {
            commit: self.derived.commit.clone(),
            origin: Origin {
                image: self.derived.pulled.image.clone(),
                digest: Some(base.digest.clone()),
                base: Some(base.commit.clone()),
                input: self.derived.input(),
                kargs: Some(self.derived.owned_kargs.clone()),
                bound_set: Some(self.bound.key.clone()),
                verification: self.derived.pulled.verification.clone(),
                kept_local,
                unknown: Vec::new(),
                released: self.derived.released.clone(),
            },
            kargs: self.derived.kargs.clone(),
            stateroot: self.derived.pulled.stateroot.clone(),
        }
    }
}
