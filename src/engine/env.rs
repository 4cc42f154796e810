//! What the engine works on: the sysroot, the configuration, the journal; reading and recovering them.

use super::cx::Cx;
use super::journal::{History, Intent, Journal};
use super::settle;
use crate::bound;
use crate::derive::read;
use crate::model::bundle::Index;
use crate::model::config::Config;
use crate::model::difference::Between;
use crate::model::job::Job;
use crate::model::lock::Lock;
use crate::model::status::{Bound, Status};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::store::locked::Locked;
use crate::store::snapshot::{self, Entry, Snapshot};
use crate::store::sysroot::{self, Layout};
use crate::sys::auth;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Units of other updaters that would write deployments behind our back.
const RIVALS: [&str; 4] = [
    "rpm-ostreed-automatic.timer",
    "bootc-fetch-apply-updates.timer",
    "zincati.service",
    "eos-updater.timer",
];

/// What a build is handed in place of what a host has.
#[derive(Debug, Clone)]
pub struct Handed {
    /// The drop-ins.
    pub drop_ins: PathBuf,
    /// The lock.
    pub lock: Option<PathBuf>,
    /// Credentials for registries.
    pub auth_file: Option<PathBuf>,
}

/// A bundle that is served to this process and its children.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// What can be had.
    pub offered: Arc<Index>,
    /// A home, whose containers-registries.conf(5) says where it is.
    pub home: PathBuf,
    /// The containers-registries.d(5) that says where its signatures are.
    pub lookaside: PathBuf,
}

/// Where a host's administrator may hand in a lock.
const LOCK: &str = "/etc/osctl/derive.lock";

/// The engine's surroundings.
#[derive(Debug)]
pub struct Env {
    /// Where everything lies.
    pub layout: Layout,
    environment: Vec<(String, String)>,
    handed: Option<Handed>,
    /// Where images come from, if not from the network.
    bundle: Option<Bundle>,
    seen: Mutex<Option<(SystemTime, usize)>>,
}

impl Env {
    /// Opens nothing yet.
    pub fn new(layout: Layout, environment: Vec<(String, String)>) -> Env {
        Env { layout, environment, handed: None, bundle: None, seen: Mutex::new(None) }
    }

    /// The same, with what a build was handed.
    #[must_use]
    pub fn handed(self, handed: Handed) -> Env {
        Env { handed: Some(handed), ..self }
    }

    /// The same host, whose images come from a bundle.
    #[must_use]
    pub fn with_bundle(&self, bundle: Bundle) -> Env {
        let (handed, bundle) = (self.handed.clone(), Some(bundle));
        Env { handed, bundle, ..Env::new(self.layout.clone(), self.environment.clone()) }
    }

    /// What can be had, where images come from a bundle.
    pub fn offered(&self) -> Option<&Arc<Index>> {
        self.bundle.as_ref().map(|bundle| &bundle.offered)
    }

    /// The home that leads to a bundle.
    pub fn home(&self) -> Option<&PathBuf> {
        self.bundle.as_ref().map(|bundle| &bundle.home)
    }

    /// Where signatures lie; `None` for what the system says.
    pub fn lookaside(&self) -> Result<Option<PathBuf>> {
        Ok(match &self.bundle {
            Some(bundle) => Some(bundle.lookaside.clone()),
            None => auth::lookaside(&self.config_root()?),
        })
    }

    /// The drop-ins beside those of the target tree.
    pub fn drop_ins(&self) -> Result<read::Source> {
        match &self.handed {
            Some(handed) => read::Source::named(&handed.drop_ins),
            None => read::Source::host(&self.config_root()?),
        }
    }

    /// Whether this is about a host, and not about an image that somebody builds.
    pub fn hosts(&self) -> bool {
        self.handed.is_none()
    }

    /// The lock that somebody hands in, if there is one, by the name that he knows it by.
    pub fn handed_in_lock(&self) -> Result<(String, Option<Lock>)> {
        let (shown, text) = match &self.handed {
            Some(Handed { lock: Some(path), .. }) => (path.display().to_string(), std::fs::read(path)),
            Some(Handed { lock: None, .. }) => return Ok(("a lock".to_owned(), None)),
            None => (LOCK.to_owned(), self.config_root()?.read(LOCK.trim_start_matches('/'))),
        };
        let lock = match text {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            text => Some(Lock::parse(&shown, &text.doing_with(|| format!("reading {shown}"))?)?),
        };
        Ok((shown, lock))
    }

    /// The credentials for registries: the host's, and of a build also those of the person that builds.
    pub fn auth_file(&self) -> Result<Option<PathBuf>> {
        let host = auth::find_auth(&self.config_root()?, None);
        let Some(handed) = &self.handed else { return Ok(host) };
        // containers-auth.json(5), where `podman login` writes.
        let own = self.variable("XDG_RUNTIME_DIR").map(|dir| Path::new(dir).join("containers/auth.json"));
        let named = handed.auth_file.clone().or(self.variable("REGISTRY_AUTH_FILE").map(Into::into));
        Ok(named.or(host).or(own.filter(|path| path.is_file())))
    }

    /// A variable of the environment that the binary was started with.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// How skopeo is called for bound images.
    pub fn skopeo(&self) -> Result<bound::Skopeo> {
        let (root, tmp) = (self.config_root()?, self.layout.state.join("tmp"));
        let skopeo = bound::Skopeo::new(&root, &tmp, self.environment.iter().cloned())?;
        let logins = self.handed.as_ref().map(|_| self.auth_file()).transpose()?.flatten();
        Ok(skopeo
            .with_logins(logins)
            .with_lookaside(self.lookaside()?)
            .with_bundle(self.bundle.as_ref().map(|b| (b.offered.clone(), b.home.clone()))))
    }

    /// The store of bound images.
    pub fn bound_store(&self) -> Result<bound::Store> {
        bound::Store::open(&self.layout.sysroot, self.skopeo()?)
    }

    /// The journal in the state directory, which is made if it is missing.
    pub fn journal(&self) -> Result<Journal> {
        let path = &self.layout.state;
        let create = || -> std::io::Result<Dir> {
            std::fs::create_dir_all(path)?;
            Dir::open_ambient_dir(path, ambient_authority())
        };
        let dir =
            create().kind(ErrorKind::ReadOnly, format!("opening the state directory {}", path.display()))?;
        Ok(Journal::new(dir))
    }

    /// The journal for reading; `None` where nothing was ever written. Makes nothing: `/sysroot` may be read-only still.
    pub fn existing_journal(&self) -> Result<Option<Journal>> {
        let path = &self.layout.state;
        match Dir::open_ambient_dir(path, ambient_authority()) {
            Ok(dir) => Ok(Some(Journal::new(dir))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).doing_with(|| format!("opening the state directory {}", path.display())),
        }
    }

    /// The root whose `etc/osctl` is read.
    pub fn config_root(&self) -> Result<Dir> {
        let path = &self.layout.config_root;
        Dir::open_ambient_dir(path, ambient_authority())
            .doing_with(|| format!("opening the configuration root {}", path.display()))
    }

    /// The settings of `osctld.toml`, as they are now.
    pub fn config(&self) -> Result<Config> {
        super::config::read(&self.config_root()?)
    }

    /// The root of a deployment; `/` for the booted one, whose `/etc` is writable there.
    pub fn deployment_root(&self, entry: &Entry) -> PathBuf {
        if entry.deployment.booted {
            self.layout.sysroot.clone()
        } else {
            self.layout.sysroot.join(&entry.path)
        }
    }

    /// Whether somebody changed deployments or declarations since they were last read.
    pub fn changed(&self) -> bool {
        self.stamp() != *self.seen.lock().expect("no holder of this lock panics")
    }

    /// The newest change of the deployments, which libostree shows by touching their directory, and of what is declared.
    fn stamp(&self) -> Option<(SystemTime, usize)> {
        let modified = |path: &Path| std::fs::symlink_metadata(path).and_then(|m| m.modified()).ok();
        let mut newest = modified(&self.layout.sysroot.join("ostree/deploy"))?;
        let mut files = 0;
        // Where they cannot be listed, reading them says why.
        let settings = self.config_root().and_then(|root| super::config::files(&root)).unwrap_or_default();
        for found in settings.iter().filter_map(|file| modified(&self.layout.config_root.join(file))) {
            files += 1;
            newest = newest.max(found);
        }
        for dir in ["derive.d", "bound-images.d", "policy.d"] {
            let dir = self.layout.config_root.join("etc/osctl").join(dir);
            newest = newest.max(modified(&dir).unwrap_or(newest));
            for file in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                files += 1;
                newest = newest.max(modified(&file.path()).unwrap_or(newest));
            }
        }
        Some((newest, files))
    }

    /// Keeps a job's state on disk.
    pub async fn keep(&self, job: &Job) -> Result<()> {
        self.journal()?.keep(job)
    }

    /// Forgets a job's state.
    pub fn forget(&self, id: &str) -> Result<()> {
        self.journal()?.forget(id)
    }

    /// The jobs of earlier processes.
    pub fn history(&self, now: u64) -> Result<History> {
        self.existing_journal()?.map_or(Ok(History::default()), |journal| journal.history(now))
    }

    /// Finishes or undoes what a crash cut off, judges the last boot, and names the bound images of what runs.
    ///
    /// Waits for the sysroot's lock, where it can be cancelled. Returns what is wrong and keeps nobody from updating.
    pub async fn recover(&self, cx: &Cx, history: &History) -> Result<Vec<String>> {
        let before = snapshot::read(&sysroot::open(&self.layout.sysroot)?)?;
        // libostree makes /sysroot writable for this process when the lock is first taken.
        let locked = Locked::acquire(cx, &self.layout).await?;
        cx.commit()?;
        let journal = self.journal()?;
        // First of all, and whatever else goes wrong: what was made when the deployment was staged is whole.
        if let Some(error) = before.runs().and_then(|runs| self.present_bound(runs).err()) {
            tracing::error!(error = error.chain(), "showing the bound images");
        }
        let (now, booted_anew) = settle::leftovers(cx, self, &locked, &journal).await?;
        journal.tidy(history)?;
        let mut problems = Vec::new();
        if let Some(runs) = now.runs() {
            // After a boot, also into a rolled back deployment, the tags mean what it was staged with.
            let shown = self.show_bound(runs).err();
            problems.extend(shown.map(|e| format!("bound images of {}: {}", runs.deployment.id, e.chain())));
        }
        if booted_anew {
            let collected = self.collect_bound(cx, &journal, &now).await.err();
            problems.extend(collected.map(|e| format!("bound images are not collected: {}", e.chain())));
        }
        Ok(problems)
    }

    /// Removes the bound images that no deployment and no container of the administrator needs.
    pub async fn collect_bound(&self, cx: &Cx, journal: &Journal, now: &Snapshot) -> Result<()> {
        let keys: Vec<&str> = now.entries.iter().filter_map(|e| e.origin.bound_set.as_deref()).collect();
        let mut sets = Vec::new();
        for key in &keys {
            let set = bound::recorded(journal.dir(), key)?;
            // Unknown is not nothing: without its record a deployment may need any image of the store.
            let lost = || format!("the record bound/{key} is missing; no bound image was removed");
            sets.push(set.ok_or_else(|| Error::new(ErrorKind::Corrupt, lost()))?);
        }
        let store = self.bound_store()?;
        // Until everything is gone that shall go, no container can be made of it.
        let own = bound::Own::lock(cx, &self.layout.config_root).await?;
        let kept = own.uses(store.graph_root())?;
        for (key, set) in keys.iter().zip(&sets) {
            store.publish(key, set, &kept)?;
        }
        store.prune_views(&keys)?;
        sets.push(kept);
        bound::collect(cx, &store, &sets).await?;
        drop(own);
        bound::prune_records(journal.dir(), &keys)?;
        Ok(())
    }

    /// Lets podman find the bound set of the deployment that runs, and no other. Without a network.
    pub fn show_bound(&self, entry: &Entry) -> Result<()> {
        let Some(key) = &entry.origin.bound_set else { return Ok(()) };
        let Some(set) = bound::recorded(self.journal()?.dir(), key)? else {
            return Err(Error::new(ErrorKind::Corrupt, "the record of its bound images is missing")
                .hint("make it again with: osctl reconcile"));
        };
        let store = self.bound_store()?;
        let kept = bound::Own::at(&self.layout.config_root).uses(store.graph_root())?;
        store.publish(key, &set, &kept)?;
        self.present_bound(entry)
    }

    /// Lets podman find the view that a deployment has, if that is the one that runs.
    fn present_bound(&self, entry: &Entry) -> Result<()> {
        let Some(key) = entry.origin.bound_set.as_ref().filter(|_| entry.deployment.booted) else {
            return Ok(());
        };
        let view = self.bound_store()?.view(key);
        if !view.is_dir() {
            return Ok(());
        }
        if bound::present(&self.layout.shown(), &view)? {
            tracing::info!(set = key, "podman finds the bound images of this deployment");
        }
        bound::present_to_bootc(&self.layout.sysroot, &self.layout.shown())
    }

    /// The lock that the packages of a deployed commit were made with. Takes no lock of the sysroot.
    pub fn lock(&self, checksum: &str) -> Result<Option<Lock>> {
        let sysroot = sysroot::open(&self.layout.sysroot)?;
        super::steps::packages::recorded(&sysroot.repo(), checksum)
    }

    /// How what two deployed commits were derived from differs. Takes no lock of the sysroot.
    pub fn diff(&self, from: &str, to: &str) -> Result<Between> {
        let sysroot = sysroot::open(&self.layout.sysroot)?;
        super::steps::derive::between(&sysroot.repo(), from, to)
    }

    /// Reads everything that is shown. Takes no lock and writes nothing.
    pub async fn read(&self) -> Result<Status> {
        let stamp = self.stamp();
        let layout = self.layout.clone();
        let journal = self.existing_journal()?;
        let status = tokio::task::spawn_blocking(move || {
            let sysroot = sysroot::open(&layout.sysroot)?;
            let snapshot = snapshot::read(&sysroot)?;
            let mut status = assemble(&snapshot, journal.as_ref(), &layout)?;
            let config = Dir::open_ambient_dir(&layout.config_root, ambient_authority())
                .doing_with(|| format!("opening the configuration root {}", layout.config_root.display()))?;
            let pending = super::steps::derive::pending(&sysroot.repo(), &snapshot, &config, None);
            (status.pending_changes, status.unmet) = (pending.lines, pending.unmet);
            if layout.sysroot == Path::new("/") {
                status.rivals = rivals(&config);
            }
            // Whoever cannot be updated shall know before the next update.
            status.reasons.extend(super::config::read(&config).err().map(|e| e.chain()));
            Ok::<_, Error>(status)
        })
        .await
        .doing("reading the deployments")??;
        *self.seen.lock().expect("no holder of this lock panics") = stamp;
        Ok(status)
    }
}

fn assemble(snapshot: &Snapshot, journal: Option<&Journal>, layout: &Layout) -> Result<Status> {
    let mut status = Status { state: "idle".into(), ..Status::initializing() };
    if let Some(journal) = journal {
        status.rejected = journal.rejected()?;
        status.last_outcome = journal.outcome()?;
        let unavailable = journal.unavailable()?;
        status.reasons.extend(unavailable.map(|state| state.describe()));
        status.reasons.extend(journal.prefetch()?.map(|state| state.describe_prefetch()));
    }
    for entry in &snapshot.entries {
        let mut deployment = entry.deployment.clone();
        if let (Some(key), Some(journal)) = (&entry.origin.bound_set, journal) {
            match bound::recorded(journal.dir(), key) {
                Ok(set) => deployment.bound_images = set.unwrap_or_default(),
                Err(error) => status.reasons.push(error.chain()),
            }
        }
        status.deployments.push(deployment);
    }
    let sets: Vec<_> = status.deployments.iter().map(|d| (d.id.as_str(), &d.bound_images)).collect();
    status.bound = bound::conditions(&bound::state_dir(&layout.sysroot), &sets);
    status.reasons.extend(status.bound.iter().filter_map(Bound::complaint));
    status.booted = status.deployments.iter().find(|d| d.booted).map(|d| d.id.clone());
    status.staged = snapshot.staged().map(|e| e.deployment.id.clone());
    status.rollback = snapshot.rollback().map(|e| e.deployment.id.clone());
    Ok(status)
}

/// The id of this boot; the same for every process until the next boot.
///
/// It is the kernel's, and when pid 1 was started (the 22nd field of `/proc/pid/stat`, proc(5)): containers of one machine
/// can share the former, and every boot of one starts another pid 1.
pub fn boot_id() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let init = std::fs::read_to_string("/proc/1/stat").unwrap_or_default();
    // The name of the process, which may contain anything, ends with the last parenthesis.
    let fields = init.rsplit_once(')').map_or("", |(_, rest)| rest);
    format!("{}.{}", kernel.trim(), fields.split_whitespace().nth(19).unwrap_or_default())
}

/// An intent for this boot.
pub fn intent(
    job: &str,
    checksum: &str,
    digest: Option<crate::model::image::Digest>,
    before: &Snapshot,
) -> Intent {
    Intent {
        job: job.to_owned(),
        checksum: checksum.to_owned(),
        digest,
        boot_id: boot_id(),
        before: before.entries.iter().map(|e| e.deployment.id.clone()).collect(),
        rollback: None,
        accepts: None,
        staged: before.booted,
        takes: Vec::new(),
        carried: Vec::new(),
        etc_of: None,
        edited: None,
    }
}

/// What libostree left about a failed finalization (ostree-finalize-staged writes it, ostree-boot-complete removes it).
pub fn finalize_failure() -> Option<String> {
    std::fs::read_to_string("/boot/ostree/finalize-failure.stamp").ok()
}

fn rivals(config: &Dir) -> Vec<String> {
    let enabled = |unit: &str| {
        ["timers.target.wants", "multi-user.target.wants"]
            .iter()
            .any(|wants| config.symlink_metadata(format!("etc/systemd/system/{wants}/{unit}")).is_ok())
    };
    RIVALS.iter().filter(|u| enabled(u)).map(|u| (*u).to_owned()).collect()
}
