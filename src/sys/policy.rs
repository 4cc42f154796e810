//! Signature policies, containers-policy.json(5), for images that are fetched by digest.
//!
//! We fetch by digest what was asked for by tag. A policy compares the name in a signature with the name that is
//! fetched, and for a digest that is another comparison: `matchRepoDigestOrExact`, the default, then takes a signature
//! for any tag of the repository (an old release, replayed), and `matchExact` takes none. So the policy is written
//! anew, with the name that was asked for.

use crate::model::image::{Digest, ImageRef, Transport};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The policy of the running system.
pub const SYSTEM: &str = "/etc/containers/policy.json";

/// The policy to fetch `image` by its digest with; `None` where the policy as it is means the same.
pub fn by_digest(policy: &[u8], image: &ImageRef, digest: &Digest) -> Option<Vec<u8>> {
    if image.transport != Transport::Registry || image.digest().is_some() {
        return None;
    }
    let mut policy: Value = serde_json::from_slice(policy).ok()?;
    let name = full_name(image.repository());
    let tag = image.tag().unwrap_or("latest");
    if let Some(requirements) = policy.get_mut("default") {
        rename(requirements, &name, tag);
    }
    if let Some(scopes) = policy.pointer_mut("/transports/docker").and_then(Value::as_object_mut) {
        // A scope may be one tag.
        if let Some(requirements) = scopes.get(&format!("{name}:{tag}")).cloned() {
            scopes.insert(format!("{name}@{digest}"), requirements);
        }
        scopes.values_mut().for_each(|requirements| rename(requirements, &name, tag));
    }
    serde_json::to_vec(&policy).ok()
}

/// The policy with the keys in it that it names by path: whoever applies it may not be able to read them. A key that
/// cannot be read stays a path.
pub fn self_contained(policy: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(policy) else { return policy.to_owned() };
    include_keys(&mut value);
    serde_json::to_vec(&value).unwrap_or_else(|_| policy.to_owned())
}

fn include_keys(value: &mut Value) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(include_keys),
        Value::Object(map) => {
            let signed =
                matches!(map.get("type").and_then(Value::as_str), Some("signedBy" | "sigstoreSigned"));
            if signed
                && let Some(key) = map.get("keyPath").and_then(Value::as_str)
                && let Ok(key) = std::fs::read(key)
            {
                map.remove("keyPath");
                map.insert("keyData".to_owned(), STANDARD.encode(key).into());
            }
            map.values_mut().for_each(include_keys);
        }
        _ => {}
    }
}

/// The name with what Docker Hub's short names leave out, as policies spell it.
pub(super) fn full_name(repository: &str) -> String {
    match repository.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
            match repository.split_once('/') {
                Some(("docker.io" | "index.docker.io", rest)) if !rest.contains('/') => {
                    format!("docker.io/library/{rest}")
                }
                Some(("index.docker.io", rest)) => format!("docker.io/{rest}"),
                _ => repository.to_owned(),
            }
        }
        Some(_) => format!("docker.io/{repository}"),
        None => format!("docker.io/library/{repository}"),
    }
}

fn rename(requirements: &mut Value, name: &str, tag: &str) {
    for requirement in requirements.as_array_mut().into_iter().flatten() {
        let signed = matches!(requirement["type"].as_str(), Some("signedBy" | "sigstoreSigned"));
        let Some(requirement) = requirement.as_object_mut().filter(|_| signed) else { continue };
        let identity = requirement.get("signedIdentity").unwrap_or(&Value::Null);
        let text = |key: &str| identity.get(key).and_then(Value::as_str).unwrap_or_default();
        let expected = match text("type") {
            "" | "matchExact" | "matchRepoDigestOrExact" => format!("{name}:{tag}"),
            "remapIdentity" => format!("{}:{tag}", remapped(name, text("prefix"), text("signedPrefix"))),
            // Of these the tag is no part, or they name the image themselves.
            _ => continue,
        };
        let identity = serde_json::json!({"type": "exactReference", "dockerReference": expected});
        requirement.insert("signedIdentity".to_owned(), identity);
    }
}

fn remapped(name: &str, prefix: &str, signed: &str) -> String {
    match name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{signed}{rest}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_signature_must_be_for_the_tag_that_was_asked_for() {
        let exact = |name: &str| json!({"type": "exactReference", "dockerReference": name});
        let remap =
            |prefix: &str| json!({"type": "remapIdentity", "prefix": prefix, "signedPrefix": "up.io/v"});
        let repository = json!({"type": "matchRepository"});
        for (image, identity, expected) in [
            ("r.io/os/base:1", Value::Null, exact("r.io/os/base:1")),
            ("r.io/os/base", Value::Null, exact("r.io/os/base:latest")),
            ("r.io:5000/os:1", json!({"type": "matchExact"}), exact("r.io:5000/os:1")),
            ("r.io/os:1", json!({"type": "matchRepoDigestOrExact"}), exact("r.io/os:1")),
            ("docker.io/os:1", Value::Null, exact("docker.io/library/os:1")),
            ("docker.io/me/os:1", Value::Null, exact("docker.io/me/os:1")),
            ("r.io/os:1", repository.clone(), repository),
            ("r.io/os:1", exact("r.io/other:2"), exact("r.io/other:2")),
            ("r.io/os:1", remap("r.io"), exact("up.io/v/os:1")),
            ("r.io/os:1", remap("r.io/os"), exact("up.io/v:1")),
            ("r.io/oses:1", remap("r.io/os"), exact("r.io/oses:1")),
        ] {
            for kind in ["signedBy", "sigstoreSigned"] {
                let mut requirement = json!({"type": kind, "keyPath": "/k"});
                if !identity.is_null() {
                    requirement["signedIdentity"] = identity.clone();
                }
                let policy =
                    json!({"default": [requirement], "transports": {"docker": {"r.io": [requirement]}}});
                let image: ImageRef = image.parse().unwrap();
                let new = by_digest(policy.to_string().as_bytes(), &image, &Digest::of(b"")).unwrap();
                let new: Value = serde_json::from_slice(&new).unwrap();
                assert_eq!(new["default"][0]["signedIdentity"], expected, "{image} {kind}");
                assert_eq!(new["default"][0]["keyPath"], "/k");
                assert_eq!(new["transports"]["docker"]["r.io"][0]["signedIdentity"], expected, "{image}");
            }
        }
    }

    #[test]
    fn what_is_no_tag_of_a_registry_keeps_its_policy_and_a_scope_of_a_tag_holds_for_its_digest() {
        let digest = Digest::of(b"");
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}],
            "transports": {"docker": {"r.io/os:1": [{"type": "reject"}]}}});
        let text = policy.to_string();
        for image in [format!("r.io/os@{digest}"), "oci:/x:1".to_owned()] {
            assert_eq!(by_digest(text.as_bytes(), &image.parse().unwrap(), &digest), None, "{image}");
        }
        assert_eq!(by_digest(b"nonsense", &"r.io/os:1".parse().unwrap(), &digest), None);
        let new = by_digest(text.as_bytes(), &"r.io/os:1".parse().unwrap(), &digest).unwrap();
        let new: Value = serde_json::from_slice(&new).unwrap();
        assert_eq!(new["transports"]["docker"][format!("r.io/os@{digest}")][0]["type"], "reject");
        let new = by_digest(text.as_bytes(), &"r.io/os:2".parse().unwrap(), &digest).unwrap();
        assert!(!String::from_utf8(new).unwrap().contains(digest.as_str()));
    }

    #[test]
    fn keys_that_a_policy_names_are_put_into_it() {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), "key").unwrap();
        let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {
            "r.io": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": key.path()}],
            "s.io": [{"type": "sigstoreSigned", "keyPath": "/nonexistent"}]}}});
        let new: Value = serde_json::from_slice(&self_contained(policy.to_string().as_bytes())).unwrap();
        let requirement = &new["transports"]["docker"]["r.io"][0];
        assert_eq!(requirement, &json!({"type": "signedBy", "keyType": "GPGKeys", "keyData": "a2V5"}));
        assert_eq!(new["transports"]["docker"]["s.io"][0]["keyPath"], "/nonexistent");
        assert_eq!(new["default"], policy["default"]);
        assert_eq!(self_contained(b"nonsense"), b"nonsense");
    }
}
