//! One verb, one file: its arguments, and what it asks.

pub mod adopt;
pub mod bound;
pub mod bundle;
pub mod cancel;
pub mod config;
pub mod derive;
pub mod diff;
pub mod docs;
mod editing;
mod handing;
pub mod install;
pub mod jobs;
pub mod kargs;
pub mod lint;
pub mod lock;
pub mod overrides;
pub mod pin;
pub mod plan;
pub mod rebase;
pub mod reconcile;
pub mod release;
pub mod rollback;
pub mod status;
pub mod uninstall;
pub mod upgrade;
pub mod wait;
pub mod why;
