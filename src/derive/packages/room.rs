//! Where packages are solved and installed: the target's tree with a writable layer, in a mount namespace of one thread.
//!
//! ```text
//! <state>/work/scratch-XXXX/base          the base, checked out by hard links
//!                      /<layer>/upper what changed: this is the product
//!                      /<layer>/var   the /var that the programs see; nothing of it gets into the tree by itself
//!                      /<layer>/boot  the /boot of what installs, the same
//! ```
//!
//! When the thread ends, however it does, the kernel takes its mounts and its children along.

use super::kernel;
use super::var::OPT;
use crate::engine::cx::Cx;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process::{self, Output};
use crate::sys::sandbox::{Sandbox, Who};
use crate::sys::scratch::Scratch;
use crate::sys::{mounts, network};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::oneshot;

/// Where something is mounted in a sandbox.
pub(super) const MOUNT_POINTS: [&str; 8] = ["boot", "dev", "etc", "proc", "run", "sys", "tmp", "var"];

/// dpkg's database of ten thousand packages is some 20 MB.
const MAX_TEXT: u64 = 256 << 20;

/// A tree that is not written to, and room for changes of it.
#[derive(Debug)]
pub struct Room {
    /// Without symbolic links: `/ostree` is one on a booted host.
    path: PathBuf,
    _scratch: Scratch,
}

impl Room {
    /// Makes an empty one below `work`, which must be on the file system of the repository.
    pub fn below(work: &Path) -> Result<Room> {
        let scratch = Scratch::below(work)?;
        // What packages make is nobody's before it is in the repository: setuid files, and what all can write to.
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(scratch.path(), private).doing("preparing a place for packages")?;
        let path = scratch.path().canonicalize().doing("preparing a place for packages")?;
        Ok(Room { path, _scratch: scratch })
    }

    /// Where the base is to be checked out.
    pub fn base(&self) -> PathBuf {
        self.path.join("base")
    }

    /// Where the content of an image is to be checked out.
    pub fn extension(&self, commit: &str) -> PathBuf {
        self.path.join(format!("extension-{commit}"))
    }

    /// A directory for one purpose.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let mut path = self.path.clone();
        for part in name.split('/') {
            path.push(part);
            match std::fs::create_dir(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => {
                    made.doing_with(|| format!("making {}", path.display()))?;
                    passable(&path)?;
                }
            }
        }
        Ok(path)
    }

    /// The changes that were made in a layer.
    pub fn upper(&self, layer: &str) -> PathBuf {
        self.path.join(layer).join("upper")
    }

    /// Works on the base with the layer of this name, which is made if it is missing, with the network or without.
    pub async fn enter<T: Send + 'static>(
        &self,
        cx: &Cx,
        layer: &str,
        network: bool,
        work: impl FnOnce(&Inside) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let dirs = ["upper", "work", "merged", "var", "boot"].map(|dir| self.dir(&format!("{layer}/{dir}")));
        let [upper, workdir, merged, var, boot] = dirs;
        let (base, upper, workdir, merged, var, boot) = (self.base(), upper?, workdir?, merged?, var?, boot?);
        let cx = cx.clone();
        let inside = move || -> Result<T> {
            mounts::unshare()?;
            if !network {
                // Not by bwrap, which wants to have the loopback up, and may not in a container.
                network::leave()?;
            }
            // This thread has one of its own now, and what is made must not depend on who started us.
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
            mounts::overlay(&base, &upper, &workdir, &merged)?;
            for dir in MOUNT_POINTS {
                // The sandbox has the tree read-only, and a commit has no /etc.
                let dir = merged.join(dir);
                match std::fs::create_dir(&dir) {
                    Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(e).doing_with(|| format!("making {}", dir.display()));
                    }
                    _ => {}
                }
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.doing("starting a runtime")?;
            let done = work(&Inside { cx, runtime, merged: merged.clone(), var, boot, network });
            // Before the next one has the same layer; with the thread it would only go some time later.
            rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH)
                .doing("unmounting the tree")?;
            done
        };
        let (answer, answered) = oneshot::channel();
        let thread = std::thread::Builder::new().name("packages".into());
        // Its commands are cancelled with the job; whoever waits for it waits for them.
        thread.spawn(move || drop(answer.send(inside()))).doing("starting a thread")?;
        answered
            .await
            .map_err(|_| Error::new(ErrorKind::Internal, "the thread that handles packages ended early"))?
    }
}

/// The tree with its layer, on the thread that has it mounted.
#[derive(Debug)]
pub struct Inside {
    /// The job.
    pub cx: Cx,
    runtime: tokio::runtime::Runtime,
    merged: PathBuf,
    var: PathBuf,
    boot: PathBuf,
    network: bool,
}

impl Inside {
    /// The `/var` that the programs see.
    pub fn var(&self) -> &Path {
        &self.var
    }

    /// The `/boot` that the programs see.
    pub fn boot(&self) -> &Path {
        &self.boot
    }

    /// An empty directory beside the tree, for a user that fetches to work in.
    pub fn own(&self, name: &str, owner: (u32, u32)) -> Result<PathBuf> {
        let dir = self.merged.with_file_name(name);
        self.clear(&dir, owner)?;
        Ok(dir)
    }

    /// Empties one that [`Inside::own`] made. Nothing in it is followed.
    pub fn clear(&self, dir: &Path, owner: (u32, u32)) -> Result<()> {
        let clear = || -> std::io::Result<()> {
            match std::fs::remove_dir_all(dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => std::fs::create_dir(dir)?,
            }
            lchown(dir, Some(owner.0), Some(owner.1))
        };
        clear().doing_with(|| format!("preparing {}", dir.display()))
    }

    /// A copy of the files in a directory of the tree, which belongs to `owner`.
    pub fn own_copy(&self, path: &str, name: &str, owner: (u32, u32)) -> Result<PathBuf> {
        let to = self.own(name, owner)?;
        let from = self.real(path)?;
        let copy = || -> std::io::Result<()> {
            for entry in std::fs::read_dir(&from)? {
                let entry = entry?;
                if entry.file_type()?.is_file() {
                    let copy = to.join(entry.file_name());
                    std::fs::copy(entry.path(), &copy)?;
                    lchown(&copy, Some(owner.0), Some(owner.1))?;
                }
            }
            Ok(())
        };
        copy().doing_with(|| format!("copying {path} of the target"))?;
        Ok(to)
    }

    /// The tree with the changes. Paths are relative, and cannot leave it.
    pub fn tree(&self) -> Result<Dir> {
        Dir::open_ambient_dir(&self.merged, ambient_authority()).doing("opening the tree")
    }

    /// Where a directory of the tree really is. One on the way of which there is a symbolic link is refused: what the
    /// programs of the tree made of it could lead to the host.
    pub fn real(&self, path: &str) -> Result<PathBuf> {
        let doing = || format!("opening {path} of the target");
        let dir = self.tree()?.open_dir(path.trim_start_matches('/')).doing_with(doing)?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).doing_with(doing)?;
        if real != self.merged.join(path.trim_start_matches('/')) {
            let why = format!("{path} of the target is behind a symbolic link");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        Ok(real)
    }

    /// Reads a text of the tree that its programs may have made: never through a link, and no more than a limit.
    pub fn text(&self, path: &str) -> Result<String> {
        let doing = || format!("reading /{path} of the target");
        let mut options = OpenOptions::new();
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = self.tree()?.open_with(path.trim_start_matches('/'), &options).doing_with(doing)?;
        let meta = file.metadata().doing_with(doing)?;
        if !meta.is_file() || meta.len() > MAX_TEXT {
            let why = format!("/{path} of the target is no file of a sensible size");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let mut text = String::new();
        file.take(MAX_TEXT).read_to_string(&mut text).doing_with(doing)?;
        Ok(text)
    }

    /// Writes a file of the tree, which the programs shall find there.
    pub fn put(&self, path: &str, contents: &[u8]) -> Result<()> {
        let (tree, path) = (self.tree()?, path.trim_start_matches('/'));
        let write = || -> std::io::Result<()> {
            if let Some((parent, _)) = path.rsplit_once('/') {
                tree.create_dir_all(parent)?;
            }
            // Never through a link to somewhere.
            match tree.remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => tree.write(path, contents),
            }
        };
        write().doing_with(|| format!("writing {path} for the package manager"))
    }

    /// Makes directories below `/var`. The target may have made links there: none leads out of it.
    pub fn make_var(&self, dirs: &[&str], owner: Option<(u32, u32)>) -> Result<()> {
        let make = || -> std::io::Result<()> {
            let var = Dir::open_ambient_dir(&self.var, ambient_authority())?;
            for dir in dirs {
                var.create_dir_all(dir)?;
            }
            let Some((uid, gid)) = owner else { return Ok(()) };
            for entry in walk(&self.var)? {
                lchown(entry, Some(uid), Some(gid))?;
            }
            lchown(&self.var, Some(uid), Some(gid))
        };
        make().doing("preparing the package manager's /var")
    }

    /// Makes a directory of `/var` to mount something upon; an image's link there stands for what is mounted.
    pub fn make_mount_point(&self, dir: &str) -> Result<()> {
        let make = || -> std::io::Result<()> {
            let var = Dir::open_ambient_dir(&self.var, ambient_authority())?;
            if var.symlink_metadata(dir).is_ok_and(|m| m.is_symlink()) {
                var.remove_file(dir)?;
            }
            var.create_dir_all(dir)
        };
        make().doing_with(|| format!("preparing /var/{dir} for the package manager"))
    }

    /// The sandbox that every program of the tree runs in.
    pub fn sandbox(&self, who: Who) -> Result<Sandbox> {
        if who == Who::Installer && self.network {
            return Err(Error::new(ErrorKind::Internal, "what installs must not have the network"));
        }
        let etc = self.real("usr/etc")?;
        let sandbox = Sandbox::new(who, &self.merged);
        if who != Who::Installer {
            return Ok(sandbox.show(etc, "/etc").bind(self.var.clone(), "/var"));
        }
        let sandbox = sandbox.bind(etc, "/etc").bind(self.var.clone(), "/var");
        // What is in /opt is no state.
        kernel::without_hooks(self, sandbox.bind(self.real(OPT)?, "/var/opt"))
    }

    /// Runs a program to its end.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        sandbox: &Sandbox,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
        limit: Duration,
    ) -> Result<Output> {
        self.cx.checkpoint()?;
        let command = sandbox.command(program, arguments);
        let output =
            self.runtime.block_on(async { process::run_on_this_thread(&self.cx, command, limit).await })?;
        match output.stderr.strip_prefix("bwrap: ") {
            // Its own complaints, and nothing of the program's, begin so.
            Some(why) if !output.success => {
                let what =
                    format!("the sandbox for the package manager cannot be made: {why}; nothing was staged");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
            _ => Ok(output),
        }
    }
}

/// Makes a directory one that others may read where they see it, whatever our umask is.
fn passable(dir: &Path) -> Result<()> {
    let change = || -> std::io::Result<()> {
        let mode = std::fs::metadata(dir)?.permissions().mode();
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o055))
    };
    change().doing_with(|| format!("preparing {}", dir.display()))
}

/// Everything below a directory, links not followed.
pub(super) fn walk(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
