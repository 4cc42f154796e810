//! Which deployment a person means.

use crate::model::status::{Deployment, Status};
use crate::model::{Error, ErrorKind, Result};

/// The deployment with this id, index or role: booted, staged, default or rollback.
pub(super) fn named<'s>(status: &'s Status, name: &str) -> Result<&'s Deployment> {
    let by_id = |id: &Option<String>| id.as_deref().and_then(|id| status.deployment(id));
    let found = match name {
        "booted" => by_id(&status.booted),
        "staged" => by_id(&status.staged),
        "rollback" => by_id(&status.rollback),
        "default" => status.deployments.iter().find(|d| d.default),
        other => status.deployment(other).or_else(|| {
            other.parse::<u32>().ok().and_then(|i| status.deployments.iter().find(|d| d.index == i))
        }),
    };
    found.ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, format!("there is no deployment {name:?}"))
            .hint("osctl status -v lists ids; an index or booted, staged, default, rollback do as well")
    })
}

/// The one that was named, else the booted one, else the default one of a sysroot that is not booted.
pub(super) fn or_booted<'s>(status: &'s Status, name: Option<&str>) -> Result<&'s Deployment> {
    named(status, name.unwrap_or(if status.booted.is_some() { "booted" } else { "default" }))
}
