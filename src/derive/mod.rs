//! From drop-ins to a commit: decode, apply, compare.

pub mod apply;
mod mtree;
pub mod provenance;
mod units;

#[cfg(test)]
pub(crate) mod testing;
