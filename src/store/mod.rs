//! The ostree sysroot: open, snapshot for readers, transaction, publish, prune.

pub mod boot;
pub mod locked;
pub mod origin;
pub mod prune;
pub mod publish;
pub mod snapshot;
pub mod sysroot;
pub mod tree;
