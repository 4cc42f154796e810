//! The `kernel-arguments:` stanza.

use super::Declarations;
use super::cursor::{Cursor, printable};
use super::decode::Common;
use crate::model::error::Result;
use crate::model::kargs::check;
use crate::model::manifest::Karg;

pub(super) fn arguments(place: &Cursor<'_>, common: &Common, out: &mut Declarations) -> Result<()> {
    let fields = place.fields(&["append", "delete"])?;
    declare(fields.get("append"), fields.get("delete"), common, out)
}

/// Adds the arguments of two lists.
pub(super) fn declare<'a>(
    append: Option<Cursor<'a>>,
    delete: Option<Cursor<'a>>,
    common: &Common,
    out: &mut Declarations,
) -> Result<()> {
    let read = |list: Option<Cursor<'a>>| -> Result<Vec<(Cursor<'a>, Karg)>> {
        let Some(list) = list else { return Ok(Vec::new()) };
        let mut found: Vec<(Cursor, Karg)> = Vec::new();
        for (at, arg) in list.texts()? {
            if let Err(refused) = check(arg) {
                let error = at.error(printable(&refused.message));
                return Err(match refused.hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                });
            }
            if found.iter().any(|(_, k)| k.arg == arg) {
                return Err(at.error(format!("`{arg}` is given twice")));
            }
            found.push((at, Karg { owner: common.owner.clone(), arg: arg.to_owned() }));
        }
        Ok(found)
    };
    let append = read(append)?;
    for (at, karg) in read(delete)? {
        if append.iter().any(|(_, k)| k.arg == karg.arg) {
            return Err(at.error(format!("`{}` is both appended and deleted", karg.arg)));
        }
        out.delete.push(karg);
    }
    out.append.extend(append.into_iter().map(|(_, k)| k));
    Ok(())
}
