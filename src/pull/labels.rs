//! SELinux labels, which are part of an object and follow from its path and the policy of its own tree.
//!
//! An ostree commit comes with labels. Layers do not: they get theirs here, and only they, as long as the policy is the one
//! that the commit was labelled by. Otherwise everything is labelled anew, which is the one case in which a tree is checked
//! out.

use super::layer::shown;
use super::merge::join;
use super::object::{self, Header};
use super::tree::{Dir, Found, Xattrs, read_dirmeta, regular_size, write_dirmeta, xattrs_of, xattrs_variant};
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::Dir as CapDir;
use cap_std_ext::cap_tempfile::TempDir;
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, ostree};
use std::io::Read;
use std::os::fd::AsRawFd;

/// Where a tree's SELinux policies are.
const SELINUX: &str = "usr/etc/selinux";
/// The file in there that chooses one.
const CONFIG: &str = "config";
/// Far more than the few lines that it has.
const MAX_CONFIG: u64 = 64 << 10;
/// All policies of a tree, which libselinux reads into memory. Fedora's is 10 MB.
const MAX_POLICY: u64 = 256 << 20;

/// The attribute that is the label.
const LABEL: &[u8] = b"security.selinux";
/// So many programs are looked at to see whether a commit was labelled by its policy.
const SAMPLE: usize = 32;

/// What is to be done about SELinux labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Labels {
    /// The tree has them already.
    Present,
    /// Compute them from the tree's own policy, if it has one.
    FromTree,
    /// What is of this commit has them already, unless its policy is not the tree's.
    Above(String),
}

impl Labels {
    /// Writes the tree, with labels, within the current transaction.
    pub(super) fn apply(&self, repo: &ostree::Repo, root: &mut Dir) -> Result<ostree::RepoFile> {
        if *self == Labels::Present || !has_policy(repo, root)? {
            return root.write(repo);
        }
        if let Labels::Above(base) = self {
            let policy = ostree::SePolicy::from_commit(repo, base, gio::Cancellable::NONE).doing(DOING)?;
            let labeller = Labeller { repo, policy };
            let mut below = Dir::of_commit(repo, base)?;
            if labeller.holds(&mut below, root)? {
                labeller.dir(Some(&mut below), root, "/")?;
                return root.write(repo);
            }
        }
        let tree = root.write(repo)?;
        relabelled(repo, &tree)
    }
}

const DOING: &str = "computing SELinux labels; the running system is unchanged";
const DIRECTORY: u32 = 0o040_000;

struct Labeller<'a> {
    repo: &'a ostree::Repo,
    policy: ostree::SePolicy,
}

impl Labeller<'_> {
    /// Whether the tree has the policy of the commit below it, and that commit the labels of it.
    fn holds(&self, below: &mut Dir, root: &mut Dir) -> Result<bool> {
        let policy = |dir: &mut Dir| -> Result<Option<(String, String)>> {
            match dir.find(self.repo, SELINUX)? {
                Found::Dir(dir) => Ok(Some((dir.write_contents(self.repo)?, dir.meta.clone()))),
                Found::File(_) | Found::Nothing => Ok(None),
            }
        };
        if policy(below)? != policy(root)? || self.meta("/", &below.meta)? != below.meta {
            return Ok(false);
        }
        let Found::Dir(bin) = below.find(self.repo, "usr/bin")? else { return Ok(true) };
        if self.meta("/usr/bin", &bin.meta)? != bin.meta {
            return Ok(false);
        }
        for (name, object) in bin.open(self.repo)?.files.iter().take(SAMPLE) {
            let (info, xattrs) = self.query(object)?;
            let label = self.label(&format!("/usr/bin/{name}"), info.attribute_uint32("unix::mode"))?;
            if label.is_some_and(|label| xattrs.get(LABEL) != Some(&label)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Labels what is not of the directory below.
    fn dir(&self, mut below: Option<&mut Dir>, dir: &mut Dir, path: &str) -> Result<()> {
        match &mut below {
            Some(below) if below.meta == dir.meta && dir.is_stored_as(below) => return Ok(()),
            Some(below) if below.meta == dir.meta => {}
            Some(_) | None => dir.meta = self.meta(path, &dir.meta)?,
        }
        let mut below = match below {
            Some(below) => Some(below.open(self.repo)?),
            None => None,
        };
        let entries = dir.open(self.repo)?;
        let parent = path.trim_end_matches('/');
        for (name, object) in &mut entries.files {
            if below.as_ref().and_then(|below| below.files.get(name)) != Some(object) {
                *object = self.file(&format!("{parent}/{name}"), object)?;
            }
        }
        for (name, dir) in &mut entries.dirs {
            let below = below.as_mut().and_then(|below| below.dirs.get_mut(name));
            self.dir(below, dir, &format!("{parent}/{name}"))?;
        }
        Ok(())
    }

    /// The value of the attribute for an entry; `None` where the policy has none.
    fn label(&self, path: &str, mode: u32) -> Result<Option<Vec<u8>>> {
        let label = self.policy.label(path, mode, gio::Cancellable::NONE).doing(DOING)?;
        Ok(label.map(|label| {
            let mut value = label.as_bytes().to_vec();
            value.push(0);
            value
        }))
    }

    fn meta(&self, path: &str, checksum: &str) -> Result<String> {
        let (uid, gid, mode, mut xattrs) = read_dirmeta(self.repo, checksum)?;
        match self.label(path, DIRECTORY | mode)? {
            Some(label) if xattrs.get(LABEL) != Some(&label) => {
                xattrs.insert(LABEL.to_vec(), label);
                write_dirmeta(self.repo, uid, gid, mode, &xattrs)
            }
            Some(_) | None => Ok(checksum.to_owned()),
        }
    }

    fn query(&self, checksum: &str) -> Result<(gio::FileInfo, Xattrs)> {
        let doing = || format!("reading object {checksum}");
        let (info, xattrs) = self.repo.query_file(checksum, gio::Cancellable::NONE).doing_with(doing)?;
        Ok((info, xattrs_of(&xattrs)))
    }

    fn file(&self, path: &str, checksum: &str) -> Result<String> {
        let (info, mut xattrs) = self.query(checksum)?;
        let (uid, gid) = (info.attribute_uint32("unix::uid"), info.attribute_uint32("unix::gid"));
        let mode = info.attribute_uint32("unix::mode");
        match self.label(path, mode)? {
            Some(label) if xattrs.get(LABEL) != Some(&label) => _ = xattrs.insert(LABEL.to_vec(), label),
            Some(_) | None => return Ok(checksum.to_owned()),
        }
        if info.file_type() == gio::FileType::SymbolicLink {
            let target = info.symlink_target().unwrap_or_default();
            return Ok(object::symlink(self.repo, uid, gid, &xattrs, &target.to_string_lossy())?);
        }
        let (content, _, _) = self.repo.load_file(checksum, gio::Cancellable::NONE).doing(DOING)?;
        let content = content.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("object {checksum} is neither a file nor a link"))
        })?;
        let size = u64::try_from(info.size()).unwrap_or(0);
        let header = Header::regular(uid, gid, mode & 0o7777, &xattrs_variant(&xattrs));
        object::write_any(self.repo, header, size, content.into_read())
    }
}

/// Whether the tree has an SELinux policy, which libostree then reads by path: a link in its way would lead to files
/// of this host, so there must be none.
fn has_policy(repo: &ostree::Repo, root: &mut Dir) -> Result<bool> {
    let refused = |path: &str, why: &str| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the image's SELinux policy cannot be used: {} {why}; the running system is unchanged",
                shown(path)
            ),
        )
    };
    let config = match root.find(repo, &join(SELINUX, CONFIG))? {
        Found::File(config) => config,
        Found::Nothing | Found::Dir(_) => return Ok(false),
    };
    // libostree looks there first.
    if !matches!(root.find(repo, "etc")?, Found::Nothing) {
        return Err(refused("etc", "is there beside /usr/etc"));
    }
    let config = match regular_size(repo, &config)? {
        None => return Err(refused(&join(SELINUX, CONFIG), "is a link")),
        Some(size) if size > MAX_CONFIG => return Err(refused(&join(SELINUX, CONFIG), "is too large")),
        Some(_) => read(repo, &config)?,
    };
    let names = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    for name in names.map(str::trim) {
        if name.is_empty() || name == "." || name == ".." || name.contains('/') {
            let why = format!("names the policy {:?}, which is no name", one_line(name));
            return Err(refused(&join(SELINUX, CONFIG), &why));
        }
    }
    let mut left = MAX_POLICY;
    let Found::Dir(policies) = root.find(repo, SELINUX)? else { return Ok(false) };
    let mut todo = vec![(SELINUX.to_owned(), policies.clone())];
    while let Some((path, mut dir)) = todo.pop() {
        let entries = dir.open(repo)?;
        for (name, object) in &entries.files {
            let here = join(&path, name);
            let size = regular_size(repo, object)?.ok_or_else(|| refused(&here, "is a link"))?;
            left = left.checked_sub(size).ok_or_else(|| refused(&here, "makes it too large"))?;
        }
        todo.extend(entries.dirs.iter().map(|(name, dir)| (join(&path, name), dir.clone())));
    }
    Ok(true)
}

fn read(repo: &ostree::Repo, object: &str) -> Result<String> {
    let doing = "reading the image's SELinux configuration";
    let (content, _, _) = repo.load_file(object, gio::Cancellable::NONE).doing(doing)?;
    let mut bytes = Vec::new();
    if let Some(content) = content {
        content.into_read().take(MAX_CONFIG).read_to_end(&mut bytes).doing(doing)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The tree with the labels of its own policy.
///
/// Checks the tree out by hard links and writes it again, so that libostree itself decides on each label. The
/// checkout is of one finished tree into an empty directory: no link of the image is followed.
fn relabelled(repo: &ostree::Repo, tree: &ostree::RepoFile) -> Result<ostree::RepoFile> {
    let doing = "computing SELinux labels; the running system is unchanged";
    let unlabelled =
        repo.write_commit_with_time(None, None, None, None, tree, 0, gio::Cancellable::NONE).doing(doing)?;
    let tmp = CapDir::reopen_dir(&repo.dfd_borrow()).doing(doing)?.open_dir("tmp").doing(doing)?;
    let scratch = TempDir::new_in(&tmp).doing(doing)?;
    let devino = ostree::RepoDevInoCache::new();
    let mode = match repo.mode() {
        ostree::RepoMode::Bare => ostree::RepoCheckoutMode::None,
        _ => ostree::RepoCheckoutMode::User,
    };
    let options = ostree::RepoCheckoutAtOptions {
        mode,
        devino_to_csum_cache: Some(devino.clone()),
        no_copy_fallback: true,
        force_copy_zerosized: true,
        ..Default::default()
    };
    repo.checkout_at(Some(&options), scratch.as_raw_fd(), "root", &unlabelled, gio::Cancellable::NONE)
        .doing(doing)?;
    let root = scratch.open_dir("root").doing(doing)?;
    let policy = ostree::SePolicy::new_at(root.as_raw_fd(), gio::Cancellable::NONE).kind(
        ErrorKind::Unsupported,
        "reading the image's SELinux policy; the running system is unchanged",
    )?;
    let modifier = ostree::RepoCommitModifier::new(ostree::RepoCommitModifierFlags::CONSUME, None);
    modifier.set_devino_cache(&devino);
    modifier.set_sepolicy(Some(&policy));
    let mutable = ostree::MutableTree::new();
    repo.write_dfd_to_mtree(scratch.as_raw_fd(), "root", &mutable, Some(&modifier), gio::Cancellable::NONE)
        .doing(doing)?;
    let written = repo.write_mtree(&mutable, gio::Cancellable::NONE).doing(doing)?;
    Ok(written.downcast::<ostree::RepoFile>().expect("a written tree is a RepoFile"))
}
