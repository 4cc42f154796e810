//! plan: may it be?

use crate::derive::{policy, read};
use crate::engine::pipeline::View;
use crate::engine::stages::Target;
use crate::model::kargs;
use crate::model::request::Options;
use crate::model::{Error, ErrorKind, Result};
use crate::pull::Resolved;
use crate::store::snapshot::{Entry, Snapshot};

/// Refuses what policy forbids, and what is wrong with the host's own declarations.
pub fn permit(view: &View<'_>, target: &Target) -> Result<()> {
    owned(view)?;
    arguments(view)?;
    // Of a reconcile as well, which fetches bound images only.
    view.env.config()?;
    let config = view.env.config_root()?;
    policy::check(&config, None, &read::read_edited(&config, None, view.edited)?)?;
    match target {
        Target::Image { resolved, .. } => allowed(view.before, view.options, resolved)?,
        Target::Present { .. } => {}
    }
    match lowered(view, target) {
        Some(why) if !view.options.allow_unverified => {
            let why = format!("{why}; nothing was downloaded, the running system is unchanged");
            Err(Error::new(ErrorKind::SignatureRejected, why).hint(
                "let the policy ask for a signature (containers-policy.json(5)), or take it all the same with: \
                 --allow-unverified",
            ))
        }
        Some(_) | None => Ok(()),
    }
}

/// How less vouches for the target than for the deployment that it follows; `None` if not.
pub fn lowered(view: &View<'_>, target: &Target) -> Option<String> {
    let Target::Image { resolved, verification } = target else { return None };
    let current = view.before.merge()?.origin.verification.as_ref()?;
    (verification.level < current.level).then(|| {
        format!(
            "{} is verified less than what it follows, which was {}: {}",
            resolved.image,
            current.describe(),
            verification.describe()
        )
    })
}

/// Refuses hosts and deployments that another tool owns.
pub fn owned(view: &View<'_>) -> Result<()> {
    let before = view.before;
    let foreign = |e: &&Entry| !e.deployment.incompatible.is_empty() && !view.adopts;
    if let Some(entry) = before.merge().filter(foreign) {
        let keys = entry.deployment.incompatible.join(", ");
        return Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "the origin of {} has keys that osctl does not know and will not rewrite: {keys}",
                entry.deployment.id
            ),
        )
        .hint("it belongs to another tool: see what osctl would take over with: osctl adopt --dry-run")
        .detail("keys", keys));
    }
    if let Some(staged) = before.staged()
        && !view.staged_is_ours
        && !view.options.replace_staged
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
fn arguments(view: &View<'_>) -> Result<()> {
    for arg in &view.options.kargs {
        kargs::form(arg).map_err(|refused| {
            let error = Error::new(ErrorKind::InvalidArgument, format!("--karg: {}", refused.message));
            match refused.hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })?;
    }
    if view.options.kargs.is_empty() || view.before.merge().is_none() {
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
