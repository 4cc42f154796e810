use super::adopt::{Fate, KEYS, fate};
use super::*;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec};
use crate::model::deviation::{Asked, Outcome};
use crate::model::edit;
use crate::model::image::Digest;
use crate::model::status::{Derivation, OwnedKarg, OwnedPath, OwnedUnit, OwnedUser, PackageRequest};

const IMAGE: &str = "ostree-unverified-registry:quay.io/os:1";

/// Keys as `group/key=value`, one a line.
fn keys(text: &str) -> Vec<Key> {
    let one = |line: &str| {
        let (name, value) = line.split_once('=').unwrap();
        let (group, key) = name.split_once('/').unwrap();
        Key { group: group.into(), key: key.into(), value: value.into() }
    };
    text.lines().map(one).collect()
}

/// With the image, which every origin needs.
fn adopted(text: &str) -> Result<Handover> {
    adopt(&keys(&format!("origin/container-image-reference={IMAGE}\n{text}")))
}

fn whats(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.what.as_str()).collect()
}

#[test]
fn requests_become_a_drop_in_that_declares_them_and_nothing_else() {
    let handover = adopted(
        "packages/requested=vim;1.0;no;kernel-rt;vim;\noverrides/remove=moby-engine;\nlibostree-transient/pinned=true",
    )
    .unwrap();
    let drop_in = handover.drop_in.clone().unwrap();
    assert_eq!(drop_in.path, format!("/etc/osctl/derive.d/{NAME}"));
    let manifest = edit::declared(&drop_in.contents).unwrap();
    let names = |requests: &std::collections::BTreeMap<String, _>| {
        requests.keys().cloned().collect::<Vec<String>>().join(" ")
    };
    let packages = &manifest.packages;
    assert_eq!(
        (names(&packages.install), names(&packages.remove), names(&packages.replace)),
        ("1.0 kernel-rt no vim".into(), "moby-engine".into(), String::new())
    );
    assert!(drop_in.contents.starts_with("# What osctl adopt took over "), "{}", drop_in.contents);
    assert_eq!(handover.image.unwrap().to_string(), "docker://quay.io/os:1");
    assert_eq!((handover.dropped.len(), handover.lost.len()), (0, 0));
}

#[test]
fn an_origin_without_requests_is_taken_over_without_a_drop_in() {
    for text in
        ["", "packages/requested=\nlibostree-transient/pinned=true", "rpmostree/regenerate-initramfs=false"]
    {
        let handover = adopted(text).unwrap();
        assert_eq!((handover.drop_in, handover.lost, handover.dropped), (None, vec![], vec![]), "{text}");
    }
}

/// A value of each kind of key, as the tools write them.
fn sample(group: &str, key: &str) -> String {
    match (group, key) {
        ("origin", "container-image-reference") => IMAGE.into(),
        ("packages" | "overrides", name) if name.contains("local") => {
            format!("{}:foo-1.2-3.x86_64;", "a".repeat(64))
        }
        ("rpmostree", "regenerate-initramfs" | "ex-cliwrap" | "osctl-managed") => "true".into(),
        _ => "foo;".into(),
    }
}

#[test]
fn every_published_key_is_converted_dropped_with_a_sentence_or_refused_by_name() {
    for (group, name, expected) in KEYS {
        let name = if *name == "*" { "anything" } else { name };
        let key = Key { group: (*group).into(), key: name.into(), value: sample(group, name) };
        assert_eq!(fate(&key, false), *expected, "{key}: an earlier row hides this one");
        let result = match expected {
            Fate::Image => adopt(std::slice::from_ref(&key)),
            _ => adopt(
                &[keys(&format!("origin/container-image-reference={IMAGE}")), vec![key.clone()]].concat(),
            ),
        };
        let said =
            |items: &[Item]| items.iter().any(|i| i.what.starts_with(&key.to_string()) && !i.why.is_empty());
        match (expected, result) {
            (Fate::Image, Ok(handover)) => assert!(handover.image.is_some(), "{key}"),
            (Fate::List(_), Ok(handover)) => assert!(said(&handover.converted), "{key}"),
            (Fate::Ours, Ok(handover)) => assert_eq!(handover.lines(), Vec::<String>::new(), "{key}"),
            (Fate::Dropped(_), Ok(handover)) => {
                assert!(said(&handover.dropped), "{key}");
                handover.agreed(false).unwrap();
            }
            (Fate::Lost(_), Ok(handover)) => {
                assert!(said(&handover.lost), "{key}");
                let error = handover.agreed(false).unwrap_err();
                assert!(error.to_string().contains(&key.to_string()), "{error}");
                handover.agreed(true).unwrap();
            }
            (Fate::Refused(..), Err(error)) => {
                assert!(error.to_string().contains(&format!("{key}=")), "{error}");
                assert!(error.advice().is_some(), "{key}");
            }
            (expected, result) => panic!("{key} is {expected:?}: {result:?}"),
        }
    }
}

#[test]
fn what_cannot_be_taken_over_is_refused_with_what_to_do() {
    for (text, wanted, hint) in [
        ("bootc/soft-reboot=auto", "bootc/soft-reboot=auto: osctl does not know", "the tool that wrote it"),
        ("packages/new-key=x", "packages/new-key=x: osctl does not know", "the tool that wrote it"),
        ("origin/refspec=fedora:x", "origin/refspec=fedora:x: it follows a ref", "rpm-ostree rebase"),
        ("origin/unconfigured-state=register first", "register first: it says", "do what it says"),
        (
            "osctl/verification=blessed",
            "osctl/verification=blessed: it cannot be read",
            "the osctl that wrote",
        ),
        ("origin/custom\u{1}=x\u{1b}[2J", "\\u{1b}[2J", "the tool that wrote it"),
    ] {
        let error = adopted(text).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{text}");
        assert!(error.to_string().contains(wanted), "{text}: {error}");
        assert!(error.advice().unwrap().contains(hint), "{text}: {:?}", error.advice());
        assert!(error.to_string().ends_with("nothing was changed"), "{error}");
    }
    for (text, wanted) in [
        ("libostree-transient/pinned=true", "tracks no container image"),
        ("origin/container-image-reference=ostree-remote-registry:fedora:quay.io/os:1", "an ostree remote"),
        ("origin/container-image-reference=quay.io//os", "cannot be read"),
    ] {
        let error = adopt(&keys(text)).unwrap_err();
        assert!(error.to_string().contains(wanted), "{text}: {error}");
    }
}

#[test]
fn our_own_refusal_of_other_tools_is_no_obstacle() {
    let text = "origin/unconfigured-state=managed by osctl\nosctl/version=1\npackages/requested=vim;";
    assert_eq!(whats(&adopted(text).unwrap().converted), ["packages/requested vim"]);
}

#[test]
fn what_is_lost_is_named_without_its_checksum() {
    let sum = "0123456789abcdef".repeat(4);
    let text =
        format!("packages/requested=/usr/bin/vim;\noverrides/replace-local={sum}:kernel-6.9.1-2.x86_64;");
    let handover = adopted(&text).unwrap();
    assert_eq!(
        whats(&handover.lost),
        ["packages/requested /usr/bin/vim", "overrides/replace-local kernel-6.9.1-2.x86_64"]
    );
    assert_eq!(handover.drop_in, None);
}

#[test]
fn a_long_list_of_losses_is_cut_and_kept_whole_in_the_details() {
    let error = adopted("rpmostree/initramfs-args=a;b;c;d;e;f;").unwrap().agreed(false).unwrap_err();
    assert!(error.to_string().contains("initramfs-args d, and 2 more; nothing was changed"), "{error}");
    assert!(error.advice().unwrap().contains("osctl adopt --dry-run"), "{:?}", error.advice());
}

fn package(request: &str, asked: Asked) -> PackageRequest {
    let owners = vec!["50-a.yaml".to_owned()];
    PackageRequest { request: request.into(), asked, outcome: Outcome::Applied, owners, version: None }
}

fn karg(arg: &str, owner: &str) -> OwnedKarg {
    OwnedKarg { arg: arg.into(), owner: owner.into() }
}

fn everything() -> (Derivation, BoundSet) {
    let owner = || "50-a.yaml".to_owned();
    let derivation = Derivation {
        packages: vec![
            package("vim", Asked::Install),
            package("kernel-rt", Asked::Install),
            package("moby-engine", Asked::Remove),
            package("kernel-6.9.1-2", Asked::Replace),
        ],
        files: vec![OwnedPath { path: "/etc/agent.conf".into(), owner: owner(), effect: None }],
        units: vec![OwnedUnit {
            name: "agent.service".into(),
            owner: owner(),
            enabled: Some(true),
            mask: false,
            links: vec![],
        }],
        users: vec![OwnedUser { name: "agent".into(), owner: owner() }],
        groups: vec![OwnedUser { name: "tokens".into(), owner: owner() }],
        kargs: vec![
            karg("root=x", "local"),
            karg("nosmt", "50-a.yaml"),
            karg("quiet", "/usr/lib/bootc/kargs.d/1.toml"),
        ],
        deleted_kargs: vec![karg("splash", "50-a.yaml")],
        ..Default::default()
    };
    let image = |name: &str, source: &str| {
        let spec = BoundSpec::new(format!("r.io/{name}:1").parse().unwrap(), source);
        BoundImage { spec, digest: Digest::of(name.as_bytes()) }
    };
    let images = vec![
        image("app", "/etc/osctl/bound-images.d/app.toml"),
        image("theirs", "/usr/lib/bootc/bound-images.d/theirs.image"),
    ];
    (derivation, BoundSet::new(images).unwrap())
}

#[test]
fn what_each_tool_can_express_is_in_its_origin_and_the_rest_is_lost() {
    let (derivation, bound) = everything();
    let image: ImageRef = "quay.io/os:1".parse().unwrap();
    let of = |tool, rpm| {
        let from =
            Releasable { image: Some(&image), derivation: &derivation, bound: &bound, rpm, has_tool: true };
        release(tool, &from)
    };
    let beside_packages = [
        "path /etc/agent.conf",
        "unit agent.service",
        "user agent",
        "group tokens",
        "bound image docker://r.io/app:1",
        "bound image docker://r.io/theirs:1",
    ];
    let packages = [
        "package vim",
        "package kernel-rt",
        "removal of package moby-engine",
        "replacement of package kernel-6.9.1-2",
    ];
    let arguments = ["kernel argument nosmt", "kernel argument quiet", "kernel argument splash"];

    let rpm_ostree = of(Tool::RpmOstree, true);
    assert_eq!(rpm_ostree.origin, keys("packages/requested=vim;kernel-rt;\noverrides/remove=moby-engine;"));
    assert_eq!(whats(&rpm_ostree.converted), [&packages[..3], &arguments].concat());
    assert_eq!(whats(&rpm_ostree.lost), [&packages[3..], &beside_packages].concat());
    assert!(
        rpm_ostree.notes[0].contains("run rpm-ostree upgrade before the reboot"),
        "{:?}",
        rpm_ostree.notes
    );

    for other in [of(Tool::Bootc, true), of(Tool::RpmOstree, false)] {
        assert_eq!(other.origin, []);
        assert_eq!(whats(&other.converted), arguments);
        assert_eq!(whats(&other.lost), [&packages[..], &beside_packages].concat());
        let error = other.agreed(false).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{} cannot express", other.to.name())), "{error}");
    }
}

#[test]
fn what_is_handed_back_can_be_taken_over_again() {
    let (derivation, _) = everything();
    let none = BoundSet::default();
    let from = Releasable { image: None, derivation: &derivation, bound: &none, rpm: true, has_tool: true };
    let released = release(Tool::RpmOstree, &from);
    let image = keys(&format!("origin/container-image-reference={IMAGE}"));
    let again = adopt(&[image, released.origin].concat()).unwrap();
    assert_eq!(
        whats(&again.converted),
        ["packages/requested vim", "packages/requested kernel-rt", "overrides/remove moby-engine"]
    );
}

#[test]
fn a_plain_deployment_is_handed_back_as_it_is() {
    let (derivation, none) = (Derivation::default(), BoundSet::default());
    for tool in Tool::ALL {
        let from =
            Releasable { image: None, derivation: &derivation, bound: &none, rpm: false, has_tool: true };
        let handover = release(*tool, &from);
        assert_eq!(handover, Handover::new((*tool).into(), None));
        assert_eq!(tool.name().parse::<Tool>().unwrap(), *tool);
    }
    assert!("dnf".parse::<Tool>().is_err());
}
