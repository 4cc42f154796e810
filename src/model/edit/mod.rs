//! Edits of `90-osctl.yaml`, the one drop-in that the daemon writes: for people who are used to commands.
//!
//! ```text
//! Edit ── what is declared, by whom ──► Changes ── text ──► new text ── decoded again ──► declares that and nothing else
//! ```

mod rules;
mod text;

#[cfg(test)]
mod tests;

use super::dropin::{self, Beside, Leaf, Local, Text};
use super::error::{Error, ErrorKind, Result};
use super::kargs;
use super::manifest::{Karg, Manifest};
use super::packages::{is_name, is_versioned};
use super::text::one_line;
pub use rules::{Facts, Planned, package_of, plan};
use std::fmt;

/// The drop-in that is edited.
pub const NAME: &str = "90-osctl.yaml";
/// Where it is.
pub const PATH: &str = "/etc/osctl/derive.d/90-osctl.yaml";

/// How a new one begins.
const HEADER: &str = "\
# What osctl install, uninstall, override and kargs declare. It is a drop-in as any other: it can be edited by hand, and
# then applied with osctl reconcile. Those commands change single entries, and leave comments and everything else alone.
";

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Ask for a package no more.
    Uninstall,
    /// Ask for a package.
    Install,
    /// Take a package as the image has it.
    OverrideReset,
    /// Remove a package of the image.
    OverrideRemove,
    /// Take a package of the image in another version.
    OverrideReplace,
    /// Take a kernel argument away.
    KargsDelete,
    /// The same; one that is not there is fine.
    KargsDeleteIfPresent,
    /// Give a kernel argument another value: `KEY=NEW`, or `KEY=OLD=NEW`.
    KargsReplace,
    /// Add a kernel argument.
    KargsAppend,
    /// The same; one that is there is fine.
    KargsAppendIfMissing,
}

impl What {
    /// Everything, in the order in which it is done: what takes away comes first.
    pub const ALL: &'static [What] = &[
        What::Uninstall,
        What::Install,
        What::OverrideReset,
        What::OverrideRemove,
        What::OverrideReplace,
        What::KargsDelete,
        What::KargsDeleteIfPresent,
        What::KargsReplace,
        What::KargsAppend,
        What::KargsAppendIfMissing,
    ];

    /// The name on the bus.
    pub fn name(self) -> &'static str {
        match self {
            What::Uninstall => "uninstall",
            What::Install => "install",
            What::OverrideReset => "override-reset",
            What::OverrideRemove => "override-remove",
            What::OverrideReplace => "override-replace",
            What::KargsDelete => "kargs-delete",
            What::KargsDeleteIfPresent => "kargs-delete-if-present",
            What::KargsReplace => "kargs-replace",
            What::KargsAppend => "kargs-append",
            What::KargsAppendIfMissing => "kargs-append-if-missing",
        }
    }

    /// Fails with `InvalidArgument` unless this can be declared.
    fn check(self, item: &str) -> Result<()> {
        let refuse = |why: String, hint: &'static str| {
            Err(Error::new(ErrorKind::InvalidArgument, why).hint(hint).detail("key", self.name()))
        };
        match self {
            What::Install | What::Uninstall | What::OverrideRemove if !is_name(item) => refuse(
                format!("{:?} is not the name of a package", one_line(item)),
                "only names: packages come from repositories, which a drop-in can declare (repos:)",
            ),
            What::OverrideReplace if !is_versioned(item) => refuse(
                format!("{:?} is not a package with its version", one_line(item)),
                "write NAME=VERSION for apt, NAME-VERSION for rpm",
            ),
            What::OverrideReset if !is_name(item) && !is_versioned(item) => {
                refuse(format!("{:?} is not the name of a package", one_line(item)), "see: osctl status -v")
            }
            What::KargsReplace if item.split_once('=').is_none_or(|(key, _)| key.is_empty()) => refuse(
                format!("{:?} does not say what to replace by what", one_line(item)),
                "write KEY=NEW, or KEY=OLD=NEW where the key is there more than once",
            ),
            What::KargsDelete
            | What::KargsDeleteIfPresent
            | What::KargsReplace
            | What::KargsAppend
            | What::KargsAppendIfMissing => kargs::check(item).map_err(|refused| {
                let error = Error::new(ErrorKind::InvalidArgument, one_line(&refused.message));
                let error = error.detail("key", self.name());
                if let Some(hint) = refused.hint { error.hint(hint) } else { error }
            }),
            What::Install
            | What::Uninstall
            | What::OverrideRemove
            | What::OverrideReplace
            | What::OverrideReset => Ok(()),
        }
    }
}

/// What somebody asks for, checked as far as that needs no host.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Edit {
    wishes: Vec<(What, String)>,
    reset_all: bool,
    idempotent: bool,
}

impl Edit {
    /// Checks each wish. `reset_all` takes every package as the image has it; `idempotent` takes what is so already for done.
    pub fn new(wishes: Vec<(What, String)>, reset_all: bool, idempotent: bool) -> Result<Edit> {
        if wishes.is_empty() && !reset_all {
            return Err(Error::new(ErrorKind::InvalidArgument, "there is nothing to change"));
        }
        wishes.iter().try_for_each(|(what, item)| what.check(item))?;
        let mut edit = Edit { wishes, reset_all, idempotent };
        edit.wishes.sort_by_key(|(what, _)| *what);
        Ok(edit)
    }

    /// What is asked for, in the order in which it is done.
    pub fn wishes(&self) -> &[(What, String)] {
        &self.wishes
    }

    /// Whether every package is to be as the image has it.
    pub fn reset_all(&self) -> bool {
        self.reset_all
    }

    /// Whether what is so already is taken for done.
    pub fn idempotent(&self) -> bool {
        self.idempotent
    }
}

/// A list of a drop-in that is edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// `packages`
    Packages,
    /// `override-remove`
    Remove,
    /// `override-replace`
    Replace,
    /// `append` of `kernel-arguments`
    Append,
    /// `delete` of `kernel-arguments`
    Delete,
}

impl List {
    /// Its key, and the key below that.
    fn key(self) -> (&'static str, Option<&'static str>) {
        match self {
            List::Packages => ("packages", None),
            List::Remove => ("override-remove", None),
            List::Replace => ("override-replace", None),
            List::Append => ("kernel-arguments", Some("append")),
            List::Delete => ("kernel-arguments", Some("delete")),
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key() {
            (key, None) => f.write_str(key),
            (key, Some(below)) => write!(f, "{key}.{below}"),
        }
    }
}

/// An entry that comes into a list, or leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The list.
    pub list: List,
    /// The entry.
    pub item: String,
    /// Whether it comes.
    pub add: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.add { "added" } else { "removed" };
        write!(f, "{NAME}: {verb} {} ({})", self.item, self.list)
    }
}

/// The text with these changes; `None` is the text of a file that does not exist.
///
/// The result is decoded: it declares what the text declared, with the changes, and nothing else. Fails with `InvalidDropIn`
/// if the text is no drop-in, with `Unsupported` if it has to be edited by hand.
pub fn rewrite(before: Option<&str>, changes: &[Change]) -> Result<String> {
    let mut wanted = declared(before.unwrap_or_default())?;
    let mut text = before.unwrap_or(HEADER).to_owned();
    changes.iter().for_each(|change| apply(&mut wanted, change));
    // What comes is written first: a list that is never empty in between keeps its style.
    for change in changes.iter().filter(|c| c.add).chain(changes.iter().filter(|c| !c.add)) {
        text = text::apply(PATH, &text, change)?;
    }
    // A document that says nothing has no policy; one that says something has at least the default.
    wanted.packages.on_unavailable.entry(NAME.to_owned()).or_default();
    match declared(&text) {
        Ok(found) if found == wanted => Ok(text),
        Ok(_) => Err(by_hand(PATH, "the result would not declare what is wanted")),
        Err(error) => Err(by_hand(PATH, "the result would be no drop-in").source(error)),
    }
}

/// What the text declares alone. Files beside it are taken by their names.
pub fn declared(text: &str) -> Result<Manifest> {
    let text = Text { name: NAME.to_owned(), path: PATH.to_owned(), bytes: text.as_bytes().to_vec() };
    let mut manifest = dropin::compile(&[(text, &Names)])?;
    manifest.sources.clear();
    Ok(manifest)
}

/// Files that are their names: nothing is read to compare two texts.
struct Names;

impl Beside for Names {
    fn file(&self, name: &str) -> Result<Local> {
        Ok(Local { bytes: name.as_bytes().to_vec(), private: false })
    }

    fn tree(&self, _: &str) -> Result<Vec<Leaf>> {
        Ok(Vec::new())
    }
}

/// The change, in what is declared instead of in the text.
fn apply(manifest: &mut Manifest, change: &Change) {
    let item = &change.item;
    let requests = match change.list {
        List::Packages => &mut manifest.packages.install,
        List::Remove => &mut manifest.packages.remove,
        List::Replace => &mut manifest.packages.replace,
        List::Append | List::Delete => {
            let append = change.list == List::Append;
            let list = if append { &mut manifest.kargs_append } else { &mut manifest.kargs_delete };
            if change.add {
                list.push(Karg { owner: NAME.to_owned(), arg: item.clone() });
            } else {
                list.retain(|karg| karg.arg != *item);
            }
            return;
        }
    };
    if change.add {
        requests.entry(item.clone()).or_default().insert(NAME.to_owned());
    } else {
        requests.remove(item);
    }
}

fn by_hand(file: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{file} cannot be edited: {why}; nothing was changed"))
        .hint(format!("edit {file} by hand, then: osctl reconcile"))
        .detail("file", file)
}
