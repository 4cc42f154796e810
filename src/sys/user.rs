//! The user that talks to the network.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The name that `systemd/osctl.sysusers` gives it.
const NAME: &str = "osctl-fetch";
/// The kernel's own uid for nobody in particular (overflowuid), where the package's user was not made: in containers,
/// installers and tests. Nothing that such a process writes is trusted, whoever else has that uid.
const NOBODY: (u32, u32) = (65534, 65534);

/// The uid and gid to fetch with; `None` where this process is not root and cannot change.
pub fn fetcher() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    // The second is where ostree hosts keep users of the image (nss-altfiles).
    let files = ["/etc/passwd", "/usr/lib/passwd"].map(|file| std::fs::read_to_string(Path::new(file)));
    let found = files.iter().flatten().find_map(|text| look(text, NAME));
    Some(found.unwrap_or(NOBODY))
}

/// Lets the user who fetches, and nobody else but root, read what is below a directory.
pub fn share_with_fetcher(path: &Path) -> io::Result<()> {
    let Some((_, gid)) = fetcher() else { return Ok(()) };
    share(path, gid)
}

fn share(path: &Path, gid: u32) -> io::Result<()> {
    let meta = std::fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(gid))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = if meta.is_dir() { 0o750 } else { 0o640 };
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            share(&entry?.path(), gid)?;
        }
    }
    Ok(())
}

fn look(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        (found && uid != 0 && gid != 0).then_some((uid, gid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_found_by_name_and_is_never_root() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nosctl-fetch:x:991:992::/:/sbin/nologin\nevil:x:0:0::/:/bin/sh\nbad\n";
        assert_eq!(look(passwd, NAME), Some((991, 992)));
        assert_eq!(look(passwd, "evil"), None);
        assert_eq!(look(passwd, "bad"), None);
    }
}
