//! Building an image: the steps of a job up to the derived commit, in a sysroot that nobody boots, and then the export.
//!
//! ```text
//! input ► resolve ► same as before? ► copy the base ► pull ► derive ► same as before? ► layer ► target
//! ```
//!
//! Nothing of the machine is read but how registries are reached and what its policy forbids, and nothing of it is changed.

use super::cx::Cx;
use super::env::{Env, Handed};
use super::pipeline::Job;
use super::stages::{Derived, Pulled, Target};
use super::steps::{derive, resolve};
use crate::derive::policy;
use crate::derive::provenance::Provenance;
use crate::derive::read;
use crate::export::layout::Layout as Oci;
use crate::export::{self, Written, skopeo};
use crate::model::build::{self, Build, Built, Origin};
use crate::model::image::{Digest, ImageRef};
use crate::model::job::Step;
use crate::model::lock::Lock;
use crate::model::manifest::Manifest;
use crate::model::request::{Goal, Options};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{FetchOptions, Resolved};
use crate::store::locked::Locked;
use crate::store::snapshot::Snapshot;
use crate::store::sysroot::{self, Layout};
use crate::store::tree::CommitTree;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tags in our own layout.
const BASE: &str = "base";
const BUILT: &str = "built";

/// What is there before anything is fetched.
pub(super) struct Given {
    pub declared: Manifest,
    digest: Digest,
    lock: Option<Digest>,
}

/// Where it is built.
pub(super) struct Place {
    pub dir: PathBuf,
    /// Removed with this, unless somebody named a directory.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    pub(super) fn open(named: Option<&Path>, tmp: Option<&str>) -> Result<Place> {
        if let Some(dir) = named {
            std::fs::create_dir_all(dir).doing_with(|| format!("making {}", dir.display()))?;
            let dir = dir.canonicalize().doing_with(|| format!("opening {}", dir.display()))?;
            return Ok(Place { dir, _temporary: None });
        }
        // An image may have an empty /var.
        let usual = if Path::new("/var/tmp").is_dir() { "/var/tmp" } else { "/tmp" };
        let below = Path::new(tmp.unwrap_or(usual));
        let temporary = tempfile::Builder::new().prefix("osctl-derive-").tempdir_in(below);
        let temporary = temporary.doing_with(|| format!("making a directory in {}", below.display()))?;
        Ok(Place { dir: temporary.path().to_owned(), _temporary: Some(temporary) })
    }
}

/// Builds the image, or finds that the target is it.
///
/// `config_root` is the root whose configuration says how registries are reached.
pub async fn run(
    cx: &Cx,
    build: Build,
    config_root: PathBuf,
    environment: Vec<(String, String)>,
) -> Result<Built> {
    build::target(&build.target)?;
    skopeo::has_place(&build.target)?;
    let handed = handed(&build);
    let given = given(&handed, build.allow_secrets)?;
    let tmp = environment.iter().find(|(name, _)| name == "TMPDIR").map(|(_, dir)| dir.clone());
    let place = Place::open(build.work.as_deref(), tmp.as_deref())?;
    let layout = Layout::new(place.dir.join("sysroot"), config_root, None);
    sysroot::create(&layout.sysroot)?;
    let env = Env::new(layout, environment).handed(handed);
    policy::check(&env.config_root()?, None, &given.declared)?;
    let store = Locked::acquire(cx, &env.layout).await?;
    let options = Options {
        drop_var: build.drop_var,
        frozen: build.frozen,
        update_lock: build.update_lock,
        ..Options::default()
    };
    let job = alone(cx, &env, store, options);
    on(&job, &build, &given, &Oci::at(place.dir.join("image"))).await
}

/// A job in a sysroot where nothing is deployed, or ever will be.
pub(super) fn alone<'j>(cx: &'j Cx, env: &'j Env, store: Locked, options: Options) -> Job<'j> {
    Job {
        cx,
        env,
        id: "build",
        store,
        before: Snapshot { entries: Vec::new(), booted: false },
        options,
        keeps_digests: false,
        staged_is_ours: false,
        adopts: false,
        edited: None,
    }
}

async fn on(job: &Job<'_>, build: &Build, given: &Given, oci: &Oci) -> Result<Built> {
    let machine = resolve::fetch_options(job.env, &job.options)?;
    let own = accept_all(job.env, &machine)?;
    let Target::Image { resolved, verification } =
        resolve::target(&job.view(), &Goal::Rebase(build.base.clone())).await?
    else {
        return Err(Error::new(ErrorKind::Internal, "a base is always an image"));
    };
    let there = existing(job, &build.target, &own).await?;
    if !build.update_lock
        && let Some(there) = &there
        && let Some(origin) =
            build::is_same(&there.labels, &resolved.digest, &given.digest, given.lock.as_ref())
    {
        return Ok(unchanged(build, there, origin));
    }
    let copy = skopeo::fetch(job.cx, (&build.base, &resolved.digest), (oci, BASE), &machine);
    job.cx.step(Step::PullImage, copy).await?;
    let base = base(job, &resolved, oci, &machine, &own).await?;
    let pulled = Pulled {
        base,
        image: None,
        stateroot: None,
        verification: Some(verification),
        bound: Vec::new(),
        download: 0,
    };
    let derived = derive::derive(job, pulled, false).await?;
    if derived.manifest.is_empty() {
        let why = format!("{} declares nothing; nothing was built", build.input.display());
        return Err(Error::new(ErrorKind::InvalidArgument, why).hint("see what it declares: osctl lint PATH"));
    }
    let origin = origin(job, &derived).await?;
    if let Some(there) = &there
        && Origin::of_labels(&there.labels).as_ref() == Some(&origin)
    {
        return Ok(unchanged(build, there, origin));
    }
    let labels = origin.labels(&build.base, &given.digest);
    let written = write(job, &derived, oci, labels).await?;
    let publish = skopeo::publish(job.cx, (oci, BUILT), &build.target, written.has_plain_layers, &machine);
    let digest = job.cx.step(Step::ExportPublish, publish).await?;
    Ok(Built { changed: true, image: build.target.clone(), digest, origin, notes: derived.notes })
}

fn unchanged(build: &Build, there: &Resolved, origin: Origin) -> Built {
    let digest = there.digest.clone();
    Built { changed: false, image: build.target.clone(), digest, origin, notes: Vec::new() }
}

/// The drop-ins and the lock that were named.
fn handed(build: &Build) -> Handed {
    let beside = build.input.join("etc/osctl/derive.lock");
    let lock = build.lock.clone().or(beside.is_file().then_some(beside));
    Handed { drop_ins: build.input.clone(), lock, auth_file: build.auth_file.clone() }
}

/// Reads what was named, and refuses what is wrong with it.
pub(super) fn given(handed: &Handed, allow_secrets: bool) -> Result<Given> {
    let source = read::Source::named(&handed.drop_ins)?;
    let declared: Manifest = read::read_from(&source, None)?;
    if !allow_secrets {
        build::no_secrets(&declared)?;
    }
    let lock = match &handed.lock {
        Some(path) => {
            let shown = path.display().to_string();
            let text = std::fs::read(path).kind(ErrorKind::LockMismatch, format!("reading {shown}"))?;
            Some(Lock::parse(&shown, &text)?.digest())
        }
        None => None,
    };
    Ok(Given { digest: build::handed_in(&source.names()?, &declared), declared, lock })
}

/// The options for what is ours already.
pub(super) fn accept_all(env: &Env, machine: &FetchOptions) -> Result<FetchOptions> {
    let path = env.layout.state.join("policy.json");
    std::fs::create_dir_all(&env.layout.state)
        .and_then(|()| std::fs::write(&path, skopeo::ACCEPT))
        .doing("writing a policy for skopeo")?;
    Ok(FetchOptions { policy: Some(path), ..machine.clone() })
}

/// The image that the target is now.
async fn existing(job: &Job<'_>, target: &ImageRef, own: &FetchOptions) -> Result<Option<Resolved>> {
    if !skopeo::may_exist(target) {
        return Ok(None);
    }
    match crate::pull::resolve(job.cx, target, own).await {
        Ok(there) => Ok(Some(there)),
        // What is there is something else, and is going to be replaced.
        Err(error) if matches!(error.kind, ErrorKind::ImageNotFound | ErrorKind::Unsupported) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The base in the repository. What was copied is not fetched again.
async fn base(
    job: &Job<'_>,
    resolved: &Resolved,
    oci: &Oci,
    machine: &FetchOptions,
    own: &FetchOptions,
) -> Result<crate::pull::Base> {
    if !oci.diff_ids(BASE)?.iter().eq(resolved.layers.iter().map(|layer| &layer.diff_id)) {
        let why = format!("{} was replaced while it was copied; nothing was built", resolved.image);
        return Err(Error::new(ErrorKind::DigestMismatch, why).hint("try again"));
    }
    let copied = resolved.layers.iter().all(|layer| oci.has(&layer.digest));
    let (here, options) = match copied {
        true => {
            let image = oci.reference(BASE).parse()?;
            (Resolved { image, ..resolved.clone() }, own)
        }
        // Local storage has other blobs than the manifest says.
        false => (resolved.clone(), machine),
    };
    let repo = job.env.layout.repo();
    let base = job.cx.step(Step::PullLayers, crate::pull::pull(job.cx, &repo, &here, options)).await?;
    let record = async { crate::pull::retain_latest(&resolve::open_repo(job.env)?, &base) };
    job.cx.step(Step::PullRecord, record).await?;
    Ok(base)
}

/// What the derived commit says about itself.
pub(super) async fn origin(job: &Job<'_>, derived: &Derived) -> Result<Origin> {
    let commit = derived.commit.clone();
    let record = job.store.run(job.cx, move |s, _| Provenance::read(&CommitTree::open(&s.repo(), &commit)?));
    let record = record.await?.ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            "the derived commit does not say what it is made of; nothing was built",
        )
    })?;
    Ok(Origin {
        base_digest: record.base_digest,
        input_digest: record.input_digest,
        lock_digest: record.lock_digest,
    })
}

async fn write(
    job: &Job<'_>,
    derived: &Derived,
    oci: &Oci,
    labels: BTreeMap<&'static str, Option<String>>,
) -> Result<Written> {
    let commits = (derived.pulled.base.commit.clone(), derived.commit.clone());
    let (oci, manifest) = (oci.clone(), derived.manifest.clone());
    let work = job.store.run(job.cx, move |s, _| {
        let commits = (commits.0.as_str(), commits.1.as_str());
        export::write(&s.repo(), commits, &manifest, &oci, (BASE, BUILT), &labels)
    });
    job.cx.step(Step::ExportLayer, work).await
}
