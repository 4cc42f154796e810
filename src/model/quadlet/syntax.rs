//! The text of a quadlet file, read the way podman's parser reads it.
//!
//! It resembles systemd.syntax(7) and differs in details that decide which image is named: lines are trimmed before
//! they are joined, nothing is put where the `\` was, blank lines and comments between continued lines are skipped,
//! and what a file's last line continues is lost.

use crate::model::Result;
use crate::model::bound::refused;

/// One `Key=value` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub file: String,
    /// The first of the lines that were joined, from one.
    pub line: usize,
    pub section: String,
    pub key: String,
    /// As it was written, without the white space around it.
    pub raw: String,
}

impl Entry {
    /// The value of a key that holds one: a pair of double quotes around it does not count.
    pub fn text(&self) -> &str {
        self.raw.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(&self.raw)
    }
}

/// The keys of a file in their order. Fails where podman does, with file and line.
pub(super) fn entries(text: &str, file: &str) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut section: Option<String> = None;
    let mut joined = (0, String::new());
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n').zip(1..).peekable();
    while let Some((line, number)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if joined.1.is_empty() {
            joined.0 = number;
        }
        let continued = line.strip_suffix('\\');
        joined.1.push_str(continued.unwrap_or(line));
        if continued.is_some() && lines.peek().is_some() {
            continue;
        }
        let (at, line) = (joined.0, std::mem::take(&mut joined.1));
        if let Some(rest) = line.strip_prefix('[') {
            section = Some(header(rest).map_err(|why| refused(file, Some(at), why))?.to_owned());
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
            let why = format!("{:?} is neither [Section] nor Key=value", line.trim());
            return Err(refused(file, Some(at), why));
        };
        let Some(section) = &section else {
            return Err(refused(file, Some(at), "there is a key before the first [Section]"));
        };
        found.push(Entry {
            file: file.to_owned(),
            line: at,
            section: section.clone(),
            key: key.trim().to_owned(),
            raw: value.trim().to_owned(),
        });
    }
    Ok(found)
}

/// The name in `[NAME]`, given what follows the opening bracket.
fn header(rest: &str) -> std::result::Result<&str, &'static str> {
    let (name, after) = rest.split_once(']').ok_or("the section has no closing ]")?;
    match name.is_empty() || name.contains(|c: char| c == '[' || c.is_control()) || !after.trim().is_empty() {
        true => Err("the line is not a [Section]"),
        false => Ok(name),
    }
}

/// The words of a value: quotes group, C escapes are read, an open quote ends with the line, as in `Exec=`.
///
/// `None` for an escape that does not exist: podman then ignores the whole value.
pub(super) fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            _ if c == '\\' => match unescape(&mut chars) {
                Escape::Char(c) => word.push(c),
                Escape::End => {}
                Escape::Unknown => return None,
            },
            Some(open) if c == open => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => quote = Some(c),
            None if matches!(c, ' ' | '\t' | '\n' | '\r') => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            None => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    Some(words)
}

enum Escape {
    Char(char),
    /// The text ends with the backslash, which is dropped.
    End,
    Unknown,
}

/// The character that an escape means, after its backslash.
fn unescape(chars: &mut std::str::Chars<'_>) -> Escape {
    let Some(c) = chars.next() else { return Escape::End };
    let (digits, radix) = match c {
        'a' => return Escape::Char('\x07'),
        'b' => return Escape::Char('\x08'),
        'f' => return Escape::Char('\x0c'),
        'n' => return Escape::Char('\n'),
        'r' => return Escape::Char('\r'),
        't' => return Escape::Char('\t'),
        'v' => return Escape::Char('\x0b'),
        's' => return Escape::Char(' '),
        '\\' | '"' | '\'' => return Escape::Char(c),
        'x' => (2, 16),
        'u' => (4, 16),
        'U' => (8, 16),
        '0'..='7' => (2, 8),
        _ => return Escape::Unknown,
    };
    let mut value = if radix == 8 { c.to_digit(8).unwrap_or_default() } else { 0 };
    for _ in 0..digits {
        let Some(digit) = chars.next().and_then(|c| c.to_digit(radix)) else { return Escape::Unknown };
        value = value.wrapping_mul(radix).wrapping_add(digit);
    }
    match char::from_u32(value).filter(|c| *c != '\0') {
        Some(c) if radix == 16 || value <= 0xff => Escape::Char(c),
        _ => Escape::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_in_exec() {
        for (text, expected) in [
            ("", Some(vec![])),
            (" a  b\tc ", Some(vec!["a", "b", "c"])),
            ("--a=\"b c\" 'd e'f", Some(vec!["--a=b c", "d ef"])),
            ("'it\\'s' \"\\x2d\\055\\u002d\\U0000002d\\s\"", Some(vec!["it's", "---- "])),
            ("open \"quote a", Some(vec!["open", "quote a"])),
            ("a\\", Some(vec!["a"])),
            ("a \\q", None),
            ("\\x0", None),
            ("\\x00", None),
            ("\\777", None),
            ("\\Uffffffff", None),
        ] {
            let expected = expected.map(|w| w.into_iter().map(str::to_owned).collect());
            assert_eq!(words(text), expected, "{text}");
        }
    }
}
