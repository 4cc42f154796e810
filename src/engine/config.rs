//! Reading `osctld.toml`.
//!
//! ```text
//! below the configuration root, each over the ones before it:
//!   /usr/lib/osctl/osctld.toml
//!   /usr/lib/osctl/osctld.d/*.toml   unless /etc has the same name
//!   /etc/osctl/osctld.toml
//!   /etc/osctl/osctld.d/*.toml       a link to /dev/null only takes the name
//! ```

use crate::model::config::Config;
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::{Dir, MetadataExt};
use std::collections::BTreeSet;

/// Whose files come first.
const PLACES: [&str; 2] = ["usr/lib/osctl", "etc/osctl"];
const MAIN: &str = "osctld.toml";
const DROP_INS: &str = "osctld.d";
/// Larger than any real one; reading must have an end.
const MAX_SIZE: u64 = 1 << 20;

/// The files that count, in their order. For looking whether one changed, as well.
pub(super) fn files(config_root: &Dir) -> Result<Vec<String>> {
    let [vendor, admin] = PLACES;
    let replaced: BTreeSet<String> = names(config_root, admin)?.into_iter().collect();
    let mut files = Vec::new();
    for place in PLACES {
        files.push(format!("{place}/{MAIN}"));
        let names = names(config_root, place)?;
        let counts = |name: &&String| place != vendor || !replaced.contains(*name);
        files.extend(names.iter().filter(counts).map(|name| format!("{place}/{DROP_INS}/{name}")));
    }
    Ok(files)
}

/// The settings of this host. Fails with `InvalidArgument`, naming the file and the line.
pub(super) fn read(config_root: &Dir) -> Result<Config> {
    let mut config = Config::default();
    for path in files(config_root)? {
        if let Some(text) = text(config_root, &path)? {
            config = Config::parse(&text, &format!("/{path}"))?.over(config);
        }
    }
    Ok(config)
}

fn names(config_root: &Dir, place: &str) -> Result<Vec<String>> {
    let dir = format!("{place}/{DROP_INS}");
    let doing = || format!("listing /{dir}");
    let entries = match config_root.read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).kind(ErrorKind::InvalidArgument, doing()),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.doing_with(doing)?.file_name().to_string_lossy().into_owned();
        // READMEs, backups of editors and hidden files are not meant.
        if name.ends_with(".toml") && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The text of a file; `None` if there is none, or a link to `/dev/null`.
fn text(config_root: &Dir, path: &str) -> Result<Option<String>> {
    let refused = |why: &str| {
        Error::new(ErrorKind::InvalidArgument, format!("/{path}: {why}")).detail("file", format!("/{path}"))
    };
    if config_root.read_link_contents(path).is_ok_and(|target| target.as_os_str() == "/dev/null") {
        return Ok(None);
    }
    let meta = match config_root.metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(refused("cannot be read").source(e)),
    };
    if !meta.is_file() || meta.len() > MAX_SIZE {
        return Err(refused("is not a regular file, or too large"));
    }
    if !crate::sys::fs::only_root_writes(meta.uid(), meta.mode()) {
        return Err(refused("can be written by others than root")
            .hint(format!("look at what it says, then: chown root:root /{path}; chmod go-w /{path}")));
    }
    let bytes = config_root.read(path).map_err(|e| refused("cannot be read").source(e))?;
    String::from_utf8(bytes).map(Some).map_err(|_| refused("is not UTF-8"))
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
