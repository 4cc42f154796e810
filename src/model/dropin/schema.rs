//! Whether `docs/dropin.schema.json` says of drop-ins what the decoder does.

use super::tests::{BAD, EVERYTHING, manifest, one};
use super::yaml::{Node, Value as Written, parse};
use crate::cli::render::schema::breaks;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Where a drop-in has a map with keys of its own, and a drop-in with another key there.
const MAPS: [(&str, &str); 19] = [
    ("", "{no-key-of-ours: 1}"),
    ("kernel-arguments", "kernel-arguments: {no-key-of-ours: 1}"),
    ("files[]", "files: [{no-key-of-ours: 1}]"),
    ("files[].contents", "files: [{path: /etc/a, contents: {no-key-of-ours: 1}}]"),
    ("files[].user", "files: [{path: /etc/a, contents: {inline: x}, user: {no-key-of-ours: 1}}]"),
    ("files[].group", "files: [{path: /etc/a, contents: {inline: x}, group: {no-key-of-ours: 1}}]"),
    ("directories[]", "directories: [{no-key-of-ours: 1}]"),
    ("directories[].user", "directories: [{path: /etc/a, user: {no-key-of-ours: 1}}]"),
    ("directories[].group", "directories: [{path: /etc/a, group: {no-key-of-ours: 1}}]"),
    ("links[]", "links: [{no-key-of-ours: 1}]"),
    ("units[]", "units: [{no-key-of-ours: 1}]"),
    ("units[].dropins[]", "units: [{name: a.service, dropins: [{no-key-of-ours: 1}]}]"),
    ("users[]", "users: [{no-key-of-ours: 1}]"),
    ("packages[]", "packages: [{no-key-of-ours: 1}]"),
    ("override-replace[]", "override-replace: [{no-key-of-ours: 1}]"),
    ("extensions", "extensions: {no-key-of-ours: 1}"),
    ("layers[]", "layers: [{no-key-of-ours: 1}]"),
    ("repos[]", "repos: [{no-key-of-ours: 1}]"),
    ("repos[].gpgkey", "repos: [{id: a, baseurl: 'https://a/', gpgkey: {no-key-of-ours: 1}}]"),
];
/// Rows of the table of refusals about what a schema can see: which keys there are, and what type they have.
const STRUCTURAL: [&str; 8] = [
    ": unknown key",
    ": expected a list",
    ": expected a map",
    ": expected text",
    ": expected a boolean",
    "` is missing",
    " is not one of ",
    ": give ",
];

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../docs/dropin.schema.json")).unwrap()
}

fn wrong(yaml: &str) -> Option<Vec<String>> {
    let root = parse("a.yaml", yaml).ok()??;
    let schema = schema();
    Some(breaks(&schema, &schema, &json(&root), "drop-in"))
}

/// As a reader of YAML 1.2 would hand it to a validator.
fn json(node: &Node<'_>) -> Value {
    match &node.value {
        Written::Scalar { .. } if node.is_null() => Value::Null,
        Written::Scalar { text, plain: true } if matches!(&**text, "true" | "false") => {
            (*text == "true").into()
        }
        Written::Scalar { text, plain: true } if text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse::<u64>().map_or_else(|_| text.to_string().into(), Value::from)
        }
        Written::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => {
            text.parse::<f64>().ok().into()
        }
        Written::Scalar { text, .. } => text.to_string().into(),
        Written::List(items) => items.iter().map(json).collect(),
        Written::Map(entries) => entries.iter().map(|(k, v)| (k.text.to_string(), json(v))).collect(),
    }
}

/// The keys of every map that the schema describes, and whether there may be something under each.
type Maps = BTreeMap<String, BTreeMap<String, bool>>;

fn describe(schema: &Value, here: &Value, at: &str, maps: &mut Maps) {
    if let Some(name) = here["$ref"].as_str() {
        return describe(schema, schema.pointer(&name[1..]).unwrap(), at, maps);
    }
    for part in ["anyOf", "allOf"].iter().flat_map(|k| here[k].as_array().into_iter().flatten()) {
        describe(schema, part, at, maps);
    }
    for (key, value) in here["properties"].as_object().into_iter().flatten() {
        maps.entry(at.to_owned()).or_default().insert(key.clone(), *value != Value::Bool(false));
        describe(schema, value, &below(at, key), maps);
    }
    if let Some(items) = here.get("items") {
        describe(schema, items, &format!("{at}[]"), maps);
    }
}

fn described() -> Maps {
    let (schema, mut maps) = (schema(), Maps::new());
    describe(&schema, &schema, "", &mut maps);
    maps
}

fn below(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}

/// The paths of all keys that are written in a drop-in.
fn written(node: &Node<'_>, at: &str, paths: &mut BTreeSet<String>) {
    match &node.value {
        Written::Scalar { .. } => {}
        Written::List(items) => items.iter().for_each(|item| written(item, &format!("{at}[]"), paths)),
        Written::Map(entries) => {
            for (key, value) in entries {
                let at = below(at, &key.text);
                paths.insert(at.clone());
                written(value, &at, paths);
            }
        }
    }
}

#[test]
fn the_schema_and_the_decoder_know_the_same_keys() {
    let maps = described();
    let places: BTreeSet<&str> = MAPS.iter().map(|(at, _)| *at).collect();
    assert_eq!(maps.keys().map(String::as_str).collect::<BTreeSet<_>>(), places);
    for (at, yaml) in MAPS {
        let hint = one(yaml).unwrap_err().hint.unwrap();
        let known = hint.strip_prefix("known keys here: ").unwrap_or_else(|| panic!("{at}: {hint}"));
        let known: BTreeSet<&str> = known.split(", ").collect();
        assert_eq!(maps[at].keys().map(String::as_str).collect::<BTreeSet<_>>(), known, "{at}");
    }
}

#[test]
fn every_key_that_is_served_is_in_a_good_drop_in() {
    manifest(EVERYTHING);
    let mut paths = BTreeSet::new();
    written(&parse("everything.yaml", EVERYTHING).unwrap().unwrap(), "", &mut paths);
    for (at, keys) in described() {
        for (key, _) in keys.iter().filter(|(_, served)| **served) {
            assert!(paths.contains(&below(&at, key)), "{}", below(&at, key));
        }
    }
}

#[test]
fn every_key_has_a_row_in_the_table_of_refusals() {
    let refused: BTreeSet<String> = BAD
        .split("\n====\n")
        .filter_map(|row| {
            one(row.split_once("\n--\n")?.0.trim_start_matches('\n')).err()?.details.remove("key")
        })
        .map(|key| {
            key.split('[')
                .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()))
                .collect::<Vec<_>>()
                .join("[")
        })
        .collect();
    for (at, keys) in described() {
        for key in keys.keys() {
            let path = below(&at, key);
            assert!(refused.contains(&path) || refused.contains(&format!("{path}[]")), "{path}");
        }
    }
}

#[test]
fn good_drop_ins_are_valid() {
    assert_eq!(wrong(EVERYTHING), Some(Vec::new()));
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut count = 0;
    for example in std::fs::read_dir(examples).unwrap() {
        let Ok(dir) = std::fs::read_dir(example.unwrap().path().join("derive.d")) else { continue };
        for file in dir.map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == "yaml")) {
            assert_eq!(
                wrong(&std::fs::read_to_string(&file).unwrap()),
                Some(Vec::new()),
                "{}",
                file.display()
            );
            count += 1;
        }
    }
    assert!(count >= 4, "{count} examples");
}

#[test]
fn the_schema_refuses_wrong_keys_and_types() {
    let mut count = 0;
    for row in BAD.split("\n====\n") {
        let (yaml, result) = row.split_once("\n--\n").unwrap();
        let message = result.lines().next().unwrap();
        // The keys of other formats are unknown ones here.
        let structural = STRUCTURAL.iter().any(|s| message.contains(s))
            || message.starts_with("UnsupportedStanza")
            || message.ends_with("not supported by this version");
        let Some(wrong) = wrong(yaml.trim_start_matches('\n')).filter(|_| structural) else { continue };
        // What a name means is no matter of its type.
        if message.ends_with("root cannot be declared") {
            continue;
        }
        assert!(!wrong.is_empty(), "{row}");
        count += 1;
    }
    assert!(count >= 100, "{count} rows");
}
