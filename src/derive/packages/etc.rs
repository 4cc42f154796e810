//! Users and groups that packages make: they become sysusers.d(5) entries with their numbers, because passwd and its like
//! belong to the host.

use super::room::Inside;
use crate::model::Result;
use crate::model::lock::{Lock, LockedUser};
use crate::sys::sandbox::Who;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The file that makes them at boot. Packages have such files, too, without the numbers: the first by name counts
/// (sysusers.d(5)).
pub const CONF: &str = "/usr/lib/sysusers.d/00-osctl-packages.conf";

/// What of `/etc` is never taken over from installing: accounts, and what makes one machine differ from another.
const DROPPED: [&str; 12] = [
    "passwd",
    "group",
    "shadow",
    "gshadow",
    "subuid",
    "subgid",
    ".pwd.lock",
    "machine-id",
    "hostname",
    "mtab",
    "resolv.conf",
    ".updated",
];

/// Makes the accounts that the base gets at its first boot, so that packages do not take their numbers: a host would have given
/// those to other names. Like all accounts they do not get into the tree.
pub(super) fn prepare(inside: &Inside) -> Result<()> {
    if !inside.tree()?.exists("usr/bin/systemd-sysusers") {
        return Ok(());
    }
    let sandbox = inside.sandbox(Who::Installer)?;
    let nothing: [&str; 0] = [];
    let made = inside.run(&sandbox, "systemd-sysusers", nothing, Duration::from_secs(60))?;
    // As at boot: what cannot be made there has no number either.
    tracing::debug!(success = made.success, said = made.stderr, "systemd-sysusers");
    Ok(())
}

/// Whether a path of the tree is one that installing changes for itself only.
pub(super) fn is_dropped(path: &str) -> bool {
    let Some(name) = path.trim_start_matches('/').strip_prefix("usr/etc/") else { return false };
    let key = |name: &str| name.strip_prefix("ssh/ssh_host_").is_some_and(|rest| rest.contains("key"));
    // Backup copies of the tools that edit accounts have a dash.
    DROPPED.contains(&name) || DROPPED.contains(&name.trim_end_matches('-')) || key(name)
}

/// passwd(5) and group(5).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Accounts {
    users: BTreeMap<String, User>,
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    gecos: String,
    home: String,
    shell: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    gid: u32,
    members: BTreeSet<String>,
}

impl Accounts {
    /// Those of the tree as it is now.
    pub(super) fn read(inside: &Inside) -> Result<Accounts> {
        let tree = inside.tree()?;
        let text = |path: &str| match tree.symlink_metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            _ => inside.text(path),
        };
        Ok(Accounts::parse(&text("usr/etc/passwd")?, &text("usr/etc/group")?))
    }

    fn parse(passwd: &str, group: &str) -> Accounts {
        let user = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, gecos, home, shell] = fields[..] else { return None };
            let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
            let user = User { uid, gid, gecos: gecos.into(), home: home.into(), shell: shell.into() };
            Some((name.to_owned(), user))
        };
        let group_of = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, members] = fields[..] else { return None };
            let members = members.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            Some((name.to_owned(), Group { gid: gid.parse().ok()?, members }))
        };
        Accounts {
            users: passwd.lines().filter_map(user).collect(),
            groups: group.lines().filter_map(group_of).collect(),
        }
    }

    /// Notes in the lock who is new, and returns the file that makes them.
    pub(super) fn made_by_packages(&self, inside: &Inside, lock: &mut Lock) -> Result<Option<String>> {
        Ok(self.sysusers(&Accounts::read(inside)?, lock))
    }

    fn sysusers(&self, now: &Accounts, lock: &mut Lock) -> Option<String> {
        let mut lines = Vec::new();
        for (name, group) in now.groups.iter().filter(|(name, _)| !self.groups.contains_key(*name)) {
            lock.groups.insert(name.clone(), group.gid);
            lines.push(format!("g {name} {}", group.gid));
        }
        for (name, user) in now.users.iter().filter(|(name, _)| !self.users.contains_key(*name)) {
            lock.users.insert(name.clone(), LockedUser { uid: user.uid, gid: user.gid });
            let field = |text: &str| match text.is_empty() {
                true => "-".to_owned(),
                false => {
                    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
                }
            };
            let (gecos, home, shell) = (field(&user.gecos), field(&user.home), field(&user.shell));
            lines.push(format!("u {name} {}:{} {gecos} {home} {shell}", user.uid, user.gid));
        }
        for (name, group) in &now.groups {
            let before = self.groups.get(name).map(|g| &g.members);
            let new = group.members.iter().filter(|m| before.is_none_or(|before| !before.contains(*m)));
            lines.extend(new.map(|member| format!("m {member} {name}")));
        }
        let header = "# Made by osctl of the users of the packages of its drop-ins.\n";
        (!lines.is_empty()).then(|| format!("{header}{}\n", lines.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Digest;
    use crate::model::lock::Manager;

    #[test]
    fn new_users_groups_and_memberships_become_entries_with_their_numbers() {
        let before =
            Accounts::parse("root:x:0:0:root:/root:/bin/bash\n", "root:x:0:\nadm:x:4:\nnogroup:x:65534:\n");
        let now = Accounts::parse(
            "root:x:0:0:root:/root:/bin/sh\n_chrony:x:101:103:Chrony \"daemon\",,,:/var/lib/chrony:/usr/sbin/nologin\nsshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n",
            "root:x:0:\nadm:x:4:sshd\n_chrony:x:103:\nnogroup:x:65534:\n",
        );
        let digest = Digest::of(b"");
        let mut lock = Lock {
            version: 1,
            base_digest: digest.clone(),
            request_digest: digest,
            manager: Some(Manager::Apt),
            images: BTreeMap::new(),
            packages: Vec::new(),
            removed: Vec::new(),
            replaced: Vec::new(),
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        let conf = before.sysusers(&now, &mut lock).unwrap();
        let lines: Vec<&str> = conf.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "g _chrony 103",
                "u _chrony 101:103 \"Chrony \\\"daemon\\\",,,\" \"/var/lib/chrony\" \"/usr/sbin/nologin\"",
                "u sshd 102:65534 - \"/run/sshd\" \"/usr/sbin/nologin\"",
                "m sshd adm",
            ]
        );
        assert_eq!(lock.users["sshd"], LockedUser { uid: 102, gid: 65534 });
        assert_eq!(lock.groups["_chrony"], 103);
        assert_eq!(now.sysusers(&now, &mut lock), None);
    }

    #[test]
    fn accounts_and_identities_are_not_taken_over() {
        for path in [
            "passwd",
            "shadow-",
            "group",
            ".pwd.lock",
            "machine-id",
            "ssh/ssh_host_rsa_key",
            "ssh/ssh_host_x_key.pub",
        ] {
            assert!(is_dropped(&format!("/usr/etc/{path}")), "{path}");
        }
        for path in
            ["/usr/etc/ssh/sshd_config", "/usr/etc/passwd.d", "/usr/lib/passwd", "/usr/etc/default/passwd"]
        {
            assert!(!is_dropped(path), "{path}");
        }
    }
}
