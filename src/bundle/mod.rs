//! Bundles: an update on a medium. One OCI layout, as a directory or a tar file, with all images of a deployment.
//!
//! ```text
//!  create:  names ► manifests, policy ► blobs ► layout          engine::bundle, [`write`]
//!  import:  layout ► registry on the loopback ► registries.conf  [`media`], [`serve`], [`registries`]
//! ```
//!
//! A host that imports asks for the same names as ever, and finds them in a registry of its own for as long as the job lasts:
//! what verifies, pulls, limits and resumes is what does so for every other registry, and the signature policy is met under
//! the names that it knows.

mod media;
mod registries;
mod serve;
mod signatures;
mod write;

pub use media::{Media, Piece};
pub use serve::{Served, media_type, serve};
pub use signatures::{configuration, fetch, lay_out};
pub use write::{Draft, archive};
