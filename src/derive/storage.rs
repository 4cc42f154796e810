//! podman finds the store of bound images: where it knows no drop-ins for storage.conf(5), the entry is merged into the
//! target's file.
//!
//! ```text
//! /etc/containers/storage.conf            of the target, if it has one: podman then reads no other
//! /usr/share/containers/storage.conf      otherwise; made if there is none
//! ```
//!
//! A file that a drop-in declares is the administrator's word, and left alone.

use crate::model::manifest::{File, Manifest, Meta, Node, OnConflict};
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use cap_std_ext::cap_std::fs::Dir;
use toml_edit::{Array, DocumentMut, Item, Table, TableLike, value};

/// The owner of the file in what a deployment says about itself: there is no drop-in that declares it.
pub const OWNER: &str = "bound-images.d";
/// Where podman finds the bound images of the deployment that runs.
const STORE: &str = "/usr/lib/osctl/storage";
/// Where that leads, and what images made for bootc name: either will do.
const SAME: [&str; 3] = [STORE, "/run/osctl/storage", "/usr/lib/bootc/storage"];
/// The one that counts is the first that is there.
const FILES: [&str; 2] = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];
const PODMAN: &str = "/usr/bin/podman";
/// No such file is larger.
const LIMIT: u64 = 1 << 20;
/// What podman does without a file; with one, these keys must be there (storage.conf(5)).
const DEFAULT: &str = "\
[storage]
driver = \"overlay\"
runroot = \"/run/containers/storage\"
graphroot = \"/var/lib/containers/storage\"
";

/// Adds the target's storage.conf with the store of bound images to what is declared, if it lacks that and has podman.
pub fn declare(tree: &CommitTree, manifest: &mut Manifest) -> Result<()> {
    if tree.lookup(PODMAN)?.is_none() || FILES.iter().any(|path| manifest.nodes.contains_key(*path)) {
        return Ok(());
    }
    let mut found = None;
    for path in FILES {
        if let Some(bytes) = tree.read(path, LIMIT)? {
            found = Some((path, bytes));
            break;
        }
    }
    let (path, text) = match found {
        Some((path, bytes)) => (path, String::from_utf8(bytes).map_err(|_| refused(path, "is not UTF-8"))?),
        None => (FILES[1], DEFAULT.to_owned()),
    };
    let Some(text) = merged(&text).map_err(|why| refused(path, &why))? else { return Ok(()) };
    let file = File {
        owner: OWNER.to_owned(),
        meta: Meta { mode: 0o644, uid: 0, gid: 0 },
        contents: text.into_bytes().into(),
        overwrite: true,
        on_conflict: OnConflict::KeepLocal,
    };
    manifest.nodes.insert(path.to_owned(), Node::File(file));
    Ok(())
}

/// What podman of this host will read instead, without the store of bound images in it: a file of the administrator that the
/// target does not have.
pub fn overlooked(tree: &CommitTree, config_root: &Dir) -> Result<Option<String>> {
    if tree.lookup(PODMAN)?.is_none() || tree.lookup(FILES[0])?.is_some() {
        return Ok(None);
    }
    let Ok(text) = config_root.read_to_string(FILES[0].trim_start_matches('/')) else { return Ok(None) };
    // What podman cannot read is podman's to say.
    let lacks = merged(&text).is_ok_and(|merged| merged.is_some());
    Ok(lacks.then(|| {
        format!(
            "podman will not find the bound images: {} of this host is read instead of the image's, and does not name {STORE} \
             as one of its additionalimagestores",
            FILES[0]
        )
    }))
}

/// The text with the store among the additional ones; `None` if it is there already. The error completes `FILE ...`.
fn merged(text: &str) -> std::result::Result<Option<String>, String> {
    let mut doc: DocumentMut =
        text.parse().map_err(|e: toml_edit::TomlError| format!("is not valid TOML: {}", e.message()))?;
    let mut table: &mut dyn TableLike = doc.as_table_mut();
    for key in ["storage", "options"] {
        let item = table.entry(key).or_insert_with(|| Item::Table(Table::new()));
        table =
            item.as_table_like_mut().ok_or_else(|| format!("has something else than a table as {key}"))?;
    }
    let stores = table.entry("additionalimagestores").or_insert_with(|| value(Array::new()));
    let stores = stores.as_array_mut().ok_or("has something else than a list as additionalimagestores")?;
    if stores.iter().any(|store| store.as_str().is_some_and(|store| SAME.contains(&store))) {
        return Ok(None);
    }
    stores.push(STORE);
    Ok(Some(doc.to_string()))
}

fn refused(path: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("{path} of the image {why}; podman would not find the bound images, and nothing was staged"),
    )
    .detail("path", path)
    .hint("declare the whole file in a drop-in, with additionalimagestores = [\"/usr/lib/osctl/storage\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_added_once_and_everything_else_stays() {
        let with =
            |list: &str| format!("# ours\n[storage]\ndriver = \"overlay\" # yes\n[storage.options]\n{list}");
        for (before, after) in [
            (
                "",
                Some(
                    "[storage]\n\n[storage.options]\nadditionalimagestores = [\"/usr/lib/osctl/storage\"]\n"
                        .into(),
                ),
            ),
            (&with(""), Some(with("additionalimagestores = [\"/usr/lib/osctl/storage\"]\n"))),
            (
                &with("additionalimagestores = [\"/srv/x\"]\nsize = \"\"\n"),
                Some(with("additionalimagestores = [\"/srv/x\", \"/usr/lib/osctl/storage\"]\nsize = \"\"\n")),
            ),
            (&with("additionalimagestores = [\"/usr/lib/osctl/storage\"]\n"), None),
            (&with("additionalimagestores = [\"/usr/lib/bootc/storage\"]\n"), None),
        ] {
            let merged = merged(before).unwrap();
            assert_eq!(
                merged.as_deref().map(str::trim_start),
                after.as_deref().map(str::trim_start),
                "{before}"
            );
            if let Some(text) = merged {
                assert_eq!(super::merged(&text).unwrap(), None);
            }
        }
        assert!(merged(DEFAULT).unwrap().unwrap().starts_with(DEFAULT));
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        for (text, why) in [
            ("[storage", "is not valid TOML: "),
            ("storage = 1", "has something else than a table as storage"),
            ("[storage]\noptions = 1", "has something else than a table as options"),
            ("[storage.options]\nadditionalimagestores = 1", "has something else than a list"),
        ] {
            assert!(merged(text).unwrap_err().starts_with(why), "{text}");
        }
    }
}
