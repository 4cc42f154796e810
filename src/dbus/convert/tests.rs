//! What goes over the bus, and what comes back.

use super::*;
use crate::model::handover::{Handover, Owner};
use crate::model::plan::{self, Facts, Plan, Release};
use crate::model::request::BoundName;
use crate::model::verified::{self, Checked, Verified};

fn dict(entries: &[(&str, Value<'static>)]) -> Dict {
    entries
        .iter()
        .map(|(k, v)| ((*k).to_owned(), OwnedValue::try_from(v.try_clone().unwrap()).unwrap()))
        .collect()
}

fn owned(out: Out) -> Dict {
    out.into_iter().map(|(k, v)| (k, OwnedValue::try_from(v).unwrap())).collect()
}

#[test]
fn what_a_method_does_not_know_is_refused_by_name() {
    type Case = (Verb, &'static str, Value<'static>, ErrorKind, &'static str);
    let cases: [Case; 8] = [
        (Verb::Upgrade, "colour", true.into(), ErrorKind::InvalidArgument, "unknown option \"colour\""),
        (
            Verb::Upgrade,
            "download-only",
            "yes".into(),
            ErrorKind::InvalidArgument,
            "option \"download-only\" must be a boolean (b), not of type s",
        ),
        (
            Verb::Check,
            "download-only",
            true.into(),
            ErrorKind::InvalidArgument,
            "unknown option \"download-only\"",
        ),
        (
            Verb::Rebase,
            "kargs",
            Value::from(vec![1u32]),
            ErrorKind::InvalidArgument,
            "option \"kargs\" must be a list of strings (as), not of type au",
        ),
        (
            Verb::Upgrade,
            "queue",
            "jump".into(),
            ErrorKind::InvalidArgument,
            "option \"queue\" cannot be \"jump\"",
        ),
        (
            Verb::Upgrade,
            "max-bytes",
            "1G".into(),
            ErrorKind::InvalidArgument,
            "option \"max-bytes\" must be a number (t), not of type s",
        ),
        (
            Verb::Upgrade,
            "rate-limit",
            0_u64.into(),
            ErrorKind::InvalidArgument,
            "a rate of 0 bytes a second would never end",
        ),
        (
            Verb::Upgrade,
            "lock-finalization",
            true.into(),
            ErrorKind::Unsupported,
            "option \"lock-finalization\" is not supported in this version",
        ),
    ];
    for (verb, key, value, kind, message) in cases {
        let error = decode(verb, &dict(&[(key, value)])).unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (kind, message));
        assert_eq!(error.details.get("key").map(String::as_str), Some(key));
    }
}

#[test]
fn a_text_that_is_too_long_is_refused_and_not_repeated() {
    let huge = "\u{1}".repeat(8 << 20);
    let long = "x".repeat(129);
    let many = vec!["quiet"; 257];
    let mut errors: Vec<_> = [
        (Verb::Upgrade, "require-digest", Value::from(huge.clone())),
        (Verb::Upgrade, "queue", Value::from(huge.clone())),
        (Verb::Upgrade, "cmdline", Value::from(huge.clone())),
        (Verb::Upgrade, "client-id", Value::from(long)),
        (Verb::Rebase, "stateroot", Value::from(huge.clone())),
        (Verb::Rebase, "kargs", Value::from(vec![huge.clone()])),
        (Verb::Rebase, "kargs", Value::from(many)),
    ]
    .into_iter()
    .map(|(verb, key, value)| decode(verb, &dict(&[(key, value)])).expect_err(key))
    .collect();
    errors.push(decode(Verb::Upgrade, &dict(&[(&huge, true.into())])).unwrap_err());
    errors.push(image(&huge).unwrap_err());
    for error in errors {
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        let details: usize = error.details.values().map(String::len).sum();
        assert!(error.chain().len() + details < 300, "{}", &error.chain()[..300]);
    }
}

#[test]
fn what_is_kept_is_checked_before_anything_is_queued() {
    let bad: [(&str, Value<'static>); 6] = [
        ("client-id", "red\x1b[31m".into()),
        ("client-id", "two\nlines".into()),
        ("stateroot", "../etc".into()),
        ("stateroot", "".into()),
        ("kargs", Value::from(vec!["a b"])),
        ("kargs", Value::from(vec!["init=/bin/sh\nlinux"])),
    ];
    for (key, value) in bad {
        let error = decode(Verb::Rebase, &dict(&[(key, value)])).expect_err(key);
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    }
    let good = dict(&[("stateroot", "my_os-1.0".into()), ("kargs", Value::from(vec!["a=\"b c\"", "quiet"]))]);
    assert_eq!(decode(Verb::Rebase, &good).unwrap().options.kargs.len(), 2);
}

#[test]
fn a_polkit_rule_sees_all_that_decides() {
    let options = Options {
        drop_var: true,
        allow_rejected: true,
        kargs: vec!["quiet".into(), "ro".into()],
        stateroot: Some("os".into()),
        ..Options::default()
    };
    let image = "oci:/x".parse().unwrap();
    let found = details(&Request::Rebase { image, options });
    for (key, value) in [
        ("verb", "rebase"),
        ("image", "oci:/x"),
        ("transport", "oci:"),
        ("kargs", "quiet ro"),
        ("stateroot", "os"),
        ("drop-var", "true"),
        ("allow-rejected", "true"),
    ] {
        assert_eq!(found.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(found.len(), 7, "what is not asked for is not there: {found:?}");
}

#[test]
fn options_survive_the_way_over_the_bus() {
    let options = Options {
        require_digest: Some(Digest::of(b"x")),
        download_only: true,
        dry_run: true,
        allow_downgrade: true,
        replace_staged: true,
        allow_rejected: true,
        rate_limit: NonZeroU64::new(1000),
        max_bytes: Some(0),
        allow_unverified: true,
        drop_var: true,
        no_wait: true,
        frozen: true,
        update_lock: false,
        retry: false,
        lossy: false,
        kargs: vec!["quiet".into()],
        stateroot: Some("os".into()),
    };
    assert_eq!(decode(Verb::Rebase, &owned(encode(&options))).unwrap().options, options);
    assert!(encode(&Options::default()).is_empty());
}

#[test]
fn a_release_names_a_tool_that_we_know() {
    for tool in Tool::ALL {
        let found =
            decode(Verb::Release, &dict(&[("to", tool.name().into()), ("lossy", true.into())])).unwrap();
        assert_eq!((found.to, found.options.lossy), (Some(*tool), true));
        let details = details(&Request::Release { to: found.to, options: found.options });
        assert_eq!((&*details["to"], &*details["lossy"]), (tool.name(), "true"));
    }
    let error = decode(Verb::Release, &dict(&[("to", "dnf".into())])).unwrap_err();
    assert_eq!((error.kind, error.details["key"].as_str()), (ErrorKind::InvalidArgument, "to"));
    let error = decode(Verb::Adopt, &dict(&[("to", "bootc".into())])).unwrap_err();
    assert_eq!(error.to_string(), "unknown option \"to\"");
}

#[test]
fn a_plan_is_asked_for_by_verb_image_and_options() {
    for goal in [Goal::Upgrade, Goal::Rebase("r.io/os:1".parse().unwrap()), Goal::Reconcile] {
        let mut all = owned(encode_goal(&goal));
        all.extend(dict(&[("queue", "fail".into())]));
        let (decoded, d) = decode_plan(all).unwrap();
        assert_eq!((decoded, d.options.no_wait), (goal, true));
    }
    assert_eq!(decode_plan(Dict::new()).unwrap().0, Goal::Upgrade);
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);
    let cases: [Case; 6] = [
        (&[("verb", "rebase")], "image", "a rebase needs an image"),
        (&[("image", "r.io/os")], "image", "only a rebase has an image"),
        (&[("verb", "rollback")], "verb", "option \"verb\" cannot be \"rollback\""),
        (&[("verb", "reconcile"), ("max-bytes", "1")], "max-bytes", "unknown option \"max-bytes\""),
        (&[("colour", "red")], "colour", "unknown option \"colour\""),
        (
            &[("verb", "upgrade"), ("lock-finalization", "1")],
            "lock-finalization",
            "option \"lock-finalization\" is not supported in this version",
        ),
    ];
    for (entries, key, message) in cases {
        let entries: Vec<_> = entries.iter().map(|(k, v)| (*k, Value::from(*v))).collect();
        let error = decode_plan(dict(&entries)).unwrap_err();
        assert_eq!((error.details["key"].as_str(), error.to_string().as_str()), (key, message));
    }
}

#[test]
fn results_survive_the_way_over_the_bus() {
    let r = JobResult {
        changed: true,
        summary: "Staged 2.".into(),
        deployment: Some("os-abc.0".into()),
        digest: Some(Digest::of(b"x")),
        discarded: vec!["os-def.1".into()],
        notes: vec!["n".into()],
        plan: Some(Box::new(Plan::new(Facts {
            image: Some("r.io/os:1".parse().unwrap()),
            target: Release { digest: Some(Digest::of(b"x")), version: "2".into() },
            current: None,
            changed: true,
            parts: vec![plan::Part::boot(7, true)],
            places: Vec::new(),
            notes: Vec::new(),
        }))),
        handover: Some(Box::new(Handover::new(Owner::Bootc, Some("r.io/os:1".parse().unwrap())))),
        verified: Some(Box::new(Verified {
            images: vec![Checked {
                reference: "r.io/app:1".into(),
                digest: Digest::of(b"x"),
                outcome: verified::Outcome::Repaired,
                damage: vec![Damage::of_file(&Digest::of(b"layer"), "/bin/x", "is missing")],
                failure: None,
            }],
        })),
    };
    assert_eq!(parse_result(&owned(result(Some(&r)))), r);
}

#[test]
fn what_is_to_be_verified_is_known_and_named_once() {
    let subjects = |names: &[&str]| subjects(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    assert_eq!(subjects(&["bound", "bound"]).unwrap(), [Subject::Bound]);
    for (names, message) in [
        (&[][..], "0 things are named that are to be verified"),
        (&["bound", "etc"], "\"etc\" cannot be verified"),
        (&[&"x".repeat(200)], "option \"what\" has 200 bytes, and can have 128"),
    ] {
        let error = subjects(names).unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::InvalidArgument, message));
    }
    let only = BoundName { reference: "r.io/app:1".parse().unwrap(), digest: Digest::of(b"x") };
    let pull = Request::PullBound { only: Some(only), options: Options::default() };
    assert_eq!(details(&pull)["image"], "docker://r.io/app:1");
    let verify = Request::Verify { what: vec![Subject::Bound], options: Options::default() };
    assert_eq!(details(&verify)["what"], "bound");
}

#[test]
fn an_edit_survives_the_way_over_the_bus() {
    let wishes = What::ALL.iter().map(|what| {
        let item = match what {
            What::OverrideReplace => "kernel=6.1-2",
            What::KargsReplace => "console=ttyS1",
            _ => "one",
        };
        (*what, item.to_owned())
    });
    let edit = Edit::new(wishes.collect(), true, true).unwrap();
    let options = Options { dry_run: true, no_wait: true, ..Default::default() };
    let mut sent = encode(&options);
    sent.extend(encode_edit(&edit));
    let (back, decoded) = decode_edit(owned(sent)).unwrap();
    assert_eq!((back, decoded.options), (edit.clone(), options));
    let details = details(&Request::EditDerivation { edit, options: Options::default() });
    assert_eq!((details["drop-in"].as_str(), details["install"].as_str()), ("90-osctl.yaml", "one"));
}

#[test]
fn an_edit_that_is_unknown_wrong_or_empty_is_refused() {
    let cases: [(&[(&str, Value<'static>)], &str); 5] = [
        (&[], "there is nothing to change"),
        (&[("install", "vim".into())], "option \"install\" must be a list of strings (as), not of type s"),
        (&[("purge", vec!["vim"].into())], "unknown option \"purge\""),
        (&[("install", vec!["vim"].into()), ("frozen", true.into())], "unknown option \"frozen\""),
        (
            &[("install", vec!["a"; ENTRIES_LIMIT + 1].into())],
            "option \"install\" has 257 entries, and can have 256",
        ),
    ];
    for (entries, message) in cases {
        let error = decode_edit(dict(entries)).unwrap_err();
        assert_eq!((error.kind, error.to_string().as_str()), (ErrorKind::InvalidArgument, message));
    }
}
