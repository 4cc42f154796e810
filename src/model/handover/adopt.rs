//! An origin of rpm-ostree or bootc to a drop-in of ours.

use super::{Handover, Item, Key, NewDropIn, Owner};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::image::ImageRef;
use crate::model::packages::is_name;
use crate::model::text::one_line;
use crate::model::verification::Verification;
use std::collections::BTreeSet;

/// The drop-in that is written.
pub const NAME: &str = "50-adopted.yaml";
/// Where it is.
const PATH: &str = "/etc/osctl/derive.d/50-adopted.yaml";

/// How it begins.
const HEADER: &str = "\
# What osctl adopt took over from the origin of the deployment that ran then. It is a drop-in as any other: it can be edited
# by hand, and then applied with osctl reconcile.
";

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It names the tracked image.
    Image,
    /// It lists packages for this key of a drop-in.
    List(&'static str),
    /// It is ours or libostree's, and written anew.
    Ours,
    /// It is dropped, for this reason.
    Dropped(&'static str),
    /// What it lists is lost, for this reason.
    Lost(&'static str),
    /// Nothing is taken over as long as it is there: why, and what to do.
    Refused(&'static str, &'static str),
}

/// To an image, whoever does it: osctl rewrites no origin that it does not know.
const TO_AN_IMAGE: &str =
    "move to an image first: rpm-ostree rebase ostree-unverified-registry:IMAGE, reboot, then: osctl adopt";
const NO_REFSPEC: &str = "it follows a ref of an ostree remote, which osctl does not use";
const LOCAL_FILE: &str =
    "it came from a file, which osctl does not take; ask for it in a drop-in, from a repository (repos:)";
const NO_INITRAMFS: &str = "the initramfs will be the one of the image; build it into the image";
const NO_MODULES: &str = "there are no modules; name the packages in a drop-in";

/// Every key that rpm-ostree (`rust/src/origin.rs`), bootc and libostree have published, by group and name; `*` is any name.
///
/// bootc's ostree backend writes `container-image-reference` and nothing else.
pub(super) const KEYS: &[(&str, &str, Fate)] = &[
    ("origin", "container-image-reference", Fate::Image),
    ("origin", "refspec", Fate::Refused(NO_REFSPEC, TO_AN_IMAGE)),
    ("origin", "baserefspec", Fate::Refused(NO_REFSPEC, TO_AN_IMAGE)),
    ("origin", "rojig", Fate::Refused(NO_REFSPEC, TO_AN_IMAGE)),
    ("origin", "rojig-override-version", Fate::Refused(NO_REFSPEC, TO_AN_IMAGE)),
    ("origin", "rojig-description", Fate::Refused(NO_REFSPEC, TO_AN_IMAGE)),
    (
        "origin",
        "unconfigured-state",
        Fate::Refused(
            "it says that this host is not to be updated yet",
            "do what it says, then: osctl adopt",
        ),
    ),
    (
        "origin",
        "override-commit",
        Fate::Dropped("it holds back the next upgrade only; pin with: osctl rebase NAME@DIGEST"),
    ),
    ("origin", "custom-url", Fate::Dropped("rpm-ostree status shows it, and nothing else")),
    ("origin", "custom-description", Fate::Dropped("rpm-ostree status shows it, and nothing else")),
    ("packages", "requested", Fate::List("packages")),
    ("packages", "requested-local", Fate::Lost(LOCAL_FILE)),
    ("packages", "requested-local-fileoverride", Fate::Lost(LOCAL_FILE)),
    ("modules", "enable", Fate::Lost(NO_MODULES)),
    ("modules", "install", Fate::Lost(NO_MODULES)),
    ("overrides", "remove", Fate::List("override-remove")),
    ("overrides", "replace-local", Fate::Lost(LOCAL_FILE)),
    (
        "overrides",
        "replace",
        Fate::Lost(
            "osctl replaces by version: name it with override-replace in a drop-in, with its repository",
        ),
    ),
    ("rpmostree", "regenerate-initramfs", Fate::Lost(NO_INITRAMFS)),
    ("rpmostree", "initramfs-args", Fate::Lost(NO_INITRAMFS)),
    ("rpmostree", "initramfs-etc", Fate::Lost(NO_INITRAMFS)),
    ("rpmostree", "ex-cliwrap", Fate::Dropped("it only warns whoever calls some programs")),
    ("rpmostree", "osctl-managed", Fate::Ours),
    ("osctl", "*", Fate::Ours),
    ("libostree-transient", "*", Fate::Ours),
];

/// What becomes of this key.
pub(super) fn fate(key: &Key, ours: bool) -> Fate {
    if key.group == "osctl" && key.key == "verification" && Verification::from_json(&key.value).is_err() {
        // Taken for nothing, it would let an unsigned image follow.
        return Fate::Refused("it cannot be read", "use the osctl that wrote it");
    }
    if ours && (key.group.as_str(), key.key.as_str()) == ("origin", "unconfigured-state") {
        return Fate::Ours;
    }
    let row = KEYS.iter().find(|(group, name, _)| *group == key.group && (*name == key.key || *name == "*"));
    row.map_or(
        Fate::Refused("osctl does not know what it means", "have the tool that wrote it remove it"),
        |(_, _, fate)| *fate,
    )
}

/// What taking over a host with this origin comes to. Fails where that cannot be, whatever somebody is ready to lose.
pub fn adopt(keys: &[Key]) -> Result<Handover> {
    let ours = keys.iter().any(|key| key.group == "osctl");
    let (mut packages, mut remove) = (BTreeSet::new(), BTreeSet::new());
    let mut handover = Handover::new(Owner::Osctl, None);
    for key in keys {
        let values = || key.value.split(';').filter(|value| !value.is_empty());
        match fate(key, ours) {
            Fate::Image => handover.image = Some(image(key)?),
            Fate::Ours => {}
            Fate::List(list) => {
                for name in values() {
                    if is_name(name) {
                        let names = if list == "packages" { &mut packages } else { &mut remove };
                        names.insert(name.to_owned());
                        handover.converted.push(Item::new(thing(key, name), format!("{list} of {NAME}")));
                    } else {
                        handover.lost.push(Item::new(thing(key, name), "it is not the name of a package"));
                    }
                }
            }
            Fate::Dropped(why) => handover.dropped.push(Item::new(thing(key, &key.value), why)),
            // A switch that is off.
            Fate::Lost(_) if key.value == "false" => {}
            Fate::Lost(why) => handover.lost.extend(values().map(|v| Item::new(thing(key, local(v)), why))),
            Fate::Refused(why, hint) => return Err(refused(key, why).hint(hint)),
        }
    }
    if handover.image.is_none() {
        let why = "the origin tracks no container image; nothing was changed";
        return Err(Error::new(ErrorKind::Unsupported, why).hint(TO_AN_IMAGE));
    }
    if !packages.is_empty() || !remove.is_empty() {
        let contents = text(&packages, &remove);
        handover.drop_in = Some(NewDropIn { path: PATH.to_owned(), contents });
    }
    if !packages.is_empty() {
        handover.notes.push(
            "packages come from the repositories of the image and of drop-ins (repos:), not from those of /etc".into(),
        );
    }
    Ok(handover)
}

fn image(key: &Key) -> Result<ImageRef> {
    if key.value.starts_with("ostree-remote-") {
        let why = "an ostree remote is to vouch for the image, which osctl does not use";
        return Err(refused(key, why).hint(
            "have a policy ask for a signature (containers-policy.json(5)) and move to it first: \
             rpm-ostree rebase ostree-image-signed:docker://IMAGE",
        ));
    }
    key.value.parse().map_err(|error| refused(key, "it cannot be read").source(error))
}

fn refused(key: &Key, why: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the origin has {key}={}: {why}; nothing was changed", one_line(&key.value)),
    )
    .detail("key", key)
}

fn thing(key: &Key, value: &str) -> String {
    format!("{key} {}", one_line(value))
}

/// Without the checksum in front of the name of a local package.
fn local(value: &str) -> &str {
    match value.split_once(':') {
        Some((sum, name)) if sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()) => name,
        Some(_) | None => value,
    }
}

fn text(packages: &BTreeSet<String>, remove: &BTreeSet<String>) -> String {
    let mut text = HEADER.to_owned();
    for (key, names) in [("packages", packages), ("override-remove", remove)] {
        if !names.is_empty() {
            text.push_str(&format!("{key}:\n"));
            // Quoted: a package can have a name that YAML takes for a number or for a boolean.
            names.iter().for_each(|name| text.push_str(&format!("  - '{name}'\n")));
        }
    }
    text
}
