//! Children: started in a process group of their own, watched, and ended as a whole.

use crate::engine::cx::Cx;
use crate::model::{Context, Error, ErrorKind, Result};
use std::process::Stdio;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
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
        command.process_group(0).kill_on_drop(true);
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        Self::started(&name, command.spawn())
    }

    /// Starts the command so that it ends when we do, even by SIGKILL. Only the child itself, not its helpers.
    pub fn spawn_bound(mut command: Command) -> Result<Group> {
        command.process_group(0).kill_on_drop(true);
        end_with_this_thread(command.as_std_mut());
        let name = command.as_std().get_program().to_string_lossy().into_owned();
        Self::started(&name, spawn_from_lasting_thread(command))
    }

    fn started(name: &str, child: std::io::Result<Child>) -> Result<Group> {
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

/// Has the child of a command killed when the thread that starts it ends, however it does.
#[allow(unsafe_code)]
pub fn end_with_this_thread(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // Before the call above nobody would have told us.
        if rustix::process::getppid() != Some(parent) {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only what is async-signal-safe may run: these are two system calls, and neither
    // allocates, locks, or panics. The closure owns nothing but a number.
    unsafe { command.pre_exec(bind) };
}

/// Starts a command from a thread that lives as long as this process.
///
/// The kernel's "parent" of the death signal is the thread, and those of a runtime come and go.
fn spawn_from_lasting_thread(mut command: Command) -> std::io::Result<Child> {
    type Order = Box<dyn FnOnce() + Send>;
    static ORDERS: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        // If it cannot be started, the orders below fail.
        let thread = std::thread::Builder::new().name("spawner".into());
        let started = thread.spawn(move || orders.into_iter().for_each(|order| order()));
        if let Err(error) = started {
            tracing::error!(%error, "starting the thread that starts children");
        }
        sender
    });
    let (answer, answered) = mpsc::channel();
    let runtime = tokio::runtime::Handle::current();
    let order = move || {
        let _inside = runtime.enter();
        // Nobody waits any more only if the caller's thread died, and kill_on_drop then ends the child.
        drop(answer.send(command.spawn()));
    };
    let gone = |_| std::io::Error::other("the thread that starts children is gone");
    orders.send(Box::new(order)).map_err(|_| gone(mpsc::RecvError))?;
    answered.recv().map_err(gone)?
}

/// Runs a command to its end, or ends it when the job is cancelled or this process ends, however it does. A non-zero
/// exit is not an error here.
pub async fn run(cx: &Cx, mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null());
    finish(cx, command, &[]).await
}

/// As [`run`], with this on the standard input of the child. That it does not read it is not an error.
pub async fn run_with_input(cx: &Cx, mut command: Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::piped());
    finish(cx, command, input).await
}

/// As [`run`], in the namespaces of the calling thread: the command ends with that, or after this time.
pub async fn run_on_this_thread(cx: &Cx, mut command: Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    end_with_this_thread(command.as_std_mut());
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let group = Group::spawn(command)?;
    match tokio::time::timeout(limit, converse(cx, group, &name, &[])).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Error::new(ErrorKind::Internal, format!("{name} did not end within {} s", limit.as_secs())))
        }
    }
}

async fn finish(cx: &Cx, mut command: Command, input: &[u8]) -> Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    converse(cx, Group::spawn_bound(command)?, &name, input).await
}

async fn converse(cx: &Cx, mut group: Group, name: &str, input: &[u8]) -> Result<Output> {
    let stdin = group.child.stdin.take();
    let mut stdout = group.child.stdout.take().expect("stdout is piped");
    let mut stderr = group.child.stderr.take().expect("stderr is piped");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let finished = {
        let feed = async {
            match stdin {
                Some(mut stdin) => match stdin.write_all(input).await {
                    Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                    done => done,
                },
                None => Ok(()),
            }
        };
        let all = async {
            let (out, err) = (all_of(&mut stdout, &mut out), all_of(&mut stderr, &mut err));
            tokio::try_join!(feed, out, err, group.child.wait())
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
    let (_, _, _, status) = done.doing(format!("running {name}"))?;
    Ok(Output { success: status.success(), stdout: out, stderr: tail(&String::from_utf8_lossy(&err), 20) })
}

/// More than any program that we read has to say. One that goes on for ever must not fill our memory.
const MAX_OUTPUT: u64 = 256 << 20;

async fn all_of(from: &mut (impl tokio::io::AsyncRead + Unpin), to: &mut Vec<u8>) -> std::io::Result<()> {
    if from.take(MAX_OUTPUT).read_to_end(to).await? as u64 == MAX_OUTPUT {
        return Err(std::io::Error::other("it does not stop talking"));
    }
    Ok(())
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let last: Vec<&str> = text.lines().rev().take(lines).collect();
    last.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Kills our own process group: what a failpoint does to show that a crash at its place loses nothing.
pub fn kill_own_group() {
    let sent = rustix::process::kill_current_process_group(rustix::process::Signal::KILL);
    tracing::error!(?sent, "a kill failpoint did not kill");
}

/// Stops this process until it gets SIGCONT.
pub fn stop_self() -> crate::model::Result<()> {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::STOP).doing("stopping ourselves")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    #[ignore = "no test: the parent of the test below"]
    fn parent_entry() {
        // On a runtime with one thread, as a job has it, and a second child from another.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let script = "echo $$ >\"$0.new\" && mv \"$0.new\" \"$0\"; exec sleep 1000";
        runtime.block_on(async {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, &std::env::var("PID_FILE").unwrap()]);
            run(&Cx::detached(), command).await.unwrap();
        });
    }

    #[test]
    fn a_child_ends_with_a_parent_that_is_killed() {
        let tmp = tempfile::tempdir().unwrap();
        let pid_file = tmp.path().join("pid");
        let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sys::process::tests::parent_entry", "--ignored"])
            .env("PID_FILE", &pid_file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            let since = Instant::now();
            while !done() {
                assert!(since.elapsed() < Duration::from_secs(20), "{what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        wait("the child starts", &|| pid_file.exists());
        let child = std::fs::read_to_string(&pid_file).unwrap();
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            stat.contains(") ") && !stat.contains(") Z")
        };
        // It does not end with a thread of the runtime, or at once.
        std::thread::sleep(Duration::from_millis(300));
        assert!(runs());
        parent.kill().unwrap();
        parent.wait().unwrap();
        wait("the child ends", &|| !runs());
    }
}
