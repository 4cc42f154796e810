//! The operating system: atomic file writes and processes.

pub mod auth;
pub mod fs;
pub mod process;
