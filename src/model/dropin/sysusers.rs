//! Declared users and groups as one sysusers.d(5) file.

use crate::model::manifest::Manifest;

/// The sysusers.d(5) text for all declared groups and users, each in name order; `None` if there are none.
pub fn sysusers_conf(manifest: &Manifest) -> Option<String> {
    if manifest.users.is_empty() && manifest.groups.is_empty() {
        return None;
    }
    let mut text = String::from("# System users declared by osctl drop-ins. Written by osctl.\n");
    for (name, group) in &manifest.groups {
        let gid = group.gid.map_or("-".to_owned(), |g| g.to_string());
        text.push_str(&format!("\n# {}\ng {name} {gid}\n", group.owner));
    }
    for (name, user) in &manifest.users {
        let mut line = format!("u {name} {}", user.uid.map_or("-".to_owned(), |u| u.to_string()));
        for field in [&user.gecos, &user.home, &user.shell] {
            line.push(' ');
            line.push_str(&field.as_deref().map_or("-".to_owned(), quoted));
        }
        text.push_str(&format!("\n# {}\n{line}\n", user.owner));
    }
    Some(text)
}

/// A field as sysusers.d reads it back: `%` starts a specifier, quotes and backslashes are C-like.
fn quoted(field: &str) -> String {
    let escaped = field.replace('%', "%%").replace('\\', "\\\\").replace('"', "\\\"");
    if escaped.contains([' ', '\t', '"', '\\', '\'', '#']) || escaped.is_empty() {
        format!("\"{escaped}\"")
    } else {
        escaped
    }
}
