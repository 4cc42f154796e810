//! A root file system as a commit, and what differs between two commits put onto it.
//!
//! ```text
//! <root>/usr ──► /usr          <root>/etc ──► /usr/etc          links of <root>, so that /bin leads somewhere
//! ```
//!
//! `/var` and everything else of the root belongs to the host that will run it, and is neither read nor written.

use super::diff::{self, Attributes, Change, Changes};
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use ostree_ext::gio::prelude::*;
use ostree_ext::ostree::{RepoCommitFilterResult, RepoCommitModifier, RepoCommitModifierFlags};
use ostree_ext::{gio, glib, ostree};
use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// The name of a file while it is written.
const DRAFT: &str = ".osctl-draft";

/// Makes a commit of `/usr` and `/etc` of a root. The same files give the same commit.
///
/// Attributes are left out: labels are those of the build, and what is not changed keeps its own. So is what is `mounted`
/// below the root: a build mounts its own `/etc/hosts`, and whatever a step asks for.
pub fn commit(
    repo: &ostree::Repo,
    root: &Path,
    mounted: &BTreeSet<String>,
    time: u64,
    cancellable: Option<&gio::Cancellable>,
) -> Result<String> {
    let doing = || format!("reading the tree in {}; nothing was changed", root.display());
    let dir = Dir::open_ambient_dir(root, ambient_authority()).doing_with(doing)?;
    for path in ["usr", "etc"] {
        if !dir.symlink_metadata(path).is_ok_and(|m| m.is_dir()) {
            let why = format!("{} has no /{path}: it is no root of an image", root.display());
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{why}; nothing was changed")));
        }
    }
    if dir.read_dir("usr/etc").is_ok_and(|mut entries| entries.next().is_some()) {
        let why = format!("{} has /usr/etc beside /etc, as a deployment has", root.display());
        return Err(Error::new(ErrorKind::Unsupported, format!("{why}; nothing was changed")));
    }
    let transaction = repo.auto_transaction(cancellable).doing_with(doing)?;
    let tree = ostree::MutableTree::new();
    let take = |from: &'static str, to: &ostree::MutableTree| {
        let mounted = mounted.clone();
        let filter = move |_: &ostree::Repo, path: &str, info: &gio::FileInfo| match is_taken(
            from,
            path.trim_start_matches('/'),
            info.file_type(),
            &mounted,
        ) {
            true => RepoCommitFilterResult::Allow,
            false => RepoCommitFilterResult::Skip,
        };
        let modifier = RepoCommitModifier::new(RepoCommitModifierFlags::SKIP_XATTRS, Some(Box::new(filter)));
        repo.write_dfd_to_mtree(dir.as_raw_fd(), from, to, Some(&modifier), cancellable).doing_with(doing)
    };
    take(".", &tree)?;
    let etc = tree.ensure_dir("usr").and_then(|usr| usr.ensure_dir("etc")).doing_with(doing)?;
    take("etc", &etc)?;
    let written = repo.write_mtree(&tree, cancellable).doing_with(doing)?;
    let written = written
        .downcast::<ostree::RepoFile>()
        .map_err(|_| Error::new(ErrorKind::Internal, "libostree wrote a tree that is none of its own"))?;
    let none: Option<&glib::Variant> = None;
    let commit =
        repo.write_commit_with_time(None, None, None, none, &written, time, cancellable).doing_with(doing)?;
    transaction.commit(cancellable).doing_with(doing)?;
    Ok(commit.into())
}

/// Whether a path below `from`, which is in the root, belongs to the image.
fn is_taken(from: &str, path: &str, kind: gio::FileType, mounted: &BTreeSet<String>) -> bool {
    let of_etc = from == "etc";
    if path.is_empty() || (path == "usr" && !of_etc) {
        return true;
    }
    let link_of_root = kind == gio::FileType::SymbolicLink && !path.contains('/');
    let place = if of_etc { &format!("etc/{path}") } else { path };
    // Sockets and devices are in no image.
    [gio::FileType::Directory, gio::FileType::Regular, gio::FileType::SymbolicLink].contains(&kind)
        && (of_etc || link_of_root || path.starts_with("usr/"))
        && !mounted.contains(place)
}

/// Puts changes onto a root.
pub fn put(repo: &ostree::Repo, changes: &Changes, root: &Path) -> Result<()> {
    let doing = || format!("opening {}", root.display());
    let dir = Dir::open_ambient_dir(root, ambient_authority()).doing_with(doing)?;
    for (path, change) in changes {
        let doing = || {
            let (path, root) = (one_line(path), root.display());
            format!("changing /{path}; the tree in {root} is changed in part: build it again from its base")
        };
        put_one(repo, &dir, path, change).doing_with(doing)?;
    }
    Ok(())
}

fn put_one(repo: &ostree::Repo, root: &Dir, path: &str, change: &Change) -> Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    if matches!(change, Change::Written(_)) {
        // It is in no commit, and so are perhaps its directories.
        for (at, _) in path.match_indices('/') {
            if !root.try_exists(&path[..at]).doing("looking for its directory")? {
                directory(root, &path[..at], 0, 0, 0o755, &Attributes::new())
                    .doing("making its directory")?;
            }
        }
    }
    // Never out of the root, whatever links there are.
    let parent = root.open_dir(parent).doing("opening its directory")?;
    match change {
        Change::Removed => clear(&parent, name).doing("removing it"),
        Change::Directory(meta) => {
            let (meta, attributes) = diff::directory_meta(repo, meta)?;
            directory(&parent, name, meta.uid, meta.gid, meta.mode, &attributes).doing("making the directory")
        }
        Change::Written(bytes) => {
            file(&parent, name, (0, 0, 0o644), &Attributes::new(), bytes.as_slice()).doing("writing the file")
        }
        Change::Entry(object) => {
            let (stream, info, attributes) = diff::file(repo, object)?;
            let number = |name| info.attribute_uint32(name);
            let (uid, gid, mode) = (number("unix::uid"), number("unix::gid"), number("unix::mode"));
            if let Some(target) = info.symlink_target() {
                return link(&parent, name, uid, gid, &target).doing("making the link");
            }
            let content: Box<dyn Read> = match stream {
                Some(stream) => Box::new(stream.into_read()),
                None => Box::new(io::empty()),
            };
            file(&parent, name, (uid, gid, mode), &attributes, content).doing("writing the file")
        }
    }
}

/// Makes room for something else.
fn clear(parent: &Dir, name: &str) -> io::Result<()> {
    match parent.symlink_metadata(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(meta) if meta.is_dir() => parent.remove_dir_all(name),
        Ok(_) => parent.remove_file(name),
    }
}

fn owned(fd: impl AsFd, uid: u32, gid: u32, mode: u32, attributes: &Attributes) -> io::Result<()> {
    // Changing the owner takes special modes away.
    rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode & 0o7777))?;
    for (name, value) in attributes.iter().filter(|(name, _)| name != b"security.selinux") {
        rustix::fs::fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}

fn directory(
    parent: &Dir,
    name: &str,
    uid: u32,
    gid: u32,
    mode: u32,
    attributes: &Attributes,
) -> io::Result<()> {
    if !parent.symlink_metadata(name).is_ok_and(|m| m.is_dir()) {
        clear(parent, name)?;
        parent.create_dir(name)?;
    }
    // Not as a `Dir`, whose descriptor is for looking only.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let now = rustix::fs::fstat(&dir)?;
    // One on the way to a change is left alone: a layer would have it otherwise.
    let same = (now.st_uid, now.st_gid, now.st_mode & 0o7777) == (uid, gid, mode & 0o7777);
    if same && attributes.is_empty() { Ok(()) } else { owned(&dir, uid, gid, mode, attributes) }
}

fn file(
    parent: &Dir,
    name: &str,
    (uid, gid, mode): (u32, u32, u32),
    attributes: &Attributes,
    mut content: impl Read,
) -> io::Result<()> {
    clear(parent, DRAFT)?;
    // Nobody else's before it has its owner.
    let mut draft = parent.open_with(DRAFT, OpenOptions::new().write(true).create_new(true).mode(0o600))?;
    io::copy(&mut content, &mut draft)?;
    owned(&draft, uid, gid, mode, attributes)?;
    replace(parent, name)
}

fn link(parent: &Dir, name: &str, uid: u32, gid: u32, target: &Path) -> io::Result<()> {
    clear(parent, DRAFT)?;
    rustix::fs::symlinkat(target, parent, DRAFT)?;
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, DRAFT, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?;
    replace(parent, name)
}

/// Gives what was written its name.
fn replace(parent: &Dir, name: &str) -> io::Result<()> {
    if parent.symlink_metadata(name).is_ok_and(|m| m.is_dir()) {
        parent.remove_dir_all(name)?;
    }
    let renamed = parent.rename(DRAFT, parent, name);
    if renamed.is_err() {
        parent.remove_file(DRAFT)?;
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::Scratch;
    use crate::store::tree::{CommitTree, Kind};
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for dir in ["usr/lib/old/below", "usr/bin", "etc/conf.d", "var/lib", "usr/etc"] {
            std::fs::create_dir_all(path(dir)).unwrap();
        }
        for (name, text) in [
            ("usr/lib/old/below/file", "x"),
            ("usr/lib/becomes-dir", "x"),
            ("usr/bin/tool", "tool"),
            ("etc/hosts", "of the build"),
            ("etc/conf.d/a", "1"),
            ("var/lib/state", "x"),
        ] {
            std::fs::write(path(name), text).unwrap();
        }
        std::fs::set_permissions(path("usr/bin/tool"), PermissionsExt::from_mode(0o4755)).unwrap();
        symlink("usr/bin", path("bin")).unwrap();
        root
    }

    #[test]
    fn usr_etc_and_the_links_of_a_root_become_a_commit_and_nothing_else() {
        let (root, scratch) = (root(), Scratch::new());
        let mounted: BTreeSet<String> = ["etc/hosts", "usr/lib/old", "run"].map(str::to_owned).into();
        let first = commit(&scratch.repo, root.path(), &mounted, 7, None).unwrap();
        std::fs::write(root.path().join("etc/hosts"), "of another build").unwrap();
        std::fs::write(root.path().join("usr/lib/old/more"), "of another build").unwrap();
        assert_eq!(commit(&scratch.repo, root.path(), &mounted, 7, None).unwrap(), first);
        let tree = CommitTree::open(&scratch.repo, &first).unwrap();
        assert_eq!(tree.list("/usr").unwrap(), ["bin", "etc", "lib"]);
        assert_eq!(["/var", "/bin"].map(|path| tree.kind(path).unwrap()), [None, Some(Kind::Link)]);
        assert_eq!(tree.list("/usr/etc").unwrap(), ["conf.d"]);
        assert_eq!(tree.list("/usr/lib").unwrap(), ["becomes-dir"]);
        assert_eq!(tree.read("/bin/tool", 10).unwrap().unwrap(), b"tool");
        assert_eq!(tree.read("/etc/conf.d/a", 10).unwrap().unwrap(), b"1");

        std::fs::write(root.path().join("usr/etc/x"), "").unwrap();
        let error = commit(&scratch.repo, root.path(), &BTreeSet::new(), 7, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
        std::fs::remove_dir_all(root.path().join("etc")).unwrap();
        let error = commit(&scratch.repo, root.path(), &BTreeSet::new(), 7, None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    }

    #[test]
    fn a_root_with_the_difference_is_the_tree_that_it_leads_to() {
        let (from, to, scratch) = (root(), root(), Scratch::new());
        let path = |name: &str| to.path().join(name);
        std::fs::remove_dir_all(path("usr/lib/old")).unwrap();
        std::fs::write(path("usr/lib/old"), "a file now").unwrap();
        std::fs::remove_file(path("usr/lib/becomes-dir")).unwrap();
        std::fs::create_dir(path("usr/lib/becomes-dir")).unwrap();
        std::fs::set_permissions(path("usr/lib/becomes-dir"), PermissionsExt::from_mode(0o1770)).unwrap();
        std::fs::write(path("usr/lib/becomes-dir/in"), "new").unwrap();
        std::fs::remove_file(path("usr/bin/tool")).unwrap();
        symlink("/nowhere", path("usr/bin/tool")).unwrap();
        std::fs::write(path("etc/conf.d/a"), "2").unwrap();
        std::fs::set_permissions(path("etc/conf.d/a"), PermissionsExt::from_mode(0o2640)).unwrap();
        let commits =
            [&from, &to].map(|root| commit(&scratch.repo, root.path(), &BTreeSet::new(), 7, None).unwrap());
        assert_ne!(commits[0], commits[1]);
        let mut changes = diff::between(&scratch.repo, &commits[0], &commits[1]).unwrap();
        put(&scratch.repo, &changes, from.path()).unwrap();
        assert_eq!(commit(&scratch.repo, from.path(), &BTreeSet::new(), 7, None).unwrap(), commits[1]);
        assert!(from.path().join("var/lib/state").exists());

        changes = BTreeMap::from([("usr/lib/new/dir/file".to_owned(), Change::Written(b"words".to_vec()))]);
        put(&scratch.repo, &changes, from.path()).unwrap();
        assert_eq!(std::fs::read(from.path().join("usr/lib/new/dir/file")).unwrap(), b"words");
    }

    #[test]
    fn nothing_is_written_through_a_link_out_of_the_root() {
        let (from, out, scratch) = (root(), tempfile::tempdir().unwrap(), Scratch::new());
        symlink(out.path(), from.path().join("usr/out")).unwrap();
        let changes = Changes::from([("usr/out/x".to_owned(), Change::Written(Vec::new()))]);
        assert!(put(&scratch.repo, &changes, from.path()).is_err());
        assert!(!out.path().join("x").exists());
    }
}
