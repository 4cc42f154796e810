//! Text of strangers on the way to people.

/// The text with its control characters spelled out: an image's paths and a registry's answers must not move a
/// terminal's cursor, begin a line of a log, or carry a NUL, which neither D-Bus nor GLib can hold.
pub fn one_line(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { visible.extend(c.escape_default()) } else { visible.push(c) }
    }
    visible
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
}
