//! Drop-ins: from the text of `*.yaml` and `*.bu` files to one merged [`Manifest`].
//!
//! ```text
//!                                   decode, our own format
//! text ── yaml ──► located tree ──┤                        ├──► Declarations ── Merger ──► Manifest
//!         position of every value   butane                      one file, all rules   duplicates, order
//! ```
//!
//! Everything is refused that cannot be done exactly as written, with file, line, column and key. Reading
//! files (who owns them, which one masks which) is `derive::read`.

mod butane;
mod cursor;
mod decode;
pub mod install;
mod kargs;
mod merge;
mod packages;
pub(crate) mod path;
mod source;
mod stanza;
mod sysusers;
mod treefile;
mod units;
pub(super) mod yaml;

#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;

use super::error::{Error, ErrorKind, Result};
use super::image::Digest;
use super::layers::LayerImage;
use super::manifest::{Group, Karg, Manifest, Node, Source, Unit, User};
use super::packages::{LocalPackage, Packages, Repo};
pub use merge::Merger;
pub use sysusers::{sysusers_conf, with_entries_of};
pub use treefile::OWNER as TREEFILE_OWNER;
pub use yaml::Location;

/// A drop-in of more than 1 MiB is refused: larger content belongs into a `local:` file.
pub const MAX_DROPIN: u64 = 1 << 20;
/// A `local:` file of more than 16 MiB is refused: it is held in memory, and in the image it would be a layer.
pub const MAX_CONTENTS: u64 = 16 << 20;
/// A directory tree of more bytes is refused, for the same reason.
pub const MAX_TREE: u64 = 64 << 20;
/// More entries in a directory tree are a mistake: a wrong directory.
pub const MAX_LEAVES: usize = 10_000;

/// One drop-in as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// File name, `50-agent.yaml`; of a treefile with [`TREEFILE_OWNER`] before it.
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
    pub(crate) groups: Vec<Declared<Group>>,
    pub(crate) append: Vec<Karg>,
    pub(crate) delete: Vec<Karg>,
    /// Without the repositories.
    pub(crate) packages: Packages,
    pub(crate) repos: Vec<Declared<Repo>>,
    /// The repository that a replacement is taken from.
    pub(crate) replace_from: Vec<Declared<String>>,
    /// Package files, by the request that names each.
    pub(crate) local: Vec<Declared<LocalPackage>>,
    pub(crate) layers: Vec<Declared<LayerImage>>,
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

/// What lies in a directory tree beside a drop-in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its path below the top of the tree, `etc/agent.conf`.
    pub path: String,
    /// What it is.
    pub kind: LeafKind,
}

/// What lies at a path of such a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeafKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its content.
        contents: Local,
        /// Whether anybody may execute it.
        executable: bool,
    },
    /// A symbolic link, with what it says.
    Link(String),
}

/// The directory of a drop-in, read as carefully as the drop-in itself. Names are relative to it.
pub trait Beside {
    /// Reads a file.
    fn file(&self, name: &str) -> Result<Local>;

    /// The digest of a package file. Where files are read for good it is not held in memory, and may be of any size.
    fn package(&self, name: &str) -> Result<LocalPackage> {
        let bytes = self.file(name)?.bytes;
        Ok(LocalPackage { path: name.to_owned(), digest: Digest::of(&bytes), size: bytes.len() as u64 })
    }

    /// Reads everything below a directory, in path order; the directory itself is not among it. An empty name is the
    /// drop-in's own directory.
    fn tree(&self, name: &str) -> Result<Vec<Leaf>>;
}

/// Decodes one drop-in.
///
/// Fails with `InvalidDropIn`, with `UnsupportedStanza` for what only works at first boot, and with
/// `Unsupported` for what this version cannot do; the details name file, line, column and key.
pub fn decode(text: &Text, beside: &dyn Beside) -> Result<Declarations> {
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
        groups: Vec::new(),
        append: Vec::new(),
        delete: Vec::new(),
        packages: Packages::default(),
        repos: Vec::new(),
        replace_from: Vec::new(),
        local: Vec::new(),
        layers: Vec::new(),
    };
    let Some(root) = yaml::parse(&text.path, utf8)? else { return Ok(declarations) };
    let root = cursor::Cursor::root(&text.path, &root);
    if text.name.starts_with(TREEFILE_OWNER) {
        treefile::document(root, &mut declarations)?;
    } else if text.name.ends_with(".bu") {
        butane::document(root, &mut declarations, beside)?;
    } else {
        decode::document(root, &mut declarations, beside)?;
    }
    Ok(declarations)
}

/// Decodes and merges drop-ins in the given order, each with the directory that it lies in.
pub fn compile(dropins: &[(Text, &dyn Beside)]) -> Result<Manifest> {
    let mut merger = Merger::default();
    for (text, beside) in dropins {
        merger.add(decode(text, *beside)?)?;
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
