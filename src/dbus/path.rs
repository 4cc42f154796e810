//! Object paths and the ids they stand for.

use zbus::zvariant::OwnedObjectPath;

/// The root object.
pub const ROOT: &str = "/org/osctl1";
const JOB: &str = "/org/osctl1/job/";
const DEPLOYMENT: &str = "/org/osctl1/deployment/";
const BOUND: &str = "/org/osctl1/bound/";

/// The object of the job with this id.
pub fn job(id: &str) -> OwnedObjectPath {
    made(format!("{JOB}{}", id.replace('-', "_")))
}

/// The id of the job with this path.
pub fn job_id(path: &str) -> Option<String> {
    path.strip_prefix(JOB).map(|p| p.replace('_', "-"))
}

/// The object of the deployment with this id: what is not a letter or digit becomes `_` and two hex digits.
pub fn deployment(id: &str) -> OwnedObjectPath {
    let mut path = DEPLOYMENT.to_owned();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    made(path)
}

/// The id of the deployment with this path.
pub fn deployment_id(path: &str) -> Option<String> {
    let mut rest = path.strip_prefix(DEPLOYMENT)?;
    let mut bytes = Vec::new();
    while let Some(c) = rest.bytes().next() {
        if c == b'_' {
            bytes.push(u8::from_str_radix(rest.get(1..3)?, 16).ok()?);
            rest = &rest[3..];
        } else {
            bytes.push(c);
            rest = rest.get(1..)?;
        }
    }
    String::from_utf8(bytes).ok()
}

/// The object of the bound image with this id, which is letters, digits and `_`.
pub fn bound(id: &str) -> OwnedObjectPath {
    made(format!("{BOUND}{id}"))
}

/// The path that means "none".
pub fn none() -> OwnedObjectPath {
    made("/".into())
}

/// The path of an optional deployment.
pub fn deployment_or_none(id: Option<&str>) -> OwnedObjectPath {
    id.map_or_else(none, deployment)
}

fn made(path: String) -> OwnedObjectPath {
    OwnedObjectPath::try_from(path).unwrap_or_else(|error| {
        // Only an id that no engine makes (an empty one, a job id with odd characters) gets here.
        tracing::error!(%error, "an id does not make an object path");
        none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_way_through_a_path() {
        let id = "debian_os-0123abc.0";
        let path = deployment(id);
        assert_eq!(path.as_str(), "/org/osctl1/deployment/debian_5fos_2d0123abc_2e0");
        assert_eq!(deployment_id(path.as_str()).as_deref(), Some(id));
        let id = "2f1c8c3e-9f0b-4d84-9a5c-0d8a1f6e7b11";
        assert_eq!(job_id(job(id).as_str()).as_deref(), Some(id));
        assert_eq!(deployment_id("/org/osctl1/deployment/a_"), None);
        assert_eq!(deployment_or_none(None).as_str(), "/");
    }
}
