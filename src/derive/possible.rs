//! What makes deriving impossible, whatever the drop-ins say.

use crate::model::lock::Lock;
use crate::model::manifest::{Group, Manifest, User};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use std::path::Path;

/// Configuration files are small.
const LIMIT: u64 = 1 << 20;
/// ostree-prepare-root(1) takes the first of these.
const PREPARE_ROOT: [&str; 2] = ["/etc/ostree/prepare-root.conf", "/usr/lib/ostree/prepare-root.conf"];

/// Refuses a tree that can only be booted as its builder signed it.
pub fn not_sealed(tree: &CommitTree) -> Result<()> {
    let Some(why) = sealed(tree)? else { return Ok(()) };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("nothing can be derived from this image: {why}; nothing was staged"),
    )
    .hint("put the changes into a derived image, or remove the drop-ins"))
}

fn sealed(tree: &CommitTree) -> Result<Option<&'static str>> {
    for path in PREPARE_ROOT {
        let Some(text) = tree.read(path, LIMIT)? else { continue };
        if composefs_is_signed(&String::from_utf8_lossy(&text)) {
            return Ok(Some("its composefs is signed"));
        }
        break;
    }
    for version in tree.list("/usr/lib/modules")? {
        let names = tree.list(&format!("/usr/lib/modules/{version}"))?;
        if names.iter().any(|n| n.ends_with(".efi")) {
            return Ok(Some("its kernel is a unified kernel image"));
        }
    }
    Ok(None)
}

fn composefs_is_signed(config: &str) -> bool {
    let mut section = "";
    config.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        let setting = line.split_once('=').map(|(k, v)| (k.trim(), v.trim()));
        section == "[composefs]" && setting == Some(("enabled", "signed"))
    })
}

/// A number that a user or a group is going to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// The drop-in that wants it, or the packages.
    pub by: String,
    /// The files that must not give the number to another name.
    pub files: &'static [&'static str],
}

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";

/// What the users and groups of drop-ins claim: systemd-sysusers makes a group with the number of each user, too.
pub fn declared(manifest: &Manifest) -> Vec<Claim> {
    let user = |(name, user): (&String, &User)| {
        Some(Claim { name: name.clone(), id: user.uid?, by: user.owner.clone(), files: &[PASSWD, GROUP] })
    };
    let group = |(name, group): (&String, &Group)| {
        Some(Claim { name: name.clone(), id: group.gid?, by: group.owner.clone(), files: &[GROUP] })
    };
    manifest.users.iter().filter_map(user).chain(manifest.groups.iter().filter_map(group)).collect()
}

/// What the users and groups of packages claim.
pub fn packaged(lock: &Lock) -> Vec<Claim> {
    let claim = |name: &String, id, files| Claim { name: name.clone(), id, by: "packages".to_owned(), files };
    let users = lock.users.iter().map(|(name, user)| claim(name, user.uid, &[PASSWD][..]));
    users.chain(lock.groups.iter().map(|(name, gid)| claim(name, *gid, &[GROUP][..]))).collect()
}

/// Refuses a number that the host has given to another name.
pub fn ids_free(root: &Path, claims: &[Claim]) -> Result<()> {
    for file in [PASSWD, GROUP] {
        let text = match std::fs::read_to_string(root.join(file)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.doing_with(|| format!("reading {file}"))?,
        };
        for Claim { name, id, by, .. } in claims.iter().filter(|c| c.files.contains(&file)) {
            let Some(other) = owner_of(&text, &id.to_string()).filter(|other| other != name) else {
                continue;
            };
            let message = format!(
                "user {name} ({by}) wants the id {id}, which /{file} gives to {other}; nothing was staged"
            );
            return Err(
                Error::new(ErrorKind::Conflict, message).hint("choose another number, or leave it out")
            );
        }
    }
    Ok(())
}

/// Who has this id in passwd(5) or group(5).
fn owner_of(text: &str, id: &str) -> Option<String> {
    let fields = |line: &str| -> Option<String> {
        let mut fields = line.split(':');
        let (name, found) = (fields.next()?, fields.nth(1)?);
        (found == id).then(|| name.to_owned())
    };
    text.lines().find_map(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signed_composefs_is_sealed() {
        for (text, expected) in [
            ("[composefs]\nenabled = signed\n", true),
            ("[composefs]\nenabled=signed", true),
            ("[composefs]\nenabled = yes\n", false),
            ("[etc]\nenabled = signed\n", false),
            ("[composefs]\nenabled = yes\n[root]\nenabled = signed\n", false),
            ("", false),
        ] {
            assert_eq!(composefs_is_signed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_declared_user_claims_a_user_and_a_group_and_a_group_only_a_group() {
        let mut manifest = Manifest::default();
        let user = |uid| User { owner: "a.yaml".into(), uid, gecos: None, home: None, shell: None };
        manifest.users.insert("pinned".into(), user(Some(480)));
        manifest.users.insert("free".into(), user(None));
        manifest.groups.insert("group".into(), Group { owner: "b.bu".into(), gid: Some(481) });
        let claims: Vec<_> = declared(&manifest).into_iter().map(|c| (c.name, c.id, c.by, c.files)).collect();
        let both: &[&str] = &["etc/passwd", "etc/group"];
        assert_eq!(
            claims,
            [
                ("pinned".to_owned(), 480, "a.yaml".to_owned(), both),
                ("group".to_owned(), 481, "b.bu".to_owned(), &both[1..]),
            ]
        );
    }

    #[test]
    fn an_id_belongs_to_one_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nother:x:777:777::/:/bin/sh\nbroken\n";
        assert_eq!(owner_of(passwd, "777").as_deref(), Some("other"));
        assert_eq!(owner_of(passwd, "7"), None);
    }
}
