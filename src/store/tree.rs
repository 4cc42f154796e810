//! Reading files out of a commit, without a checkout and without leaving the tree.

use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio;
use ostree_ext::gio::prelude::*;
use ostree_ext::ostree;
use std::io::Read;

/// What is at a path of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// A commit's tree. Paths are absolute as the booted system will see them, except that `/etc` is `/usr/etc`.
#[derive(Debug)]
pub struct CommitTree {
    root: gio::File,
}

/// As many links as the kernel follows (ELOOP, path_resolution(7)).
const MAX_LINKS: u32 = 40;
const ATTRIBUTES: &str = "standard::name,standard::type,standard::size,standard::is-symlink,standard::symlink-target,unix::uid,unix::gid,unix::mode";

impl CommitTree {
    /// Opens the tree of a commit (or any rev).
    pub fn open(repo: &ostree::Repo, rev: &str) -> Result<CommitTree> {
        let (root, _) =
            repo.read_commit(rev, gio::Cancellable::NONE).doing_with(|| format!("reading commit {rev}"))?;
        Ok(CommitTree { root })
    }

    /// What is at this path; `None` if nothing is. Links are not followed in the last component, but in all others.
    pub fn lookup(&self, path: &str) -> Result<Option<gio::FileInfo>> {
        match self.resolve(path, false)? {
            Some(real) => self.info(&real),
            None => Ok(None),
        }
    }

    /// The kind of what is at this path, links not followed in the last component.
    pub fn kind(&self, path: &str) -> Result<Option<Kind>> {
        Ok(self.lookup(path)?.map(|i| kind_of(&i)))
    }

    /// The checksum of the regular file at this path, links followed inside the tree; `None` if there is none.
    pub fn checksum(&self, path: &str) -> Result<Option<String>> {
        let Some(real) = self.resolve(path, true)? else { return Ok(None) };
        if self.info(&real)?.is_none_or(|info| kind_of(&info) != Kind::File) {
            return Ok(None);
        }
        Ok(Some(self.repo_file(&real)?.checksum().to_string()))
    }

    /// The file in the repository, looked up: without that, asking for its checksum crashes inside libostree.
    fn repo_file(&self, real: &str) -> Result<ostree::RepoFile> {
        let file = self
            .file(real)
            .downcast::<ostree::RepoFile>()
            .map_err(|_| Error::new(ErrorKind::Internal, format!("{real} is not in a repository")))?;
        file.ensure_resolved().doing_with(|| format!("looking up {real}"))?;
        Ok(file)
    }

    /// The path with all links resolved inside the tree; `None` if something on the way is missing.
    ///
    /// `follow_last` says whether a link in the last component is followed. `/etc/...` is read as
    /// `/usr/etc/...`, links that climb over the root stay at the root, as under chroot(2).
    pub fn resolve(&self, path: &str, follow_last: bool) -> Result<Option<String>> {
        let real = resolve_links(path, follow_last, |here| {
            let Some(info) = self.info(&in_tree(here))? else { return Ok(Look::Nothing) };
            Ok(match kind_of(&info) {
                Kind::Link => {
                    let target = info.symlink_target().unwrap_or_default();
                    Look::Link(target.to_str().unwrap_or_default().to_owned())
                }
                Kind::File | Kind::Directory => Look::Other,
            })
        })?;
        Ok(real.map(|real| in_tree(&real)))
    }

    /// The content of a regular file, links followed inside the tree; `None` if there is none.
    ///
    /// Fails if the file is larger than `limit` bytes or not a regular file.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let Some(real) = self.resolve(path, true)? else { return Ok(None) };
        let Some(info) = self.info(&real)? else { return Ok(None) };
        if kind_of(&info) != Kind::File {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{path} is not a regular file")));
        }
        if u64::try_from(info.size()).unwrap_or(u64::MAX) > limit {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{path} is larger than {limit} bytes"),
            ));
        }
        let mut bytes = Vec::new();
        if let Some(mut stream) = self.stream(&real)? {
            stream.read_to_end(&mut bytes).doing_with(|| format!("reading {path}"))?;
        }
        Ok(Some(bytes))
    }

    /// The content of a file, links followed; `None` if there is none.
    pub fn stream(&self, path: &str) -> Result<Option<impl Read + use<>>> {
        let Some(real) = self.resolve(path, true)? else { return Ok(None) };
        // Not `gio::File::read`: libostree returns a stream from it that is no GFileInputStream, which the
        // bindings assert.
        let file = self.repo_file(&real)?;
        let (stream, ..) = file
            .repo()
            .load_file(&file.checksum(), gio::Cancellable::NONE)
            .doing_with(|| format!("opening {path}"))?;
        Ok(stream.map(InputStreamExtManual::into_read))
    }

    /// The names in a directory, sorted, links followed; empty if there is none.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let Some(real) = self.resolve(path, true)? else { return Ok(Vec::new()) };
        if self.info(&real)?.map(|i| kind_of(&i)) != Some(Kind::Directory) {
            return Ok(Vec::new());
        }
        let children = self
            .file(&real)
            .enumerate_children(
                "standard::name",
                gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS,
                gio::Cancellable::NONE,
            )
            .doing_with(|| format!("listing {path}"))?;
        let mut names = Vec::new();
        while let Some(info) =
            children.next_file(gio::Cancellable::NONE).doing_with(|| format!("listing {path}"))?
        {
            names.push(info.name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn file(&self, real: &str) -> gio::File {
        self.root.resolve_relative_path(real.trim_start_matches('/'))
    }

    fn info(&self, real: &str) -> Result<Option<gio::FileInfo>> {
        match self.file(real).query_info(
            ATTRIBUTES,
            gio::FileQueryInfoFlags::NOFOLLOW_SYMLINKS,
            gio::Cancellable::NONE,
        ) {
            Ok(info) => Ok(Some(info)),
            Err(e) if e.matches(gio::IOErrorEnum::NotFound) || e.matches(gio::IOErrorEnum::NotDirectory) => {
                Ok(None)
            }
            Err(e) => Err(e).doing_with(|| format!("looking up {real}")),
        }
    }
}

/// The kind of a tree entry. Trees hold nothing but files, directories and links.
pub fn kind_of(info: &gio::FileInfo) -> Kind {
    match info.file_type() {
        gio::FileType::Directory => Kind::Directory,
        gio::FileType::SymbolicLink => Kind::Link,
        _ => Kind::File,
    }
}

/// What [`resolve_links`] finds at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Nothing,
    /// A link to there.
    Link(String),
    /// A file or a directory.
    Other,
}

/// The path with all links resolved inside of a tree; `None` if something on the way is missing.
///
/// `look` says what is at a path that begins with `/` and whose directories hold no links. Links that climb over the root
/// stay at the root, as under chroot(2). Paths are as booted, so that `..` of a link in /etc leads to the root.
pub fn resolve_links(
    path: &str,
    follow_last: bool,
    mut look: impl FnMut(&str) -> Result<Look>,
) -> Result<Option<String>> {
    let mut todo: Vec<String> = components(path).rev().collect();
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(next) = todo.pop() {
        if next == ".." {
            done.pop();
            continue;
        }
        done.push(next);
        match look(&format!("/{}", done.join("/")))? {
            Look::Nothing => return Ok(None),
            Look::Link(target) if follow_last || !todo.is_empty() => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::new(
                        ErrorKind::InvalidArgument,
                        format!("{path}: too many levels of symbolic links"),
                    ));
                }
                if target.starts_with('/') {
                    done.clear();
                } else {
                    done.pop();
                }
                todo.extend(components(&target).rev());
            }
            Look::Link(_) | Look::Other => {}
        }
    }
    Ok(Some(format!("/{}", done.join("/"))))
}

fn in_tree(booted: &str) -> String {
    let etc = if booted == "/etc" || booted.starts_with("/etc/") { "/usr" } else { "" };
    format!("{etc}{booted}")
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = String> {
    path.split('/').filter(|c| !c.is_empty() && *c != ".").map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, Scratch};

    #[test]
    fn links_in_etc_are_followed_as_booted() {
        let scratch = Scratch::with(
            ostree::RepoMode::Bare,
            [
                ("usr/lib/os-release", Base::File(0o644, "ID=test\n")),
                ("usr/etc/os-release", Base::Link("../usr/lib/os-release")),
                ("usr/etc/up", Base::Link("../../../etc/here")),
                ("usr/etc/here", Base::File(0o644, "here")),
            ],
        );
        let tree = CommitTree::open(&scratch.repo, &scratch.base).unwrap();
        assert_eq!(tree.read("/etc/os-release", 100).unwrap().unwrap(), b"ID=test\n");
        assert_eq!(tree.read("/usr/etc/here", 100).unwrap().unwrap(), b"here");
        assert_eq!(tree.resolve("/etc/up", true).unwrap().unwrap(), "/usr/etc/here");
        assert_eq!(tree.resolve("/etc/up", false).unwrap().unwrap(), "/usr/etc/up");
    }
}
