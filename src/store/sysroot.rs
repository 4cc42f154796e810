//! Opening a sysroot, and the first errors that a person meets.

use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio;
use ostree_ext::ostree;
use std::path::{Path, PathBuf};

/// Where a host's deployments and our state lie.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The sysroot; `/` on a booted host.
    pub sysroot: PathBuf,
    /// The root whose `etc/osctl` is read.
    pub config_root: PathBuf,
    /// Our state, living and dying with the deployments.
    pub state: PathBuf,
}

impl Layout {
    /// The layout with the documented defaults.
    pub fn new(sysroot: PathBuf, config_root: PathBuf, state: Option<PathBuf>) -> Layout {
        let state = state.unwrap_or_else(|| sysroot.join("ostree/osctl"));
        Layout { sysroot, config_root, state }
    }

    /// The repository.
    pub fn repo(&self) -> PathBuf {
        self.sysroot.join("ostree/repo")
    }

    /// Package files by their digest.
    pub fn packages(&self) -> PathBuf {
        self.state.join("packages")
    }

    /// What drop-ins named by URL, by digest.
    pub fn contents(&self) -> PathBuf {
        self.state.join("contents")
    }

    /// Where packages are installed: on the file system of the repository, for hard links.
    pub fn work(&self) -> PathBuf {
        self.state.join("work")
    }

    /// Where blobs lie until their layer is in the repository.
    pub fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }

    /// Where blobs of bound images lie until the image is in the store.
    pub fn bound_spool(&self) -> PathBuf {
        self.state.join("bound-spool")
    }

    /// Where podman finds the bound images of what runs: `/usr/lib/osctl/storage` leads there.
    pub fn shown(&self) -> PathBuf {
        self.sysroot.join("run/osctl/storage")
    }
}

/// Makes a sysroot to build in, if it is not there: one that nobody boots.
///
/// A repository of somebody who is not root keeps owners and attributes of files beside them.
pub fn create(path: &Path) -> Result<()> {
    let mode = match rustix::process::geteuid().is_root() {
        true => ostree::RepoMode::Bare,
        false => ostree::RepoMode::BareUser,
    };
    create_with(path, mode)
}

/// The same for what may set no attributes, root or not: everything about a file is in its object.
pub fn create_packed(path: &Path) -> Result<()> {
    create_with(path, ostree::RepoMode::Archive)?;
    let doing = || format!("making the sysroot {}", path.display());
    let repo = ostree::Repo::new_for_path(path.join("ostree/repo"));
    repo.open(gio::Cancellable::NONE).doing_with(doing)?;
    let config = repo.copy_config();
    // It is gone in a minute.
    config.set_integer("archive", "zlib-level", 1);
    repo.write_config(&config).doing_with(doing)
}

fn create_with(path: &Path, mode: ostree::RepoMode) -> Result<()> {
    let doing = || format!("making the sysroot {}", path.display());
    let repo = path.join("ostree/repo");
    std::fs::create_dir_all(&repo).doing_with(doing)?;
    std::fs::create_dir_all(path.join("ostree/deploy")).doing_with(doing)?;
    if repo.join("config").is_file() {
        return Ok(());
    }
    ostree::Repo::new_for_path(&repo).create(mode, gio::Cancellable::NONE).doing_with(doing)
}

/// Opens the sysroot for reading. Takes no lock.
pub fn open(path: &Path) -> Result<ostree::Sysroot> {
    if !path.join("ostree/repo").is_dir() {
        let error = Error::new(
            ErrorKind::Unsupported,
            format!("{} is not an ostree host: it has no ostree/repo", path.display()),
        );
        return Err(error.hint(
            "osctl manages image-based hosts; for a new sysroot run: ostree admin init-fs --modern DIR, \
             then: osctl --direct --sysroot DIR rebase IMAGE",
        ));
    }
    let sysroot = ostree::Sysroot::new(Some(&gio::File::for_path(path)));
    if path == Path::new("/") && private_mount_namespace() {
        // libostree then remounts /sysroot and /boot writable for this process only.
        sysroot.set_mount_namespace_in_use();
    }
    sysroot.load(gio::Cancellable::NONE).doing_with(|| format!("loading the sysroot {}", path.display()))?;
    Ok(sysroot)
}

/// Whether this process has a mount namespace of its own (`PrivateMounts=` in the unit).
pub fn private_mount_namespace() -> bool {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    match (of("self"), of("1")) {
        (Some(own), Some(init)) => own != init,
        // Without the right to look at pid 1 we are not root and cannot remount anything.
        _ => false,
    }
}
