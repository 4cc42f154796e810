//! `org.osctl1.Deployment`.

use super::convert::{self, Out};
use super::error::Result;
use super::path;
use super::service::Shared;
use crate::model::Error;
use crate::model::request::Request;
use crate::model::status::{Bound, Deployment, Status};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use zbus::message::Header;
use zbus::zvariant::OwnedObjectPath;

/// A deployment as the bus shows it, replaced by the publisher only.
pub(super) type Slot = Arc<RwLock<View>>;

/// What one deployment's object shows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    deployment: Deployment,
    /// The ids of its bound images' objects.
    bound: Vec<String>,
}

impl View {
    pub fn new(deployment: &Deployment, status: &Status) -> View {
        let has = |b: &&Bound| b.deployments.contains(&deployment.id);
        let bound = status.bound.iter().filter(has).map(|b| b.id.clone()).collect();
        View { deployment: deployment.clone(), bound }
    }
}

/// One deployment's object.
#[derive(Debug)]
pub struct DeploymentObject {
    shared: Arc<Shared>,
    slot: Slot,
}

impl DeploymentObject {
    pub(super) fn new(shared: Arc<Shared>, slot: Slot) -> DeploymentObject {
        DeploymentObject { shared, slot }
    }

    fn get<T>(&self, read: impl FnOnce(&Deployment) -> T) -> T {
        // A poisoned lock still holds a whole deployment: it is only ever replaced.
        read(&self.slot.read().unwrap_or_else(PoisonError::into_inner).deployment)
    }
}

#[zbus::interface(name = "org.osctl1.Deployment")]
impl DeploymentObject {
    /// Keeps the deployment from being removed, or stops doing so. Returns when it is done.
    async fn set_pinned(
        &self,
        pinned: bool,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<()> {
        let request = Request::Pin { deployment: self.get(|d| d.id.clone()), pinned };
        let id = self.shared.submit(connection, &call, request, String::new()).await?;
        let job = self.shared.engine().await?.wait(&id).await?;
        match job.failure {
            None => Ok(()),
            Some(failure) => Err(Error::from(failure).into()),
        }
    }

    /// The lock that its packages were made with, as JSON: what `/etc/osctl/derive.lock` takes.
    #[zbus(out_args("json"))]
    async fn export_lock(&self) -> Result<String> {
        let (id, checksum) = self.get(|d| (d.id.clone(), d.checksum.clone()));
        let lock = self.shared.engine().await?.lock(&checksum).await?;
        Ok(convert::lock(&id, lock)?)
    }

    /// Stable for the deployment's life.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.get(|d| d.id.clone())
    }

    /// Position in the boot menu.
    #[zbus(property)]
    fn index(&self) -> u32 {
        self.get(|d| d.index)
    }

    /// The stateroot.
    #[zbus(property(emits_changed_signal = "const"))]
    fn state_root(&self) -> String {
        self.get(|d| d.stateroot.clone())
    }

    /// The ostree commit.
    #[zbus(property(emits_changed_signal = "const"))]
    fn checksum(&self) -> String {
        self.get(|d| d.checksum.clone())
    }

    /// The commit of the base image.
    #[zbus(property)]
    fn base_checksum(&self) -> String {
        self.get(|d| d.base_checksum.clone())
    }

    /// Where it came from: `kind`, `image`, `transport`, `digest`, `tag`.
    #[zbus(property)]
    fn origin(&self) -> Out {
        self.get(convert::origin)
    }

    /// What vouched for the image: `level s` (`unverified` or `signed`), `scope s` of the policy, and what that required:
    /// `requirements aa{sv}` with `type s`, `keys as` by path and `identities as`. Empty if nobody noted it.
    #[zbus(property)]
    fn verification(&self) -> Out {
        self.get(convert::verification)
    }

    /// The version label.
    #[zbus(property)]
    fn version(&self) -> String {
        self.get(|d| d.version.clone())
    }

    /// The commit's time, seconds since the epoch.
    #[zbus(property)]
    fn timestamp(&self) -> u64 {
        self.get(|d| d.timestamp)
    }

    /// Labels of the image.
    #[zbus(property)]
    fn labels(&self) -> HashMap<String, String> {
        self.get(|d| d.labels.clone().into_iter().collect())
    }

    /// What was derived: `input-digest`, `drop-ins`, `kept-local`.
    #[zbus(property)]
    fn derivation(&self) -> Out {
        self.get(convert::derivation)
    }

    /// What was asked of the package manager: `request s`, `asked s` (`install`, `remove`, `replace`, `extension` or
    /// `layer`), `outcome s` (`applied` or `redundant`), `drop-ins as`, and `version s` where it brought one (of an image:
    /// its digest).
    #[zbus(property)]
    fn packages(&self) -> Vec<Out> {
        self.get(convert::packages)
    }

    /// Kernel arguments with their owners.
    #[zbus(property)]
    fn kargs(&self) -> Vec<Out> {
        self.get(convert::kargs)
    }

    /// The objects of its bound images.
    #[zbus(property)]
    fn bound_images(&self) -> Vec<OwnedObjectPath> {
        let view = self.slot.read().unwrap_or_else(PoisonError::into_inner);
        view.bound.iter().map(|id| path::bound(id)).collect()
    }

    /// Runs now.
    #[zbus(property)]
    fn booted(&self) -> bool {
        self.get(|d| d.booted)
    }

    /// Will run after the next boot and is still to be finalised.
    #[zbus(property)]
    fn staged(&self) -> bool {
        self.get(|d| d.staged)
    }

    /// Is what the bootloader takes by default.
    #[zbus(property)]
    fn default(&self) -> bool {
        self.get(|d| d.default)
    }

    /// Kept by `SetPinned`.
    #[zbus(property)]
    fn pinned(&self) -> bool {
        self.get(|d| d.pinned)
    }
}
