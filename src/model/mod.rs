//! Pure types and rules. No I/O, no async, no libostree, no D-Bus.

pub mod bound;
pub mod build;
pub mod bundle;
pub mod bytes;
pub mod config;
pub mod contents;
pub mod deviation;
pub mod difference;
pub mod dropin;
pub mod edit;
pub mod error;
pub mod handover;
pub mod image;
pub mod job;
pub mod kargs;
pub mod layers;
pub mod lint;
pub mod lock;
pub mod lookaside;
pub mod manifest;
pub mod mutation;
pub mod packages;
pub mod plan;
pub mod quadlet;
pub mod request;
pub mod status;
mod table;
pub mod text;
pub mod time;
pub mod unavailable;
pub mod verification;
pub mod verified;
pub mod why;

pub use error::{Context, Error, ErrorKind, Result};
