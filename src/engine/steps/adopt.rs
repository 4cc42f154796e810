//! adopt: what another tool has deployed becomes a target of ours, and what its origin asks for a drop-in.
//!
//! ```text
//! origin ──► drop-in + what is dropped or lost ──► plan … stage: the same base, derived, with our origin
//! ```
//! The drop-in is written with the deployment. Until then, and after a failure, the host is the other tool's as it was.

use crate::derive::read;
use crate::engine::journal::Edited;
use crate::engine::pipeline::Job;
use crate::engine::stages::Target;
use crate::engine::steps::{edit, permit, resolve};
use crate::model::handover::{self, Handover, NAME, Owner};
use crate::model::job::JobResult;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{self, Base};
use crate::store::snapshot::{self, Entry};
use crate::store::tree::CommitTree;
use ostree_ext::{glib, ostree};

/// Commit metadata of rpm-ostree: whether it is a base, its parent, with packages.
const LAYERED: &str = "rpmostree.clientlayer";

/// What is to be done.
#[derive(Debug)]
pub enum Adoption {
    /// Nothing more than to say this.
    Said(JobResult),
    /// To deploy this.
    Agreed(Target, Box<Handover>),
}

/// Reads what there is, and refuses what cannot be taken over. The job then has the drop-in.
pub async fn prepare(job: &mut Job<'_>) -> Result<Adoption> {
    // What that tool has staged is not booted yet, and maybe never: it is not what is taken over.
    job.adopts = true;
    permit::owned(&job.view())?;
    let Some(entry) = job.before.merge() else { return Err(resolve::no_deployment()) };
    if entry.origin.is_ours() {
        let image = entry.deployment.image.clone();
        return Ok(Adoption::Said(JobResult {
            summary: "Nothing to do: osctl manages this host.".into(),
            deployment: Some(entry.deployment.id.clone()),
            handover: Some(Box::new(Handover::new(Owner::Osctl, image))),
            ..Default::default()
        }));
    }
    let id = entry.deployment.id.clone();
    let keys = job.store.run(job.cx, move |s, _| Ok(snapshot::origin_keys(s, &id))).await?;
    let handover = Box::new(handover::adopt(&keys)?);
    let base = base(job, entry).await?;
    let edited = edited(job, &handover, &base).await?;
    if job.options.dry_run {
        return Ok(Adoption::Said(JobResult {
            changed: true,
            summary: "The host can be taken over; nothing was changed.".into(),
            digest: Some(base.digest),
            handover: Some(handover),
            ..Default::default()
        }));
    }
    handover.agreed(job.options.lossy)?;
    let verification = entry.origin.verification.clone();
    let target = Target::Present { base, image: handover.image.clone(), verification };
    job.edited = edited;
    Ok(Adoption::Agreed(target, handover))
}

/// The image that the deployment is, or that rpm-ostree has layered packages on.
async fn base(job: &Job<'_>, entry: &Entry) -> Result<Base> {
    let commit = entry.deployment.checksum.clone();
    let known = entry.origin.base.clone();
    let work = job.store.run(job.cx, move |s, _| {
        let repo = s.repo();
        let commit = match known {
            Some(base) => Some(base),
            None => unlayered(&repo, &commit)?,
        };
        commit.map_or(Ok(None), |commit| image_of(&repo, &commit))
    });
    work.await?.ok_or_else(|| {
        let why = format!(
            "the image that {} was made from is not in the repository any more; nothing was changed",
            entry.deployment.id
        );
        Error::new(ErrorKind::Unsupported, why)
            .hint("fetch it with the tool that made it, reboot, then: osctl adopt")
    })
}

/// The commit itself, or the one that rpm-ostree added packages to.
fn unlayered(repo: &ostree::Repo, commit: &str) -> Result<Option<String>> {
    let (object, _) = repo.load_commit(commit).doing_with(|| format!("reading commit {commit}"))?;
    let meta = glib::VariantDict::new(Some(&object.child_value(0)));
    if meta.lookup::<bool>(LAYERED).ok().flatten() == Some(true) {
        return Ok(ostree::commit_get_parent(&object).map(|parent| parent.to_string()));
    }
    Ok(Some(commit.to_owned()))
}

fn image_of(repo: &ostree::Repo, commit: &str) -> Result<Option<Base>> {
    let here = repo.has_object(ostree::ObjectType::Commit, commit, ostree_ext::gio::Cancellable::NONE);
    if here.doing_with(|| format!("looking for commit {commit}"))? {
        pull::describe(repo, commit)
    } else {
        Ok(None)
    }
}

/// The drop-in, if it is still to be written.
async fn edited(job: &Job<'_>, handover: &Handover, base: &Base) -> Result<Option<Edited>> {
    let Some(new) = &handover.drop_in else { return Ok(None) };
    let config = job.env.config_root()?;
    let conflict = |why: String| {
        Error::new(ErrorKind::Conflict, why)
            .hint(format!("declare what is in it in a drop-in of another name, and remove {}", new.path))
            .detail("file", &new.path)
    };
    match read::host_text(&config, NAME)? {
        Some(text) if text == new.contents => return Ok(None),
        Some(_) => {
            let why =
                format!("{} is there already, and asks for something else; nothing was changed", new.path);
            return Err(conflict(why));
        }
        None => {}
    }
    let (commit, vendor) = (base.commit.clone(), format!("{}/{NAME}", read::VENDOR_DIR));
    let shadowed = job
        .store
        .run(job.cx, move |s, _| Ok(CommitTree::open(&s.repo(), &commit)?.lookup(&vendor)?.map(|_| vendor)));
    if let Some(vendor) = shadowed.await? {
        return Err(conflict(format!(
            "the image has a drop-in {vendor}, which {} would replace; nothing was changed",
            new.path
        )));
    }
    if !job.options.dry_run {
        edit::make_room(&config)?;
    }
    let notes = vec![format!("{NAME}: written")];
    Ok(Some(Edited { name: NAME.to_owned(), before: None, after: new.contents.clone(), notes }))
}
