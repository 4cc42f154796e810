//! Which images a tree and the administrator ask for.
//!
//! ```text
//! in the tree   /usr/lib/osctl/bound-images.d/   links to quadlet files, *.toml
//!               /usr/lib/bootc/bound-images.d/   links to quadlet files
//! on the host   /etc/osctl/bound-images.d/       both; the same name replaces, a link to /dev/null masks
//! ```

use super::quadlets::{Asked, Quadlets};
use super::tree::{MAX_SIZE, Merged, NULL, Tree, base_name, child, follow, read, too_large, utf8};
use crate::model::bound::{BoundSpec, check_pins, refused};
use crate::model::quadlet::Type;
use crate::model::{Context, Result};
use crate::store::tree::{CommitTree, Kind};
use cap_std_ext::cap_std::fs::{Dir, MetadataExt};
use std::collections::BTreeMap;

/// Where the tree says what is bound.
pub(super) const VENDOR: [&str; 2] = [OSCTL, BOOTC];
const OSCTL: &str = "/usr/lib/osctl/bound-images.d";
const BOOTC: &str = "/usr/lib/bootc/bound-images.d";
/// Where the administrator says so.
pub(super) const ADMIN: &str = "/etc/osctl/bound-images.d";

/// What the administrator put under one name.
#[derive(Debug, PartialEq, Eq)]
enum Own {
    Masked,
    Toml(Box<BoundSpec>),
    /// A link to a quadlet file, which has to be looked for in the tree.
    Link,
}

/// Returns the images that the tree and the host's configuration ask for, sorted by reference.
///
/// Quadlet files are those that podman will find after the boot: where `config_root` is a deployment, what its
/// administrator changed in `/etc` counts. Nothing of the tree is executed. Fails with an error that names the file (and
/// line) of the first mistake.
pub fn discover(tree: &CommitTree, config_root: &Dir) -> Result<Vec<BoundSpec>> {
    let tree = Merged::new(tree, config_root);
    let admin = read_admin(config_root)?;
    let quadlets = Quadlets::installed(&tree)?;
    let mut specs = Vec::new();
    for dir in VENDOR {
        for name in tree.names(dir)? {
            // Replaced or masked by name: what the vendor wrote there does not even have to be right.
            if !admin.contains_key(&name) {
                specs.extend(asked(&quadlets, dir, &name)?);
            }
        }
    }
    for (name, own) in admin {
        match own {
            Own::Masked => {}
            Own::Toml(spec) => specs.push(*spec),
            Own::Link => specs.extend(asked(&quadlets, ADMIN, &name)?),
        }
    }
    sort(&mut specs);
    check_pins(specs.iter())?;
    Ok(specs)
}

/// What the administrator's TOML files ask for, whatever the tree does. Sorted by reference.
pub fn declared(config_root: &Dir) -> Result<Vec<BoundSpec>> {
    let own = read_admin(config_root)?.into_values();
    let mut specs: Vec<BoundSpec> = own
        .filter_map(|own| match own {
            Own::Toml(spec) => Some(*spec),
            Own::Masked | Own::Link => None,
        })
        .collect();
    sort(&mut specs);
    check_pins(specs.iter())?;
    Ok(specs)
}

fn asked(quadlets: &Quadlets, dir: &str, name: &str) -> Result<Vec<BoundSpec>> {
    let asked = entry(quadlets, dir, name)?;
    for warning in &asked.warnings {
        tracing::debug!(warning = warning.chain(), "reading {}", child(dir, name));
    }
    Ok(asked.specs)
}

fn sort(specs: &mut [BoundSpec]) {
    specs.sort_by(|a, b| (&a.reference.name, &a.source).cmp(&(&b.reference.name, &b.source)));
}

/// What one entry of a `bound-images.d` asks for. Fails with an error that names the file.
pub(super) fn entry(quadlets: &Quadlets, dir: &str, name: &str) -> Result<Asked> {
    let (tree, path) = (quadlets.tree, child(dir, name));
    if name.ends_with(".toml") && dir != BOOTC {
        let file = follow(tree, &path)?.into_iter().next_back().unwrap_or_default();
        let spec = BoundSpec::from_toml(&read(tree, &file, &path)?, &path)?;
        return Ok(Asked { specs: vec![spec], ..Asked::default() });
    }
    let kind = Type::of_name(name).map_err(|why| match name.ends_with(".toml") {
        true => refused(&path, None, why).hint(format!("bootc knows no TOML files: put it into {OSCTL}")),
        false => refused(&path, None, why),
    })?;
    if tree.entry(&path)?.is_none_or(|e| e.kind != Kind::Link) {
        return Err(refused(&path, None, "is not a link")
            .hint("put the quadlet file into /usr/share/containers/systemd and link to it"));
    }
    let unit = quadlets.linked(&path)?;
    if Type::of_name(base_name(&unit)) != Ok(kind) {
        return Err(refused(&path, None, format!("links to {unit}, which is a file of another type")));
    }
    quadlets.images(&unit, kind, &path)
}

/// The administrator's files by name.
fn read_admin(config_root: &Dir) -> Result<BTreeMap<String, Own>> {
    let mut found = BTreeMap::new();
    let dir = match config_root.open_dir(ADMIN.trim_start_matches('/')) {
        Ok(dir) => dir,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(refused(ADMIN, None, "is not a directory"));
        }
        Err(e) => return Err(e).doing(format!("opening {ADMIN}")),
    };
    for entry in dir.entries().doing_with(|| format!("listing {ADMIN}"))? {
        let name = entry.doing_with(|| format!("listing {ADMIN}"))?.file_name();
        let path = child(ADMIN, &name.to_string_lossy());
        let Some(name) = name.to_str().map(str::to_owned) else {
            return Err(refused(&path, None, "the file name is not UTF-8"));
        };
        let doing = || format!("reading {path}");
        let link = match dir.symlink_metadata(&name).doing_with(doing)?.is_symlink() {
            true => Some(dir.read_link_contents(&name).doing_with(doing)?),
            false => None,
        };
        if link.as_ref().is_some_and(|target| target.as_os_str() == NULL) {
            found.insert(name, Own::Masked);
            continue;
        }
        if !name.ends_with(".toml") {
            Type::of_name(&name)
                .map_err(|_| refused(&path, None, "does not end in .toml, .container, .image or .kube"))?;
            if link.is_none() {
                return Err(refused(&path, None, "is not a link")
                    .hint("put the quadlet file into /etc/containers/systemd and link to it"));
            }
            found.insert(name, Own::Link);
            continue;
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
        found.insert(name, Own::Toml(Box::new(BoundSpec::from_toml(&text, &path)?)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
