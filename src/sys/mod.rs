//! The operating system: atomic file writes and processes.

pub mod fs;
pub mod process;
