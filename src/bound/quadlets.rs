//! Which images a quadlet file needs, with everything that it refers to.

use super::tree::{NULL, Tree, base_name, child, follow, is_masked, join, parent, read, resolved};
use crate::model::bound::{BoundSpec, refused};
use crate::model::quadlet::{Kubernetes, Pointer, Type, Unit, Want, WorkingDirectory, drop_in_dirs};
use crate::model::{Error, Result};
use crate::store::tree::Kind;
use std::collections::{BTreeMap, HashSet};

/// Where podman's generator looks, first match wins (podman-systemd.unit(5)); /run is not of the tree.
pub(super) const PODMAN: [&str; 2] = ["/etc/containers/systemd", "/usr/share/containers/systemd"];
/// Units of rootless users; the generator for the system does not look there.
const USERS: &str = "/etc/containers/systemd/users";
/// A container has a volume, which has an image: longer chains do not exist.
const MAX_CHAIN: usize = 4;

/// Quadlet files in a tree, found by name.
pub(super) struct Quadlets<'t> {
    pub tree: &'t dyn Tree,
    /// Where files are looked for, in this order, links resolved.
    dirs: Vec<String>,
    /// How that is called in messages.
    place: String,
    /// Whether files lie anywhere, as in a source tree: then the nearest one of a name counts.
    loose: bool,
}

/// What a file asks for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub specs: Vec<BoundSpec>,
    pub warnings: Vec<Error>,
    /// Kubernetes YAML files that were read, with their images.
    pub yaml: BTreeMap<String, Vec<String>>,
}

impl<'t> Quadlets<'t> {
    /// Those that podman would find in a booted tree.
    pub fn installed(tree: &'t dyn Tree) -> Result<Quadlets<'t>> {
        let mut quadlets = Quadlets { tree, dirs: Vec::new(), place: PODMAN.join(" or "), loose: false };
        let users = resolved(tree, USERS)?.unwrap_or_else(|| USERS.to_owned());
        for (dir, skip) in PODMAN.into_iter().zip([Some(users), None]) {
            quadlets.add(dir, skip.as_deref(), &mut HashSet::new())?;
        }
        Ok(quadlets)
    }

    /// Those in these directories of a source tree.
    pub fn loose(tree: &'t dyn Tree, dirs: Vec<String>, place: &str) -> Quadlets<'t> {
        Quadlets { tree, dirs, place: place.to_owned(), loose: true }
    }

    /// Adds a directory and those below it, in podman's order.
    fn add(&mut self, dir: &str, skip: Option<&str>, seen: &mut HashSet<String>) -> Result<()> {
        let Some(real) = resolved(self.tree, dir)? else { return Ok(()) };
        let skipped = real.ends_with(".d") || skip.is_some_and(|s| real.starts_with(s));
        if skipped
            || self.tree.entry(&real)?.map(|e| e.kind) != Some(Kind::Directory)
            || !seen.insert(real.clone())
        {
            return Ok(());
        }
        self.dirs.push(real.clone());
        for name in self.tree.names(&real)? {
            self.add(&child(&real, &name), skip, seen)?;
        }
        Ok(())
    }

    /// Whether a directory is one of those.
    pub fn has(&self, dir: &str) -> bool {
        self.dirs.iter().any(|d| d == dir)
    }

    /// Finds a file by name, for one in the directory `from`.
    pub fn search(&self, name: &str, from: &str) -> Result<Option<String>> {
        if name.contains('/') {
            return Ok(None);
        }
        let mut found = Vec::new();
        for dir in &self.dirs {
            let path = child(dir, name);
            if self.tree.entry(&path)?.is_some_and(|e| e.kind != Kind::Directory) {
                if !self.loose {
                    return Ok(Some(path));
                }
                found.push(path);
            }
        }
        // The first of those with the longest way in common.
        Ok(found.into_iter().rev().max_by_key(|path| common(parent(path), from)))
    }

    /// The unit that a link asks for: as podman finds it, which may be another file of the same name.
    ///
    /// Fails with an error that names the link.
    pub fn linked(&self, link: &str) -> Result<String> {
        let hops = match follow(self.tree, link) {
            // In a source tree a link may lead to where the file will be installed.
            Err(error) if self.loose => {
                let target = error.details.get("target").map(|t| base_name(t).to_owned());
                return match target {
                    Some(name) => self.search(&name, parent(link))?.ok_or(error),
                    None => Err(error),
                };
            }
            hops => hops?,
        };
        // An instance is a link to its template, and has the name and the drop-ins of the link.
        let named = hops.iter().skip(1).find(|hop| self.has(parent(hop)));
        match named.filter(|_| !self.loose) {
            Some(unit) => Ok(self.search(base_name(unit), "/")?.unwrap_or_else(|| unit.clone())),
            None => Ok(hops.into_iter().next_back().unwrap_or_default()),
        }
    }

    /// The images of a unit, and of all that it refers to. `source` is the file that asks: the link.
    pub fn images(&self, path: &str, kind: Type, source: &str) -> Result<Asked> {
        let mut asked = Asked::default();
        self.gather(path, kind, source, 0, &mut asked)?;
        Ok(asked)
    }

    fn gather(&self, path: &str, kind: Type, source: &str, depth: usize, asked: &mut Asked) -> Result<()> {
        if is_masked(self.tree, path)? {
            let masked =
                refused(path, None, format!("is a link to {NULL}, so podman runs nothing of that name"));
            asked.warnings.push(masked.detail("link", source));
            return Ok(());
        }
        let wants = self.unit(path)?.wants(kind, source)?;
        asked.warnings.extend(wants.warnings);
        for want in wants.list {
            match want {
                Want::Image(spec) => asked.specs.push(*spec),
                Want::Unit(pointer) => {
                    let kind = if pointer.name.ends_with(".volume") { Type::Volume } else { Type::Image };
                    match self.search(&pointer.name, parent(path))? {
                        Some(_) if depth >= MAX_CHAIN => return Err(pointer.refused("refers to itself")),
                        Some(unit) => self.gather(&unit, kind, source, depth + 1, asked)?,
                        None => {
                            let why = format!("there is no {} in {}", pointer.name, self.place);
                            let error = pointer.refused(&why).detail("link", source);
                            match kind {
                                // Where it comes from does not matter, unless it is an image.
                                Type::Volume => asked.warnings.push(error),
                                _ => return Err(error),
                            }
                        }
                    }
                }
                Want::Yaml(pointer, directory) => {
                    self.kubernetes(path, &pointer, &directory, source, asked)?
                }
            }
        }
        Ok(())
    }

    /// A unit with its drop-ins: of those with one name, that in the first directory of podman's order.
    pub fn unit(&self, path: &str) -> Result<Unit> {
        let text = |path: &str| {
            let file = follow(self.tree, path)?.into_iter().next_back().unwrap_or_default();
            read(self.tree, &file, path)
        };
        let mut unit = Unit::parse(&text(path)?, path)?;
        for path in self.drop_ins(path)? {
            unit.merge(&text(&path)?, &path)?;
        }
        Ok(unit)
    }

    /// The drop-ins of a unit, in the order in which they are read.
    pub fn drop_ins(&self, path: &str) -> Result<Vec<String>> {
        let own = parent(path).to_owned();
        // Elsewhere in a source tree there may be a file of the same name for another host.
        let dirs = if self.loose { std::slice::from_ref(&own) } else { &self.dirs };
        let mut found = BTreeMap::new();
        for dir in dirs {
            for name in drop_in_dirs(base_name(path)) {
                let Some(dir) = resolved(self.tree, &child(dir, &name))? else { continue };
                for name in self.tree.names(&dir)?.into_iter().filter(|n| n.ends_with(".conf")) {
                    let path = child(&dir, &name);
                    found.entry(name).or_insert(path);
                }
            }
        }
        let mut paths = Vec::new();
        for path in found.into_values() {
            if !is_masked(self.tree, &path)? {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    fn kubernetes(
        &self,
        unit: &str,
        pointer: &Pointer,
        directory: &WorkingDirectory,
        source: &str,
        asked: &mut Asked,
    ) -> Result<()> {
        let blame = |why: &str| pointer.refused(why).detail("link", source);
        let Some(path) = join(parent(unit), &pointer.name) else {
            return Err(blame("the path leaves the tree"));
        };
        let Some(real) = resolved(self.tree, &path)? else {
            return Err(blame(&format!("there is no {path} in the image")));
        };
        if self.tree.entry(&real)?.map(|e| e.kind) != Some(Kind::File) {
            return Err(blame("is not a regular file"));
        }
        let found = Kubernetes::parse(&read(self.tree, &real, &path)?, &path)?;
        let directory = match directory {
            WorkingDirectory::Yaml => parent(&path),
            WorkingDirectory::Unit => parent(unit),
            WorkingDirectory::Path(path) => path,
        };
        for image in found.images {
            for file in ["Containerfile", "Dockerfile"] {
                let recipe = join(directory, &format!("{}/{file}", image.build_directory));
                if let Some(recipe) = recipe
                    && resolved(self.tree, &recipe)?.is_some()
                {
                    let why = format!(
                        "{}: {} is built on the host from {recipe}, so there is no image to bind",
                        image.key, image.reference.name
                    );
                    return Err(refused(&path, Some(image.line), why)
                        .detail("key", &image.key)
                        .hint("remove that file, or push the image to a registry under another name"));
                }
            }
            asked.yaml.entry(path.clone()).or_default().push(image.reference.name.clone());
            asked.specs.push(BoundSpec::new(image.reference, source));
        }
        asked.yaml.entry(path).or_default();
        asked.warnings.extend(found.warnings);
        Ok(())
    }
}

/// How many directories two paths begin with together.
fn common(a: &str, b: &str) -> usize {
    a.split('/').zip(b.split('/')).take_while(|(a, b)| a == b).count()
}
