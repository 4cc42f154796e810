//! One document to its declarations.

use super::cursor::{Cursor, Fields, printable};
use super::path::{self, Refused};
use super::{Declarations, Declared, Local, MAX_CONTENTS, ReadLocal, kargs, packages, stanza, units};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::manifest::{Directory, File, Link, Meta, Node, OnConflict, User};

const KNOWN: [&str; 14] = [
    "packages",
    "override-remove",
    "override-replace",
    "repos",
    "extensions",
    "layers",
    "on-unavailable",
    "files",
    "directories",
    "links",
    "units",
    "users",
    "kernel-arguments",
    "on-conflict",
];

/// What systemd calls a system user (SYSTEM_UID_MAX).
const SYSTEM_UIDS: std::ops::RangeInclusive<u32> = 1..=999;

/// What holds for every entry of one drop-in.
pub(super) struct Common {
    pub owner: String,
    pub on_conflict: OnConflict,
}

pub(super) fn document(root: Cursor<'_>, out: &mut Declarations, local: ReadLocal<'_>) -> Result<()> {
    let top = root.fields_or(&KNOWN, stanza::foreign)?;
    let common = Common {
        owner: out.source.name.clone(),
        on_conflict: top.get("on-conflict").map(|c| on_conflict(&c)).transpose()?.unwrap_or_default(),
    };
    packages::stanzas(&top, &common, out, local)?;
    for place in top.list("files")? {
        out.nodes.push(file(&place, &common, local)?);
    }
    for place in top.list("directories")? {
        out.nodes.push(directory(&place, &common)?);
    }
    for place in top.list("links")? {
        out.nodes.push(link(&place, &common)?);
    }
    for place in top.list("units")? {
        units::unit(&place, &common, out)?;
    }
    for place in top.list("users")? {
        out.users.push(user(&place, &common)?);
    }
    if let Some(place) = top.get("kernel-arguments") {
        kargs::arguments(&place, &common, out)?;
    }
    Ok(())
}

fn file(place: &Cursor<'_>, common: &Common, local: ReadLocal<'_>) -> Result<Declared<Node>> {
    let fields = place.fields(&["path", "contents", "mode", "user", "group", "overwrite", "on-conflict"])?;
    let (at, name) = declared_path(&fields, false)?;
    let from = fields.need("contents")?;
    let contents = contents(&from, local)?;
    if contents.private && fields.get("mode").is_none() {
        let error =
            from.error("the local file is its owner's only, and what it becomes would be everybody's");
        return Err(error.hint("state the mode: 0600 to keep it, 0644 if it is no secret"));
    }
    let file = File {
        owner: common.owner.clone(),
        meta: meta(&fields, 0o644)?,
        contents: contents.bytes,
        overwrite: fields.boolean("overwrite")?.unwrap_or_default(),
        on_conflict: conflict(&fields, common)?,
    };
    Ok(Declared { name, value: Node::File(file), at: at.at(), key: at.key })
}

fn directory(place: &Cursor<'_>, common: &Common) -> Result<Declared<Node>> {
    let fields = place.fields(&["path", "mode", "user", "group"])?;
    let (at, name) = declared_path(&fields, true)?;
    let directory = Directory { owner: common.owner.clone(), meta: meta(&fields, 0o755)? };
    Ok(Declared { name, value: Node::Directory(directory), at: at.at(), key: at.key })
}

fn link(place: &Cursor<'_>, common: &Common) -> Result<Declared<Node>> {
    let fields = place.fields(&["path", "target", "overwrite", "on-conflict"])?;
    let (at, name) = declared_path(&fields, false)?;
    let target = fields.need("target")?;
    let text = target.text()?;
    path::link_target(&name, text).map_err(|r| refuse(&target, r))?;
    let link = Link {
        owner: common.owner.clone(),
        target: text.to_owned(),
        overwrite: fields.boolean("overwrite")?.unwrap_or_default(),
        on_conflict: conflict(&fields, common)?,
    };
    Ok(Declared { name, value: Node::Link(link), at: at.at(), key: at.key })
}

fn declared_path<'a>(fields: &Fields<'a>, tree: bool) -> Result<(Cursor<'a>, String)> {
    let place = fields.need("path")?;
    let normal = path::declared(place.text()?, tree).map_err(|r| refuse(&place, r))?;
    Ok((place, normal))
}

pub(super) fn refuse(place: &Cursor<'_>, refused: Refused) -> Error {
    let error = place.error(printable(&refused.message));
    match refused.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

pub(super) fn contents(place: &Cursor<'_>, local: ReadLocal<'_>) -> Result<Local> {
    let fields = place.fields(&["inline", "local", "source", "sha256"]).map_err(|e| {
        if e.hint.is_none() { e.hint("write contents: {inline: ...} or contents: {local: FILE}") } else { e }
    })?;
    if let Some(source) = fields.get("source") {
        source.text()?;
        return Err(source
            .error_of(ErrorKind::Unsupported, "downloaded contents are not supported by this version")
            .hint("put the file next to the drop-in and name it with local:"));
    }
    if let Some(sha256) = fields.get("sha256") {
        return Err(sha256.error("only goes with `source`"));
    }
    match (fields.get("inline"), fields.get("local")) {
        (Some(inline), None) => Ok(Local { bytes: inline.text()?.as_bytes().to_vec(), private: false }),
        (None, Some(place)) => {
            let name = place.text()?;
            path::local(name).map_err(|r| refuse(&place, r))?;
            let found = local(name).map_err(|e| {
                let (kind, hint, cause) = (e.kind, e.hint.clone(), e.chain());
                // What the reader knows comes after where it was asked for.
                let error = place.error_of(kind, cause);
                match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                }
            })?;
            if found.bytes.len() as u64 > MAX_CONTENTS {
                return Err(place.error(format!(
                    "{} bytes are more than the {MAX_CONTENTS} that a file may have",
                    found.bytes.len()
                )));
            }
            Ok(found)
        }
        (Some(_), Some(local)) => Err(local.error("give either `inline` or `local`, not both")),
        (None, None) => Err(place.error("give `inline` or `local`")),
    }
}

fn meta(fields: &Fields<'_>, default_mode: u32) -> Result<Meta> {
    Ok(Meta {
        mode: fields.get("mode").map(|c| mode(&c)).transpose()?.unwrap_or(default_mode),
        uid: fields.get("user").map(|c| id(&c)).transpose()?.unwrap_or(0),
        gid: fields.get("group").map(|c| id(&c)).transpose()?.unwrap_or(0),
    })
}

/// Octal with a leading zero, as it was written: to YAML 1.2 `0644` is six hundred and forty-four.
fn mode(place: &Cursor<'_>) -> Result<u32> {
    let text = place.scalar("an octal mode such as 0644")?;
    let shown = printable(text);
    let Some(digits) = text.strip_prefix("0o").or_else(|| text.strip_prefix('0')) else {
        let error = place.error(format!("`{shown}` is not an octal mode with a leading zero"));
        return Err(if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            error.hint(format!("write 0{shown}"))
        } else {
            error.hint("write it as 0644")
        });
    };
    if !digits.bytes().all(|b| (b'0'..=b'7').contains(&b)) || text == "0o" {
        return Err(place.error(format!("`{shown}` is not an octal mode")).hint("write it as 0644"));
    }
    match u32::from_str_radix(if digits.is_empty() { "0" } else { digits }, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        Ok(_) | Err(_) => Err(place.error(format!("`{shown}` is more than 07777"))),
    }
}

/// A numeric owner, or root. Other names mean different numbers in different images.
fn id(place: &Cursor<'_>) -> Result<u32> {
    let fields = place
        .fields(&["id", "name"])
        .map_err(|e| if e.hint.is_none() { e.hint("write {id: N} or {name: root}") } else { e })?;
    match (fields.get("id"), fields.get("name")) {
        (Some(id), None) => {
            let number = id.number()?;
            // -1 means "unchanged" to chown(2), and its 16-bit form to old file systems.
            if number == u32::MAX || number == 0xffff {
                return Err(id.error(format!("{number} is reserved")));
            }
            Ok(number)
        }
        (None, Some(name)) if name.text()? == "root" => Ok(0),
        (None, Some(name)) => Err(name
            .error(format!("the name `{}` cannot be used here, only root", printable(name.text()?)))
            .hint("give the number: {id: N}")),
        (Some(_), Some(name)) => Err(name.error("give either `id` or `name`, not both")),
        (None, None) => Err(place.error("give `id` or `name`")),
    }
}

fn on_conflict(place: &Cursor<'_>) -> Result<OnConflict> {
    place.choice(&[
        ("error", OnConflict::Error),
        ("keep-local", OnConflict::KeepLocal),
        ("take", OnConflict::Take),
    ])
}

pub(super) fn conflict(fields: &Fields<'_>, common: &Common) -> Result<OnConflict> {
    fields.get("on-conflict").map_or(Ok(common.on_conflict), |c| on_conflict(&c))
}

fn user(place: &Cursor<'_>, common: &Common) -> Result<Declared<User>> {
    let fields = place.fields_or(&["name", "system", "uid", "gecos", "home", "shell"], stanza::person)?;
    let at = fields.need("name")?;
    let name = at.text()?;
    let mut chars = name.bytes();
    // The strict syntax of systemd (USER_NAMES), so that every reader agrees.
    let good = chars.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && chars.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        && name.len() <= 31;
    if !good {
        return Err(at
            .error(format!("`{}` is not a user name", printable(name)))
            .hint("up to 31 of a-z, 0-9, _ and -, starting with a letter or _"));
    }
    if name == "root" {
        return Err(at.error_of(ErrorKind::UnsupportedStanza, "root cannot be declared"));
    }
    if fields.boolean("system")? != Some(true) {
        return Err(fields
            .get("system")
            .unwrap_or(place.clone())
            .error_of(ErrorKind::UnsupportedStanza, "only system users can be declared")
            .hint("add `system: true`; people belong into the Butane or Ignition configuration that installs the host"));
    }
    let uid = match fields.get("uid") {
        None => None,
        Some(c) => {
            let uid = c.number()?;
            if !SYSTEM_UIDS.contains(&uid) {
                return Err(c.error(format!("{uid} is not the uid of a system user (1 to 999)")));
            }
            Some(uid)
        }
    };
    let absolute = |key: &str| -> Result<Option<String>> {
        let Some(c) = fields.get(key) else { return Ok(None) };
        let text = c.text()?;
        if !text.starts_with('/') || text.contains([':', '\n']) || text.chars().any(char::is_control) {
            return Err(c.error("must be an absolute path without `:`"));
        }
        Ok(Some(text.to_owned()))
    };
    let gecos = match fields.get("gecos") {
        None => None,
        Some(c) if c.text()?.contains(':') || c.text()?.chars().any(char::is_control) => {
            return Err(c.error("must be one line without `:`"));
        }
        Some(c) => Some(c.text()?.to_owned()),
    };
    let user =
        User { owner: common.owner.clone(), uid, gecos, home: absolute("home")?, shell: absolute("shell")? };
    Ok(Declared { name: name.to_owned(), value: user, at: at.at(), key: at.key })
}
