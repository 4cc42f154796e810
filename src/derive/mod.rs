//! From drop-ins to a commit: decode, apply, compare.

pub mod lint;
pub mod read;
