//! The steps of the pipeline, one file a phase.

pub(super) mod adopt;
pub(super) mod bind;
pub(super) mod cleanup;
pub(super) mod derive;
pub(super) mod edit;
pub(super) mod fetch;
pub(super) mod images;
pub(super) mod import;
pub(super) mod lock;
pub(super) mod packages;
pub(super) mod permit;
pub(super) mod plan;
pub(super) mod prefetch;
pub(super) mod pull;
pub(super) mod release;
pub(super) mod resolve;
pub(super) mod rollback;
pub(super) mod stage;
pub(super) mod verify;
