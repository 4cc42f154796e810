//! Configuration files of the host that only root can have written.

use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::{Dir, MetadataExt};

/// Larger than any real one; reading must have an end.
pub const MAX_SIZE: u64 = 1 << 20;

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// There is no file.
    Missing,
    /// It is a link to `/dev/null`: nothing, on purpose.
    Masked,
    /// This.
    Text(String),
}

/// The names of the TOML files in a directory, sorted; none if there is no directory.
pub fn names(config_root: &Dir, dir: &str) -> Result<Vec<String>> {
    let doing = || format!("listing /{dir}");
    let entries = match config_root.read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).kind(ErrorKind::InvalidArgument, doing()),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.doing_with(doing)?.file_name().to_string_lossy().into_owned();
        if is_meant(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// READMEs, backups of editors and hidden files are not meant.
pub fn is_meant(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with('.')
}

/// The text of a file. Fails with `InvalidArgument` if others than root can write it.
pub fn text(config_root: &Dir, path: &str) -> Result<Said> {
    let refused = |why: &str| {
        Error::new(ErrorKind::InvalidArgument, format!("/{path}: {why}")).detail("file", format!("/{path}"))
    };
    if config_root.read_link_contents(path).is_ok_and(|target| target.as_os_str() == "/dev/null") {
        return Ok(Said::Masked);
    }
    let meta = match config_root.metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Said::Missing),
        Err(e) => return Err(refused("cannot be read").source(e)),
    };
    if !meta.is_file() || meta.len() > MAX_SIZE {
        return Err(refused("is not a regular file, or too large"));
    }
    if !super::fs::only_root_writes(meta.uid(), meta.mode()) {
        return Err(refused("can be written by others than root")
            .hint(format!("look at what it says, then: chown root:root /{path}; chmod go-w /{path}")));
    }
    let bytes = config_root.read(path).map_err(|e| refused("cannot be read").source(e))?;
    String::from_utf8(bytes).map(Said::Text).map_err(|_| refused("is not UTF-8"))
}
