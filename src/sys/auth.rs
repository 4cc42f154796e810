//! Where registry credentials, the signature policy and the registries' configuration lie. Only paths leave this module, never contents.

use cap_std_ext::cap_std::fs::Dir;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// The places of the contract (DESIGN section 8), in the order of the search, below the configuration root.
pub const SEARCH: [&str; 6] = [
    "etc/osctl/auth.json",
    "run/ostree/auth.json",
    "etc/ostree/auth.json",
    "usr/lib/ostree/auth.json",
    "run/containers/0/auth.json",
    "etc/containers/auth.json",
];

/// The variable that names a containers-registries.conf(5) in place of the system's.
///
/// Podman reads it. skopeo 1.9.3 does not (seen), and has an option for it: [`super::process::skopeo_options`].
pub const REGISTRIES_CONF: &str = "CONTAINERS_REGISTRIES_CONF";

/// The signature policy of the configured root, where it has one; otherwise programs use that of the running system.
pub fn policy(config_root: &Dir) -> Option<PathBuf> {
    let path = "etc/containers/policy.json";
    config_root.exists(path).then(|| host_path(config_root).join(path))
}

/// The credentials file to use: the image's own, else the first that exists; `None` means anonymous.
///
/// A per-image file that does not exist is returned all the same: the pull then fails and names it, which is better
/// than quietly using other credentials.
pub fn find_auth(config_root: &Dir, per_image: Option<&str>) -> Option<PathBuf> {
    let base = host_path(config_root);
    if let Some(path) = per_image {
        return Some(base.join(path.trim_start_matches('/')));
    }
    SEARCH.iter().find(|p| config_root.metadata(p).is_ok_and(|m| m.is_file())).map(|p| base.join(p))
}

/// The path of a directory handle, for children that take only paths.
///
/// It follows a rename of the directory, other than a path that was remembered.
pub fn host_path(dir: &Dir) -> PathBuf {
    let fd = dir.as_fd().as_raw_fd();
    // Without /proc the descriptor itself is still a path that our own process could use.
    let link = PathBuf::from(format!("/proc/self/fd/{fd}"));
    std::fs::read_link(&link).unwrap_or(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cap_std_ext::cap_std::ambient_authority;

    #[test]
    fn the_first_credentials_file_wins_and_the_images_own_beats_all() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_ambient_dir(temp.path(), ambient_authority()).unwrap();
        let base = host_path(&root);
        assert_eq!(find_auth(&root, None), None);
        for path in SEARCH.iter().rev() {
            root.create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
            root.write(path, "{}").unwrap();
            assert_eq!(find_auth(&root, None), Some(base.join(path)));
        }
        assert_eq!(find_auth(&root, Some("/etc/app.json")), Some(base.join("etc/app.json")));
    }
}
