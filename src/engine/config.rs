//! Reading `osctld.toml`.
//!
//! ```text
//! below the configuration root, each over the ones before it:
//!   /usr/lib/osctl/osctld.toml
//!   /usr/lib/osctl/osctld.d/*.toml   unless /etc has the same name
//!   /etc/osctl/osctld.toml
//!   /etc/osctl/osctld.d/*.toml       a link to /dev/null only takes the name
//! ```

use crate::model::Result;
use crate::model::config::Config;
use crate::sys::conf::{self, Said};
use cap_std_ext::cap_std::fs::Dir;
use std::collections::BTreeSet;

/// Whose files come first.
const PLACES: [&str; 2] = ["usr/lib/osctl", "etc/osctl"];
const MAIN: &str = "osctld.toml";
const DROP_INS: &str = "osctld.d";

/// The files that count, in their order. For looking whether one changed, as well.
pub(super) fn files(config_root: &Dir) -> Result<Vec<String>> {
    let [vendor, admin] = PLACES;
    let names = |place: &str| conf::names(config_root, &format!("{place}/{DROP_INS}"));
    let replaced: BTreeSet<String> = names(admin)?.into_iter().collect();
    let mut files = Vec::new();
    for place in PLACES {
        files.push(format!("{place}/{MAIN}"));
        let names = names(place)?;
        let counts = |name: &&String| place != vendor || !replaced.contains(*name);
        files.extend(names.iter().filter(counts).map(|name| format!("{place}/{DROP_INS}/{name}")));
    }
    Ok(files)
}

/// The settings of this host. Fails with `InvalidArgument`, naming the file and the line.
pub(super) fn read(config_root: &Dir) -> Result<Config> {
    let mut config = Config::default();
    for path in files(config_root)? {
        if let Said::Text(text) = conf::text(config_root, &path)? {
            config = Config::parse(&text, &format!("/{path}"))?.over(config);
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cap_std_ext::cap_std::ambient_authority;
    use std::num::NonZeroU32;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_ambient_dir(temp.path(), ambient_authority()).unwrap();
        for place in PLACES {
            root.create_dir_all(format!("{place}/{DROP_INS}")).unwrap();
        }
        for (path, text) in files {
            root.write(path, text).unwrap();
        }
        (temp, root)
    }

    #[test]
    fn later_files_win_and_a_name_in_etc_replaces_the_vendors() {
        let (vendor, etc) = ("usr/lib/osctl/osctld.d", "etc/osctl/osctld.d");
        let set = |n: u32| format!("[pull]\nconnections = {n}\n");
        let (_temp, root) = root(&[]);
        assert_eq!(read(&root).unwrap(), Config::default());
        for (i, path) in [
            "usr/lib/osctl/osctld.toml".to_owned(),
            format!("{vendor}/10-a.toml"),
            format!("{vendor}/20-b.toml"),
            "etc/osctl/osctld.toml".to_owned(),
            format!("{etc}/05-c.toml"),
        ]
        .iter()
        .enumerate()
        {
            let n = u32::try_from(i).unwrap() + 1;
            root.write(path, set(n)).unwrap();
            assert_eq!(read(&root).unwrap().pull.connections, NonZeroU32::new(n), "{path}");
        }
        root.write(format!("{vendor}/30-broken.toml"), "nonsense").unwrap();
        root.write(format!("{vendor}/README"), "nonsense").unwrap();
        let error = read(&root).unwrap_err();
        assert!(error.to_string().starts_with("/usr/lib/osctl/osctld.d/30-broken.toml:1: "), "{error}");
        root.symlink_contents("/dev/null", format!("{etc}/30-broken.toml")).unwrap();
        assert_eq!(read(&root).unwrap().pull.connections, NonZeroU32::new(5));
        root.remove_file("etc/osctl/osctld.toml").unwrap();
        root.symlink_contents("/dev/null", "etc/osctl/osctld.toml").unwrap();
        assert_eq!(read(&root).unwrap().pull.connections, NonZeroU32::new(5));
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        use cap_std_ext::cap_std::fs::PermissionsExt as _;
        let path = "etc/osctl/osctld.toml";
        let (_temp, root) = root(&[(path, "")]);
        let mode = cap_std_ext::cap_std::fs::Permissions::from_mode(0o664);
        root.set_permissions(path, mode).unwrap();
        let error = read(&root).unwrap_err();
        assert_eq!(error.to_string(), "/etc/osctl/osctld.toml: can be written by others than root");
    }
}
