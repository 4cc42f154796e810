//! One document to its declarations.

use super::cursor::{Cursor, Fields, printable};
use super::path::{self, Refused};
use super::{Beside, Declarations, Declared, Local, MAX_CONTENTS, kargs, packages, source, stanza, units};
use crate::model::contents::Contents;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::manifest::{Directory, File, Link, Meta, Node, OnConflict, User};

/// The keys at the top of a drop-in.
pub(super) const KNOWN: [&str; 14] = [
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

/// What systemd calls a system user or group (SYSTEM_UID_MAX, SYSTEM_GID_MAX).
const SYSTEM_IDS: std::ops::RangeInclusive<u32> = 1..=999;

/// What holds for every entry of one drop-in.
pub(super) struct Common {
    pub owner: String,
    pub on_conflict: OnConflict,
}

pub(super) fn document(root: Cursor<'_>, out: &mut Declarations, beside: &dyn Beside) -> Result<()> {
    let top = root.fields_or(&KNOWN, stanza::foreign)?;
    let common = Common {
        owner: out.source.name.clone(),
        on_conflict: top.get("on-conflict").map(|c| on_conflict(&c)).transpose()?.unwrap_or_default(),
    };
    packages::stanzas(&top, &common, out, beside)?;
    for place in top.list("files")? {
        out.nodes.push(file(&place, &common, beside)?);
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

fn file(place: &Cursor<'_>, common: &Common, beside: &dyn Beside) -> Result<Declared<Node>> {
    let fields = place.fields(&["path", "contents", "mode", "user", "group", "overwrite", "on-conflict"])?;
    let (at, name) = declared_path(&fields, false)?;
    let from = fields.need("contents")?;
    let (contents, private) = contents(&from, beside)?;
    if private && fields.get("mode").is_none() {
        return Err(exposed(&from));
    }
    let file = File {
        owner: common.owner.clone(),
        meta: meta(&fields, 0o644)?,
        contents,
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

pub(super) fn declared_path<'a>(fields: &Fields<'a>, tree: bool) -> Result<(Cursor<'a>, String)> {
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

/// The error for a secret that would become everybody's.
pub(super) fn exposed(place: &Cursor<'_>) -> Error {
    place
        .error("the local file is its owner's only, and what it becomes would be everybody's")
        .hint("state the mode: 0600 to keep it, 0644 if it is no secret")
}

/// The contents, and whether they are their owner's only.
pub(super) fn contents(place: &Cursor<'_>, beside: &dyn Beside) -> Result<(Contents, bool)> {
    let fields = place.fields(&["inline", "local", "source", "sha256"]).map_err(|e| {
        if e.hint.is_none() { e.hint("write contents: {inline: ...} or contents: {local: FILE}") } else { e }
    })?;
    let sha256 = fields.get("sha256");
    if let (Some(sha256), None) = (&sha256, fields.get("source")) {
        return Err(sha256.error("only goes with `source`"));
    }
    match one_of(place, &fields, ["inline", "local", "source"])? {
        ("inline", inline) => Ok((inline.text()?.into(), false)),
        ("local", place) => local(&place, beside).map(|found| (found.bytes.into(), found.private)),
        (_, place) => {
            let digest = sha256.map(|at| source::sha256(&at).map(|digest| (at, digest))).transpose()?;
            let says = source::Says { digest, gzip: None, give: "add sha256: and its 64 digits" };
            Ok((source::read(&place, says)?, false))
        }
    }
}

/// The only one of these keys that is given.
pub(super) fn one_of<'a, 'k>(
    place: &Cursor<'a>,
    fields: &Fields<'a>,
    keys: [&'k str; 3],
) -> Result<(&'k str, Cursor<'a>)> {
    let mut given = keys.into_iter().filter_map(|key| Some((key, fields.get(key)?)));
    match (given.next(), given.next()) {
        (Some(one), None) => Ok(one),
        (Some((first, _)), Some((second, place))) => {
            Err(place.error(format!("give either `{first}` or `{second}`, not both")))
        }
        (None, _) => Err(place.error(format!("give `{}`, `{}` or `{}`", keys[0], keys[1], keys[2]))),
    }
}

/// The file beside the drop-in that this names.
pub(super) fn local(place: &Cursor<'_>, beside: &dyn Beside) -> Result<Local> {
    let name = place.text()?;
    path::local(name).map_err(|r| refuse(place, r))?;
    let found = beside.file(name).map_err(|e| located(place, &e))?;
    if found.bytes.len() as u64 > MAX_CONTENTS {
        return Err(place.error(format!(
            "{} bytes are more than the {MAX_CONTENTS} that a file may have",
            found.bytes.len()
        )));
    }
    Ok(found)
}

/// What the reader of files knows comes after where it was asked for.
pub(super) fn located(place: &Cursor<'_>, error: &Error) -> Error {
    let found = place.error_of(error.kind, error.chain());
    match &error.hint {
        Some(hint) => found.hint(hint.clone()),
        None => found,
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
pub(super) fn id(place: &Cursor<'_>) -> Result<u32> {
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
    system_user(place, &fields, "home", common)
}

/// The name of a user or a group.
pub(super) fn account<'a>(fields: &Fields<'a>, what: &str) -> Result<(Cursor<'a>, &'a str)> {
    let at = fields.need("name")?;
    let name = at.text()?;
    let mut chars = name.bytes();
    // The strict syntax of systemd (USER_NAMES), so that every reader agrees.
    let good = chars.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && chars.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        && name.len() <= 31;
    if !good {
        return Err(at
            .error(format!("`{}` is not a {what} name", printable(name)))
            .hint("up to 31 of a-z, 0-9, _ and -, starting with a letter or _"));
    }
    if name == "root" {
        return Err(at.error_of(ErrorKind::UnsupportedStanza, "root cannot be declared"));
    }
    Ok((at, name))
}

/// A system user; `home` is how this format calls the home directory.
pub(super) fn system_user(
    place: &Cursor<'_>,
    fields: &Fields<'_>,
    home: &str,
    common: &Common,
) -> Result<Declared<User>> {
    let (at, name) = account(fields, "user")?;
    if fields.boolean("system")? != Some(true) {
        return Err(fields
            .get("system")
            .unwrap_or(place.clone())
            .error_of(ErrorKind::UnsupportedStanza, "only system users can be declared")
            .hint("add `system: true`; people belong into the Butane or Ignition configuration that installs the host"));
    }
    let uid = system_id(fields, "uid", "user")?;
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
        User { owner: common.owner.clone(), uid, gecos, home: absolute(home)?, shell: absolute("shell")? };
    Ok(Declared { name: name.to_owned(), value: user, at: at.at(), key: at.key })
}

/// The number of a system user or group, if one is given.
pub(super) fn system_id(fields: &Fields<'_>, key: &str, what: &str) -> Result<Option<u32>> {
    let Some(place) = fields.get(key) else { return Ok(None) };
    let id = place.number()?;
    if !SYSTEM_IDS.contains(&id) {
        return Err(place.error(format!("{id} is not the {key} of a system {what} (1 to 999)")));
    }
    Ok(Some(id))
}
