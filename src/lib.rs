//! osctl: a transactional updater for image-based Linux hosts.
//!
//! See `docs/architecture.md` for the picture: one pipeline, `resolve` to `stage`, owned by one daemon.

// Tests may unwrap: a panic is how they fail.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod model;
