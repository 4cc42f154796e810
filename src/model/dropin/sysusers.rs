//! Declared users and groups as one sysusers.d(5) file.

use crate::model::manifest::Manifest;
use std::collections::BTreeSet;

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

/// The text with the entries of `base` that it does not have: an image that was built from a derived tree keeps its own
/// when a host adds others. For sysusers.d(5), and for tmpfiles.d(5), whose lines begin with a type and a name, too.
pub fn with_entries_of(base: &str, text: &str) -> String {
    let key = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next().filter(|kind| !kind.starts_with('#'))?.to_owned(), words.next()?.to_owned()))
    };
    let declared: BTreeSet<_> = text.lines().filter_map(key).collect();
    let mut all = text.to_owned();
    for line in base.lines().filter(|line| key(line).is_some_and(|key| !declared.contains(&key))) {
        all.push_str(&format!("\n# of the image\n{line}\n"));
    }
    all
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_the_image_stay_unless_they_are_declared_again() {
        let base = "# a\n\n# 50-a.yaml\ng wheel 10\n\n# 50-a.yaml\nu agent 77 - - -\nu other - - - -\n";
        let text = "# b\n\n# 60-b.yaml\nu agent 78 - - -\n";
        let both = with_entries_of(base, text);
        assert_eq!(both, format!("{text}\n# of the image\ng wheel 10\n\n# of the image\nu other - - - -\n"));
        assert_eq!(with_entries_of(&both, &both), both, "once more changes nothing");
    }
}
