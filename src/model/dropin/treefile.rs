//! Client treefiles of rpm-ostree (`/etc/rpm-ostree/origin.d/*.yaml`): what they ask of the package manager.
//!
//! A treefile describes how an image is composed; few of its keys make sense on a host. Every other key is refused by
//! name, with where it belongs: the table is in `keys`.

mod keys;

#[cfg(test)]
mod tests;

use super::cursor::{Cursor, Fields, printable};
use super::packages::{NAME_ONLY, not_a_name, repository};
use super::{Declarations, Declared};
use crate::model::error::Result;
use crate::model::packages::{OnUnavailable, is_name, is_versioned};

/// Before the name of a treefile in the name of its owner: no drop-in has a slash in its name.
pub const OWNER: &str = "origin.d/";

const DEFINED_ELSEWHERE: &str = "write the id alone: repositories are defined by the image, or in repos: of a drop-in in /etc/osctl/derive.d";

/// Decodes the whole document.
pub(super) fn document(root: Cursor<'_>, out: &mut Declarations) -> Result<()> {
    let top = root.fields_or(&keys::served(), keys::refusal)?;
    let owner = out.source.name.clone();
    for (_, name) in words(&top, "packages")? {
        out.packages.install.entry(name).or_default().insert(owner.clone());
    }
    for place in top.list("override-remove")? {
        let name = place.text()?;
        if !is_name(name) {
            return Err(not_a_name(&place, name));
        }
        out.packages.remove.entry(name.to_owned()).or_default().insert(owner.clone());
    }
    if let (Some(_), Some(second)) = (top.get("override-replace"), top.get("ex-override-replace")) {
        return Err(second.error("is another name of `override-replace`, which is here as well"));
    }
    for key in ["override-replace", "ex-override-replace"] {
        for place in top.list(key)? {
            replacement(&place, &owner, out)?;
        }
    }
    for place in top.list("repos")? {
        let id =
            repository(&place).map_err(|e| if e.hint.is_none() { e.hint(DEFINED_ELSEWHERE) } else { e })?;
        out.packages.enabled_repos.entry(id.to_owned()).or_default().insert(owner.clone());
    }
    out.packages.on_unavailable.insert(owner, OnUnavailable::default());
    Ok(())
}

/// `NAME-VERSION`, or `{from: {repo: ID}, packages: [NAME]}`: whatever version that repository has.
fn replacement(place: &Cursor<'_>, owner: &str, out: &mut Declarations) -> Result<()> {
    if let Ok(spec) = place.text() {
        if !is_versioned(spec) {
            return Err(place
                .error(format!("`{}` is not a package with its version", printable(spec)))
                .hint("write NAME-VERSION, or {from: {repo: ID}, packages: [NAME]}"));
        }
        out.packages.replace.entry(spec.to_owned()).or_default().insert(owner.to_owned());
        return Ok(());
    }
    let fields = place.fields(&["from", "packages"])?;
    let from = fields.need("from")?;
    let repo = repository(&from.fields(&["repo"])?.need("repo")?)?;
    fields.need("packages")?;
    let names = words(&fields, "packages")?;
    if names.is_empty() {
        return Err(place.error("names no package to replace"));
    }
    for (at, name) in names {
        out.packages.replace.entry(name.clone()).or_default().insert(owner.to_owned());
        out.replace_from.push(Declared { name, value: repo.to_owned(), at: at.at(), key: at.key });
    }
    Ok(())
}

/// The packages of a list whose items may each name several, with spaces between them.
fn words<'a>(fields: &Fields<'a>, key: &str) -> Result<Vec<(Cursor<'a>, String)>> {
    let mut found = Vec::new();
    for place in fields.list(key)? {
        for word in split(&place)? {
            if !is_name(word) {
                return Err(not_a_name(&place, word).hint(NAME_ONLY));
            }
            found.push((place.clone(), word.to_owned()));
        }
    }
    Ok(found)
}

/// Splits at spaces, but not between single quotes.
fn split<'a>(place: &Cursor<'a>) -> Result<Vec<&'a str>> {
    let text = place.text()?;
    let parts: Vec<&str> = text.split('\'').collect();
    if parts.len().is_multiple_of(2) {
        return Err(place.error(format!("`{}` has an open single quote", printable(text))));
    }
    let word = |(i, part): (usize, &'a str)| match i % 2 {
        0 => part.split_whitespace().collect(),
        _ => vec![part],
    };
    let words: Vec<&str> = parts.into_iter().enumerate().flat_map(word).collect();
    if words.is_empty() {
        return Err(place.error("names no package"));
    }
    Ok(words)
}
