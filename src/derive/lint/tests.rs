use super::*;
use crate::model::lint::LintReport;

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn every_file_is_checked_and_the_report_has_exactly_this_shape() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path();
    let file = "files: [{path: /etc/x, contents: {local: data/x}, mode: 0666}]";
    write(dir, "a/derive.d/10-a.yaml", file);
    write(dir, "a/derive.d/data/x", "x");
    write(dir, "a/derive.d/data/not-a-drop-in.yaml", "x");
    write(
        dir,
        "a/derive.d/20-b.yaml",
        "files:\n  - path: /etc/x\n    mode: 644\n    contents: {inline: x}\n",
    );
    write(dir, "a/derive.d/30-c.yaml", "links: [{path: /etc/x, target: y}]");
    write(dir, "a/derive.d/40-d.bu", "variant: fcos");
    let butane = "variant: fcos\nversion: 1.7.0\nstorage: {trees: [{local: data, path: /usr/t}]}";
    write(dir, "a/derive.d/45-d.bu", butane);
    write(dir, "a/derive.d/50-e.yml", "packges: []");
    write(dir, "a/derive.d/README", "x");
    std::os::unix::fs::symlink("/dev/null", dir.join("a/derive.d/60-f.yaml")).unwrap();
    write(dir, "a/elsewhere.yaml", "x");
    // The same path as in the other directory: another host.
    write(dir, "b/derive.d/10-a.yaml", "links: [{path: /etc/x, target: y}]");
    write(dir, "b/policy.d/10-a.toml", "[allow]\npackages = false\n");
    write(dir, "b/policy.d/20-b.toml", "[allow]\npackage = false\n");
    write(dir, "b/policy.d/README", "x");
    let report = LintReport::new(lint(dir).unwrap());
    assert!(!report.is_clean());
    let json = serde_json::to_string_pretty(&report).unwrap().replace(&format!("{}/", dir.display()), "");
    let compact: serde_json::Value = serde_json::from_str(&json).unwrap();
    let error = |line: u32, column: u32, key: &str, message: &str, hint: serde_json::Value| serde_json::json!({"line": line, "column": column, "key": key, "message": message, "hint": hint});
    let entry = |path: &str, errors: Vec<serde_json::Value>, warnings: Vec<serde_json::Value>| serde_json::json!({"path": path, "kind": "drop-in", "images": [], "errors": errors, "warnings": warnings});
    assert_eq!(
        compact,
        serde_json::json!({"version": 1, "files": [
            entry("a/derive.d/10-a.yaml", vec![], vec![error(1, 16, "files[0].path", "/etc/x can be written by group or others (mode 0666)", "leave out the write bits of group and others".into())]),
            entry("a/derive.d/20-b.yaml", vec![error(3, 11, "files[0].mode", "`644` is not an octal mode with a leading zero", "write 0644".into())], vec![]),
            entry("a/derive.d/30-c.yaml", vec![error(1, 16, "links[0].path", &format!("/etc/x is already declared by {} line 1", "a/derive.d/10-a.yaml"), "declare it once; a drop-in in /etc replaces the vendor's of the same name".into())], vec![]),
            entry("a/derive.d/40-d.bu", vec![serde_json::json!({"line": 1, "column": 1, "key": null, "message": "`version` is missing", "hint": "a .bu file begins with its variant: and its version:"})], vec![]),
            entry("a/derive.d/45-d.bu", vec![], vec![]),
            entry("a/derive.d/50-e.yml", vec![error(1, 1, "packges", "unknown key", "did you mean `packages`?".into())], vec![serde_json::json!({"line": null, "column": null, "key": null, "message": "is ignored: drop-ins end in .yaml", "hint": "rename it to .yaml"})]),
            entry("b/derive.d/10-a.yaml", vec![], vec![]),
            {"path": "b/policy.d/10-a.toml", "kind": "policy", "images": [], "errors": [], "warnings": []},
            {"path": "b/policy.d/20-b.toml", "kind": "policy", "images": [], "errors": [{"line": 2, "column": null, "key": "package", "message": "unknown key \"package\"", "hint": "what can stand there: packages, override-remove, override-replace, repos, extensions, layers, files, units, users, kernel-arguments; see docs/dropins.md"}], "warnings": []},
        ]})
    );
}

#[test]
fn one_file_or_the_directory_itself_can_be_named() {
    let tmp = tempfile::tempdir().unwrap();
    write(tmp.path(), "derive.d/a.yaml", "links: []");
    write(tmp.path(), "x.yaml", "a: b");
    for (path, clean) in [("derive.d", true), ("derive.d/a.yaml", true), ("x.yaml", false)] {
        let report = LintReport::new(lint(&tmp.path().join(path)).unwrap());
        assert_eq!((report.files.len(), report.is_clean()), (1, clean), "{path}");
    }
    assert_eq!(lint(&tmp.path().join("gone")).unwrap_err().kind, ErrorKind::InvalidArgument);
    assert!(lint(&tmp.path().join("gone")).unwrap_err().to_string().ends_with("/gone cannot be checked"));
}

#[test]
fn a_treefile_is_known_by_its_directory() {
    let tmp = tempfile::tempdir().unwrap();
    write(tmp.path(), "origin.d/a.yaml", "packages: [vim]\nrepos: [fedora]\n");
    write(tmp.path(), "origin.d/b.yaml", "packages: [vim]\nunits: [a.service]\n");
    write(tmp.path(), "origin.d/c.json", "{");
    let report = LintReport::new(lint(tmp.path()).unwrap());
    let found: Vec<_> = report.files.iter().map(|f| (f.kind, f.errors.len())).collect();
    assert_eq!(found, [(LintKind::Treefile, 0), (LintKind::Treefile, 1)]);
    let error = &report.files[1].errors[0];
    assert_eq!((error.line, error.column, error.key.as_deref()), (Some(2), Some(1), Some("units")));
    let alone = lint(&tmp.path().join("origin.d/b.yaml")).unwrap();
    assert_eq!(alone, report.files[1..]);
}

#[test]
fn the_shipped_examples_are_clean() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = lint(&examples).unwrap();
    let wrong: Vec<_> = files.iter().filter(|f| !(f.errors.is_empty() && f.warnings.is_empty())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(files.iter().any(|f| f.kind == LintKind::DropIn));
}
