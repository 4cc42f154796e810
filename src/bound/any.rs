//! Whether anything is bound at all.

use super::discover::{ADMIN, BOOTC, OSCTL};
use crate::model::{Context, Result};
use crate::store::tree::CommitTree;
use cap_std_ext::cap_std::fs::Dir;

/// Whether a tree, or the administrator of a host, has files that bind images. What they say is not looked at.
pub fn any(tree: &CommitTree, config_root: Option<&Dir>) -> Result<bool> {
    for dir in [OSCTL, BOOTC] {
        if !tree.list(dir)?.is_empty() {
            return Ok(true);
        }
    }
    let Some(dir) = config_root.filter(|root| root.is_dir(ADMIN)) else { return Ok(false) };
    let mut entries = dir.read_dir(ADMIN).doing_with(|| format!("listing /{ADMIN}"))?;
    Ok(entries.next().is_some())
}
