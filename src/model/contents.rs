//! The content of a declared file: here, or to be fetched and known by its digest.

use sha2::Digest as _;
use std::fmt;
use std::io::Read;

/// A digest that somebody wrote down. The content has it after it was unpacked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expected {
    /// The 64 hexadecimal digits of a SHA-256 digest.
    Sha256(String),
    /// The 128 hexadecimal digits of a SHA-512 digest.
    Sha512(String),
}

impl Expected {
    /// Whether this is the content.
    pub fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Expected::Sha256(digits) => *digits == hex::encode(sha2::Sha256::digest(bytes)),
            Expected::Sha512(digits) => *digits == hex::encode(sha2::Sha512::digest(bytes)),
        }
    }

    /// How long the digest is, in bits.
    pub fn bits(&self) -> u32 {
        match self {
            Expected::Sha256(_) => 256,
            Expected::Sha512(_) => 512,
        }
    }
}

impl fmt::Display for Expected {
    /// `sha256-DIGITS`: also the name of a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Sha256(digits) => write!(f, "sha256-{digits}"),
            Expected::Sha512(digits) => write!(f, "sha512-{digits}"),
        }
    }
}

/// Where content is, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// An `http:` or `https:` URL without user and password.
    pub url: String,
    /// What it has to be.
    pub digest: Expected,
    /// Whether it comes packed by gzip.
    pub gzip: bool,
}

/// The whole content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// Written in the drop-in, or read from beside it.
    Here(Vec<u8>),
    /// To be fetched.
    Remote(Remote),
    /// Fetched, and found to have its digest.
    Fetched(Remote, Vec<u8>),
}

impl Contents {
    /// The content, if it is here.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Contents::Here(bytes) | Contents::Fetched(_, bytes) => Some(bytes),
            Contents::Remote(_) => None,
        }
    }

    /// Whether this is the content, as far as is known.
    pub fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Contents::Here(here) | Contents::Fetched(_, here) => here == bytes,
            Contents::Remote(remote) => remote.digest.is(bytes),
        }
    }
}

impl<B: Into<Vec<u8>>> From<B> for Contents {
    fn from(bytes: B) -> Contents {
        Contents::Here(bytes.into())
    }
}

impl serde::Serialize for Contents {
    /// What decides the derived commit: the content or its digest, and neither where it is from nor whether it is here.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Contents::Here(bytes) => serializer.serialize_str(&hex::encode(bytes)),
            Contents::Remote(remote) | Contents::Fetched(remote, _) => serializer.collect_str(&remote.digest),
        }
    }
}

/// Why something was not unpacked.
#[derive(Debug)]
pub enum Packed {
    /// It is not gzip.
    Bad(std::io::Error),
    /// It is larger than the limit.
    TooLarge,
}

/// Unpacks gzip. What is larger than the limit is never in memory.
pub fn gunzip(bytes: &[u8], limit: u64) -> Result<Vec<u8>, Packed> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes).take(limit + 1).read_to_end(&mut out).map_err(Packed::Bad)?;
    if out.len() as u64 > limit { Err(Packed::TooLarge) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_content_is_from_and_whether_it_is_here_decide_nothing() {
        let digest = Expected::Sha256(hex::encode(sha2::Sha256::digest(b"x")));
        let remote = |url: &str, gzip| Remote { url: url.into(), digest: digest.clone(), gzip };
        let text = |contents: &Contents| serde_json::to_string(contents).unwrap();
        let expected = text(&Contents::Remote(remote("https://a/x", false)));
        assert_eq!(expected, format!("\"{digest}\""));
        assert_eq!(text(&Contents::Remote(remote("http://b/x.gz", true))), expected);
        assert_eq!(text(&Contents::Fetched(remote("https://a/x", false), b"x".to_vec())), expected);
        assert_eq!(text(&Contents::Here(b"x".to_vec())), "\"78\"");
    }
}
