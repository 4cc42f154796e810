//! A whole set: into the store, and checked before anything is staged.

use super::resolve::PARALLEL;
use super::store::Store;
use crate::engine::cx::Cx;
use crate::model::bound::{BoundImage, BoundSet, Mode};
use crate::model::{Error, ErrorKind, Result};
use futures_util::StreamExt;

/// Pulls what is missing, a few images at once, and returns why images with mode `prefetch` could not be had.
///
/// A failure lets the other images finish, because finished work is kept and the retry fetches only the rest; then the
/// first failure (in the order of the set) is returned.
pub async fn pull_all(cx: &Cx, store: &Store, set: &BoundSet) -> Result<Vec<Error>> {
    let total = u32::try_from(set.images.len()).unwrap_or(u32::MAX);
    let mut done = 0;
    let mut warnings = Vec::new();
    let mut first: Option<Error> = None;
    let mut pulls = futures_util::stream::iter(&set.images)
        .map(|image| async move { (image, pull_one(cx, store, image).await) })
        .buffered(PARALLEL);
    while let Some((image, result)) = pulls.next().await {
        done += 1;
        cx.items(done, total, &image.spec.reference.name);
        match result {
            Ok(()) => {}
            Err(e) if e.kind == ErrorKind::Cancelled => return Err(e),
            Err(e) if image.spec.mode == Mode::Prefetch => warnings.push(e),
            Err(e) => first = first.or(Some(e)),
        }
    }
    match first {
        Some(error) => Err(error),
        None => Ok(warnings),
    }
}

async fn pull_one(cx: &Cx, store: &Store, image: &BoundImage) -> Result<()> {
    cx.checkpoint()?;
    store.pull(cx, image).await
}

/// Checks, by digest and without network, that every image with mode `bind` is in the store.
pub async fn verify_present(cx: &Cx, store: &Store, set: &BoundSet) -> Result<()> {
    for image in set.images.iter().filter(|i| i.spec.mode == Mode::Bind) {
        cx.checkpoint()?;
        if !store.has(cx, &image.digest, &image.spec.reference).await? {
            let missing = Error::new(
                ErrorKind::BoundImageFailed,
                format!("{} is not in {}", image.digest, store.graph_root().display()),
            )
            .hint("try again: what is there is not fetched again");
            return Err(super::skopeo::failed(&image.spec, "found in the store", missing));
        }
    }
    Ok(())
}
