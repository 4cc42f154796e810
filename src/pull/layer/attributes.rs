//! The extended attributes of a layer's entries: which are kept, and in which form.

use super::path::refused;
use crate::model::Result;
use crate::model::text::one_line;
use crate::pull::archive::{Entry, Kind};
use crate::pull::tree::Xattrs;

/// The longest name of an extended attribute (XATTR_NAME_MAX).
const MAX_XATTR_NAME: usize = 255;
const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// The extended attributes that belong to the content. Labels come from the target's policy, and overlayfs' own
/// notes mean nothing outside the machine that built the image. Refused is what a file system would not keep as it is:
/// the object would not have its checksum afterwards.
pub(super) fn kept_xattrs(path: &str, entry: &Entry) -> Result<Xattrs> {
    let dropped = |name: &[u8]| {
        name == b"security.selinux"
            || name.starts_with(b"trusted.overlay.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.ima"
    };
    let mut kept = Xattrs::new();
    // Hard links have the attributes of their file, and of devices only whiteouts are kept.
    if matches!(entry.kind, Kind::Link(_)) {
        return Ok(kept);
    }
    let link = matches!(entry.kind, Kind::Symlink(_));
    let directory = entry.kind == Kind::Directory;
    // libostree cannot hold an attribute without a value.
    for (name, value) in entry.xattrs.iter().filter(|(n, v)| !dropped(n) && !v.is_empty()) {
        let text = String::from_utf8_lossy(name);
        let bad =
            |why: &str| Err(refused(path, &format!("has the extended attribute {}, {why}", one_line(&text))));
        if name.contains(&0) || name.len() > MAX_XATTR_NAME {
            return bad("whose name contains a NUL or is too long");
        }
        let acl = name == ACL_ACCESS || name == ACL_DEFAULT;
        let known = acl || ["user.", "trusted.", "security."].iter().any(|p| name.starts_with(p.as_bytes()));
        if !known {
            return bad("which a file system cannot store");
        }
        if link && (acl || name.starts_with(b"user.")) || name == ACL_DEFAULT && !directory {
            return bad("which an entry of its type cannot have");
        }
        if acl {
            match canonical_acl(value, (name == ACL_ACCESS).then_some(entry.mode)) {
                Ok(Some(acl)) => _ = kept.insert(name.clone(), acl),
                Ok(None) => {}
                Err(why) => return bad(why),
            }
        } else {
            kept.insert(name.clone(), value.clone());
        }
    }
    Ok(kept)
}

/// An ACL as the kernel gives it back; `None` if it says no more than the mode, as the kernel then stores none.
///
/// The format is that of `linux/posix_acl_xattr.h`: a version, then tag, permissions and id of each entry.
fn canonical_acl(value: &[u8], mode: Option<u32>) -> Result<Option<Vec<u8>>, &'static str> {
    const VERSION: [u8; 4] = [2, 0, 0, 0];
    const NO_ID: [u8; 4] = [0xff; 4];
    const TAGS: [u16; 6] = [OWNER, USER, OWNING_GROUP, GROUP, MASK, OTHER];
    const OWNER: u16 = 0x01;
    const USER: u16 = 0x02;
    const OWNING_GROUP: u16 = 0x04;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    const OTHER: u16 = 0x20;
    let (entries, rest) = value.strip_prefix(&VERSION).ok_or("which is no POSIX ACL")?.as_chunks::<8>();
    if !rest.is_empty() {
        return Err("which is no POSIX ACL");
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut canonical = VERSION.to_vec();
    let mut counts = [0_usize; TAGS.len()];
    let mut permissions = [0_u32; TAGS.len()];
    let mut last = 0;
    for [t0, t1, p0, p1, id @ ..] in entries {
        let tag = u16::from_le_bytes([*t0, *t1]);
        let at = TAGS.iter().position(|t| *t == tag).ok_or("which is no POSIX ACL")?;
        let named = matches!(tag, USER | GROUP);
        if at < last || *p0 > 7 || *p1 != 0 || named && *id == NO_ID || !named && counts[at] > 0 {
            return Err("which is no valid POSIX ACL");
        }
        (last, permissions[at]) = (at, u32::from(*p0));
        counts[at] += 1;
        canonical.extend_from_slice(&[*t0, *t1, *p0, *p1]);
        canonical.extend_from_slice(if named { id } else { &NO_ID });
    }
    let [owner, users, owning_group, groups, mask, other] = counts;
    if (owner, owning_group, other) != (1, 1, 1) || users + groups > 0 && mask == 0 {
        return Err("which is no valid POSIX ACL");
    }
    let Some(mode) = mode else { return Ok(Some(canonical)) };
    // The middle bits of the mode are the mask, where there is one: setting either changes the other.
    let middle = if mask > 0 { permissions[4] } else { permissions[2] };
    if mode & 0o777 != permissions[0] << 6 | middle << 3 | permissions[5] {
        return Err("which contradicts its mode");
    }
    Ok((mask > 0).then_some(canonical))
}
