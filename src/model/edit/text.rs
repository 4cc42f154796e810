//! One change to the text of a drop-in. Everything else in it stays as it is: comments, order, style.
//!
//! ```text
//! text ── parser events ──► tree with byte ranges ── where? ──► one piece of the text replaced
//! ```
//!
//! It knows block lists, flow lists (`[a, b]`) and keys that are not there yet. What it cannot place it refuses, and
//! whoever calls it reads the result back: what stands here is about looks, what it declares is checked there.

use super::{Change, by_hand};
use crate::model::error::Result;
use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use std::ops::Range;

/// The text with the change made.
pub(super) fn apply(file: &str, text: &str, change: &Change) -> Result<String> {
    let root = Events::tree(text).ok_or_else(|| by_hand(file, "its structure is not known"))?;
    let text = Text { text, eol: if text.contains("\r\n") { "\r\n" } else { "\n" } };
    let (key, below) = change.list.key();
    let edited = match (&root, below) {
        (None, _) => Some(text.append("", key, below, &change.item)),
        (Some(root), None) => text.member(root, None, key, None, change),
        (Some(root), Some(below)) => match root.entry(key) {
            None => text.member(root, None, key, Some(below), change),
            Some((parent, map)) => text.member(map, Some(parent), below, None, change),
        },
    };
    edited.ok_or_else(|| by_hand(file, &format!("there is no safe place for this change of {}", change.list)))
}

/// Where a value stands, and what it is.
struct Node {
    at: Range<usize>,
    value: Value,
}

enum Value {
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The key and the value of this name in a map.
    fn entry(&self, name: &str) -> Option<(&Node, &Node)> {
        let Value::Map(entries) = &self.value else { return None };
        let named = |(key, _): &&(Node, Node)| matches!(&key.value, Value::Scalar(text) if text == name);
        entries.iter().find(named).map(|(key, value)| (key, value))
    }
}

struct Events<'a> {
    parser: Parser<'a, StrInput<'a>>,
    text: &'a str,
}

impl<'a> Events<'a> {
    /// The root of the only document; `Some(None)` if there are comments only.
    fn tree(text: &'a str) -> Option<Option<Node>> {
        let mut events = Events { parser: Parser::new_from_str(text), text };
        let mut root = None;
        loop {
            match events.next()? {
                (Event::StreamEnd, _) => return Some(root),
                (Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
                (event, span) => root = Some(events.node(event, span)?).filter(|node| !node.at.is_empty()),
            }
        }
    }

    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        self.parser.next_event()?.ok()
    }

    // Depth, duplicate keys, anchors and tags have been refused by whoever decoded the text before.
    fn node(&mut self, event: Event<'a>, span: Span) -> Option<Node> {
        let at = span.byte_range()?;
        match event {
            Event::Scalar(value, style, ..) => {
                let source = self.text.get(at.clone())?;
                let end =
                    if style == ScalarStyle::Plain { at.start + source.trim_end().len() } else { at.end };
                Some(Node { at: at.start..end, value: Value::Scalar(value.into_owned()) })
            }
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, end) => {
                            let at = at.start..end.byte_range()?.end;
                            return Some(Node { at, value: Value::List(items) });
                        }
                        (event, span) => items.push(self.node(event, span)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut entries = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, end) => {
                            let at = at.start..end.byte_range()?.end;
                            return Some(Node { at, value: Value::Map(entries) });
                        }
                        (event, span) => {
                            let key = self.node(event, span)?;
                            let (event, span) = self.next()?;
                            entries.push((key, self.node(event, span)?));
                        }
                    }
                }
            }
            _ => None,
        }
    }
}

struct Text<'a> {
    text: &'a str,
    eol: &'static str,
}

impl Text<'_> {
    /// Changes the list that is `key` of this map; `parent` is the key of the map itself, where it has one.
    fn member(
        &self,
        map: &Node,
        parent: Option<&Node>,
        key: &str,
        below: Option<&str>,
        change: &Change,
    ) -> Option<String> {
        match map.entry(key) {
            Some((name, Node { at, value: Value::List(items) })) => match (self.is_flow(at), change.add) {
                (true, true) => self.add_to_flow(at, items, &change.item),
                (true, false) => self.remove_from_flow(at, items, &change.item),
                (false, true) => self.add_to_block(items, &change.item),
                (false, false) => self.remove_from_block(name, items, &change.item),
            },
            Some(_) => None,
            None if change.add => self.add_key(map, parent, key, below, &change.item),
            None => None,
        }
    }

    fn is_flow(&self, at: &Range<usize>) -> bool {
        self.text[at.start..].starts_with(['[', '{'])
    }

    fn add_key(
        &self,
        map: &Node,
        parent: Option<&Node>,
        key: &str,
        below: Option<&str>,
        item: &str,
    ) -> Option<String> {
        let Value::Map(entries) = &map.value else { return None };
        if self.is_flow(&map.at) {
            let list = format!("[{}]", quoted(item));
            let value = below.map_or_else(|| list.clone(), |below| format!("{{{below}: {list}}}"));
            let comma = if entries.is_empty() { "" } else { ", " };
            return Some(
                self.replaced(map.at.start + 1..map.at.start + 1, &format!("{key}: {value}{comma}")),
            );
        }
        let first = &entries.first()?.0;
        let indent = &self.text[self.line_start(first.at.start)..first.at.start];
        if !indent.trim().is_empty() {
            return None;
        }
        match parent {
            None => Some(self.append(indent, key, below, item)),
            Some(parent) => {
                let lines = self.lines(indent, key, below, item);
                Some(self.after_line(parent.at.end, &lines))
            }
        }
    }

    /// The text with a key and its list of one at the end.
    fn append(&self, indent: &str, key: &str, below: Option<&str>, item: &str) -> String {
        self.after_line(self.text.len(), &self.lines(indent, key, below, item))
    }

    fn lines(&self, indent: &str, key: &str, below: Option<&str>, item: &str) -> String {
        let (eol, item) = (self.eol, quoted(item));
        match below {
            None => format!("{indent}{key}:{eol}{indent}  - {item}{eol}"),
            Some(below) => {
                format!("{indent}{key}:{eol}{indent}  {below}:{eol}{indent}    - {item}{eol}")
            }
        }
    }

    fn add_to_block(&self, items: &[Node], item: &str) -> Option<String> {
        let last = items.last()?;
        let dash = self.dash(last)?;
        let line = format!("{dash}{}{}", quoted(item), self.eol);
        Some(self.after_line(last.at.end, &line))
    }

    fn remove_from_block(&self, key: &Node, items: &[Node], item: &str) -> Option<String> {
        let gone = find(items, item)?;
        let dash = self.dash(gone)?;
        let (start, end) = (self.line_start(gone.at.start), self.line_end(gone.at.end));
        let rest = self.text[gone.at.end..end].trim();
        // What is said about it stays, as a line of its own.
        let indent = &dash[..dash.find('-')?];
        let comment = if rest.is_empty() { String::new() } else { format!("{indent}{rest}{}", self.eol) };
        let without = self.replaced(start..end, &comment);
        if items.len() > 1 {
            return Some(without);
        }
        // A key without a value declares nothing that can be read: an empty list does.
        let colon = key.at.end + self.text[key.at.end..].find(':')? + 1;
        let mut without = without;
        without.insert_str(colon, " []");
        Some(without)
    }

    /// What is in front of an item that has a line of its own: spaces, a dash, spaces.
    fn dash(&self, item: &Node) -> Option<&str> {
        let line = &self.text[self.line_start(item.at.start)..item.at.start];
        let one_line = !self.text[item.at.clone()].contains('\n');
        let alone = line.trim() == "-" && matches!(item.value, Value::Scalar(_));
        let rest = self.text[item.at.end..self.line_end(item.at.end)].trim();
        (one_line && alone && (rest.is_empty() || rest.starts_with('#'))).then_some(line)
    }

    fn add_to_flow(&self, at: &Range<usize>, items: &[Node], item: &str) -> Option<String> {
        let Some(last) = items.last() else {
            return Some(self.replaced(at.start + 1..at.start + 1, &quoted(item)));
        };
        matches!(last.value, Value::Scalar(_))
            .then(|| self.replaced(last.at.end..last.at.end, &format!(", {}", quoted(item))))
    }

    fn remove_from_flow(&self, at: &Range<usize>, items: &[Node], item: &str) -> Option<String> {
        let index = items.iter().position(|node| is(node, item))?;
        let mut gone = items[index].at.clone();
        let next = items.get(index + 1).map_or(at.end - 1, |next| next.at.start);
        let mut text = self.text.to_owned();
        // A comma goes with what it divided. From the end to the start, so that the places stay right.
        if let Some(comma) = self.comma(gone.end..next) {
            let end = self.spaces_end(comma + 1);
            let line = self.line_start(gone.start)..self.line_end(comma);
            let blank = |range: Range<usize>| self.text[range].trim().is_empty();
            if !blank(gone.end..comma) {
                text.replace_range(comma..end, "");
            } else if blank(line.start..gone.start) && blank(end..line.end) {
                gone = line;
            } else {
                gone = gone.start..end;
            }
            text.replace_range(gone, "");
        } else {
            text.replace_range(gone.clone(), "");
            if let Some(before) = index.checked_sub(1).map(|i| items[i].at.end) {
                let comma = self.comma(before..gone.start)?;
                text.replace_range(comma..self.spaces_end(comma + 1), "");
            }
        }
        Some(text)
    }

    /// The end of the spaces from here on; a comment keeps those in front of it, without which it is none.
    fn spaces_end(&self, from: usize) -> usize {
        let rest = self.text[from..].trim_start_matches(' ');
        if rest.starts_with(['#', '\r', '\n']) { from } else { self.text.len() - rest.len() }
    }

    /// The comma between two items, comments left aside.
    fn comma(&self, between: Range<usize>) -> Option<usize> {
        let mut comment = false;
        for (i, c) in self.text[between.clone()].char_indices() {
            match c {
                '\n' => comment = false,
                '#' => comment = true,
                ',' if !comment => return Some(between.start + i),
                _ => {}
            }
        }
        None
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |i| i + 1)
    }

    /// The place behind the line, its end included.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |i| at + i + 1)
    }

    /// The text with lines behind the one of this place.
    fn after_line(&self, at: usize, lines: &str) -> String {
        // At the end of a text that ends its lines there is no line to go behind.
        let end = if at == self.text.len() { at } else { self.line_end(at) };
        let ended = end == 0 || self.text[..end].ends_with('\n');
        let gap = if ended { "" } else { self.eol };
        self.replaced(end..end, &format!("{gap}{lines}"))
    }

    fn replaced(&self, range: Range<usize>, by: &str) -> String {
        let mut text = self.text.to_owned();
        text.replace_range(range, by);
        text
    }
}

fn is(node: &Node, item: &str) -> bool {
    matches!(&node.value, Value::Scalar(text) if text == item)
}

fn find<'n>(items: &'n [Node], item: &str) -> Option<&'n Node> {
    items.iter().find(|node| is(node, item))
}

/// A text as YAML reads it back, in block and in flow lists: plain where nobody can take it for something else.
fn quoted(item: &str) -> String {
    let plain = item.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && item.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._=/~^".contains(&b));
    // Words that some reader takes for a boolean or for nothing.
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if plain && !word.iter().any(|w| item.eq_ignore_ascii_case(w)) {
        return item.to_owned();
    }
    format!("'{}'", item.replace('\'', "''"))
}
