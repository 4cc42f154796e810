//! Arguments for podman that change which image is found, or how.

use super::syntax::{Entry, words};
use crate::model::bound::refused;
use crate::model::{Error, Result};

/// Options of `podman` itself, wherever they stand: another store, or another machine.
const GLOBAL: [&str; 7] =
    ["--connection", "--host", "--imagestore", "--remote", "--root", "--storage-driver", "--url"];
/// The short ones. After the verb they mean something else.
const SHORT: [&str; 3] = ["-c", "-H", "-r"];
/// Options of the verbs, and the keys that say the same where it can be honoured.
const VERB: [(&str, &str); 15] = [
    ("--all-tags", ""),
    ("--arch", "Arch="),
    ("--authfile", "AuthFile="),
    ("--build", ""),
    ("--cert-dir", "CertDir="),
    ("--context-dir", "SetWorkingDirectory="),
    ("--creds", "AuthFile="),
    ("--decryption-key", ""),
    ("--os", "OS="),
    ("--override-arch", "Arch="),
    ("--override-os", "OS="),
    ("--platform", "Arch="),
    ("--rootfs", ""),
    ("--tls-verify", "TLSVerify="),
    ("--variant", "Variant="),
];

/// Refuses arguments that would make podman look for another image than the one that is bound.
///
/// Returns the values of `--mount`, which may name further images.
pub(super) fn check(entry: &Entry) -> Result<Vec<String>> {
    let mut mounts = Vec::new();
    let fail = |argument: &str| -> Error {
        let why = format!("{}={argument} changes which image is found or how it is pulled", entry.key);
        refused(&entry.file, Some(entry.line), why).detail("key", &entry.key)
    };
    let mut words = words(&entry.raw).unwrap_or_default().into_iter();
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').map_or((&*word, None), |(n, v)| (n, Some(v.to_owned())));
        match name {
            "--storage-opt" => {
                let option = value.or_else(|| words.next()).unwrap_or_default();
                if !option.starts_with("additionalimagestore=") && !option.starts_with("overlay.") {
                    return Err(fail(&format!("--storage-opt={option}")));
                }
            }
            "--mount" => mounts.extend(value.or_else(|| words.next())),
            _ if GLOBAL.contains(&name) => return Err(fail(name)),
            _ if entry.key == "GlobalArgs" && SHORT.contains(&name) => return Err(fail(name)),
            _ => {
                if let Some((_, key)) = VERB.iter().find(|(option, _)| *option == name) {
                    let error = fail(name);
                    return Err(match *key {
                        "" => error,
                        "SetWorkingDirectory=" => error.hint(format!("write {key}")),
                        key if entry.section == "Image" => error.hint(format!("write {key}")),
                        key => {
                            error.hint(format!("write {key} into an .image file, and Image=NAME.image here"))
                        }
                    });
                }
            }
        }
    }
    Ok(mounts)
}

/// The image of a mount, `type=image,source=IMAGE,...`; `None` for mounts of other types.
pub(super) fn mounted_image(mount: &str) -> Option<String> {
    let fields: Vec<_> =
        mount.split(',').map(|f| f.trim_matches('"').split_once('=').unwrap_or((f, ""))).collect();
    if !fields.contains(&("type", "image")) {
        return None;
    }
    // The last one counts.
    let source = fields.iter().rev().find(|(key, _)| matches!(*key, "source" | "src"));
    Some(source.map_or(String::new(), |(_, image)| (*image).to_owned()))
}
