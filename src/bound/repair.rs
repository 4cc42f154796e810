//! Giving up images that are damaged, so that the next pull writes them anew.
//!
//! containers-storage takes a layer that it has for a layer that is whole. So a damaged layer goes first, and with it every
//! image that stands on it. What goes is marked as not complete before: after a crash in the middle nothing looks whole
//! that is not, and what deployments need is fetched by the next pull.

use super::graph;
use super::in_use::Own;
use super::skopeo::Trust;
use super::store::Store;
use super::verify::{Checker, Depth};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSpec};
use crate::model::image::Digest;
use crate::model::verified::Damage;
use crate::model::{Error, ErrorKind, Result};
use crate::pull::Patience;
use std::collections::BTreeMap;

/// Images of the store by id, with the keys of their manifests.
pub type Doomed = BTreeMap<String, Vec<String>>;

impl Store {
    /// Looks into the store's lists, for checking images.
    pub fn checker(&self, depth: Depth) -> Result<Checker> {
        Checker::open(self.graph_root(), depth)
    }

    /// The images that have to go for these damaged ones to be written anew: they, and all that share a damaged layer.
    pub fn doomed(checker: &Checker, damaged: &[(&BoundImage, &[Damage])]) -> Doomed {
        checker.sharing(damaged)
    }

    /// Whether an image goes with these.
    pub fn is_doomed(image: &BoundImage, doomed: &Doomed) -> bool {
        let key = graph::key_of(&image.digest);
        doomed.values().flatten().any(|k| *k == key)
    }

    /// Whether the registry can be asked for the image, and still has its manifest: before it is given up.
    pub async fn available(&self, cx: &Cx, image: &BoundImage) -> Result<()> {
        let reference = image.spec.reference.pinned(&image.digest);
        let spec = BoundSpec { reference, ..image.spec.clone() };
        let manifest = self.skopeo().manifest(cx, &spec, Patience::default()).await?;
        let got = Digest::of(&manifest);
        if got == image.digest {
            return Ok(());
        }
        let why = format!("the registry answered {} with {got}", image.digest);
        Err(Error::new(ErrorKind::DigestMismatch, why))
    }

    /// Removes images, by id, while nobody makes a container of them. The layers that nothing else stands on go with them.
    pub async fn forget(&self, cx: &Cx, doomed: &Doomed, _locked: &Own) -> Result<()> {
        let keys: Vec<&String> = doomed.values().flatten().collect();
        for mut entry in self.entries()?.into_iter().filter(|e| keys.contains(&&graph::key_of(&e.digest))) {
            entry.complete = false;
            self.write_entry(&entry)?;
        }
        for id in doomed.keys() {
            cx.checkpoint()?;
            // By its id: of a damaged image the names may mean nothing.
            let location = self.location(&format!("@{id}"));
            self.skopeo().run(cx, Trust::Verified, ["delete", &location]).await.map_err(|e| {
                let why = format!("removing the damaged image {id} from the image store");
                Error::new(e.kind, why).source(e).hint("try again: osctl bound verify")
            })?;
        }
        self.sync()
    }
}
