//! Butane's resources: contents that are written out, lie beside the drop-in, or are in a URL.

use super::super::cursor::{Cursor, printable};
use super::super::decode;
use super::super::source::{self, Says};
use super::Context;
use crate::model::contents::Contents;
use crate::model::error::{ErrorKind, Result};

/// The contents that a resource gives, and whether they are their owner's only. What is here is unpacked and was compared
/// with its digest.
pub(super) fn resource(place: &Cursor<'_>, context: &Context<'_>) -> Result<(Contents, bool)> {
    let fields = context.fields(place)?;
    let gzip = match fields.get("compression") {
        Some(at) if !at.is_null() => match at.text()? {
            "" => None,
            "gzip" => Some(at),
            other => {
                return Err(at
                    .error_of(
                        ErrorKind::Unsupported,
                        format!("the compression `{}` is not known", printable(other)),
                    )
                    .hint("gzip is, or leave it out"));
            }
        },
        // The specification calls the absence of compression null.
        Some(_) | None => None,
    };
    let hash = match fields.get("verification") {
        Some(verification) => context.fields(&verification)?.get("hash"),
        None => None,
    };
    let digest = hash.map(|at| source::verification(&at).map(|digest| (at, digest))).transpose()?;
    let says = Says { digest, gzip, give: "add verification: {hash: sha256-DIGITS}" };
    match decode::one_of(place, &fields, ["inline", "local", "source"])? {
        ("inline", at) => Ok((says.unpack(at.text()?.into())?.into(), false)),
        ("local", at) => {
            let found = decode::local(&at, context.beside)?;
            Ok((says.unpack(found.bytes)?.into(), found.private))
        }
        (_, at) => {
            let contents = source::read(&at, says)?;
            if matches!(contents, Contents::Remote(_)) && !context.spec.downloads() {
                return Err(at
                    .error("openshift has data: URLs only")
                    .hint("put the file next to the drop-in and name it with local:"));
            }
            Ok((contents, false))
        }
    }
}
