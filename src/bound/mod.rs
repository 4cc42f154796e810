//! Bound images: discovered in a commit's tree, pulled by digest, recorded per deployment.
//!
//! What lies on disk, below the state directory `<sysroot>/ostree/osctl`:
//!
//! ```text
//! bound/<key>.json        the set that a deployment was staged with
//! bound-spool/<digest>    blobs of images that are not in the store yet
//! storage/                containers-storage graph root: all images of all deployments
//! storage/new/            layers that are being written
//! storage-index/<hash>    one file per image: which one it is and whether it is complete
//! views/<key>/            the images of one set as podman finds them: its additional image store
//! bound-verified.json     what was found damaged when the images were last checked
//! tmp/                    run root and scratch space of skopeo
//! ```

mod admit;
mod any;
mod condition;
mod crc;
mod discover;
mod estimate;
mod gather;
mod graph;
mod in_use;
mod layer;
mod layout;
mod lint;
mod lists;
mod places;
mod pull;
mod quadlets;
mod record;
mod repair;
mod resolve;
mod root;
mod skopeo;
mod store;
mod tarsplit;
mod tree;
mod unfinished;
mod verify;
mod view;

pub use any::any;
pub use condition::conditions;
pub use discover::{declared, discover};
pub use estimate::{Planned, estimate};
pub use gather::{Gathered, Vouch, fetch, gather};
pub use in_use::Own;
pub(crate) use layer::{Written, write as write_layer};
pub use lint::lint;
pub use pull::{pull_all, verify_present};
pub use record::{prune_records, record, recorded, recorded_whole};
pub use repair::Doomed;
pub use resolve::{Resolved, resolve};
pub use skopeo::Skopeo;
pub use store::{Store, collect, state_dir};
pub use verify::{Checker, Depth};
pub use view::{present, present_to_bootc};
