//! From drop-ins to a commit: decode, apply, compare.

pub mod apply;
pub mod compose;
pub mod contents;
pub mod diff;
pub mod etc;
pub mod lint;
mod mtree;
pub mod packages;
pub mod policy;
pub mod possible;
pub mod provenance;
pub mod read;
pub mod storage;
pub mod take;
mod units;

#[cfg(test)]
pub(crate) mod testing;
