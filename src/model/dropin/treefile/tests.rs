//! One row per rule, with the exact message.

use super::OWNER;
use super::keys::{KEYS, Verdict};
use crate::model::dropin::tests::{check_refusals, compile_all};
use crate::model::error::{ErrorKind, Result};
use crate::model::manifest::Manifest;
use proptest::prelude::*;
use std::collections::BTreeSet;

const BAD: &str = include_str!("bad.txt");

fn all(files: &[(&str, &str)]) -> Result<Manifest> {
    let files: Vec<(String, &str)> =
        files.iter().map(|(name, yaml)| (format!("{OWNER}{name}"), *yaml)).collect();
    compile_all(&files.iter().map(|(name, yaml)| (name.as_str(), *yaml)).collect::<Vec<_>>())
}

fn one(yaml: &str) -> Result<Manifest> {
    all(&[("a.yaml", yaml)])
}

fn spec() -> impl Iterator<Item = &'static str> {
    include_str!("spec-keys.txt").lines().filter(|line| !line.starts_with('#'))
}

#[test]
fn bad_treefiles_are_refused_with_their_place() {
    let count = check_refusals(BAD, "origin.d/a.yaml");
    assert!(count >= KEYS.len(), "{count} rows");
}

#[test]
fn every_key_of_the_specification_is_served_or_refused_by_name() {
    let known: BTreeSet<&str> = KEYS.iter().map(|(key, _)| *key).collect();
    assert_eq!(known.len(), KEYS.len(), "a key is in the table twice");
    let missing: Vec<_> = spec().filter(|key| *key != "packages-$basearch" && !known.contains(key)).collect();
    assert!(missing.is_empty(), "not in the table: {missing:?}");
    for key in spec() {
        // Nothing is served that is `{}`: what the key is decides, or its type.
        let error = one(&format!("{key}: {{}}\n")).unwrap_err();
        assert_ne!(error.to_string(), format!("origin.d/a.yaml:1:1: {key}: unknown key"));
        assert!(error.hint.is_some() || error.kind == ErrorKind::InvalidDropIn, "{key}: no hint");
        let served = KEYS.iter().any(|(k, v)| *k == key && *v == Verdict::Served);
        assert_eq!(error.kind == ErrorKind::InvalidDropIn, served, "{error}");
    }
}

#[test]
fn every_key_that_is_refused_has_a_row_in_the_table_of_refusals() {
    for (key, verdict) in KEYS {
        let row = format!(":1:1: {key}: ");
        assert!(*verdict == Verdict::Served || BAD.contains(&row), "{key}");
    }
}

#[test]
fn a_treefile_asks_for_what_a_drop_in_could_ask_for() {
    let manifest = one("packages:
  - vim git
  - \"'NetworkManager-wifi' tmux\"
override-remove: [moby-engine]
override-replace:
  - kernel-6.9.1-2
  - from: {repo: 'copr:host:me:mine'}
    packages: [glibc glibc-common]
repos: [fedora, updates]
")
    .unwrap();
    let packages = &manifest.packages;
    let names = |map: &std::collections::BTreeMap<String, BTreeSet<String>>| {
        assert!(map.values().all(|by| by.iter().eq(["origin.d/a.yaml"])));
        map.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&packages.install), ["NetworkManager-wifi", "git", "tmux", "vim"]);
    assert_eq!(names(&packages.remove), ["moby-engine"]);
    assert_eq!(names(&packages.replace), ["glibc", "glibc-common", "kernel-6.9.1-2"]);
    assert_eq!(names(&packages.enabled_repos), ["fedora", "updates"]);
    let from: Vec<_> = packages.replace_from.iter().map(|(n, r)| (n.as_str(), r.as_str())).collect();
    assert_eq!(from, [("glibc", "copr:host:me:mine"), ("glibc-common", "copr:host:me:mine")]);
    assert_eq!(manifest.sources[0].name, "origin.d/a.yaml");

    let older = one("ex-override-replace: [{from: {repo: a}, packages: [glibc]}]").unwrap();
    assert_eq!(older.packages.replace_from["glibc"], "a");
    assert!(one("").unwrap().is_empty());
    assert!(one("repos: [fedora]").unwrap().is_empty(), "repositories alone change nothing");
}

#[test]
fn a_package_is_replaced_from_one_repository() {
    let from = |repo: &str| format!("override-replace: [{{from: {{repo: {repo}}}, packages: [glibc]}}]");
    let agreed = all(&[("a.yaml", &from("x")), ("b.yaml", &from("x"))]).unwrap();
    assert_eq!(agreed.packages.replace["glibc"].len(), 2);
    let only = agreed.only(|owner| owner == "origin.d/b.yaml").packages;
    assert_eq!((only.replace["glibc"].len(), only.replace_from["glibc"].as_str()), (1, "x"));
    assert!(agreed.only(|_| false).packages.replace_from.is_empty());
    let error = all(&[("a.yaml", &from("x")), ("b.yaml", &from("y"))]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "origin.d/b.yaml:1:49: override-replace[0].packages[0]: the repository of glibc is already declared by origin.d/a.yaml line 1"
    );
}

proptest! {
    #[test]
    fn no_text_makes_decoding_a_treefile_panic(yaml in "\\PC*") {
        let _ = one(&yaml);
    }

    #[test]
    fn no_nearly_right_treefile_makes_decoding_panic(
        yaml in "(packages:|override-replace:|repos:|  - |from: |repo: |\\{|\\}|\\[|\\]|, |\n|vim|a-1| |'|\"|>|---\n){0,30}"
    ) {
        if let Err(e) = one(&yaml) {
            prop_assert!(e.details.contains_key("line"), "{}", e);
        }
    }

    #[test]
    fn the_order_of_treefiles_does_not_matter(
        lists in proptest::collection::vec(proptest::collection::vec("[a-d]{1,2}", 0..4), 1..4)
    ) {
        let yaml = |list: &Vec<String>| format!("packages: [{0}]\noverride-remove: [{0}]\nrepos: [{0}]\n", list.join(", "));
        let texts: Vec<String> = lists.iter().map(yaml).collect();
        let named: Vec<(String, &str)> = texts.iter().enumerate().map(|(i, t)| (format!("{i}.yaml"), t.as_str())).collect();
        let mut files: Vec<(&str, &str)> = named.iter().map(|(n, t)| (n.as_str(), *t)).collect();
        let forwards = all(&files).unwrap();
        files.reverse();
        let backwards = all(&files).unwrap();
        prop_assert_eq!(forwards.input_digest(), backwards.input_digest());
        prop_assert_eq!(forwards.packages, backwards.packages);
    }
}
