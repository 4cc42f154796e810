//! Taking hosts over from rpm-ostree and bootc, and handing them back: what becomes of what.
//!
//! ```text
//! adopt     keys of their origin ──► a drop-in               + what is dropped, what would be lost
//! release   what is deployed     ──► keys of their origin    + what is dropped, what would be lost
//! ```
//!
//! Nobody misses what is *dropped*. What is *lost* changes how the host works: that needs `--lossy`.

mod adopt;
mod release;

#[cfg(test)]
mod tests;

use super::error::{Error, ErrorKind, Result};
use super::image::ImageRef;
pub use adopt::{NAME, adopt};
pub use release::{Releasable, release};
use std::fmt;
use std::str::FromStr;

/// The version of the JSON form. Members are added within one, never changed.
const VERSION: u32 = 1;
/// How many things a refusal names before it points to the whole list.
const NAMED: usize = 4;

/// Whose a host becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// Ours.
    Osctl,
    /// rpm-ostree's.
    RpmOstree,
    /// bootc's.
    Bootc,
}

impl Owner {
    /// The name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Owner::Osctl => "osctl",
            Owner::RpmOstree => "rpm-ostree",
            Owner::Bootc => "bootc",
        }
    }
}

/// A tool that a host can be handed back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tool {
    /// rpm-ostree.
    RpmOstree,
    /// bootc.
    Bootc,
}

impl Tool {
    /// All of them.
    pub const ALL: &'static [Tool] = &[Tool::RpmOstree, Tool::Bootc];

    /// The name of the program.
    pub fn name(self) -> &'static str {
        Owner::from(self).name()
    }
}

impl From<Tool> for Owner {
    fn from(tool: Tool) -> Owner {
        match tool {
            Tool::RpmOstree => Owner::RpmOstree,
            Tool::Bootc => Owner::Bootc,
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Tool {
    type Err = Error;
    fn from_str(text: &str) -> Result<Tool> {
        Tool::ALL.iter().copied().find(|tool| tool.name() == text).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("a host cannot be handed back to {text:?}"))
                .hint("to rpm-ostree, or to bootc")
        })
    }
}

/// A key of an origin file with its value, as it is written there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Key {
    /// The group, without brackets.
    pub group: String,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.key)
    }
}

/// Something that one tool knows, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Item {
    /// What it is.
    pub what: String,
    /// What becomes of it, and what to do about that.
    pub why: String,
}

impl Item {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Item {
        Item { what: what.into(), why: why.into() }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

/// A drop-in that is to be written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NewDropIn {
    /// Where.
    pub path: String,
    /// Its text.
    pub contents: String,
}

/// How a host changes its owner. The schema is `docs/handover.schema.json`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Handover {
    /// The version of this format: 1.
    pub version: u32,
    /// Who manages the host from then on.
    pub to: Owner,
    /// The image that is tracked, before and after.
    pub image: Option<ImageRef>,
    /// The drop-in that is written.
    pub drop_in: Option<NewDropIn>,
    /// What the new origin has besides the image.
    pub origin: Vec<Key>,
    /// What is said in another way from then on.
    pub converted: Vec<Item>,
    /// What goes, and is not missed.
    pub dropped: Vec<Item>,
    /// What goes, and changes how the host works.
    pub lost: Vec<Item>,
    /// What a person should know, or do.
    pub notes: Vec<String>,
}

impl Handover {
    /// One in which nothing happens.
    pub fn new(to: Owner, image: Option<ImageRef>) -> Handover {
        Handover {
            version: VERSION,
            to,
            image,
            drop_in: None,
            origin: Vec::new(),
            converted: Vec::new(),
            dropped: Vec::new(),
            lost: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Refuses to lose something, unless that is `accepted`.
    pub fn agreed(&self, accepted: bool) -> Result<()> {
        if self.lost.is_empty() || accepted {
            return Ok(());
        }
        let mut named: Vec<String> = self.lost.iter().take(NAMED).map(|item| item.what.clone()).collect();
        if self.lost.len() > NAMED {
            named.push(format!("and {} more", self.lost.len() - NAMED));
        }
        let why = format!(
            "{} cannot express what this host has: {}; nothing was changed",
            self.to.name(),
            named.join(", ")
        );
        let verb = match self.to {
            Owner::Osctl => "adopt".to_owned(),
            Owner::RpmOstree | Owner::Bootc => format!("release --to {}", self.to.name()),
        };
        let all: Vec<&str> = self.lost.iter().map(|item| item.what.as_str()).collect();
        Err(Error::new(ErrorKind::Unsupported, why)
            .hint(format!("read why with: osctl {verb} --dry-run; do without it with: osctl {verb} --lossy"))
            .detail("lost", all.join("\n")))
    }

    /// What a job says that did it.
    pub fn lines(&self) -> Vec<String> {
        let said = |word: &str, items: &[Item]| {
            items.iter().map(|item| format!("{word} {item}")).collect::<Vec<_>>()
        };
        let mut lines = said("converted", &self.converted);
        lines.extend(said("dropped", &self.dropped));
        lines.extend(said("lost", &self.lost));
        lines.extend(self.notes.iter().cloned());
        lines
    }
}
