//! Enabling and disabling units in a tree, as `systemctl enable` would after boot.
//!
//! Links go to `/usr/etc/systemd/system`, computed from the `[Install]` section of the unit that the finished tree
//! holds. The link's target is the file that was found. `Also=` is not followed: another unit is another
//! entry of the drop-in. Disabling removes links below `/etc`; presets are not written, because they are read
//! at a machine's first boot only. What `/usr/lib/systemd/system/*.wants` starts can only be masked.

use super::apply::{Builder, InstallLinks, refuse};
use super::mtree::{self, Entry};
use super::provenance::UnitRecord;
use crate::model::manifest::Unit;
use crate::model::{Context, ErrorKind, Result};

/// Where units are looked for, in systemd's order (systemd.unit(5)).
const UNIT_DIRS: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];
const ETC_UNITS: &str = "/usr/etc/systemd/system";
const LIB_UNITS: &str = "/usr/lib/systemd/system";

/// A unit file of the tree.
struct Found {
    /// As the booted system shows it.
    path: String,
    text: String,
}

/// Enables or disables one unit and says which links that took.
pub(super) fn apply(
    builder: &mut Builder<'_>,
    name: &str,
    unit: &Unit,
    install_links: InstallLinks,
) -> Result<UnitRecord> {
    let links = match unit.enabled {
        None => Vec::new(),
        Some(true) => enable(builder, name, &unit.owner, install_links)?,
        Some(false) => disable(builder, name, &unit.owner)?,
    };
    Ok(UnitRecord { drop_in: unit.owner.clone(), enabled: unit.enabled, mask: unit.mask, links })
}

fn enable(
    builder: &mut Builder<'_>,
    name: &str,
    owner: &str,
    install_links: InstallLinks,
) -> Result<Vec<String>> {
    let found = find(builder, name, owner)?;
    let wanted = install_links(name, &found.text).map_err(|e| {
        let mut error = refuse_unit(owner, name, "cannot be enabled");
        error.hint = e.hint.clone();
        error.source(e)
    })?;
    if wanted.is_empty() {
        return Err(refuse_unit(owner, name, "has nothing to enable: its [Install] section names no unit")
            .hint("add [Install] with WantedBy= to the unit, or leave enabled: out"));
    }
    let file = found.path.rsplit('/').next().unwrap_or_default();
    let mut links = Vec::new();
    for (path, target) in wanted {
        let path = if path.starts_with('/') { path } else { format!("/etc/systemd/system/{path}") };
        // Only we know in which directory the unit was found.
        let target = if base_name(&target) == file { found.path.clone() } else { target };
        let place = builder.tree.resolve(&path, false)?;
        if place.blocked_by.is_some() || !place.real.starts_with("/usr/etc/") {
            return Err(refuse_unit(
                owner,
                name,
                format!("cannot be enabled: {path} cannot be placed in /etc"),
            )
            .hint("look at what the base has at that path"));
        }
        match builder.tree.at(&place.real)? {
            None => builder.tree.put_link(&place.real, &target)?,
            // systemd looks at the name of the link, and at nothing but the last part of its target.
            Some(Entry::Link { target: has }) if base_name(&has) == base_name(&target) => {}
            Some(Entry::Link { target: has }) => {
                return Err(refuse_unit(
                    owner,
                    name,
                    format!("cannot be enabled: {path} is a link to {has}"),
                )
                .hint("disable the other unit first, or declare the link with overwrite: true"));
            }
            Some(Entry::File { .. } | Entry::Directory(_)) => {
                return Err(refuse_unit(owner, name, format!("cannot be enabled: {path} is not a link"))
                    .hint("look at what the base has at that path"));
            }
        }
        links.push(mtree::as_booted(&place.real));
    }
    links.sort();
    Ok(links)
}

fn disable(builder: &mut Builder<'_>, name: &str, owner: &str) -> Result<Vec<String>> {
    find(builder, name, owner)?;
    if let Some(by) = requests(builder, LIB_UNITS, name)?.first() {
        return Err(refuse_unit(owner, name, format!("cannot be disabled: {by} of the base starts it"))
            .hint("use mask: true instead of enabled: false"));
    }
    let mut links = requests(builder, ETC_UNITS, name)?;
    links.extend(aliases(builder, name)?);
    links.sort();
    for link in &links {
        if let Some(other) = builder.owner_of(link) {
            return Err(refuse_unit(
                owner,
                name,
                format!("cannot be disabled: {other} declares {}", mtree::as_booted(link)),
            )
            .hint("decide in one of the two drop-ins"));
        }
        builder.tree.remove(link)?;
    }
    Ok(links.iter().map(|l| mtree::as_booted(l)).collect())
}

/// The real paths of the links in `*.wants`, `*.requires` and `*.upholds` that start a unit.
fn requests(builder: &Builder<'_>, dir: &str, name: &str) -> Result<Vec<String>> {
    let Some(units) = builder.tree.directory(dir)? else { return Ok(Vec::new()) };
    let mut links = Vec::new();
    for (sub, tree) in units.copy_subdirs() {
        if ![".wants", ".requires", ".upholds"].iter().any(|suffix| sub.ends_with(suffix)) {
            continue;
        }
        let entries = tree.copy_files();
        links.extend(entries.keys().filter(|e| is_of(name, e)).map(|e| format!("{dir}/{sub}/{e}")));
    }
    links.sort();
    Ok(links)
}

/// The real paths of the aliases of a unit in `/etc`.
fn aliases(builder: &Builder<'_>, name: &str) -> Result<Vec<String>> {
    let Some(units) = builder.tree.directory(ETC_UNITS)? else { return Ok(Vec::new()) };
    let mut links = Vec::new();
    for entry in units.copy_files().into_keys().filter(|e| e != name) {
        let path = format!("{ETC_UNITS}/{entry}");
        if matches!(builder.tree.at(&path)?, Some(Entry::Link { target }) if base_name(&target) == name) {
            links.push(path);
        }
    }
    Ok(links)
}

/// Whether a link's name is this unit, or an instance of this template.
fn is_of(name: &str, link: &str) -> bool {
    link == name
        || name.split_once("@.").is_some_and(|(prefix, suffix)| {
            link.strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('@'))
                .and_then(|rest| rest.strip_suffix(suffix))
                .is_some_and(|instance| instance.ends_with('.'))
        })
}

fn find(builder: &Builder<'_>, name: &str, owner: &str) -> Result<Found> {
    // systemd takes the instance's own file from any directory before the template from any.
    for file in std::iter::once(name.to_owned()).chain(template(name)) {
        for dir in UNIT_DIRS {
            let path = format!("{dir}/{file}");
            let Some(entry) = builder.tree.at(&builder.tree.resolve(&path, false)?.real)? else { continue };
            if matches!(&entry, Entry::Link { target } if target == "/dev/null") {
                return Err(refuse_unit(owner, name, format!("is masked: {path} is a link to /dev/null"))
                    .hint("leave enabled: out, or replace the mask by a unit file with overwrite: true"));
            }
            let real = builder.tree.resolve(&path, true)?.real;
            let Some(Entry::File { checksum, .. }) = builder.tree.at(&real)? else {
                return Err(refuse_unit(owner, name, format!("cannot be read: {path} is not a file"))
                    .hint("look at what the base has at that path"));
            };
            let text = String::from_utf8(builder.tree.content(&checksum)?)
                .kind(ErrorKind::InvalidDropIn, format!("{owner}: unit {name}: {path} is not UTF-8"))?;
            return Ok(Found { path, text });
        }
    }
    Err(refuse_unit(owner, name, "does not exist: neither the base nor a drop-in has it")
        .hint("add contents: to the unit, or check its name"))
}

/// `foo@.service` of `foo@bar.service`.
fn template(name: &str) -> Option<String> {
    let (prefix, rest) = name.split_once('@')?;
    let (instance, suffix) = rest.rsplit_once('.')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{suffix}"))
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn refuse_unit(owner: &str, name: &str, what: impl std::fmt::Display) -> crate::model::Error {
    refuse(owner, &format!("unit {name}"), what).detail("unit", name)
}
