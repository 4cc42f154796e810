//! Plain images: from an ordinary container root to a tree that ostree can deploy. Rules: `docs/plain-images.md`.

mod tmpfiles;

use super::layer::shown;
use super::merge::join;
use super::tree::{Dir, Found, link_target, write_dirmeta};
use super::types::FetchOptions;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::{gio, ostree};
use std::collections::BTreeMap;
use tmpfiles::Lines;

/// The top level of the file hierarchy standard, and ours. `/etc` is `/usr/etc` in a layer's commit already.
const TOP_LEVEL: [&str; 27] = [
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "media",
    "mnt",
    "opt",
    "ostree",
    "proc",
    "root",
    "run",
    "sbin",
    "srv",
    "sys",
    "sysroot",
    "tmp",
    "usr",
    "var",
    "lost+found",
    ".dockerenv",
    ".dockerinit",
    ".containerenv",
];
/// What container tools leave behind.
const DROPPINGS: [&str; 4] = [".dockerenv", ".dockerinit", ".containerenv", "lost+found"];
/// Must be links into `/usr`; the first three must exist.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib64", "lib32", "libx32"];
/// Mount points, or filled at boot: content is dropped. With the mode of a missing one.
const EMPTIED: [(&str, u32); 6] =
    [("boot", 0o755), ("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777)];
/// Directories of the machine's own state: they become links, their content belongs to `/var`.
const STATE: [(&str, &str); 5] =
    [("home", "home"), ("mnt", "mnt"), ("opt", "opt"), ("root", "roothome"), ("srv", "srv")];
/// As many paths as fit on a screen.
const LISTED: usize = 20;
const TMPFILES: &str = "usr/lib/tmpfiles.d";
const TMPFILES_NAME: &str = "osctl-var.conf";

/// Maps the merged tree, within the current transaction. Refuses what has no place on an ostree host.
pub(super) fn map(repo: &ostree::Repo, root: &mut Dir, opts: &FetchOptions) -> Result<Vec<String>> {
    let mut mapping =
        Mapping { repo, meta: write_dirmeta(repo, 0, 0, 0o755, &BTreeMap::new())?, notes: Vec::new() };
    mapping.top_level(root)?;
    mapping.merged_usr(root)?;
    super::commit::kernel(repo, root).map_err(|e| mapping.kernel_in_boot(root, e))?;
    mapping.empty(root)?;
    mapping.sysroot(root)?;
    mapping.state(root, opts.drop_var)?;
    Ok(mapping.notes)
}

struct Mapping<'a> {
    repo: &'a ostree::Repo,
    /// Directory metadata root:root 0755.
    meta: String,
    notes: Vec<String>,
}

impl Mapping<'_> {
    fn top_level(&mut self, root: &mut Dir) -> Result<()> {
        let entries = root.open(self.repo)?;
        let unknown: Vec<String> = entries
            .files
            .keys()
            .chain(entries.dirs.keys())
            .filter(|name| !TOP_LEVEL.contains(&name.as_str()))
            .map(|name| shown(name))
            .collect();
        if !unknown.is_empty() {
            return Err(refused(format!(
                "the image has top-level entries without a place: {}",
                unknown.join(", ")
            ))
            .hint("move their content below /usr, /etc or /var in the image's build")
            .detail("paths", unknown.join(" ")));
        }
        for name in DROPPINGS {
            entries.files.remove(name);
            entries.dirs.remove(name);
        }
        match root.find(self.repo, "usr/etc")? {
            Found::Dir(_) => Ok(()),
            Found::File(_) => Err(refused("/etc is not a directory".into())),
            Found::Nothing => Err(refused("the image has no /etc".into())),
        }
    }

    fn merged_usr(&mut self, root: &mut Dir) -> Result<()> {
        let entries = root.open(self.repo)?;
        for (at, name) in MERGED.iter().enumerate() {
            let expected = format!("usr/{name}");
            let target = match entries.files.get(*name) {
                Some(object) => link_target(self.repo, object)?,
                None if entries.dirs.contains_key(*name) => None,
                None if at >= 3 => continue,
                None => Some(String::new()),
            };
            match target.as_deref().map(|t| t.trim_start_matches('/')) {
                Some(target) if target.trim_end_matches('/') == expected => {}
                Some("") => {
                    return Err(refused(format!(
                        "the image has no /{name}, which must be a link to {expected}"
                    )));
                }
                _ => {
                    return Err(refused(format!("/{name} is not a link to {expected}: /usr is not merged"))
                        .hint("merge it in the image's build; on Debian: apt-get install usrmerge"));
                }
            }
        }
        Ok(())
    }

    /// Says more where the kernel is at Debian's usual place.
    fn kernel_in_boot(&self, root: &mut Dir, error: Error) -> Error {
        let in_boot = match root.find(self.repo, "boot") {
            Ok(Found::Dir(boot)) => boot.open(self.repo).ok().and_then(|entries| {
                entries.files.keys().find_map(|name| name.strip_prefix("vmlinuz-")).map(str::to_owned)
            }),
            _ => None,
        };
        match in_boot {
            Some(release) => error.hint(format!(
                "move /boot/vmlinuz-{release} to /usr/lib/modules/{release}/vmlinuz in the image's build, and make \
                 /usr/lib/modules/{release}/initramfs.img with dracut and its ostree module"
            )),
            None => error,
        }
    }

    fn empty(&mut self, root: &mut Dir) -> Result<()> {
        for (name, mode) in EMPTIED {
            let missing = write_dirmeta(self.repo, 0, 0, mode, &BTreeMap::new())?;
            let entries = root.open(self.repo)?;
            // A link, such as /tmp to /sysroot/tmp, is somebody's intention.
            if entries.files.contains_key(name) && matches!(name, "tmp") {
                continue;
            }
            entries.files.remove(name);
            entries.dirs.entry(name.to_owned()).or_insert_with(|| Dir::new(missing)).clear();
        }
        Ok(())
    }

    fn sysroot(&mut self, root: &mut Dir) -> Result<()> {
        if let Found::Dir(dir) = root.find(self.repo, "ostree")? {
            let entries = dir.open(self.repo)?;
            if !entries.files.is_empty() || !entries.dirs.is_empty() {
                return Err(refused("/ostree has content, but the image has no ostree labels".into())
                    .hint("was an ostree image squashed? build it with: rpm-ostree compose or ostree container encapsulate"));
            }
        }
        let meta = self.meta.clone();
        let entries = root.open(self.repo)?;
        entries.files.remove("sysroot");
        entries.dirs.entry("sysroot".to_owned()).or_insert_with(|| Dir::new(meta)).clear();
        self.link(root, "ostree", "sysroot/ostree")
    }

    /// `/var`, and what moves there.
    fn state(&mut self, root: &mut Dir, drop_files: bool) -> Result<()> {
        let mut lines = Lines::default();
        for (name, home) in STATE {
            let at = format!("var/{home}");
            let mut dir = match self.take(root, name)? {
                Taken::Link => continue,
                Taken::Nothing => Dir::new(write_dirmeta(
                    self.repo,
                    0,
                    0,
                    if name == "root" { 0o700 } else { 0o755 },
                    &BTreeMap::new(),
                )?),
                Taken::Dir(dir) => dir,
            };
            let entries = dir.open(self.repo)?;
            if name == "opt" && !(entries.files.is_empty() && entries.dirs.is_empty()) {
                let names: Vec<&String> = entries.dirs.keys().chain(entries.files.keys()).collect();
                return Err(refused(format!("/opt has content ({})", join_names(&names)))
                    .hint("/opt is a link to /var/opt on ostree hosts: install it below /usr/lib/opt in the image's build"));
            }
            lines.add(self.repo, &mut dir, name, &at)?;
            self.link(root, name, &at)?;
        }
        if let Taken::Dir(mut media) = self.take(root, "media")? {
            let entries = media.open(self.repo)?;
            if !entries.files.is_empty() {
                return Err(refused("/media has files, and is /run/media on ostree hosts".into()));
            }
            self.link(root, "media", "run/media")?;
        }
        let meta = self.meta.clone();
        match root.ensure(self.repo, "var", &meta)? {
            Some(var) => {
                lines.add_children(self.repo, var, "var", "var")?;
                var.clear();
            }
            None => return Err(refused("/var is not a directory".into())),
        }
        if !lines.files.is_empty() && !drop_files {
            let files = &lines.files;
            let mut listed = files.iter().take(LISTED).map(|f| shown(f)).collect::<Vec<_>>().join(", ");
            if files.len() > LISTED {
                listed.push_str(&format!(" and {} more", files.len() - LISTED));
            }
            return Err(refused(format!("the image has {} files in /var or a place that moves there: {listed}", files.len()))
                .hint("no update would ever change them: move them below /usr in the image's build, or leave them out with --drop-var")
                .detail("files", files.len())
                .detail("paths", files.iter().take(LISTED).map(|f| shown(f)).collect::<Vec<_>>().join(" ")));
        }
        if !lines.files.is_empty() {
            self.notes.push(format!("left out {} files in /var (--drop-var)", lines.files.len()));
        }
        self.write_tmpfiles(root, &lines)
    }

    fn write_tmpfiles(&mut self, root: &mut Dir, lines: &Lines) -> Result<()> {
        let text = lines.text();
        if text.is_empty() {
            return Ok(());
        }
        let object = self
            .repo
            .write_regfile_inline(None, 0, 0, 0o100_644, None, text.as_bytes(), gio::Cancellable::NONE)
            .doing("writing tmpfiles.d lines")?;
        let meta = self.meta.clone();
        let dir = root
            .ensure(self.repo, TMPFILES, &meta)?
            .ok_or_else(|| refused(format!("/{TMPFILES} is not a directory")))?;
        let entries = dir.open(self.repo)?;
        if entries.dirs.contains_key(TMPFILES_NAME) {
            return Err(refused(format!("/{TMPFILES}/{TMPFILES_NAME} is a directory")));
        }
        entries.files.insert(TMPFILES_NAME.to_owned(), object.into());
        Ok(())
    }

    /// Takes a directory out of the root.
    fn take(&self, root: &mut Dir, name: &str) -> Result<Taken> {
        let entries = root.open(self.repo)?;
        if let Some(object) = entries.files.get(name) {
            return match link_target(self.repo, object)? {
                Some(_) => Ok(Taken::Link),
                None => Err(refused(format!("/{name} is a regular file"))),
            };
        }
        Ok(entries.dirs.remove(name).map_or(Taken::Nothing, Taken::Dir))
    }

    fn link(&self, root: &mut Dir, name: &str, target: &str) -> Result<()> {
        let object = self
            .repo
            .write_symlink(None, 0, 0, None, target, gio::Cancellable::NONE)
            .doing_with(|| format!("writing link /{name}"))?;
        let entries = root.open(self.repo)?;
        entries.dirs.remove(name);
        entries.files.insert(name.to_owned(), object.into());
        Ok(())
    }
}

enum Taken {
    Nothing,
    Link,
    Dir(Dir),
}

fn join_names(names: &[&String]) -> String {
    names.iter().take(LISTED).map(|n| shown(&join("opt", n))).collect::<Vec<_>>().join(", ")
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{why}; the running system is unchanged"))
}
