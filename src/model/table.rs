//! TOML with positions: every refusal names file, line and key.

use super::{Error, ErrorKind, Result};
use std::borrow::Cow;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key and where it stands.
pub(super) type Name<'a, 'b> = &'a Spanned<Cow<'b, str>>;
/// A value and where it stands.
pub(super) type Value<'a, 'b> = &'a Spanned<DeValue<'b>>;

/// A file: its text, its path, and where its keys are described.
pub(super) struct Place<'a> {
    pub text: &'a str,
    pub file: &'a str,
    pub manual: &'static str,
}

impl<'a> Place<'a> {
    /// The table that the file is.
    pub fn parse(&self) -> Result<Spanned<DeTable<'a>>> {
        DeTable::parse(self.text).map_err(|e| {
            self.refused(e.span().map_or(0, |s| s.start), format!("is not valid TOML: {}", e.message()))
        })
    }

    /// An error at this place.
    pub fn refused(&self, at: usize, why: String) -> Error {
        let line = self.text[..at.min(self.text.len())].matches('\n').count() + 1;
        Error::new(ErrorKind::InvalidArgument, format!("{}:{line}: {why}", self.file))
            .detail("file", self.file)
            .detail("line", line)
    }

    /// A key that does not belong here.
    pub fn unknown(&self, key: Name<'_, '_>, allowed: &str) -> Error {
        let key_name = key.get_ref();
        self.refused(key.span().start, format!("unknown key {key_name:?}"))
            .hint(format!("what can stand there: {allowed}; see {}", self.manual))
            .detail("key", key_name)
    }

    /// A value of another kind than it must be.
    pub fn wrong(&self, key: Name<'_, '_>, wanted: &str) -> Error {
        let key_name = key.get_ref();
        self.refused(key.span().start, format!("{key_name} must be {wanted}")).detail("key", key_name)
    }
}

/// The entries as they stand in the file: the first mistake is the one that is reported.
pub(super) fn in_order<'a, 'b>(table: &'a DeTable<'b>) -> Vec<(Name<'a, 'b>, Value<'a, 'b>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}
