//! `org.osctl1.BoundImage`.

use super::convert::{self, Dict, Out, Verb, decode};
use super::error::Result;
use super::path;
use super::service::Shared;
use crate::model::request::{BoundName, Request};
use crate::model::status::Bound;
use std::sync::{Arc, PoisonError, RwLock};
use zbus::message::Header;
use zbus::zvariant::OwnedObjectPath;

/// A bound image as the bus shows it, replaced by the publisher only.
pub(super) type Slot = Arc<RwLock<Bound>>;

/// One bound image's object: a reference with one digest.
#[derive(Debug)]
pub struct BoundImageObject {
    shared: Arc<Shared>,
    slot: Slot,
}

impl BoundImageObject {
    pub(super) fn new(shared: Arc<Shared>, slot: Slot) -> BoundImageObject {
        BoundImageObject { shared, slot }
    }

    fn get<T>(&self, read: impl FnOnce(&Bound) -> T) -> T {
        // A poisoned lock still holds a whole image: it is only ever replaced.
        read(&self.slot.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[zbus::interface(name = "org.osctl1.BoundImage")]
impl BoundImageObject {
    /// Fetches the image by its digest if it is missing. Options: `queue`, `dry-run`. For all images: `Manager.PullBound`.
    #[zbus(out_args("job"))]
    async fn pull(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::PullBound, &options)?;
        let only = self.get(|b| BoundName { reference: b.reference.clone(), digest: b.digest.clone() });
        let request = Request::PullBound { only: Some(only), options: d.options };
        Ok(path::job(&self.shared.submit(connection, &call, request, d.client_id).await?))
    }

    /// As it was asked for: repository with tag, digest, or both.
    #[zbus(property(emits_changed_signal = "const"))]
    fn reference(&self) -> String {
        self.get(|b| b.reference.to_string())
    }

    /// The digest of the manifest for this machine.
    #[zbus(property(emits_changed_signal = "const"))]
    fn digest(&self) -> String {
        self.get(|b| b.digest.to_string())
    }

    /// `bind` (no deployment that needs it is staged without it) or `prefetch`; `bind` if any deployment says so.
    #[zbus(property)]
    fn mode(&self) -> String {
        self.get(|bound| bound.mode.name()).to_owned()
    }

    /// `present`, `missing` (it is not in the store, or not all of it) or `damaged` (it is, and the last `Verify` found that it
    /// is not as it was published).
    #[zbus(property)]
    fn state(&self) -> String {
        self.get(|b| b.state.name()).to_owned()
    }

    /// The file that asks for it, in the first of the deployments.
    #[zbus(property)]
    fn source_file(&self) -> String {
        self.get(|b| b.source.clone())
    }

    /// The deployments that have it.
    #[zbus(property)]
    fn deployments(&self) -> Vec<OwnedObjectPath> {
        self.get(|b| b.deployments.iter().map(|id| path::deployment(id)).collect())
    }

    /// The bytes of its unpacked layers, those that it shares with others as well; 0 if it is missing.
    #[zbus(property)]
    fn size(&self) -> u64 {
        self.get(|b| b.size)
    }

    /// What the last `Verify` found: `checked t` (seconds since the epoch; 0 if nobody did since it was fetched) and `damage aa{sv}`
    /// with `part s` (`manifest`, `config` or `layer`), `digest s`, `path s` where it is a file's, and `why s`.
    #[zbus(property)]
    fn verification(&self) -> Out {
        self.get(convert::bound_verification)
    }
}
