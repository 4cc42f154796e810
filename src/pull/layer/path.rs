//! The paths of a layer's entries, and the errors that name them.

use super::builder::PASSTHROUGH;
use crate::model::text::one_line;
use crate::model::{Error, ErrorKind, Result};
use std::io;

/// What Linux takes as a path (PATH_MAX, with the NUL) and as a name in it.
pub(super) const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;
/// Trees are walked by recursion. The deepest path of a Debian desktop has 20 parts.
const MAX_DEPTH: usize = 256;

/// Parent and name of a path; `None` for the root.
pub(in crate::pull) fn split(path: &str) -> Option<(&str, &str)> {
    if path.is_empty() { None } else { Some(path.rsplit_once('/').unwrap_or(("", path))) }
}

/// The relative path under which an entry is stored: normalised, `/etc` as `/usr/etc`. The root is empty.
pub(super) fn mapped(raw: &[u8]) -> Result<String> {
    let path = std::str::from_utf8(raw)
        .map_err(|_| refused(&String::from_utf8_lossy(raw), "is not UTF-8, which ostree needs"))?;
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refused(path, "climbs out of its directory")),
            part if part.contains('\0') => return Err(refused(path, "contains a NUL")),
            part if part.len() > MAX_NAME => return Err(refused(path, "has a name of more than 255 bytes")),
            part if part.strip_prefix(".wh.").unwrap_or(part).starts_with(PASSTHROUGH) => {
                return Err(refused(path, "has a name that libostree would make a device of"));
            }
            part => parts.push(part),
        }
    }
    // With room for the /usr of /usr/etc.
    if path.len() > MAX_PATH - 4 || parts.len() >= MAX_DEPTH {
        return Err(refused(path, "is longer or deeper than a path can be"));
    }
    match parts.first() {
        Some(&"etc") => parts.insert(0, "usr"),
        Some(&".wh.etc") => parts.insert(0, "usr"),
        _ => {}
    }
    Ok(parts.join("/"))
}

/// The name under which the other of two things that cannot be side by side is stored: a file, and a whiteout that is
/// content.
pub(in crate::pull) fn other_spelling(name: &str) -> String {
    name.strip_prefix(PASSTHROUGH).map_or_else(|| format!("{PASSTHROUGH}{name}"), str::to_owned)
}

/// A path of the image as people may see it.
pub(in crate::pull) fn shown(path: &str) -> String {
    format!("/{}", one_line(path.trim_start_matches('/')))
}

pub(super) fn refused(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{} {why}", shown(path))).detail("path", shown(path))
}

pub(super) fn in_path(path: &str, error: Error) -> Error {
    let mut outer = Error::new(error.kind, shown(path)).detail("path", shown(path));
    outer.details.extend(error.details.clone());
    outer.source(error)
}

/// What a reader's error says about the image.
pub(in crate::pull) fn malformed(what: &str, error: io::Error) -> Error {
    // The proxy's own error says why a stream ended early; this one is then dropped by the caller.
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::NoSpace,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Corrupt,
    };
    let error = Error::new(kind, what.to_owned()).source(error);
    match kind {
        // Not of the repository, as the hint of the kind would have it.
        ErrorKind::Corrupt => error.hint("the image is damaged: build it, or push it, again"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_and_never_climb() {
        for (raw, expected) in [
            ("./", ""),
            ("/", ""),
            ("./usr//bin/./a", "usr/bin/a"),
            ("/usr/bin/", "usr/bin"),
            ("etc/passwd", "usr/etc/passwd"),
            (".wh.etc", "usr/.wh.etc"),
            ("etcetera", "etcetera"),
        ] {
            assert_eq!(mapped(raw.as_bytes()).unwrap(), expected, "{raw}");
        }
        for raw in [&b"../x"[..], b"usr/../../x", b"a\xff", b"a\0b"] {
            assert_eq!(mapped(raw).unwrap_err().kind, ErrorKind::Unsupported, "{raw:?}");
        }
    }
}
