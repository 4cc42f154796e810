//! Serving the objects on one connection: before there is an engine, and with it.

use super::convert::details;
use super::{Authority, manager::Manager, path, publish};
use crate::engine::Handle;
use crate::model::job::Initiator;
use crate::model::request::Request;
use crate::model::status::Status;
use crate::model::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use zbus::connection::Builder;
use zbus::message::Header;

/// How long a reply may wait for its job's object to appear. The publisher needs milliseconds.
const APPEAR: Duration = Duration::from_secs(5);

/// What the bus shows. Written by [`publish`] only.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub status: Arc<Status>,
    pub generation: u64,
}

/// What all interface objects share.
#[derive(Debug)]
pub(super) struct Shared {
    authority: Authority,
    engine: watch::Sender<Option<Handle>>,
    pub published: watch::Sender<Published>,
}

impl Shared {
    /// The engine; calls that come before it is there wait for it.
    pub async fn engine(&self) -> Result<Handle> {
        let mut engine = self.engine.subscribe();
        let ready = engine.wait_for(Option::is_some).await;
        ready
            .ok()
            .and_then(|h| h.clone())
            .ok_or_else(|| Error::new(ErrorKind::Interrupted, "the daemon is shutting down"))
    }

    /// The latest status, if the engine has started.
    pub fn latest(&self) -> Arc<Status> {
        let engine = self.engine.borrow();
        engine.as_ref().map_or_else(|| self.published.borrow().status.clone(), Handle::status)
    }

    /// The latest status of which all deployments, bound images and jobs have their objects: whoever reads a name in it may call what
    /// has that name.
    pub async fn described(&self) -> Arc<Status> {
        let mut published = self.published.subscribe();
        let until = Instant::now() + APPEAR;
        loop {
            let status = self.latest();
            let shown = published.borrow_and_update().status.clone();
            let deployments = status.deployments.iter().all(|d| shown.deployment(&d.id).is_some());
            let jobs = status.jobs.iter().all(|job| shown.jobs.iter().any(|j| j.id == job.id));
            let bound = status.bound.iter().all(|b| shown.bound.iter().any(|s| s.id == b.id));
            if deployments && jobs && bound
                || tokio::time::timeout_at(until, published.changed()).await.is_err()
            {
                return status;
            }
        }
    }

    /// Authorises the caller for exactly these actions and returns who it is.
    pub async fn authorise(
        &self,
        connection: &zbus::Connection,
        call: &Header<'_>,
        actions: &[&str],
        details: &std::collections::HashMap<&'static str, String>,
    ) -> Result<u32> {
        let uid = self.uid(connection, call).await?;
        self.authority.require(connection, call, uid, actions, details).await?;
        Ok(uid)
    }

    /// The caller's uid.
    pub async fn uid(&self, connection: &zbus::Connection, call: &Header<'_>) -> Result<u32> {
        self.authority.uid(connection, call).await
    }

    /// Authorises, queues, and returns once the job's object is there. The engine sees nothing before that.
    pub async fn submit(
        &self,
        connection: &zbus::Connection,
        call: &Header<'_>,
        request: Request,
        client_id: String,
    ) -> Result<String> {
        let uid = self.authorise(connection, call, &request.actions(), &details(&request)).await?;
        let initiator = Initiator { client_id, uid, unit: String::new() };
        let job = self.engine().await?.submit(request, initiator).await?;
        let mut published = self.published.subscribe();
        let appeared = published.wait_for(|p| p.status.jobs.iter().any(|j| j.id == job.id));
        if tokio::time::timeout(APPEAR, appeared).await.is_err() {
            tracing::warn!(job = %job.id, "the engine accepted a job that it does not publish");
        }
        Ok(job.id)
    }
}

/// Our objects on one connection.
#[derive(Debug, Clone)]
pub struct Service {
    connection: zbus::Connection,
    shared: Arc<Shared>,
}

impl Service {
    /// Connects, and serves the Manager in state `initializing`. Calls that need the engine wait for
    /// [`Service::attach`].
    ///
    /// The objects go in through the builder: zbus starts its object server in a task of its own, and only
    /// the builder waits for that task before it reads the first message. A call that comes earlier would
    /// never be answered.
    pub async fn connect(builder: Builder<'_>, authority: Authority) -> zbus::Result<Service> {
        let status = Arc::new(Status::initializing());
        let shared = Arc::new(Shared {
            authority,
            engine: watch::Sender::new(None),
            published: watch::Sender::new(Published { status, generation: 0 }),
        });
        let builder = builder.serve_at(path::ROOT, zbus::fdo::ObjectManager)?;
        let connection = builder.serve_at(path::ROOT, Manager::new(shared.clone()))?.build().await?;
        Ok(Service { connection, shared })
    }

    /// The connection that we serve on.
    pub fn connection(&self) -> &zbus::Connection {
        &self.connection
    }

    /// Connects the engine: what it publishes appears on the bus until it ends.
    pub fn attach(&self, handle: Handle) {
        let publisher = publish::Publisher::new(self.connection.clone(), self.shared.clone(), handle.clone());
        tokio::spawn(publisher.run());
        self.shared.engine.send_replace(Some(handle));
    }

    /// Whether a job is queued or runs.
    pub fn busy(&self) -> bool {
        self.shared.latest().jobs.iter().any(|j| !j.state.is_final())
    }
}
