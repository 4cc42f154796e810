//! A place in a drop-in: reads typed values and makes errors that say where they were written.

use super::yaml::{Location, Node, Value, located};
use crate::model::error::{Error, ErrorKind, Result};

/// A value with its file and its key path (`files[0].mode`).
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    file: &'a str,
    node: &'a Node<'a>,
    at: Location,
    pub key: String,
}

/// A map whose keys were checked against a list.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    cursor: Cursor<'a>,
    entries: &'a [(super::yaml::Key<'a>, Node<'a>)],
}

impl<'a> Cursor<'a> {
    pub fn root(file: &'a str, node: &'a Node<'a>) -> Cursor<'a> {
        Cursor { file, node, at: node.at, key: String::new() }
    }

    pub fn at(&self) -> Location {
        self.at
    }

    /// An `InvalidDropIn` at this place.
    pub fn error(&self, message: impl AsRef<str>) -> Error {
        self.error_of(ErrorKind::InvalidDropIn, message)
    }

    pub fn error_of(&self, kind: ErrorKind, message: impl AsRef<str>) -> Error {
        located(kind, self.file, Some(self.at), &self.key, message.as_ref())
    }

    fn wrong_type(&self, wanted: &str) -> Error {
        let found = match &self.node.value {
            _ if self.node.is_null() => "nothing".to_owned(),
            Value::Scalar { text, plain: true } if is_bool(text) => format!("the boolean `{text}`"),
            Value::Scalar { text, plain: true } if is_number(text) => format!("the number `{text}`"),
            Value::Scalar { .. } => "text".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        self.error(format!("expected {wanted}, found {found}"))
    }

    /// Text. Plain numbers and booleans are refused: YAML readers disagree about how they are written back.
    pub fn text(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Scalar { text, plain: false } => Ok(text),
            Value::Scalar { text, plain: true }
                if !self.node.is_null() && !is_bool(text) && !is_number(text) =>
            {
                Ok(text)
            }
            Value::Scalar { plain: true, .. } if !self.node.is_null() => {
                Err(self.wrong_type("text").hint("put it in quotes"))
            }
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => Err(self.wrong_type("text")),
        }
    }

    /// The scalar as it was written, whatever YAML would make of it.
    pub fn scalar(&self, wanted: &str) -> Result<&'a str> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Ok(text),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => Err(self.wrong_type(wanted)),
        }
    }

    pub fn boolean(&self) -> Result<bool> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if text == "true" => Ok(true),
            Value::Scalar { text, plain: true } if text == "false" => Ok(false),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
                Err(self.wrong_type("a boolean").hint("write true or false"))
            }
        }
    }

    /// A decimal number without sign.
    pub fn number(&self) -> Result<u32> {
        match &self.node.value {
            Value::Scalar { text, plain: true }
                if text.bytes().all(|b| b.is_ascii_digit())
                    && !text.is_empty()
                    && (text.len() == 1 || !text.starts_with('0')) =>
            {
                text.parse().map_err(|_| self.error(format!("{text} is too large")))
            }
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
                Err(self.wrong_type("a decimal number without leading zero"))
            }
        }
    }

    pub fn list(&self) -> Result<Vec<Cursor<'a>>> {
        let Value::List(items) = &self.node.value else {
            return Err(self.wrong_type("a list"));
        };
        Ok(items
            .iter()
            .enumerate()
            .map(|(i, node)| Cursor { file: self.file, node, at: node.at, key: format!("{}[{i}]", self.key) })
            .collect())
    }

    pub fn texts(&self) -> Result<Vec<(Cursor<'a>, &'a str)>> {
        self.list()?.into_iter().map(|c| c.text().map(|t| (c, t))).collect()
    }

    /// A map with whatever keys.
    pub fn map(&self) -> Result<Fields<'a>> {
        match &self.node.value {
            Value::Map(entries) => Ok(Fields { cursor: self.clone(), entries }),
            Value::Scalar { .. } | Value::List(_) => Err(self.wrong_type("a map")),
        }
    }

    /// A map with these keys and no others.
    pub fn fields(&self, known: &[&str]) -> Result<Fields<'a>> {
        self.fields_or(known, |_, _| None)
    }

    /// As [`Cursor::fields`]; `foreign` may give a better error for a key that it recognises.
    pub fn fields_or(
        &self,
        known: &[&str],
        foreign: impl Fn(&Cursor<'a>, &str) -> Option<Error>,
    ) -> Result<Fields<'a>> {
        let fields = self.map()?;
        for (key, node) in fields.entries {
            if known.contains(&&*key.text) {
                continue;
            }
            // At the key: it is what does not belong here, whatever its value is.
            let place = Cursor { file: self.file, node, at: key.at, key: self.child(&printable(&key.text)) };
            if let Some(error) = foreign(&place, &key.text) {
                return Err(error);
            }
            let mut error = located(
                ErrorKind::InvalidDropIn,
                self.file,
                Some(key.at),
                &self.child(&printable(&key.text)),
                "unknown key",
            );
            error = match nearest(&key.text, known) {
                Some(best) => error.hint(format!("did you mean `{best}`?")),
                None => error.hint(format!("known keys here: {}", known.join(", "))),
            };
            return Err(error);
        }
        Ok(fields)
    }

    /// Whether nothing was written, or `null`.
    pub fn is_null(&self) -> bool {
        self.node.is_null()
    }

    fn child(&self, key: &str) -> String {
        if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T> {
        let text = self.text()?;
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let names: Vec<_> = choices.iter().map(|(n, _)| *n).collect();
                Err(self.error(format!("`{}` is not one of {}", printable(text), names.join(", "))))
            }
        }
    }
}

impl<'a> Fields<'a> {
    pub fn get(&self, key: &str) -> Option<Cursor<'a>> {
        self.entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| Cursor {
            file: self.cursor.file,
            node,
            at: node.at,
            key: self.cursor.child(key),
        })
    }

    /// Every value, whatever its key.
    pub fn values(&self) -> impl Iterator<Item = Cursor<'a>> {
        self.entries.iter().filter_map(|(key, _)| self.get(&key.text))
    }

    pub fn need(&self, key: &str) -> Result<Cursor<'a>> {
        self.get(key).ok_or_else(|| self.cursor.error(format!("`{key}` is missing")))
    }

    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|c| c.boolean()).transpose()
    }

    pub fn list(&self, key: &str) -> Result<Vec<Cursor<'a>>> {
        self.get(key).map_or(Ok(Vec::new()), |c| c.list())
    }
}

/// Text that is safe in a one-line message.
pub(super) fn printable(text: &str) -> String {
    crate::model::text::one_line(&text.chars().take(200).collect::<String>())
}

fn is_bool(text: &str) -> bool {
    matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE")
}

/// Numbers of the YAML 1.2 core schema.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let radix = |prefix: &str, radix| {
        text.strip_prefix(prefix).is_some_and(|t| !t.is_empty() && t.chars().all(|c| c.is_digit(radix)))
    };
    matches!(digits, ".inf" | ".Inf" | ".INF")
        || matches!(text, ".nan" | ".NaN" | ".NAN")
        || radix("0x", 16)
        || radix("0o", 8)
        || (digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') && digits.parse::<f64>().is_ok())
}

/// The known key that differs by at most two edits.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    if key.len() > 40 {
        return None;
    }
    known
        .iter()
        .map(|k| (distance(key, k), *k))
        .filter(|(d, k)| *d <= 2 && *d < k.len())
        .min()
        .map(|(_, k)| k)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, cb) in b.iter().enumerate() {
            let up = row[j + 1];
            row[j + 1] = (up + 1).min(row[j] + 1).min(diagonal + usize::from(ca != *cb));
            diagonal = up;
        }
    }
    row[b.len()]
}
