//! Text of strangers on the way to people.

/// The text with its control characters spelled out: an image's paths and a registry's answers must not move a
/// terminal's cursor, begin a line of a log, or carry a NUL, which neither D-Bus nor GLib can hold.
pub fn one_line(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    text.chars().for_each(|c| spell(&mut visible, c));
    visible
}

/// The text without the user and password of URLs in it.
pub fn without_logins(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, url)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let end = url.find(|c: char| c == '/' || c.is_whitespace()).unwrap_or(url.len());
        rest = url[..end].rfind('@').map_or(url, |at| &url[at + 1..]);
    }
    clean.push_str(rest);
    clean
}

/// Longer texts say nothing more to a person, and travel over the bus at every look.
const MAX_TEXT: usize = 8 << 10;

/// Text that registries and images may have written, fit for terminals, the bus and the disk, and not too long.
///
/// Line breaks and tabs stay; other control characters become escapes.
pub fn printable(text: &str) -> String {
    let mut visible = String::with_capacity(text.len().min(MAX_TEXT));
    for c in text.chars() {
        if visible.len() >= MAX_TEXT {
            visible.push('…');
            break;
        }
        if matches!(c, '\n' | '\t') { visible.push(c) } else { spell(&mut visible, c) }
    }
    visible
}

fn spell(visible: &mut String, c: char) {
    if c.is_control() { visible.extend(c.escape_default()) } else { visible.push(c) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out() {
        for (text, expected) in [
            ("plain ü /x", "plain ü /x"),
            ("a\0b", "a\\u{0}b"),
            ("\x1b[2J\n\t", "\\u{1b}[2J\\n\\t"),
            ("", ""),
        ] {
            assert_eq!(one_line(text), expected);
        }
    }

    #[test]
    fn logins_are_taken_out_of_urls() {
        for (text, expected) in [
            ("Err http://u:p@r.example/x, https://r/a@b c", "Err http://r.example/x, https://r/a@b c"),
            ("x@y no url", "x@y no url"),
            ("s://a@b@c", "s://c"),
        ] {
            assert_eq!(without_logins(text), expected);
        }
    }

    #[test]
    fn texts_from_outside_are_printable_and_short() {
        assert_eq!(printable("a\0b\x1b]0;x\x07\r\n\u{9b}c"), "a\\u{0}b\\u{1b}]0;x\\u{7}\\r\n\\u{9b}c");
        assert_eq!(printable(&"x".repeat(MAX_TEXT + 10)).chars().count(), MAX_TEXT + 1);
    }
}
