//! The only code that makes anything visible to the bootloader.

use super::origin::Origin;
use super::snapshot::{self, Snapshot};
use crate::model::{Context, Error, ErrorKind, Result, request};
use ostree_ext::{gio, ostree};

/// A deployment that may be published: its commit, origin and kernel arguments are complete.
///
/// Only the engine's `Ready` can be turned into one.
#[derive(Debug, Clone)]
pub struct NewDeployment {
    /// The commit.
    pub commit: String,
    /// The origin to write.
    pub origin: Origin,
    /// All kernel arguments, without `ostree=`.
    pub kargs: Vec<String>,
    /// The stateroot of a first deployment.
    pub stateroot: Option<String>,
}

/// Stages the deployment on a booted host; writes it at once to a sysroot that is not booted.
///
/// Returns the new deployment's id. The deployment that was the default stays for rollback, pinned ones stay.
pub fn publish(
    sysroot: &ostree::Sysroot,
    new: &NewDeployment,
    cancellable: &gio::Cancellable,
) -> Result<String> {
    let before = snapshot::read(sysroot)?;
    let origin = new.origin.write()?;
    let kargs: Vec<&str> = new.kargs.iter().map(String::as_str).collect();
    let opts = ostree::SysrootDeployTreeOpts { override_kernel_argv: Some(&kargs), overlay_initrds: None };
    if before.booted {
        let booted = sysroot.booted_deployment();
        let osname = booted.as_ref().map(|b| b.osname());
        sysroot
            .stage_tree_with_options(
                osname.as_deref(),
                &new.commit,
                Some(&origin),
                booted.as_ref(),
                &opts,
                Some(cancellable),
            )
            .doing("staging the new deployment")?;
        sysroot.load(gio::Cancellable::NONE).doing("reading the staged deployment back")?;
        let staged = sysroot.staged_deployment().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "libostree staged nothing; the running system is unchanged")
        })?;
        return Ok(snapshot::id_of(&staged));
    }
    let osname = stateroot(sysroot, &before, new, cancellable)?;
    let merge = sysroot.merge_deployment(Some(&osname));
    let deployment = sysroot
        .deploy_tree_with_options(
            Some(&osname),
            &new.commit,
            Some(&origin),
            merge.as_ref(),
            Some(&opts),
            Some(cancellable),
        )
        .doing("writing the new deployment")?;
    let mut list = vec![deployment];
    // What it was merged from becomes the rollback; whatever else is pinned or of another stateroot stays.
    for old in sysroot.deployments() {
        let is_merge = merge.as_ref().is_some_and(|m| m.equal(&old));
        if is_merge || old.is_pinned() || old.osname() != osname.as_str() {
            list.push(old);
        }
    }
    write(sysroot, &list, cancellable)?;
    Ok(snapshot::id_of(&list[0]))
}

/// Puts the deployment with this id first. A staged deployment is discarded.
pub fn make_default(sysroot: &ostree::Sysroot, id: &str, cancellable: &gio::Cancellable) -> Result<()> {
    let mut list: Vec<_> = sysroot.deployments().into_iter().filter(|d| !d.is_staged()).collect();
    let at = list
        .iter()
        .position(|d| snapshot::id_of(d) == id)
        .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("there is no deployment {id}")))?;
    let chosen = list.remove(at);
    list.insert(0, chosen);
    write(sysroot, &list, cancellable)
}

/// Pins or unpins the deployment with this id.
pub fn set_pinned(sysroot: &ostree::Sysroot, id: &str, pinned: bool) -> Result<()> {
    let deployment = sysroot
        .deployments()
        .into_iter()
        .find(|d| snapshot::id_of(d) == id)
        .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("there is no deployment {id}")))?;
    if deployment.is_staged() {
        return Err(Error::new(
            ErrorKind::WrongState,
            "a staged deployment cannot be pinned before it has booted",
        )
        .hint("reboot first: systemctl reboot"));
    }
    sysroot.deployment_set_pinned(&deployment, pinned).doing("pinning the deployment")
}

fn write(
    sysroot: &ostree::Sysroot,
    list: &[ostree::Deployment],
    cancellable: &gio::Cancellable,
) -> Result<()> {
    // Cleaning up is a step of its own: a failure there must not look like a failure to publish.
    let opts = ostree::SysrootWriteDeploymentsOpts { do_postclean: false };
    sysroot.write_deployments_with_options(list, &opts, Some(cancellable)).doing("writing the boot entries")
}

fn stateroot(
    sysroot: &ostree::Sysroot,
    before: &Snapshot,
    new: &NewDeployment,
    cancellable: &gio::Cancellable,
) -> Result<String> {
    if let Some(merge) = before.merge() {
        return Ok(merge.deployment.stateroot.clone());
    }
    let name = request::stateroot(new.stateroot.as_deref().unwrap_or("default"))?;
    let path = sysroot.path();
    let dir =
        ostree_ext::gio::prelude::FileExt::path(&path).unwrap_or_default().join("ostree/deploy").join(&name);
    if !dir.is_dir() {
        sysroot
            .init_osname(&name, Some(cancellable))
            .doing_with(|| format!("making the stateroot {name}"))?;
    }
    Ok(name)
}
