//! The pipeline, its jobs, and how both survive failures.

pub mod cx;
pub mod failpoint;
