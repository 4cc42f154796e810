//! Whether anything is bound at all.

use super::discover::{ADMIN, VENDOR};
use crate::model::{Context, Result};
use crate::store::tree::CommitTree;
use cap_std_ext::cap_std::fs::Dir;

/// Whether a tree, or the administrator of a host, has files that bind images. What they say is not looked at.
pub fn any(tree: &CommitTree, config_root: Option<&Dir>) -> Result<bool> {
    for dir in VENDOR {
        if !tree.list(dir)?.is_empty() {
            return Ok(true);
        }
    }
    let admin = ADMIN.trim_start_matches('/');
    let Some(dir) = config_root.filter(|root| root.is_dir(admin)) else { return Ok(false) };
    let mut entries = dir.read_dir(admin).doing_with(|| format!("listing {ADMIN}"))?;
    Ok(entries.next().is_some())
}
