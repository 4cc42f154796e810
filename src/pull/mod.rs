//! From an image reference to commits in the repository.
//!
//! ```text
//!  ImageRef ──resolve──► Resolved ──pull──► Base          retain / forget_unused
//!            manifest      │     one worker process:        keep it alive / let go
//!            and config    │     layers ► blob refs ► merge ► one commit, one image ref
//!            only          └─find──► Base, if an earlier pull finished
//! ```
//!
//! What lies in the repository afterwards, readable by rpm-ostree, bootc and ostree-ext:
//!
//! ```text
//!  refs/heads/ostree/container/blob/<digest>            one commit per finished layer
//!  refs/heads/osctl/verified/{layer,chunk}/<digest>     the same commit again: the blob had its digest
//!  refs/heads/ostree/container/image/<image reference>  the merge commit; manifest and config in its metadata
//!  refs/heads/ostree/container/baseimage/osctl/<commit> our reason to keep a merge commit
//!  refs/heads/ostree/container/baseimage/osctl-content/<digest>  an image that is no OS: its merge commit
//! ```
//!
//! Talking to skopeo and writing objects both block in ways that a dropped future cannot end. So resolving has a thread that
//! skopeo does not survive (`resolver`), and the import is a child process, whose process group is killed (`worker`).

pub(crate) mod archive;
mod blobs;
mod caller;
mod chunk;
mod commit;
mod counts;
mod download;
mod encapsulated;
mod estimate;
mod fetch;
mod gunzip;
mod import;
mod labels;
mod layer;
mod merge;
mod object;
mod plain;
mod pulse;
mod refs;
mod resolve;
mod resolver;
mod source;
mod space;
mod tree;
mod trust;
mod types;
pub(crate) mod unpack;
mod wire;
mod worker;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub(crate) use blobs::{Blob, Source as BlobSource, fetch_blobs};
pub use download::download;
pub use estimate::{layer_commits, layers};
pub use fetch::{Patience, forget_spool};
pub use import::import_in_process;
pub use refs::{Needed, describe, find, find_content, forget_unused, has_unused, retain, retain_latest};
pub use resolve::resolve_in_process;
pub use resolver::resolve;
pub use trust::vouch;
pub use types::{Base, FetchOptions, ImageKind, Layer, Report, Reporter, Resolved, Worker};
pub use worker::{WORKER_ARG, pull, worker_main};
