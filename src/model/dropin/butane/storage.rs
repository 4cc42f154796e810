//! The `storage` section: files, directories and links. Everything else of it is for the first boot.

use super::super::cursor::{Cursor, Fields, printable};
use super::super::{Declarations, Declared, MAX_CONTENTS, decode, path};
use super::trees::{self, Trees};
use super::{Context, contents, never};
use crate::model::contents::Contents;
use crate::model::error::{ErrorKind, Result};
use crate::model::manifest::{Directory, File, Link, Meta, Node};

pub(super) fn stanza(place: &Cursor<'_>, context: &Context<'_>, out: &mut Declarations) -> Result<()> {
    let fields = context.fields(place)?;
    let mut trees = Trees::default();
    for place in fields.list("trees")? {
        trees::tree(&place, context, &mut trees)?;
    }
    for place in fields.list("files")? {
        out.nodes.push(file(&place, context, &mut trees)?);
    }
    for place in fields.list("directories")? {
        out.nodes.push(directory(&place, context)?);
    }
    for place in fields.list("links")? {
        out.nodes.push(link(&place, context, &mut trees)?);
    }
    out.nodes.extend(trees.left()?);
    Ok(())
}

fn file(place: &Cursor<'_>, context: &Context<'_>, trees: &mut Trees) -> Result<Declared<Node>> {
    let fields = context.fields(place)?;
    let (at, name) = decode::declared_path(&fields, false)?;
    let overwrite = fields.boolean("overwrite")?.unwrap_or_default();
    let appended = fields.list("append")?;
    let mode = fields.get("mode").map(|c| mode(&c)).transpose()?;
    let (mut contents, default) = match fields.get("contents") {
        Some(from) => {
            let (contents, private) = contents::resource(&from, context)?;
            if private && mode.is_none() {
                return Err(decode::exposed(&from));
            }
            (contents, 0o644)
        }
        None => {
            let Some(file) = trees.take_file(&name) else {
                return Err(match appended.first() {
                    Some(place) => place
                        .error("what the image has at this path cannot be appended to")
                        .hint("give the whole `contents`, or a file of its own in a .d directory"),
                    None => place
                        .error("`contents` is missing, and no tree has this file")
                        .hint("an empty file is contents: {inline: \"\"}"),
                });
            };
            if let Some(error) = file.exposed.filter(|_| mode.is_none()) {
                return Err(error);
            }
            (file.contents, file.mode)
        }
    };
    for place in &appended {
        let (more, private) = contents::resource(place, context)?;
        if private && mode.is_none() {
            return Err(decode::exposed(place));
        }
        append(place, &mut contents, &more)?;
    }
    let file = File {
        owner: context.common.owner.clone(),
        meta: meta(&fields, context, mode.unwrap_or(default))?,
        contents,
        overwrite,
        on_conflict: context.common.on_conflict,
    };
    Ok(Declared { name, value: Node::File(file), at: at.at(), key: at.key })
}

fn append(place: &Cursor<'_>, to: &mut Contents, more: &Contents) -> Result<()> {
    let (Contents::Here(bytes), Some(more)) = (to, more.bytes()) else {
        return Err(place
            .error_of(ErrorKind::Unsupported, "downloads cannot be joined")
            .hint("put what is downloaded into a file of its own in a .d directory"));
    };
    bytes.extend_from_slice(more);
    if bytes.len() as u64 > MAX_CONTENTS {
        return Err(place.error("the file becomes larger than a file may be"));
    }
    Ok(())
}

fn directory(place: &Cursor<'_>, context: &Context<'_>) -> Result<Declared<Node>> {
    let fields = context.fields(place)?;
    let (at, name) = decode::declared_path(&fields, true)?;
    never(
        &fields,
        "overwrite",
        true,
        "a drop-in cannot replace what the image has by a directory",
        "leave it out: a directory that the image has is taken as it is",
    )?;
    let mode = fields.get("mode").map(|c| mode(&c)).transpose()?.unwrap_or(0o755);
    let meta = meta(&fields, context, mode)?;
    let directory = Directory { owner: context.common.owner.clone(), meta };
    Ok(Declared { name, value: Node::Directory(directory), at: at.at(), key: at.key })
}

fn link(place: &Cursor<'_>, context: &Context<'_>, trees: &mut Trees) -> Result<Declared<Node>> {
    let fields = context.fields(place)?;
    let (at, name) = decode::declared_path(&fields, false)?;
    never(
        &fields,
        "hard",
        true,
        "hard links cannot be declared",
        "make it a symbolic link, or a second file",
    )?;
    for key in ["user", "group"] {
        if let Some(place) = fields.get(key)
            && id(&place, context)? != 0
        {
            return Err(super::unsupported(&place, "a link belongs to root").hint("leave it out"));
        }
    }
    let target = match fields.get("target") {
        Some(place) => {
            let target = place.text()?;
            path::link_target(&name, target).map_err(|r| decode::refuse(&place, r))?;
            target.to_owned()
        }
        None => trees
            .take_link(&name)
            .ok_or_else(|| place.error("`target` is missing, and no tree has this link"))?,
    };
    let link = Link {
        owner: context.common.owner.clone(),
        target,
        overwrite: fields.boolean("overwrite")?.unwrap_or_default(),
        on_conflict: context.common.on_conflict,
    };
    Ok(Declared { name, value: Node::Link(link), at: at.at(), key: at.key })
}

/// The owners that are given, or root.
pub(super) fn meta(fields: &Fields<'_>, context: &Context<'_>, mode: u32) -> Result<Meta> {
    let owner = |key: &str| fields.get(key).map_or(Ok(0), |place| id(&place, context));
    Ok(Meta { mode, uid: owner("user")?, gid: owner("group")? })
}

fn id(place: &Cursor<'_>, context: &Context<'_>) -> Result<u32> {
    context.fields(place)?;
    decode::id(place)
}

/// A mode, as YAML 1.1 and Butane read it: octal with a leading zero, else decimal.
///
/// 644 is decimal, and the mode 01204. Nobody means that: it is refused where only the digits, taken as octal, look
/// like a mode. Ignition's own configurations have 420 for 0644, so decimal numbers cannot all be refused.
pub(super) fn mode(place: &Cursor<'_>) -> Result<u32> {
    let text = place.scalar("a mode such as 0644")?;
    let shown = printable(text);
    let octal = text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| !rest.is_empty()));
    let (digits, radix) = octal.map_or((text, 10), |digits| (digits, 8));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(place.error(format!("`{shown}` is not a mode")).hint("write it in octal, as 0644"));
    }
    let mode = match u32::from_str_radix(digits, radix) {
        Ok(mode) if mode <= 0o7777 => mode,
        Ok(_) | Err(_) => {
            return Err(place
                .error(format!("`{shown}` is more than 07777"))
                .hint("write it in octal, as 0644"));
        }
    };
    if radix == 10 && u32::from_str_radix(digits, 8).is_ok_and(|meant| meant != mode && likely(meant)) {
        return Err(place
            .error(format!("`{shown}` is a decimal number and means the mode 0{mode:o}"))
            .hint(format!("write 0{shown}, or 0{mode:o} if that is meant")));
    }
    Ok(mode)
}

/// Whether somebody would write this mode: the owner may read, and nobody may more than the one before.
fn likely(mode: u32) -> bool {
    let [owner, group, others] = [mode >> 6 & 7, mode >> 3 & 7, mode & 7];
    owner & 4 != 0 && group & !owner == 0 && others & !group == 0
}
