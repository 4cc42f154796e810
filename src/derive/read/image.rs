//! The directory of the image.

use super::{
    Found, Leaves, MAX_DROPINS, VENDOR_DIR, below, check_name, check_size, check_trust, is_dropin,
    package_in, refuse, too_many,
};
use crate::model::dropin::{Beside, Leaf, LeafKind, Local, MAX_CONTENTS, MAX_DROPIN, Text};
use crate::model::packages::LocalPackage;
use crate::model::{Context, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind};
use std::collections::BTreeMap;
use std::io::Read;

pub(super) fn vendor(tree: &CommitTree, found: &mut BTreeMap<String, Found>) -> Result<()> {
    let Some(real) = tree.resolve(VENDOR_DIR, true)? else { return Ok(()) };
    if tree.kind(&real)? != Some(Kind::Directory) {
        return Err(refuse(VENDOR_DIR, "is not a directory in the image"));
    }
    for name in tree.list(&real)?.into_iter().filter(|n| is_dropin(n)) {
        check_name(VENDOR_DIR, &name)?;
        let path = format!("{VENDOR_DIR}/{name}");
        let info = tree.lookup(&path)?;
        let target = info.as_ref().and_then(|i| i.symlink_target());
        if target.is_some_and(|t| t == std::path::Path::new("/dev/null")) {
            continue;
        }
        let bytes = vendor_file(tree, &path, MAX_DROPIN)?;
        found.insert(name.clone(), Found::Vendor(Text { name, path, bytes }));
        if found.len() > MAX_DROPINS {
            return Err(too_many(VENDOR_DIR, MAX_DROPINS));
        }
    }
    Ok(())
}

/// The image's directory.
pub(super) struct VendorDir<'t>(pub(super) &'t CommitTree);

impl VendorDir<'_> {
    /// The path of what has this name, if it is inside the directory.
    fn inside(&self, name: &str) -> Result<String> {
        let path = format!("{VENDOR_DIR}/{name}");
        let base = self.0.resolve(VENDOR_DIR, true)?;
        match (base, self.0.resolve(path.trim_end_matches('/'), false)?) {
            (Some(base), Some(real)) if real == base || real.starts_with(&format!("{base}/")) => Ok(path),
            (_, None) => Err(refuse(&path, "does not exist")),
            (_, Some(_)) => Err(refuse(&path, "leaves the directory of the drop-ins")),
        }
    }

    fn gather(&self, path: &str, top: &str, leaves: &mut Leaves) -> Result<()> {
        leaves.check_depth(path, top)?;
        for name in self.0.list(path)? {
            check_name(path, &name)?;
            let (path, top) = (format!("{path}/{name}"), below(top, &name));
            let Some(info) = self.0.lookup(&path)? else { return Err(refuse(&path, "does not exist")) };
            let kind = match crate::store::tree::kind_of(&info) {
                Kind::File => {
                    let bytes = vendor_file(self.0, &path, MAX_CONTENTS)?;
                    let executable = info.attribute_uint32("unix::mode") & 0o111 != 0;
                    LeafKind::File { contents: everybodys(bytes), executable }
                }
                Kind::Link => {
                    let target = info.symlink_target().and_then(|t| t.into_os_string().into_string().ok());
                    LeafKind::Link(target.ok_or_else(|| refuse(&path, "leads to what is not UTF-8"))?)
                }
                Kind::Directory => {
                    self.gather(&path, &top, leaves)?;
                    LeafKind::Directory
                }
            };
            leaves.add(&path, top, kind)?;
        }
        Ok(())
    }
}

impl Beside for VendorDir<'_> {
    fn file(&self, name: &str) -> Result<Local> {
        vendor_file(self.0, &self.inside(name)?, MAX_CONTENTS).map(everybodys)
    }

    fn package(&self, name: &str) -> Result<LocalPackage> {
        let path = self.inside(name)?;
        package_in(path.clone(), vendor_stream(self.0, &path)?)
    }

    fn tree(&self, name: &str) -> Result<Vec<Leaf>> {
        let path = self.inside(name)?;
        let path = path.trim_end_matches('/');
        if self.0.kind(path)? != Some(Kind::Directory) {
            return Err(refuse(path, "is not a directory"));
        }
        let mut leaves = Leaves::default();
        self.gather(path, "", &mut leaves)?;
        Ok(leaves.sorted())
    }
}

/// Everything in an image is.
fn everybodys(bytes: Vec<u8>) -> Local {
    Local { bytes, private: false }
}

fn vendor_file(tree: &CommitTree, path: &str, limit: u64) -> Result<Vec<u8>> {
    check_size(path, checked(tree, path)?, limit)?;
    tree.read(path, limit)
        .kind(ErrorKind::InvalidDropIn, format!("{path}: cannot be read"))?
        .ok_or_else(|| refuse(path, "does not exist"))
}

/// A file of any size.
pub(super) fn vendor_stream(tree: &CommitTree, path: &str) -> Result<impl Read + use<>> {
    checked(tree, path)?;
    tree.stream(path)?.ok_or_else(|| refuse(path, "does not exist"))
}

/// The size of what is a file that only root writes to.
fn checked(tree: &CommitTree, path: &str) -> Result<u64> {
    let Some(info) = tree.lookup(path)? else { return Err(refuse(path, "does not exist")) };
    match crate::store::tree::kind_of(&info) {
        Kind::File => {}
        Kind::Link => return Err(refuse(path, "is a symbolic link")),
        Kind::Directory => return Err(refuse(path, "is not a regular file")),
    }
    check_trust(path, info.attribute_uint32("unix::uid"), info.attribute_uint32("unix::mode"))?;
    Ok(u64::try_from(info.size()).unwrap_or(u64::MAX))
}
