//! Signature policies, containers-policy.json(5), for images that are fetched by digest.
//!
//! We fetch by digest what was asked for by tag. A policy compares the name in a signature with the name that is
//! fetched, and for a digest that is another comparison: `matchRepoDigestOrExact`, the default, then takes a signature
//! for any tag of the repository (an old release, replayed), and `matchExact` takes none. So the policy is written
//! anew, with the name that was asked for.

use crate::model::image::{Digest, ImageRef, Transport, full_name};
use crate::model::verification::{Requirement, Verification};
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

/// What the policy requires of an image, and so what an image that passed it met.
///
/// A registry's image is matched as containers-policy.json(5) says, by the most specific scope. What applies to a local one
/// depends on how its path resolves, which only skopeo knows: there the weakest of all that could apply counts.
pub fn verification(policy: &[u8], image: &ImageRef) -> Verification {
    let Ok(policy) = serde_json::from_slice::<Value>(policy) else { return Verification::default() };
    let transport = image.transport.prefix().trim_end_matches(['/', ':']);
    let scopes = policy["transports"][transport].as_object();
    let global = scopes
        .and_then(|s| s.get(""))
        .map_or_else(|| ("default".to_owned(), &policy["default"]), |own| (transport.to_owned(), own));
    let scope = |name: &str, requirements| (format!("{transport} {name}"), requirements);
    let applies: Vec<(String, &Value)> = if image.transport == Transport::Registry {
        let named = scopes.and_then(|all| {
            candidates(image).into_iter().find_map(|name| all.get(&name).map(|found| scope(&name, found)))
        });
        vec![named.unwrap_or(global)]
    } else {
        let others = scopes.into_iter().flatten().filter(|(name, _)| !name.is_empty());
        let mut all: Vec<_> = others.map(|(name, found)| scope(name, found)).collect();
        all.push(global);
        all
    };
    // What rejects everything has passed nothing.
    let rejects = |list: &Value| list.as_array().is_some_and(|l| l.iter().any(|r| r["type"] == "reject"));
    let met = applies.into_iter().filter(|(_, list)| !rejects(list));
    let met = met.map(|(scope, list)| {
        Verification::new(scope, list.as_array().into_iter().flatten().map(requirement).collect())
    });
    met.min_by_key(|v| v.level).unwrap_or_default()
}

/// The scopes that a registry's image can be under, the most specific first.
fn candidates(image: &ImageRef) -> Vec<String> {
    let name = full_name(image.repository());
    let identity = match image.digest() {
        Some(digest) => format!("{name}@{digest}"),
        None => format!("{name}:{}", image.tag().unwrap_or("latest")),
    };
    let mut names = vec![identity];
    names.extend(
        std::iter::successors(Some(name.as_str()), |n| Some(n.rsplit_once('/')?.0)).map(str::to_owned),
    );
    // Of the host, without its port.
    let host = name.split(['/', ':']).next().unwrap_or_default();
    let parents = std::iter::successors(host.split_once('.'), |(_, rest)| rest.split_once('.'));
    names.extend(parents.map(|(_, parent)| format!("*.{parent}")));
    names
}

fn requirement(value: &Value) -> Requirement {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let texts = |key: &str| value[key].as_array().into_iter().flatten().filter_map(text).collect::<Vec<_>>();
    let mut keys: Vec<String> = text(&value["keyPath"]).into_iter().chain(texts("keyPaths")).collect();
    if ["keyData", "keyDatas"].iter().any(|k| value.get(k).is_some()) {
        keys.push("a key in the policy".into());
    }
    let email = |of: &Value| text(&of["subjectEmail"]).or_else(|| text(&of["subjectHostname"]));
    let issuer = |of: &Value| text(&of["oidcIssuer"]).map(|i| format!(" ({i})")).unwrap_or_default();
    let whose = ["fulcio", "pki"].iter().map(|key| &value[*key]);
    let identities = whose.filter_map(|of| email(of).map(|who| format!("{who}{}", issuer(of)))).collect();
    Requirement { kind: text(&value["type"]).unwrap_or_default(), keys, identities }
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
    use crate::model::verification::Level;
    use serde_json::json;

    #[test]
    fn the_most_specific_scope_of_a_registry_applies() {
        let digest = Digest::of(b"");
        let by = |key: &str| json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": key}]);
        let all = [
            ("docker r.io:5000/team/os:1", "r.io:5000/team/os:1"),
            ("docker r.io:5000/team/os", "r.io:5000/team/os"),
            ("docker r.io:5000/team", "r.io:5000/team"),
            ("docker r.io:5000", "r.io:5000"),
            ("docker *.io", "*.io"),
            ("docker", ""),
        ];
        let image: ImageRef = "r.io:5000/team/os:1".parse().unwrap();
        // Each scope, with all the less specific ones beside it.
        for at in 0..all.len() {
            let scopes: serde_json::Map<String, Value> =
                all[at..].iter().map(|(_, scope)| ((*scope).to_owned(), by(scope))).collect();
            let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": scopes}});
            let found = verification(policy.to_string().as_bytes(), &image);
            assert_eq!((found.scope.as_str(), found.level), (all[at].0, Level::Signed));
            assert_eq!(found.requirements[0].keys, [all[at].1]);
        }
        let only = |scope: &str| json!({"default": [{"type": "insecureAcceptAnything"}], "transports": {"docker": {scope: by("/k")}}});
        for (image, scope, expected) in [
            ("r.io/os".to_owned(), "r.io/os:latest", "docker r.io/os:latest"),
            (format!("r.io/os@{digest}"), &format!("r.io/os@{digest}"), &format!("docker r.io/os@{digest}")),
            (format!("r.io/os@{digest}"), "r.io/os:latest", "default"),
            ("r.io/os:2".to_owned(), "r.io/os:1", "default"),
            ("r.io/osx:1".to_owned(), "r.io/os", "default"),
            ("a.b.r.io/os:1".to_owned(), "*.r.io", "docker *.r.io"),
            ("a.b.r.io/os:1".to_owned(), "*.b.r.io", "docker *.b.r.io"),
            ("r.io/os:1".to_owned(), "*.r.io", "default"),
            ("busybox".to_owned(), "docker.io/library/busybox", "docker docker.io/library/busybox"),
            ("index.docker.io/me/os:1".to_owned(), "docker.io/me", "docker docker.io/me"),
            ("localhost:5000/os:1".to_owned(), "localhost:5000", "docker localhost:5000"),
        ] {
            let found = verification(only(scope).to_string().as_bytes(), &image.parse().unwrap());
            assert_eq!(found.scope, expected, "{image} {scope}");
            assert_eq!(found.level == Level::Signed, expected != "default", "{image} {scope}");
        }
    }

    #[test]
    fn of_a_local_image_the_weakest_that_could_apply_counts() {
        let (signed, any) =
            (json!([{"type": "signedBy", "keyPath": "/k"}]), json!([{"type": "insecureAcceptAnything"}]));
        let reject = json!([{"type": "reject"}]);
        for (default, scopes, level, scope) in [
            (&any, json!({}), Level::Unverified, "default"),
            (&signed, json!({}), Level::Signed, "default"),
            (&signed, json!({"/srv": any}), Level::Unverified, "dir /srv"),
            (&any, json!({"": signed}), Level::Signed, "dir"),
            (&reject, json!({"/srv": signed}), Level::Signed, "dir /srv"),
        ] {
            let policy = json!({"default": default, "transports": {"dir": scopes}}).to_string();
            let found = verification(policy.as_bytes(), &"dir:/srv/os".parse().unwrap());
            assert_eq!((found.level, found.scope.as_str()), (level, scope), "{policy}");
        }
        assert_eq!(verification(b"nonsense", &"dir:/x".parse().unwrap()), Verification::default());
    }

    #[test]
    fn keys_are_named_and_never_shown() {
        for (requirement, keys, identities) in [
            (json!({"type": "signedBy", "keyPath": "/k"}), &["/k"][..], &[][..]),
            (json!({"type": "signedBy", "keyPaths": ["/k", "/l"]}), &["/k", "/l"], &[]),
            (json!({"type": "signedBy", "keyData": "c2VjcmV0"}), &["a key in the policy"], &[]),
            (json!({"type": "sigstoreSigned", "keyPath": "/c.pub"}), &["/c.pub"], &[]),
            (
                json!({"type": "sigstoreSigned", "fulcio": {"caPath": "/ca", "oidcIssuer": "https://i",
                    "subjectEmail": "me@x"}, "rekorPublicKeyPath": "/r"}),
                &[],
                &["me@x (https://i)"],
            ),
            (json!({"type": "sigstoreSigned", "pki": {"subjectHostname": "h"}}), &[], &["h"]),
        ] {
            let policy = json!({"default": [requirement]}).to_string();
            let found = verification(policy.as_bytes(), &"r.io/os:1".parse().unwrap());
            let one = &found.requirements[0];
            assert_eq!(
                (one.keys.as_slice(), one.identities.as_slice()),
                (
                    keys.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>().as_slice(),
                    identities.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>().as_slice(),
                )
            );
            assert_eq!(found.level, Level::Signed, "{policy}");
        }
    }

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
