//! Every key of the published Butane specifications, with what becomes of it here.
//!
//! From the documentation of the specifications (coreos/ignition, `butane/docs/config-*.md`). `published.txt` beside
//! this file says it once more, from the same pages but in another form, and a test compares both.

use super::super::cursor::{Cursor, Fields, printable};
use crate::model::error::{Error, ErrorKind, Result};

/// A version: `1.7.0` is 107, `4.22.0` is 422. The third number was always zero.
type Version = u16;

/// No version has the key.
const NO: Version = Version::MAX;

/// The variants, in the order of the columns of [`KEYS`], with their stable versions.
const VARIANTS: [(&str, &[Version]); 5] = [
    ("fcos", &[100, 101, 102, 103, 104, 105, 106, 107]),
    ("flatcar", &[100, 101]),
    ("openshift", &[408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 419, 420, 421, 422, 500]),
    ("r4e", &[100, 101]),
    ("fiot", &[100]),
];

/// The version of each variant that a key came with. None was ever taken away again.
type Since = [Version; 5];

const ALL: Since = [100, 100, 408, 100, 100];
const V1_1: Since = [101, 100, 408, 100, 100];
const LOCAL: Since = [105, 101, 414, 101, 100];
const ZIP: Since = [100, 100, 410, 100, 100];
const PASSWORD: Since = [100, 100, 413, 100, 100];
/// What the Machine Config Operator cannot do.
const NODES: Since = [100, 100, NO, 100, 100];
const NODES_1_1: Since = [101, 100, NO, 100, 100];
const EXIST: Since = [102, 100, NO, 100, 100];
const KARGS: Since = [104, 100, NO, NO, NO];
const OWNED_TREE: Since = [107, NO, NO, NO, NO];
/// What needs Ignition in the first boot of a system that it installs.
const DISKS: Since = [100, 100, 408, NO, NO];
const MOUNTS: Since = [101, 100, 408, NO, NO];
const LUKS: Since = [102, 100, 408, NO, NO];
const LUKS_1_5: Since = [105, 101, 414, NO, NO];
const CLEVIS: Since = [102, NO, 408, NO, NO];
const BOOT: Since = [103, NO, 408, NO, NO];
const ADVERTISED: Since = [105, NO, 414, NO, NO];
const CEX: Since = [106, NO, 419, NO, NO];
const OPENSHIFT: Since = [NO, NO, 408, NO, NO];

/// Why a key is refused in every version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Why {
    kind: ErrorKind,
    message: &'static str,
    hint: &'static str,
}

const FIRST_BOOT: &str = "it works at first boot only: put it into the Butane or Ignition configuration \
                          that installs the host";

const STORAGE: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "storage cannot be set up by a drop-in",
    hint: FIRST_BOOT,
};
pub(super) const LOGIN: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot set passwords or SSH keys",
    hint: FIRST_BOOT,
};
const GRUB: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot configure the boot loader",
    hint: FIRST_BOOT,
};
const MERGE: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot take other configurations in",
    hint: "make each a drop-in of its own: all of them are merged, in the order of their names",
};
const TIMEOUTS: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "these are limits of Ignition, which does not run here",
    hint: "leave them out",
};
const AUTHORITIES: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot say whom downloads trust",
    hint: "add the authority to those of the host, or put the file next to the drop-in and name it with local:",
};
const PROXY: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot set a proxy for downloads",
    hint: "set https_proxy for osctld: systemctl edit osctld",
};
const HEADERS: Why = Why {
    kind: ErrorKind::Unsupported,
    message: "no headers can be sent",
    hint: "put the file next to the drop-in and name it with local:",
};
const MEMBER: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot set the groups of a user",
    hint: "declare a file /usr/lib/sysusers.d/NAME.conf with a line `m USER GROUP` for each",
};
const NO_LOG: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "systemd-sysusers adds nobody to the login records",
    hint: "leave it out",
};
const FIPS: Why = Why {
    kind: ErrorKind::UnsupportedStanza,
    message: "a drop-in cannot turn FIPS mode on",
    hint: "it is decided when the host is installed: put it into the configuration that installs it",
};
const EXTENSIONS: Why = Why {
    kind: ErrorKind::Unsupported,
    message: "extensions of RHCOS are not known here",
    hint: "request the packages in a .yaml drop-in, in packages: or with their image in extensions:",
};
const KERNEL_TYPE: Why = Why {
    kind: ErrorKind::Unsupported,
    message: "a kernel is packages here",
    hint: "name them in a .yaml drop-in: the old ones in override-remove, the new ones in packages",
};

/// What becomes of a key.
enum Verdict {
    /// The decoder reads it.
    Read,
    /// It is refused, with everything below it.
    Refused(&'static Why),
}
use Verdict::{Read, Refused};

struct Key(&'static str, Since, Verdict);

/// Every key, by its path; `[]` stands for the entries of a list.
#[rustfmt::skip]
const KEYS: &[Key] = &[
    Key("variant", ALL, Read),
    Key("version", ALL, Read),
    Key("metadata", OPENSHIFT, Read),
    Key("metadata.name", OPENSHIFT, Read),
    Key("metadata.labels", OPENSHIFT, Read),
    Key("ignition", ALL, Read),
    Key("ignition.config", ALL, Refused(&MERGE)),
    Key("ignition.config.merge", ALL, Refused(&MERGE)),
    Key("ignition.config.merge[].source", ALL, Refused(&MERGE)),
    Key("ignition.config.merge[].inline", V1_1, Refused(&MERGE)),
    Key("ignition.config.merge[].local", V1_1, Refused(&MERGE)),
    Key("ignition.config.merge[].compression", V1_1, Refused(&MERGE)),
    Key("ignition.config.merge[].http_headers", V1_1, Refused(&MERGE)),
    Key("ignition.config.merge[].http_headers[].name", V1_1, Refused(&MERGE)),
    Key("ignition.config.merge[].http_headers[].value", V1_1, Refused(&MERGE)),
    Key("ignition.config.merge[].verification", ALL, Refused(&MERGE)),
    Key("ignition.config.merge[].verification.hash", ALL, Refused(&MERGE)),
    Key("ignition.config.replace", ALL, Refused(&MERGE)),
    Key("ignition.config.replace.source", ALL, Refused(&MERGE)),
    Key("ignition.config.replace.inline", V1_1, Refused(&MERGE)),
    Key("ignition.config.replace.local", V1_1, Refused(&MERGE)),
    Key("ignition.config.replace.compression", V1_1, Refused(&MERGE)),
    Key("ignition.config.replace.http_headers", V1_1, Refused(&MERGE)),
    Key("ignition.config.replace.http_headers[].name", V1_1, Refused(&MERGE)),
    Key("ignition.config.replace.http_headers[].value", V1_1, Refused(&MERGE)),
    Key("ignition.config.replace.verification", ALL, Refused(&MERGE)),
    Key("ignition.config.replace.verification.hash", ALL, Refused(&MERGE)),
    Key("ignition.timeouts", ALL, Refused(&TIMEOUTS)),
    Key("ignition.timeouts.http_response_headers", ALL, Refused(&TIMEOUTS)),
    Key("ignition.timeouts.http_total", ALL, Refused(&TIMEOUTS)),
    Key("ignition.security", ALL, Refused(&AUTHORITIES)),
    Key("ignition.security.tls", ALL, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities", ALL, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].source", ALL, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].inline", V1_1, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].local", V1_1, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].compression", V1_1, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].http_headers", V1_1, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].http_headers[].name", V1_1, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].http_headers[].value", V1_1, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].verification", ALL, Refused(&AUTHORITIES)),
    Key("ignition.security.tls.certificate_authorities[].verification.hash", ALL, Refused(&AUTHORITIES)),
    Key("ignition.proxy", V1_1, Refused(&PROXY)),
    Key("ignition.proxy.http_proxy", V1_1, Refused(&PROXY)),
    Key("ignition.proxy.https_proxy", V1_1, Refused(&PROXY)),
    Key("ignition.proxy.no_proxy", V1_1, Refused(&PROXY)),
    Key("storage", ALL, Read),
    Key("storage.disks", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].device", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].wipe_table", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].label", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].number", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].size_mib", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].start_mib", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].type_guid", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].guid", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].wipe_partition_entry", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].should_exist", DISKS, Refused(&STORAGE)),
    Key("storage.disks[].partitions[].resize", LUKS, Refused(&STORAGE)),
    Key("storage.raid", DISKS, Refused(&STORAGE)),
    Key("storage.raid[].name", DISKS, Refused(&STORAGE)),
    Key("storage.raid[].level", DISKS, Refused(&STORAGE)),
    Key("storage.raid[].devices", DISKS, Refused(&STORAGE)),
    Key("storage.raid[].spares", DISKS, Refused(&STORAGE)),
    Key("storage.raid[].options", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].device", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].format", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].path", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].wipe_filesystem", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].label", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].uuid", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].options", DISKS, Refused(&STORAGE)),
    Key("storage.filesystems[].mount_options", MOUNTS, Refused(&STORAGE)),
    Key("storage.filesystems[].with_mount_unit", MOUNTS, Refused(&STORAGE)),
    Key("storage.files", ALL, Read),
    Key("storage.files[].path", ALL, Read),
    Key("storage.files[].overwrite", ALL, Read),
    Key("storage.files[].contents", ALL, Read),
    Key("storage.files[].contents.source", ALL, Read),
    Key("storage.files[].contents.inline", ALL, Read),
    Key("storage.files[].contents.local", V1_1, Read),
    Key("storage.files[].contents.compression", ZIP, Read),
    Key("storage.files[].contents.http_headers", NODES_1_1, Refused(&HEADERS)),
    Key("storage.files[].contents.http_headers[].name", NODES_1_1, Refused(&HEADERS)),
    Key("storage.files[].contents.http_headers[].value", NODES_1_1, Refused(&HEADERS)),
    Key("storage.files[].contents.verification", ALL, Read),
    Key("storage.files[].contents.verification.hash", ALL, Read),
    Key("storage.files[].append", NODES, Read),
    Key("storage.files[].append[].source", NODES, Read),
    Key("storage.files[].append[].inline", NODES, Read),
    Key("storage.files[].append[].local", NODES_1_1, Read),
    Key("storage.files[].append[].compression", NODES, Read),
    Key("storage.files[].append[].http_headers", NODES_1_1, Refused(&HEADERS)),
    Key("storage.files[].append[].http_headers[].name", NODES_1_1, Refused(&HEADERS)),
    Key("storage.files[].append[].http_headers[].value", NODES_1_1, Refused(&HEADERS)),
    Key("storage.files[].append[].verification", NODES, Read),
    Key("storage.files[].append[].verification.hash", NODES, Read),
    Key("storage.files[].mode", ALL, Read),
    Key("storage.files[].user", ALL, Read),
    Key("storage.files[].user.id", ALL, Read),
    Key("storage.files[].user.name", ALL, Read),
    Key("storage.files[].group", ALL, Read),
    Key("storage.files[].group.id", ALL, Read),
    Key("storage.files[].group.name", ALL, Read),
    Key("storage.directories", NODES, Read),
    Key("storage.directories[].path", NODES, Read),
    Key("storage.directories[].overwrite", NODES, Read),
    Key("storage.directories[].mode", NODES, Read),
    Key("storage.directories[].user", NODES, Read),
    Key("storage.directories[].user.id", NODES, Read),
    Key("storage.directories[].user.name", NODES, Read),
    Key("storage.directories[].group", NODES, Read),
    Key("storage.directories[].group.id", NODES, Read),
    Key("storage.directories[].group.name", NODES, Read),
    Key("storage.links", NODES, Read),
    Key("storage.links[].path", NODES, Read),
    Key("storage.links[].overwrite", NODES, Read),
    Key("storage.links[].user", NODES, Read),
    Key("storage.links[].user.id", NODES, Read),
    Key("storage.links[].user.name", NODES, Read),
    Key("storage.links[].group", NODES, Read),
    Key("storage.links[].group.id", NODES, Read),
    Key("storage.links[].group.name", NODES, Read),
    Key("storage.links[].target", NODES, Read),
    Key("storage.links[].hard", NODES, Read),
    Key("storage.luks", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].name", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].device", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.source", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.inline", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.local", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.compression", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.http_headers", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.http_headers[].name", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.http_headers[].value", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.verification", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].key_file.verification.hash", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].label", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].uuid", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].options", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].discard", LUKS_1_5, Refused(&STORAGE)),
    Key("storage.luks[].open_options", LUKS_1_5, Refused(&STORAGE)),
    Key("storage.luks[].wipe_volume", LUKS, Refused(&STORAGE)),
    Key("storage.luks[].clevis", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.tang", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.tang[].url", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.tang[].thumbprint", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.tang[].advertisement", ADVERTISED, Refused(&STORAGE)),
    Key("storage.luks[].clevis.tpm2", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.threshold", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.custom", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.custom.pin", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.custom.config", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].clevis.custom.needs_network", CLEVIS, Refused(&STORAGE)),
    Key("storage.luks[].cex", CEX, Refused(&STORAGE)),
    Key("storage.luks[].cex.enabled", CEX, Refused(&STORAGE)),
    Key("storage.trees", V1_1, Read),
    Key("storage.trees[].local", V1_1, Read),
    Key("storage.trees[].path", V1_1, Read),
    Key("storage.trees[].file_mode", OWNED_TREE, Read),
    Key("storage.trees[].dir_mode", OWNED_TREE, Read),
    Key("storage.trees[].user", OWNED_TREE, Read),
    Key("storage.trees[].user.id", OWNED_TREE, Read),
    Key("storage.trees[].user.name", OWNED_TREE, Read),
    Key("storage.trees[].group", OWNED_TREE, Read),
    Key("storage.trees[].group.id", OWNED_TREE, Read),
    Key("storage.trees[].group.name", OWNED_TREE, Read),
    Key("systemd", ALL, Read),
    Key("systemd.units", ALL, Read),
    Key("systemd.units[].name", ALL, Read),
    Key("systemd.units[].enabled", ALL, Read),
    Key("systemd.units[].mask", ALL, Read),
    Key("systemd.units[].contents", ALL, Read),
    Key("systemd.units[].contents_local", LOCAL, Read),
    Key("systemd.units[].dropins", ALL, Read),
    Key("systemd.units[].dropins[].name", ALL, Read),
    Key("systemd.units[].dropins[].contents", ALL, Read),
    Key("systemd.units[].dropins[].contents_local", LOCAL, Read),
    Key("passwd", ALL, Read),
    Key("passwd.users", ALL, Read),
    Key("passwd.users[].name", ALL, Read),
    Key("passwd.users[].password_hash", PASSWORD, Refused(&LOGIN)),
    Key("passwd.users[].ssh_authorized_keys", ALL, Refused(&LOGIN)),
    Key("passwd.users[].ssh_authorized_keys_local", LOCAL, Refused(&LOGIN)),
    Key("passwd.users[].uid", NODES, Read),
    Key("passwd.users[].gecos", NODES, Read),
    Key("passwd.users[].home_dir", NODES, Read),
    Key("passwd.users[].no_create_home", NODES, Read),
    Key("passwd.users[].primary_group", NODES, Refused(&MEMBER)),
    Key("passwd.users[].groups", NODES, Refused(&MEMBER)),
    Key("passwd.users[].no_user_group", NODES, Read),
    Key("passwd.users[].no_log_init", NODES, Refused(&NO_LOG)),
    Key("passwd.users[].shell", NODES, Read),
    Key("passwd.users[].should_exist", EXIST, Read),
    Key("passwd.users[].system", NODES, Read),
    Key("passwd.groups", NODES, Read),
    Key("passwd.groups[].name", NODES, Read),
    Key("passwd.groups[].gid", NODES, Read),
    Key("passwd.groups[].password_hash", NODES, Refused(&LOGIN)),
    Key("passwd.groups[].should_exist", EXIST, Read),
    Key("passwd.groups[].system", NODES, Read),
    Key("kernel_arguments", KARGS, Read),
    Key("kernel_arguments.should_exist", KARGS, Read),
    Key("kernel_arguments.should_not_exist", KARGS, Read),
    Key("boot_device", BOOT, Refused(&STORAGE)),
    Key("boot_device.layout", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks.device", CEX, Refused(&STORAGE)),
    Key("boot_device.luks.tang", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks.tang[].url", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks.tang[].thumbprint", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks.tang[].advertisement", ADVERTISED, Refused(&STORAGE)),
    Key("boot_device.luks.tpm2", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks.threshold", BOOT, Refused(&STORAGE)),
    Key("boot_device.luks.discard", ADVERTISED, Refused(&STORAGE)),
    Key("boot_device.luks.cex", CEX, Refused(&STORAGE)),
    Key("boot_device.luks.cex.enabled", CEX, Refused(&STORAGE)),
    Key("boot_device.mirror", BOOT, Refused(&STORAGE)),
    Key("boot_device.mirror.devices", BOOT, Refused(&STORAGE)),
    Key("grub", ADVERTISED, Refused(&GRUB)),
    Key("grub.users", ADVERTISED, Refused(&GRUB)),
    Key("grub.users[].name", ADVERTISED, Refused(&GRUB)),
    Key("grub.users[].password_hash", ADVERTISED, Refused(&GRUB)),
    Key("openshift", OPENSHIFT, Read),
    Key("openshift.kernel_type", OPENSHIFT, Refused(&KERNEL_TYPE)),
    Key("openshift.kernel_arguments", OPENSHIFT, Read),
    Key("openshift.extensions", OPENSHIFT, Refused(&EXTENSIONS)),
    Key("openshift.fips", OPENSHIFT, Refused(&FIPS)),
];

/// The specification that a configuration follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spec {
    variant: usize,
    version: Version,
}

impl Spec {
    /// Reads `variant` and `version`.
    pub fn of(root: &Cursor<'_>) -> Result<Spec> {
        let top = root.map()?;
        let need = |key: &str| {
            top.need(key).map_err(|e| e.hint("a .bu file begins with its variant: and its version:"))
        };
        let place = need("variant")?;
        let name = place.text()?;
        let Some(variant) = VARIANTS.iter().position(|(n, _)| *n == name) else {
            let known: Vec<_> = VARIANTS.iter().map(|(n, _)| *n).collect();
            return Err(place
                .error_of(ErrorKind::Unsupported, format!("the variant `{}` is not known", printable(name)))
                .hint(format!("known: {}", known.join(", "))));
        };
        let place = need("version")?;
        let text = place.scalar("a version such as 1.7.0")?;
        let (_, versions) = VARIANTS[variant];
        if let Some(version) = versions.iter().find(|v| shown(**v) == text) {
            return Ok(Spec { variant, version: *version });
        }
        let message = if text.ends_with("-experimental") {
            format!("the version `{}` of {name} may still change its meaning", printable(text))
        } else {
            format!("the version `{}` of {name} is not known", printable(text))
        };
        let known: Vec<_> = versions.iter().map(|v| shown(*v)).collect();
        Err(place.error_of(ErrorKind::Unsupported, message).hint(format!("known: {}", known.join(", "))))
    }

    /// A map with the keys that this specification has at this place, and that can be done.
    pub fn fields<'a>(&self, place: &Cursor<'a>) -> Result<Fields<'a>> {
        let parent = pattern(&place.key);
        let known: Vec<&str> = KEYS
            .iter()
            .filter(|key| matches!(key.2, Read) && self.has(key))
            .filter_map(|key| key.below(&parent))
            .collect();
        place.fields_or(&known, |at, name| self.refusal(&parent, at, name))
    }

    /// Whether contents may be downloaded: the Machine Config Operator has no network.
    pub fn downloads(&self) -> bool {
        VARIANTS[self.variant].0 != "openshift"
    }

    /// Whether this specification has the key with this path.
    pub fn knows(&self, path: &str) -> bool {
        KEYS.iter().any(|key| key.0 == path && self.has(key))
    }

    fn has(&self, key: &Key) -> bool {
        self.version >= key.1[self.variant]
    }

    /// The error for a key that another specification has, or that cannot be done.
    fn refusal(&self, parent: &str, at: &Cursor<'_>, name: &str) -> Option<Error> {
        let key = KEYS.iter().find(|key| key.below(parent) == Some(name))?;
        if let Refused(why) = key.2 {
            return Some(why.at(at));
        }
        let (variant, _) = VARIANTS[self.variant];
        let error = at.error(format!("{variant} {} has no such key", shown(self.version)));
        Some(match key.1[self.variant] {
            NO => {
                let others = VARIANTS.iter().zip(key.1).filter(|(_, since)| *since != NO);
                let others: Vec<_> =
                    others.map(|((name, _), since)| format!("{name} {}", shown(since))).collect();
                error.hint(format!("it came with {}", others.join(", ")))
            }
            since => error.hint(format!("it came with {variant} {}: change `version`", shown(since))),
        })
    }
}

impl Key {
    /// The last part of the path, if the rest is this.
    fn below(&self, parent: &str) -> Option<&'static str> {
        let (before, name) = self.0.rsplit_once('.').unwrap_or(("", self.0));
        (before == parent).then_some(name)
    }
}

impl Why {
    /// The error, at this place.
    pub fn at(&self, place: &Cursor<'_>) -> Error {
        place.error_of(self.kind, self.message).hint(self.hint)
    }
}

fn shown(version: Version) -> String {
    format!("{}.{}.0", version / 100, version % 100)
}

/// A key with its places in lists left out: `storage.files[3].mode` is `storage.files[].mode`.
fn pattern(key: &str) -> String {
    let mut pattern = String::with_capacity(key.len());
    let mut inside = false;
    for c in key.chars() {
        inside &= c != ']';
        if !inside {
            pattern.push(c);
        }
        inside |= c == '[';
    }
    pattern
}

#[cfg(test)]
mod tests;
