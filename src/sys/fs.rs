//! Files that survive a power cut whole or not at all.

use crate::model::{Context, Result};
use cap_std_ext::cap_std::fs::Dir;
use cap_std_ext::dirext::CapStdExtDirExt;
use std::io::Write;
use std::path::Path;

/// Writes a file so that after any crash it holds the old or the new content.
///
/// Temporary file, write, fsync (a crash leaves the old file), rename (old or new), fsync of the
/// directory (the new name is durable when this returns).
pub fn write_atomic(dir: &Dir, path: impl AsRef<Path>, contents: &[u8], mode: u32) -> Result<()> {
    let path = path.as_ref();
    let what = || format!("writing {}", path.display());
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        dir.create_dir_all(parent).doing_with(what)?;
    }
    let permissions =
        <cap_std_ext::cap_std::fs::Permissions as cap_std_ext::cap_std::fs::PermissionsExt>::from_mode(mode);
    dir.atomic_replace_with(path, |f| -> std::io::Result<()> {
        f.write_all(contents)?;
        f.get_mut().as_file_mut().set_permissions(permissions)?;
        f.flush()?;
        f.get_mut().as_file_mut().sync_all()
    })
    .doing_with(what)?;
    sync_parent(dir, path)
}

/// Removes a file, durably. A missing file is fine.
pub fn remove_durably(dir: &Dir, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    if dir.remove_file_optional(path).doing_with(|| format!("removing {}", path.display()))? {
        sync_parent(dir, path)?;
    }
    Ok(())
}

/// Removes a file, a link or a directory with all that is in it. Nothing there is fine.
pub fn remove_whole(path: &Path) -> std::io::Result<()> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Reads a whole file; `None` if there is none.
pub fn read_optional(dir: &Dir, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
    let path = path.as_ref();
    match dir.read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing_with(|| format!("reading {}", path.display())),
    }
}

/// The number of the file system of this path.
pub fn device(path: &Path) -> Result<u64> {
    let stat = rustix::fs::stat(path).doing_with(|| format!("looking at {}", path.display()))?;
    Ok(stat.st_dev)
}

/// Whether nobody but root, or whoever runs a daemon that is not root, can write a file with this owner and mode.
pub fn only_root_writes(uid: u32, mode: u32) -> bool {
    mode & 0o022 == 0 && (uid == 0 || uid == rustix::process::geteuid().as_raw())
}

fn sync_parent(dir: &Dir, path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let handle = dir.open_dir(parent).doing_with(|| format!("opening {}", parent.display()))?;
    // A Dir is an O_PATH handle; fsync wants a real one.
    let file = handle.reopen_as_ownedfd().doing("reopening a directory")?;
    rustix::fs::fsync(file).doing_with(|| format!("syncing {}", parent.display()))
}

/// The bytes that can still be written to the file system of this open file.
pub fn free_bytes_of(file: impl std::os::fd::AsFd) -> Result<u64> {
    let stat = rustix::fs::fstatvfs(file).doing("asking for the free space")?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The bytes that root can still write to the file system of this path.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)
        .doing_with(|| format!("asking for the free space of {}", path.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
