//! The operating system: atomic file writes, descriptors, mounts, processes, registries, skopeo and its files.

pub mod auth;
pub mod conf;
pub mod credentials;
pub mod fd;
pub mod fs;
pub mod mounts;
pub mod network;
pub mod policy;
pub mod process;
pub mod registries;
pub mod sandbox;
pub mod scratch;
pub mod skopeo;
pub mod user;
