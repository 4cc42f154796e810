//! The `units:` stanza.

use super::cursor::{Cursor, Fields, printable};
use super::decode::{Common, conflict, located};
use super::{Declarations, Declared, install};
use crate::model::error::Result;
use crate::model::manifest::{File, Link, Meta, Node, OnConflict, Unit};
use std::borrow::Cow;

const UNIT_DIR: &str = "/etc/systemd/system";
const PLAIN: Meta = Meta { mode: 0o644, uid: 0, gid: 0 };

/// A unit as it was written, in whatever format.
pub(super) struct Written<'a> {
    pub fields: Fields<'a>,
    pub contents: Option<Text<'a>>,
    pub dropins: Vec<(Cursor<'a>, Text<'a>)>,
    pub overwrite: bool,
    pub on_conflict: OnConflict,
}

/// The text of a file, and where it was given.
pub(super) struct Text<'a> {
    pub at: Cursor<'a>,
    pub text: Cow<'a, str>,
}

impl<'a> Text<'a> {
    pub fn inline(at: Cursor<'a>) -> Result<Text<'a>> {
        let text = Cow::Borrowed(at.text()?);
        Ok(Text { at, text })
    }
}

fn dropin<'a>(place: Cursor<'a>) -> Result<(Cursor<'a>, Text<'a>)> {
    let fields = place.fields(&["name", "contents"])?;
    Ok((fields.need("name")?, Text::inline(fields.need("contents")?)?))
}

pub(super) fn unit(place: &Cursor<'_>, common: &Common, out: &mut Declarations) -> Result<()> {
    let fields =
        place.fields(&["name", "enabled", "mask", "contents", "dropins", "overwrite", "on-conflict"])?;
    let written = Written {
        contents: fields.get("contents").map(Text::inline).transpose()?,
        dropins: fields.list("dropins")?.into_iter().map(dropin).collect::<Result<_>>()?,
        overwrite: fields.boolean("overwrite")?.unwrap_or_default(),
        on_conflict: conflict(&fields, common)?,
        fields,
    };
    declare(place, written, common, out)
}

/// Adds a unit; `place` is its whole entry.
pub(super) fn declare(
    place: &Cursor<'_>,
    written: Written<'_>,
    common: &Common,
    out: &mut Declarations,
) -> Result<()> {
    let Written { fields, contents, dropins, overwrite, on_conflict } = written;
    let at = fields.need("name")?;
    let name = at.text()?;
    if !install::is_unit_name(name) {
        return Err(at
            .error(format!("`{}` is not a unit name", printable(name)))
            .hint("a unit name ends in its type, as in agent.service"));
    }
    let enabled = fields.boolean("enabled")?;
    let mask = fields.boolean("mask")?.unwrap_or_default();

    if mask && let Some(contents) = &contents {
        return Err(contents.at.error("a masked unit cannot have contents"));
    }
    if mask && let Some(dropin) = fields.list("dropins")?.first() {
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
    let file = |Text { at, text }: &Text<'_>, path: String| -> Result<Declared<Node>> {
        if text.contains('\0') {
            return Err(at.error("holds a NUL character"));
        }
        let contents = text.as_bytes().into();
        let file = File { owner: owner.clone(), meta: PLAIN, contents, overwrite, on_conflict };
        Ok(Declared { name: path, value: Node::File(file), at: at.at(), key: at.key.clone() })
    };
    if let Some(contents) = &contents {
        // With drop-ins, the [Install] section may be in one of them.
        if enabled == Some(true) && dropins.is_empty() {
            install::install_links(name, &contents.text).map_err(|e| located(&contents.at, &e))?;
        }
        out.nodes.push(file(contents, format!("{UNIT_DIR}/{name}"))?);
    }
    for (at, text) in &dropins {
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
        out.nodes.push(file(text, format!("{UNIT_DIR}/{name}.d/{file_name}"))?);
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
