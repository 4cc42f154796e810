use super::*;
use crate::model::dropin::tests::Files;
use crate::model::dropin::{Text, decode};
use std::collections::{BTreeMap, BTreeSet};

/// The places of one published specification, with the keys of each.
type Places = BTreeMap<String, Vec<String>>;

/// `published.txt`, by variant and version.
fn published() -> BTreeMap<String, Places> {
    let mut all: BTreeMap<String, Places> = BTreeMap::new();
    let mut name = String::new();
    for line in include_str!("../published.txt").lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(next) = line.strip_prefix("== ") {
            name = next.to_owned();
            assert!(all.insert(name.clone(), Places::new()).is_none(), "{name} is there twice");
        } else if let Some(from) = line.strip_prefix("... ") {
            let from = all[from].clone();
            all.insert(name.clone(), from);
        } else {
            let (place, keys) = line.split_once(':').unwrap();
            let keys: Vec<String> = keys.split_whitespace().map(str::to_owned).collect();
            let places = all.get_mut(&name).unwrap();
            match keys.is_empty() {
                true => assert!(places.remove(place).is_some(), "{name}: {place} is not there"),
                false => {
                    places.insert(place.to_owned(), keys);
                }
            }
        }
    }
    all
}

fn spec(name: &str) -> Spec {
    let (variant, version) = name.split_once(' ').unwrap();
    let variant = VARIANTS.iter().position(|(v, _)| *v == variant).unwrap();
    let version = VARIANTS[variant].1.iter().find(|v| shown(**v) == version).unwrap();
    Spec { variant, version: *version }
}

#[test]
fn every_published_key_is_accounted_for_and_nothing_else_is() {
    for (name, places) in published() {
        let spec = spec(&name);
        let keys = |(place, keys): (String, Vec<String>)| {
            keys.into_iter().map(move |key| {
                let key = key.trim_end_matches("[]");
                if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") }
            })
        };
        let published: BTreeSet<String> = places.into_iter().flat_map(keys).collect();
        let ours: BTreeSet<String> =
            KEYS.iter().filter(|key| spec.has(key)).map(|key| key.0.to_owned()).collect();
        let missing: Vec<_> = published.difference(&ours).collect();
        let invented: Vec<_> = ours.difference(&published).collect();
        assert!(
            missing.is_empty() && invented.is_empty(),
            "{name}: missing {missing:?}, invented {invented:?}"
        );
    }
}

#[test]
fn the_newest_version_of_every_variant_is_compared_with_its_page() {
    let published = published();
    for (variant, versions) in VARIANTS {
        assert!(
            published.contains_key(&format!("{variant} {}", shown(*versions.last().unwrap()))),
            "{variant}"
        );
    }
}

#[test]
fn a_refused_key_is_refused_with_everything_below_it() {
    for Key(path, _, verdict) in KEYS {
        let Refused(why) = verdict else { continue };
        for Key(below, _, other) in KEYS {
            let rest = below.strip_prefix(path);
            if rest.is_some_and(|rest| rest.starts_with(['.', '['])) {
                assert!(matches!(other, Refused(w) if w == why), "{below}");
            }
        }
    }
}

/// What has to stand beside a key, so that nothing but the key itself is wrong.
const SIBLINGS: &[(&str, &str)] = &[
    ("storage.files[]", "path: /etc/a"),
    ("storage.files[].contents", "inline: x"),
    ("storage.files[].append[]", "inline: x"),
    ("storage.directories[]", "path: /etc/a"),
    ("storage.links[]", "path: /etc/a"),
    ("storage.links[]", "target: b"),
    ("storage.trees[]", "local: tree"),
    ("storage.trees[]", "path: /etc/t"),
    ("systemd.units[]", "name: a.service"),
    ("systemd.units[].dropins[]", "name: a.conf"),
    ("systemd.units[].dropins[]", "contents: x"),
    ("passwd.users[]", "name: a"),
    ("passwd.users[]", "system: true"),
    ("passwd.groups[]", "name: a"),
    ("passwd.groups[]", "system: true"),
];

/// The path with this wrong value for its last key, as a flow map.
fn document(path: &str, wrong: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    let mut text = wrong.to_owned();
    for (depth, key) in parts.iter().enumerate().rev() {
        let place = parts[..depth].join(".");
        let name = key.trim_end_matches("[]");
        let mut fields =
            vec![format!("{name}: {}", if key.ends_with("[]") { format!("[{text}]") } else { text })];
        // The contents of a file come before what is appended to it.
        if place == "storage.files[]" && name != "contents" {
            fields.push("contents: {inline: x}".into());
        }
        let exclusive = place.ends_with("contents") || place.ends_with("append[]");
        for (at, sibling) in SIBLINGS {
            let sibling_name = sibling.split(':').next().unwrap();
            let excluded = exclusive && ["source", "local"].contains(&name)
                || name.ends_with("_local") && sibling_name == "contents";
            if *at == place && sibling_name != name && !excluded {
                fields.push((*sibling).to_owned());
            }
        }
        text = format!("{{{}}}", fields.join(", "));
    }
    text
}

#[test]
fn every_key_is_read_or_refused_by_name() {
    for Key(path, since, verdict) in KEYS {
        let Some(variant) = since.iter().position(|s| *s != NO) else { panic!("nobody has {path}") };
        // The newest version has every key of its variant.
        let (name, version) = (VARIANTS[variant].0, shown(*VARIANTS[variant].1.last().unwrap()));
        if ["variant", "version"].contains(path) {
            continue;
        }
        let inner = document(path, "[[]]");
        let yaml = format!("{{variant: {name}, version: {version}, {}", inner.strip_prefix('{').unwrap());
        let text = Text { name: "a.bu".into(), path: "a.bu".into(), bytes: yaml.clone().into_bytes() };
        let error = decode(&text, &Files).map(|_| "accepted").expect_err(&format!("{path}: {yaml}"));
        let key = pattern(&error.details["key"]);
        match verdict {
            Read => assert!(key == *path || key == format!("{path}[]"), "{path}: {yaml}: {error}"),
            Refused(why) => {
                assert!(
                    path.starts_with(&key) && error.to_string().ends_with(why.message),
                    "{path}: {error}"
                );
                assert_eq!(error.hint.as_deref(), Some(why.hint));
            }
        }
    }
}
