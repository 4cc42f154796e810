//! What makes deriving impossible, whatever the drop-ins say.

use crate::model::manifest::Manifest;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use std::path::Path;

/// Configuration files are small.
const LIMIT: u64 = 1 << 20;
/// ostree-prepare-root(1) takes the first of these.
const PREPARE_ROOT: [&str; 2] = ["/etc/ostree/prepare-root.conf", "/usr/lib/ostree/prepare-root.conf"];

/// Refuses a tree that can only be booted as its builder signed it.
pub fn not_sealed(tree: &CommitTree) -> Result<()> {
    let Some(why) = sealed(tree)? else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("nothing can be derived from this image: {why}; nothing was staged"),
    )
    .hint("put the changes into a derived image, or remove the drop-ins"))
}

fn sealed(tree: &CommitTree) -> Result<Option<&'static str>> {
    for path in PREPARE_ROOT {
        let Some(text) = tree.read(path, LIMIT)? else { continue };
        if composefs_is_signed(&String::from_utf8_lossy(&text)) {
            return Ok(Some("its composefs is signed"));
        }
        break;
    }
    for version in tree.list("/usr/lib/modules")? {
        let names = tree.list(&format!("/usr/lib/modules/{version}"))?;
        if names.iter().any(|n| n.ends_with(".efi")) {
            return Ok(Some("its kernel is a unified kernel image"));
        }
    }
    Ok(None)
}

fn composefs_is_signed(config: &str) -> bool {
    let mut section = "";
    config.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        let setting = line.split_once('=').map(|(k, v)| (k.trim(), v.trim()));
        section == "[composefs]" && setting == Some(("enabled", "signed"))
    })
}

/// Refuses a uid that the host has given to another name, as a user or as a group: systemd-sysusers makes both.
pub fn ids_free(root: &Path, manifest: &Manifest) -> Result<()> {
    for file in ["etc/passwd", "etc/group"] {
        let text = match std::fs::read_to_string(root.join(file)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.doing_with(|| format!("reading {file}"))?,
        };
        for (name, user) in &manifest.users {
            let Some(id) = user.uid.map(|id| id.to_string()) else { continue };
            let Some(other) = owner_of(&text, &id).filter(|other| other != name) else { continue };
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "user {name} ({}) wants the id {id}, which /{file} gives to {other}; nothing was staged",
                    user.owner
                ),
            )
            .hint("choose another number, or leave it out"));
        }
    }
    Ok(())
}

/// Who has this id in passwd(5) or group(5).
fn owner_of(text: &str, id: &str) -> Option<String> {
    let fields = |line: &str| -> Option<String> {
        let mut fields = line.split(':');
        let (name, found) = (fields.next()?, fields.nth(1)?);
        (found == id).then(|| name.to_owned())
    };
    text.lines().find_map(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signed_composefs_is_sealed() {
        for (text, expected) in [
            ("[composefs]\nenabled = signed\n", true),
            ("[composefs]\nenabled=signed", true),
            ("[composefs]\nenabled = yes\n", false),
            ("[etc]\nenabled = signed\n", false),
            ("[composefs]\nenabled = yes\n[root]\nenabled = signed\n", false),
            ("", false),
        ] {
            assert_eq!(composefs_is_signed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_id_belongs_to_one_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nother:x:777:777::/:/bin/sh\nbroken\n";
        assert_eq!(owner_of(passwd, "777").as_deref(), Some("other"));
        assert_eq!(owner_of(passwd, "7"), None);
    }
}
