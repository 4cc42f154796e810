//! Reading the policy of controlled mutation.
//!
//! ```text
//! target tree  /usr/lib/osctl/policy.d/*.toml ┐ same name: /etc wins; a link to /dev/null masks
//! config root  /etc/osctl/policy.d/*.toml     ┘ ──► model::mutation: each can only forbid
//! ```

use crate::model::manifest::Manifest;
use crate::model::mutation::{self, Policy};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use crate::sys::conf::{self, Said};
use crate::sys::fs::only_root_writes;
use cap_std_ext::cap_std::fs::Dir;
use std::collections::BTreeMap;

/// Where an image's policy is.
const VENDOR_DIR: &str = "/usr/lib/osctl/policy.d";
/// Where the administrator's policy is.
const HOST_DIR: &str = "/etc/osctl/policy.d";

/// Refuses what is declared and forbidden; fails with `NotAuthorized`, naming the policy file.
///
/// Without a target tree only the administrator's files count: they are known before anything is fetched.
pub fn check(config_root: &Dir, target: Option<&CommitTree>, manifest: &Manifest) -> Result<()> {
    if manifest.is_empty() {
        return Ok(());
    }
    mutation::check(&read(config_root, target)?, manifest)
}

fn read(config_root: &Dir, target: Option<&CommitTree>) -> Result<Vec<Policy>> {
    let mut found: BTreeMap<String, Policy> = BTreeMap::new();
    if let Some(tree) = target {
        for name in tree.list(VENDOR_DIR)?.into_iter().filter(|name| conf::is_meant(name)) {
            if let Some(policy) = vendor(tree, &format!("{VENDOR_DIR}/{name}"))? {
                found.insert(name, policy);
            }
        }
    }
    let dir = HOST_DIR.trim_start_matches('/');
    for name in conf::names(config_root, dir)? {
        match conf::text(config_root, &format!("{dir}/{name}"))? {
            Said::Text(text) => {
                drop(found.insert(name.clone(), Policy::parse(&text, &format!("{HOST_DIR}/{name}"))?))
            }
            Said::Masked => drop(found.remove(&name)),
            Said::Missing => {}
        }
    }
    Ok(found.into_values().collect())
}

fn vendor(tree: &CommitTree, path: &str) -> Result<Option<Policy>> {
    let Some(info) = tree.lookup(path)? else { return Ok(None) };
    if info.symlink_target().is_some_and(|target| target == std::path::Path::new("/dev/null")) {
        return Ok(None);
    }
    let refused = |why: &str| Error::new(ErrorKind::InvalidArgument, format!("{path} of the image {why}"));
    if !only_root_writes(info.attribute_uint32("unix::uid"), info.attribute_uint32("unix::mode"))
        && !info.is_symlink()
    {
        return Err(refused("can be written by others than root"));
    }
    let bytes = tree.read(path, conf::MAX_SIZE)?.ok_or_else(|| refused("cannot be read"))?;
    let text = String::from_utf8(bytes)
        .kind(ErrorKind::InvalidArgument, format!("{path} of the image is not UTF-8"))?;
    Policy::parse(&text, path).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, Scratch, file, nodes};
    use cap_std_ext::cap_std::ambient_authority;
    use ostree_ext::ostree::RepoMode;

    #[test]
    fn the_image_forbids_too_and_a_name_in_etc_replaces_its_file() {
        let vendor = [
            ("usr/lib/osctl/policy.d/10-a.toml", Base::File(0o644, "allow.files = ['/usr']\n")),
            ("usr/lib/osctl/policy.d/20-masked.toml", Base::Link("/dev/null")),
            ("usr/lib/osctl/policy.d/README", Base::File(0o644, "nonsense")),
        ];
        let scratch = Scratch::with(RepoMode::Bare, vendor);
        let tree = CommitTree::open(&scratch.repo, &scratch.base).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_ambient_dir(temp.path(), ambient_authority()).unwrap();
        let declared = nodes([("/etc/a", file("1"))]);
        let refused = |target| check(&root, target, &declared).err().map(|e| e.details["policy"].clone());

        assert_eq!(refused(None), None);
        assert_eq!(refused(Some(&tree)).as_deref(), Some("/usr/lib/osctl/policy.d/10-a.toml"));
        check(&root, Some(&tree), &Manifest::default()).unwrap();
        root.create_dir_all("etc/osctl/policy.d").unwrap();
        root.write("etc/osctl/policy.d/10-a.toml", "").unwrap();
        assert_eq!(refused(Some(&tree)), None);
        root.write("etc/osctl/policy.d/05-b.toml", "allow.files = false").unwrap();
        assert_eq!(refused(None).as_deref(), Some("/etc/osctl/policy.d/05-b.toml"));
        root.remove_file("etc/osctl/policy.d/05-b.toml").unwrap();
        root.remove_file("etc/osctl/policy.d/10-a.toml").unwrap();
        root.symlink_contents("/dev/null", "etc/osctl/policy.d/10-a.toml").unwrap();
        assert_eq!(refused(Some(&tree)), None);
    }
}
