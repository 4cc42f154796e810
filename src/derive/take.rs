//! Saving local copies in `/etc` aside, so that the merge takes what a drop-in declares.
//!
//! The caller records the [`Take`]s in its intent record, calls [`take`], stages, and drops the record; if the job
//! fails or is found dead, it calls [`restore`]. Both can be repeated after a crash at any instruction:
//!
//! ```text
//! 1. link   agent.conf -> agent.conf.osctl-saved-1     crash: two names, one file
//! 2. rename default copy over agent.conf               crash: the old or the default content
//! undo: rename agent.conf.osctl-saved-1 over agent.conf
//! ```

use super::etc::entry;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys;
use cap_std_ext::cap_std::fs::{Dir, Metadata, MetadataExt};
use cap_std_ext::dirext::CapStdExtDirExt;
use rustix::fs::XattrFlags;
use std::io::Write;
use std::path::Path;

const LABEL: &str = "security.selinux";

/// A local file that gives way to a declared one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Take {
    /// Relative to `/etc`.
    pub path: String,
    /// Where the local copy goes, relative to `/etc`; `None` if the local change is a removal.
    pub saved: Option<String>,
}

/// Chooses free names for the local copies of these paths (`/etc/...`).
pub fn prepare<'a>(live: &Dir, paths: impl IntoIterator<Item = &'a str>) -> Result<Vec<Take>> {
    let mut takes = Vec::new();
    for path in paths {
        let path = path.strip_prefix("/etc/").unwrap_or(path).to_owned();
        let mut saved = None;
        if let Some(meta) = entry(live, &path)? {
            if meta.is_dir() {
                return Err(Error::new(
                    ErrorKind::EtcConflict,
                    format!("/etc/{path} is a directory and cannot be taken"),
                )
                .hint("move it away by hand"));
            }
            let mut n = 1;
            while entry(live, &saved_name(&path, n))?.is_some() {
                n += 1;
            }
            saved = Some(saved_name(&path, n));
        }
        takes.push(Take { path, saved });
    }
    Ok(takes)
}

/// Saves the local copies and resets the paths to the deployment's defaults.
pub fn take(live: &Dir, defaults: &Dir, takes: &[Take]) -> Result<()> {
    for Take { path, saved } in takes {
        if let Some(saved) = saved
            && entry(live, saved)?.is_none()
            && entry(live, path)?.is_some()
        {
            live.hard_link(path, live, saved).doing_with(|| format!("saving /etc/{path} as /etc/{saved}"))?;
            sync_parent(live, saved)?;
        }
        reset(live, defaults, path)?;
    }
    Ok(())
}

/// Puts the local copies back, as if [`take`] had not been called. What was edited since then stays, and so does the
/// local copy beside it.
pub fn restore(live: &Dir, defaults: &Dir, takes: &[Take]) -> Result<()> {
    for Take { path, saved } in takes {
        let what = || format!("restoring /etc/{path}");
        match saved {
            None if untouched(live, defaults, path)? => sys::fs::remove_durably(live, path)?,
            None => {}
            Some(saved) => {
                let Some(kept) = entry(live, saved)? else { continue };
                let id = |m: &Metadata| (m.dev(), m.ino());
                if entry(live, path)?.is_some_and(|now| id(&now) == id(&kept)) {
                    // rename(2) does nothing when both names are one file.
                    sys::fs::remove_durably(live, saved)?;
                } else if untouched(live, defaults, path)? {
                    live.rename(saved, live, path).doing_with(what)?;
                    sync_parent(live, path)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether a path still is as [`reset`] left it.
fn untouched(live: &Dir, defaults: &Dir, path: &str) -> Result<bool> {
    let what = || format!("comparing /etc/{path} with its default");
    match (entry(live, path)?, entry(defaults, path)?) {
        (None, None) => Ok(true),
        (Some(now), Some(default)) if now.is_symlink() && default.is_symlink() => {
            Ok(live.read_link_contents(path).doing_with(what)?
                == defaults.read_link_contents(path).doing_with(what)?)
        }
        (Some(now), Some(default)) if now.is_file() && default.is_file() => Ok(now.len() == default.len()
            && live.read(path).doing_with(what)? == defaults.read(path).doing_with(what)?),
        _ => Ok(false),
    }
}

fn reset(live: &Dir, defaults: &Dir, path: &str) -> Result<()> {
    let what = || format!("resetting /etc/{path} to its default");
    let Some(default) = entry(defaults, path)? else { return sys::fs::remove_durably(live, path) };
    if let Some(parent) = Path::new(path).parent().filter(|p| !p.as_os_str().is_empty()) {
        live.create_dir_all(parent).doing_with(what)?;
    }
    if default.is_symlink() {
        let target = defaults.read_link_contents(path).doing_with(what)?;
        let temporary = format!("{path}.osctl-new");
        live.remove_file_optional(&temporary).doing_with(what)?;
        live.symlink_contents(target, &temporary).doing_with(what)?;
        live.rename(&temporary, live, path).doing_with(what)?;
        return sync_parent(live, path);
    }
    let contents = defaults.read(path).doing_with(what)?;
    let label = label_of(live, path).or_else(|| label_of(defaults, path));
    live.atomic_replace_with(path, |f| -> std::io::Result<()> {
        f.write_all(&contents)?;
        f.flush()?;
        let file = f.get_mut().as_file_mut();
        std::os::unix::fs::fchown(&*file, Some(default.uid()), Some(default.gid()))?;
        // After the change of owner, which clears setuid.
        file.set_permissions(default.permissions())?;
        if let Some(label) = &label {
            rustix::fs::fsetxattr(&*file, LABEL, label, XattrFlags::empty())?;
        }
        file.sync_all()
    })
    .doing_with(what)?;
    sync_parent(live, path)
}

fn label_of(dir: &Dir, path: &str) -> Option<Vec<u8>> {
    let file = dir.open(path).ok()?;
    let mut value = vec![0; 256];
    let len = rustix::fs::fgetxattr(&file, LABEL, &mut value).ok()?; // no label, or no SELinux here
    value.truncate(len);
    Some(value)
}

fn saved_name(path: &str, n: u32) -> String {
    format!("{path}.osctl-saved-{n}")
}

fn sync_parent(dir: &Dir, path: &str) -> Result<()> {
    let parent = Path::new(path).parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let what = || format!("syncing /etc/{}", parent.display());
    let handle = dir.open_dir(parent).doing_with(what)?.reopen_as_ownedfd().doing_with(what)?;
    rustix::fs::fsync(handle).doing_with(what)
}
