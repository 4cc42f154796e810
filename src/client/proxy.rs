//! The interfaces as a client calls them. Properties are read as a whole, so they are not declared here.

use std::collections::HashMap;
use zbus::zvariant::{Fd, ObjectPath, OwnedObjectPath, OwnedValue, Value};

type Options = HashMap<String, Value<'static>>;

/// `org.osctl1.Manager`.
#[zbus::proxy(
    interface = "org.osctl1.Manager",
    default_service = "org.osctl1",
    default_path = "/org/osctl1",
    gen_blocking = false
)]
pub trait Manager {
    /// Looks for a newer image.
    #[zbus(allow_interactive_auth)]
    fn check(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Says what a request would bring and take.
    #[zbus(allow_interactive_auth)]
    fn plan(&self, request: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Moves to the newest image of the tracked reference.
    #[zbus(allow_interactive_auth)]
    fn upgrade(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Moves to another image.
    #[zbus(allow_interactive_auth)]
    fn rebase(&self, image: &str, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Upgrades or moves with images from a bundle.
    #[zbus(allow_interactive_auth)]
    fn import_bundle(&self, bundle: Fd<'_>, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Applies the drop-ins.
    #[zbus(allow_interactive_auth)]
    fn reconcile(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Changes what is declared.
    #[zbus(allow_interactive_auth)]
    fn edit_derivation(&self, edit: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Takes a host over.
    #[zbus(allow_interactive_auth)]
    fn adopt(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Hands a host back.
    #[zbus(allow_interactive_auth)]
    fn release(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Goes back.
    #[zbus(allow_interactive_auth)]
    fn rollback(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Checks stored content.
    #[zbus(allow_interactive_auth)]
    fn verify(&self, what: &[&str], options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// Fetches bound images that are missing.
    #[zbus(allow_interactive_auth)]
    fn pull_bound(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
    /// The state as JSON.
    fn describe(&self) -> zbus::Result<String>;
    /// How what two deployments were derived from differs.
    fn diff(&self, from: &ObjectPath<'_>, to: &ObjectPath<'_>) -> zbus::Result<HashMap<String, OwnedValue>>;
    /// The jobs, newest first.
    fn list_jobs(&self, filter: &Options) -> zbus::Result<Vec<OwnedObjectPath>>;
    /// Reads everything again.
    #[zbus(allow_interactive_auth)]
    fn reload(&self) -> zbus::Result<()>;
}

/// `org.osctl1.Job`.
#[zbus::proxy(interface = "org.osctl1.Job", default_service = "org.osctl1", gen_blocking = false)]
pub trait Job {
    /// Asks the job to stop.
    #[zbus(allow_interactive_auth)]
    fn cancel(&self, options: &Options) -> zbus::Result<()>;
}

/// `org.osctl1.Deployment`.
#[zbus::proxy(interface = "org.osctl1.Deployment", default_service = "org.osctl1", gen_blocking = false)]
pub trait Deployment {
    /// Keeps the deployment, or stops keeping it.
    #[zbus(allow_interactive_auth)]
    fn set_pinned(&self, pinned: bool) -> zbus::Result<()>;
    /// The lock of its packages, as JSON.
    fn export_lock(&self) -> zbus::Result<String>;
}

/// `org.osctl1.BoundImage`.
#[zbus::proxy(interface = "org.osctl1.BoundImage", default_service = "org.osctl1", gen_blocking = false)]
pub trait BoundImage {
    /// Fetches the image if it is missing.
    #[zbus(allow_interactive_auth)]
    fn pull(&self, options: &Options) -> zbus::Result<OwnedObjectPath>;
}
