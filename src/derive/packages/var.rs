//! What packages put into `/var`: it belongs to the host, so directories and links become tmpfiles.d(5) lines, and files are
//! refused.

use super::detect::Target;
use super::room::{Inside, walk};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::sandbox::Who;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file that makes them at boot.
pub const CONF: &str = "/usr/lib/tmpfiles.d/osctl-packages.conf";

/// Where the sandbox has `/opt`.
pub(super) const OPT: &str = "usr/lib/opt";

/// What every host has (hier(7)); where `/home` and its like lead on an image-based one.
const SKELETON: [&str; 14] = [
    "backups", "cache", "home", "lib", "local", "log", "mail", "mnt", "opt", "roothome", "spool", "srv",
    "tmp", "usrlocal",
];
/// State of installing, which nothing at run time reads, and which would differ between hosts.
const DROPPED: [&str; 18] = [
    "cache/apt/",
    "cache/debconf/",
    "cache/dnf/",
    "cache/ldconfig/",
    "cache/libdnf5/",
    "lib/alternatives/",
    "lib/apt/",
    "lib/dpkg/",
    "lib/dbus/machine-id",
    "lib/dnf/",
    "lib/python/",
    "lib/rpm-state/",
    "lib/rpm/",
    "lib/shells.state",
    "lib/systemd/deb-systemd-",
    "lib/ucf/",
    "log/apt/",
    "tmp/",
];
/// Where files can be thrown away at any time (hier(7)).
const FILES_DROPPED: [&str; 2] = ["cache/", "log/"];
/// More lines than a person reads.
const SHOWN: usize = 20;

/// What was there before packages were installed.
#[derive(Debug)]
pub(super) struct Before {
    var: BTreeSet<PathBuf>,
    opt: BTreeSet<String>,
}

/// Makes the `/var` that a host would have with this image, and returns what is in it.
pub(super) fn prepare(inside: &Inside, target: &Target) -> Result<Before> {
    inside.make_var(&SKELETON, None)?;
    inside.tree()?.create_dir_all(OPT).doing("making /usr/lib/opt")?;
    let sandbox = inside.sandbox(Who::Installer)?;
    if inside.tree()?.exists("usr/bin/systemd-tmpfiles") {
        // As at boot. What cannot be made here cannot be missed either.
        let made = inside.run(
            &sandbox,
            "systemd-tmpfiles",
            ["--create", "--prefix=/var"],
            Duration::from_secs(60),
        )?;
        tracing::debug!(
            success = made.success,
            said = made.stderr,
            database = target.database,
            "systemd-tmpfiles"
        );
    }
    Ok(Before { var: listed(inside.var())?, opt: opt(inside)? })
}

fn listed(var: &Path) -> Result<BTreeSet<PathBuf>> {
    let all = walk(var).doing("listing what packages put into /var")?;
    Ok(all.into_iter().filter_map(|path| path.strip_prefix(var).map(Path::to_owned).ok()).collect())
}

/// The lines for what was added. `/opt` is no state: its content is in `/usr/lib/opt`, with a link to it.
pub(super) fn tmpfiles(inside: &Inside, before: &Before) -> Result<Option<String>> {
    let var = inside.var();
    let link = |name: &String| {
        format!("L {} - - - - ../../{OPT}/{}", quoted(&format!("opt/{name}")), name.replace('%', "%%"))
    };
    let mut lines: Vec<String> = opt(inside)?.difference(&before.opt).map(link).collect();
    let mut refused = Vec::new();
    for path in listed(var)?.difference(&before.var) {
        let text = path.to_str().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("a package makes /var/{}: it is not UTF-8", path.display()),
            )
        })?;
        let is_below = |prefix: &&str| text.starts_with(*prefix) || format!("{text}/") == **prefix;
        if DROPPED.iter().any(is_below) {
            continue;
        }
        let full = var.join(path);
        let stat = std::fs::symlink_metadata(&full).doing_with(|| format!("looking at /var/{text}"))?;
        let kind = stat.file_type();
        if kind.is_dir() {
            let mode = stat.mode() & 0o7777;
            lines.push(format!("d {} {mode:04o} {} {} -", quoted(text), stat.uid(), stat.gid()));
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&full).doing_with(|| format!("looking at /var/{text}"))?;
            let target = String::from_utf8_lossy(target.as_os_str().as_bytes()).replace('%', "%%");
            lines.push(format!("L {} - - - - {target}", quoted(text)));
        } else if !kind.is_file() || !FILES_DROPPED.iter().any(is_below) {
            refused.push(format!("/var/{text}"));
        }
    }
    if !refused.is_empty() {
        let more = refused.len().saturating_sub(SHOWN);
        let mut list = refused
            .iter()
            .take(SHOWN)
            .map(|p| crate::model::text::one_line(p))
            .collect::<Vec<_>>()
            .join(", ");
        if more > 0 {
            list.push_str(&format!(" and {more} more"));
        }
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("packages put files into /var, which belongs to the host and not to the image: {list}; nothing was staged"),
        )
        .detail("paths", refused.join("\n"))
        .hint("leave the package out, or put it into the image and what it needs into /usr"));
    }
    lines.sort();
    lines.dedup();
    let header = "# Made by osctl of what the packages of its drop-ins put into /var.\n";
    Ok((!lines.is_empty()).then(|| format!("{header}{}\n", lines.join("\n"))))
}

/// What of `/opt` is in the tree.
fn opt(inside: &Inside) -> Result<BTreeSet<String>> {
    let doing = "listing /opt";
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(inside.real(OPT)?).doing(doing)? {
        let name = entry.doing(doing)?.file_name();
        names.insert(name.into_string().map_err(|name| {
            let shown = crate::model::text::one_line(&name.to_string_lossy());
            Error::new(ErrorKind::Unsupported, format!("/opt/{shown} has a name that is not UTF-8"))
        })?);
    }
    Ok(names)
}

/// A path of `/var` as a field of tmpfiles.d(5).
fn quoted(path: &str) -> String {
    let escaped = path.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    match escaped.contains(char::is_whitespace) || escaped.contains(['"', '\\', '\'']) {
        true => format!("\"/var/{escaped}\""),
        false => format!("/var/{escaped}"),
    }
}
