//! Which paths a drop-in may declare, and how they are written.

/// The system's identity and accounts, our own files, and what belongs to the boot loader or to ostree.
///
/// Each is refused with everything below it.
const FORBIDDEN: [&str; 20] = [
    "/etc/osctl",
    "/usr/lib/osctl",
    "/usr/etc",
    "/etc/machine-id",
    "/usr/lib/machine-id",
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/group",
    "/etc/group-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/usr/lib/passwd",
    "/usr/lib/shadow",
    "/usr/lib/group",
    "/usr/lib/gshadow",
    "/etc/fstab",
    "/etc/.updated",
    "/usr/.updated",
];

/// As Linux has them (limits.h).
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// Why a path is refused, with what to do instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub message: String,
    pub hint: Option<&'static str>,
}

fn refused(message: impl Into<String>, hint: Option<&'static str>) -> Refused {
    Refused { message: message.into(), hint }
}

/// Returns the path as it is stored: absolute, without `.` and empty components.
///
/// `tree` says that the path is a directory: others may not hide or contain a forbidden path.
pub(super) fn declared(path: &str, tree: bool) -> Result<String, Refused> {
    let normal = normalise(path)?;
    for (top, hint) in [
        ("/var", "declare it in a tmpfiles.d file: /usr/lib/tmpfiles.d/NAME.conf"),
        ("/home", "declare it in a tmpfiles.d file: /usr/lib/tmpfiles.d/NAME.conf"),
        ("/run", "declare it in a tmpfiles.d file: /usr/lib/tmpfiles.d/NAME.conf"),
        ("/tmp", "declare it in a tmpfiles.d file: /usr/lib/tmpfiles.d/NAME.conf"),
        ("/root", "declare it in a tmpfiles.d file: /usr/lib/tmpfiles.d/NAME.conf"),
        ("/bin", "write the path below /usr/bin"),
        ("/sbin", "write the path below /usr/sbin"),
        ("/lib", "write the path below /usr/lib"),
        ("/lib64", "write the path below /usr/lib64"),
        ("/boot", "kernel arguments go to kernel-arguments:"),
    ] {
        if within(&normal, top) {
            return Err(refused(format!("{normal} is outside /etc and /usr"), Some(hint)));
        }
    }
    if !within(&normal, "/etc") && !within(&normal, "/usr") {
        return Err(refused(format!("{normal} is outside /etc and /usr"), None));
    }
    if normal == "/etc" || normal == "/usr" {
        return Err(refused(format!("{normal} itself cannot be declared"), None));
    }
    if is_kernel(&normal) {
        let hint = "a kernel comes with the image, or with packages";
        return Err(refused(format!("{normal} is never changed by drop-ins"), Some(hint)));
    }
    for forbidden in FORBIDDEN {
        // The literal form as well: nobody has to trust our normalisation for these.
        if within(&normal, forbidden) || within(path, forbidden) {
            let hint = match forbidden {
                "/usr/etc" => Some("write the path below /etc"),
                "/etc/osctl" | "/usr/lib/osctl" => None,
                "/etc/fstab" => Some("ship a .mount unit instead"),
                _ if forbidden.ends_with("passwd") || forbidden.ends_with("group") => {
                    Some("declare system users in users:")
                }
                _ => None,
            };
            return Err(refused(format!("{forbidden} is never changed by drop-ins"), hint));
        }
        if !tree && within(forbidden, &normal) {
            return Err(refused(format!("{normal} would hide {forbidden}"), None));
        }
    }
    Ok(normal)
}

/// Whether a path is what the boot loader gets of a kernel: that comes with the image, or with packages.
pub fn is_kernel(path: &str) -> bool {
    let of_version = path.strip_prefix("/usr/lib/modules/").and_then(|rest| rest.split_once('/'));
    let is_it = of_version.is_some_and(|(_, name)| matches!(name, "vmlinuz" | "initramfs.img"));
    is_it || within(path, "/usr/lib/ostree-boot")
}

/// The forbidden path that this one, as the booted system sees it, is or is below.
pub fn forbidden(path: &str) -> Option<&'static str> {
    FORBIDDEN.into_iter().find(|f| within(path, f))
}

/// Checks a link's target: any absolute path, or a relative one that stays below `/`.
pub(super) fn link_target(path: &str, target: &str) -> Result<(), Refused> {
    if target.is_empty() {
        return Err(refused("the target is empty", None));
    }
    if target.chars().any(char::is_control) || target.len() > MAX_PATH {
        return Err(refused("the target is too long or holds a control character", None));
    }
    let mut depth = if target.starts_with('/') { 0 } else { path.matches('/').count() - 1 };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => {
                return Err(refused(format!("the target {target} climbs over /"), None));
            }
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

/// Checks the name of a `local:` file: relative to the drop-in's directory and inside it.
pub(super) fn local(path: &str) -> Result<(), Refused> {
    let bad = |message| Err(refused(message, Some("local: names a file below the drop-in's own directory")));
    if path.starts_with('/') {
        return bad("must be relative to the drop-in");
    }
    if path.chars().any(char::is_control) || path.len() > MAX_PATH {
        return bad("is too long or holds a control character");
    }
    match path.split('/').find(|c| matches!(*c, "" | "." | "..")) {
        Some("..") => bad("must not leave the drop-in's directory"),
        Some(_) => bad("has an empty or `.` component"),
        None => Ok(()),
    }
}

fn normalise(path: &str) -> Result<String, Refused> {
    if !path.starts_with('/') {
        return Err(refused("must be an absolute path", None));
    }
    if path.chars().any(char::is_control) {
        return Err(refused("holds a control character", None));
    }
    if path.split('/').any(|c| c == "..") {
        return Err(refused("must not contain `..`", None));
    }
    if path.ends_with('/') || path.ends_with("/.") {
        return Err(refused("must not end in a slash", None));
    }
    let parts: Vec<&str> = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    if let Some(long) = parts.iter().find(|c| c.len() > MAX_NAME) {
        return Err(refused(format!("a name of {} bytes is longer than {MAX_NAME}", long.len()), None));
    }
    let normal = format!("/{}", parts.join("/"));
    if normal.len() > MAX_PATH {
        return Err(refused(format!("is longer than {MAX_PATH} bytes"), None));
    }
    Ok(normal)
}

/// Whether `path` is `top` or lies below it.
pub fn within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
