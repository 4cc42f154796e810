//! What belongs to a kernel, by its name.

/// What a package with a kernel brings, and a package with modules for it does not (kbuild(5), `modules_install`).
pub(super) const OWN: [&str; 3] = ["vmlinuz", "modules.builtin", "modules.order"];

/// What becomes of a file in `/boot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    /// It is one of the kernel of this version, and has this name there.
    Taken { version: &'a str, name: &'static str },
    /// It is made on the host, or from what the tree has.
    Dropped,
    /// Nobody knows what it is for.
    Refused,
}

/// What becomes of a file, by its path below `/boot`.
pub(super) fn fate(path: &str) -> Fate<'_> {
    let (first, rest) = path.split_once('/').map_or((path, None), |(first, rest)| (first, Some(rest)));
    if rest.is_some() {
        // Entries of a boot loader (kernel-install(8)); in the directory of a machine also copies of the kernel.
        let machine = first.len() == 32 && first.bytes().all(|b| b.is_ascii_hexdigit());
        return if first == "loader" || machine { Fate::Dropped } else { Fate::Refused };
    }
    for (prefix, name) in [
        ("vmlinuz-", "vmlinuz"),
        ("vmlinux-", "vmlinuz"),
        ("config-", "config"),
        ("System.map-", "System.map"),
    ] {
        if let Some(version) = path.strip_prefix(prefix).filter(|version| is_version(version)) {
            return Fate::Taken { version, name };
        }
    }
    // Links to one of several kernels, what an initramfs of the host would be, and copies of what is beside the modules.
    let dropped = ["initrd.img-", "initramfs-", "symvers-", ".vmlinuz-"];
    match path {
        "vmlinuz" | "vmlinuz.old" | "initrd.img" | "initrd.img.old" => Fate::Dropped,
        _ if dropped.iter().any(|prefix| path.starts_with(prefix)) => Fate::Dropped,
        _ => Fate::Refused,
    }
}

/// Whether a directory can be that of a kernel: uname(2) has 64 bytes for it, and programs get it as an argument.
pub(super) fn is_version(name: &str) -> bool {
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    start && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-~".contains(&b))
}

/// Whether a file of a version is made of the others, or is of no concern to the initramfs: what depmod(8) writes, and
/// links to what modules are built with.
pub(super) fn is_generated(path: &str) -> bool {
    let of_depmod = path.starts_with("modules.") && !path.contains('/');
    of_depmod || ["build", "source"].contains(&path) || [".fresh-install", "initramfs.img"].contains(&path)
}

/// Whether a file of a version is no package's, or says something about modules that are gone.
pub(super) fn is_left_over(path: &str) -> bool {
    let device_trees = ["devicetree/", "dtb/"].iter().any(|dir| path.starts_with(dir));
    let beside = ["vmlinuz", "config", "System.map", "devicetree", ".vmlinuz.hmac"].contains(&path);
    is_generated(path) || device_trees || beside || path.starts_with("symvers")
}

/// The packages in the lines `NAME[:ARCHITECTURE][, NAME...]: [PATH]`, each once.
pub(super) fn owners(said: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    // Not what is said about a path that nobody owns, nor about one that was diverted.
    for line in said.lines().filter(|line| !line.starts_with("diversion ")) {
        let owned = line.split_once(": ").filter(|(_, path)| path.is_empty() || path.starts_with('/'));
        let Some((owners, _)) = owned else { continue };
        for owner in owners.split(", ") {
            let name = owner.split(':').next().unwrap_or(owner).to_owned();
            if crate::model::packages::is_name(&name) && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_boot_the_kernel_is_taken_what_hosts_make_is_dropped_and_the_rest_is_refused() {
        let taken = |version, name| Fate::Taken { version, name };
        for (path, fate) in [
            ("vmlinuz-6.1.0-18-amd64", taken("6.1.0-18-amd64", "vmlinuz")),
            ("vmlinux-6.1.0-powerpc64le", taken("6.1.0-powerpc64le", "vmlinuz")),
            ("config-6.1.0", taken("6.1.0", "config")),
            ("System.map-6.1.0", taken("6.1.0", "System.map")),
            ("initrd.img-6.1.0", Fate::Dropped),
            ("initramfs-6.9.1-200.fc40.x86_64.img", Fate::Dropped),
            ("symvers-6.9.1-200.fc40.x86_64.xz", Fate::Dropped),
            (".vmlinuz-6.9.1-200.fc40.x86_64.hmac", Fate::Dropped),
            ("vmlinuz.old", Fate::Dropped),
            ("loader/entries/a.conf", Fate::Dropped),
            ("0123456789abcdef0123456789abcdef/6.1.0/linux", Fate::Dropped),
            ("vmlinuz-", Fate::Refused),
            ("vmlinuz--6.1", Fate::Refused),
            ("vmlinuz-6 1", Fate::Refused),
            ("grub/grub.cfg", Fate::Refused),
            ("memtest86+.bin", Fate::Refused),
            ("loader", Fate::Refused),
            ("sub/vmlinuz-6.1.0", Fate::Refused),
        ] {
            assert_eq!(super::fate(path), fate, "{path}");
        }
    }

    #[test]
    fn modules_decide_and_what_is_made_of_them_does_not() {
        for path in
            ["kernel/fs/ext4.ko", "extra/a.ko.xz", "vmlinuz", "kernel/modules.x", "updates/modules.dep"]
        {
            assert!(!is_generated(path), "{path}");
        }
        for path in ["modules.dep", "modules.dep.bin", "modules.order", "build", "source", "initramfs.img"] {
            assert!(is_generated(path), "{path}");
        }
    }

    #[test]
    fn of_a_kernel_that_is_gone_only_modules_of_other_packages_matter() {
        for path in
            ["vmlinuz", "initramfs.img", "config", "modules.dep.bin", "build", "symvers.gz", "dtb/a/b.dtb"]
        {
            assert!(is_left_over(path), "{path}");
        }
        for path in ["extra/agent.ko", "updates/dkms/a.ko.zst", "kernel/a.ko", "notes"] {
            assert!(!is_left_over(path), "{path}");
        }
    }

    #[test]
    fn a_version_is_no_option_and_no_path() {
        for version in ["6.1.0-18-amd64", "6.9.1-200.fc40.x86_64", "6.6.0-rc1+", "5.14.0_1~x"] {
            assert!(is_version(version), "{version}");
        }
        let long = "6".repeat(65);
        for version in ["", "-b", ".", "..", "a/b", "6.1 x", "6.1\n", "é", &long] {
            assert!(!is_version(version), "{version}");
        }
    }

    #[test]
    fn the_owners_of_paths_are_read_as_dpkg_and_rpm_say_them() {
        let dpkg = "linux-image-6.1.0-18-amd64: /lib/modules/6.1.0-18-amd64/modules.order\n\
                    linux-image-6.1.0-18-amd64, other:amd64: /lib/modules/6.1.0-18-amd64/modules.builtin\n\
                    diversion by x from: /a\n";
        assert_eq!(owners(dpkg), ["linux-image-6.1.0-18-amd64", "other"]);
        let rpm =
            "kernel-core: \nfile /usr/lib/modules/6/vmlinuz is not owned by any package\nkernel-core: \n";
        assert_eq!(owners(rpm), ["kernel-core"]);
        assert!(owners("error: file /lib/modules/6/x: No such file or directory\n").is_empty());
    }
}
