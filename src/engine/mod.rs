//! The pipeline, its jobs, and how both survive failures.

pub mod actor;
pub mod build;
pub mod bundle;
mod config;
pub mod cx;
mod env;
pub mod failpoint;
pub mod handle;
pub mod in_place;
mod journal;
mod pipeline;
mod settle;
mod stages;
mod steps;
mod unavailable;

pub use actor::{Engine, Setup};
pub use handle::Handle;
