//! Keys that drop-ins do not have: those of other formats, and those of later versions.

use super::cursor::Cursor;
use crate::model::error::{Error, ErrorKind};

const FIRST_BOOT: &str = "it works at first boot only: put it into the Butane or Ignition configuration \
that installs the host";

/// An `UnsupportedStanza` for a key of Butane or Ignition at the top of a drop-in.
pub(super) fn foreign(place: &Cursor<'_>, key: &str) -> Option<Error> {
    let (message, hint) = match key {
        "variant" => (
            "this looks like a Butane configuration, not like an osctl drop-in",
            "name it NAME.bu, or remove `variant` and `version` and write files:, units: and links: at the top",
        ),
        "ignition" => (
            "this looks like an Ignition configuration, not like an osctl drop-in",
            "give it to the installer; in a drop-in write files:, units: and links: at the top",
        ),
        "storage" => (
            "`storage` is not a stanza of drop-ins",
            "write files:, directories: and links: at the top of the drop-in; disks, raid, luks and filesystems \
             work at first boot only: put them into the Butane or Ignition configuration that installs the host",
        ),
        "systemd" => ("`systemd` is not a stanza of drop-ins", "write units: at the top of the drop-in"),
        "passwd" => (
            "`passwd` is not a stanza of drop-ins",
            "system users go to users: (name, system: true); people, passwords and SSH keys belong into the \
             Butane or Ignition configuration that installs the host",
        ),
        "kernel_arguments" | "kernelArguments" => (
            "Butane's kernel arguments are not a stanza of drop-ins",
            "write kernel-arguments: {append: [...], delete: [...]}",
        ),
        "disks" | "raid" | "luks" | "filesystems" | "boot_device" | "swap" | "partitions" => {
            ("storage cannot be set up by a drop-in", FIRST_BOOT)
        }
        "ssh_authorized_keys"
        | "ssh-authorized-keys"
        | "sshAuthorizedKeys"
        | "password_hash"
        | "password-hash"
        | "passwordHash" => ("a drop-in cannot set passwords or SSH keys", FIRST_BOOT),
        _ => return None,
    };
    Some(place.error_of(ErrorKind::UnsupportedStanza, message).hint(hint))
}

/// An `UnsupportedStanza` for a key of a person's account.
pub(super) fn person(place: &Cursor<'_>, key: &str) -> Option<Error> {
    let known = matches!(
        key,
        "ssh_authorized_keys"
            | "ssh-authorized-keys"
            | "sshAuthorizedKeys"
            | "ssh_authorized_keys_local"
            | "password_hash"
            | "password-hash"
            | "passwordHash"
            | "password"
            | "groups"
            | "primary_group"
            | "no_create_home"
            | "no_user_group"
            | "should_exist"
    );
    known.then(|| {
        place
            .error_of(ErrorKind::UnsupportedStanza, format!("a drop-in cannot set `{key}` of a user"))
            .hint(FIRST_BOOT)
    })
}
