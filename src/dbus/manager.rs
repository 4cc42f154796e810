//! `org.osctl1.Manager`.

use super::convert::{self, Dict, Out, Verb, decode};
use super::error::Result;
use super::path;
use super::service::Shared;
use crate::model::job::State;
use crate::model::request::{Handed, Request};
use crate::model::status::Status;
use crate::model::{Context, Error, ErrorKind};
use std::collections::HashMap;
use std::sync::Arc;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedFd, OwnedObjectPath, Value};

/// What this version can do, for clients that meet several.
const FEATURES: &[&str] = &[
    "reconcile",
    "plan",
    "bound-images",
    "rollback-reject",
    "pin",
    "edit",
    "adopt",
    "release",
    "diff",
    "verify-bound",
    "import-bundle",
];

/// The root object's interface.
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Shared>,
}

impl Manager {
    pub(super) fn new(shared: Arc<Shared>) -> Manager {
        Manager { shared }
    }

    fn status(&self) -> Arc<Status> {
        self.shared.published.borrow().status.clone()
    }

    async fn submit(
        &self,
        connection: &zbus::Connection,
        call: &Header<'_>,
        request: Request,
        client_id: String,
    ) -> Result<OwnedObjectPath> {
        Ok(path::job(&self.shared.submit(connection, call, request, client_id).await?))
    }
}

#[zbus::interface(name = "org.osctl1.Manager")]
impl Manager {
    /// Looks for a newer image; downloads nothing.
    #[zbus(out_args("job"))]
    async fn check(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Check, &options)?;
        self.submit(connection, &call, Request::Check(d.options), d.client_id).await
    }

    /// Says what a request would bring and take; downloads nothing. Keys: `verb s` (`upgrade`, `rebase` or `reconcile`),
    /// `image s` of a rebase, and the options of that verb.
    #[zbus(out_args("job"))]
    async fn plan(
        &self,
        request: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (goal, d) = convert::decode_plan(request)?;
        self.submit(connection, &call, Request::Plan { goal, options: d.options }, d.client_id).await
    }

    /// Moves to the newest image of the tracked reference, with the current drop-ins.
    #[zbus(out_args("job"))]
    async fn upgrade(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Upgrade, &options)?;
        self.submit(connection, &call, Request::Upgrade(d.options), d.client_id).await
    }

    /// Moves to another image reference, with the current drop-ins.
    #[zbus(out_args("job"))]
    async fn rebase(
        &self,
        image: String,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Rebase, &options)?;
        let request = Request::Rebase { image: convert::image(&image)?, options: d.options };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// Upgrades, or moves to another image reference, with images from a bundle and none from the network: an OCI layout, as an
    /// open directory or an open tar file that is not compressed. Every image keeps its name: policy and signatures are those of
    /// its registry. Options: `image s`, the reference to move to, which must be in the bundle (default: the tracked one), and
    /// those of `Rebase`.
    #[zbus(out_args("job"))]
    async fn import_bundle(
        &self,
        bundle: OwnedFd,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::ImportBundle, &options)?;
        let bundle = Handed::new(bundle.into());
        let request = Request::ImportBundle { bundle, image: d.image, options: d.options };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// Applies the current drop-ins to the base that is here.
    #[zbus(out_args("job"))]
    async fn reconcile(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Reconcile, &options)?;
        self.submit(connection, &call, Request::Reconcile(d.options), d.client_id).await
    }

    /// Changes what `/etc/osctl/derive.d/90-osctl.yaml` declares, and reconciles: the file is written when the deployment is
    /// there, and left alone by a job that fails. Keys, each `as`: `install`, `uninstall`, `override-remove`,
    /// `override-replace`, `override-reset`, `kargs-append`, `kargs-append-if-missing`, `kargs-delete`,
    /// `kargs-delete-if-present`, `kargs-replace`; `override-reset-all b`, `idempotent b`; and the options `queue`, `dry-run`,
    /// `replace-staged`, `allow-rejected`.
    #[zbus(out_args("job"))]
    async fn edit_derivation(
        &self,
        edit: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (edit, d) = convert::decode_edit(edit)?;
        let request = Request::EditDerivation { edit, options: d.options };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// Takes over a host that rpm-ostree or bootc manages: the same base, with what their origin asks for as the drop-in
    /// `50-adopted.yaml`, which is written when the deployment is there. Options: `queue`, `dry-run`, `lossy` (do without what
    /// osctl cannot express), `replace-staged`, `allow-rejected`. `Job.Result` has `handover s`: JSON, docs/handover.schema.json.
    #[zbus(out_args("job"))]
    async fn adopt(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Adopt, &options)?;
        self.submit(connection, &call, Request::Adopt(d.options), d.client_id).await
    }

    /// Hands the host back: the base without what was derived, with an origin of another tool. Options: `to s` (`rpm-ostree` or
    /// `bootc`; without it the only one that the image has), `queue`, `dry-run`, `lossy` (do without what that tool cannot
    /// express), `replace-staged`. `Job.Result` has `handover s`, as with `Adopt`.
    #[zbus(out_args("job"))]
    async fn release(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Release, &options)?;
        let request = Request::Release { to: d.to, options: d.options };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// Makes the previous deployment the next boot's.
    #[zbus(out_args("job"))]
    async fn rollback(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::Rollback, &options)?;
        let request = Request::Rollback { reject: d.reject.unwrap_or(true) };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// Checks stored content against its digests, and repairs what is damaged. `what`: `bound`, the bound images of all
    /// deployments: every file of every layer is read, and what is damaged is fetched again by digest. Options: `queue`,
    /// `dry-run` (only report). `Job.Result` has `verified s`: JSON with `images`, each with `reference`, `digest`, `outcome`
    /// (`whole`, `repaired`, `missing` or `damaged`), `damage` and `failure`, of a job that fails as well. Something that stays
    /// damaged is the error `BoundImageFailed`, of a dry run `Corrupt`.
    #[zbus(out_args("job"))]
    async fn verify(
        &self,
        what: Vec<String>,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let (what, d) = (convert::subjects(&what)?, decode(Verb::Verify, &options)?);
        let request = Request::Verify { what, options: d.options };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// Fetches what is missing of the bound images of all deployments, by digest. Options: `queue`, `dry-run`.
    #[zbus(out_args("job"))]
    async fn pull_bound(
        &self,
        options: Dict,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<OwnedObjectPath> {
        let d = decode(Verb::PullBound, &options)?;
        let request = Request::PullBound { only: None, options: d.options };
        self.submit(connection, &call, request, d.client_id).await
    }

    /// The whole state as JSON: what `osctl status --json` prints.
    #[zbus(out_args("json"))]
    async fn describe(&self) -> Result<String> {
        let text = serde_json::to_string(&*self.shared.described().await);
        Ok(text.kind(ErrorKind::Internal, "writing the status as JSON")?)
    }

    /// How what two deployments were derived from differs, for people. `declared aa{sv}`: `subject s`, `name s`, `change s` (`added`,
    /// `removed` or `changed`), `drop-in s`. `packages aa{sv}`, what requests came to: `what s` (`package`, `of-base` or `image`),
    /// `name s`, `from s` and `to s` (versions or digests; absent where there is none), `by s` where a drop-in asks for it.
    #[zbus(out_args("differences"))]
    async fn diff(&self, from: ObjectPath<'_>, to: ObjectPath<'_>) -> Result<Out> {
        let checksum = |path: &ObjectPath<'_>| -> crate::model::Result<String> {
            let status = self.status();
            let found = path::deployment_id(path.as_str()).and_then(|id| status.deployment(&id).cloned());
            found.map(|d| d.checksum).ok_or_else(|| {
                // Not by its path, which may be of any length.
                Error::new(ErrorKind::InvalidArgument, "there is no deployment with this path")
                    .hint("ObjectManager lists them")
            })
        };
        let (from, to) = (checksum(&from)?, checksum(&to)?);
        Ok(convert::between(&self.shared.engine().await?.diff(&from, &to).await?))
    }

    /// The jobs, newest first. Filter: `active b`.
    #[zbus(out_args("jobs"))]
    async fn list_jobs(&self, filter: Dict) -> Result<Vec<OwnedObjectPath>> {
        let active = decode(Verb::ListJobs, &filter)?.active;
        let status = self.status();
        let jobs = status.jobs.iter().filter(|j| active.is_none_or(|a| a != j.state.is_final()));
        Ok(jobs.map(|j| path::job(&j.id)).collect())
    }

    /// Reads the sysroot and the drop-ins again.
    async fn reload(
        &self,
        #[zbus(connection)] connection: &zbus::Connection,
        #[zbus(header)] call: Header<'_>,
    ) -> Result<()> {
        let details = HashMap::from([("verb", "reload".to_owned())]);
        self.shared.authorise(connection, &call, &["org.osctl1.manage"], &details).await?;
        Ok(self.shared.engine().await?.reload().await?)
    }

    /// The version of the daemon.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    /// The version of this interface.
    #[zbus(property(emits_changed_signal = "const"))]
    fn api_version(&self) -> u32 {
        1
    }

    /// What this daemon can do.
    #[zbus(property(emits_changed_signal = "const"))]
    fn features(&self) -> Vec<String> {
        FEATURES.iter().map(|f| (*f).to_owned()).collect()
    }

    /// `initializing`, `idle`, `busy`, `degraded` or `read-only`.
    #[zbus(property)]
    fn state(&self) -> String {
        self.status().state.clone()
    }

    /// Why the state is degraded or read-only.
    #[zbus(property)]
    fn degraded_reasons(&self) -> Vec<Out> {
        let one = |r: &String| Out::from([("message".to_owned(), Value::from(r.clone()))]);
        self.status().reasons.iter().map(one).collect()
    }

    /// The booted deployment, or `/`.
    #[zbus(property)]
    fn booted(&self) -> OwnedObjectPath {
        path::deployment_or_none(self.status().booted.as_deref())
    }

    /// What the bootloader takes by default, or `/`.
    #[zbus(property)]
    fn default(&self) -> OwnedObjectPath {
        let status = self.status();
        let default = status.deployments.iter().find(|d| d.default);
        path::deployment_or_none(default.map(|d| d.id.as_str()))
    }

    /// The staged deployment, or `/`.
    #[zbus(property)]
    fn staged(&self) -> OwnedObjectPath {
        path::deployment_or_none(self.status().staged.as_deref())
    }

    /// Where `Rollback` would go, or `/`.
    // The method has the plain name in Rust.
    #[zbus(property, name = "Rollback")]
    fn rollback_target(&self) -> OwnedObjectPath {
        path::deployment_or_none(self.status().rollback.as_deref())
    }

    /// The running job, or `/`.
    #[zbus(property)]
    fn active_job(&self) -> OwnedObjectPath {
        let status = self.status();
        let running = |s: State| matches!(s, State::Running | State::Cancelling);
        status.jobs.iter().find(|j| running(j.state)).map_or_else(path::none, |j| path::job(&j.id))
    }

    /// The waiting jobs, the next one first.
    #[zbus(property)]
    fn queued_jobs(&self) -> Vec<OwnedObjectPath> {
        let status = self.status();
        let queued = status.jobs.iter().rev().filter(|j| j.state == State::Queued);
        queued.map(|j| path::job(&j.id)).collect()
    }

    /// `none` or `full`.
    #[zbus(property)]
    fn reboot_needed(&self) -> String {
        if self.status().reboot_needed() { "full" } else { "none" }.to_owned()
    }

    /// What the last boot into a new deployment came to; empty if there was none.
    #[zbus(property)]
    fn last_outcome(&self) -> Out {
        convert::outcome(self.status().last_outcome.as_ref())
    }

    /// Grows with every change of the state; progress of a job is none.
    #[zbus(property)]
    fn generation(&self) -> u64 {
        self.shared.published.borrow().generation
    }

    /// A job came.
    #[zbus(signal)]
    pub(super) async fn job_added(emitter: &SignalEmitter<'_>, job: OwnedObjectPath) -> zbus::Result<()>;

    /// A job's object is gone: its history was cut.
    #[zbus(signal)]
    pub(super) async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: &str,
        job: OwnedObjectPath,
        outcome: &str,
        error: &str,
    ) -> zbus::Result<()>;

    /// Deployments came, went or changed their place.
    #[zbus(signal)]
    pub(super) async fn deployments_changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}
