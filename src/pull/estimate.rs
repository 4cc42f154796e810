//! What of an image a pull would fetch. Looks at the repository only.

use super::encapsulated;
use super::layer;
use super::refs::{self, Made};
use super::types::{ImageKind, Layer, Resolved};
use crate::model::Result;
use crate::model::plan;
use ostree_ext::ostree;

/// The layers of the image, each with whether it is here.
pub fn layers(repo: &ostree::Repo, resolved: &Resolved) -> Result<Vec<plan::Layer>> {
    let whole = refs::find_as(repo, resolved.kind, &resolved.digest)?.is_some();
    let layer = |(layer, made): (&Layer, Made)| {
        Ok(plan::Layer {
            digest: layer.digest.clone(),
            size: layer.size,
            media_type: layer.media_type.clone(),
            here: whole || is_here(repo, layer, made)?,
        })
    };
    with_kinds(resolved)?.map(layer).collect()
}

/// The commits of the layers that are here.
pub fn layer_commits(repo: &ostree::Repo, resolved: &Resolved) -> Result<Vec<String>> {
    let mut commits = Vec::new();
    for (layer, made) in with_kinds(resolved)? {
        if is_here(repo, layer, made)? {
            for digest in [&layer.digest, &layer.diff_id] {
                commits.extend(refs::vouched(repo, made, digest)?);
            }
        }
    }
    Ok(commits)
}

/// Whether a layer is here in the way that its image needs.
pub(super) fn is_here(repo: &ostree::Repo, layer: &Layer, made: Made) -> Result<bool> {
    if refs::is_damaged(repo, layer)? {
        return Ok(false);
    }
    Ok(match made {
        Made::Chunk => encapsulated::find(repo, layer)?.is_some(),
        Made::Layer => layer::find(repo, layer)?.is_some(),
    })
}

/// The layers, with how each is kept: those that carry an ostree commit in another way than those above.
pub(super) fn with_kinds(resolved: &Resolved) -> Result<impl Iterator<Item = (&Layer, Made)>> {
    let carrying = match resolved.kind {
        ImageKind::Plain | ImageKind::Content => 0,
        ImageKind::Encapsulated => encapsulated::carrying(resolved)?,
    };
    let made = move |at: usize| if at < carrying { Made::Chunk } else { Made::Layer };
    Ok(resolved.layers.iter().enumerate().map(move |(at, layer)| (layer, made(at))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Digest;
    use crate::pull::fixture::{Layout, Pack, Scratch, Tar, bootable};
    use crate::pull::resolve::FINAL_DIFFID;
    use ostree_ext::gio;

    #[tokio::test]
    async fn a_layer_is_here_if_it_was_imported_in_the_way_that_its_image_needs() {
        let scratch = Scratch::new();
        let tar =
            |name: &str| Tar::new().dir("usr", 0o755).file(&format!("usr/{name}"), 0o644, b"x").finish();
        let tars = [bootable().finish(), tar("a"), tar("b")];
        let last = Digest::of(&tars[1]).to_string();
        let labels = [("ostree.bootable", "1"), (FINAL_DIFFID, last.as_str())];
        let tars = tars.map(|tar| (tar, Pack::Gzip));
        let layout = Layout::write_labelled(&scratch.path("oci"), &tars, &labels);
        let resolved = scratch.resolve(&layout.image()).await.unwrap();
        let here = || {
            let layers = layers(&scratch.repo, &resolved).unwrap();
            let commits = layer_commits(&scratch.repo, &resolved).unwrap().len();
            (layers.iter().map(|l| l.here).collect::<Vec<_>>(), commits)
        };
        assert_eq!(here(), (vec![false; 3], 0));
        for at in [2, 0] {
            let blob = std::fs::File::open(layout.path(&layout.layers[at])).unwrap();
            let transaction = scratch.repo.auto_transaction(gio::Cancellable::NONE).unwrap();
            layer::import(&scratch.repo, &resolved.layers[at], &layout.layers[at], None, blob).unwrap();
            transaction.commit(gio::Cancellable::NONE).unwrap();
            assert_eq!(here(), (vec![false, false, true], 1), "as a tree it carries no commit");
        }
        let name = |made| refs::verified(made, &layout.layers[0]).unwrap();
        let tree = scratch.repo.resolve_rev(&name(Made::Layer), true).unwrap();
        let none = gio::Cancellable::NONE;
        scratch.repo.set_ref_immediate(None, &name(Made::Chunk), tree.as_deref(), none).unwrap();
        assert_eq!(here(), (vec![true, false, true], 2));

        // The same layers, and nothing that they carry.
        let layout = Layout::write(&scratch.path("plain"), &tars);
        let plain = scratch.resolve(&layout.image()).await.unwrap();
        let found = layers(&scratch.repo, &plain).unwrap();
        assert_eq!(found.iter().map(|l| l.here).collect::<Vec<_>>(), [true, false, true]);
        scratch.pull(&layout.image()).await.unwrap();
        assert!(layers(&scratch.repo, &plain).unwrap().iter().all(|l| l.here));
    }
}
