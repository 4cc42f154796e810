//! Which images a tree and the administrator ask for.
//!
//! ```text
//! in the tree   /usr/lib/osctl/bound-images.d/   links to quadlet files, *.toml
//!               /usr/lib/bootc/bound-images.d/   links to quadlet files
//! on the host   /etc/osctl/bound-images.d/       *.toml; the same name replaces, a link to /dev/null masks
//! ```

use crate::model::bound::{BoundSpec, check_pins, refused};
use crate::model::quadlet::{Type, Unit, Wants};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind};
use cap_std_ext::cap_std::fs::{Dir, MetadataExt};
use std::collections::BTreeMap;

pub(super) const OSCTL: &str = "/usr/lib/osctl/bound-images.d";
pub(super) const BOOTC: &str = "/usr/lib/bootc/bound-images.d";
pub(super) const ADMIN: &str = "etc/osctl/bound-images.d";
/// Where podman's generator looks in an image, first match wins (podman-systemd.unit(5)); /run is not of the tree.
const QUADLETS: [&str; 2] = ["/etc/containers/systemd", "/usr/share/containers/systemd"];
/// Larger than any real unit file; keeps a hostile tree from filling our memory.
pub(super) const MAX_SIZE: u64 = 1 << 20;
/// As many links as the kernel follows (ELOOP, path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Returns the images that the tree and the host's configuration ask for, sorted by reference.
///
/// Nothing of the tree is executed. Fails with an error that names the file (and line) of the first mistake.
pub fn discover(tree: &CommitTree, config_root: &Dir) -> Result<Vec<BoundSpec>> {
    let admin = read_admin(config_root)?;
    let mut specs = Vec::new();
    for dir in [OSCTL, BOOTC] {
        for name in tree.list(dir).map_err(|e| tree_error(dir, e))? {
            // Replaced or masked by name: what the vendor wrote there does not even have to be right.
            if !admin.contains_key(&name) {
                specs.push(vendor_entry(tree, dir, &name)?);
            }
        }
    }
    specs.extend(admin.into_values().flatten());
    specs.sort_by(|a, b| (&a.reference.name, &a.source).cmp(&(&b.reference.name, &b.source)));
    check_pins(specs.iter())?;
    Ok(specs)
}

/// What the administrator asks for, whatever the tree does. Sorted by reference.
pub fn declared(config_root: &Dir) -> Result<Vec<BoundSpec>> {
    let mut specs: Vec<BoundSpec> = read_admin(config_root)?.into_values().flatten().collect();
    specs.sort_by(|a, b| (&a.reference.name, &a.source).cmp(&(&b.reference.name, &b.source)));
    check_pins(specs.iter())?;
    Ok(specs)
}

/// The administrator's files by name; `None` is a mask.
fn read_admin(config_root: &Dir) -> Result<BTreeMap<String, Option<BoundSpec>>> {
    let mut found = BTreeMap::new();
    let shown = format!("/{ADMIN}");
    let dir = match config_root.open_dir(ADMIN) {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(refused(&shown, None, "is not a directory"));
        }
        Err(e) => return Err(e).doing(format!("opening {shown}")),
    };
    for entry in dir.entries().doing_with(|| format!("listing {shown}"))? {
        let name = entry.doing_with(|| format!("listing {shown}"))?.file_name();
        let path = format!("{shown}/{}", name.to_string_lossy());
        let Some(name) = name.to_str().map(str::to_owned) else {
            return Err(refused(&path, None, "the file name is not UTF-8"));
        };
        let doing = || format!("reading {path}");
        if dir.symlink_metadata(&name).doing_with(doing)?.is_symlink()
            && dir.read_link_contents(&name).doing_with(doing)?.as_os_str() == "/dev/null"
        {
            found.insert(name, None);
            continue;
        }
        if !name.ends_with(".toml") {
            return Err(refused(&path, None, "does not end in .toml").hint(
                "quadlet files are bound by links in the image; name the image itself in a .toml file",
            ));
        }
        let meta = match dir.metadata(&name) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(refused(&path, None, "is a link to a file that does not exist"));
            }
            Err(e) => return Err(refused(&path, None, "cannot be read").source(e)),
        };
        if !meta.is_file() {
            return Err(refused(&path, None, "is not a regular file"));
        }
        // Who can write this file decides what root pulls and podman runs.
        if !crate::sys::fs::only_root_writes(meta.uid(), meta.mode()) {
            return Err(refused(&path, None, "can be written by others than root")
                .hint(format!("chown root:root {path}; chmod go-w {path}")));
        }
        if meta.len() > MAX_SIZE {
            return Err(too_large(&path));
        }
        let text = utf8(dir.read(&name).doing_with(doing)?, &path)?;
        found.insert(name, Some(BoundSpec::from_toml(&text, &path)?));
    }
    Ok(found)
}

fn vendor_entry(tree: &CommitTree, dir: &str, name: &str) -> Result<BoundSpec> {
    let path = format!("{dir}/{name}");
    if name.ends_with(".toml") && dir == OSCTL {
        let target = follow(tree, &path)?;
        return BoundSpec::from_toml(&read(tree, &target, &path)?, &path);
    }
    let kind = Type::of_name(name).map_err(|why| refused(&path, None, why))?;
    if tree.kind(&path).map_err(|e| tree_error(&path, e))? != Some(Kind::Link) {
        return Err(refused(&path, None, "is not a link")
            .hint("put the quadlet file into /usr/share/containers/systemd and link to it"));
    }
    let target = preferred(tree, follow(tree, &path)?)?;
    if Type::of_name(base_name(&target)) != Ok(kind) {
        return Err(refused(&path, None, format!("links to {target}, which is a file of another type")));
    }
    match unit(tree, &target, &path)?.wants(kind, &path)? {
        Wants::Image(spec) => Ok(spec),
        Wants::File(image, line) => {
            let Some(found) = search(tree, &image)? else {
                return Err(refused(
                    &target,
                    Some(line),
                    format!("Image={image}: there is no {image} in {}", QUADLETS.join(" or ")),
                )
                .detail("link", &path));
            };
            match unit(tree, &follow(tree, &found)?, &found)?.wants(Type::Image, &path)? {
                Wants::Image(spec) => Ok(spec),
                Wants::File(..) => Err(refused(&found, None, "names another file instead of an image")),
            }
        }
    }
}

/// The file that podman would use for this one: a file of the same name in /etc hides the one in /usr.
fn preferred(tree: &CommitTree, target: String) -> Result<String> {
    let visible = target.strip_prefix("/usr/etc/").map(|rest| format!("/etc/{rest}"));
    let visible = visible.as_deref().unwrap_or(&target);
    let in_search_path = QUADLETS.iter().any(|d| visible.strip_prefix(d).is_some_and(|r| r.starts_with('/')));
    match search(tree, base_name(&target))? {
        Some(found) if in_search_path => follow(tree, &found),
        _ => Ok(target),
    }
}

/// Finds a quadlet file by name as podman does: the directories in order, each with its subdirectories.
fn search(tree: &CommitTree, name: &str) -> Result<Option<String>> {
    fn below(tree: &CommitTree, dir: &str, name: &str, depth: u32) -> Result<Option<String>> {
        let here = format!("{dir}/{name}");
        if tree.kind(&here)?.is_some_and(|k| k != Kind::Directory) {
            return Ok(Some(here));
        }
        for entry in tree.list(dir)? {
            let sub = format!("{dir}/{entry}");
            // `users` holds the units of rootless users; x.container.d holds drop-ins.
            if depth < 8
                && entry != "users"
                && !entry.ends_with(".d")
                && tree.kind(&sub)? == Some(Kind::Directory)
                && let Some(found) = below(tree, &sub, name, depth + 1)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
    for dir in QUADLETS {
        if let Some(found) = below(tree, dir, name, 0)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Reads a unit with its drop-in directories `NAME.d/*.conf`; of two drop-ins with one name /etc wins.
fn unit(tree: &CommitTree, target: &str, link: &str) -> Result<Unit> {
    let mut unit = Unit::parse(&read(tree, target, link)?, target)?;
    let mut drop_ins = BTreeMap::new();
    for dir in QUADLETS.iter().rev().map(|d| format!("{d}/{}.d", base_name(target))) {
        for name in tree.list(&dir)?.into_iter().filter(|n| n.ends_with(".conf")) {
            let path = format!("{dir}/{name}");
            drop_ins.insert(name, path);
        }
    }
    for path in drop_ins.into_values() {
        unit.merge(&read(tree, &follow(tree, &path)?, &path)?, &path)?;
    }
    Ok(unit)
}

/// Follows links to a regular file, refusing those that leave the tree. The result has no links in it.
fn follow(tree: &CommitTree, path: &str) -> Result<String> {
    let mut here = path.to_owned();
    for _ in 0..=MAX_LINKS {
        let Some(info) = tree.lookup(&here).map_err(|e| tree_error(path, e))? else {
            return Err(refused(path, None, format!("links to {here}, which does not exist in the image"))
                .detail("target", &here));
        };
        match crate::store::tree::kind_of(&info) {
            Kind::File => {
                let real = tree.resolve(&here, false).map_err(|e| tree_error(path, e))?;
                return Ok(real.unwrap_or(here));
            }
            Kind::Directory => return Err(refused(path, None, format!("{here} is a directory, not a file"))),
            Kind::Link => {}
        }
        let target = info.symlink_target().unwrap_or_default();
        let Some(target) = target.to_str() else {
            return Err(refused(path, None, "links to a name that is not UTF-8"));
        };
        // Relative to where the link really is: a directory on the way to it may be a link itself.
        let real = tree.resolve(&here, false).map_err(|e| tree_error(path, e))?.unwrap_or(here);
        let booted = real.strip_prefix("/usr/etc/").map(|rest| format!("/etc/{rest}")).unwrap_or(real);
        here = join(&booted, target)
            .ok_or_else(|| refused(path, None, format!("links to {target}, which leaves the tree")))?;
    }
    Err(refused(path, None, "is part of a loop of links"))
}

/// The target of a link in text; `None` if it climbs over the root.
fn join(link: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => link.split('/').filter(|p| !p.is_empty()).collect(),
    };
    parts.pop();
    for part in target.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match part {
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

fn read(tree: &CommitTree, target: &str, shown: &str) -> Result<String> {
    // Asked for one byte more than allowed would be simpler, but the tree refuses by size before it reads.
    let info = tree.lookup(target)?;
    if info.is_some_and(|i| u64::try_from(i.size()).unwrap_or(u64::MAX) > MAX_SIZE) {
        return Err(too_large(shown));
    }
    let bytes = tree.read(target, MAX_SIZE).map_err(|e| tree_error(shown, e))?;
    utf8(bytes.ok_or_else(|| refused(shown, None, "does not exist in the image"))?, shown)
}

pub(super) fn utf8(bytes: Vec<u8>, shown: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let valid = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
        refused(shown, Some(line), "is not UTF-8")
    })
}

pub(super) fn too_large(shown: &str) -> Error {
    refused(shown, None, "is larger than 1 MiB")
}

/// What the tree refuses as an argument is a mistake in the file that led there.
fn tree_error(shown: &str, error: Error) -> Error {
    match error.kind {
        ErrorKind::InvalidArgument if error.to_string().contains("too many levels") => {
            refused(shown, None, "is part of a loop of links")
        }
        ErrorKind::InvalidArgument => refused(shown, None, error.to_string()),
        _ => error,
    }
}

pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
