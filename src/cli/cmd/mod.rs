//! One verb, one file: its arguments, and what it asks.

pub mod cancel;
pub mod config;
pub mod docs;
pub mod jobs;
pub mod lint;
pub mod lock;
pub mod pin;
pub mod plan;
pub mod rebase;
pub mod reconcile;
pub mod rollback;
pub mod status;
pub mod upgrade;
pub mod wait;
