//! Where registry credentials, the signature policy and the registries' configuration lie. Only paths leave this module, never contents.

use super::credentials::{AuthFile, Login};
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
/// Podman reads it. skopeo 1.9.3 does not (seen), and has an option for it: [`super::skopeo::options`].
pub const REGISTRIES_CONF: &str = "CONTAINERS_REGISTRIES_CONF";

/// The signature policy of the configured root, where it has one; otherwise programs use that of the running system.
pub fn policy(config_root: &Dir) -> Option<PathBuf> {
    let path = "etc/containers/policy.json";
    config_root.exists(path).then(|| host_path(config_root).join(path))
}

/// Where the configured root says where signatures lie, containers-registries.d(5), if it is not the running system's.
pub fn lookaside(config_root: &Dir) -> Option<PathBuf> {
    let path = "etc/containers/registries.d";
    let root = host_path(config_root);
    (root != std::path::Path::new("/") && config_root.is_dir(path)).then(|| root.join(path))
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

/// What a credentials file has for one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// There is no such file.
    Missing,
    /// It cannot be read by the caller.
    Unreadable,
    /// It is no containers-auth.json(5), or what it has for the repository cannot be decoded.
    Damaged,
    /// It has nothing for the repository.
    Without,
    /// It has credentials for the repository.
    With,
    /// It names a credential helper for the registry.
    Helper,
}

/// The files of the search of [`find_auth`] in its order, and what each has for a repository (`host[:port]/path`).
pub fn explain(config_root: &Dir, per_image: Option<&str>, repository: &str) -> Vec<(PathBuf, Found)> {
    let own = per_image.map(|p| p.trim_start_matches('/'));
    let paths = own.into_iter().chain(SEARCH);
    paths.map(|p| (PathBuf::from("/").join(p), look(config_root.read(p), repository))).collect()
}

fn look(file: std::io::Result<Vec<u8>>, repository: &str) -> Found {
    let bytes = match file {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Found::Missing,
        Err(_) => return Found::Unreadable,
    };
    let Some(file) = AuthFile::parse(&bytes) else { return Found::Damaged };
    match file.find(repository) {
        Login::Here(_) => Found::With,
        Login::Helper(_) => Found::Helper,
        Login::None => Found::Without,
        Login::Damaged => Found::Damaged,
    }
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

    #[test]
    fn what_a_file_has_for_a_repository_is_told_without_its_contents() {
        let table = [
            ("[]", Found::Damaged),
            ("{}", Found::Without),
            (r#"{"auths":{"other.io":{}}}"#, Found::Without),
            (r#"{"auths":{"r.io":{"auth":"eDp5"}}}"#, Found::With),
            (r#"{"auths":{"r.io/team":{"auth":"eDp5"}}}"#, Found::With),
            (r#"{"auths":{"r.io/team/os":{"auth":"eDp5"}}}"#, Found::With),
            (r#"{"auths":{"r.io/team/other":{"auth":"eDp5"}}}"#, Found::Without),
            (r#"{"auths":{"r.io":{"auth":"x"}}}"#, Found::Damaged),
            (r#"{"auths":{"r.io":{}}}"#, Found::Without),
            (r#"{"credHelpers":{"r.io":"pass"}}"#, Found::Helper),
            (r#"{"credHelpers":{"r.io":"pass"},"auths":{"r.io":{"auth":"eDp5"}}}"#, Found::Helper),
        ];
        for (text, expected) in table {
            assert_eq!(look(Ok(text.into()), "r.io/team/os"), expected, "{text}");
        }
        assert_eq!(look(Err(std::io::ErrorKind::NotFound.into()), "r.io/x"), Found::Missing);
        assert_eq!(look(Err(std::io::ErrorKind::PermissionDenied.into()), "r.io/x"), Found::Unreadable);
    }
}
