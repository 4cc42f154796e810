//! YAML with positions: a tree of scalars, lists and maps that remembers where each value was written.
//!
//! Built on parser events and not on a serde model, because a mode must be read as it was *written* (`0644`
//! is decimal in YAML 1.2) and every refusal must name line, column and key. Anchors, aliases, tags,
//! directives, duplicate keys and further documents are refused: no drop-in needs them, and the first two
//! are how small files become large ones. Files of others may have them: [`documents`] reads those, within limits.

use super::cursor::printable;
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::text::one_line;
use granit_parser::{Event, Parser, ScalarStyle};
use std::borrow::Cow;
use std::collections::HashMap;

/// Deeper than any sensible drop-in, far from any stack limit.
const MAX_DEPTH: usize = 32;
/// The same for files of others: a custom resource definition has the schema of a schema in it.
const MAX_FOREIGN_DEPTH: usize = 128;
/// What anchors and aliases may add up to, in values; without a limit, a few lines become gigabytes.
const MAX_ALIASED: usize = 100_000;

/// A position in a drop-in, both counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Location {
    /// Line, from one.
    pub line: usize,
    /// Column in characters, from one.
    pub column: usize,
}

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(in crate::model) struct Node<'a> {
    pub at: Location,
    pub value: Value<'a>,
}

/// What was written.
#[derive(Debug, Clone)]
pub(in crate::model) enum Value<'a> {
    /// `plain` is false for quoted and block scalars, which are always text.
    Scalar {
        text: Cow<'a, str>,
        plain: bool,
    },
    List(Vec<Node<'a>>),
    Map(Vec<(Key<'a>, Node<'a>)>),
}

/// A key of a map.
#[derive(Debug, Clone)]
pub(in crate::model) struct Key<'a> {
    pub at: Location,
    pub text: Cow<'a, str>,
}

/// Makes a located error: `FILE:LINE:COLUMN: KEY: MESSAGE`, with each part in the details as well.
pub(in crate::model) fn located(
    kind: ErrorKind,
    file: &str,
    at: Option<Location>,
    key: &str,
    message: &str,
) -> Error {
    let mut text = file.to_owned();
    if let Some(at) = at {
        text.push_str(&format!(":{}:{}", at.line, at.column));
    }
    text.push_str(": ");
    if !key.is_empty() {
        text.push_str(&format!("{key}: "));
    }
    // Whatever it quotes, it stays one line.
    text.push_str(&one_line(message));
    let mut error = Error::new(kind, text).detail("file", file);
    if let Some(at) = at {
        error = error.detail("line", at.line).detail("column", at.column);
    }
    if !key.is_empty() {
        error = error.detail("key", key);
    }
    error
}

/// Parses one document; `None` if the text holds nothing but comments.
pub(super) fn parse<'a>(file: &str, text: &'a str) -> Result<Option<Node<'a>>> {
    let mut events = Events { file, parser: Parser::new_from_str(text), max_depth: MAX_DEPTH, aliases: None };
    let mut root = None;
    loop {
        let (event, at) = events.next()?;
        match event {
            Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart(..) if root.is_some() => {
                return Err(events.refuse(at, "a drop-in is one document, and a second one starts here"));
            }
            Event::DocumentStart(..) => {
                let (event, at) = events.next()?;
                root = Some(events.node(event, at, 0)?);
            }
            Event::StreamEnd => return Ok(root.filter(|n| !n.is_null())),
            _ => return Err(events.refuse(at, "unexpected content")),
        }
    }
}

/// Parses all documents of a file that is not ours: aliases are written out, tags do not matter.
pub(in crate::model) fn documents<'a>(file: &str, text: &'a str) -> Result<Vec<Node<'a>>> {
    let mut events = Events {
        file,
        parser: Parser::new_from_str(text),
        max_depth: MAX_FOREIGN_DEPTH,
        aliases: Some(Aliases { anchors: HashMap::new(), left: MAX_ALIASED }),
    };
    let mut roots = Vec::new();
    loop {
        let (event, at) = events.next()?;
        match event {
            Event::StreamStart | Event::DocumentEnd => {}
            Event::DocumentStart(..) => {
                let (event, at) = events.next()?;
                roots.push(events.node(event, at, 0)?);
            }
            Event::StreamEnd => return Ok(roots),
            _ => return Err(events.refuse(at, "unexpected content")),
        }
    }
}

impl Node<'_> {
    /// How many nodes there are in it, and how many of them are in each other.
    fn extent(&self) -> (usize, usize) {
        let mut extent = (0, 0);
        let mut add = |node: &Node| {
            let (count, depth) = node.extent();
            extent = (extent.0 + count, extent.1.max(depth));
        };
        match &self.value {
            Value::Scalar { .. } => {}
            Value::List(items) => items.iter().for_each(add),
            Value::Map(entries) => entries.iter().for_each(|(_, node)| add(node)),
        }
        (extent.0 + 1, extent.1 + 1)
    }

    /// Whether nothing was written, or `null` or `~`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
    }
}

struct Events<'f, 'a> {
    file: &'f str,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    max_depth: usize,
    /// `None` where anchors, aliases and tags are refused.
    aliases: Option<Aliases<'a>>,
}

struct Aliases<'a> {
    anchors: HashMap<usize, Node<'a>>,
    /// Values that anchors and aliases may still add.
    left: usize,
}

impl<'a> Events<'_, 'a> {
    fn next(&mut self) -> Result<(Event<'a>, Location)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let at = Location { line: span.start.line().max(1), column: span.start.col() + 1 };
                Ok((event, at))
            }
            Some(Err(e)) => {
                let mark = e.marker();
                let at = Location { line: mark.line().max(1), column: mark.col() + 1 };
                Err(self.refuse(at, &format!("not valid YAML: {}", e.info())))
            }
            None => Err(self.refuse(Location { line: 1, column: 1 }, "the document ends too early")),
        }
    }

    fn refuse(&self, at: Location, message: &str) -> Error {
        located(ErrorKind::InvalidDropIn, self.file, Some(at), "", message)
    }

    fn node(&mut self, event: Event<'a>, at: Location, depth: usize) -> Result<Node<'a>> {
        if depth > self.max_depth {
            return Err(self.refuse(at, "nested too deeply"));
        }
        let anchor = match event {
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(_, anchor, _)
            | Event::MappingStart(_, anchor, _) => anchor,
            _ => 0,
        };
        let value = match event {
            Event::Alias(anchor) => return self.alias(anchor, at, depth),
            _ if anchor > 0 && self.aliases.is_none() => {
                return Err(self.refuse(at, "anchors are not allowed, write the value out"));
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, _, Some(_))
            | Event::MappingStart(_, _, Some(_))
                if self.aliases.is_none() =>
            {
                return Err(self.refuse(at, "tags are not allowed, quote a value to make it text"));
            }
            Event::Scalar(text, style, ..) => Value::Scalar { text, plain: style == ScalarStyle::Plain },
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break Value::List(items),
                        (event, at) => items.push(self.node(event, at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => Value::Map(self.map(depth)?),
            _ => return Err(self.refuse(at, "unexpected content")),
        };
        let node = Node { at, value };
        if let Some(aliases) = self.aliases.as_mut().filter(|_| anchor > 0) {
            // A copy, too: anchors around anchors hold the innermost many times.
            let Some(left) = aliases.left.checked_sub(node.extent().0) else {
                return Err(self.refuse(at, "anchors make the document too large"));
            };
            aliases.left = left;
            aliases.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, at: Location, depth: usize) -> Result<Node<'a>> {
        let Some(aliases) = &mut self.aliases else {
            return Err(self.refuse(at, "aliases are not allowed, write the value out"));
        };
        let Some(node) = aliases.anchors.get(&anchor) else {
            return Err(self.refuse(at, "an alias inside of what it names"));
        };
        let (count, height) = node.extent();
        match aliases.left.checked_sub(count) {
            Some(left) if depth + height <= self.max_depth => aliases.left = left,
            _ => return Err(self.refuse(at, "aliases make the document too large")),
        }
        Ok(Node { at, value: node.value.clone() })
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key<'a>, Node<'a>)>> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        // Linear search would make a map of 100,000 keys quadratic.
        let mut seen = HashMap::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let Node { at, value: Value::Scalar { text, .. } } = self.node(event, at, depth + 1)? else {
                return Err(self.refuse(at, "a key must be plain text"));
            };
            if let Some(first) = seen.insert(text.clone().into_owned(), at.line) {
                return Err(located(
                    ErrorKind::InvalidDropIn,
                    self.file,
                    Some(at),
                    "",
                    &format!("key `{}` is given twice, first on line {first}", printable(&text)),
                ));
            }
            let (event, value_at) = self.next()?;
            let node = self.node(event, value_at, depth + 1)?;
            entries.push((Key { at, text }, node));
        }
    }
}
