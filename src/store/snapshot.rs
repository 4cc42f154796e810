//! The deployments as readers see them, read without the lock.

use super::origin::{self, Origin};
use super::tree::CommitTree;
use crate::derive::provenance::{PackageRecord, Provenance, UnitRecord, UserRecord};
use crate::model::handover::Key;
use crate::model::kargs::{self, Owned};
use crate::model::status::{
    Deployment, Derivation, DropIn, OwnedKarg, OwnedPath, OwnedUnit, OwnedUser, PackageRequest,
};
use crate::model::text::printable;
use crate::model::{Context, Result};
use ostree_ext::{glib, ostree};
use std::collections::BTreeMap;

/// A deployment and what only the engine needs of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What everybody sees.
    pub deployment: Deployment,
    /// The decoded origin.
    pub origin: Origin,
    /// The kernel arguments of its boot entry.
    pub options: Vec<String>,
    /// Where it is checked out, relative to the sysroot.
    pub path: String,
    /// libostree's checksum over kernel, initramfs and device tree.
    pub bootcsum: String,
}

/// All deployments at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// In boot order, the staged one first.
    pub entries: Vec<Entry>,
    /// Whether this sysroot is the one that is booted.
    pub booted: bool,
}

impl Snapshot {
    /// The deployment that new ones are made from: the booted one, or the default of an unbooted sysroot.
    pub fn merge(&self) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|e| e.deployment.booted)
            .or_else(|| if self.booted { None } else { self.entries.first() })
    }

    /// The deployment that the bootloader takes, once the staged one, if there is one, is out of the way.
    pub fn default(&self) -> Option<&Entry> {
        self.entries.iter().find(|e| !e.deployment.staged)
    }

    /// The deployment that runs, or the one that will when a sysroot that is not booted is.
    pub fn runs(&self) -> Option<&Entry> {
        if self.booted { self.merge() } else { self.default() }
    }

    /// The newest deployment of the stateroot that is worked on: what the next boot takes, unless it is told otherwise.
    pub fn next(&self) -> Option<&Entry> {
        self.entries.iter().find(|e| self.ours(e))
    }

    fn ours(&self, entry: &Entry) -> bool {
        self.merge().is_some_and(|m| m.deployment.stateroot == entry.deployment.stateroot)
    }

    /// The staged deployment.
    pub fn staged(&self) -> Option<&Entry> {
        self.entries.iter().find(|e| e.deployment.staged)
    }

    /// Whether what is staged is the deployment with this id.
    pub fn staged_is(&self, id: Option<&str>) -> bool {
        self.staged().is_some_and(|staged| Some(staged.deployment.id.as_str()) == id)
    }

    /// Where `rollback` would go: the booted one if something newer waits, else the one behind it.
    pub fn rollback(&self) -> Option<&Entry> {
        let all: Vec<&Entry> = self.entries.iter().filter(|e| self.ours(e)).collect();
        match all.iter().position(|e| e.deployment.booted) {
            Some(at) if at > 0 => all.get(at).copied(),
            _ => all.get(1).copied(),
        }
    }
}

/// The stable id of a deployment.
pub fn id_of(d: &ostree::Deployment) -> String {
    format!("{}-{}.{}", d.osname(), d.csum(), d.deployserial())
}

/// Every key of the origin of the deployment with this id.
pub fn origin_keys(sysroot: &ostree::Sysroot, id: &str) -> Vec<Key> {
    let found = sysroot.deployments().into_iter().find(|d| id_of(d) == id);
    found.and_then(|d| d.origin()).map(|file| origin::keys(&file)).unwrap_or_default()
}

/// Reads all deployments.
pub fn read(sysroot: &ostree::Sysroot) -> Result<Snapshot> {
    let repo = sysroot.repo();
    let booted = sysroot.booted_deployment();
    let mut entries = Vec::new();
    for (index, d) in sysroot.deployments().iter().enumerate() {
        let is_booted = booted.as_ref().is_some_and(|b| b.equal(d));
        entries.push(entry(sysroot, &repo, d, u32::try_from(index).unwrap_or(u32::MAX), is_booted)?);
    }
    if let Some(first) = entries.iter_mut().find(|e| !e.deployment.staged) {
        first.deployment.default = true;
    }
    Ok(Snapshot { entries, booted: booted.is_some() })
}

fn entry(
    sysroot: &ostree::Sysroot,
    repo: &ostree::Repo,
    d: &ostree::Deployment,
    index: u32,
    booted: bool,
) -> Result<Entry> {
    let checksum = d.csum().to_string();
    let origin = d.origin().map(|o| Origin::read(&o)).unwrap_or_default();
    let options: Vec<String> = d
        .bootconfig()
        .and_then(|b| b.get("options"))
        .map(|o| kargs::split(&o).into_iter().filter(|a| !a.starts_with("ostree=")).collect())
        .unwrap_or_default();
    let commit = repo
        .load_commit(&checksum)
        .doing_with(|| format!("loading the commit of deployment {}", id_of(d)))?
        .0;
    let meta = glib::VariantDict::new(Some(&commit.child_value(0)));
    let base = origin.base.clone().unwrap_or_else(|| checksum.clone());
    let text = |key: &str| meta.lookup_value(key, None).and_then(|v| v.get::<String>());
    let mut incompatible = origin.unknown.clone();
    // What a newer osctl wrote must not keep anybody from reading the rest, or from rolling back.
    let derivation = derivation(repo, &checksum, &origin, &options).unwrap_or_else(|error| {
        incompatible.push(error.chain());
        Derivation::default()
    });
    let deployment = Deployment {
        id: id_of(d),
        index,
        stateroot: d.osname().to_string(),
        base_checksum: base.clone(),
        image: origin.image.clone(),
        digest: origin.digest.clone().or_else(|| text("ostree.manifest-digest").and_then(|s| s.parse().ok())),
        version: printable(&text("version").unwrap_or_default()),
        timestamp: ostree::commit_get_timestamp(&commit),
        booted,
        staged: d.is_staged(),
        default: false,
        pinned: d.is_pinned(),
        verification: origin.verification.clone(),
        derivation,
        bound_images: Default::default(),
        labels: labels(repo, &base),
        incompatible,
        checksum,
    };
    let path = sysroot.deployment_dirpath(d).to_string();
    Ok(Entry { deployment, origin, options, path, bootcsum: d.bootcsum().to_string() })
}

/// The provenance that deriving left in the commit.
fn derivation(
    repo: &ostree::Repo,
    checksum: &str,
    origin: &Origin,
    options: &[String],
) -> Result<Derivation> {
    let owners = origin.kargs.as_deref().map(Owned::from_json).transpose()?.unwrap_or_default();
    let owner = |arg: &String| {
        let ours = owners.appended.iter().find(|a| a.arg == *arg);
        ours.map_or_else(|| "local".to_owned(), |a| a.owner.clone())
    };
    let kargs = options.iter().map(|a| OwnedKarg { arg: a.clone(), owner: owner(a) }).collect();
    let deleted_kargs: Vec<OwnedKarg> =
        owners.deleted.iter().map(|d| OwnedKarg { arg: d.arg.clone(), owner: d.owner.clone() }).collect();
    let record = match &origin.input {
        Some(_) => Provenance::read(&CommitTree::open(repo, checksum)?)?,
        None => None,
    };
    let Some(record) = record else { return Ok(Derivation { kargs, deleted_kargs, ..Default::default() }) };
    Ok(Derivation {
        input_digest: Some(record.input_digest),
        drop_ins: record.drop_ins.into_iter().map(|d| DropIn { name: d.name, digest: d.digest }).collect(),
        packages: record.packages.into_iter().map(package).collect(),
        files: record
            .paths
            .into_iter()
            .map(|(path, p)| OwnedPath { path, owner: p.drop_in, effect: Some(p.effect) })
            .collect(),
        units: record.units.into_iter().map(unit).collect(),
        users: record.users.into_iter().map(user).collect(),
        groups: record.groups.into_iter().map(user).collect(),
        kargs,
        deleted_kargs,
        kept_local: origin.kept_local.clone(),
    })
}

fn package((request, record): (String, PackageRecord)) -> PackageRequest {
    PackageRequest {
        request,
        asked: record.asked,
        outcome: record.outcome,
        owners: record.drop_ins.into_iter().collect(),
        version: record.version,
    }
}

fn user((name, record): (String, UserRecord)) -> OwnedUser {
    OwnedUser { name, owner: record.drop_in }
}

fn unit((name, record): (String, UnitRecord)) -> OwnedUnit {
    let UnitRecord { drop_in: owner, enabled, mask, links } = record;
    OwnedUnit { name, owner, enabled, mask, links }
}

fn labels(repo: &ostree::Repo, base: &str) -> BTreeMap<String, String> {
    let config = repo.load_commit(base).ok().and_then(|(commit, _)| {
        let meta = glib::VariantDict::new(Some(&commit.child_value(0)));
        meta.lookup_value("ostree.container.image-config", None).and_then(|v| v.get::<String>())
    });
    // The image's own labels; a base that no image was pulled for has none.
    config
        .and_then(|c| serde_json::from_str::<serde_json::Value>(&c).ok())
        .and_then(|c| serde_json::from_value::<BTreeMap<String, String>>(c["config"]["Labels"].clone()).ok())
        .map(|labels| labels.iter().map(|(k, v)| (printable(k), printable(v))).collect())
        .unwrap_or_default()
}
