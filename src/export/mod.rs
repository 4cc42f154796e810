//! From a derived commit to an image: the base as it is, and one layer with the difference on top.
//!
//! ```text
//!  base image ──skopeo──► OCI layout ◄── layer: base commit against derived commit ── config, manifest
//!                             └──skopeo──► oci: | oci-archive: | containers-storage: | docker://
//! ```
//!
//! Everything but the last arrow happens in a directory of our own: a target has the whole image or nothing of it. The
//! same two commits give the same bytes: paths in order, no times, no names of the machine.

pub mod diff;
mod image;
pub mod in_place;
pub mod kargs;
mod layer;
pub mod layout;
pub mod skopeo;

pub use image::{Written, write};
