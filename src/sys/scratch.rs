//! Directories of their own for runs of other programs: where skopeo unpacks archives and keeps blobs, and where packages are
//! installed.
//!
//! Skopeo removes what it made when it ends by itself, but its proxy is ended by closing its socket, and a cancelled one
//! is killed. So the parent removes the directory behind it, and what a killed parent left is removed by the next one.
//! The lock tells which directories still have a parent.

use crate::model::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;

const PREFIX: &str = "scratch-";

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    _lock: File,
}

impl Scratch {
    /// Makes one below `tmp`, after removing those that nobody uses any more.
    pub fn below(tmp: &Path) -> Result<Scratch> {
        let doing = || format!("preparing {}", tmp.display());
        std::fs::create_dir_all(tmp).doing_with(doing)?;
        // Between making a directory and locking it, nobody may sweep.
        let all = File::open(tmp).doing_with(doing)?;
        flock(&all, FlockOperation::LockExclusive).doing_with(doing)?;
        sweep(tmp).doing_with(doing)?;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(tmp).doing_with(doing)?;
        let lock = File::open(dir.path()).doing_with(doing)?;
        flock(&lock, FlockOperation::LockExclusive).doing_with(doing)?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes those below `tmp` that nobody uses any more.
pub fn tidy(tmp: &Path) -> Result<()> {
    let doing = || format!("cleaning up {}", tmp.display());
    let all = match File::open(tmp) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.doing_with(doing)?,
    };
    flock(&all, FlockOperation::LockExclusive).doing_with(doing)?;
    sweep(tmp).doing_with(doing)
}

fn sweep(tmp: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(tmp)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !entry.file_type()?.is_dir() {
            continue;
        }
        // The parent that owns it may remove it at this moment.
        let Ok(dir) = File::open(entry.path()) else { continue };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, path = %entry.path().display(), "a leftover stays");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_parent_left_is_swept_and_what_is_in_use_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let left = tmp.path().join("scratch-old");
        std::fs::create_dir_all(left.join("oci123")).unwrap();
        std::fs::create_dir(tmp.path().join("other")).unwrap();
        let first = Scratch::below(tmp.path()).unwrap();
        assert!(!left.exists());
        let second = Scratch::below(tmp.path()).unwrap();
        std::fs::write(first.path().join("layer"), "x").unwrap();
        drop(second);
        assert!(first.path().join("layer").exists());
        drop(first);
        std::fs::create_dir_all(left.join("work")).unwrap();
        tidy(tmp.path()).unwrap();
        tidy(&tmp.path().join("missing")).unwrap();
        let names: Vec<_> = std::fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["other"]);
    }
}
