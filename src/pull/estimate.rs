//! What of an image a pull would fetch. Looks at the repository only.

use super::layer;
use super::refs::{self, Made};
use super::resolve::FINAL_DIFFID;
use super::types::{ImageKind, Resolved};
use crate::model::Result;
use crate::model::plan;
use ostree_ext::ostree;

/// The layers of the image, each with whether it is here.
pub fn layers(repo: &ostree::Repo, resolved: &Resolved) -> Result<Vec<plan::Layer>> {
    let whole = refs::find(repo, &resolved.digest)?.is_some();
    // The layers up to this one carry the commit, and are kept in another way than those above.
    let last = resolved.labels.get(FINAL_DIFFID).map(String::as_str).unwrap_or_default();
    let carrying = match resolved.kind {
        ImageKind::Plain => 0,
        ImageKind::Encapsulated => {
            resolved.layers.iter().position(|l| l.diff_id.as_str() == last).map_or(0, |at| at + 1)
        }
    };
    let mut layers = Vec::new();
    for (at, layer) in resolved.layers.iter().enumerate() {
        let here = whole
            || if at < carrying {
                refs::vouched(repo, Made::Chunk, &layer.digest)?.is_some()
            } else {
                layer::find(repo, layer)?.is_some()
            };
        layers.push(plan::Layer {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            here,
        });
    }
    Ok(layers)
}
