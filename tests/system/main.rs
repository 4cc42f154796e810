//! The whole pipeline as its user runs it: the real binaries, a real registry, real libostree on a sysroot
//! in a temporary directory. Judged by `ostree`, `skopeo` and `podman`, not by our own word.

#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bad_input;
mod bound;
mod build;
mod bundle;
mod daemon;
mod diff;
mod download;
mod edit;
mod failpoints;
mod handover;
mod host;
mod image;
mod in_place;
mod layer;
mod layers;
mod pipeline;
mod plan;
mod prefetch;
mod registry;
mod rules;
mod signed;
mod verify;
