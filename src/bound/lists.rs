//! Writing the lists of the store, so that whoever reads them meanwhile sees whole ones, and notices.
//!
//! Nobody but us writes this store. podman may be told to look into it all the same: it takes the lock beside a list (fcntl(2),
//! of the whole file), and reads the list again if the content of the lock is another one.

use super::graph::Graph;
use crate::engine::cx::Cx;
use crate::model::image::Digest;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

/// How long somebody may read a list: it is a file of some kilobytes.
const PATIENCE: Duration = Duration::from_secs(20);

/// The lists of this kind, `images` or `layers`, which nobody reads or writes until this is dropped.
#[derive(Debug)]
pub(super) struct Locked<'a> {
    graph: Graph<'a>,
    kind: &'static str,
    lock: File,
}

impl<'a> Locked<'a> {
    /// Waits for the lock. Fails with `Busy` if somebody has it for long.
    pub fn wait(cx: &Cx, graph: Graph<'a>, kind: &'static str) -> Result<Locked<'a>> {
        let path = graph.list(kind, &format!("{kind}.lock"));
        let open =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let lock = open.doing_with(|| format!("opening {}", path.display()))?;
        let until = Instant::now() + PATIENCE;
        while let Err(error) = fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive) {
            cx.checkpoint()?;
            if !matches!(error, Errno::AGAIN | Errno::ACCESS) {
                return Err(error).doing_with(|| format!("locking {}", path.display()));
            }
            if Instant::now() >= until {
                let why = format!("somebody holds {}; the running system is unchanged", path.display());
                return Err(Error::new(ErrorKind::Busy, why));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Locked { graph, kind, lock })
    }

    /// Replaces the list, durably.
    pub fn write<T: Serialize>(&self, list: &[T]) -> Result<()> {
        let text = serde_json::to_vec(list).doing("encoding a list of the image store")?;
        let path = self.graph.list(self.kind, "");
        let dir = Dir::open_ambient_dir(&path, ambient_authority())
            .doing_with(|| format!("opening {}", path.display()))?;
        fs::write_atomic(&dir, format!("{}.json", self.kind), &text, 0o600)?;
        // As long as what containers-storage writes there.
        let said = self.lock.write_all_at(Digest::of(&text).hex().as_bytes(), 0);
        said.doing("telling the readers of the image store")
    }
}
