//! The kernel of the tree: whatever packages change of it, libostree finds one kernel with its initramfs.
//!
//! ```text
//! /boot/{vmlinuz,config,System.map}-V ──► /usr/lib/modules/V/{vmlinuz,config,System.map}
//! what changed in /usr/lib/modules/V ──► depmod ──► dracut ──► /usr/lib/modules/V/initramfs.img
//! ```

mod rules;

use super::collect;
use super::detect::Target;
use super::room::{Inside, walk};
use super::{INSTALL_LIMIT, base};
use crate::model::lock::Manager;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::process::tail;
use crate::sys::sandbox::{Sandbox, Who};
use rules::Fate;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where kernels are, each in a directory of its own.
const MODULES: &str = "usr/lib/modules";
/// What libostree boots (ostree(1), `usr/lib/modules/$kver`).
const IMAGE: &str = "vmlinuz";
const INITRAMFS: &str = "initramfs.img";
/// A few thousand modules.
const DEPMOD_LIMIT: Duration = Duration::from_secs(300);
/// Asking a database of packages.
const OWNER_LIMIT: Duration = Duration::from_secs(60);
/// Where hooks of Debian's kernel packages are; those of boot loaders begin with `zz-` (Debian Linux Kernel Handbook, 8.2).
const HOOKS: [&str; 2] = ["etc/kernel/postinst.d", "etc/kernel/postrm.d"];
const BOOT_LOADER: &str = "zz-";
/// The links of linux-update-symlinks(1).
const LINKS: [&str; 4] = ["vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"];

/// The kernels of a tree: the version of each, and what of a kernel's own it has.
type Kernels = BTreeMap<String, BTreeSet<&'static str>>;

/// Shows `/boot` as an empty directory, and keeps hooks of packages from making boot entries and an initramfs of their own.
pub(super) fn without_hooks(inside: &Inside, sandbox: Sandbox) -> Result<Sandbox> {
    let mut sandbox = sandbox
        .bind(inside.boot().to_owned(), "/boot")
        // kernel-install(8).
        .variable("KERNEL_INSTALL_BYPASS", "1")
        // What hooks for an initramfs look at (Debian Linux Kernel Handbook, 8.4).
        .variable("INITRD", "No");
    // A file that is not executable is passed over (run-parts(8)).
    let nothing = inside.own("no-hook", (0, 0))?.join("hook");
    std::fs::write(&nothing, b"").doing("preparing the hooks of kernel packages")?;
    let tree = inside.tree()?;
    for dir in HOOKS {
        let Ok(entries) = tree.read_dir(format!("usr/{dir}")) else { continue };
        for entry in entries {
            let entry = entry.doing("listing the hooks of kernel packages")?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if let Some(name) = entry.file_name().to_str().filter(|n| is_file && n.starts_with(BOOT_LOADER)) {
                sandbox = sandbox.show(nothing.clone(), format!("/{dir}/{name}"));
            }
        }
    }
    Ok(sandbox)
}

/// The kernels before packages are installed.
#[derive(Debug)]
pub(super) struct Before(Kernels);

/// Looks at the kernels before packages are installed.
pub(super) fn before(inside: &Inside) -> Result<Before> {
    kernels(inside).map(Before)
}

/// Puts the kernel that packages brought where libostree looks for it, with all that is made of its modules; returns its
/// version if there was anything to do.
pub(super) fn finish(
    inside: &Inside,
    target: &Target,
    upper: &Path,
    before: &Before,
    time: u64,
) -> Result<Option<String>> {
    take_from_boot(inside)?;
    remove_links(inside, upper)?;
    let mut changed = changed(upper)?;
    let mut now = kernels(inside)?;
    if changed.is_empty() && now == before.0 {
        return Ok(None);
    }
    let is_new = |version: &str| is_in(upper, version, IMAGE);
    let gone = now.iter().filter(|(version, has)| {
        let had = before.0.get(*version);
        had.is_some_and(|had| !had.is_subset(has)) && !is_new(version)
    });
    for version in gone.map(|(version, _)| version.clone()).collect::<Vec<_>>() {
        clear(inside, &version)?;
        now.remove(&version);
        changed.remove(&version);
    }
    let version = only(inside, target, &now, before)?;
    for other in changed.iter().filter(|v| **v != version && now.contains_key(*v)) {
        let other = one_line(other);
        inside.cx.message(format!("there are modules for {other}, and the kernel is {version}"));
    }
    if changed.contains(&version) {
        let sandbox = inside.sandbox(Who::Installer)?.variable("SOURCE_DATE_EPOCH", time.to_string());
        depmod(inside, &sandbox, &version)?;
        initramfs(inside, &sandbox, &version)?;
    }
    Ok(Some(version))
}

fn kernels(inside: &Inside) -> Result<Kernels> {
    let tree = inside.tree()?;
    let mut kernels = Kernels::new();
    let doing = "listing the kernels of the target";
    let dir = match tree.read_dir(MODULES) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(kernels),
        dir => dir.doing(doing)?,
    };
    for entry in dir {
        let entry = entry.doing(doing)?;
        if !entry.file_type().doing(doing)?.is_dir() {
            continue;
        }
        let version = version_of(&entry.file_name())?;
        let has = |name: &&&str| tree.symlink_metadata(format!("{MODULES}/{version}/{name}")).is_ok();
        let own = rules::OWN.iter().filter(has).copied().collect();
        kernels.insert(version, own);
    }
    Ok(kernels)
}

/// The name of a directory of modules, which is going to be an argument.
fn version_of(name: &std::ffi::OsStr) -> Result<String> {
    name.to_str().filter(|name| rules::is_version(name)).map(str::to_owned).ok_or_else(|| {
        let shown = one_line(&name.to_string_lossy());
        Error::new(
            ErrorKind::Unsupported,
            format!("/{MODULES}/{shown} is no version of a kernel; nothing was staged"),
        )
    })
}

/// The versions whose modules packages added to, changed or removed.
fn changed(upper: &Path) -> Result<BTreeSet<String>> {
    let doing = "looking at what packages changed of the modules";
    let mut changed = BTreeSet::new();
    let dir = match std::fs::read_dir(upper.join(MODULES)) {
        // Not a directory: all of it is gone.
        Err(e) if [std::io::ErrorKind::NotFound, std::io::ErrorKind::NotADirectory].contains(&e.kind()) => {
            return Ok(changed);
        }
        dir => dir.doing(doing)?,
    };
    for entry in dir {
        let entry = entry.doing(doing)?;
        if !entry.file_type().doing(doing)?.is_dir() {
            continue;
        }
        let here = entry.path();
        let mut decides = collect::is_opaque(&here)?;
        for path in walk(&here).doing(doing)? {
            let of_version = path.strip_prefix(&here).expect("it was found below");
            let is_dir = std::fs::symlink_metadata(&path).doing(doing)?.is_dir();
            decides |= match is_dir {
                true => collect::is_opaque(&path)?,
                false => !rules::is_generated(&of_version.to_string_lossy()),
            };
        }
        if decides {
            changed.insert(version_of(&entry.file_name())?);
        }
    }
    Ok(changed)
}

/// Whether packages wrote this file of a version.
fn is_in(upper: &Path, version: &str, name: &str) -> bool {
    let path = upper.join(MODULES).join(version).join(name);
    path.symlink_metadata().is_ok_and(|m| !m.is_dir() && !m.file_type().is_char_device())
}

/// Moves what packages put into `/boot` to where it belongs in an image.
fn take_from_boot(inside: &Inside) -> Result<()> {
    let boot = inside.boot();
    let doing = "looking at what packages put into /boot";
    let tree = inside.tree()?;
    let mut left = Vec::new();
    let mut refused = Vec::new();
    for path in walk(boot).doing(doing)? {
        let meta = std::fs::symlink_metadata(&path).doing(doing)?;
        if meta.is_dir() {
            continue;
        }
        let name = path.strip_prefix(boot).expect("it was found below").to_string_lossy().into_owned();
        match rules::fate(&name) {
            Fate::Taken { version, name }
                if meta.is_file() && tree.is_dir(format!("{MODULES}/{version}")) =>
            {
                take(inside, &path, version, name)?;
            }
            Fate::Dropped => left.push(name),
            Fate::Taken { .. } | Fate::Refused => refused.push(format!("/boot/{name}")),
        }
    }
    if !left.is_empty() {
        inside.cx.message(format!("not taken from /boot: {}", one_line(&left.join(", "))));
    }
    if refused.is_empty() {
        return Ok(());
    }
    let list = refused.iter().map(|p| one_line(p)).collect::<Vec<_>>().join(", ");
    let what = "packages put files into /boot, which belongs to the host and not to the image";
    Err(Error::new(ErrorKind::Unsupported, format!("{what}: {list}; nothing was staged"))
        .detail("paths", refused.join("\n"))
        .hint("leave the package out; a kernel needs its modules in /usr/lib/modules"))
}

fn take(inside: &Inside, from: &Path, version: &str, name: &str) -> Result<()> {
    let to: PathBuf = inside.real(&format!("{MODULES}/{version}"))?.join(name);
    let take = || -> std::io::Result<()> {
        // Never through a link to somewhere.
        match std::fs::remove_file(&to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => std::fs::copy(from, &to)?,
        };
        std::fs::remove_file(from)
    };
    take().doing_with(|| format!("moving {name} of the kernel {version} to its modules"))
}

/// Removes the links to `/boot` that were made in the root of the tree.
fn remove_links(inside: &Inside, upper: &Path) -> Result<()> {
    let made = |name: &&&str| upper.join(name).symlink_metadata().is_ok_and(|m| m.is_symlink());
    for name in LINKS.iter().filter(made) {
        inside.tree()?.remove_file(name).doing_with(|| format!("removing the link /{name}"))?;
    }
    Ok(())
}

/// Removes what nobody owns of a kernel that is gone: whoever built the image put kernel and initramfs there.
fn clear(inside: &Inside, version: &str) -> Result<()> {
    let place = format!("{MODULES}/{version}");
    let here = inside.real(&place)?;
    let doing = || format!("removing what is left of the kernel {version}");
    let mut strangers = Vec::new();
    for path in walk(&here).doing_with(doing)? {
        let name = path.strip_prefix(&here).expect("it was found below").to_string_lossy().into_owned();
        if !std::fs::symlink_metadata(&path).doing_with(doing)?.is_dir() && !rules::is_left_over(&name) {
            strangers.push(format!("/{place}/{name}"));
        }
    }
    if strangers.is_empty() {
        return inside.tree()?.remove_dir_all(&place).doing_with(doing);
    }
    let shown = strangers.iter().take(base::SHOWN).map(|p| one_line(p)).collect::<Vec<_>>().join(", ");
    let why = format!("the kernel {version} is removed, and there are modules for it: {shown}");
    Err(Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged"))
        .detail("paths", strangers.join("\n"))
        .hint("name their packages in override-remove, too, or replace them by those for the new kernel"))
}

/// The one kernel that there must be.
fn only(inside: &Inside, target: &Target, now: &Kernels, before: &Before) -> Result<String> {
    let with_image =
        |(version, has): (&String, &BTreeSet<&str>)| has.contains(IMAGE).then(|| version.clone());
    let bootable: Vec<String> = now.iter().filter_map(with_image).collect();
    let refused = |why: String| Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged"));
    match bootable.as_slice() {
        [] => Err(refused("the kernel is removed, and no package brings another".to_owned())
            .hint("name the package of another kernel in packages")),
        [one] => Ok(one.clone()),
        several => {
            let error = refused(format!(
                "there would be several kernels, and libostree boots one: {}",
                several.join(", ")
            ))
            .detail("kernels", several.join(" "));
            let old = several.iter().find(|version| before.0.contains_key(*version));
            Err(match old.map(|old| owners(inside, target, old)).transpose()? {
                None => error.hint("ask for the package of one of them only"),
                Some(owners) if owners.is_empty() => error.hint(
                    "the one of the image is of no package: take an image without it, or leave out the other",
                ),
                Some(owners) => {
                    error.hint(format!("to have the new one, write override-remove: [{}]", owners.join(", ")))
                }
            })
        }
    }
}

/// The packages that brought a kernel.
fn owners(inside: &Inside, target: &Target, version: &str) -> Result<Vec<String>> {
    let paths = rules::OWN
        .iter()
        .flat_map(|name| ["", "/usr"].map(|root| format!("{root}/lib/modules/{version}/{name}")));
    let mut arguments: Vec<String> = match target.manager {
        Manager::Apt => vec![format!("--admindir={}", target.database), "--search".to_owned()],
        Manager::Dnf => ["-q", "--queryformat", "%{NAME}: \\n", "--file"].map(str::to_owned).into(),
    };
    let program = match target.manager {
        Manager::Apt => "dpkg-query",
        Manager::Dnf => "rpm",
    };
    arguments.extend(paths);
    // It fails where one of the paths has no owner.
    let said = inside.run(&inside.sandbox(Who::Installer)?, program, arguments, OWNER_LIMIT)?;
    Ok(rules::owners(&String::from_utf8_lossy(&said.stdout)))
}

fn depmod(inside: &Inside, sandbox: &Sandbox, version: &str) -> Result<()> {
    let tree = inside.tree()?;
    // A link, in most trees, and seen from here an absolute one leads nowhere.
    if !["usr/sbin/depmod", "usr/bin/depmod"].iter().any(|path| tree.symlink_metadata(path).is_ok()) {
        let why = format!("the modules of {version} changed, and the image has no depmod");
        return Err(Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged"))
            .hint("take an image with kmod, or leave the package out"));
    }
    inside.cx.message(format!("listing the modules of {version}"));
    let done = inside.run(sandbox, "depmod", ["-a", version], DEPMOD_LIMIT)?;
    match done.success {
        true => Ok(()),
        false => Err(failed("depmod", version, &done.stderr)),
    }
}

/// Makes the initramfs as the image's own configuration says, but for any host.
fn initramfs(inside: &Inside, sandbox: &Sandbox, version: &str) -> Result<()> {
    let tree = inside.tree()?;
    let has = |path: &str| tree.symlink_metadata(path).is_ok();
    let unsupported = |why: &str| {
        let what = format!("the modules of {version} changed, and no initramfs can be made of them: {why}");
        Err(Error::new(ErrorKind::Unsupported, format!("{what}; nothing was staged"))
            .hint("take an image with dracut and its ostree module, or leave the package out"))
    };
    if !has("usr/bin/dracut") && !has("usr/sbin/dracut") {
        return unsupported(match () {
            () if has("usr/sbin/mkinitramfs") => "the image has initramfs-tools, and osctl knows dracut only",
            () if has("usr/bin/mkinitcpio") => "the image has mkinitcpio, and osctl knows dracut only",
            () => "the image has no dracut",
        });
    }
    let modules = tree.read_dir("usr/lib/dracut/modules.d").doing("listing the modules of dracut")?;
    let mut names = modules.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    // Two digits are its place among the others.
    if !names.any(|name| name.trim_start_matches(|c: char| c.is_ascii_digit()) == "ostree") {
        return unsupported("its dracut has no ostree module, without which no deployment boots");
    }
    inside.cx.message(format!("making the initramfs of {version}"));
    let to = format!("/{MODULES}/{version}/{INITRAMFS}");
    // A program that fails without saying so must not leave that of before.
    let doing = "removing the initramfs of before";
    match inside.real(&format!("{MODULES}/{version}")).map(|dir| std::fs::remove_file(dir.join(INITRAMFS)))? {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).doing(doing),
        _ => {}
    }
    // Both outputs in the order in which they came.
    let script = ["-c", "exec dracut \"$@\" 2>&1", "dracut"];
    let fixed = ["--force", "--no-hostonly", "--reproducible", "--add", "ostree", "--kver", version, &to];
    let done = inside.run(sandbox, "/bin/sh", script.into_iter().chain(fixed), INSTALL_LIMIT)?;
    let said = String::from_utf8_lossy(&done.stdout);
    if !done.success {
        return Err(failed("dracut", version, &said));
    }
    said.lines().for_each(|line| tracing::debug!(line, "dracut"));
    match tree.symlink_metadata(to.trim_start_matches('/')).is_ok_and(|m| m.is_file() && m.len() > 0) {
        true => Ok(()),
        false => Err(failed("dracut", version, &said)),
    }
}

fn failed(program: &str, version: &str, said: &str) -> Error {
    let shown: Vec<String> = tail(said, base::SHOWN).lines().map(one_line).collect();
    let what = format!("{program} of the image fails for the kernel {version}; nothing was staged");
    Error::new(ErrorKind::ScriptletFailed, format!("{what}:\n{}", shown.join("\n")))
        .detail("kernel", version)
        .hint("leave the package out, or take an image whose kernel and modules fit it")
}
