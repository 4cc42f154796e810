//! What podman sees of the store: for each deployment an index of its own over the shared layers.
//!
//! ```text
//! views/<key>/<driver>          link to the layers' files in storage/
//! views/<key>/<driver>-layers/  layers.json with the layers of this set; what makes their tar streams, as hard links
//! views/<key>/<driver>-images/  images.json with the images of this set, by the names that units ask for
//! ```
//!
//! Two deployments have two digests of one tag, each in its view. Nothing is renamed when another deployment boots: it has
//! another view. And whoever reads a view waits for no lock of the store that is being written.
//!
//! The index can be read by everybody, since podman of a user fails where it cannot read an additional store; the files of
//! the layers cannot.

use super::graph::{self, Graph, Image, Layer};
use crate::model::bound::{BoundImage, BoundSet};
use crate::model::image::{Digest, ImageRef};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs::remove_whole;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Below the state directory.
pub(super) const DIR: &str = "views";
/// A view that is being made, or was replaced.
const TEMPORARY: &str = ".new-";
/// bootc's own store. `/usr/lib/bootc/storage` of its package leads there, and quadlet files of its images name that.
const BOOTC: &str = "ostree/bootc/storage";
/// The manifest that podman uses if it has no digest to ask with.
const MANIFEST: &str = "manifest";

/// A store of which views are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Views<'a> {
    /// The state directory, where the store is and the views go.
    pub state: &'a Path,
    pub graph: Graph<'a>,
}

/// The two lists of a view.
struct Index {
    images: Vec<Image>,
    layers: Vec<Layer>,
    /// Which manifest is which image's.
    manifests: BTreeMap<String, Digest>,
}

impl Views<'_> {
    /// Where the view of a set is.
    pub fn path(&self, key: &str) -> PathBuf {
        self.state.join(DIR).join(key)
    }

    /// Makes the view of a set, or leaves it if it is as it should be. What is not in the store is left out.
    ///
    /// Images of `kept` are there by their digests alone: containers of the administrator stand on them. Returns whether
    /// anything was written.
    pub fn make(&self, key: &str, set: &BoundSet, kept: &BoundSet) -> Result<bool> {
        let doing = || format!("making the view {key} of bound images");
        let index = self.index(set, kept)?;
        let (images, layers) = (text(&index.images)?, text(&index.layers)?);
        let path = self.path(key);
        let there = self.of(&path);
        let same = |path: PathBuf, text: &[u8]| fs::read(path).is_ok_and(|there| there == text);
        if same(there.list("images", "images.json"), &images)
            && same(there.list("layers", "layers.json"), &layers)
            && self.fresh(there, &index)
        {
            return Ok(false);
        }
        let new = self.state.join(DIR).join(format!("{TEMPORARY}{key}"));
        remove_whole(&new).doing_with(doing)?;
        self.write(&new, &index, &images, &layers).doing_with(doing)?;
        sync(&new).doing_with(doing)?;
        match fs::symlink_metadata(&path) {
            Ok(_) => {
                // Whoever opened the old one reads it to the end.
                let (cwd, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
                rustix::fs::renameat_with(cwd, &new, cwd, &path, flags).doing_with(doing)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::rename(&new, &path).doing_with(doing)?,
            Err(e) => return Err(e).doing_with(doing),
        }
        sync(&path).doing_with(doing)?;
        Ok(true)
    }

    /// Removes the views that no deployment needs, and what was left by making others.
    pub fn prune(&self, keep: &[&str]) -> Result<()> {
        let doing = || "removing views of bound images".to_owned();
        let entries = match fs::read_dir(self.state.join(DIR)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e).doing_with(doing),
        };
        for entry in entries {
            let entry = entry.doing_with(doing)?;
            if !keep.iter().any(|key| entry.file_name() == OsStr::new(key)) {
                remove_whole(&entry.path()).doing_with(doing)?;
            }
        }
        Ok(())
    }

    /// Whether the files of a view are still those of the store: what was damaged is another file since it was repaired.
    fn fresh(&self, view: Graph<'_>, index: &Index) -> bool {
        let inode = |path: PathBuf| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let linked = index
            .layers
            .iter()
            .all(|layer| inode(view.split(&layer.id)) == inode(self.graph.split(&layer.id)));
        linked
            && index.images.iter().all(|image| {
                let there = |key: &str| fs::read(view.data(&image.id, key)).ok();
                let stored = |key: &str| fs::read(self.graph.data(&image.id, key)).ok();
                let meant = graph::key_of(&index.manifests[&image.id]);
                let mut others = image.big_data_digests.keys().filter(|key| *key != MANIFEST);
                there(MANIFEST) == stored(&meant) && others.all(|key| there(key) == stored(key))
            })
    }

    /// The graph root that a view is.
    fn of<'v>(&'v self, view: &'v Path) -> Graph<'v> {
        Graph { root: view, ..self.graph }
    }

    fn index(&self, set: &BoundSet, kept: &BoundSet) -> Result<Index> {
        let all = self.graph.images()?;
        let mut images: BTreeMap<String, Image> = BTreeMap::new();
        let mut manifests = BTreeMap::new();
        let wanted = set.images.iter().map(|i| (i, names(i)));
        let others = kept.images.iter().map(|i| (i, vec![by_digest(&i.spec.reference, &i.digest)]));
        for (image, names) in wanted.chain(others) {
            let Some(found) = find(&all, image) else { continue };
            let id = found.id.clone();
            let mine =
                images.entry(id.clone()).or_insert_with(|| Image { names: Vec::new(), ..found.clone() });
            mine.names.extend(names);
            mine.names.sort();
            mine.names.dedup();
            manifests.entry(id).or_insert_with(|| image.digest.clone());
        }
        let mut images: Vec<Image> = images.into_values().collect();
        for image in &mut images {
            let digest = manifests[&image.id].as_str();
            image.rest.insert("digest".into(), digest.into());
            image.rest.remove("names-history");
            image.big_data_digests.insert(MANIFEST.into(), digest.to_owned());
            self.sizes(image, &manifests)?;
        }
        let layers = self.layers(&images)?;
        Ok(Index { images, layers, manifests })
    }

    /// The size of the manifest that is said of none in particular is that of the one that is meant.
    fn sizes(&self, image: &mut Image, manifests: &BTreeMap<String, Digest>) -> Result<()> {
        let path = self.graph.data(&image.id, &graph::key_of(&manifests[&image.id]));
        let size = fs::metadata(&path).doing_with(|| format!("looking at {}", path.display()))?.len();
        if let Some(Value::Object(sizes)) = image.rest.get_mut("big-data-sizes") {
            sizes.insert(MANIFEST.into(), size.into());
        }
        Ok(())
    }

    /// The layers that these images stand on, in the order of the store: a layer comes behind its parent.
    fn layers(&self, images: &[Image]) -> Result<Vec<Layer>> {
        let all = self.graph.layers()?;
        let by_id = graph::by_id(&all);
        let mut needed = BTreeSet::new();
        for image in images {
            let mut missing = image.layer.as_str();
            for layer in graph::chain(&by_id, &image.layer) {
                needed.insert(layer.id.as_str());
                missing = &layer.parent;
            }
            if !missing.is_empty() {
                let why = format!("layer {missing} is missing in the store of bound images");
                return Err(Error::new(ErrorKind::Corrupt, why).hint("repair it with: osctl bound verify"));
            }
        }
        Ok(all.iter().filter(|l| needed.contains(l.id.as_str())).cloned().collect())
    }

    fn write(&self, new: &Path, index: &Index, images: &[u8], layers: &[u8]) -> io::Result<()> {
        dir(&self.state.join(DIR))?;
        dir(new)?;
        let (view, driver) = (self.of(new), self.graph.driver);
        // Relative: what is /sysroot of a running host is somewhere else before.
        symlink(Path::new("../..").join(name_of(self.graph.root)).join(driver), new.join(driver))?;
        let to = view.list("layers", "");
        dir(&to)?;
        for layer in &index.layers {
            match fs::hard_link(self.graph.split(&layer.id), view.split(&layer.id)) {
                // A layer may have been made without one.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        list(&to, "layers", layers)?;
        let to = view.list("images", "");
        dir(&to)?;
        for image in &index.images {
            let (from, to) = (self.graph.list("images", &image.id), to.join(&image.id));
            dir(&to)?;
            for entry in fs::read_dir(&from)? {
                let name = entry?.file_name();
                write(&to.join(&name), &fs::read(from.join(&name))?)?;
            }
            let meant = self.graph.data(&image.id, &graph::key_of(&index.manifests[&image.id]));
            write(&to.join(MANIFEST), &fs::read(meant)?)?;
        }
        list(&to, "images", images)
    }
}

/// Lets `link` lead to this view. Returns whether it led elsewhere before.
///
/// Whoever opened the one of before reads it to the end.
pub fn present(link: &Path, view: &Path) -> Result<bool> {
    let doing = || format!("showing the bound images at {}", link.display());
    if fs::read_link(link).is_ok_and(|there| there == view) {
        return Ok(false);
    }
    let dir = link.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).doing_with(doing)?;
    let new = dir.join(format!("{TEMPORARY}{}", name_of(link).to_string_lossy()));
    remove_whole(&new).doing_with(doing)?;
    symlink(view, &new).doing_with(doing)?;
    fs::rename(&new, link).doing_with(doing)?;
    Ok(true)
}

/// Lets the place where bootc has its store lead to `shown`, if nothing is there: images of bootc name that place.
pub fn present_to_bootc(sysroot: &Path, shown: &Path) -> Result<()> {
    let place = sysroot.join(BOOTC);
    let doing = || format!("showing the bound images at {}", place.display());
    let dir = place.parent().unwrap_or(Path::new("/"));
    let leads = fs::read_link(sysroot.join("usr/lib/bootc/storage")).is_ok_and(|to| to.ends_with(BOOTC));
    if !leads || fs::symlink_metadata(&place).is_ok() {
        return Ok(());
    }
    fs::create_dir_all(dir).doing_with(doing)?;
    symlink(shown, &place).doing_with(doing)
}

/// The image of a store that a bound one is.
pub(super) fn find<'a>(images: &'a [Image], image: &BoundImage) -> Option<&'a Image> {
    images.iter().find(|i| i.has(&image.digest))
}

/// The names by which units may ask for an image.
fn names(image: &BoundImage) -> Vec<String> {
    let reference = &image.spec.reference;
    let mut names = vec![by_digest(reference, &image.digest)];
    match reference.digest() {
        // That of a list: it is what is asked for.
        Some(pinned) => names.push(by_digest(reference, &pinned)),
        None => names.push(format!("{}:{}", reference.repository(), reference.tag().unwrap_or("latest"))),
    }
    names
}

fn by_digest(reference: &ImageRef, digest: &Digest) -> String {
    format!("{}@{digest}", reference.repository())
}

fn text<T: Serialize>(list: &[T]) -> Result<Vec<u8>> {
    serde_json::to_vec(list).doing("encoding the index of a view")
}

/// Writes a list, and the lock that its readers take. What a reader knows of the list is the lock's content.
fn list(dir: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    write(&dir.join(format!("{name}.json")), text)?;
    write(&dir.join(format!("{name}.lock")), Digest::of(text).hex().as_bytes())
}

/// Writes a file that everybody can read.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// Makes a directory that everybody can read, if it is not there.
fn dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
    }
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// Makes what is below durable, with the names that lead there.
fn sync(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fs::File::open(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_bootc_is_taken_only_where_its_link_leads_and_nothing_is() {
        let temp = tempfile::tempdir().unwrap();
        let (root, shown) = (temp.path(), temp.path().join("run/osctl/storage"));
        let place = root.join(BOOTC);
        present_to_bootc(root, &shown).unwrap();
        assert!(fs::symlink_metadata(&place).is_err());
        fs::create_dir_all(root.join("usr/lib/bootc")).unwrap();
        symlink("../../../sysroot/ostree/bootc/storage", root.join("usr/lib/bootc/storage")).unwrap();
        present_to_bootc(root, &shown).unwrap();
        present_to_bootc(root, &shown).unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), shown);
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
        present_to_bootc(root, &shown).unwrap();
        assert!(fs::symlink_metadata(&place).unwrap().is_dir(), "a store that is there is left alone");
    }

    #[test]
    fn what_is_shown_is_exchanged_at_once_and_said_only_when_it_changes() {
        let temp = tempfile::tempdir().unwrap();
        let link = temp.path().join("run/osctl/storage");
        let (a, b) = (temp.path().join("a"), temp.path().join("b"));
        assert!(present(&link, &a).unwrap());
        assert!(!present(&link, &a).unwrap());
        assert!(present(&link, &b).unwrap());
        assert_eq!(fs::read_link(&link).unwrap(), b);
    }
}
