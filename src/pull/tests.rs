//! Pulling real images into real repositories. Sources that need a server or foreign tools: `tests/`.

mod encapsulated;
mod faults;
mod foreign;
mod keep;
mod plain;
pub(super) mod registry;
mod sources;
