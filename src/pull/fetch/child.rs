//! The fetcher as a process of its own, under a user of its own.

use super::{Ask, Order, Spool, Word, http};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::wire::write_line;
use crate::pull::worker::Request;
use cap_std_ext::cap_std::fs::Dir;
use cap_std_ext::cmdext::CapStdExtCommandExt;
use rustix::fs::{Mode, OFlags};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};

/// The parent's side.
pub(super) struct Child {
    child: std::process::Child,
    stdin: Mutex<ChildStdin>,
}

impl Child {
    /// Starts this program once more, as it was started, with the order as its request. It is in our process group, so that
    /// whoever ends us ends it.
    pub(super) fn start(order: &Order, spool: Arc<Spool>) -> Result<Child> {
        let doing = "starting the process that fetches";
        let mut command = Command::new("/proc/self/exe");
        command.args(std::env::args_os().skip(1)).stdin(Stdio::piped()).stdout(Stdio::piped());
        // By handle: the way there may be closed to that user.
        command.cwd_dir(Dir::from_std_file(std::fs::File::from(spool.dir()?)));
        if let Some((uid, gid)) = crate::sys::user::fetcher() {
            command.uid(uid).gid(gid).env("HOME", "/nonexistent");
        }
        if order.sources.iter().flatten().all(|endpoint| endpoint.insecure) {
            // OpenSSL takes a tenth of a second to read the certificates that nothing is going to be verified with.
            command.env("SSL_CERT_FILE", "/dev/null");
        }
        let mut child = command.spawn().doing(doing)?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let stdout = child.stdout.take().expect("stdout is piped");
        write_line(&mut stdin, &Request::Fetch(order)).doing(doing)?;
        let thread = std::thread::Builder::new().name("fetcher".into());
        thread.spawn(move || listen(stdout, &spool)).doing(doing)?;
        Ok(Child { child, stdin: Mutex::new(stdin) })
    }

    /// Asks for something while it works.
    pub(super) fn ask(&self, ask: &Ask) -> Result<()> {
        let mut stdin = self.stdin.lock().expect("no holder of this lock panics");
        write_line(&mut *stdin, ask).doing("writing to the fetcher")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It has nothing to lose: what it wrote is in the spool.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::debug!(%error, "ending the fetcher");
        }
    }
}

fn listen(stdout: impl std::io::Read, spool: &Spool) {
    for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
        match serde_json::from_str::<Word>(&line) {
            Ok(word) => spool.hear(word),
            Err(error) => tracing::debug!(%error, "the fetcher said something else"),
        }
    }
    let ended =
        Error::new(ErrorKind::Internal, "the process that fetches ended; the running system is unchanged")
            .hint("what was fetched is kept: try again");
    spool.fail(&Arc::new(ended));
}

/// The fetcher itself. The directory that it is started in is the spool.
pub(in crate::pull) fn main(order: Order) -> ExitCode {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(spool) = rustix::fs::open(".", flags, Mode::empty()) else { return ExitCode::FAILURE };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::FAILURE;
    };
    let (ask, asked) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::result::Result::ok) {
            if let Ok(Ask::Again { blob }) = serde_json::from_str(&line) {
                let _ = ask.send(blob);
            }
        }
        // Nobody waits for us any more.
        std::process::exit(0);
    });
    let say = |word: Word| {
        if write_line(&mut std::io::stdout().lock(), &word).is_err() {
            std::process::exit(0);
        }
    };
    runtime.block_on(http::serve(order, spool, say, asked));
    ExitCode::SUCCESS
}
