//! The mount namespace of this process.

use crate::model::{Context, ErrorKind, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::thread::UnshareFlags;
use std::collections::BTreeSet;
use std::path::Path;

/// Gives the calling thread, and the threads and processes that it starts, a mount namespace of its own, as
/// `PrivateMounts=` of the unit does for the daemon. What the host mounts later still appears, and nothing gets out.
///
/// libostree remounts `/sysroot` and `/boot` writable in the namespace it finds itself in; everybody's is refused. To
/// be called before other threads start.
#[allow(unsafe_code, reason = "unshare can pull file descriptors away under others")]
pub fn unshare() -> Result<()> {
    let doing = "making a mount namespace for --direct";
    // SAFETY: NEWNS leaves the table of file descriptors alone.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.kind(ErrorKind::Unsupported, doing)?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", slave).kind(ErrorKind::Unsupported, doing)
}

/// Mounts an overlay at `target`: `lower` with the changes that are, and will be, in `upper`.
///
/// Nothing of a change may be elsewhere than in `upper`: no redirected directories, no metadata without its content.
pub fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path) -> Result<()> {
    let doing = || format!("mounting a writable layer over {}", lower.display());
    // By option and not in one string: commas in paths mean nothing here.
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing_with(doing)?;
    for (key, path) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        fsconfig_set_string(&context, key, path).doing_with(doing)?;
    }
    for (key, value) in [("redirect_dir", "off"), ("metacopy", "off"), ("index", "off")] {
        fsconfig_set_string(&context, key, value).doing_with(doing)?;
    }
    fsconfig_create(&context).doing_with(doing)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
        .doing_with(doing)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, "", rustix::fs::CWD, target, flags).doing_with(doing)
}

/// What is mounted below a directory: paths without a slash in front.
pub fn below(directory: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string("/proc/thread-self/mountinfo").doing("reading what is mounted")?;
    Ok(below_in(&text, directory))
}

fn below_in(mountinfo: &str, directory: &Path) -> BTreeSet<String> {
    // The fifth field is where (proc_pid_mountinfo(5)); what would end a field is written in octal digits.
    let places = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(|place| {
        let escaped = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
        escaped.iter().fold(place.to_owned(), |place, (from, to)| place.replace(from, to))
    });
    let below = |place: String| Some(Path::new(&place).strip_prefix(directory).ok()?.to_str()?.to_owned());
    places.filter_map(below).filter(|place| !place.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_a_directory_is_listed_without_the_directory_itself() {
        let text = "1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /x /etc/hosts rw - ext4 a rw\n\
                    3 1 0:2 / /srv/root rw - tmpfs b rw\n4 3 0:2 / /srv/root/usr/a\\040b rw - tmpfs b rw\n\
                    5 1 0:2 / /srv/root-other rw - tmpfs b rw\n";
        let set = |places: &[&str]| places.iter().map(|p| (*p).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(below_in(text, Path::new("/srv/root")), set(&["usr/a b"]));
        let all = ["etc/hosts", "srv/root", "srv/root/usr/a b", "srv/root-other"];
        assert_eq!(below_in(text, Path::new("/")), set(&all));
    }

    #[test]
    fn what_is_mounted_afterwards_is_not_seen_outside() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let namespace = || std::fs::read_link("/proc/thread-self/ns/mnt").unwrap();
        let outside = namespace();
        // A thread of its own: the namespace goes with it.
        let inside = std::thread::spawn(move || {
            unshare().unwrap();
            assert!(!mounts().contains(" shared:"), "every mount is a slave or private");
            namespace()
        });
        assert_ne!(inside.join().unwrap(), outside);
        assert_eq!(namespace(), outside);
    }
}
