//! STAND-IN, not for merging: just enough of an engine to compile the D-Bus layer against.

use super::handle::Handle;
use crate::model::Result;
use crate::model::job::{Initiator, Job};
use crate::model::request::Request;
use crate::model::status::Status;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// What a handle asks of the engine.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Command {
    Submit { request: Request, initiator: Initiator, reply: oneshot::Sender<Result<Job>> },
    Cancel { id: String, reply: oneshot::Sender<Result<()>> },
    Reload { reply: oneshot::Sender<Result<()>> },
    Drain { reply: oneshot::Sender<()> },
}

/// What the engine works on.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Setup {
    pub sysroot: PathBuf,
    pub config_root: PathBuf,
    pub state_dir: Option<PathBuf>,
    pub failpoints: super::failpoint::Failpoints,
    pub environment: Vec<(String, String)>,
}

/// The engine.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Starts the engine.
    pub fn start(_setup: Setup) -> Handle {
        let (tx, mut rx) = mpsc::channel(8);
        let (status, watch) = watch::channel(Arc::new(Status::initializing()));
        tokio::spawn(async move {
            let _keep = status;
            while let Some(command) = rx.recv().await {
                if let Command::Drain { reply } = command {
                    let _ = reply.send(());
                }
            }
        });
        Handle::from_parts(tx, watch)
    }
}
