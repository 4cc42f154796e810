//! resolve: which digest.

use crate::engine::env::Env;
use crate::engine::pipeline::View;
use crate::engine::stages::Target;
use crate::model::image::ImageRef;
use crate::model::job::Step;
use crate::model::request::{Goal, Options};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{Base, FetchOptions, ImageKind};
use crate::store::snapshot::{Entry, Snapshot};
use crate::sys::{auth, policy};
use std::path::Path;

/// What the goal is about.
pub async fn target(view: &View<'_>, goal: &Goal) -> Result<Target> {
    let image = match goal {
        Goal::Upgrade => tracked(view.before)?,
        Goal::Rebase(image) => image.clone(),
        Goal::Reconcile => return present(view.before),
    };
    let options = fetch_options(view.env, view.options)?;
    let resolved = view.cx.step(Step::ResolveImage, crate::pull::resolve(view.cx, &image, &options)).await?;
    // It has passed this policy, or there would be an error.
    let policy = options.policy.as_deref().unwrap_or(Path::new(policy::SYSTEM));
    let verification = policy::verification(&std::fs::read(policy).unwrap_or_default(), &image);
    Ok(Target::Image { resolved: Box::new(resolved), verification })
}

/// The base that the next deployment has.
fn present(before: &Snapshot) -> Result<Target> {
    let next = before.next().ok_or_else(no_deployment)?;
    let (image, verification) = (next.deployment.image.clone(), next.origin.verification.clone());
    Ok(Target::Present { base: base_of(next)?, image, verification })
}

/// The base that this deployment has.
pub fn base_of(entry: &Entry) -> Result<Base> {
    let deployment = &entry.deployment;
    let Some(digest) = deployment.digest.clone() else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("deployment {} was not made from a container image", deployment.id),
        )
        .hint("move to one first: osctl rebase IMAGE"));
    };
    Ok(Base {
        commit: deployment.base_checksum.clone(),
        digest,
        version: Some(deployment.version.clone()).filter(|v| !v.is_empty()),
        created: deployment.timestamp,
        labels: deployment.labels.clone(),
        kind: ImageKind::Plain,
    })
}

/// How images are fetched on this host.
pub fn fetch_options(env: &Env, options: &Options) -> Result<FetchOptions> {
    let config_root = env.config_root()?;
    let pull = env.config()?.pull;
    Ok(FetchOptions {
        // A bundle wants no login.
        auth_file: if env.offered().is_none() { env.auth_file()? } else { None },
        policy: auth::policy(&config_root),
        lookaside: env.lookaside()?,
        registries: env.variable(auth::REGISTRIES_CONF).map(Into::into),
        drop_var: options.drop_var,
        rate_limit: options.rate_limit.or(pull.rate_limit),
        connections: pull.connections,
        importers: pull.importers,
        tmp: Some(env.layout.state.join("tmp")),
        spool: Some(env.layout.spool()),
        repo: Some(env.layout.repo()),
        config_root: Some(env.layout.config_root.clone()),
        home: env.home().cloned(),
        offered: env.offered().cloned(),
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

/// The reference that the host follows.
pub fn tracked(before: &Snapshot) -> Result<ImageRef> {
    let next = before.next().ok_or_else(no_deployment)?;
    next.deployment.image.clone().ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("deployment {} tracks no container image", next.deployment.id),
        )
        .hint("name one: osctl rebase IMAGE")
    })
}

/// There is nothing to start from.
pub fn no_deployment() -> Error {
    Error::new(ErrorKind::WrongState, "there is no deployment yet")
        .hint("make the first one: osctl rebase IMAGE")
}
