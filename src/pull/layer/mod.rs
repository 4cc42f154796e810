//! One layer: from the bytes of a blob to a commit under the standard blob ref.
//!
//! The commit holds the layer's entries as the tar has them, whiteout files included, with `/etc` as `/usr/etc`
//! (as the reference importer stores derived layers). What a tree cannot hold is in the commit's metadata:
//!
//! - `osctl.layer`: written by us, complete: a commit of another tool leaves out entries that plain images need;
//! - `osctl.implied`: directories that no entry describes: on merging, a directory below keeps its own metadata;
//! - `osctl.links`: hard links to a file of a lower layer, by path: resolved on merging, against the tree below.
//!
//! The ref, and the one that says that the digest is right ([`refs::verified`]), are written by the transaction that
//! commits the objects, after both digests were verified. So a layer that has its refs is complete and never fetched
//! again, after kill -9 as well.

mod attributes;
mod builder;
mod path;

use super::refs::{self, Made};
use super::tree::Dir;
use super::types::Layer;
use super::unpack::{self, Content};
use crate::model::image::Digest;
use crate::model::{Context, Result};
use builder::Builder;
use ostree_ext::{glib, ostree};
pub(super) use path::{malformed, other_spelling, shown, split};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

const META_LAYER: &str = "osctl.layer";
const META_IMPLIED: &str = "osctl.implied";
const META_LINKS: &str = "osctl.links";
/// The layout of layer commits that this code writes and reuses.
const LAYOUT: u32 = 1;

/// A layer in the repository.
#[derive(Debug)]
pub(super) struct Stored {
    pub tree: Dir,
    pub implied: BTreeSet<String>,
    pub links: BTreeMap<String, String>,
}

/// The finished layer, if it is here in our layout: as its blob, or as the uncompressed stream that it stands for.
pub(super) fn find(repo: &ostree::Repo, layer: &Layer) -> Result<Option<Stored>> {
    for digest in [&layer.digest, &layer.diff_id] {
        if let Some(stored) = load(repo, digest)? {
            return Ok(Some(stored));
        }
    }
    Ok(None)
}

fn load(repo: &ostree::Repo, digest: &Digest) -> Result<Option<Stored>> {
    let Some(commit) = refs::vouched(repo, Made::Layer, digest)? else { return Ok(None) };
    let (variant, state) = repo.load_commit(&commit).doing_with(|| format!("reading layer {digest}"))?;
    let meta = glib::VariantDict::new(Some(&variant.child_value(0)));
    let ours = meta.lookup::<u32>(META_LAYER).ok().flatten() == Some(LAYOUT);
    if !ours || state.contains(ostree::RepoCommitState::PARTIAL) {
        return Ok(None);
    }
    let implied = meta.lookup::<Vec<String>>(META_IMPLIED).ok().flatten().unwrap_or_default();
    let links = meta.lookup::<BTreeMap<String, String>>(META_LINKS).ok().flatten().unwrap_or_default();
    Ok(Some(Stored { tree: Dir::of_commit(repo, &commit)?, implied: implied.into_iter().collect(), links }))
}

/// Imports a blob, and sets its refs, within the current transaction. Returns remarks for people.
///
/// `name` is the digest of the bytes that `blob` gives, and `size` their number where it is known.
pub(super) fn import(
    repo: &ostree::Repo,
    layer: &Layer,
    name: &Digest,
    size: Option<u64>,
    blob: impl Read + Send + 'static,
) -> Result<Vec<String>> {
    let (mut tar, unpacking) = unpack::start(blob, Content::Files)?;
    let mut builder = Builder::new(repo)?;
    let read = builder.read(&mut tar);
    drop(tar);
    unpacking.verify(layer, name, size, read)?;
    builder.commit(name)
}
