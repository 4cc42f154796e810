//! Butane: the configurations that Ignition's configurations are made from, as drop-ins.
//!
//! What they declare of files, units, users and kernel arguments is the same here as at a first boot. Everything else
//! is refused by name. The files directory, which `local` names are relative to, is the drop-in's own directory.
//!
//! ```text
//! variant, version ──► Spec: which keys there are ──► storage, systemd, passwd, kernel_arguments ──► Declarations
//! ```

mod contents;
mod passwd;
mod spec;
mod storage;
mod trees;
mod units;

#[cfg(test)]
mod tests;

use super::cursor::{Cursor, Fields};
use super::decode::Common;
use super::{Beside, Declarations, kargs};
use crate::model::error::{Error, ErrorKind, Result};
use crate::model::manifest::OnConflict;
use spec::Spec;

/// What decoding any part needs.
struct Context<'c> {
    spec: Spec,
    common: Common,
    beside: &'c dyn Beside,
}

impl Context<'_> {
    fn fields<'a>(&self, place: &Cursor<'a>) -> Result<Fields<'a>> {
        self.spec.fields(place)
    }
}

/// Decodes a whole configuration.
pub(super) fn document(root: Cursor<'_>, out: &mut Declarations, beside: &dyn Beside) -> Result<()> {
    let common = Common { owner: out.source.name.clone(), on_conflict: OnConflict::default() };
    let context = Context { spec: Spec::of(&root)?, common, beside };
    let top = context.fields(&root)?;
    if let Some(place) = top.get("metadata") {
        metadata(&context.fields(&place)?)?;
    }
    if let Some(place) = top.get("ignition") {
        // None of its keys can be done: naming the first of them is all there is to it.
        context.fields(&place)?;
    }
    if let Some(place) = top.get("storage") {
        storage::stanza(&place, &context, out)?;
    }
    if let Some(place) = top.get("systemd") {
        for place in context.fields(&place)?.list("units")? {
            units::unit(&place, &context, out)?;
        }
    }
    if let Some(place) = top.get("passwd") {
        passwd::stanza(&place, &context, out)?;
    }
    if let Some(place) = top.get("kernel_arguments") {
        let fields = context.fields(&place)?;
        kargs::declare(fields.get("should_exist"), fields.get("should_not_exist"), &context.common, out)?;
    }
    if let Some(place) = top.get("openshift") {
        let fields = context.fields(&place)?;
        kargs::declare(fields.get("kernel_arguments"), None, &context.common, out)?;
    }
    Ok(())
}

/// The name and the labels of the MachineConfig that this would be in a cluster: nothing here depends on them.
fn metadata(fields: &Fields<'_>) -> Result<()> {
    fields.get("name").map(|name| name.text()).transpose()?;
    let Some(labels) = fields.get("labels") else { return Ok(()) };
    labels.map()?.values().try_for_each(|label| label.text().map(drop))
}

/// Refuses the value of a boolean that cannot be done.
fn never(fields: &Fields<'_>, key: &str, value: bool, message: &str, hint: &'static str) -> Result<()> {
    match fields.get(key) {
        Some(place) if place.boolean()? == value => Err(unsupported(&place, message).hint(hint)),
        Some(_) | None => Ok(()),
    }
}

fn unsupported(place: &Cursor<'_>, message: &str) -> Error {
    place.error_of(ErrorKind::UnsupportedStanza, message)
}
