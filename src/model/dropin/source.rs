//! Contents that a URL holds or names: data URLs, downloads, compression, digests.

use super::MAX_CONTENTS;
use super::cursor::{Cursor, printable};
use crate::model::contents::{Contents, Expected, Packed, Remote, gunzip};
use crate::model::error::{Error, ErrorKind, Result};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const BESIDE: &str = "put the file next to the drop-in and name it with local:";

/// Longer than any that a server understands.
const MAX_URL: usize = 4096;

/// What is said of the content of a URL beside the URL.
#[derive(Default)]
pub(super) struct Says<'a> {
    /// Its digest, and where that stands.
    pub digest: Option<(Cursor<'a>, Expected)>,
    /// Where it says that it is packed by gzip.
    pub gzip: Option<Cursor<'a>>,
    /// How a digest is given in this format.
    pub give: &'static str,
}

impl Says<'_> {
    /// The content that these bytes stand for.
    pub fn unpack(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let bytes = match &self.gzip {
            None => bytes,
            Some(place) => gunzip(&bytes, MAX_CONTENTS).map_err(|packed| match packed {
                Packed::Bad(e) => {
                    place.error(format!("the contents are not gzip: {e}")).hint("leave out `compression`")
                }
                Packed::TooLarge => too_large(place),
            })?,
        };
        match &self.digest {
            // The digest that was found stays here: it is enough to try out a short secret.
            Some((place, digest)) if !digest.is(&bytes) => {
                let bits = digest.bits();
                Err(place
                    .error(format!("the contents have another SHA-{bits} digest"))
                    .hint(format!("look at what they are; sha{bits}sum(1) prints the digest of a file")))
            }
            Some(_) | None => Ok(bytes),
        }
    }
}

/// Reads the digits of a SHA-256 digest.
pub(super) fn sha256(place: &Cursor<'_>) -> Result<Expected> {
    let digits = place.scalar("the 64 digits of a SHA-256 digest")?;
    match digits.strip_prefix("sha256:").unwrap_or(digits) {
        digits if is_hex(digits, 64) => Ok(Expected::Sha256(digits.to_owned())),
        _ => Err(not_a_digest(place, digits).hint("64 digits of 0-9 and a-f, as sha256sum(1) prints them")),
    }
}

/// Reads `sha256-DIGITS` or `sha512-DIGITS`.
pub(super) fn verification(place: &Cursor<'_>) -> Result<Expected> {
    let text = place.text()?;
    match text.split_once('-') {
        Some(("sha256", digits)) if is_hex(digits, 64) => Ok(Expected::Sha256(digits.to_owned())),
        Some(("sha512", digits)) if is_hex(digits, 128) => Ok(Expected::Sha512(digits.to_owned())),
        _ => Err(not_a_digest(place, text)
            .hint("write sha256- and 64 digits of 0-9 and a-f, or sha512- and 128 of them")),
    }
}

fn is_hex(digits: &str, length: usize) -> bool {
    digits.len() == length && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn not_a_digest(place: &Cursor<'_>, text: &str) -> Error {
    place.error(format!("`{}` is not a digest", printable(text)))
}

/// The contents that a URL holds, or where they are to be fetched from.
pub(super) fn read(place: &Cursor<'_>, says: Says<'_>) -> Result<Contents> {
    let url = place.text()?;
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("data") => Ok(Contents::Here(says.unpack(data(place, &url[5..])?)?)),
        Some("http" | "https") => remote(place, url, says).map(Contents::Remote),
        Some(scheme @ ("tftp" | "s3" | "arn" | "gs" | "ftp" | "file")) => Err(place
            .error_of(ErrorKind::Unsupported, format!("nothing can be read from {scheme}: URLs"))
            .hint(BESIDE)),
        Some(_) | None => Err(place
            .error(format!("`{}` is not a URL that contents can be read from", printable(url)))
            .hint("write data:,TEXT with reserved characters as %XX, or data:;base64,DATA")),
    }
}

fn remote(place: &Cursor<'_>, url: &str, says: Says<'_>) -> Result<Remote> {
    let host = url.split_once("://").map(|(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    let good = url.len() <= MAX_URL && url.bytes().all(|b| b.is_ascii_graphic());
    let Some(host) = host.filter(|host| good && !host.is_empty()) else {
        return Err(place
            .error(format!("`{}` is not a URL that contents can be fetched from", printable(url)))
            .hint("write https://HOST/PATH"));
    };
    if host.contains('@') {
        return Err(place
            .error("a URL must not hold a password: it would be in messages and logs")
            .hint(BESIDE));
    }
    match says.digest {
        Some((_, digest)) => Ok(Remote { url: url.to_owned(), digest, gzip: says.gzip.is_some() }),
        // Another host, or this one tomorrow, would get something else.
        None => Err(place.error("a download needs the digest of what it has to be").hint(says.give)),
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

fn limited(place: &Cursor<'_>, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if bytes.len() as u64 > MAX_CONTENTS { Err(too_large(place)) } else { Ok(bytes) }
}

fn too_large(place: &Cursor<'_>) -> Error {
    place.error(format!("the contents are more than the {MAX_CONTENTS} bytes that a file may have"))
}
