//! derive: the drop-ins applied to the base, and the kernel arguments.

use crate::bound;
use crate::derive::provenance::Provenance;
use crate::derive::read::{self, Upcoming};
use crate::derive::{apply, diff, policy, possible, storage};
use crate::engine::journal::Edited;
use crate::engine::pipeline::Job;
use crate::engine::stages::{Derived, Pulled};
use crate::engine::steps::bind::Wanted;
use crate::engine::steps::fetch;
use crate::engine::steps::packages::{self, Layered};
use crate::model::deviation::Asked;
use crate::model::difference::{Between, Difference, Differences, LockChange, Subject, Verb};
use crate::model::dropin::{install::install_links, sysusers_conf};
use crate::model::job::{JobResult, Step};
use crate::model::kargs::{self, Owned};
use crate::model::manifest::Manifest;
use crate::model::packages::asks_for;
use crate::model::status::Unmet;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::snapshot::{Entry, Snapshot};
use crate::store::tree::CommitTree;
use cap_std_ext::cap_std::fs::Dir;
use ostree_ext::ostree;
use std::collections::BTreeSet;

/// Where images declare kernel arguments of their own.
const VENDOR_KARGS: [&str; 2] = ["/usr/lib/bootc/kargs.d", "/usr/lib/osctl/kargs.d"];
/// A kargs.d file is a handful of lines.
const KARGS_LIMIT: u64 = 1 << 20;

/// Reads the drop-ins once and makes the derived commit, or finds it.
///
/// `resolve` says whether packages are solved anew where the lock of before still fits.
pub async fn derive(job: &Job<'_>, pulled: Pulled, resolve: bool) -> Result<Derived> {
    let config = job.env.config_root()?;
    let drop_ins = job.env.drop_ins()?.edited(job.edited.as_ref().map(Edited::upcoming));
    // What is built is not of the host that builds it.
    let binds = job.env.hosts().then(|| job.env.config_root()).transpose()?;
    let base = pulled.base.commit.clone();
    let (manifest, overlooked) = job
        .cx
        .step(
            Step::DeriveRead,
            job.store.run(job.cx, move |s, _| {
                let tree = CommitTree::open(&s.repo(), &base)?;
                let mut manifest = read::read_from(&drop_ins, Some(&tree))?;
                policy::check(&config, Some(&tree), &manifest)?;
                let mut overlooked = None;
                if bound::any(&tree, binds.as_ref())? {
                    storage::declare(&tree, &mut manifest)?;
                    if let Some(binds) = &binds {
                        overlooked = storage::overlooked(&tree, binds)?;
                    }
                }
                Ok((manifest, overlooked))
            }),
        )
        .await?;
    possible(job, &pulled, &manifest).await?;
    let manifest = fetch::contents(job, manifest).await?;
    let Layered { layer, manifest, mut notes, without } =
        packages::layer(job, &pulled, manifest, resolve).await?;
    notes.extend(overlooked);
    if let (Some(layer), Some(merge)) = (&layer, job.before.merge()) {
        possible::ids_free(&job.env.deployment_root(merge), &possible::packaged(&layer.lock))?;
    }
    let (base, digest, wanted) = (pulled.base.commit.clone(), pulled.base.digest.clone(), manifest.clone());
    // A staged deployment of ours has the newest local arguments; another program's was replaced on purpose.
    let mine = job.before.staged().filter(|_| job.staged_is_ours);
    let merge = mine.or(job.before.merge()).map(|e| (e.options.clone(), e.origin.kargs.clone()));
    let first = job.options.kargs.clone();
    let (commit, computed) = job
        .cx
        .step(
            Step::DeriveCommit,
            job.store.run(job.cx, move |s, c| {
                let repo = s.repo();
                let hooks = apply::Hooks { install_links, sysusers: sysusers_conf };
                let derived = apply::commit(&repo, &base, &digest, layer.as_ref(), &wanted, hooks, Some(c))?;
                let (mut current, previous) = merge.unwrap_or_default();
                current.extend(first);
                let previous = previous.map(|p| Owned::from_json(&p)).transpose()?.unwrap_or_default();
                let vendor = vendor_kargs(&CommitTree::open(&repo, &derived.commit)?)?;
                Ok((derived.commit, kargs::compute(&current, &previous, &vendor, &wanted)?))
            }),
        )
        .await?;
    Ok(Derived {
        pulled,
        commit,
        manifest,
        kargs: computed.args,
        owned_kargs: computed.owned.to_json(),
        notes,
        without,
        released: None,
    })
}

/// Says what would be staged, for `--check` and `--dry-run`.
pub async fn describe(job: &Job<'_>, derived: &Derived, wanted: &Wanted) -> Result<JobResult> {
    let mut notes = Vec::new();
    let digest = derived.pulled.base.digest.clone();
    if job.before.next().and_then(|e| e.deployment.digest.as_ref()) != Some(&digest) {
        notes.push(format!("OS image: {digest}"));
    }
    if let Some(next) = job.before.next().cloned() {
        let manifest = derived.manifest.clone();
        let commit = derived.commit.clone();
        let lines = job.store.run(job.cx, move |s, _| {
            let repo = s.repo();
            let mut lines = changes(&repo, &next, &manifest)?.lines();
            let locks = [&next.deployment.checksum, &commit].map(|commit| packages::recorded(&repo, commit));
            let [before, now] = locks;
            if let Some(now) = now? {
                let layers = |name: &str| manifest.layers.iter().find(|l| l.image == name);
                let by = |name: &str| {
                    manifest.packages.asking(name).or_else(|| layers(name).map(|l| l.owner.clone()))
                };
                lines.extend(now.changes(before?.as_ref(), by).iter().map(LockChange::to_string));
            }
            Ok(lines)
        });
        notes.extend(lines.await?);
    }
    notes.extend(wanted.images.iter().map(|i| format!("bound image: {} {}", i.spec.reference, i.digest)));
    Ok(JobResult {
        changed: true,
        summary: "Changes are waiting; nothing was staged.".into(),
        digest: Some(digest),
        notes,
        ..Default::default()
    })
}

/// How the drop-ins of now differ from what the next boot was derived from.
#[derive(Debug, Default)]
pub struct Pending {
    /// For people.
    pub lines: Vec<String>,
    /// Requests to the package manager among them.
    pub unmet: Vec<Unmet>,
}

/// How the drop-ins of now differ from what the next boot was derived from. Wrong drop-ins are a line as well.
///
/// `edited` is the drop-in that the daemon is about to write.
pub fn pending(
    repo: &ostree::Repo,
    snapshot: &Snapshot,
    config: &Dir,
    edited: Option<Upcoming<'_>>,
) -> Pending {
    let Some(next) = snapshot.next() else { return Pending::default() };
    let compare = || {
        let tree = CommitTree::open(repo, &next.deployment.base_checksum)?;
        let mut manifest = read::read_edited(config, Some(&tree), edited)?;
        policy::check(config, Some(&tree), &manifest)?;
        if bound::any(&tree, Some(config))? {
            storage::declare(&tree, &mut manifest)?;
        }
        let differences = changes(repo, next, &manifest)?;
        let unmet = differences.list.iter().filter(|d| d.change == Verb::Added).filter_map(unmet);
        Ok(Pending { unmet: unmet.collect(), lines: differences.lines() })
    };
    compare().unwrap_or_else(|error: Error| {
        let line = format!("the drop-ins cannot be applied: {}", error.chain());
        Pending { lines: vec![line], unmet: Vec::new() }
    })
}

/// A request to the package manager that nothing has met yet.
fn unmet(difference: &Difference) -> Option<Unmet> {
    let asked = match difference.subject {
        Subject::Package => Asked::Install,
        Subject::RemovedPackage => Asked::Remove,
        Subject::ReplacedPackage => Asked::Replace,
        Subject::Extension => Asked::Extension,
        Subject::Layer => Asked::Layer,
        Subject::Path | Subject::Unit | Subject::User | Subject::Group => return None,
        Subject::KernelArgument | Subject::DeletedKernelArgument => return None,
    };
    Some(Unmet { request: difference.name.clone(), asked, owner: difference.drop_in.clone() })
}

fn changes(repo: &ostree::Repo, deployed: &Entry, manifest: &Manifest) -> Result<Differences> {
    if deployed.origin.input.is_none() && manifest.is_empty() {
        // An image that was built from a derived tree carries the record of that: it is not this host's.
        return Ok(Differences::default());
    }
    diff::compare(&CommitTree::open(repo, &deployed.deployment.checksum)?, manifest)
}

/// How what two deployed commits were derived from differs.
pub fn between(repo: &ostree::Repo, from: &str, to: &str) -> Result<Between> {
    let trees = (CommitTree::open(repo, from)?, CommitTree::open(repo, to)?);
    let declared = diff::between(&trees.0, &trees.1)?;
    let asking = Provenance::read(&trees.1)?.map(|p| p.packages).unwrap_or_default();
    let by = |name: &str| {
        let is_it = |request: &str| request == name || asks_for(request, name);
        let owners = asking.iter().filter(|(request, _)| is_it(request)).flat_map(|(_, r)| &r.drop_ins);
        let owners: BTreeSet<&str> = owners.map(String::as_str).collect();
        (!owners.is_empty()).then(|| owners.into_iter().collect::<Vec<_>>().join(", "))
    };
    let (was, now) = (packages::recorded(repo, from)?, packages::recorded(repo, to)?);
    let packages = match (&was, &now) {
        (_, Some(now)) => now.changes(was.as_ref(), by),
        (Some(was), None) => was.changes(None, by).into_iter().map(LockChange::undone).collect(),
        (None, None) => Vec::new(),
    };
    Ok(Between { declared, packages })
}

/// A pair of base and input that somebody rolled back from is not taken again by itself.
pub fn refuse_rejected(job: &Job<'_>, derived: &Derived) -> Result<()> {
    if job.options.allow_rejected {
        return Ok(());
    }
    let (digest, input) = (Some(&derived.pulled.base.digest), derived.input());
    let rejected = job.env.journal()?.rejected()?;
    match rejected.into_iter().find(|r| r.digest.as_ref() == digest && r.input_digest == input) {
        None => Ok(()),
        Some(r) => Err(Error::new(
            ErrorKind::Rejected,
            format!(
                "{} with these drop-ins was rejected before ({}); nothing was staged",
                derived.pulled.base.digest, r.reason
            ),
        )
        .hint("take it all the same with: osctl upgrade --allow-rejected")),
    }
}

/// Refuses what cannot work on this base or this host, before anything is written.
async fn possible(job: &Job<'_>, pulled: &Pulled, manifest: &Manifest) -> Result<()> {
    if manifest.is_empty() {
        return Ok(());
    }
    let (base, wanted) = (pulled.base.commit.clone(), manifest.clone());
    let root = job.before.merge().map(|m| job.env.deployment_root(m));
    let check = move |s: &ostree::Sysroot, _: &_| {
        possible::not_sealed(&CommitTree::open(&s.repo(), &base)?)?;
        root.map_or(Ok(()), |root| possible::ids_free(&root, &possible::declared(&wanted)))
    };
    job.store.run(job.cx, check).await
}

fn vendor_kargs(tree: &CommitTree) -> Result<Vec<kargs::VendorKarg>> {
    let mut all = Vec::new();
    for dir in VENDOR_KARGS {
        for name in tree.list(dir)?.iter().filter(|n| n.ends_with(".toml")) {
            let path = format!("{dir}/{name}");
            let Some(bytes) = tree.read(&path, KARGS_LIMIT)? else { continue };
            let text =
                String::from_utf8(bytes).kind(ErrorKind::InvalidArgument, format!("{path} is not UTF-8"))?;
            all.extend(kargs::parse_vendor(&path, &text, std::env::consts::ARCH)?);
        }
    }
    Ok(all)
}
