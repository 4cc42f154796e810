//! The `systemd` section.

use super::super::cursor::{Cursor, Fields};
use super::super::units::{Text, Written, declare};
use super::super::{Declarations, decode};
use super::Context;
use crate::model::error::Result;
use std::borrow::Cow;

pub(super) fn unit(place: &Cursor<'_>, context: &Context<'_>, out: &mut Declarations) -> Result<()> {
    let fields = context.fields(place)?;
    let written = Written {
        contents: text(&fields, context)?,
        dropins: fields.list("dropins")?.iter().map(|place| dropin(place, context)).collect::<Result<_>>()?,
        // What replaces a file of the image has to say so, and Butane has no key for it.
        overwrite: false,
        on_conflict: context.common.on_conflict,
        fields,
    };
    declare(place, written, &context.common, out)
}

fn dropin<'a>(place: &Cursor<'a>, context: &Context<'_>) -> Result<(Cursor<'a>, Text<'a>)> {
    let fields = context.fields(place)?;
    let text = text(&fields, context)?;
    Ok((fields.need("name")?, text.ok_or_else(|| place.error("`contents` is missing"))?))
}

fn text<'a>(fields: &Fields<'a>, context: &Context<'_>) -> Result<Option<Text<'a>>> {
    match (fields.get("contents"), fields.get("contents_local")) {
        (Some(_), Some(at)) => Err(at.error("give either `contents` or `contents_local`, not both")),
        (Some(at), None) => Text::inline(at).map(Some),
        (None, Some(at)) => {
            let bytes = decode::local(&at, context.beside)?.bytes;
            let text = String::from_utf8(bytes).map_err(|_| at.error("the file is not UTF-8"))?;
            Ok(Some(Text { at, text: Cow::Owned(text) }))
        }
        (None, None) => Ok(None),
    }
}
