//! Where blobs lie until their layer is in the repository, and how they are read while they still grow.

use super::{Wanted, Word};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::pulse;
use crate::pull::types::{Report, Reporter};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Progress of a blob is told each time so much came in.
const TELL_EVERY: u64 = 1 << 20;

/// The spool of one pull, and what is known of its blobs.
pub(in crate::pull) struct Spool {
    dir: OwnedFd,
    blobs: Vec<Wanted>,
    states: Mutex<Vec<State>>,
    grown: Condvar,
    report: Reporter,
    /// What is transferred beside these blobs.
    total: u64,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spool").field("blobs", &self.blobs.len()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// How much is here, and may be read.
    here: u64,
    /// The most that was ever here: progress never goes back.
    most: u64,
    told: u64,
    end: Option<std::result::Result<(), Arc<Error>>>,
}

impl Spool {
    /// Prepares a directory for these blobs: what it has of others is removed. `owner` is who writes it.
    pub(in crate::pull) fn prepare(
        path: &Path,
        owner: Option<(u32, u32)>,
        blobs: Vec<Wanted>,
        report: Reporter,
    ) -> Result<Arc<Spool>> {
        let doing = || format!("preparing the spool {}", path.display());
        std::fs::create_dir_all(path).doing_with(doing)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let dir = rustix::fs::open(path, flags, Mode::empty()).doing_with(doing)?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o700)).doing_with(doing)?;
        let uid = match owner {
            Some((uid, gid)) => {
                std::os::unix::fs::fchown(&dir, Some(uid), Some(gid)).doing_with(doing)?;
                uid
            }
            None => rustix::process::geteuid().as_raw(),
        };
        for entry in std::fs::read_dir(path).doing_with(doing)? {
            let entry = entry.doing_with(doing)?;
            let wanted =
                blobs.iter().any(|blob| blob.digest.hex().as_bytes() == entry.file_name().as_encoded_bytes());
            let theirs =
                entry.metadata().is_ok_and(|m| m.is_file() && std::os::unix::fs::MetadataExt::uid(&m) == uid);
            if !wanted || !theirs {
                let kind = entry.file_type().doing_with(doing)?;
                let flags = if kind.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                rustix::fs::unlinkat(&dir, entry.file_name(), flags).doing_with(doing)?;
            }
        }
        let states = blobs.iter().map(|_| State::default()).collect();
        let total = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        Ok(Arc::new(Spool { dir, blobs, states: Mutex::new(states), grown: Condvar::new(), report, total }))
    }

    /// Another handle to the directory.
    pub(super) fn dir(&self) -> Result<OwnedFd> {
        self.dir.try_clone().doing("duplicating a directory handle")
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().expect("no holder of this lock panics")
    }

    /// Takes what the fetcher says.
    pub(super) fn hear(&self, word: Word) {
        pulse::tick();
        let mut states = self.states();
        // The fetcher is not trusted: it may name what there is not.
        match word {
            Word::Here { blob, bytes } => {
                let (Some(state), Some(wanted)) = (states.get_mut(blob), self.blobs.get(blob)) else {
                    return;
                };
                state.here = if wanted.exact { bytes.min(wanted.size) } else { bytes };
                state.most = state.most.max(state.here.min(wanted.size));
                if state.most - state.told >= TELL_EVERY
                    || state.most == wanted.size && state.told < state.most
                {
                    state.told = state.most;
                    self.tell(&states, blob);
                }
            }
            Word::Whole { blob } => {
                if let Some(state) = states.get_mut(blob) {
                    state.end = Some(Ok(()));
                }
            }
            Word::Failed { blob, error } => {
                if let Some(state) = states.get_mut(blob) {
                    state.end = Some(Err(Arc::new(error.into())));
                }
            }
            Word::Waiting { text } => (self.report)(Report::Note(text)),
            Word::Alive => {}
        }
        drop(states);
        self.grown.notify_all();
    }

    fn tell(&self, states: &[State], blob: usize) {
        let wanted = &self.blobs[blob];
        let part =
            Report::Part { name: wanted.digest.to_string(), done: states[blob].most, total: wanted.size };
        (self.report)(part);
        let done = states.iter().fold(0_u64, |sum, state| sum.saturating_add(state.told));
        (self.report)(Report::Bytes { done: done.min(self.total), total: self.total });
    }

    /// Ends every wait for what has not come.
    pub(super) fn close(&self) {
        self.fail(&Arc::new(Error::new(ErrorKind::Internal, "the fetcher has ended")));
    }

    /// Ends every wait with this error.
    pub(in crate::pull) fn fail(&self, error: &Arc<Error>) {
        for state in self.states().iter_mut().filter(|state| state.end.is_none()) {
            state.end = Some(Err(error.clone()));
        }
        self.grown.notify_all();
    }

    /// Forgets what is here of a blob, which is about to be fetched anew.
    pub(super) fn again(&self, blob: usize) -> Result<()> {
        self.remove(blob)?;
        let mut states = self.states();
        (states[blob].here, states[blob].end) = (0, None);
        Ok(())
    }

    /// Gives the space of a blob back.
    pub(in crate::pull) fn remove(&self, blob: usize) -> Result<()> {
        match rustix::fs::unlinkat(&self.dir, self.blobs[blob].digest.hex(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).doing("removing a blob from the spool"),
        }
    }

    /// A blob, to be read while it grows.
    pub(super) fn open(self: &Arc<Self>, blob: usize) -> Blob {
        Blob { spool: self.clone(), blob, file: None, at: 0 }
    }
}

/// A reader of a blob that waits for what has not come yet, and fails as the transfer does.
#[derive(Debug)]
pub(in crate::pull) struct Blob {
    spool: Arc<Spool>,
    blob: usize,
    file: Option<File>,
    at: u64,
}

impl Blob {
    /// Waits until there is more than was read, or the end.
    fn wait(&self) -> io::Result<u64> {
        let mut states = self.spool.states();
        loop {
            let state = &states[self.blob];
            if state.here > self.at {
                return Ok(state.here - self.at);
            }
            match &state.end {
                Some(Ok(())) => return Ok(0),
                // Every reader of it says the same.
                Some(Err(error)) => return Err(io::Error::other(error.again())),
                None => {}
            }
            states = self.spool.grown.wait(states).expect("no holder of this lock panics");
        }
    }
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let more = self.wait()?;
        let want = usize::try_from(more).unwrap_or(usize::MAX).min(buf.len());
        if want == 0 {
            return Ok(0);
        }
        let file = match &mut self.file {
            Some(file) => file,
            // It is there since the first byte was.
            none => none.insert(open_file(&self.spool.dir, self.spool.blobs[self.blob].digest.hex())?),
        };
        let n = file.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::Error::other("the spool has less than the fetcher said"));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Opens what somebody else wrote: never a link, never something that would block.
fn open_file(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("the spool has no such file")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::image::Digest;
    use crate::pull::wire::Failed;
    use std::io::Write;

    fn spool(dir: &Path, sizes: &[u64]) -> Arc<Spool> {
        let blobs = sizes.iter().map(|size| Wanted {
            digest: Digest::of(&size.to_le_bytes()),
            size: *size,
            exact: true,
            source: 0,
        });
        Spool::prepare(dir, None, blobs.collect(), Arc::new(|_| {})).unwrap()
    }

    #[test]
    fn a_blob_is_read_while_it_grows_and_ends_as_its_transfer_does() {
        let tmp = tempfile::tempdir().unwrap();
        let spool = spool(tmp.path(), &[6, 7]);
        let name = |blob: usize| tmp.path().join(spool.blobs[blob].digest.hex());
        let mut reader = spool.open(0);
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        std::fs::write(name(0), "abc").unwrap();
        spool.hear(Word::Here { blob: 0, bytes: 3 });
        // As a fetcher does: what is there is never taken back while somebody reads it.
        File::options().append(true).open(name(0)).unwrap().write_all(b"def").unwrap();
        spool.hear(Word::Here { blob: 0, bytes: 6 });
        spool.hear(Word::Whole { blob: 0 });
        assert_eq!(reading.join().unwrap().unwrap(), "abcdef");
        let error = Error::new(ErrorKind::RateLimited, "slow down").hint("wait");
        spool.hear(Word::Failed { blob: 1, error: Failed::from(error) });
        let failed = spool.open(1).read(&mut [0; 9]).unwrap_err().downcast::<Error>().unwrap();
        assert_eq!((failed.kind, failed.hint.as_deref()), (ErrorKind::RateLimited, Some("wait")));
    }

    #[test]
    fn only_files_of_wanted_blobs_are_kept_and_links_are_never_followed() {
        let tmp = tempfile::tempdir().unwrap();
        let first = spool(tmp.path(), &[6, 7]);
        let name = |blob: usize| tmp.path().join(first.blobs[blob].digest.hex());
        std::fs::write(name(0), "kept").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", name(1)).unwrap();
        std::fs::write(tmp.path().join("other"), "").unwrap();
        std::fs::create_dir(tmp.path().join("dir")).unwrap();
        let second = spool(tmp.path(), &[6, 7]);
        let names: Vec<_> = std::fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(names, [name(0)]);
        std::os::unix::fs::symlink("/etc/passwd", name(1)).unwrap();
        second.hear(Word::Here { blob: 1, bytes: 7 });
        assert!(second.open(1).read(&mut [0; 9]).is_err());
    }
}
