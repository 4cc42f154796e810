//! Numbers of bytes, as people write and read them.

use super::{Error, ErrorKind, Result};
use std::num::NonZeroU64;

/// The suffixes that are read: the decimal ones of network people, the binary ones of disk people.
const SUFFIXES: [(&str, u64); 8] = [
    ("K", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// Reads `500M`, `1Gi` or a plain number.
pub fn parse(text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => Some(1),
        suffix => SUFFIXES.iter().find(|(s, _)| *s == suffix).map(|(_, factor)| *factor),
    };
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
    bytes.ok_or_else(|| {
        let why = format!("{text:?} is not a number of bytes like 5000000, 500M or 1Gi");
        Error::new(ErrorKind::InvalidArgument, why)
    })
}

/// Reads a number of bytes a second. Nothing at all is no rate.
pub fn parse_rate(text: &str) -> Result<NonZeroU64> {
    NonZeroU64::new(parse(text)?).ok_or_else(no_rate)
}

/// What is said of a rate of 0.
pub fn no_rate() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a rate of 0 bytes a second would never end")
}

/// Three digits and a binary unit: `369.1 MiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        // What would be shown as 1024.0 is 1.0 of the next one.
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_bytes_has_a_suffix_that_is_known_or_none() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1234", Some(1234)),
            ("5K", Some(5000)),
            ("5Ki", Some(5120)),
            ("500M", Some(500_000_000)),
            ("500Mi", Some(500 << 20)),
            ("2G", Some(2_000_000_000)),
            ("2Gi", Some(2 << 30)),
            ("1T", Some(1_000_000_000_000)),
            ("", None),
            ("M", None),
            ("5 M", None),
            ("5m", None),
            ("5MB", None),
            ("-1", None),
            ("1.5G", None),
            ("99999999999G", None),
        ] {
            assert_eq!(parse(text).ok(), expected, "{text:?}");
        }
        assert_eq!(parse_rate("1K").unwrap().get(), 1000);
        assert_eq!(parse_rate("0").unwrap_err().kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn people_read_three_digits_and_a_unit() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (387_000_000, "369.1 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(human(bytes), expected);
        }
    }
}
