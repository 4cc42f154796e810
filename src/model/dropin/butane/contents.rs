//! Butane's resources: contents that are written out, lie beside the drop-in, or are in a URL.

use super::super::cursor::Cursor;
use super::super::source::{self, Expected};
use super::super::{Local, decode};
use super::Context;
use crate::model::error::{ErrorKind, Result};

/// The contents that a resource gives, unpacked and compared with their digest.
pub(super) fn resource(place: &Cursor<'_>, context: &Context<'_>) -> Result<Local> {
    let fields = context.fields(place)?;
    let packed = match fields.get("compression") {
        None => None,
        // The specification calls the absence of compression null.
        Some(at) if at.is_null() => None,
        Some(at) => match at.text()? {
            "" => None,
            "gzip" => Some(at),
            other => {
                let other = super::super::cursor::printable(other);
                return Err(at
                    .error_of(ErrorKind::Unsupported, format!("the compression `{other}` is not known"))
                    .hint("gzip is, or leave it out"));
            }
        },
    };
    let (key, at) = decode::one_of(place, &fields, ["inline", "local", "source"])?;
    let mut found = match key {
        "inline" => Local { bytes: at.text()?.as_bytes().to_vec(), private: false },
        "local" => decode::local(&at, context.beside)?,
        _ => Local { bytes: source::read(&at)?, private: false },
    };
    if let Some(at) = packed {
        found.bytes = source::gunzip(&at, &found.bytes)?;
    }
    if let Some(verification) = fields.get("verification")
        && let Some(hash) = context.fields(&verification)?.get("hash")
    {
        Expected::butane(&hash)?.check(&hash, &found.bytes)?;
    }
    Ok(found)
}
