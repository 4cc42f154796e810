//! What of an image a pull would fetch. Looks at the repository only.

use super::layer;
use super::refs::{self, Made};
use super::resolve::FINAL_DIFFID;
use super::types::{ImageKind, Layer, Resolved};
use crate::model::Result;
use crate::model::plan;
use ostree_ext::ostree;

/// The layers of the image, each with whether it is here.
pub fn layers(repo: &ostree::Repo, resolved: &Resolved) -> Result<Vec<plan::Layer>> {
    let whole = refs::find(repo, &resolved.digest)?.is_some();
    let layer = |(layer, made): (&Layer, Made)| {
        Ok(plan::Layer {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            here: whole || is_here(repo, layer, made)?,
        })
    };
    with_kinds(resolved).map(layer).collect()
}

/// The commits of the layers that are here.
pub fn layer_commits(repo: &ostree::Repo, resolved: &Resolved) -> Result<Vec<String>> {
    let mut commits = Vec::new();
    for (layer, made) in with_kinds(resolved) {
        if is_here(repo, layer, made)? {
            for digest in [&layer.digest, &layer.diff_id] {
                commits.extend(refs::vouched(repo, made, digest)?);
            }
        }
    }
    Ok(commits)
}

fn is_here(repo: &ostree::Repo, layer: &Layer, made: Made) -> Result<bool> {
    Ok(match made {
        Made::Chunk => refs::vouched(repo, made, &layer.digest)?.is_some(),
        Made::Layer => layer::find(repo, layer)?.is_some(),
    })
}

/// The layers, with how each is kept: those that carry an ostree commit in another way than those above.
fn with_kinds(resolved: &Resolved) -> impl Iterator<Item = (&Layer, Made)> {
    let last = resolved.labels.get(FINAL_DIFFID).map(String::as_str).unwrap_or_default();
    let carrying = match resolved.kind {
        ImageKind::Plain => 0,
        ImageKind::Encapsulated => {
            resolved.layers.iter().position(|l| l.diff_id.as_str() == last).map_or(0, |at| at + 1)
        }
    };
    let made = move |at: usize| if at < carrying { Made::Chunk } else { Made::Layer };
    resolved.layers.iter().enumerate().map(move |(at, layer)| (layer, made(at)))
}
