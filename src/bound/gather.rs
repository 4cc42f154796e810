//! Images of registries by what they consist of, for whoever wants them elsewhere than in the store.

use super::pull::Manifest;
use super::skopeo::{Skopeo, instance};
use crate::engine::cx::Cx;
use crate::model::bound::BoundSpec;
use crate::model::image::Digest;
use crate::model::{Error, ErrorKind, Result};
use crate::pull::{self, Blob, BlobSource, FetchOptions};
use std::collections::BTreeMap;

/// An image of which the manifests are here.
#[derive(Debug)]
pub struct Gathered {
    /// What was asked for.
    pub spec: BoundSpec,
    /// What the registry has under that name: the manifest, or a list of them.
    pub top: Vec<u8>,
    /// The manifest for the platform, if the name stands for a list.
    pub manifest: Option<Vec<u8>>,
    /// The digest of the manifest for the platform.
    pub digest: Digest,
    /// The configuration and the layers, with their sizes.
    pub blobs: Vec<(Digest, u64)>,
}

/// Whether the signature policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vouch {
    /// It is.
    Policy,
    /// It is not: what is fetched is a signature itself.
    None,
}

/// Asks a registry what an image consists of, and the policy whether it is trusted.
pub async fn gather(
    cx: &Cx,
    spec: &BoundSpec,
    skopeo: &Skopeo,
    opts: &FetchOptions,
    vouch: Vouch,
) -> Result<Gathered> {
    cx.checkpoint()?;
    let top = skopeo.manifest(cx, spec, opts.patience).await?;
    let got = Digest::of(&top);
    if spec.reference.digest().is_some_and(|pinned| pinned != got) {
        return Err(mismatch(spec, &got));
    }
    let digest = instance(&top, spec)?;
    let manifest = match digest == got {
        true => None,
        false => {
            let pinned = BoundSpec { reference: spec.reference.pinned(&digest), ..spec.clone() };
            let manifest = skopeo.manifest(cx, &pinned, opts.patience).await?;
            let got = Digest::of(&manifest);
            if got != digest {
                return Err(mismatch(&pinned, &got));
            }
            Some(manifest)
        }
    };
    if vouch == Vouch::Policy {
        pull::vouch(cx, &spec.reference, &digest, &skopeo.fetch_options(spec, opts)).await?;
    }
    let blobs = parts(manifest.as_ref().unwrap_or(&top))?;
    Ok(Gathered { spec: spec.clone(), top, manifest, digest, blobs })
}

/// The configuration and the layers of a manifest, each once, whatever they are: a signature has layers as well.
fn parts(manifest: &[u8]) -> Result<Vec<(Digest, u64)>> {
    let manifest = Manifest::parse(manifest)?;
    let parts = [manifest.config].into_iter().chain(manifest.layers);
    let parts: BTreeMap<Digest, u64> = parts.map(|part| (part.digest, part.size)).collect();
    Ok(parts.into_iter().collect())
}

fn mismatch(spec: &BoundSpec, got: &Digest) -> Error {
    let why = format!("the registry answered {} with {got}", spec.reference);
    Error::new(ErrorKind::DigestMismatch, why)
}

/// Brings the blobs of these images into the spool of `opts`, each once, but for those that `has` knows; `came` is told of each.
///
/// Fails with the first that cannot be had, when the others have come.
pub async fn fetch(
    cx: &Cx,
    images: &[Gathered],
    skopeo: &Skopeo,
    opts: &FetchOptions,
    has: impl Fn(&Digest, u64) -> bool,
    mut came: impl FnMut(&Digest) -> Result<()> + Send,
) -> Result<()> {
    let mut wanted: BTreeMap<Digest, Blob> = BTreeMap::new();
    for (source, image) in images.iter().enumerate() {
        for (digest, size) in image.blobs.iter().filter(|(digest, size)| !has(digest, *size)) {
            let blob = Blob { digest: digest.clone(), size: *size, source, into: Vec::new() };
            wanted.entry(digest.clone()).or_insert(blob);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let sources = images.iter().map(|image| BlobSource {
        image: image.spec.reference.pinned(&image.digest),
        opts: skopeo.fetch_options(&image.spec, opts),
    });
    let blobs: Vec<Blob> = wanted.into_values().collect();
    let digests: Vec<Digest> = blobs.iter().map(|blob| blob.digest.clone()).collect();
    let mut first = None;
    let heard = |blob: usize, outcome: Result<_>| {
        let outcome = outcome.and_then(|_| came(&digests[blob]));
        first = first.take().or(outcome.err());
    };
    pull::fetch_blobs(cx, sources.collect(), blobs, opts, heard).await?;
    first.map_or(Ok(()), Err)
}
