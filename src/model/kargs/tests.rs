use super::*;
use crate::model::manifest::Karg;
use proptest::prelude::*;

fn words(text: &str) -> Vec<String> {
    split(text)
}

fn manifest(append: &str, delete: &str) -> Manifest {
    let kargs =
        |text: &str| words(text).into_iter().map(|arg| Karg { owner: "50-a.yaml".into(), arg }).collect();
    Manifest { kargs_append: kargs(append), kargs_delete: kargs(delete), ..Manifest::default() }
}

fn vendor(text: &str) -> Vec<VendorKarg> {
    let owner = || "kargs.d/10-v.toml".to_owned();
    words(text).into_iter().map(|arg| VendorKarg { owner: owner(), arg, delete: false }).collect()
}

fn run(current: &str, previous: &Owned, vendor_args: &str, append: &str, delete: &str) -> Computed {
    compute(&words(current), previous, &vendor(vendor_args), &manifest(append, delete)).unwrap()
}

#[test]
fn arguments_follow_their_owners() {
    // current, vendor, append, delete => args; then an edit by hand of the entry; then without drop-ins => args
    let table = [
        ("a quiet b", "", "", "", "a quiet b", "a quiet b", "a quiet b"),
        ("a quiet b", "", "nosmt", "quiet", "a b nosmt", "a b nosmt", "a quiet b"),
        ("a quiet b", "v=1", "nosmt", "", "a quiet b v=1 nosmt", "a quiet b v=1 nosmt", "a quiet b"),
        ("a", "v=1", "", "v=1", "a", "a", "a"),
        // A foreign edit becomes local, wherever it stands.
        ("a quiet b", "", "nosmt", "quiet", "a b nosmt", "new a b nosmt last", "new quiet a b last"),
        // Somebody removed ours by hand: nothing of theirs is taken for it.
        ("a", "", "nosmt", "", "a nosmt", "a", "a"),
        // Somebody wrote the same by hand as well: one is theirs.
        ("a", "", "nosmt", "", "a nosmt", "nosmt a nosmt", "nosmt a"),
        // Somebody wrote back what we had deleted.
        ("a quiet b", "", "", "quiet", "a b", "a b quiet", "a b quiet"),
        // Both of two equal ones go and come back.
        ("quiet a quiet", "", "", "quiet", "a", "a", "quiet a quiet"),
        // Local already: not ours, and not twice.
        ("a nosmt", "nosmt", "nosmt", "", "a nosmt", "a nosmt", "a nosmt"),
        ("", "", "x x", "", "x", "x", ""),
        // Whole text is compared.
        (
            "console=tty0 quiet=1",
            "",
            "console=ttyS0",
            "quiet console",
            "console=tty0 quiet=1 console=ttyS0",
            "console=tty0 quiet=1 console=ttyS0",
            "console=tty0 quiet=1",
        ),
        // The entry became shorter than the place where a deleted one stood.
        ("a b c quiet", "", "", "quiet", "a b c", "a", "a quiet"),
    ];
    for (current, vendor, append, delete, expected, edited, without) in table {
        let first = run(current, &Owned::default(), vendor, append, delete);
        assert_eq!(first.args, words(expected), "{current} + {append} - {delete}");
        let removed = run(edited, &first.owned, "", "", "");
        assert_eq!(removed.args, words(without), "{current} + {append} - {delete}, then {edited}");
        assert!(removed.owned.is_empty());
    }
}

#[test]
fn each_owned_argument_names_its_owner() {
    let computed = run("a quiet", &Owned::default(), "v", "x", "quiet");
    assert_eq!(
        computed.owned.to_json(),
        r#"{"version":1,"appended":[{"arg":"v","owner":"kargs.d/10-v.toml"},{"arg":"x","owner":"50-a.yaml"}],"deleted":[{"arg":"quiet","owner":"50-a.yaml","index":1}]}"#
    );
    assert_eq!(Owned::from_json(&computed.owned.to_json()).unwrap(), computed.owned);
}

#[test]
fn a_record_of_another_version_is_refused() {
    for text in [
        "",
        "{}",
        "[]",
        r#"{"version":2,"appended":[],"deleted":[]}"#,
        r#"{"version":1,"appended":[],"deleted":[],"x":1}"#,
    ] {
        assert_eq!(Owned::from_json(text).unwrap_err().kind, ErrorKind::Unsupported, "{text}");
    }
}

#[test]
fn refused_arguments_say_why() {
    for (arg, message) in [
        ("", "the argument is empty"),
        ("a b", "`a b` holds a space outside double quotes"),
        ("a=\"b c", "`a=\"b c` has an open double quote"),
        ("a\nb", "`a\nb` holds a control character"),
        ("=x", "`=x` has no name"),
        ("--", "`--` would give everything behind it to init"),
        ("root=/dev/sda", "`root=` belongs to the installation and to libostree"),
        ("\"root=/dev/sda\"", "`root=` belongs to the installation and to libostree"),
        ("root", "`root=` belongs to the installation and to libostree"),
        ("ostree=/x", "`ostree=` belongs to the installation and to libostree"),
        ("rootflags=ro", "`rootflags=` belongs to the installation and to libostree"),
    ] {
        assert_eq!(check(arg).unwrap_err().message, message, "{arg}");
        let by_hand = Manifest {
            kargs_append: vec![Karg { owner: "x".into(), arg: arg.into() }],
            ..Manifest::default()
        };
        assert!(compute(&[], &Owned::default(), &[], &by_hand).is_err(), "{arg}");
    }
    for arg in [
        "quiet",
        "rd.luks.uuid=x",
        "a=\"b c\"",
        "\"a=b c\"",
        "rootwait",
        "rootfstype=xfs",
        "ostree.x=1",
        "a=",
    ] {
        assert_eq!(check(arg), Ok(()), "{arg}");
    }
}

#[test]
fn kargs_d_files_are_read_as_documented() {
    let read = |text: &str| parse_vendor("/usr/lib/bootc/kargs.d/1.toml", text, "x86_64");
    let args = |text: &str| read(text).unwrap().into_iter().map(|v| v.arg).collect::<Vec<_>>();
    assert_eq!(args("kargs = [\"a\", \"b=1 c\", 'd=\"e f\"']"), ["a", "b=1", "c", "d=\"e f\""]);
    assert_eq!(args("kargs = [\"a\"]\nmatch-architectures = [\"aarch64\", \"x86_64\"]"), ["a"]);
    assert!(args("kargs = [\"a\"]\nmatch-architectures = [\"aarch64\"]").is_empty());
    assert!(args("kargs = []").is_empty());
    for (text, message) in [
        ("", "/usr/lib/bootc/kargs.d/1.toml:1:1: missing field `kargs`"),
        (
            "kargs = [\"a\"]\nx = 1",
            "/usr/lib/bootc/kargs.d/1.toml:2:1: unknown field `x`, expected `kargs` or `match-architectures`",
        ),
        (
            "kargs = \"a\"",
            "/usr/lib/bootc/kargs.d/1.toml:1:9: invalid type: string \"a\", expected a sequence",
        ),
        (
            "kargs = [\"root=x\"]",
            "/usr/lib/bootc/kargs.d/1.toml: kernel arguments: `root=` belongs to the installation and to libostree",
        ),
    ] {
        let error = read(text).unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::InvalidDropIn, message));
    }
}

#[test]
fn an_image_that_was_built_from_drop_ins_appends_and_deletes_what_they_do() {
    let appended = built("kargs", &words("nosmt a=\"b c\""));
    let deleted = built("delete", &words("quiet nosmt"));
    let mut vendor = parse_vendor(BUILT_APPEND, &appended, "x86_64").unwrap();
    assert_eq!(vendor.iter().map(|v| v.arg.as_str()).collect::<Vec<_>>(), ["nosmt", "a=\"b c\""]);
    vendor.extend(parse_vendor(BUILT_DELETE, &deleted, "x86_64").unwrap());
    let host = |append, delete| {
        let computed = compute(&words("x quiet"), &Owned::default(), &vendor, &manifest(append, delete));
        computed.unwrap().args.join(" ")
    };
    assert_eq!(host("", ""), "x a=\"b c\"");
    assert_eq!(host("quiet nosmt", ""), "x quiet nosmt a=\"b c\"", "the host's own word counts more");
    assert_eq!(host("quiet", "quiet"), "x a=\"b c\"");
    let error = parse_vendor(BUILT_APPEND, &deleted, "x86_64").unwrap_err();
    assert!(error.to_string().contains("unknown field `delete`"), "{error}");
}

/// Few words, so that collisions are common.
fn args(max: usize) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(&["a", "b", "c=1", "c=2", "quiet", "nosmt"][..]), 0..max)
        .prop_map(|v| v.into_iter().map(str::to_owned).collect())
}

proptest! {
    #[test]
    fn removing_all_drop_ins_restores_the_original(local in args(8), vendor in args(4), append in args(4), delete in args(4)) {
        let first = run(&local.join(" "), &Owned::default(), &vendor.join(" "), &append.join(" "), &delete.join(" "));
        let removed = compute(&first.args, &first.owned, &[], &Manifest::default()).unwrap();
        prop_assert_eq!(removed.args, local);
        prop_assert!(removed.owned.is_empty());
    }

    #[test]
    fn the_same_input_changes_nothing(local in args(8), vendor in args(4), append in args(4), delete in args(4)) {
        let go = |current: &[String], owned: &Owned| run(&current.join(" "), owned, &vendor.join(" "), &append.join(" "), &delete.join(" "));
        let first = go(&local, &Owned::default());
        prop_assert_eq!(go(&first.args, &first.owned), first);
    }

    #[test]
    fn any_path_of_changes_leads_back(local in args(8), steps in prop::collection::vec((args(3), args(3), args(3)), 0..5)) {
        let mut now = Computed { args: local.clone(), owned: Owned::default() };
        for (vendor, append, delete) in steps {
            now = run(&now.args.join(" "), &now.owned, &vendor.join(" "), &append.join(" "), &delete.join(" "));
        }
        prop_assert_eq!(compute(&now.args, &now.owned, &[], &Manifest::default()).unwrap().args, local);
    }

    #[test]
    fn no_text_makes_reading_panic(text in ".*", arg in ".*") {
        let _ = parse_vendor("x", &text, "x86_64");
        let _ = Owned::from_json(&text);
        if check(&arg).is_ok() {
            prop_assert_eq!(split(&arg), vec![arg]);
        }
    }
}
