//! Making the journal and `/etc` true to the deployments: after a job, after a crash, after a boot.
//!
//! What a drop-in takes in `/etc` is reset in the deployment that the merge starts from, and put back there when the merge
//! is over: after the next boot, whatever it came to, or when the staged deployment is discarded. So a rollback finds
//! that deployment's own files.

use super::cx::Cx;
use super::env::Env;
use super::journal::{Intent, Journal};
use super::steps::edit;
use crate::derive::etc::{self, Previous};
use crate::derive::take::{self, Take};
use crate::model::{Context, Result};
use crate::store::locked::Locked;
use crate::store::snapshot::{self, Entry, Snapshot};
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use std::path::Path;

/// The id of the deployment that the intent wanted, if the deployments are as it wanted them.
pub fn published(now: &Snapshot, intent: &Intent) -> Option<String> {
    match &intent.rollback {
        Some(rollback) => now.default().map(|e| e.deployment.id.clone()).filter(|id| *id == rollback.to),
        None => {
            let ids = now.entries.iter().map(|e| &e.deployment).filter(|d| d.checksum == intent.checksum);
            ids.map(|d| d.id.clone()).find(|id| !intent.before.contains(id))
        }
    }
}

/// Ends an intent, published or not. Returns the id of the deployment where it was published.
pub fn end(env: &Env, journal: &Journal, now: &Snapshot, intent: &Intent) -> Result<Option<String>> {
    let Some(id) = published(now, intent) else {
        give_back(env, now, intent.etc_of.as_deref(), &intent.takes)?;
        journal.abandon()?;
        return Ok(None);
    };
    if let Some(edited) = &intent.edited {
        edit::write(&env.config_root()?, edited)?;
    }
    if intent.rollback.is_some() {
        // What was staged is discarded with a rollback.
        discard(env, journal, now)?;
    } else if !intent.staged {
        // A sysroot that is not booted is deployed to at once: the merge is over.
        give_back(env, now, intent.etc_of.as_deref(), &intent.takes)?;
    }
    journal.done(intent, &id)?;
    Ok(Some(id))
}

/// Settles whatever an earlier job, process or boot left. The sysroot is locked.
///
/// Returns the deployments, which this does not change, and whether what was staged has booted since.
pub async fn leftovers(cx: &Cx, env: &Env, locked: &Locked, journal: &Journal) -> Result<(Snapshot, bool)> {
    let now = locked.run(cx, |s, _| snapshot::read(s)).await?;
    let booted_anew = settle(env, journal, &now)?;
    Ok((now, booted_anew))
}

fn settle(env: &Env, journal: &Journal, now: &Snapshot) -> Result<bool> {
    if let Some(intent) = journal.intent()? {
        let there = end(env, journal, now, &intent)?;
        tracing::warn!(job = intent.job, published = there, "settled what an interrupted job left");
    }
    let Some(pending) = journal.pending()? else { return Ok(false) };
    let Some(booted) = now.entries.iter().find(|e| e.deployment.booted) else { return Ok(false) };
    if pending.intent.boot_id != super::env::boot_id() {
        let ok = booted.deployment.id == pending.deployment;
        let shadowed = if ok { shadowed(env, booted)? } else { Vec::new() };
        journal.judge(&pending, &booted.deployment.id, shadowed, super::env::finalize_failure)?;
        give_back(env, now, pending.intent.etc_of.as_deref(), &pending.intent.all_takes())?;
        journal.forget_pending()?;
        return Ok(ok);
    }
    if now.staged().is_none_or(|s| s.deployment.id != pending.deployment) {
        tracing::info!(deployment = pending.deployment, "another program discarded what was staged");
        discard(env, journal, now)?;
    }
    Ok(false)
}

/// Nothing is expected of the next boot any more.
fn discard(env: &Env, journal: &Journal, now: &Snapshot) -> Result<()> {
    if let Some(pending) = journal.pending()? {
        give_back(env, now, pending.intent.etc_of.as_deref(), &pending.intent.all_takes())?;
        journal.forget_pending()?;
    }
    Ok(())
}

/// Puts local copies back into the `/etc` of the deployment that they are from, if it still exists.
fn give_back(env: &Env, now: &Snapshot, of: Option<&str>, takes: &[Take]) -> Result<()> {
    let Some(entry) = now.entries.iter().find(|e| Some(e.deployment.id.as_str()) == of) else {
        return Ok(());
    };
    if takes.is_empty() {
        return Ok(());
    }
    let (live, defaults) = etc_dirs(&env.deployment_root(entry))?;
    take::restore(&live, &defaults, takes)
}

/// The declared paths of `/etc` that a local change shadows, without the drop-in's consent.
fn shadowed(env: &Env, booted: &Entry) -> Result<Vec<String>> {
    let derivation = &booted.deployment.derivation;
    if derivation.files.is_empty() {
        return Ok(Vec::new());
    }
    let (live, defaults) = etc_dirs(&env.deployment_root(booted))?;
    let changed = etc::locally_changed(Previous { live: &live, defaults: &defaults })?;
    let declared = derivation.files.iter().map(|f| &f.path);
    Ok(declared.filter(|p| changed.contains(*p) && !derivation.kept_local.contains(p)).cloned().collect())
}

/// The live `/etc` of a deployment and its defaults.
pub fn etc_dirs(root: &Path) -> Result<(Dir, Dir)> {
    let open = |path: &str| {
        let path = root.join(path);
        Dir::open_ambient_dir(&path, ambient_authority()).doing_with(|| format!("opening {}", path.display()))
    };
    Ok((open("etc")?, open("usr/etc")?))
}
