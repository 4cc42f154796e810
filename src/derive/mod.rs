//! From drop-ins to a commit: decode, apply, compare.

pub mod apply;
pub mod etc;
mod mtree;
pub mod provenance;
pub mod take;
mod units;

#[cfg(test)]
pub(crate) mod testing;
