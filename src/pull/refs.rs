//! The refs that images live under, shared with rpm-ostree and bootc.

use super::resolve::{kind_of, version_of};
use super::types::{Base, ImageKind, Layer};
use crate::model::image::{Digest, ImageRef};
use crate::model::{Context, Result};
use ostree_ext::container::store::{BASE_IMAGE_PREFIX, gc_image_layers};
use ostree_ext::oci_spec::image::ImageConfiguration;
use ostree_ext::{gio, glib, ostree, refescape};
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const IMAGES: &str = "ostree/container/image";
/// Commit metadata: it is of an image that is no OS.
pub(super) const META_CONTENT: &str = "osctl.content";
/// Below it the names of refs below [`IMAGES`] that we wrote, with the commits that we wrote to them.
const CLAIMED: &str = "osctl/image";
const LAYERS: &str = "ostree/container/blob";
/// Below it one ref per blob that had its digest when we imported it, with the commit that was made of it.
///
/// A ref below [`LAYERS`] alone says nothing: the reference importer writes it before the blob was read to its end, so
/// that a blob with other content is refused once and taken for finished ever after. What other tools imported is
/// not trusted either, and fetched once more.
const VERIFIED: &str = "osctl/verified";
const CHUNK: &str = "chunk";
/// Commit metadata of the reference importer.
pub(super) const META_DIGEST: &str = "ostree.manifest-digest";
pub(super) const META_MANIFEST: &str = "ostree.manifest";
pub(super) const META_CONFIG: &str = "ostree.container.image-config";

/// Our part of the refs that keep the base of a derived commit.
fn ours() -> String {
    format!("{BASE_IMAGE_PREFIX}/osctl")
}

/// Where the refs of images are that are no OS, by their digest: where their layers are kept, and nobody looks for
/// something that boots.
fn contents() -> String {
    format!("{BASE_IMAGE_PREFIX}/osctl-content")
}

/// The ref of an image that is no OS.
pub(super) fn of_content(digest: &Digest) -> String {
    format!("{}/{}", contents(), digest.hex())
}

/// The base that was downloaded last.
fn latest() -> String {
    format!("{}/latest", ours())
}

/// The ref of a layer.
pub(super) fn of_layer(digest: &Digest) -> Result<String> {
    refescape::prefix_escape_for_ref(LAYERS, digest.as_str()).doing("naming a layer's ref")
}

/// How a blob was imported: the two make different commits of one blob, and neither may be taken for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// By us, as a tree.
    Layer,
    /// By the reference importer, as a part of an ostree commit.
    Chunk,
}

/// The ref that says of a blob's commit that the blob had its digest.
pub(super) fn verified(made: Made, digest: &Digest) -> Result<String> {
    let kind = match made {
        Made::Layer => "layer",
        Made::Chunk => CHUNK,
    };
    refescape::prefix_escape_for_ref(&format!("{VERIFIED}/{kind}"), digest.as_str())
        .doing("naming a layer's ref")
}

fn resolve(repo: &ostree::Repo, name: &str) -> Result<Option<String>> {
    let found = repo.resolve_rev(name, true).doing_with(|| format!("looking up {name}"))?;
    Ok(found.map(Into::into))
}

/// The commit of a blob that had its digest when it was imported in this way.
pub(super) fn vouched(repo: &ostree::Repo, made: Made, digest: &Digest) -> Result<Option<String>> {
    let commit = resolve(repo, &of_layer(digest)?)?;
    Ok(if commit == resolve(repo, &verified(made, digest)?)? { commit } else { None })
}

/// Whether `ostree fsck --delete` has taken away something of a layer.
pub(super) fn is_damaged(repo: &ostree::Repo, layer: &Layer) -> Result<bool> {
    for digest in [&layer.digest, &layer.diff_id] {
        if let Some(commit) = resolve(repo, &of_layer(digest)?)? {
            return is_damaged_commit(repo, &commit);
        }
    }
    Ok(false)
}

fn is_damaged_commit(repo: &ostree::Repo, commit: &str) -> Result<bool> {
    match repo.load_commit(commit) {
        Ok((_, state)) => Ok(state.contains(ostree::RepoCommitState::FSCK_PARTIAL)),
        Err(error) if error.matches(gio::IOErrorEnum::NotFound) => Ok(true),
        Err(error) => Err(error).doing_with(|| format!("reading commit {commit}")),
    }
}

/// Notes that what a layer brings is whole again, after it was imported and committed.
pub(super) fn repair(repo: &ostree::Repo, layer: &Layer) -> Result<()> {
    for digest in [&layer.digest, &layer.diff_id] {
        if let Some(commit) = resolve(repo, &of_layer(digest)?)? {
            repaired(repo, &commit)?;
        }
    }
    Ok(())
}

/// Notes that a commit is whole: it may have been damaged before it was written again.
pub(super) fn repaired(repo: &ostree::Repo, commit: &str) -> Result<()> {
    repo.mark_commit_partial(commit, false).doing_with(|| format!("marking commit {commit}"))
}

/// The commits of all blobs that were imported as a part of an ostree commit.
pub(super) fn chunks(repo: &ostree::Repo) -> Result<BTreeSet<String>> {
    Ok(list(repo, &format!("{VERIFIED}/{CHUNK}"))?.into_values().collect())
}

/// The ref of an image, by the reference that is tracked.
pub(super) fn of_image(image: &ImageRef) -> Result<String> {
    refescape::prefix_escape_for_ref(IMAGES, &image.to_string()).doing("naming an image's ref")
}

fn list(repo: &ostree::Repo, prefix: &str) -> Result<BTreeMap<String, String>> {
    let refs = repo
        .list_refs_ext(Some(prefix), ostree::RepoListRefsExtFlags::empty(), gio::Cancellable::NONE)
        .doing_with(|| format!("listing refs below {prefix}"))?;
    Ok(refs.into_iter().collect())
}

fn remove(repo: &ostree::Repo, name: &str) -> Result<()> {
    repo.set_ref_immediate(None, name, None, gio::Cancellable::NONE)
        .doing_with(|| format!("removing ref {name}"))
}

/// The commits of images.
fn images(repo: &ostree::Repo) -> Result<BTreeSet<String>> {
    let mut commits: BTreeSet<String> = list(repo, IMAGES)?.into_values().collect();
    commits.extend(list(repo, &ours())?.into_values());
    Ok(commits)
}

/// The commit of a complete image, of those that are here the one that is likest to this: what was last pulled by the same
/// reference.
pub(super) fn like(repo: &ostree::Repo, image: &ImageRef) -> Result<Option<String>> {
    let same = resolve(repo, &of_image(image)?)?;
    for commit in same.into_iter().chain(images(repo)?) {
        if describe(repo, &commit)?.is_some() {
            return Ok(Some(commit));
        }
    }
    Ok(None)
}

/// The configurations of the images that are here, by their digest.
pub(super) fn configurations(repo: &ostree::Repo) -> Result<BTreeMap<Digest, String>> {
    let mut found = BTreeMap::new();
    for commit in images(repo)? {
        let (variant, _) = repo.load_commit(&commit).doing_with(|| format!("reading commit {commit}"))?;
        let meta = glib::VariantDict::new(Some(&variant.child_value(0)));
        // One that was added to when it was stored has another digest, and nobody asks for that.
        if let Ok(Some(config)) = meta.lookup::<String>(META_CONFIG) {
            found.insert(Digest::of(config.as_bytes()), config);
        }
    }
    Ok(found)
}

/// A finished pull of the manifest with this digest, under whatever reference it was pulled.
pub fn find(repo: &ostree::Repo, digest: &Digest) -> Result<Option<Base>> {
    for commit in images(repo)? {
        if let Some(base) = describe(repo, &commit)?.filter(|b| b.digest == *digest) {
            return Ok(Some(base));
        }
    }
    Ok(None)
}

/// The same for an image that was pulled as something of this kind.
pub(super) fn find_as(repo: &ostree::Repo, kind: ImageKind, digest: &Digest) -> Result<Option<Base>> {
    match kind {
        ImageKind::Encapsulated | ImageKind::Plain => find(repo, digest),
        ImageKind::Content => find_content(repo, digest),
    }
}

/// A finished pull of an image that is no OS.
pub fn find_content(repo: &ostree::Repo, digest: &Digest) -> Result<Option<Base>> {
    let Some(commit) = resolve(repo, &of_content(digest))? else { return Ok(None) };
    if is_damaged_commit(repo, &commit)? {
        return Ok(None);
    }
    describe(repo, &commit)
}

/// What a commit says about the image it was made of; `None` if it was made of none, or is not complete.
pub fn describe(repo: &ostree::Repo, commit: &str) -> Result<Option<Base>> {
    let (variant, state) = repo.load_commit(commit).doing_with(|| format!("reading commit {commit}"))?;
    if state.contains(ostree::RepoCommitState::PARTIAL) {
        return Ok(None);
    }
    let meta = glib::VariantDict::new(Some(&variant.child_value(0)));
    let text = |key: &str| meta.lookup::<String>(key).ok().flatten();
    let Some(digest) = text(META_DIGEST).and_then(|d| d.parse::<Digest>().ok()) else { return Ok(None) };
    let config: Option<ImageConfiguration> =
        text(META_CONFIG).and_then(|config| serde_json::from_str(&config).ok());
    let mut labels: BTreeMap<String, String> = config
        .as_ref()
        .and_then(|c| c.config().as_ref())
        .and_then(|c| c.labels().clone())
        .map(|labels| labels.into_iter().collect())
        .unwrap_or_default();
    // We refuse such an image, other tools do not; see there.
    labels.retain(|key, value| !key.contains('\0') && !value.contains('\0'));
    let diff_ids = config.map(|c| c.rootfs().diff_ids().clone()).unwrap_or_default();
    let version = version_of(&labels);
    Ok(Some(Base {
        commit: commit.to_owned(),
        digest,
        version,
        created: ostree::commit_get_timestamp(&variant),
        kind: match meta.contains(META_CONTENT) {
            true => ImageKind::Content,
            false => kind_of(&labels, &diff_ids).unwrap_or(ImageKind::Encapsulated),
        },
        labels,
    }))
}

/// Keeps the base, and its layers, until [`forget_unused`] is called without it.
pub fn retain(repo: &ostree::Repo, base: &Base) -> Result<()> {
    write(repo, &format!("{}/{}", ours(), base.commit), &base.commit)
}

/// Keeps the base also without a deployment, until the next one is downloaded.
pub fn retain_latest(repo: &ostree::Repo, base: &Base) -> Result<()> {
    retain(repo, base)?;
    write(repo, &latest(), &base.commit)
}

/// The ref that notes that an image's ref is ours to remove: other programs have refs of the same kind.
pub(super) fn claim(image: &ImageRef) -> Result<String> {
    Ok(format!("{CLAIMED}/{}", of_image(image)?))
}

/// Names a finished image by another reference.
pub(super) fn name(repo: &ostree::Repo, image: &ImageRef, commit: &str) -> Result<()> {
    let name = of_image(image)?;
    if list(repo, &name)?.get(&name).map(String::as_str) == Some(commit) {
        return Ok(());
    }
    write(repo, &claim(image)?, commit)?;
    write(repo, &name, commit)
}

fn write(repo: &ostree::Repo, name: &str, commit: &str) -> Result<()> {
    repo.set_ref_immediate(None, name, Some(commit), gio::Cancellable::NONE)
        .doing_with(|| format!("writing ref {name}"))?;
    durable(repo, &[name.to_owned()])
}

/// Commits a transaction with its refs, for good.
pub(super) fn commit(
    repo: &ostree::Repo,
    transaction: ostree::TransactionGuard<'_>,
    names: &[String],
) -> Result<()> {
    transaction
        .commit(gio::Cancellable::NONE)
        .doing("committing to the repository; the running system is unchanged")?;
    durable(repo, names)
}

/// Has the names of refs on disk. libostree syncs objects and the content of a ref, and renames the ref to its name after that
/// (seen with 2022.7: a power cut right behind its return takes the ref back).
fn durable(repo: &ostree::Repo, names: &[String]) -> Result<()> {
    const HEADS: &str = "refs/heads";
    let paths: Vec<String> = names.iter().map(|name| format!("{HEADS}/{name}")).collect();
    let parents = paths.iter().flat_map(|path| Path::new(path).ancestors().skip(1));
    let dirs: BTreeSet<&Path> = parents.filter(|dir| dir.starts_with(HEADS)).collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    dirs.into_iter()
        .try_for_each(|dir| {
            let dir = rustix::fs::openat(repo.dfd_borrow(), dir, flags, Mode::empty())?;
            rustix::fs::fsync(dir)
        })
        .doing("syncing refs")
}

/// What deployments need of the repository beside themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needed {
    /// The commits of their bases.
    pub bases: BTreeSet<String>,
    /// The digests of the images that are no OS which they were made with.
    pub contents: BTreeSet<Digest>,
}

/// The refs of ours that keep bases which are neither in `keep` nor the last one that was downloaded, and other images.
fn unused(repo: &ostree::Repo, keep: &Needed) -> Result<Vec<String>> {
    let bases = list(repo, &ours())?;
    let latest = bases.get(&latest()).cloned();
    let needed = |commit: &String| keep.bases.contains(commit) || latest.as_ref() == Some(commit);
    let mut names: Vec<String> = bases.iter().filter(|(_, c)| !needed(c)).map(|(n, _)| n.clone()).collect();
    for (claim, commit) in list(repo, CLAIMED)?.iter().filter(|(_, commit)| !needed(commit)) {
        let image = claim.trim_start_matches(CLAIMED).trim_start_matches('/');
        // Whoever moved the ref since then owns it now.
        if list(repo, image)?.get(image) == Some(commit) {
            names.push(image.to_owned());
        }
        names.push(claim.clone());
    }
    let contents: BTreeSet<String> = keep.contents.iter().map(of_content).collect();
    names.extend(list(repo, &self::contents())?.into_keys().filter(|name| !contents.contains(name)));
    Ok(names)
}

/// Whether [`forget_unused`] would remove anything.
pub fn has_unused(repo: &ostree::Repo, keep: &Needed) -> Result<bool> {
    Ok(!unused(repo, keep)?.is_empty())
}

/// Removes our refs of bases and other images that are not in `keep`, then those of layers that no image needs any more.
///
/// The last base that was downloaded stays: it may be deployed yet. Returns how many refs went. Objects stay until the
/// caller prunes the repository. No transaction may be open.
pub fn forget_unused(repo: &ostree::Repo, keep: &Needed) -> Result<u32> {
    let mut removed = 0;
    for name in unused(repo, keep)? {
        remove(repo, &name)?;
        removed += 1;
    }
    removed += gc_image_layers(repo).doing("removing unused layers")?;
    // Our notes about layers that are gone, or are others' by now, would keep their objects. They do not count.
    let layers = list(repo, LAYERS)?;
    for (name, commit) in list(repo, VERIFIED)? {
        let blob = name.rsplit('/').next().map(|escaped| format!("{LAYERS}/{escaped}"));
        if blob.and_then(|blob| layers.get(&blob)) != Some(&commit) {
            remove(repo, &name)?;
        }
    }
    Ok(removed)
}
