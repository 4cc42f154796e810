//! The `units:` stanza.

use super::cursor::{Cursor, printable};
use super::decode::{Common, conflict};
use super::{Declarations, Declared, install};
use crate::model::error::Result;
use crate::model::manifest::{File, Link, Meta, Node, OnConflict, Unit};

const UNIT_DIR: &str = "/etc/systemd/system";
const PLAIN: Meta = Meta { mode: 0o644, uid: 0, gid: 0 };

pub(super) fn unit(place: &Cursor<'_>, common: &Common, out: &mut Declarations) -> Result<()> {
    let fields =
        place.fields(&["name", "enabled", "mask", "contents", "dropins", "overwrite", "on-conflict"])?;
    let at = fields.need("name")?;
    let name = at.text()?;
    if !install::is_unit_name(name) {
        return Err(at
            .error(format!("`{}` is not a unit name", printable(name)))
            .hint("a unit name ends in its type, as in agent.service"));
    }
    let enabled = fields.boolean("enabled")?;
    let mask = fields.boolean("mask")?.unwrap_or_default();
    let contents = fields.get("contents");
    let dropins = fields.list("dropins")?;
    let overwrite = fields.boolean("overwrite")?.unwrap_or_default();
    let on_conflict = conflict(&fields, common)?;

    if mask && let Some(contents) = &contents {
        return Err(contents.error("a masked unit cannot have contents"));
    }
    if mask && let Some(dropin) = dropins.first() {
        return Err(dropin.error("a masked unit cannot have drop-ins"));
    }
    if mask && enabled == Some(true) {
        return Err(place.error("a unit cannot be both enabled and masked"));
    }
    if enabled == Some(true) && install::is_template(name) {
        let (prefix, suffix) = name.split_once('@').unwrap_or((name, ""));
        return Err(at
            .error(format!("the template {name} cannot be enabled without an instance"))
            .hint(format!("name an instance, as in {prefix}@INSTANCE{suffix}")));
    }
    if !mask && enabled.is_none() && contents.is_none() && dropins.is_empty() {
        return Err(place
            .error("the unit declares nothing")
            .hint("give enabled:, mask: true, contents: or dropins:"));
    }

    let owner = &common.owner;
    let file = |place: &Cursor<'_>, path: String| -> Result<Declared<Node>> {
        let contents = place.text()?;
        if contents.contains('\0') {
            return Err(place.error("holds a NUL character"));
        }
        let contents = contents.as_bytes().to_vec();
        let file = File { owner: owner.clone(), meta: PLAIN, contents, overwrite, on_conflict };
        Ok(Declared { name: path, value: Node::File(file), at: place.at(), key: place.key.clone() })
    };
    if let Some(contents) = &contents {
        // With drop-ins, the [Install] section may be in one of them.
        if enabled == Some(true) && dropins.is_empty() {
            install::install_links(name, contents.text()?).map_err(|e| {
                let error = contents.error_of(e.kind, e.to_string());
                match e.hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            })?;
        }
        out.nodes.push(file(contents, format!("{UNIT_DIR}/{name}"))?);
    }
    for dropin in &dropins {
        let fields = dropin.fields(&["name", "contents"])?;
        let at = fields.need("name")?;
        let file_name = at.text()?;
        let stem = file_name.strip_suffix(".conf").unwrap_or_default();
        if stem.is_empty()
            || stem.starts_with('.')
            || file_name.len() > 255
            || file_name.contains('/')
            || file_name.chars().any(char::is_control)
        {
            return Err(at.error(format!("`{}` is not a file name that ends in .conf", printable(file_name))));
        }
        out.nodes.push(file(&fields.need("contents")?, format!("{UNIT_DIR}/{name}.d/{file_name}"))?);
    }
    if mask {
        out.nodes.push(Declared {
            name: format!("{UNIT_DIR}/{name}"),
            value: mask_link(owner, overwrite, on_conflict),
            at: at.at(),
            key: at.key.clone(),
        });
    }
    if enabled.is_some() || mask {
        out.units.push(Declared {
            name: name.to_owned(),
            value: Unit { owner: owner.clone(), enabled, mask },
            at: at.at(),
            key: at.key,
        });
    }
    Ok(())
}

fn mask_link(owner: &str, overwrite: bool, on_conflict: OnConflict) -> Node {
    Node::Link(Link { owner: owner.to_owned(), target: "/dev/null".to_owned(), overwrite, on_conflict })
}
