//! `storage.trees`: directory trees beside the drop-in, taken as files and links.

use super::super::cursor::{Cursor, printable};
use super::super::{Declared, Leaf, LeafKind, Local, decode, path};
use super::storage::{meta, mode};
use super::{Context, unsupported};
use crate::model::contents::Contents;
use crate::model::error::{Error, Result};
use crate::model::manifest::{Directory, File, Link, Meta, Node};
use std::collections::BTreeMap;

/// What is in the trees and was not given other attributes by an entry of another section, by path.
#[derive(Default)]
pub(super) struct Trees(BTreeMap<String, Taken>);

struct Taken {
    node: Declared<Node>,
    /// What is wrong, if no entry of another section says more of it.
    unsettled: Option<Error>,
}

/// A file of a tree, for an entry that gives it other attributes.
pub(super) struct TreeFile {
    pub contents: Contents,
    pub mode: u32,
    /// Why the mode has to be stated.
    pub exposed: Option<Error>,
}

impl Trees {
    /// The file that a tree has at this path.
    pub fn take_file(&mut self, name: &str) -> Option<TreeFile> {
        let Taken { node: Declared { value: Node::File(_), .. }, .. } = self.0.get(name)? else {
            return None;
        };
        let Taken { node: Declared { value: Node::File(file), .. }, unsettled: exposed } =
            self.0.remove(name)?
        else {
            return None;
        };
        Some(TreeFile { contents: file.contents, mode: file.meta.mode, exposed })
    }

    /// What the link says that a tree has at this path.
    pub fn take_link(&mut self, name: &str) -> Option<String> {
        let Taken { node: Declared { value: Node::Link(link), .. }, .. } = self.0.get(name)? else {
            return None;
        };
        let target = link.target.clone();
        self.0.remove(name);
        Some(target)
    }

    /// Everything else.
    pub fn left(self) -> Result<Vec<Declared<Node>>> {
        self.0.into_values().map(|taken| taken.unsettled.map_or(Ok(taken.node), Err)).collect()
    }
}

/// How the entries of one tree are declared.
struct Rules<'c> {
    at: Cursor<'c>,
    owner: &'c str,
    /// Of files, where it is stated; else it is decided by whether they may be executed.
    file_mode: Option<u32>,
    /// Of everything; the mode is that of directories.
    meta: Meta,
    /// Whether directories are declared at all, or come with what is in them.
    directories: bool,
}

/// Takes a tree in.
pub(super) fn tree(place: &Cursor<'_>, context: &Context<'_>, trees: &mut Trees) -> Result<()> {
    let fields = context.fields(place)?;
    let at = fields.need("local")?;
    let name = at.text()?;
    // The files directory itself is allowed, in both spellings that people use.
    let name = if matches!(name, "" | ".") { "" } else { name.strip_suffix('/').unwrap_or(name) };
    if !name.is_empty() {
        path::local(name).map_err(|r| decode::refuse(&at, r))?;
    }
    let top = fields.get("path");
    let top = match &top {
        None => "",
        Some(place) => {
            let text = place.text()?;
            if !text.starts_with('/') {
                return Err(place.error("must be an absolute path"));
            }
            text.trim_end_matches('/')
        }
    };
    let stated = |key: &str| fields.get(key).map(|c| mode(&c)).transpose();
    let dir_mode = stated("dir_mode")?;
    let owned = ["user", "group"].iter().any(|key| fields.get(key).is_some());
    let rules = Rules {
        at: at.clone(),
        owner: &context.common.owner,
        file_mode: stated("file_mode")?,
        meta: meta(&fields, context, dir_mode.unwrap_or(0o755))?,
        directories: dir_mode.is_some() || owned,
    };
    let leaves = context.beside.tree(name).map_err(|e| decode::located(&at, &e))?;
    if rules.directories {
        rules.take(top, &Leaf { path: String::new(), kind: LeafKind::Directory }, trees)?;
    }
    for leaf in &leaves {
        rules.take(top, leaf, trees)?;
    }
    Ok(())
}

impl Rules<'_> {
    fn take(&self, top: &str, leaf: &Leaf, trees: &mut Trees) -> Result<()> {
        let full = if leaf.path.is_empty() { top.to_owned() } else { format!("{top}/{}", leaf.path) };
        let (value, unsettled) = match &leaf.kind {
            LeafKind::Directory if !self.directories => return Ok(()),
            LeafKind::Directory => {
                (Node::Directory(Directory { owner: self.owner.to_owned(), meta: self.meta.clone() }), None)
            }
            LeafKind::File { contents, executable } => self.file(&full, contents, *executable),
            LeafKind::Link(target) => self.link(&full, target)?,
        };
        let directory = matches!(value, Node::Directory(_));
        let name = path::declared(if full.is_empty() { "/" } else { &full }, directory)
            .map_err(|refused| decode::refuse(&self.at, refused))?;
        if let Some(there) = trees.0.get(&name) {
            let message =
                format!("{} is in this tree and in that of line {}", printable(&name), there.node.at.line);
            return Err(self.at.error(message).hint("give each its own `path`"));
        }
        let node = Declared { name: name.clone(), value, at: self.at.at(), key: self.at.key.clone() };
        trees.0.insert(name, Taken { node, unsettled });
        Ok(())
    }

    fn file(&self, full: &str, contents: &Local, executable: bool) -> (Node, Option<Error>) {
        let mode = self.file_mode.unwrap_or(if executable { 0o755 } else { 0o644 });
        let exposed = (contents.private && self.file_mode.is_none()).then(|| {
            let what =
                format!("the file for {} is its owner's only, and would be everybody's", printable(full));
            self.at.error(what).hint("state its mode in files:, with the same path and without contents")
        });
        let file = File {
            owner: self.owner.to_owned(),
            meta: Meta { mode, ..self.meta.clone() },
            contents: contents.bytes.clone().into(),
            overwrite: false,
            on_conflict: Default::default(),
        };
        (Node::File(file), exposed)
    }

    fn link(&self, full: &str, target: &str) -> Result<(Node, Option<Error>)> {
        path::link_target(full, target).map_err(|refused| decode::refuse(&self.at, refused))?;
        let owned = ((self.meta.uid, self.meta.gid) != (0, 0)).then(|| {
            let what = format!("{} is a link, and links belong to root", printable(full));
            unsupported(&self.at, &what).hint("declare it in links:, with the same path and without target")
        });
        let link = Link {
            owner: self.owner.to_owned(),
            target: target.to_owned(),
            overwrite: false,
            on_conflict: Default::default(),
        };
        Ok((Node::Link(link), owned))
    }
}
