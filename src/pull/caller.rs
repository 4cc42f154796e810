//! As whom skopeo is called, and what it is handed.
//!
//! For a registry it runs as the user that fetches. What only root can read it gets as files in memory: the credentials for
//! this image, the policy with its keys, and the configuration of the registries. Nothing of it is in a file, or on a
//! command line.

use super::fetch;
use super::types::FetchOptions;
use crate::engine::cx::Cx;
use crate::model::image::{ImageRef, Transport};
use crate::model::{Context, Result};
use crate::sys::{fd, policy, process, registries, user};
use cap_std_ext::cmdext::CapStdExtCommandExt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

/// How skopeo is called.
#[derive(Debug, Default)]
pub(super) struct Caller {
    home: Option<PathBuf>,
    /// It ends with the thread that starts it.
    bound: bool,
    confined: Option<Confined>,
}

#[derive(Debug)]
struct Confined {
    uid: u32,
    gid: u32,
    /// By the numbers that they get.
    files: Vec<(i32, Arc<OwnedFd>)>,
    policy: Vec<u8>,
    /// The options, as they are where those files are.
    opts: FetchOptions,
    /// Lives as long as it is read from.
    _copies: Option<TempDir>,
}

impl Caller {
    /// For this image, by a thread that ends when skopeo shall.
    pub(super) async fn bound(cx: &Cx, image: &ImageRef, opts: &FetchOptions) -> Result<Caller> {
        Ok(Caller { bound: true, ..Caller::loose(cx, image, opts).await? })
    }

    /// For this image, by whoever sees to its end.
    pub(super) async fn loose(cx: &Cx, image: &ImageRef, opts: &FetchOptions) -> Result<Caller> {
        let confined = match (image.transport, user::fetcher()) {
            (Transport::Registry, Some(user)) => Some(Confined::new(cx, image, opts, user).await?),
            _ => None,
        };
        Ok(Caller { home: opts.home.clone(), bound: false, confined })
    }

    /// The options as skopeo can use them.
    pub(super) fn options<'a>(&'a self, ours: &'a FetchOptions) -> &'a FetchOptions {
        self.confined.as_ref().map_or(ours, |confined| &confined.opts)
    }

    /// The text of the policy; an unreadable one is skopeo's to complain about.
    pub(super) fn policy(&self, ours: &FetchOptions) -> Vec<u8> {
        match &self.confined {
            Some(confined) => confined.policy.clone(),
            None => read_policy(ours).unwrap_or_default(),
        }
    }

    /// Makes the command one that is called so.
    pub(super) fn prepare(&self, command: &mut Command) {
        use std::os::unix::process::CommandExt;
        if let Some(confined) = &self.confined {
            command.uid(confined.uid).gid(confined.gid);
            command.env("HOME", "/nonexistent").env_remove("XDG_RUNTIME_DIR").env_remove("XDG_CONFIG_HOME");
            for (number, file) in &confined.files {
                command.take_fd_n(file.clone(), *number);
            }
        }
        if let Some(home) = &self.home {
            command.env("HOME", home);
        }
        if self.bound {
            process::end_with_this_thread(command);
        }
    }

    /// Gives a directory of ours to whom it is called as.
    pub(super) fn give(&self, dir: &Path) -> std::io::Result<()> {
        match &self.confined {
            Some(confined) => std::os::unix::fs::chown(dir, Some(confined.uid), Some(confined.gid)),
            None => Ok(()),
        }
    }
}

fn read_policy(opts: &FetchOptions) -> std::io::Result<Vec<u8>> {
    std::fs::read(opts.policy.as_deref().unwrap_or(Path::new(policy::SYSTEM)))
}

impl Confined {
    async fn new(cx: &Cx, image: &ImageRef, ours: &FetchOptions, user: (u32, u32)) -> Result<Confined> {
        let endpoints = fetch::endpoints_of(cx, image, ours).await?;
        let mut opts = ours.clone();
        let policy = read_policy(ours).ok().map(|text| policy::self_contained(&text));
        let registries = ours.registries.as_deref().and_then(|path| std::fs::read(path).ok());
        // Also where there is no login: told to use none, skopeo looks for files of its own as soon as the image is in
        // another place than its name says.
        let auth = Some(registries::auth_json(&endpoints).into_bytes());
        let handed = [
            (auth.as_deref(), &mut opts.auth_file),
            (policy.as_deref(), &mut opts.policy),
            (registries.as_deref(), &mut opts.registries),
        ];
        let mut files = Vec::new();
        // The proxy's library puts its socket at 3.
        for (number, (content, path)) in (10..).zip(handed) {
            if let Some(content) = content {
                files.push((number, Arc::new(fd::in_memory(content)?)));
                *path = Some(format!("/proc/self/fd/{number}").into());
            }
        }
        let copies = opts.lookaside.as_deref().map(readable_copy).transpose();
        let copies = copies.doing("copying registries.d")?;
        if let Some(copies) = &copies {
            opts.lookaside = Some(copies.path().to_owned());
        }
        let (uid, gid) = user;
        Ok(Confined { uid, gid, files, policy: policy.unwrap_or_default(), opts, _copies: copies })
    }
}

/// The files of a directory, where everybody can read them: the way to a configuration of somebody's own may be closed.
fn readable_copy(from: &Path) -> std::io::Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let to = TempDir::new()?;
    std::fs::set_permissions(to.path(), std::fs::Permissions::from_mode(0o755))?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().is_file() {
            let copy = to.path().join(entry.file_name());
            std::fs::write(&copy, std::fs::read(entry.path())?)?;
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(to)
}
