//! What of bound images a pull would fetch. Manifests only, and none for what is in the store.

use super::places::Stock;
use super::resolve::{PARALLEL, look};
use super::skopeo::{Skopeo, failed};
use super::store::Store;
use crate::engine::cx::Cx;
use crate::model::Result;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::image::Digest;
use crate::model::plan::{Kind, Layer, Part};
use crate::pull::Patience;
use futures_util::StreamExt;

/// A bound image that is planned.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The image with the digest that it has now, or keeps.
    pub image: BoundImage,
    /// What it costs.
    pub part: Part,
}

/// Finds the digest and the sizes of each image. Those in `keep` have the digest that they have there.
///
/// An image that cannot be asked for is an error in its place, with the kind `BoundImageFailed`.
pub async fn estimate(
    cx: &Cx,
    specs: &[BoundSpec],
    keep: &BoundSet,
    skopeo: &Skopeo,
    patience: Patience,
    store: Option<&Store>,
) -> Result<Vec<(BoundSpec, Result<Planned>)>> {
    let stock = store.map(Store::stock).transpose()?;
    let stock = stock.as_ref();
    let found = futures_util::stream::iter(specs).map(|spec| async move {
        let kept = keep.images.iter().find(|i| i.spec.same_image(spec)).map(|i| i.digest.clone());
        let one = one(cx, spec, kept, (skopeo, patience), store, stock).await;
        (spec.clone(), one.map_err(|cause| failed(spec, "resolved", cause)))
    });
    let found: Vec<_> = found.buffered(PARALLEL).collect().await;
    cx.checkpoint()?;
    Ok(found)
}

async fn one(
    cx: &Cx,
    spec: &BoundSpec,
    kept: Option<Digest>,
    (skopeo, patience): (&Skopeo, Patience),
    store: Option<&Store>,
    stock: Option<&Stock>,
) -> Result<Planned> {
    let (digest, manifest) = match kept {
        Some(digest) => (digest, None),
        None => look(cx, spec, skopeo, patience).await?,
    };
    let image = BoundImage { spec: spec.clone(), digest };
    let stored = match store {
        Some(store) => store.complete(&image)?,
        None => None,
    };
    let whole = stored.is_some();
    let manifest = match stored.or(manifest) {
        Some(manifest) => manifest,
        None => {
            let reference = spec.reference.pinned(&image.digest);
            skopeo.manifest(cx, &BoundSpec { reference, ..spec.clone() }, patience).await?
        }
    };
    let mut blobs = blobs(&manifest);
    let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest.clone()).collect();
    let here = stock.map_or_else(|| vec![false; blobs.len()], |stock| stock.has(&digests));
    for (blob, here) in blobs.iter_mut().zip(here) {
        blob.here = whole || here;
    }
    let part = Part::image(Kind::Bound, &spec.reference, &image.digest, &blobs);
    Ok(Planned { image, part })
}

/// The layers of a manifest. One of the first Docker schema says no sizes: it then seems to have none.
fn blobs(manifest: &[u8]) -> Vec<Layer> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Blob {
        digest: Digest,
        size: u64,
        #[serde(default)]
        media_type: String,
    }
    #[derive(serde::Deserialize)]
    struct Manifest {
        #[serde(default)]
        layers: Vec<Blob>,
    }
    let layer = |b: Blob| Layer { digest: b.digest, size: b.size, media_type: b.media_type, here: false };
    let manifest: Option<Manifest> = serde_json::from_slice(manifest).ok();
    manifest.into_iter().flat_map(|m| m.layers).map(layer).collect()
}
