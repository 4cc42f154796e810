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
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{self, FetchOptions};
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

    /// Whether the registry can be asked for the image, still has its manifest, and the policy still trusts it: before it is
    /// given up.
    pub async fn available(&self, cx: &Cx, image: &BoundImage, opts: &FetchOptions) -> Result<()> {
        let reference = image.spec.reference.pinned(&image.digest);
        let spec = BoundSpec { reference, ..image.spec.clone() };
        let manifest = self.skopeo().manifest(cx, &spec, opts.patience).await?;
        let got = Digest::of(&manifest);
        if got == image.digest {
            let opts = self.skopeo().fetch_options(&image.spec, opts);
            return pull::vouch(cx, &image.spec.reference, &image.digest, &opts).await;
        }
        let why = format!("the registry answered {} with {got}", image.digest);
        Err(Error::new(ErrorKind::DigestMismatch, why))
    }

    /// The short name of each layer, which layers above it have written down: those of containers in root's own store, too.
    pub fn short_names(&self) -> Result<BTreeMap<String, String>> {
        let graph = self.graph();
        let named = |id: String| graph.short_name(&id).map(|name| (id, name));
        Ok(graph.layers()?.into_iter().filter_map(|layer| named(layer.id)).collect())
    }

    /// Lets short names of before lead to layers that were written anew, and have others since.
    pub fn name_again(&self, names: &BTreeMap<String, String>) -> Result<()> {
        let graph = self.graph();
        for (id, name) in names {
            let link = graph.named(name);
            if graph.place(id).is_dir() && std::fs::symlink_metadata(&link).is_err() {
                std::os::unix::fs::symlink(format!("../{id}/diff"), &link)
                    .doing_with(|| format!("naming layer {id} in the image store"))?;
            }
        }
        Ok(())
    }

    /// Removes images, by id, while nobody makes a container of them. The layers that nothing else stands on go with them.
    pub async fn forget(&self, cx: &Cx, doomed: &Doomed, _locked: &Own) -> Result<()> {
        let keys: Vec<&String> = doomed.values().flatten().collect();
        // From here on nothing of it may stay as it is: a cancelled job leaves before, or not at all.
        cx.checkpoint()?;
        for mut entry in self.entries()?.into_iter().filter(|e| keys.contains(&&graph::key_of(&e.digest))) {
            entry.complete = false;
            self.write_entry(&entry)?;
        }
        for id in doomed.keys() {
            // By its id: of a damaged image the names may mean nothing.
            let location = self.location(&format!("@{id}"));
            self.skopeo().run(cx, Trust::Verified, ["delete", &location]).await.map_err(|e| {
                let why = format!("removing the damaged image {id} from the image store");
                Error::new(e.kind, why).source(e).hint("try again: osctl bound verify")
            })?;
        }
        self.sync(cx).await
    }
}
