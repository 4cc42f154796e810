//! Every key of the treefile specification, and what becomes of it on a host.
//!
//! From rpm-ostree's `docs/treefile.md`, and from what its own reader (`rust/src/treefile.rs`) takes beyond that.

use crate::model::dropin::cursor::Cursor;
use crate::model::dropin::decode;
use crate::model::error::{Error, ErrorKind};
use Verdict::{Image, Instead, Never, Served};

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Done as it says.
    Served,
    /// Says how an image is composed; there is nothing in it for a host.
    Image,
    /// A host can have it, in the way that is said here.
    Instead(&'static str),
    /// A host cannot have it, for the reason that is said first; what to do is second.
    Never(&'static str, &'static str),
}

// Why, and what to do instead.
const LOCAL_RPM: &str =
    "put the file into a repository: `repos:` of a drop-in in /etc/osctl/derive.d names one";
const INCLUDE: &str = "put the other file into the same directory: all of them are merged";
const SCRIPT: &str = "declare what it makes as files:, links: and units: of a drop-in in /etc/osctl/derive.d, or run it \
where the image is built";
const FILES: &str =
    "declare the files in a drop-in in /etc/osctl/derive.d: files: [{path: ..., contents: {local: NAME}}]";
const INITRAMFS: &str = "build an image with this initramfs, and `osctl rebase` to it";
const ACCOUNTS: &str =
    "system users go to users: of a drop-in in /etc/osctl/derive.d; their numbers are kept in the lock";
const REBASE: &str = "choose the image with `osctl rebase IMAGE`";
const REPOS: &str = "list the packages in packages: and the repository in repos:";
const DEFAULT_TARGET: &str = "write links: [{path: /etc/systemd/system/default.target, \
target: /usr/lib/systemd/system/NAME.target, overwrite: true}] in a drop-in in /etc/osctl/derive.d";
const COMMITS: &str = "ostree commits are not merged into images";
const LOCAL: &str = "files of packages are not kept with the declarations";
const NOT_THE_IMAGE: &str = "drop-ins do not choose the image";
const NO_SCRIPT: &str = "scripts of a treefile are not run on a host";
const DIGEST: &str = "choose the image with `osctl rebase IMAGE@DIGEST`";
const NO_INITRAMFS: &str = "the initramfs belongs to the image";
const NO_REMOVAL: &str = "files of the image are not removed one by one";
const PACKAGE_OR_UNIT: &str =
    "remove their package with override-remove:, or mask the unit in a drop-in in /etc/osctl/derive.d";
const PACKAGE_OR_IMAGE: &str =
    "remove the package with override-remove:, or build an image without the files";
const LOCKED: &str = "packages are locked by digest here, wherever they come from";
const REPO_OR_NONE: &str = "leave it out, or list the repository in repos:";
const VARIABLES: &str = "the image sets the variables of its repositories";
const URL: &str = "write the URL out in repos: of a drop-in in /etc/osctl/derive.d";
const UNITS: &str = "write units: [{name: NAME, enabled: true}] in a drop-in in /etc/osctl/derive.d";
const NO_MODULES: &str = "modules are not supported by this version";
const WITHOUT_MODULES: &str = "take the packages from a repository without modules";

/// All keys, in the order of the specification.
pub(super) const KEYS: &[(&str, Verdict)] = &[
    ("edition", Image),
    ("ref", Image),
    ("metadata", Instead("write it as a comment, nothing here reads it")),
    ("gpg-key", Image),
    ("gpg_key", Image),
    ("repos", Served),
    ("selinux", Image),
    ("ignore-devices", Image),
    ("ima", Image),
    ("boot-location", Image),
    ("boot_location", Image),
    ("etc-group-members", Instead(ACCOUNTS)),
    ("install-langs", Image),
    ("mutate-os-release", Image),
    ("documentation", Image),
    ("packages", Served),
    ("exclude-packages", Instead("remove packages of the image with override-remove:")),
    ("repo-packages", Instead(REPOS)),
    ("ostree-layers", Never(COMMITS, FILES)),
    ("ostree-override-layers", Never(COMMITS, FILES)),
    ("container-cmd", Image),
    ("bootstrap_packages", Instead("list them in packages:")),
    ("bootstrap-packages", Instead("list them in packages:")),
    ("recommends", Image),
    ("units", Instead(UNITS)),
    ("default-target", Instead(DEFAULT_TARGET)),
    ("default_target", Instead(DEFAULT_TARGET)),
    ("initramfs-args", Never(NO_INITRAMFS, INITRAMFS)),
    ("rpmdb", Image),
    ("rpmdb-normalize", Image),
    ("selinux-label-version", Image),
    ("cliwrap", Image),
    ("cliwrap-binaries", Image),
    ("readonly-executables", Image),
    ("remove-files", Never(NO_REMOVAL, PACKAGE_OR_UNIT)),
    ("remove-from-packages", Never(NO_REMOVAL, PACKAGE_OR_IMAGE)),
    ("preserve-passwd", Image),
    ("check-passwd", Image),
    ("check-groups", Image),
    ("ignore-removed-users", Image),
    ("ignore-removed-groups", Image),
    ("releasever", Never("the image says which release it is", "leave it out")),
    ("automatic-version-prefix", Image),
    ("automatic_version_prefix", Image),
    ("automatic-version-suffix", Image),
    ("add-commit-metadata", Image),
    ("postprocess-script", Never(NO_SCRIPT, SCRIPT)),
    ("postprocess", Never(NO_SCRIPT, SCRIPT)),
    ("include", Instead(INCLUDE)),
    ("arch-include", Instead(INCLUDE)),
    ("conditional-include", Instead(INCLUDE)),
    ("container", Image),
    ("add-files", Instead(FILES)),
    ("tmp-is-dir", Image),
    ("machineid-compat", Image),
    ("platform-module", Image),
    ("variables", Instead("write the values out")),
    ("repo_metadata", Image),
    ("repo-metadata", Image),
    ("lockfile-repos", Never(LOCKED, REPO_OR_NONE)),
    ("repovars", Never(VARIABLES, URL)),
    ("opt-usrlocal", Image),
    // Beyond the published text: what the reader of client treefiles knows.
    ("basearch", Never("the image says which architecture it is for", "leave it out")),
    ("rojig", Image),
    ("modules", Never(NO_MODULES, WITHOUT_MODULES)),
    ("override-remove", Served),
    ("override-replace", Served),
    ("ex-override-replace", Served),
    ("override-replace-local", Never(LOCAL, LOCAL_RPM)),
    ("packages-local", Never(LOCAL, LOCAL_RPM)),
    ("packages-local-fileoverride", Never(LOCAL, LOCAL_RPM)),
    ("initramfs", Never(NO_INITRAMFS, INITRAMFS)),
    ("base-refspec", Never(NOT_THE_IMAGE, REBASE)),
    ("container-image-reference", Never(NOT_THE_IMAGE, REBASE)),
    ("container-image-reference-digest", Never(NOT_THE_IMAGE, DIGEST)),
    ("override-commit", Never(NOT_THE_IMAGE, DIGEST)),
    ("custom", Never(NOT_THE_IMAGE, REBASE)),
    ("unconfigured-state", Never("belongs to the origin of a deployment", "remove it")),
];

/// The keys that are served.
pub(super) fn served() -> Vec<&'static str> {
    KEYS.iter().filter(|(_, verdict)| *verdict == Served).map(|(key, _)| *key).collect()
}

/// What is said about a key that is not served; `None` if nobody knows it.
pub(super) fn refusal(place: &Cursor<'_>, key: &str) -> Option<Error> {
    let error = |kind, why: &str, hint: &str| Some(place.error_of(kind, why).hint(hint.to_owned()));
    if let Some(arch) = key.strip_prefix("packages-").filter(|_| !KEYS.iter().any(|(k, _)| *k == key)) {
        let arch = crate::model::dropin::cursor::printable(arch);
        let why = format!("packages for {arch} alone are not supported by this version");
        let hint = "list them in packages:, in a treefile that only hosts of that architecture have";
        return error(ErrorKind::Unsupported, &why, hint);
    }
    let Some((_, verdict)) = KEYS.iter().find(|(known, _)| *known == key) else {
        let ours = decode::KNOWN.contains(&key);
        let hint = "write it in a drop-in in /etc/osctl/derive.d";
        return ours
            .then(|| error(ErrorKind::UnsupportedStanza, "is not a key of treefiles", hint))
            .flatten();
    };
    match *verdict {
        Served => None,
        Image => {
            let hint = "put it into the treefile that the image is composed of";
            error(
                ErrorKind::UnsupportedStanza,
                "says how an image is composed, and does nothing on a host",
                hint,
            )
        }
        Instead(hint) => error(ErrorKind::UnsupportedStanza, "is not applied to a host", hint),
        Never(why, hint) => error(ErrorKind::Unsupported, why, hint),
    }
}
