//! The ostree sysroot: open, snapshot for readers, transaction, publish, prune.

pub mod tree;
