//! The operating system: atomic file writes, processes, credential files.

pub mod auth;
pub mod fs;
pub mod process;
