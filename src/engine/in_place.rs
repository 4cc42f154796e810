//! Deriving a root where it is, as a step of a container build: the steps of a job from a commit of the root, and what differs
//! put onto it.
//!
//! ```text
//! root ► commit ► read ► packages possible? ► derive ► difference ► same but for the record? ► root
//! ```

use super::build::{self, Place};
use super::cx::Cx;
use super::env::{Env, Handed};
use super::pipeline::Job;
use super::stages::{Derived, Pulled};
use super::steps::derive;
use crate::derive::packages::Room;
use crate::derive::policy;
use crate::derive::provenance::{self, Provenance};
use crate::derive::read::{self, HOST_DIR, ORIGIN_DIR};
use crate::export::diff::{self, Change, Changes};
use crate::export::{in_place, kargs};
use crate::model::build::{self as rules, Applied, InPlace};
use crate::model::dropin::path::within;
use crate::model::image::Digest;
use crate::model::job::Step;
use crate::model::manifest::Manifest;
use crate::model::request::Options;
use crate::model::{Context, Error, ErrorKind, Result, lock};
use crate::pull::{Base, ImageKind};
use crate::store::locked::Locked;
use crate::store::sysroot::{self, Layout};
use crate::store::tree::CommitTree;
use crate::sys::mounts;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What podman, buildah and docker put into a container (podman-run(1)).
const CONTAINER: [&str; 2] = ["run/.containerenv", ".dockerenv"];
/// What systemd's generators and ostree-prepare-root(1) make on a host.
const BOOTED: &str = "run/ostree-booted";

/// Derives the root, or finds that it is what it would become.
pub async fn run(
    cx: &Cx,
    request: InPlace,
    config_root: PathBuf,
    environment: Vec<(String, String)>,
) -> Result<Applied> {
    let variable = |name: &str| environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let root = may_change(&request, variable("container").is_some())?;
    let time = time(&root, variable("SOURCE_DATE_EPOCH").as_deref())?;
    let place = Place::open(None, variable("TMPDIR").as_deref())?;
    let (drop_ins, notes) = drop_ins(&request, &root, &place.dir)?;
    let handed = Handed { drop_ins, lock: request.lock.clone(), auth_file: None };
    let given = build::given(&handed, request.allow_secrets)?;
    let layout = Layout::new(place.dir.join("sysroot"), config_root, None);
    sysroot::create_packed(&layout.sysroot)?;
    let env = Env::new(layout, environment).handed(handed);
    policy::check(&env.config_root()?, None, &given.declared)?;
    let store = Locked::acquire(cx, &env.layout).await?;
    let options = Options { frozen: request.frozen, update_lock: request.update_lock, ..Options::default() };
    let job = build::alone(cx, &env, store, options);
    let applied = on(&job, &request, &root, time).await?;
    Ok(Applied { notes: notes.into_iter().chain(applied.notes).collect(), ..applied })
}

async fn on(job: &Job<'_>, request: &InPlace, root: &Path, time: u64) -> Result<Applied> {
    let (from, mounted) = (root.to_owned(), mounts::below(root)?);
    let left_alone = mounted.clone();
    let work =
        job.store.run(job.cx, move |s, c| in_place::commit(&s.repo(), &from, &left_alone, time, Some(c)));
    let commit = job.cx.step(Step::PullLayers, work).await?;
    let manifest = declared(job, &commit).await?;
    if manifest.is_empty() {
        let why = format!("the drop-ins for {} declare nothing; nothing was changed", root.display());
        return Err(
            Error::new(ErrorKind::InvalidArgument, why).hint("see what a drop-in declares: osctl lint PATH")
        );
    }
    if !request.allow_secrets {
        rules::no_secrets(&manifest)?;
    }
    no_images(&manifest)?;
    if !manifest.packages.is_empty() {
        has_mounts(job).await?;
    }
    let base = Base {
        // Of what it is: there is no manifest of an image that is being built.
        digest: format!("sha256:{commit}").parse::<Digest>()?,
        commit,
        version: None,
        created: time,
        labels: BTreeMap::new(),
        kind: ImageKind::Plain,
    };
    let pulled =
        Pulled { base, image: None, stateroot: None, verification: None, bound: Vec::new(), download: 0 };
    let derived = derive::derive(job, pulled, false).await?;
    let origin = build::origin(job, &derived).await?;
    let (changes, recorded) = changes(job, &derived).await?;
    let changed = !recorded || changes.iter().any(|(path, change)| !is_record(path, change));
    if changed {
        not_mounted(&changes, &mounted)?;
        let onto = root.to_owned();
        let work = job.store.run(job.cx, move |s, _| in_place::put(&s.repo(), &changes, &onto));
        job.cx.step(Step::ExportLayer, work).await?;
    }
    Ok(Applied { changed, root: root.to_owned(), origin, notes: derived.notes })
}

/// Refuses to change what the build has mounted: it is not of the image, and cannot be replaced.
fn not_mounted(changes: &Changes, mounted: &BTreeSet<String>) -> Result<()> {
    for (path, change) in changes {
        let here = match path.strip_prefix("usr/etc") {
            Some(rest) => format!("etc{rest}"),
            None => path.clone(),
        };
        let replaces = !matches!(change, Change::Directory(_));
        let is_it =
            |place: &&String| (within(&here, place) && here != **place) || (replaces && within(place, &here));
        if let Some(place) = mounted.iter().find(is_it) {
            let why =
                format!("/{here} cannot be changed: this build has mounted /{place}; nothing was changed");
            return Err(Error::new(ErrorKind::Unsupported, why)
                .hint("build with: osctl derive --base, or leave the path out"));
        }
    }
    Ok(())
}

/// The root, if it may be changed.
fn may_change(request: &InPlace, in_container: bool) -> Result<PathBuf> {
    let named = request.root.as_deref();
    let root = named.unwrap_or(Path::new("/"));
    let shown = root.display();
    let root = root.canonicalize().kind(ErrorKind::InvalidArgument, format!("{shown} is no root"))?;
    let refused = |why: String, hint: &'static str| {
        Err(Error::new(ErrorKind::Unsupported, format!("{why}; nothing was changed")).hint(hint))
    };
    if root.join(BOOTED).exists() || root.join("ostree/repo/config").is_file() {
        return refused(
            format!("{shown} is an ostree host, whose deployments are not changed in place"),
            "put the drop-ins into /etc/osctl/derive.d, then: osctl reconcile",
        );
    }
    if named.is_none() && !in_container && !CONTAINER.iter().any(|file| root.join(file).exists()) {
        return refused(
            "this is no step of a container build".to_owned(),
            "name the root that is to be changed: --root DIR",
        );
    }
    Ok(root)
}

/// When the image was made, as far as anybody says so: files have no times in a commit, but databases of packages do.
fn time(root: &Path, epoch: Option<&str>) -> Result<u64> {
    if let Some(epoch) = epoch {
        return epoch.parse().kind(ErrorKind::InvalidArgument, "SOURCE_DATE_EPOCH is no number of seconds");
    }
    let release = std::fs::metadata(root.join("usr/lib/os-release"));
    Ok(release.ok().and_then(|m| u64::try_from(m.mtime()).ok()).unwrap_or_default())
}

/// Where the drop-ins are beside those of the tree, and what a person should know about them.
fn drop_ins(request: &InPlace, root: &Path, place: &Path) -> Result<(PathBuf, Vec<String>)> {
    if let Some(input) = &request.input {
        return Ok((input.clone(), Vec::new()));
    }
    let there: Vec<&str> = [HOST_DIR, ORIGIN_DIR]
        .into_iter()
        .filter(|dir| root.join(dir.trim_start_matches('/')).is_dir())
        .collect();
    for dir in &there {
        // A link of the root leads to this machine's own.
        let real = root.join(dir.trim_start_matches('/')).canonicalize();
        let real = real.doing_with(|| format!("looking for drop-ins in {dir}"))?;
        if real != root.join(dir.trim_start_matches('/')) {
            let why = format!("{dir} of {} is behind a symbolic link; nothing was changed", root.display());
            return Err(Error::new(ErrorKind::Unsupported, why).hint("name the drop-ins: -i DIR"));
        }
    }
    if there.is_empty() {
        let none = place.join("none");
        std::fs::create_dir(&none).doing("making an empty directory of drop-ins")?;
        return Ok((none, Vec::new()));
    }
    let note = format!(
        "applied {} of the image, which every host applies again; to have them once only, remove them in the same step",
        there.join(" and ")
    );
    Ok((root.to_owned(), vec![note]))
}

/// Everything that is going to be applied.
async fn declared(job: &Job<'_>, commit: &str) -> Result<Manifest> {
    let (drop_ins, commit) = (job.env.drop_ins()?, commit.to_owned());
    let read = job
        .store
        .run(job.cx, move |s, _| read::read_from(&drop_ins, Some(&CommitTree::open(&s.repo(), &commit)?)));
    read.await
}

/// Refuses what other images have: a step has no registry of its own to ask, and a Containerfile has words for it.
fn no_images(manifest: &Manifest) -> Result<()> {
    let layer = manifest.layers.first().map(|layer| (&layer.image, layer.owner.as_str()));
    let extension = manifest.packages.extensions.iter().next();
    let extension = extension.map(|(image, by)| (image, by.first().map_or("a drop-in", String::as_str)));
    let Some((image, owner)) = layer.or(extension) else { return Ok(()) };
    let why = format!("{owner}: the content of the image {image} is not taken in place; nothing was changed");
    Err(Error::new(ErrorKind::Unsupported, why)
        .detail("drop-in", owner)
        .hint("take it with COPY --from, or build with: osctl derive --base"))
}

/// Refuses packages where their sandbox cannot be made, before a repository is asked for anything.
async fn has_mounts(job: &Job<'_>) -> Result<()> {
    let room = Room::below(&job.env.layout.work())?;
    room.dir("base")?;
    room.enter(job.cx, "trial", false, |_| Ok(())).await.map_err(|error| match error.kind {
        ErrorKind::Cancelled => error,
        _ => Error::new(
            ErrorKind::Unsupported,
            "packages need mounts, which this step of the build may not make; nothing was changed",
        )
        .hint(
            "install them by the package manager in a RUN of their own, or build with: osctl derive --base; \
             a step may mount with --cap-add=CAP_SYS_ADMIN and --security-opt=seccomp=unconfined, where $TMPDIR is no overlay",
        )
        .source(error),
    })
}

/// What is to be changed of the root, and whether there is a record of an earlier time.
async fn changes(job: &Job<'_>, derived: &Derived) -> Result<(Changes, bool)> {
    let commits = (derived.pulled.base.commit.clone(), derived.commit.clone());
    let manifest = derived.manifest.clone();
    let work = job.store.run(job.cx, move |s, _| {
        let repo = s.repo();
        let mut changes = diff::between(&repo, &commits.0, &commits.1)?;
        kargs::add(&mut changes, &CommitTree::open(&repo, &commits.1)?, &manifest)?;
        let recorded = Provenance::read(&CommitTree::open(&repo, &commits.0)?)?.is_some();
        Ok((changes, recorded))
    });
    work.await
}

/// Whether it only says what the tree was made of: that names the tree of before, which is another one every time.
fn is_record(path: &str, change: &Change) -> bool {
    let below = |file: &str| file.trim_start_matches('/').starts_with(&format!("{path}/"));
    [provenance::PATH, lock::PATH].iter().any(|file| match change {
        Change::Directory(_) => below(file),
        Change::Removed | Change::Entry(_) | Change::Written(_) => file.trim_start_matches('/') == path,
    })
}
