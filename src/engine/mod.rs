//! The pipeline, its jobs, and how both survive failures.

pub mod actor;
pub mod cx;
pub mod failpoint;
pub mod handle;

pub use actor::{Engine, Setup};
pub use handle::Handle;
