//! Texts before and after, and who may change what.

use super::*;
use crate::model::manifest::Manifest;
use proptest::prelude::*;

fn add(list: List, item: &str) -> Change {
    Change { list, item: item.into(), add: true }
}

fn remove(list: List, item: &str) -> Change {
    Change { list, item: item.into(), add: false }
}

#[test]
fn one_entry_changes_and_nothing_else_does() {
    use List::*;
    let cases: [(&str, Change, &str); 25] = [
        ("", add(Packages, "vim"), "packages:\n  - vim\n"),
        ("# mine", add(Packages, "vim"), "# mine\npackages:\n  - vim\n"),
        ("---\n# c\n", add(Packages, "vim"), "---\n# c\npackages:\n  - vim\n"),
        ("packages: [a] # c\n", add(Packages, "b"), "packages: [a, b] # c\n"),
        ("packages: []\n", add(Packages, "b"), "packages: [b]\n"),
        ("packages: [a, b, c]\n", remove(Packages, "b"), "packages: [a, c]\n"),
        ("packages: [a, b, c]\n", remove(Packages, "c"), "packages: [a, b]\n"),
        ("packages: [ a , b ]\n", remove(Packages, "a"), "packages: [ b ]\n"),
        ("packages: [a]\n", remove(Packages, "a"), "packages: []\n"),
        (
            "packages: [\n  a, # why, and how\n  b,\n  c # last\n]\n",
            remove(Packages, "b"),
            "packages: [\n  a, # why, and how\n  c # last\n]\n",
        ),
        (
            "packages: [\n  a, # why, and how\n  b # last\n]\n",
            remove(Packages, "b"),
            "packages: [\n  a # why, and how\n   # last\n]\n",
        ),
        (
            "packages:\n  # first\n  - a # why\n  # between\n  - 'b'\n\n# end\nfiles: []\n",
            add(Packages, "c"),
            "packages:\n  # first\n  - a # why\n  # between\n  - 'b'\n  - c\n\n# end\nfiles: []\n",
        ),
        (
            "packages:\n- a # why\n- b\nfiles: []\n",
            remove(Packages, "a"),
            "packages:\n# why\n- b\nfiles: []\n",
        ),
        ("packages: # these\n  - a # why\n", remove(Packages, "a"), "packages: [] # these\n  # why\n"),
        ("packages:\r\n  - a\r\n", add(Packages, "b"), "packages:\r\n  - a\r\n  - b\r\n"),
        ("packages:\n  - a", add(Packages, "b"), "packages:\n  - a\n  - b\n"),
        (
            "packages: [a]\n",
            add(Append, "nosmt"),
            "packages: [a]\nkernel-arguments:\n  append:\n    - nosmt\n",
        ),
        (
            "kernel-arguments: {append: [a]}\n",
            add(Append, "console=ttyS0"),
            "kernel-arguments: {append: [a, console=ttyS0]}\n",
        ),
        (
            "kernel-arguments: {append: [a]}\n",
            add(Delete, "quiet"),
            "kernel-arguments: {delete: [quiet], append: [a]}\n",
        ),
        (
            "kernel-arguments: # c\n    append: [a]\n# end\n",
            add(Delete, "quiet"),
            "kernel-arguments: # c\n    delete:\n      - quiet\n    append: [a]\n# end\n",
        ),
        ("{packages: [a]}\n", add(Remove, "b"), "{override-remove: [b], packages: [a]}\n"),
        ("packages: [a]\n", add(Packages, "0ad"), "packages: [a, '0ad']\n"),
        ("packages: [a]\n", add(Packages, "on"), "packages: [a, 'on']\n"),
        (
            "kernel-arguments: {append: [a]}\n",
            add(Append, "x=\"it's, b\""),
            "kernel-arguments: {append: [a, 'x=\"it''s, b\"']}\n",
        ),
        (
            "override-replace:\n  - \"k=1:2~rc\"   # hot\n  - b=1\n",
            remove(Replace, "k=1:2~rc"),
            "override-replace:\n  # hot\n  - b=1\n",
        ),
    ];
    for (before, change, after) in cases {
        let edited = rewrite(Some(before), std::slice::from_ref(&change));
        assert_eq!(edited.unwrap_or_else(|e| panic!("{before:?} {change}: {}", e.chain())), after);
    }
    let fresh = rewrite(None, &[add(Packages, "vim")]).unwrap();
    assert_eq!(fresh, format!("{HEADER}packages:\n  - vim\n"));
}

#[test]
fn what_cannot_be_edited_safely_is_left_to_a_person() {
    for (before, change) in [
        ("packages: [a]\n...\n", add(List::Remove, "b")),
        ("packages:\n  -\n    a\n", add(List::Packages, "b")),
        ("packages:\n  - a\n", remove(List::Packages, "b")),
        ("{}\n--- # c\n", add(List::Packages, "b")),
    ] {
        let error = rewrite(Some(before), std::slice::from_ref(&change)).unwrap_err();
        let by_hand =
            error.kind == ErrorKind::Unsupported && error.to_string().contains("nothing was changed");
        let wrong = error.kind == ErrorKind::InvalidDropIn;
        assert!(by_hand || wrong, "{before:?}: {}", error.chain());
    }
    let broken = rewrite(Some("packages: {}\n"), &[add(List::Packages, "b")]).unwrap_err();
    assert_eq!(broken.kind, ErrorKind::InvalidDropIn);
    assert!(broken.to_string().starts_with("/etc/osctl/derive.d/90-osctl.yaml:1:11: packages: "), "{broken}");
}

/// What all drop-ins declare, from texts by name.
fn merged(texts: &[(&str, &str)]) -> Manifest {
    let texts: Vec<(Text, &dyn Beside)> = texts
        .iter()
        .map(|(name, text)| Text { name: (*name).into(), path: (*name).into(), bytes: (*text).into() })
        .map(|text| (text, &Names as &dyn Beside))
        .collect();
    dropin::compile(&texts).unwrap()
}

const OTHER: &str = "packages: [theirs]\noverride-remove: [gone]\noverride-replace: [hot=1]\nkernel-arguments: {append: [c=1], delete: [splash]}\n";
const OWN: &str = "packages: [mine]\noverride-remove: [moby]\noverride-replace: [fix=1, kernel-6.9-1]\nkernel-arguments: {append: [d=1], delete: [quiet]}\n";

fn planned(wishes: &[(What, &str)], idempotent: bool) -> Result<(Vec<String>, Vec<String>)> {
    let all = merged(&[("50-other.yaml", OTHER), (NAME, OWN)]);
    let own = declared(OWN).unwrap();
    let present = ["ro", "quiet", "splash", "e=1", "e=2", "f=1"].map(str::to_owned);
    let edit = Edit::new(wishes.iter().map(|(w, i)| (*w, (*i).to_owned())).collect(), false, idempotent)?;
    let planned = plan(&edit, &Facts { own: &own, all: &all, present: &present })?;
    // Whatever is planned can be written.
    rewrite(Some(OWN), &planned.changes)?;
    let sign = |c: &Change| format!("{}{} {}", if c.add { '+' } else { '-' }, c.list, c.item);
    Ok((planned.changes.iter().map(sign).collect(), planned.notes))
}

#[test]
fn a_wish_becomes_the_change_that_makes_it_so() {
    use What::*;
    type Case<'a> = (&'a [(What, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 15] = [
        (&[(Install, "vim")], &["+packages vim"]),
        (&[(Install, "vim"), (Uninstall, "mine")], &["-packages mine", "+packages vim"]),
        (&[(OverrideRemove, "x")], &["+override-remove x"]),
        (&[(OverrideReset, "moby")], &["-override-remove moby"]),
        (&[(OverrideReset, "fix")], &["-override-replace fix=1"]),
        (&[(OverrideReset, "kernel")], &["-override-replace kernel-6.9-1"]),
        (&[(OverrideReplace, "fix=2")], &["-override-replace fix=1", "+override-replace fix=2"]),
        (&[(OverrideReplace, "new=1")], &["+override-replace new=1"]),
        (&[(KargsAppend, "nosmt")], &["+kernel-arguments.append nosmt"]),
        (&[(KargsAppend, "quiet")], &["-kernel-arguments.delete quiet"]),
        (&[(KargsDelete, "d=1")], &["-kernel-arguments.append d=1"]),
        (&[(KargsDelete, "f")], &["+kernel-arguments.delete f=1"]),
        (&[(KargsDelete, "c=1")], &["+kernel-arguments.delete c=1"]),
        (&[(KargsReplace, "f=2")], &["+kernel-arguments.delete f=1", "+kernel-arguments.append f=2"]),
        (&[(KargsReplace, "e=2=3")], &["+kernel-arguments.delete e=2", "+kernel-arguments.append e=3"]),
    ];
    for (wishes, changes) in cases {
        assert_eq!(planned(wishes, false).unwrap().0, changes, "{wishes:?}");
    }
}

#[test]
fn what_is_so_already_is_an_error_unless_that_is_fine() {
    use What::*;
    for (wish, words) in [
        ((Install, "mine"), "package mine is already requested by 90-osctl.yaml"),
        ((Install, "theirs"), "package theirs is already requested by 50-other.yaml"),
        ((OverrideRemove, "gone"), "override of package gone is already requested by 50-other.yaml"),
        ((OverrideReplace, "fix=1"), "override of package fix=1 is already requested by 90-osctl.yaml"),
        ((Uninstall, "nope"), "no drop-in requests the package nope"),
        ((OverrideReset, "nope"), "no drop-in overrides the package nope"),
        ((KargsAppend, "ro"), "the kernel argument ro is already there"),
        ((KargsAppend, "c=1"), "the kernel argument c=1 is already there"),
        ((KargsDelete, "quiet"), "there is no kernel argument quiet"),
    ] {
        let error = planned(&[wish], false).unwrap_err();
        assert_eq!(
            (error.kind, error.to_string()),
            (ErrorKind::WrongState, format!("{words}; nothing was changed"))
        );
        assert_eq!(planned(&[wish], true).unwrap(), (Vec::new(), Vec::new()), "{wish:?}");
    }
    assert_eq!(planned(&[(KargsAppendIfMissing, "ro")], false).unwrap().0, [""; 0]);
    assert_eq!(planned(&[(KargsDeleteIfPresent, "quiet")], false).unwrap().0, [""; 0]);
}

#[test]
fn what_another_drop_in_declares_is_left_to_it_and_named() {
    use What::*;
    for (wish, words) in [
        ((Uninstall, "theirs"), "package theirs is requested by 50-other.yaml, which is not edited"),
        ((OverrideReset, "gone"), "package gone is overridden by 50-other.yaml, which is not edited"),
        ((OverrideReset, "hot"), "package hot is overridden by 50-other.yaml, which is not edited"),
        ((OverrideReplace, "hot=2"), "50-other.yaml replaces hot by hot=1"),
        ((KargsAppend, "splash"), "the kernel argument splash is deleted by 50-other.yaml"),
        ((KargsDelete, "e"), "e is there more than once: e=1, e=2"),
        ((KargsReplace, "g=1"), "the kernel argument g is not there"),
        ((KargsReplace, "e=3"), "the kernel argument e is there more than once"),
    ] {
        for idempotent in [false, true] {
            let error = planned(&[wish], idempotent).unwrap_err();
            assert_eq!(error.to_string(), format!("{words}; nothing was changed"));
            assert!(error.hint.is_some(), "{words}");
        }
    }
}

#[test]
fn what_no_drop_in_can_declare_is_no_wish() {
    use What::*;
    for (what, item) in [
        (Install, "./agent.deb"),
        (Install, "https://example.com/agent.rpm"),
        (Install, "agent=1"),
        (Uninstall, "-y"),
        (OverrideReplace, "agent"),
        (OverrideReset, "a b"),
        (KargsAppend, "root=/dev/sda1"),
        (KargsAppend, "a b"),
        (KargsReplace, "nosmt"),
        (KargsDelete, "ostree"),
    ] {
        let error = Edit::new(vec![(what, item.into())], false, false).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{item}");
        assert_eq!(error.details["key"], what.name());
    }
    assert!(Edit::new(Vec::new(), false, false).is_err());
    assert!(Edit::new(Vec::new(), true, false).is_ok());
}

/// A list as people write lists: in lines or in brackets, with and without comments.
fn list() -> impl Strategy<Value = String> {
    let item = (prop::sample::select(vec!["a", "b-1", "'c'", "\"d\""]), any::<bool>());
    (prop::sample::subsequence(vec![0, 1, 2, 3], 0..4), any::<bool>(), prop::collection::vec(item, 4))
        .prop_map(|(which, flow, items)| {
            let names = ["a", "b-1", "'c'", "\"d\""];
            let note =
                |i: usize| if items[i].1 { format!(" # note {i}, of {}", names[i]) } else { String::new() };
            if which.is_empty() {
                return " []\n".to_owned();
            }
            if flow && which.iter().all(|i| !items[*i].1) {
                let names: Vec<&str> = which.iter().map(|i| names[*i]).collect();
                return format!(" [{}]\n", names.join(", "));
            }
            if flow {
                let lines = which.iter().map(|i| format!("    {},{}\n", names[*i], note(*i)));
                return format!(" [ # open\n{}  ]\n", lines.collect::<String>());
            }
            let lines = which.iter().map(|i| format!("  # above {i}\n  - {}{}\n", names[*i], note(*i)));
            format!(" # list\n{}", lines.collect::<String>())
        })
}

fn comments(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.find('#').map(|at| line[at..].trim())).collect()
}

proptest! {
    #[test]
    fn an_edit_and_its_inverse_leave_what_was_declared_and_every_comment(
        packages in list(), remove in list(), before in any::<bool>(), item in "[a-z0-9][a-z0-9+.]{0,6}[a-z0-9]",
    ) {
        let (first, second) = if before { ("packages", "override-remove") } else { ("override-remove", "packages") };
        let text = format!("# head\n{first}:{packages}# middle\n\n{second}:{remove}# end\n");
        for list in [List::Packages, List::Remove, List::Append, List::Delete] {
            let there = rewrite(Some(&text), &[add(list, &item)]).unwrap();
            prop_assert_eq!(comments(&there), comments(&text), "{}", there);
            let back = rewrite(Some(&there), &[super::tests::remove(list, &item)]).unwrap();
            prop_assert_eq!(comments(&back), comments(&text), "{}", back);
            prop_assert_eq!(declared(&back).unwrap(), declared(&text).unwrap());
        }
        for gone in declared(&text).unwrap().packages.install.keys() {
            let without = rewrite(Some(&text), &[super::tests::remove(List::Packages, gone)]).unwrap();
            prop_assert_eq!(comments(&without), comments(&text), "{}", without);
            let back = rewrite(Some(&without), &[add(List::Packages, gone)]).unwrap();
            prop_assert_eq!(declared(&back).unwrap(), declared(&text).unwrap());
        }
    }
}
