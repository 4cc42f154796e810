//! derive.fetch: what drop-ins name by URL and digest.

use crate::derive::contents::Kept;
use crate::derive::read;
use crate::engine::pipeline::Job;
use crate::engine::steps::resolve::fetch_options;
use crate::model::contents::{Contents, Expected, Remote};
use crate::model::dropin::MAX_CONTENTS;
use crate::model::job::Step;
use crate::model::manifest::{Manifest, Node};
use crate::model::{Error, Result};
use crate::pull;
use crate::store::snapshot::Snapshot;
use crate::store::tree::CommitTree;
use std::collections::BTreeSet;

/// The manifest with the content of every file. What was fetched before is not fetched again.
pub async fn contents(job: &Job<'_>, manifest: Manifest) -> Result<Manifest> {
    job.cx.step(Step::DeriveFetch, fetch(job, manifest)).await
}

async fn fetch(job: &Job<'_>, mut manifest: Manifest) -> Result<Manifest> {
    let kept = Kept::at(job.env.layout.contents());
    let total = u32::try_from(remotes(&manifest).count()).unwrap_or(u32::MAX);
    let mut done = 0;
    for (path, node) in &mut manifest.nodes {
        let Node::File(file) = node else { continue };
        let Contents::Remote(remote) = &file.contents else { continue };
        job.cx.checkpoint()?;
        job.cx.items(done, total, path);
        let bytes = one(job, &kept, remote).await.map_err(|error| {
            let what =
                format!("{}: fetching {path} from {}; nothing was staged", file.owner, shown(&remote.url));
            let failed = Error::new(error.kind, what).detail("drop-in", &file.owner).detail("path", path);
            let failed = match error.hint.clone() {
                Some(hint) => failed.hint(hint),
                None => failed,
            };
            failed.source(error)
        })?;
        file.contents = Contents::Fetched(remote.clone(), bytes);
        done += 1;
        job.cx.items(done, total, path);
    }
    Ok(manifest)
}

async fn one(job: &Job<'_>, kept: &Kept, remote: &Remote) -> Result<Vec<u8>> {
    if let Some(bytes) = kept.get(&remote.digest)? {
        return Ok(bytes);
    }
    let options = fetch_options(job.env, &job.options)?;
    let fetched = pull::download(job.cx, &remote.url, MAX_CONTENTS, &options).await?;
    kept.take(remote, fetched)
}

/// A query may be a key to what it asks for.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or(url)
}

fn remotes(manifest: &Manifest) -> impl Iterator<Item = &Remote> {
    manifest.nodes.values().filter_map(|node| match node {
        Node::File(file) => match &file.contents {
            Contents::Remote(remote) | Contents::Fetched(remote, _) => Some(remote),
            Contents::Here(_) => None,
        },
        Node::Directory(_) | Node::Link(_) => None,
    })
}

/// Removes what no drop-in of now names.
pub async fn forget(job: &Job<'_>, now: &Snapshot) -> Result<()> {
    let kept = Kept::at(job.env.layout.contents());
    let Some(next) = now.next().filter(|_| kept.any()) else { return Ok(()) };
    let (config, base) = (job.env.config_root()?, next.deployment.base_checksum.clone());
    let read =
        job.store.run(job.cx, move |s, _| read::read(&config, Some(&CommitTree::open(&s.repo(), &base)?)));
    match read.await {
        Ok(manifest) => {
            let needed: BTreeSet<Expected> = remotes(&manifest).map(|remote| remote.digest.clone()).collect();
            kept.keep_only(&needed)
        }
        // Rather too much than too little.
        Err(error) => {
            tracing::warn!(error = error.chain(), "no content is removed");
            Ok(())
        }
    }
}
