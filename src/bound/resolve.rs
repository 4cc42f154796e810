//! From references to digests.

use super::skopeo::{Skopeo, failed, instance};
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSpec, Mode};
use crate::model::image::Digest;
use crate::model::{Error, ErrorKind, Result};
use crate::pull::Patience;
use futures_util::StreamExt;

/// Questions at once, over all registries: enough to hide round trips, few enough not to look like an attack.
pub(super) const PARALLEL: usize = 4;

/// What the references mean now.
#[derive(Debug, Default)]
pub struct Resolved {
    /// The images with their digests, in the order of the specs.
    pub images: Vec<BoundImage>,
    /// Images with mode `prefetch` that are missing from the list, and why.
    pub later: Vec<(BoundSpec, Error)>,
}

/// Resolves every reference to the digest for its platform; only manifests are fetched.
///
/// Fails with `BoundImageFailed` for the first image with mode `bind` that cannot be resolved.
pub async fn resolve(cx: &Cx, specs: &[BoundSpec], skopeo: &Skopeo, patience: Patience) -> Result<Resolved> {
    let mut resolved = Resolved::default();
    let mut answers = futures_util::stream::iter(specs)
        .map(|spec| async move { (spec, look(cx, spec, skopeo, patience).await.map(|(digest, _)| digest)) })
        .buffered(PARALLEL);
    while let Some((spec, answer)) = answers.next().await {
        match answer {
            Ok(digest) => resolved.images.push(BoundImage { spec: spec.clone(), digest }),
            Err(cause) if cause.kind != ErrorKind::Cancelled && spec.mode == Mode::Prefetch => {
                resolved.later.push((spec.clone(), failed(spec, "resolved", cause)));
            }
            Err(cause) => return Err(failed(spec, "resolved", cause)),
        }
    }
    Ok(resolved)
}

/// The digest that the reference means here and now, and its manifest, unless that was one of a list.
pub(super) async fn look(
    cx: &Cx,
    spec: &BoundSpec,
    skopeo: &Skopeo,
    patience: Patience,
) -> Result<(Digest, Option<Vec<u8>>)> {
    let manifest = skopeo.manifest(cx, spec, patience).await?;
    let got = Digest::of(&manifest);
    if let Some(pinned) = spec.reference.digest().filter(|pinned| *pinned != got) {
        let why = format!("the registry answered {pinned} with {got}");
        return Err(Error::new(ErrorKind::DigestMismatch, why));
    }
    let digest = instance(&manifest, spec)?;
    let manifest = (digest == got).then_some(manifest);
    Ok((digest, manifest))
}
