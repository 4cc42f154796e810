//! Contents that a URL holds or names: data URLs, compression, digests.

use super::MAX_CONTENTS;
use super::cursor::{Cursor, printable};
use crate::model::error::{Error, ErrorKind, Result};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::Digest as _;
use std::io::Read;

const BESIDE: &str = "put the file next to the drop-in and name it with local:";

/// What contents have to be, by a digest that somebody wrote down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    Sha256(String),
    Sha512(String),
}

impl Expected {
    /// Reads the digits of a SHA-256 digest.
    pub fn sha256(place: &Cursor<'_>) -> Result<Expected> {
        let digits = place.scalar("the 64 digits of a SHA-256 digest")?;
        match digits.strip_prefix("sha256:").unwrap_or(digits) {
            digits if is_hex(digits, 64) => Ok(Expected::Sha256(digits.to_owned())),
            _ => {
                Err(not_a_digest(place, digits).hint("64 digits of 0-9 and a-f, as sha256sum(1) prints them"))
            }
        }
    }

    /// Reads `sha256-DIGITS` or `sha512-DIGITS`.
    pub fn butane(place: &Cursor<'_>) -> Result<Expected> {
        let text = place.text()?;
        match text.split_once('-') {
            Some(("sha256", digits)) if is_hex(digits, 64) => Ok(Expected::Sha256(digits.to_owned())),
            Some(("sha512", digits)) if is_hex(digits, 128) => Ok(Expected::Sha512(digits.to_owned())),
            _ => Err(not_a_digest(place, text)
                .hint("write sha256- and 64 digits of 0-9 and a-f, or sha512- and 128 of them")),
        }
    }

    /// Fails at this place if these are other contents.
    pub fn check(&self, place: &Cursor<'_>, bytes: &[u8]) -> Result<()> {
        let (bits, wanted, found) = match self {
            Expected::Sha256(wanted) => (256, wanted, hex::encode(sha2::Sha256::digest(bytes))),
            Expected::Sha512(wanted) => (512, wanted, hex::encode(sha2::Sha512::digest(bytes))),
        };
        if *wanted == found {
            return Ok(());
        }
        // The digest that was found stays here: it is enough to try out a short secret.
        Err(place
            .error(format!("the contents have another SHA-{bits} digest"))
            .hint(format!("look at what they are; sha{bits}sum(1) prints the digest of a file")))
    }
}

fn is_hex(digits: &str, length: usize) -> bool {
    digits.len() == length && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn not_a_digest(place: &Cursor<'_>, text: &str) -> Error {
    place.error(format!("`{}` is not a digest", printable(text)))
}

/// The contents that a URL holds.
pub(super) fn read(place: &Cursor<'_>) -> Result<Vec<u8>> {
    let url = place.text()?;
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("data") => data(place, &url[5..]),
        Some("http" | "https") => Err(place
            .error_of(ErrorKind::Unsupported, "downloaded contents are not supported by this version")
            .hint(BESIDE)),
        Some(scheme @ ("tftp" | "s3" | "arn" | "gs" | "ftp" | "file")) => Err(place
            .error_of(ErrorKind::Unsupported, format!("nothing can be read from {scheme}: URLs"))
            .hint(BESIDE)),
        Some(_) | None => Err(place
            .error(format!("`{}` is not a URL that contents can be read from", printable(url)))
            .hint("write data:,TEXT with reserved characters as %XX, or data:;base64,DATA")),
    }
}

/// What follows `data:` in a URL (RFC 2397). The type of the data means nothing to a file.
fn data(place: &Cursor<'_>, rest: &str) -> Result<Vec<u8>> {
    let Some((kind, data)) = rest.split_once(',') else {
        return Err(place
            .error("the data URL has no comma")
            .hint("write data:,TEXT with reserved characters as %XX, or data:;base64,DATA"));
    };
    if let Some(c) = data.chars().find(|c| !c.is_ascii_graphic()) {
        let shown = printable(&c.to_string());
        return Err(place
            .error(format!("the data URL holds the character `{shown}`"))
            .hint("write it as %XX, or the contents with inline:"));
    }
    let bytes = unescape(data).map_err(|at| {
        let end = (at + 3).min(data.len());
        place
            .error(format!("`{}` in the data URL is not % and two digits", &data[at..end]))
            .hint("write %25 for %")
    })?;
    if !kind.rsplit(';').next().is_some_and(|last| kind.contains(';') && last.eq_ignore_ascii_case("base64"))
    {
        return limited(place, bytes);
    }
    let padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let decoded = GeneralPurpose::new(&STANDARD, padding).decode(&bytes);
    limited(place, decoded.map_err(|e| place.error(format!("the data URL is not base64: {e}")))?)
}

/// Replaces `%XX`. Fails with the place of one that is none.
fn unescape(text: &str) -> Result<Vec<u8>, usize> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = more;
            continue;
        }
        let digits = more.get(..2).and_then(|two| hex::decode(two).ok());
        bytes.extend(digits.ok_or(text.len() - rest.len())?);
        rest = &more[2..];
    }
    Ok(bytes)
}

/// Unpacks gzip. What would not fit into memory is never unpacked.
pub(super) fn gunzip(place: &Cursor<'_>, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).take(MAX_CONTENTS + 1).read_to_end(&mut out).map_err(|e| {
        place.error(format!("the contents are not gzip: {e}")).hint("leave out `compression`")
    })?;
    limited(place, out)
}

fn limited(place: &Cursor<'_>, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if bytes.len() as u64 > MAX_CONTENTS {
        return Err(
            place.error(format!("the contents are more than the {MAX_CONTENTS} bytes that a file may have"))
        );
    }
    Ok(bytes)
}
