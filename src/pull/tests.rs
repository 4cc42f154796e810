//! Pulling real images into real repositories. Sources that need a server or foreign tools: `tests/`.

mod faults;
mod foreign;
mod plain;
pub(super) mod registry;
mod sources;
