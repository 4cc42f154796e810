//! osctl: a transactional updater for image-based Linux hosts.
//!
//! See `docs/architecture.md` for the picture: one pipeline, `resolve` to `stage`, owned by one daemon.

// Tests may unwrap: a panic is how they fail.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bound;
pub mod bundle;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod dbus;
pub mod derive;
pub mod engine;
pub mod export;
pub mod model;
pub mod pull;
pub mod store;
pub mod sys;
