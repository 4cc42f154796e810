//! The bus: thin adapters between D-Bus and [`crate::engine::Handle`]. Nothing is decided here.
//!
//! ```text
//! /org/osctl1                    Manager, ObjectManager
//! /org/osctl1/job/<uuid>         Job
//! /org/osctl1/deployment/<id>    Deployment
//! /org/osctl1/bound/<digest12>   BoundImage
//! ```
//! [`convert`] is the only reader of `a{sv}`, `publish` the only emitter of signals.

mod bound_image;
pub mod convert;
mod deployment;
pub mod error;
mod job;
mod manager;
pub mod path;
mod polkit;
mod publish;
mod service;
#[cfg(test)]
mod tests;

pub use polkit::Authority;
pub use service::Service;

/// The well-known name.
pub const NAME: &str = "org.osctl1";

/// What reading needs: nothing. It works without polkit, and what is shown holds no secret.
const FREE: &[&str] = &[];

/// Every method with the polkit actions that calling it can need.
///
/// What a request needs in full depends on its options
/// ([`crate::model::request::Request::actions`]); here stands the union, for documentation and for the
/// test that no method is forgotten.
pub const ACTIONS: &[(&str, &str, &[&str])] = &[
    ("org.osctl1.Manager", "Check", &["org.osctl1.check"]),
    ("org.osctl1.Manager", "Plan", &["org.osctl1.check", "org.osctl1.rebase"]),
    (
        "org.osctl1.Manager",
        "Upgrade",
        &[
            "org.osctl1.upgrade",
            "org.osctl1.download",
            "org.osctl1.upgrade-to-version",
            "org.osctl1.manage",
            "org.osctl1.lower-verification",
        ],
    ),
    (
        "org.osctl1.Manager",
        "Rebase",
        &[
            "org.osctl1.rebase",
            "org.osctl1.upgrade-to-version",
            "org.osctl1.manage",
            "org.osctl1.lower-verification",
        ],
    ),
    (
        "org.osctl1.Manager",
        "ImportBundle",
        &[
            "org.osctl1.rebase",
            "org.osctl1.upgrade-to-version",
            "org.osctl1.manage",
            "org.osctl1.lower-verification",
        ],
    ),
    ("org.osctl1.Manager", "Reconcile", &["org.osctl1.derive", "org.osctl1.check", "org.osctl1.manage"]),
    ("org.osctl1.Manager", "EditDerivation", &["org.osctl1.derive", "org.osctl1.manage"]),
    ("org.osctl1.Manager", "Adopt", &["org.osctl1.derive", "org.osctl1.check", "org.osctl1.manage"]),
    ("org.osctl1.Manager", "Release", &["org.osctl1.derive", "org.osctl1.check", "org.osctl1.manage"]),
    ("org.osctl1.Manager", "Rollback", &["org.osctl1.rollback"]),
    ("org.osctl1.Manager", "Verify", &["org.osctl1.manage"]),
    ("org.osctl1.Manager", "PullBound", &["org.osctl1.manage"]),
    ("org.osctl1.Manager", "Describe", FREE),
    ("org.osctl1.Manager", "Diff", FREE),
    ("org.osctl1.Manager", "ListJobs", FREE),
    ("org.osctl1.Manager", "Reload", &["org.osctl1.manage"]),
    ("org.osctl1.Job", "Cancel", &["org.osctl1.cancel"]),
    ("org.osctl1.Deployment", "SetPinned", &["org.osctl1.manage"]),
    ("org.osctl1.Deployment", "ExportLock", FREE),
    ("org.osctl1.BoundImage", "Pull", &["org.osctl1.manage"]),
];
