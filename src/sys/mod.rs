//! The operating system: atomic file writes, processes, skopeo and its files.

pub mod auth;
pub mod fs;
pub mod policy;
pub mod process;
pub mod scratch;
pub mod skopeo;
pub mod text;
