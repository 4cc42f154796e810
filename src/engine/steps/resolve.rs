//! resolve and plan: which digest, and whether policy allows it.

use crate::derive::read;
use crate::engine::cx::Cx;
use crate::engine::env::Env;
use crate::engine::pipeline::Job;
use crate::engine::stages::{Planned, Target};
use crate::engine::steps::cleanup;
use crate::model::image::ImageRef;
use crate::model::job::{JobResult, Step};
use crate::model::kargs;
use crate::model::request::Options;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{FetchOptions, Resolved};
use crate::store::snapshot::{self, Entry, Snapshot};
use crate::store::sysroot;
use crate::sys::auth;

/// The newest image of the reference that the host tracks.
pub async fn tracked(job: &Job<'_>) -> Result<Target> {
    // What another tool owns is said first: the other hints would lead nowhere.
    owned(job)?;
    let image = tracked_image(&job.before)?;
    self::image(job, image).await
}

/// The newest image of this reference.
pub async fn image(job: &Job<'_>, image: ImageRef) -> Result<Target> {
    let options = fetch_options(job.env, &job.options)?;
    let resolved = job.cx.step(Step::ResolveImage, crate::pull::resolve(job.cx, &image, &options)).await?;
    Ok(Target::Image(Box::new(resolved)))
}

/// The base that the next deployment has.
pub fn present(job: &Job<'_>) -> Result<Target> {
    owned(job)?;
    let next = job.before.next().ok_or_else(no_deployment)?;
    let Some(digest) = next.deployment.digest.clone() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("deployment {} was not made from a container image", next.deployment.id),
        )
        .hint("move to one first: osctl rebase IMAGE"));
    };
    let base = crate::pull::Base {
        commit: next.deployment.base_checksum.clone(),
        digest,
        version: Some(next.deployment.version.clone()).filter(|v| !v.is_empty()),
        created: next.deployment.timestamp,
        labels: next.deployment.labels.clone(),
        kind: crate::pull::ImageKind::Plain,
    };
    Ok(Target::Present { base, image: next.deployment.image.clone() })
}

/// Refuses what policy forbids, before anything is downloaded.
pub async fn plan(job: &Job<'_>, target: Target) -> Result<Planned> {
    job.cx
        .step(Step::PlanCheck, async {
            owned(job)?;
            arguments(job)?;
            // Of a reconcile as well, which fetches bound images only.
            job.env.config()?;
            // What is wrong with the host's own drop-ins is said before anything is downloaded.
            read::read(&job.env.config_root()?, None)?;
            if let Target::Image(resolved) = &target {
                allowed(&job.before, &job.options, resolved)?;
                // The sizes are the manifest's, and may be anything.
                let needed = resolved.layers.iter().fold(0_u64, |sum, l| sum.saturating_add(l.size));
                if crate::pull::find(&open_repo(job.env)?, &resolved.digest)?.is_none()
                    && space(job.env, needed).is_err()
                {
                    // What earlier jobs left may be all that is in the way.
                    cleanup::cleanup(job, JobResult::default()).await?;
                    space(job.env, needed)?;
                }
            }
            Ok(Planned { target, stateroot: job.options.stateroot.clone() })
        })
        .await
}

/// Whether there is something newer; transfers the manifest and configuration only and takes no lock.
pub async fn check(cx: &Cx, env: &Env, options: &Options) -> Result<JobResult> {
    let before = snapshot::read(&sysroot::open(&env.layout.sysroot)?)?;
    let image = tracked_image(&before)?;
    let fetch = fetch_options(env, options)?;
    let resolved = cx.step(Step::ResolveImage, crate::pull::resolve(cx, &image, &fetch)).await?;
    let next = before.next().ok_or_else(no_deployment)?;
    let changed = next.deployment.digest.as_ref() != Some(&resolved.digest);
    let version = resolved.version.clone().unwrap_or_else(|| "without a version label".into());
    let summary = if changed {
        format!("Update available: {version} ({})", resolved.digest)
    } else {
        format!("No update: {image} is still {}", resolved.digest)
    };
    Ok(JobResult { changed, summary, digest: Some(resolved.digest.clone()), ..Default::default() })
}

/// How images are fetched on this host.
pub fn fetch_options(env: &Env, options: &Options) -> Result<FetchOptions> {
    let config_root = env.config_root()?;
    let pull = env.config()?.pull;
    Ok(FetchOptions {
        auth_file: auth::find_auth(&config_root, None),
        policy: auth::policy(&config_root),
        registries: env.variable(auth::REGISTRIES_CONF).map(Into::into),
        drop_var: options.drop_var,
        rate_limit: options.rate_limit.or(pull.rate_limit),
        connections: pull.connections,
        importers: pull.importers,
        tmp: Some(env.layout.state.join("tmp")),
        ..Default::default()
    })
}

/// A handle to the repository, for reading.
pub fn open_repo(env: &Env) -> Result<ostree_ext::ostree::Repo> {
    let path = env.layout.repo();
    ostree_ext::ostree::Repo::open_at(
        rustix::fs::CWD.as_raw(),
        &path.to_string_lossy(),
        ostree_ext::gio::Cancellable::NONE,
    )
    .doing_with(|| format!("opening the repository {}", path.display()))
}

trait AsRaw {
    fn as_raw(&self) -> i32;
}

impl AsRaw for rustix::fd::BorrowedFd<'_> {
    fn as_raw(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(self)
    }
}

fn tracked_image(before: &Snapshot) -> Result<ImageRef> {
    let next = before.next().ok_or_else(no_deployment)?;
    next.deployment.image.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("deployment {} tracks no container image", next.deployment.id),
        )
        .hint("name one: osctl rebase IMAGE")
    })
}

fn no_deployment() -> Error {
    Error::new(ErrorKind::WrongState, "there is no deployment yet")
        .hint("make the first one: osctl rebase IMAGE")
}

/// Refuses hosts and deployments that another tool owns.
fn owned(job: &Job<'_>) -> Result<()> {
    let before = &job.before;
    let foreign = |e: &&Entry| !e.deployment.incompatible.is_empty();
    if let Some(entry) = before.merge().filter(foreign) {
        let keys = entry.deployment.incompatible.join(", ");
        let layered =
            keys.contains("packages/") || keys.contains("rpmostree") || keys.contains("baserefspec");
        let hint = if layered {
            "it belongs to rpm-ostree: remove its layers first with: rpm-ostree reset, or go on using rpm-ostree"
        } else {
            "it belongs to another tool: go on using that, or deploy afresh"
        };
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "the origin of {} has keys that osctl does not know and will not rewrite: {keys}",
                entry.deployment.id
            ),
        )
        .hint(hint)
        .detail("keys", keys));
    }
    if let Some(staged) = before.staged()
        && !job.staged_is_ours
        && !job.options.replace_staged
    {
        return Err(Error::new(
            ErrorKind::Conflict,
            format!("another tool has staged {}; nothing was changed", staged.deployment.id),
        )
        .hint("reboot into it, or replace it with: --replace-staged"));
    }
    Ok(())
}

/// Refuses kernel arguments that cannot be, and those of a first deployment where there is one already.
fn arguments(job: &Job<'_>) -> Result<()> {
    for arg in &job.options.kargs {
        kargs::form(arg).map_err(|refused| {
            let error = Error::new(ErrorKind::InvalidArgument, format!("--karg: {}", refused.message));
            match refused.hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })?;
    }
    if job.options.kargs.is_empty() || job.before.merge().is_none() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        "--karg is for the first deployment of a sysroot; nothing was changed",
    )
    .hint("declare it in a drop-in: kernel-arguments: {append: [...]}"))
}

/// Refuses digests that the caller or the time order exclude.
fn allowed(before: &Snapshot, options: &Options, resolved: &Resolved) -> Result<()> {
    if let Some(required) = &options.require_digest
        && *required != resolved.digest
    {
        return Err(Error::new(
            ErrorKind::DigestMismatch,
            format!("{} is {}, not {required}; nothing was downloaded", resolved.image, resolved.digest),
        )
        .hint("pin the reference itself: osctl rebase NAME@DIGEST"));
    }
    let Some(current) = before.merge() else { return Ok(()) };
    let same_stream = current.deployment.image.as_ref() == Some(&resolved.image);
    let older = resolved.created != 0 && resolved.created < current.deployment.timestamp;
    if same_stream && older && !options.allow_downgrade {
        return Err(Error::new(
            ErrorKind::Downgrade,
            format!("{} is older than the deployment that runs; nothing was downloaded", resolved.image),
        )
        .hint("take it all the same with: --allow-downgrade"));
    }
    Ok(())
}

/// Refuses a download that cannot fit. What it unpacks to is at least its compressed size.
fn space(env: &Env, needed: u64) -> Result<()> {
    let free = crate::sys::fs::free_bytes(&env.layout.repo())?;
    if needed <= free {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoSpace,
        format!("the layers take at least {needed} bytes and {free} are free on the file system of {}; nothing was downloaded", env.layout.sysroot.display()),
    )
    .hint("free some space, or drop a pinned deployment: osctl unpin ID")
    .detail("need", needed)
    .detail("have", free))
}
