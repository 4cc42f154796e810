//! A commit's tree in memory: looked up and changed without a checkout.
//!
//! libostree's `MutableTree` opens a directory object only when something below it is asked for, so the
//! cost follows the paths that are touched, never the size of the tree.

use super::packages::cache;
use crate::model::dropin::path::within;
use crate::model::image::Digest;
use crate::model::manifest::Meta;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::io::Read;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// As many links as the kernel follows (ELOOP, path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Where drop-ins and units may not reach: the policy that everything else is labelled by.
const POLICY: &str = "/usr/etc/selinux";

/// Extended attributes: name and value.
pub(super) type Attributes = std::collections::BTreeMap<Vec<u8>, Vec<u8>>;

/// What is at a place of the tree.
pub(super) enum Entry {
    Directory(ostree::MutableTree),
    File { checksum: String, info: gio::FileInfo },
    Link { target: String },
}

/// A path with the links of its parents resolved inside the tree. Nothing need be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Absolute, `/usr/etc` and not `/etc`, without links.
    pub real: String,
    /// The links that were crossed, by their own real paths.
    pub crossed: Vec<String>,
    /// A parent that is a regular file.
    pub blocked_by: Option<String>,
}

/// A tree that is being changed inside a repository transaction.
pub(super) struct Tree<'a> {
    repo: &'a ostree::Repo,
    root: ostree::MutableTree,
    labels: Option<ostree::SePolicy>,
    cancellable: Option<&'a gio::Cancellable>,
}

impl<'a> Tree<'a> {
    /// Opens a commit's tree; the labels of new entries come from its own SELinux policy, if it has one.
    pub fn open(
        repo: &'a ostree::Repo,
        commit: &str,
        cancellable: Option<&'a gio::Cancellable>,
    ) -> Result<Tree<'a>> {
        let root = ostree::MutableTree::from_commit(repo, commit)
            .doing_with(|| format!("opening the tree of commit {commit}"))?;
        let mut tree = Tree { repo, root, labels: None, cancellable };
        // `from_commit` checks the policy out into a temporary directory: only where there is one.
        if tree.at(&format!("{POLICY}/config"))?.is_some() {
            let policy = ostree::SePolicy::from_commit(repo, commit, cancellable)
                .doing_with(|| format!("loading the SELinux policy of commit {commit}"))?;
            // A config file without the policy it names (SELinux switched off) labels nothing.
            tree.labels = policy.csum().is_some().then_some(policy);
        }
        Ok(tree)
    }

    /// Whether new entries get SELinux labels, so that changes of the policy itself would matter.
    pub fn is_labelled(&self) -> bool {
        self.labels.is_some()
    }

    /// Whether a place belongs to the SELinux policy.
    pub fn is_policy(real: &str) -> bool {
        within(real, POLICY)
    }

    /// Resolves the links on the way to `path`, as under chroot(2), and of the last component if `follow_last`.
    pub fn resolve(&self, path: &str, follow_last: bool) -> Result<Place> {
        let mut todo: Vec<String> = components(path).rev().collect();
        let mut done: Vec<String> = Vec::new();
        let mut place = Place { real: String::new(), crossed: Vec::new(), blocked_by: None };
        while let Some(next) = todo.pop() {
            if next == ".." {
                done.pop();
                continue;
            }
            done.push(next);
            // As booted, so that `..` of a link in /etc leads to the root and not to /usr.
            let here = in_tree(&join(&done));
            match self.at(&here)? {
                Some(Entry::Link { target }) if follow_last || !todo.is_empty() => {
                    place.crossed.push(here);
                    if place.crossed.len() > MAX_LINKS {
                        return Err(Error::new(
                            ErrorKind::InvalidDropIn,
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
                Some(Entry::File { .. }) if !todo.is_empty() => {
                    place.blocked_by = Some(here);
                    break;
                }
                Some(_) | None => {}
            }
        }
        place.real = in_tree(&join(&done));
        Ok(place)
    }

    /// What is at a real path.
    pub fn at(&self, real: &str) -> Result<Option<Entry>> {
        let (parent, name) = split(real);
        let Some(parent) = self.directory(parent)? else { return Ok(None) };
        let Some(name) = name else { return Ok(Some(Entry::Directory(parent))) };
        let Some((checksum, dir)) = lookup(&parent, name)? else { return Ok(None) };
        if let Some(dir) = dir {
            return Ok(Some(Entry::Directory(dir)));
        }
        let checksum = checksum.unwrap_or_default();
        let (info, _) =
            self.repo.query_file(&checksum, self.cancellable).doing_with(|| format!("looking up {real}"))?;
        Ok(Some(match info.symlink_target() {
            Some(target) => Entry::Link { target: target.to_string_lossy().into_owned() },
            None => Entry::File { checksum, info },
        }))
    }

    /// The directory at a real path.
    pub fn directory(&self, real: &str) -> Result<Option<ostree::MutableTree>> {
        let mut dir = self.root.clone();
        for name in components(real) {
            match lookup(&dir, &name)? {
                Some((_, Some(sub))) => dir = sub,
                Some((_, None)) | None => return Ok(None),
            }
        }
        Ok(Some(dir))
    }

    /// Owner and mode of a directory.
    pub fn directory_meta(&self, dir: &ostree::MutableTree) -> Result<Meta> {
        let meta = self
            .repo
            .load_variant(ostree::ObjectType::DirMeta, &dir.metadata_checksum())
            .doing("reading a directory's metadata")?;
        let meta = ostree::DirMetaParsed::from_variant(&meta).doing("reading a directory's metadata")?;
        Ok(Meta { mode: meta.mode & 0o7777, uid: meta.uid, gid: meta.gid })
    }

    /// The content of a file object.
    pub fn content(&self, checksum: &str) -> Result<Vec<u8>> {
        let (stream, ..) =
            self.repo.load_file(checksum, self.cancellable).doing_with(|| format!("opening {checksum}"))?;
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            stream.into_read().read_to_end(&mut bytes).doing_with(|| format!("reading {checksum}"))?;
        }
        Ok(bytes)
    }

    /// Whether a file object has exactly this metadata and content.
    pub fn is_same_file(
        &self,
        checksum: &str,
        info: &gio::FileInfo,
        meta: &Meta,
        contents: &[u8],
    ) -> Result<bool> {
        Ok(meta_of(info) == *meta
            && u64::try_from(info.size()).is_ok_and(|size| size == contents.len() as u64)
            && self.content(checksum)? == contents)
    }

    /// Puts a file at a real path; what was there is replaced.
    pub fn put_file(&self, real: &str, meta: &Meta, contents: &[u8]) -> Result<()> {
        let (parent, name) = self.parent(real)?;
        let mode = S_IFREG | meta.mode;
        let checksum = self
            .repo
            .write_regfile_inline(
                None,
                meta.uid,
                meta.gid,
                mode,
                self.xattrs(real, mode)?.as_ref(),
                contents,
                self.cancellable,
            )
            .doing_with(|| format!("writing {real}"))?;
        parent.replace_file(name, &checksum).doing_with(|| format!("writing {real}"))
    }

    /// Puts a file of any size at a real path; what was there is replaced. `extra` are attributes beside the label.
    pub fn put_stream(
        &self,
        real: &str,
        meta: &Meta,
        extra: &Attributes,
        size: u64,
        mut contents: impl Read,
    ) -> Result<()> {
        let doing = || format!("writing {real}");
        let (parent, name) = self.parent(real)?;
        let mode = S_IFREG | meta.mode;
        let xattrs = self.attributes(real, mode, extra)?;
        if self.repo.mode() == ostree::RepoMode::Archive {
            // Where libostree writes no file bit by bit (ostree_repo_write_regfile).
            let mut all = Vec::new();
            contents.read_to_end(&mut all).doing_with(doing)?;
            let (uid, gid) = (meta.uid, meta.gid);
            let checksum = self
                .repo
                .write_regfile_inline(None, uid, gid, mode, xattrs.as_ref(), &all, self.cancellable)
                .doing_with(doing)?;
            return parent.replace_file(name, &checksum).doing_with(doing);
        }
        let writer = self
            .repo
            .write_regfile(None, meta.uid, meta.gid, mode, size, xattrs.as_ref())
            .doing_with(doing)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = contents.read(&mut buffer).doing_with(doing)?;
            if n == 0 {
                break;
            }
            let (_, failed) = writer.write_all(&buffer[..n], self.cancellable).doing_with(doing)?;
            failed.map_or(Ok(()), Err).doing_with(doing)?;
        }
        let checksum = writer.finish(self.cancellable).doing_with(doing)?;
        parent.replace_file(name, &checksum).doing_with(doing)
    }

    /// Puts a file or a link of the repository at a real path, with the label that it has there.
    pub fn put_object(&self, real: &str, checksum: &str) -> Result<()> {
        let doing = || format!("writing {real}");
        if !self.is_labelled() {
            let (parent, name) = self.parent(real)?;
            return parent.replace_file(name, checksum).doing_with(doing);
        }
        let (stream, info, xattrs) = self.repo.load_file(checksum, self.cancellable).doing_with(doing)?;
        let meta = meta_of(&info);
        match (stream, info.symlink_target()) {
            (_, Some(target)) => self.put_owned_link(real, meta.uid, meta.gid, &target.to_string_lossy()),
            (stream, None) => {
                let size = u64::try_from(info.size()).unwrap_or_default();
                let contents: Box<dyn Read> = match stream {
                    Some(stream) => Box::new(stream.into_read()),
                    None => Box::new(std::io::empty()),
                };
                self.put_stream(real, &meta, &without_label(&xattrs), size, contents)
            }
        }
    }

    /// Puts a link at a real path; what was there is replaced.
    pub fn put_link(&self, real: &str, target: &str) -> Result<()> {
        self.put_owned_link(real, 0, 0, target)
    }

    /// Puts a link that has an owner at a real path; what was there is replaced.
    pub fn put_owned_link(&self, real: &str, uid: u32, gid: u32, target: &str) -> Result<()> {
        let (parent, name) = self.parent(real)?;
        let xattrs = self.xattrs(real, S_IFLNK | 0o777)?;
        let checksum = self
            .repo
            .write_symlink(None, uid, gid, xattrs.as_ref(), target, self.cancellable)
            .doing_with(|| format!("writing {real}"))?;
        parent.replace_file(name, &checksum).doing_with(|| format!("writing {real}"))
    }

    /// Makes a directory at a real path, or changes the owner and mode of the one that is there.
    pub fn put_directory(&self, real: &str, meta: &Meta) -> Result<()> {
        let (parent, name) = self.parent(real)?;
        let dir = parent.ensure_dir(name).doing_with(|| format!("making directory {real}"))?;
        let info = gio::FileInfo::new();
        let mode = S_IFDIR | meta.mode;
        info.set_attribute_uint32("unix::uid", meta.uid);
        info.set_attribute_uint32("unix::gid", meta.gid);
        info.set_attribute_uint32("unix::mode", mode);
        let object = ostree::create_directory_metadata(&info, self.xattrs(real, mode)?.as_ref());
        let checksum = self
            .repo
            .write_metadata(ostree::ObjectType::DirMeta, None, &object, self.cancellable)
            .doing_with(|| format!("making directory {real}"))?;
        dir.set_metadata_checksum(&checksum.to_hex());
        Ok(())
    }

    /// Removes a file or link at a real path.
    pub fn remove(&self, real: &str) -> Result<()> {
        let (parent, name) = self.parent(real)?;
        parent.remove(name, true).doing_with(|| format!("removing {real}"))
    }

    /// Writes the changed directories and returns the root.
    pub fn write(&self) -> Result<ostree::RepoFile> {
        let root = self.repo.write_mtree(&self.root, self.cancellable).doing("writing the derived tree")?;
        root.downcast::<ostree::RepoFile>()
            .map_err(|_| Error::new(ErrorKind::Internal, "libostree returned no tree for the derived tree"))
    }

    /// The parent of a real path, made where it is missing. Existing directories keep their metadata.
    fn parent<'p>(&self, real: &'p str) -> Result<(ostree::MutableTree, &'p str)> {
        let (parent, name) = split(real);
        let name = name.ok_or_else(|| Error::new(ErrorKind::InvalidDropIn, "the root cannot be replaced"))?;
        if let Some(dir) = self.directory(parent)? {
            return Ok((dir, name));
        }
        self.put_directory(parent, &Meta { mode: 0o755, uid: 0, gid: 0 })?;
        let dir = self.directory(parent)?.ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("{parent} is not there after making it"))
        })?;
        Ok((dir, name))
    }

    /// The SELinux label of a new entry.
    ///
    /// Looked up by the path that the booted system sees: policies know `/etc`, and not all of them
    /// alias `/usr/etc` to it.
    fn xattrs(&self, real: &str, mode: u32) -> Result<Option<glib::Variant>> {
        self.attributes(real, mode, &Attributes::new())
    }

    fn attributes(&self, real: &str, mode: u32, extra: &Attributes) -> Result<Option<glib::Variant>> {
        let mut all = extra.clone();
        if let Some(policy) = &self.labels {
            let seen = as_booted(real);
            let label = policy
                .label(&seen, mode, self.cancellable)
                .doing_with(|| format!("looking up the SELinux label of {seen}"))?;
            if let Some(label) = label {
                all.insert(b"security.selinux".to_vec(), [label.as_bytes(), b"\0"].concat());
            }
        }
        // By name, each with a NUL behind it: so libostree has them.
        let list: Vec<_> =
            all.into_iter().map(|(name, value)| ([&name[..], b"\0"].concat(), value)).collect();
        Ok((!list.is_empty()).then(|| list.to_variant()))
    }
}

/// Extended attributes of an object, but for the label: that follows from the place.
fn without_label(xattrs: &glib::Variant) -> Attributes {
    let all = xattrs.get::<Vec<(Vec<u8>, Vec<u8>)>>().unwrap_or_default().into_iter();
    let named = all.map(|(mut name, value)| {
        // Each name has a NUL behind it.
        name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
        (name, value)
    });
    named.filter(|(name, _)| name != b"security.selinux").collect()
}

/// Whether two file objects are the same but for their labels.
pub(super) fn is_same_object(
    repo: &ostree::Repo,
    (one, info): (&str, &gio::FileInfo),
    (other, other_info): (&str, &gio::FileInfo),
    cancellable: Option<&gio::Cancellable>,
) -> Result<bool> {
    if one == other {
        return Ok(true);
    }
    if other_info.file_type() != gio::FileType::Regular
        || meta_of(info) != meta_of(other_info)
        || info.size() != other_info.size()
    {
        return Ok(false);
    }
    let read = |checksum: &str| -> Result<_> {
        let doing = || format!("comparing {checksum}");
        let (stream, _, xattrs) = repo.load_file(checksum, cancellable).doing_with(doing)?;
        let digest = match stream {
            Some(stream) => cache::digest_of(stream.into_read()).doing_with(doing)?.0,
            None => Digest::of(b""),
        };
        Ok((digest, without_label(&xattrs)))
    };
    Ok(read(one)? == read(other)?)
}

/// Owner and mode of a file.
pub(super) fn meta_of(info: &gio::FileInfo) -> Meta {
    Meta {
        mode: info.attribute_uint32("unix::mode") & 0o7777,
        uid: info.attribute_uint32("unix::uid"),
        gid: info.attribute_uint32("unix::gid"),
    }
}

/// The path that the booted system shows for a real path.
pub(super) fn as_booted(real: &str) -> String {
    match real.strip_prefix("/usr/etc") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/etc{rest}"),
        _ => real.to_owned(),
    }
}

/// The path in the tree of a path as booted.
fn in_tree(path: &str) -> String {
    match path.strip_prefix("/etc") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/usr/etc{rest}"),
        _ => path.to_owned(),
    }
}

fn lookup(
    dir: &ostree::MutableTree,
    name: &str,
) -> Result<Option<(Option<String>, Option<ostree::MutableTree>)>> {
    match dir.lookup(name) {
        Ok((file, sub)) => Ok(Some((file.map(Into::into), sub))),
        Err(e) if e.matches(gio::IOErrorEnum::NotFound) => Ok(None),
        Err(e) => Err(e).doing_with(|| format!("looking up {name}")),
    }
}

fn split(real: &str) -> (&str, Option<&str>) {
    match real.trim_end_matches('/').rsplit_once('/') {
        Some((parent, name)) => (parent, Some(name)),
        None => ("", None),
    }
}

fn join(parts: &[String]) -> String {
    format!("/{}", parts.join("/"))
}

fn components(path: &str) -> impl DoubleEndedIterator<Item = String> {
    path.split('/').filter(|c| !c.is_empty() && *c != ".").map(str::to_owned).collect::<Vec<_>>().into_iter()
}
