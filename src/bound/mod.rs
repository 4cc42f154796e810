//! Bound images: discovered in a commit's tree, pulled by digest, recorded per deployment.
//!
//! What lies on disk, below the state directory `<sysroot>/ostree/osctl`:
//!
//! ```text
//! bound/<commit>.json     the set that a deployment was staged with
//! storage/                containers-storage graph root: podman's additional image store
//! storage-index/<hash>    one file per image: which one it is and whether it is complete
//! tmp/                    run root and scratch space of skopeo
//! ```

mod discover;
mod estimate;
mod in_use;
mod lint;
mod pull;
mod record;
mod resolve;
mod skopeo;
mod store;

pub use discover::{declared, discover};
pub use estimate::{Planned, estimate};
pub use in_use::in_use;
pub use lint::lint_path;
pub use pull::{pull_all, verify_present};
pub use record::{prune_records, record, recorded};
pub use resolve::{PARALLEL, Resolved, resolve};
pub use skopeo::Skopeo;
pub use store::{Store, collect};
