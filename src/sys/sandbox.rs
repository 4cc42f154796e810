//! Programs of a target tree, run where they reach nothing but it (bwrap(1)).
//!
//! Two kinds: one installs, as root with few capabilities and from a thread that left the network; one fetches, as a
//! user without any rights. Both see the tree, an empty `/run` and `/tmp`, a `/var` of their own, a minimal `/dev`, and a `/proc` of their own
//! processes, which end with the first of them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// What installing needs: owners, modes, file capabilities, other users for what shall not be root. Not mounting, devices,
/// modules, networks, or other processes.
///
/// Not `DAC_READ_SEARCH`: with it, files of the host can be opened by their handles (open_by_handle_at(2)).
const CAPABILITIES: [&str; 9] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETFCAP", "SETGID", "SETUID", "SYS_CHROOT"];

/// What becoming another user needs, and what is gone with that.
const TO_BECOME_ANOTHER: [&str; 2] = ["SETGID", "SETUID"];

/// What of `/proc` root can write to without any capability, and is about the whole kernel.
const KERNEL: [&str; 6] = ["acpi", "bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Who runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root. Whoever starts it has left the network.
    Installer,
    /// A user without any rights, with the network of whoever starts it.
    Fetcher {
        /// Its uid.
        uid: u32,
        /// Its gid.
        gid: u32,
    },
}

/// A sandbox around a tree.
#[derive(Debug, Clone)]
pub struct Sandbox {
    who: Who,
    root: PathBuf,
    mounts: Vec<(&'static str, PathBuf, String)>,
    environment: Vec<(String, String)>,
    has_user_namespaces: bool,
}

impl Sandbox {
    /// Around the tree at `root`, which an installer can write to.
    pub fn new(who: Who, root: &Path) -> Sandbox {
        Sandbox {
            who,
            root: root.to_owned(),
            mounts: Vec::new(),
            environment: Vec::new(),
            has_user_namespaces: false,
        }
    }

    /// Shows something of the host, writable. `from` must have no symbolic link in it that somebody else made.
    #[must_use]
    pub fn bind(mut self, from: PathBuf, to: impl Into<String>) -> Sandbox {
        self.mounts.push(("--bind", from, to.into()));
        self
    }

    /// Shows something of the host, read-only.
    #[must_use]
    pub fn show(mut self, from: PathBuf, to: impl Into<String>) -> Sandbox {
        self.mounts.push(("--ro-bind", from, to.into()));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Sandbox {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Lets whoever fetches be root of a user namespace, over nothing: that is written to a file in `/proc`.
    #[must_use]
    pub fn with_user_namespaces(mut self) -> Sandbox {
        self.has_user_namespaces = true;
        self
    }

    /// A command in the sandbox.
    pub fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("bwrap");
        let root = match self.who {
            Who::Installer => "--bind",
            Who::Fetcher { .. } => "--ro-bind",
        };
        command.arg(root).arg(&self.root).arg("/");
        command.args([
            "--tmpfs", "/run", "--perms", "1777", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev",
        ]);
        if self.has_user_namespaces {
            for path in KERNEL.map(|name| format!("/proc/{name}")) {
                command.args(["--ro-bind-try", &path, &path]);
            }
        } else {
            command.args(["--remount-ro", "/proc"]);
        }
        command.args(["--cap-drop", "ALL"]);
        for (how, from, to) in &self.mounts {
            command.arg(how).arg(from).arg(to);
        }
        command.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
        // The first process of the namespace is the program itself: it has not ended before all others have, so nothing
        // writes any more when it is waited for.
        command.arg("--as-pid-1");
        // Keystrokes could be put into the terminal of whoever runs `--direct`.
        command.args(["--hostname", "localhost", "--die-with-parent", "--new-session", "--chdir", "/"]);
        let capabilities: &[&str] = match self.who {
            Who::Installer => &CAPABILITIES,
            Who::Fetcher { .. } => &TO_BECOME_ANOTHER,
        };
        capabilities.iter().for_each(|name| _ = command.args(["--cap-add", &format!("CAP_{name}")]));
        // Not by options of bwrap: everybody can read a command line, and a proxy may have a password.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let fixed = [("LC_ALL", "C.UTF-8"), ("TZ", "UTC"), ("HOME", "/tmp"), ("TERM", "dumb")];
        let own = self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        command.envs(fixed.into_iter().chain(own));
        // Whatever ours is.
        command.args(["--", "/bin/sh", "-c", "umask 022; exec \"$@\"", "sh"]);
        if let Who::Fetcher { uid, gid } = self.who {
            // Not by a user namespace: where /proc has mounts on it, as in a service, none may mount another, and
            // some kernels have none for users. setpriv(1) is where sh and mount are.
            command.args(["setpriv", &format!("--reuid={uid}"), &format!("--regid={gid}")]);
            command.args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"]);
        }
        command.arg(program);
        command.args(arguments.into_iter().map(|a| OsString::from(a.as_ref())));
        command
    }
}
