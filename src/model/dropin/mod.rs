//! Drop-ins: from the text of `*.yaml` files to one merged [`Manifest`].
//!
//! ```text
//! text ── yaml ──► located tree ── decode ──► Declarations ── Merger ──► Manifest
//!         position of every value   one file, all rules      duplicates, order
//! ```
//!
//! Everything is refused that cannot be done exactly as written, with file, line, column and key. Reading
//! files (who owns them, which one masks which) is `derive::read`.

mod cursor;
mod decode;
pub mod install;
mod kargs;
mod merge;
mod packages;
pub(crate) mod path;
mod stanza;
mod sysusers;
mod units;
mod yaml;

#[cfg(test)]
mod tests;

use super::error::{Error, ErrorKind, Result};
use super::image::Digest;
use super::manifest::{Karg, Manifest, Node, Source, Unit, User};
use super::packages::{Packages, Repo};
pub use merge::Merger;
pub use sysusers::sysusers_conf;
pub use yaml::Location;

/// A drop-in of more than 1 MiB is refused: larger content belongs into a `local:` file.
pub const MAX_DROPIN: u64 = 1 << 20;
/// A `local:` file of more than 16 MiB is refused: it is held in memory, and in the image it would be a layer.
pub const MAX_CONTENTS: u64 = 16 << 20;

/// One drop-in as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// File name, `50-agent.yaml`.
    pub name: String,
    /// As the administrator would write it, `/etc/osctl/derive.d/50-agent.yaml`.
    pub path: String,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Something declared, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared<T> {
    pub name: String,
    pub value: T,
    pub at: Location,
    /// `files[0].path`
    pub key: String,
}

/// What one drop-in declares. Every rule that concerns one drop-in alone has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declarations {
    pub(crate) source: Source,
    pub(crate) nodes: Vec<Declared<Node>>,
    pub(crate) units: Vec<Declared<Unit>>,
    pub(crate) users: Vec<Declared<User>>,
    pub(crate) append: Vec<Karg>,
    pub(crate) delete: Vec<Karg>,
    /// Without the repositories.
    pub(crate) packages: Packages,
    pub(crate) repos: Vec<Declared<Repo>>,
}

impl Declarations {
    /// The drop-in that was decoded.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The declared paths with the place and the key that declares each.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, Location, &str, &Node)> {
        self.nodes.iter().map(|d| (d.name.as_str(), d.at, d.key.as_str(), &d.value))
    }
}

/// A `local:` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Whether its mode keeps it from group and others.
    pub private: bool,
}

/// Reads a `local:` file, named relative to the drop-in's directory.
pub type ReadLocal<'r> = &'r mut dyn FnMut(&str) -> Result<Local>;

/// Decodes one drop-in.
///
/// Fails with `InvalidDropIn`, with `UnsupportedStanza` for what only works at first boot, and with
/// `Unsupported` for what this version cannot do; the details name file, line, column and key.
pub fn decode(text: &Text, local: ReadLocal<'_>) -> Result<Declarations> {
    let size = text.bytes.len() as u64;
    if size > MAX_DROPIN {
        return Err(yaml::located(
            ErrorKind::InvalidDropIn,
            &text.path,
            None,
            "",
            &format!("{size} bytes are more than the {MAX_DROPIN} that a drop-in may have"),
        )
        .hint("put large contents into a file next to the drop-in and name it with local:"));
    }
    let utf8 = std::str::from_utf8(&text.bytes).map_err(|e| not_utf8(text, &e))?;
    let source = Source { name: text.name.clone(), path: text.path.clone(), digest: Digest::of(&text.bytes) };
    let mut declarations = Declarations {
        source,
        nodes: Vec::new(),
        units: Vec::new(),
        users: Vec::new(),
        append: Vec::new(),
        delete: Vec::new(),
        packages: Packages::default(),
        repos: Vec::new(),
    };
    if let Some(root) = yaml::parse(&text.path, utf8)? {
        decode::document(cursor::Cursor::root(&text.path, &root), &mut declarations, local)?;
    }
    Ok(declarations)
}

/// Decodes and merges drop-ins in the given order. `local` is called with the index of the drop-in.
pub fn compile(texts: &[Text], local: &mut dyn FnMut(usize, &str) -> Result<Local>) -> Result<Manifest> {
    let mut merger = Merger::default();
    for (index, text) in texts.iter().enumerate() {
        merger.add(decode(text, &mut |name| local(index, name))?)?;
    }
    Ok(merger.finish())
}

/// The error for text that is not UTF-8, placed at the first bad byte.
fn not_utf8(text: &Text, error: &std::str::Utf8Error) -> Error {
    let good = &text.bytes[..error.valid_up_to()];
    let line_start = good.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let at = Location {
        line: good.iter().filter(|b| **b == b'\n').count() + 1,
        column: String::from_utf8_lossy(&good[line_start..]).chars().count() + 1,
    };
    yaml::located(ErrorKind::InvalidDropIn, &text.path, Some(at), "", "not UTF-8")
}
