//! What is in a bundle.

use super::{table, value};
use crate::model::bundle::Image;

/// A line for each image.
pub fn table(images: &[Image]) -> String {
    let mut rows = vec![["REFERENCE", "DIGEST", "FOR"].map(str::to_owned)];
    rows.extend(images.iter().map(|image| {
        let digest = image.digest.hex()[..12].to_owned();
        [value(&image.reference.name).into_owned(), digest, image.role.name().into()]
    }));
    table::lines(&rows).collect()
}
