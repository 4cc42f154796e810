//! derive.images: the images that a derivation is made with beside the base, into the repository, by digest.

use super::lock::Chosen;
use super::resolve::{fetch_options, open_repo};
use crate::derive::compose;
use crate::derive::packages::Room;
use crate::derive::packages::extension::{self, Directory};
use crate::engine::pipeline::Job;
use crate::engine::stages::Pulled;
use crate::model::image::{Digest, ImageRef};
use crate::model::layers::{Digests, Facts, expand};
use crate::model::lock::{Lock, Manager};
use crate::model::manifest::{Manifest, Owner};
use crate::model::packages::OnUnavailable;
use crate::model::{Error, ErrorKind, Result};
use crate::pull::{self, FetchOptions};
use crate::store::tree::CommitTree;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The detail of an error that has the drop-ins, a line each, whose image it is that cannot be had.
pub(super) const MISSING_OF: &str = "missing-of";

/// The images of a derivation.
#[derive(Debug, Default)]
pub struct Images {
    /// What each was resolved to, by the reference as it was asked for.
    pub digests: Digests,
    /// Those that go on top of the base, lowest first.
    pub layers: Vec<compose::Layer>,
    /// Those that carry packages.
    extensions: Vec<Extension>,
    /// Why one of before is used.
    pub trouble: Option<String>,
}

#[derive(Debug)]
struct Extension {
    owner: Owner,
    digest: Digest,
    commit: String,
    place: &'static str,
}

impl Images {
    /// The repositories that a room has been given.
    pub fn directories(&self, room: &Room) -> Vec<Directory> {
        let directory = |extension: &Extension| Directory {
            owner: extension.owner.clone(),
            digest: extension.digest.clone(),
            real: room.extension(&extension.commit).join(extension.place.trim_start_matches('/')),
        };
        self.extensions.iter().map(directory).collect()
    }

    /// The commits that a room is to be given, and where.
    pub fn trees(&self, room: &Room) -> BTreeMap<String, PathBuf> {
        self.extensions.iter().map(|e| (e.commit.clone(), room.extension(&e.commit))).collect()
    }
}

/// Where an image is looked for.
struct Sources<'s> {
    options: FetchOptions,
    /// The digests that count.
    lock: Option<&'s Lock>,
    /// What boots next is made of: for what cannot be had.
    before: Option<&'s Lock>,
    /// The drop-ins that want nothing of before.
    ending: BTreeSet<Owner>,
}

/// Brings the images. Those with packages only if somebody is going to solve or fetch: `manager` says whose they are.
pub(super) async fn bring(
    job: &Job<'_>,
    pulled: &Pulled,
    manifest: &Manifest,
    chosen: &Chosen,
    before: Option<&Lock>,
    manager: Option<Manager>,
) -> Result<Images> {
    let options = FetchOptions { content: true, ..fetch_options(job.env, &job.options)? };
    let ending = manifest.with_policy(OnUnavailable::Fail);
    let sources = Sources { options, lock: chosen.lock.as_ref(), before, ending };
    let mut images = Images::default();
    for asked in &manifest.layers {
        let owners = BTreeSet::from([asked.owner.clone()]);
        if let Some(others) = manifest.packages.extensions.get(&asked.image) {
            let (image, owner) = (&asked.image, &asked.owner);
            let others = others.iter().cloned().collect::<Vec<_>>().join(", ");
            let why =
                format!("{owner}: {image} is a layer here and an extension in {others}; nothing was staged");
            return Err(Error::new(ErrorKind::InvalidDropIn, why).detail("drop-in", owner));
        }
        let (_, commit) = one(job, pulled, &sources, &asked.image, &owners, &mut images).await?;
        images.layers.push(compose::Layer { asked: asked.clone(), commit });
    }
    for (image, owners) in &manifest.packages.extensions {
        let owner = owners.first().cloned().unwrap_or_default();
        let Some(manager) = manager else {
            // The lock has them, and the packages are here.
            images.digests.extend(
                chosen
                    .lock
                    .iter()
                    .filter_map(|l| l.images.get_key_value(image))
                    .map(|(k, v)| (k.clone(), v.clone())),
            );
            continue;
        };
        let (digest, commit) = one(job, pulled, &sources, image, owners, &mut images).await?;
        let place =
            extension::find(&CommitTree::open(&open_repo(job.env)?, &commit)?, manager, image, &owner)?;
        images.extensions.push(Extension { owner, digest, commit, place });
    }
    Ok(images)
}

/// Brings one image; returns its digest and its commit.
async fn one(
    job: &Job<'_>,
    pulled: &Pulled,
    sources: &Sources<'_>,
    image: &str,
    owners: &BTreeSet<Owner>,
    images: &mut Images,
) -> Result<(Digest, String)> {
    let owner = &owners.iter().cloned().collect::<Vec<_>>().join(", ");
    let facts = Facts { version: pulled.base.version.as_deref(), labels: &pulled.base.labels };
    let reference = expand(image, owner, facts)?;
    let found = match fetched(job, sources, image, &reference).await {
        Ok(found) => found,
        // Who brings a bundle means what is in it, and not what was there before.
        Err(error) if cannot_be_had(error.kind) && job.env.offered().is_none() => {
            match of_before(job, sources, image, owners)? {
                Some(found) => {
                    images.trouble = Some(format!("{owner}: {reference}: {}", error.reason()));
                    found
                }
                None => {
                    let why = format!("{owner}: the image {reference} cannot be had; nothing was staged");
                    let hint = "it is tried again; `on-unavailable: skip` in the drop-in goes on without it";
                    let failed =
                        Error::new(ErrorKind::RepoUnavailable, why).detail("drop-in", owner).hint(hint);
                    let failed =
                        failed.detail(MISSING_OF, owners.iter().cloned().collect::<Vec<_>>().join("\n"));
                    return Err(failed.source(error));
                }
            }
        }
        Err(error) => {
            let hint = error.hint.clone();
            let failed = Error::new(error.kind, format!("{owner}: the image {reference}"));
            let failed = failed.detail("drop-in", owner).source(error);
            return Err(hint.into_iter().fold(failed, Error::hint));
        }
    };
    images.digests.insert(image.to_owned(), found.0.clone());
    Ok(found)
}

async fn fetched(
    job: &Job<'_>,
    sources: &Sources<'_>,
    image: &str,
    reference: &ImageRef,
) -> Result<(Digest, String)> {
    let locked = sources.lock.and_then(|lock| lock.images.get(image));
    if let Some(digest) = locked
        && let Some(found) = pull::find_content(&open_repo(job.env)?, digest)?
    {
        return Ok((found.digest, found.commit));
    }
    let reference = locked.map_or_else(|| reference.clone(), |digest| reference.pinned(digest));
    let resolved = pull::resolve(job.cx, &reference, &sources.options).await?;
    if let Some(digest) = locked.filter(|digest| **digest != resolved.digest) {
        let why = format!("it is {} now, and the lock says {digest}; nothing was staged", resolved.digest);
        return Err(
            Error::new(ErrorKind::LockMismatch, why).hint("solve anew with: osctl reconcile --update-lock")
        );
    }
    let base = pull::pull(job.cx, &job.env.layout.repo(), &resolved, &sources.options).await?;
    Ok((base.digest, base.commit))
}

/// What boots next is made with, if it still is what is asked for, and is here.
fn of_before(
    job: &Job<'_>,
    sources: &Sources<'_>,
    image: &str,
    owners: &BTreeSet<Owner>,
) -> Result<Option<(Digest, String)>> {
    if owners.iter().any(|owner| sources.ending.contains(owner)) {
        return Ok(None);
    }
    // With something to fill in, it was the image for another base.
    let before = sources.before.filter(|_| sources.lock.is_none() && !image.contains('{'));
    let Some(digest) = before.and_then(|lock| lock.images.get(image)) else { return Ok(None) };
    let found = pull::find_content(&open_repo(job.env)?, digest)?;
    Ok(found.map(|found| (found.digest, found.commit)))
}

/// Whether a later attempt, or doing without, is what helps.
fn cannot_be_had(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::RegistryUnavailable
            | ErrorKind::RateLimited
            | ErrorKind::ImageNotFound
            | ErrorKind::AuthRequired
    )
}
