//! Which layers an image needs: a layer of the store stands on one other layer, so that the same files on top of something
//! else are another layer.

use super::graph::Layer;
use crate::model::image::Digest;

/// What there is in a store.
#[derive(Debug)]
pub(super) struct Stock {
    layers: Vec<Layer>,
    /// Whether a layer only counts where it stands; otherwise whoever writes the image finds it wherever it does.
    in_place: bool,
}

impl Stock {
    pub fn new(layers: Vec<Layer>, in_place: bool) -> Stock {
        Stock { layers, in_place }
    }

    /// Which of the layers of an image, given by their blobs, the lowest first, are here.
    pub fn has(&self, blobs: &[Digest]) -> Vec<bool> {
        let is = |layer: &Layer, blob: &Digest| {
            let noted = [&layer.compressed_diff_digest, &layer.diff_digest];
            noted.into_iter().flatten().any(|digest| digest == blob.as_str())
        };
        let mut below = Some("");
        let here = blobs.iter().map(|blob| {
            if !self.in_place {
                return self.layers.iter().any(|layer| is(layer, blob));
            }
            let parent = below.take();
            let found =
                self.layers.iter().find(|layer| Some(layer.parent.as_str()) == parent && is(layer, blob));
            below = found.map(|layer| layer.id.as_str());
            below.is_some()
        });
        here.collect()
    }
}

/// A name for each layer of an image, given by their blobs, which two images share as far as they are the same from below.
pub(super) fn places(blobs: &[Digest]) -> Vec<String> {
    chain(blobs, |blob| blob.hex().to_owned())
}

/// The ids of layers as containers/image computes them, given by their streams, the lowest first.
pub(super) fn layer_ids(diff_ids: &[Digest]) -> Vec<String> {
    chain(diff_ids, |diff_id| diff_id.hex().to_owned())
}

/// Of the lowest its own digits, above the digest of the id below and those.
fn chain(digests: &[Digest], digits: impl Fn(&Digest) -> String) -> Vec<String> {
    let mut below: Option<String> = None;
    let next = |digest: &Digest| {
        let id = match &below {
            None => digits(digest),
            Some(below) => Digest::of(format!("{below}+{}", digits(digest)).as_bytes()).hex().to_owned(),
        };
        below = Some(id.clone());
        id
    };
    digests.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_that_skopeo_gave_the_layers_of_an_image() {
        let diff_ids = [
            "sha256:f8079b497f2ac40a820b309fbb1d64abb0abc2333ed183aec2cb331a4882e9d7",
            "sha256:f8aeaf17327273b6a9f281585156fea2aef2dd0055fc7a87f788ff682eee4a7a",
        ];
        assert_eq!(
            layer_ids(&diff_ids.map(|digest| digest.parse().unwrap())),
            [
                "f8079b497f2ac40a820b309fbb1d64abb0abc2333ed183aec2cb331a4882e9d7",
                "d021e6102a728cdcf68c39cb9fc6f4641f6bb6545fd8c08ae17a553d531530c8"
            ]
        );
    }

    #[test]
    fn a_layer_is_here_where_it_stands() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| Digest::of(bytes));
        let layer = |id: &str, parent: &str, blob: &Digest| Layer {
            id: id.into(),
            parent: parent.into(),
            compressed_diff_digest: Some(blob.to_string()),
            diff_digest: None,
            rest: Default::default(),
        };
        let layers = vec![layer("1", "", &a), layer("2", "1", &b), layer("3", "", &c)];
        for (blobs, in_place, anywhere) in [
            (vec![&a, &b], vec![true, true], vec![true, true]),
            (vec![&a, &c], vec![true, false], vec![true, true]),
            (vec![&b, &a], vec![false, false], vec![true, true]),
            (vec![&a, &a, &b], vec![true, false, false], vec![true, true, true]),
            (vec![], vec![], vec![]),
        ] {
            let blobs: Vec<Digest> = blobs.into_iter().cloned().collect();
            assert_eq!(Stock::new(layers.clone(), true).has(&blobs), in_place);
            assert_eq!(Stock::new(layers.clone(), false).has(&blobs), anywhere);
        }
    }
}
