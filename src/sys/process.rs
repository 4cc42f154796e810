//! Children: started in a process group of their own, watched, and ended as a whole.

use crate::engine::cx::Cx;
use crate::model::{Context, Error, ErrorKind, Result};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// How long a child may take to end after SIGTERM. Well within the 10 s that a cancelled job may last.
const GRACE: Duration = Duration::from_secs(3);

/// What a child said and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Whether it exited with 0.
    pub success: bool,
    /// Everything on standard output.
    pub stdout: Vec<u8>,
    /// The last part of standard error, for messages.
    pub stderr: String,
}

/// A child in its own process group that is killed with all its helpers when this is dropped.
#[derive(Debug)]
pub struct Group {
    /// The child itself.
    pub child: Child,
}

impl Group {
    /// Starts the command.
    pub fn spawn(mut command: Command) -> Result<Group> {
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).kill_on_drop(true).spawn();
        match child {
            Ok(child) => Ok(Group { child }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::new(ErrorKind::Unsupported, format!("{name} is not installed"))
                    .hint(format!("install the package that provides {name}")))
            }
            Err(e) => Err(e).doing(format!("starting {name}")),
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(pid) =
            self.child.id().and_then(|p| i32::try_from(p).ok()).and_then(rustix::process::Pid::from_raw)
        {
            // The group may be gone already, which is what we want.
            if let Err(error) = rustix::process::kill_process_group(pid, signal) {
                tracing::debug!(%error, "signalling a process group, ignored because it may have ended");
            }
        }
    }

    /// Ends the whole group: SIGTERM, then SIGKILL after a grace period.
    pub async fn end(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(rustix::process::Signal::KILL);
            if let Err(error) = self.child.wait().await {
                tracing::debug!(%error, "waiting for a killed child");
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::KILL);
    }
}

/// Runs a command to its end, or ends it when the job is cancelled. A non-zero exit is not an error here.
pub async fn run(cx: &Cx, mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let mut group = Group::spawn(command)?;
    let mut stdout = group.child.stdout.take().expect("stdout is piped");
    let mut stderr = group.child.stderr.take().expect("stderr is piped");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let finished = {
        let all = async {
            tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err), group.child.wait())
        };
        tokio::select! {
            done = all => Some(done),
            () = cx.cancelled() => None,
        }
    };
    let Some(done) = finished else {
        group.end().await;
        return Err(cx.checkpoint().err().unwrap_or_else(|| Error::new(ErrorKind::Cancelled, "cancelled")));
    };
    let (_, _, status) = done.doing(format!("running {name}"))?;
    let text = String::from_utf8_lossy(&err);
    let tail: Vec<&str> = text.lines().rev().take(20).collect();
    Ok(Output {
        success: status.success(),
        stdout: out,
        stderr: tail.into_iter().rev().collect::<Vec<_>>().join("\n"),
    })
}

/// Kills our own process group: what a failpoint does to show that a crash at its place loses nothing.
pub fn kill_own_group() {
    let sent = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
    tracing::error!(?sent, "a kill failpoint did not kill");
}
