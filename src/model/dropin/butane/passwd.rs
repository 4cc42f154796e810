//! The `passwd` section: system users and groups, as far as sysusers.d(5) goes.

use super::super::cursor::{Cursor, Fields};
use super::super::{Declarations, Declared, decode};
use super::{Context, never, spec, unsupported};
use crate::model::error::Result;
use crate::model::manifest::Group;

pub(super) fn stanza(place: &Cursor<'_>, context: &Context<'_>, out: &mut Declarations) -> Result<()> {
    let fields = context.fields(place)?;
    for place in fields.list("users")? {
        let fields = context.fields(&place)?;
        if !context.spec.knows("passwd.users[].system") {
            // Such a user is a person, and has nothing but a password and keys.
            return Err(spec::LOGIN.at(&place));
        }
        gone(&fields)?;
        never(
            &fields,
            "no_create_home",
            false,
            "no home directory is made for system users",
            "leave it out, and declare the directory in a tmpfiles.d file",
        )?;
        never(
            &fields,
            "no_user_group",
            true,
            "a system user always has a group of the same name",
            "leave it out",
        )?;
        out.users.push(decode::system_user(&place, &fields, "home_dir", &context.common)?);
    }
    for place in fields.list("groups")? {
        out.groups.push(group(&place, context)?);
    }
    Ok(())
}

fn group(place: &Cursor<'_>, context: &Context<'_>) -> Result<Declared<Group>> {
    let fields = context.fields(place)?;
    gone(&fields)?;
    let (at, name) = decode::account(&fields, "group")?;
    if fields.boolean("system")? != Some(true) {
        let place = fields.get("system").unwrap_or(place.clone());
        return Err(unsupported(&place, "only system groups can be declared").hint("add `system: true`"));
    }
    let group =
        Group { owner: context.common.owner.clone(), gid: decode::system_id(&fields, "gid", "group")? };
    Ok(Declared { name: name.to_owned(), value: group, at: at.at(), key: at.key })
}

fn gone(fields: &Fields<'_>) -> Result<()> {
    never(fields, "should_exist", false, "a drop-in cannot remove accounts", "leave the entry out")
}
