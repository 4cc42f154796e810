//! plan: what it brings, how much it takes, and whether that fits. Fetches manifests and configurations only.

use super::stage::{BOOT_RESERVE, ROOT_RESERVE};
use super::{bind, cleanup, derive, permit, resolve};
use crate::bound;
use crate::engine::cx::Cx;
use crate::engine::env::Env;
use crate::engine::pipeline::{Job, View};
use crate::engine::stages::{Planned, Target};
use crate::model::bound::{BoundImage, BoundSet, BoundSpec, Mode, Policy};
use crate::model::image::{Digest, ImageRef};
use crate::model::job::{JobResult, Step};
use crate::model::plan::{Facts, Kind, Layer, Part, Place, Plan, Release, Role, spool};
use crate::model::request::{Goal, Options};
use crate::model::{Error, ErrorKind, Result};
use crate::pull::{Base, Patience};
use crate::store::snapshot::{self, Entry};
use crate::store::tree::CommitTree;
use crate::store::{boot, sysroot};
use crate::sys::fs;
use ostree_ext::ostree;
use std::path::PathBuf;

/// A plan with what only the engine needs of it.
struct Draft {
    plan: Plan,
    bound: Vec<BoundImage>,
    /// Why a bound image that will be needed for certain cannot be had.
    missing: Option<Error>,
}

/// Refuses what policy forbids, what does not fit, and what is more than the caller wants, before a layer is fetched.
pub async fn plan(job: &Job<'_>, target: Target) -> Result<Planned> {
    let view = job.view();
    let check = async {
        permit::permit(&view, &target)?;
        if let Some(lowered) = permit::lowered(&view, &target) {
            job.cx.message(format!("{lowered}; --allow-unverified was given"));
        }
        let mut draft = draft(&view, &target).await?;
        if let Some(missing) = draft.missing.take() {
            return Err(missing);
        }
        draft.plan.within(job.options.max_bytes)?;
        if draft.plan.fits().is_err() {
            // What earlier jobs left may be all that is in the way.
            cleanup::cleanup(job, JobResult::default()).await?;
            draft = self::draft(&view, &target).await?;
            draft.plan.fits()?;
        }
        Ok(draft)
    };
    let draft = job.cx.step(Step::PlanCheck, check).await?;
    Ok(Planned {
        target,
        stateroot: job.options.stateroot.clone(),
        bound: draft.bound,
        download: draft.plan.download,
    })
}

/// Says what the goal would bring and take. Takes no lock and changes nothing.
pub async fn describe(cx: &Cx, env: &Env, goal: &Goal, options: &Options) -> Result<JobResult> {
    let before = snapshot::read(&sysroot::open(&env.layout.sysroot)?)?;
    let pending = env.existing_journal()?.map(|journal| journal.pending()).transpose()?.flatten();
    let view = View {
        cx,
        env,
        options,
        before: &before,
        keeps_digests: *goal == Goal::Reconcile,
        adopts: false,
        edited: None,
        staged_is_ours: before.staged_is(pending.as_ref().map(|p| p.deployment.as_str())),
    };
    let target = resolve::target(&view, goal).await?;
    let drafted = cx.step(Step::PlanCheck, draft(&view, &target)).await;
    let Draft { mut plan, missing, .. } = drafted?;
    // Of several reasons the first is the one that the update itself would give.
    let refusals = [
        permit::permit(&view, &target).err(),
        missing,
        plan.within(options.max_bytes).err(),
        plan.fits().err(),
    ];
    if let Some(refusal) = refusals.into_iter().flatten().next() {
        plan.notes.push(format!("it would be refused: {}", refusal.chain()));
    }
    Ok(JobResult {
        changed: plan.changed,
        summary: summary(&plan),
        digest: plan.target.digest.clone(),
        plan: Some(Box::new(plan)),
        ..Default::default()
    })
}

fn summary(plan: &Plan) -> String {
    let digest = plan.target.digest.as_ref().map_or("no image", Digest::as_str);
    let version = match plan.target.version.as_str() {
        "" => "without a version label",
        version => version,
    };
    let same = plan.current.as_ref().is_some_and(|c| c.digest == plan.target.digest);
    match (&plan.image, same, plan.changed) {
        (_, false, _) => format!("Update available: {version} ({digest})"),
        (_, true, true) => format!("No newer image than {version}, but other changes are waiting"),
        (Some(image), true, false) => format!("No update: {image} is still {digest}"),
        (None, true, false) => format!("No update: the base is still {digest}"),
    }
}

async fn draft(view: &View<'_>, target: &Target) -> Result<Draft> {
    let repo = resolve::open_repo(view.env)?;
    let next = view.before.next();
    let aim = Aim::of(&repo, target)?;
    let boot = to_boot(view, &repo, target, &aim)?;
    let recorded = recorded(view, next)?;
    let apps = apps(view, &specs(view, &repo, aim.base.as_ref(), next)?, &recorded).await?;
    let changes = derive::pending(&repo, view.before, &view.env.config_root()?, view.edited).lines;
    let same =
        next.is_some_and(|n| n.deployment.digest == aim.target.digest && n.deployment.image == aim.image);
    let changed = !same || apps.differ(&recorded) || !changes.is_empty();
    let mut notes = apps.notes;
    if aim.base.is_none() {
        notes.push(
            "the new image may bind other app images than the one of now: those are not counted".into(),
        );
    }
    notes.extend(changes);
    let parts: Vec<Part> = [aim.part, boot].into_iter().chain(apps.parts).collect();
    let places = places(view, &parts, &aim.layers, changed)?;
    let plan = Plan::new(Facts {
        image: aim.image,
        target: aim.target,
        current: next.map(release),
        changed,
        parts,
        places,
        notes,
    });
    Ok(Draft { plan, bound: apps.images, missing: apps.missing })
}

/// The OS, as far as it is known.
struct Aim {
    image: Option<ImageRef>,
    target: Release,
    layers: Vec<Layer>,
    part: Part,
    /// The whole base, if it is here.
    base: Option<Base>,
}

impl Aim {
    fn of(repo: &ostree::Repo, target: &Target) -> Result<Aim> {
        match target {
            Target::Image { resolved, .. } => {
                let layers = crate::pull::layers(repo, resolved)?;
                let release = Release {
                    digest: Some(resolved.digest.clone()),
                    version: resolved.version.clone().unwrap_or_default(),
                };
                Ok(Aim {
                    image: Some(resolved.image.clone()),
                    target: release,
                    part: Part::image(Kind::Os, &resolved.image, &resolved.digest, &layers),
                    layers,
                    base: crate::pull::find(repo, &resolved.digest)?,
                })
            }
            Target::Present { base, image, .. } => {
                let digest = Some(base.digest.clone());
                let target = Release { digest, version: base.version.clone().unwrap_or_default() };
                Ok(Aim {
                    part: Part::present(image.clone(), base.digest.clone()),
                    image: image.clone(),
                    target,
                    layers: Vec::new(),
                    base: Some(base.clone()),
                })
            }
        }
    }
}

/// What goes to `/boot`: of a tree that is here exactly, else a guess.
fn to_boot(view: &View<'_>, repo: &ostree::Repo, target: &Target, aim: &Aim) -> Result<Part> {
    if let Some(base) = &aim.base {
        return Ok(Part::boot(boot::needed(repo, view.before, &base.commit)?, false));
    }
    let current = view.before.next().map(|n| n.deployment.checksum.as_str());
    let (Some(current), Target::Image { resolved, .. }) = (current, target) else {
        return Ok(Part::boot(0, true));
    };
    // A new kernel is about as large as the one that is there. One that is in a layer which is here is not new.
    let stays = boot::all_in(repo, current, &crate::pull::layer_commits(repo, resolved)?)?;
    Ok(Part::boot(if stays { 0 } else { boot::size(repo, current)? }, true))
}

/// The bound images, as far as they are known.
#[derive(Default)]
struct Apps {
    images: Vec<BoundImage>,
    parts: Vec<Part>,
    notes: Vec<String>,
    /// Why one that will be needed for certain cannot be had.
    missing: Option<Error>,
}

impl Apps {
    /// Whether this is another set than the one that was recorded, as far as all of it could be asked for.
    fn differ(&self, recorded: &BoundSet) -> bool {
        let set = BoundSet::new(self.images.clone());
        self.notes.is_empty() && set.map_or(true, |set| set.digest() != recorded.digest())
    }
}

async fn apps(view: &View<'_>, specs: &[BoundSpec], recorded: &BoundSet) -> Result<Apps> {
    let keeps = |image: &&BoundImage| view.keeps_digests || image.spec.policy == Policy::Missing;
    let keep = &BoundSet { images: recorded.images.iter().filter(keeps).cloned().collect() };
    let store = bound::Store::existing(&view.env.layout.sysroot, view.env.skopeo()?)?;
    let skopeo = view.env.skopeo()?;
    let declared = bound::declared(&view.env.config_root()?)?;
    let mut apps = Apps::default();
    for (spec, found) in
        bound::estimate(view.cx, specs, keep, &skopeo, Patience::default(), store.as_ref()).await?
    {
        match found {
            Ok(planned) => {
                apps.images.push(planned.image);
                apps.parts.push(planned.part);
            }
            Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
            Err(error) => {
                apps.notes.push(format!("not counted: {}", error.chain()));
                // The new image may not bind what the one of now does; what the administrator declares stays.
                if spec.mode == Mode::Bind && declared.contains(&spec) {
                    apps.missing = apps.missing.or(Some(error));
                }
            }
        }
    }
    Ok(apps)
}

fn release(entry: &Entry) -> Release {
    Release { digest: entry.deployment.digest.clone(), version: entry.deployment.version.clone() }
}

fn recorded(view: &View<'_>, next: Option<&Entry>) -> Result<BoundSet> {
    let journal = view.env.existing_journal()?;
    let key = next.and_then(|n| n.origin.bound_set.as_ref());
    let Some((journal, key)) = journal.zip(key) else { return Ok(BoundSet::default()) };
    Ok(bind::record_of(&journal, key)?.0)
}

/// The app images that will be bound, as far as that is known: of the tree that is the target, if it is here, else of
/// the one that is there now; and what the administrator declares.
fn specs(
    view: &View<'_>,
    repo: &ostree::Repo,
    base: Option<&Base>,
    next: Option<&Entry>,
) -> Result<Vec<BoundSpec>> {
    let config = view.env.config_root()?;
    let deployed = next.map(|n| (&n.deployment.base_checksum, &n.deployment.checksum));
    let commit = match (base, deployed) {
        // With what the drop-ins add.
        (Some(base), Some((own, derived))) if base.commit == *own => Some(derived),
        (Some(base), _) => Some(&base.commit),
        (None, deployed) => deployed.map(|(_, derived)| derived),
    };
    let Some(commit) = commit else { return bound::declared(&config) };
    match bound::discover(&CommitTree::open(repo, commit)?, &config) {
        Ok(specs) => Ok(specs),
        Err(error) => {
            // It may be the mistake of a tree that is about to be left; one of the administrator's is said here.
            tracing::debug!(error = error.chain(), "reading the bound images of {commit}");
            bound::declared(&config)
        }
    }
}

/// What lies beside the store of bound images for a while, of images with these downloads.
fn bound_spool(downloads: &[u64]) -> u64 {
    downloads.iter().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes))
}

/// The file systems, and what lies on them beside the parts.
fn places(view: &View<'_>, parts: &[Part], layers: &[Layer], changed: bool) -> Result<Vec<Place>> {
    let layout = &view.env.layout;
    let importers = view.env.config()?.pull.importers.map(|n| usize::try_from(n.get()).unwrap_or(usize::MAX));
    let importers = importers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let new_layers = layers.iter().filter(|l| !l.here).map(|l| l.size);
    let of = |kind: Kind| parts.iter().filter(move |p| p.kind == kind);
    let reserve = |yes: bool, bytes: u64| if yes { bytes } else { 0 };
    let to_boot = of(Kind::Boot).any(|p| p.unpacked > 0);
    let beside = [
        (Role::Root, spool(new_layers, importers).saturating_add(reserve(changed, ROOT_RESERVE))),
        (Role::Boot, reserve(to_boot, BOOT_RESERVE)),
        // What is fetched stays until its image is in the store, and skopeo has each layer that it unpacks once more.
        (Role::Bound, bound_spool(&of(Kind::Bound).map(|p| p.download).collect::<Vec<_>>())),
    ];
    let place = |(role, beside): (Role, u64)| {
        let path: PathBuf = match role {
            Role::Root => layout.repo(),
            Role::Boot => layout.sysroot.join("boot"),
            // What is not there yet will be on the file system of what is above it.
            Role::Bound => layout.sysroot.join("ostree/osctl"),
        };
        let path = path.ancestors().find(|p| p.exists()).map_or(layout.sysroot.clone(), Into::into);
        let shown = if role == Role::Boot { path.clone() } else { layout.sysroot.clone() };
        Ok(Place {
            role,
            path: shown.display().to_string(),
            device: fs::device(&path)?,
            free: fs::free_bytes(&path)?,
            beside,
        })
    };
    beside.into_iter().map(place).collect()
}
