//! Package files, kept by their digest: what makes the same tree again when its repositories are gone.

use crate::model::image::Digest;
use crate::model::lock::LockedPackage;
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use sha2::Digest as _;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// More than any package has.
const MAX_PACKAGE: u64 = 16 << 30;

/// A directory of package files.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// In this directory, which is made when the first package comes.
    pub fn at(dir: PathBuf) -> Cache {
        Cache { dir }
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Whether the package is here. What is here had its digest when it came.
    pub fn has(&self, package: &LockedPackage) -> bool {
        std::fs::metadata(self.path(&package.digest)).is_ok_and(|m| m.len() == package.size)
    }

    /// The packages that are not here.
    pub fn missing<'p>(&self, packages: &'p [LockedPackage]) -> Vec<&'p LockedPackage> {
        packages.iter().filter(|package| !self.has(package)).collect()
    }

    /// Takes a file that somebody without rights fetched into `dir`, if it is the package.
    pub fn take(&self, package: &LockedPackage, dir: &Dir, name: &str) -> Result<()> {
        let file = open(dir, name).doing_with(|| format!("opening the package {}", package.describe()))?;
        self.keep(package, file)
    }

    /// Takes what is read, if it is the package.
    pub fn keep(&self, package: &LockedPackage, file: impl Read) -> Result<()> {
        let doing = || format!("keeping the package {}", package.describe());
        std::fs::create_dir_all(&self.dir).doing_with(doing)?;
        let mut to = tempfile::NamedTempFile::new_in(&self.dir).doing_with(doing)?;
        let found = copy(&mut file.take(package.size + 1), to.as_file_mut()).doing_with(doing)?;
        check(package, &found)?;
        to.as_file().sync_all().doing_with(doing)?;
        to.persist(self.path(&package.digest)).doing_with(doing)?;
        Ok(())
    }

    /// Puts a copy of a package into a directory of ours, looking once more whether it is what it should be.
    pub fn copy(&self, package: &LockedPackage, to: &Path) -> Result<()> {
        let doing = || format!("providing the package {}", package.describe());
        let from = self.path(&package.digest);
        let mut file = File::open(&from).doing_with(doing)?;
        match std::fs::remove_file(to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).doing_with(doing),
            _ => {}
        }
        let mut out = File::options().write(true).create_new(true).open(to).doing_with(doing)?;
        // Whoever solves without rights reads it; there is nothing secret in a package.
        out.set_permissions(std::fs::Permissions::from_mode(0o644)).doing_with(doing)?;
        let found = copy(&mut file, &mut out).doing_with(doing)?;
        if let Err(error) = check(package, &found) {
            // The next job fetches it again.
            std::fs::remove_file(&from).doing_with(doing)?;
            return Err(error);
        }
        Ok(())
    }

    /// Removes what is in no lock that counts.
    pub fn keep_only(&self, needed: &BTreeSet<Digest>) -> Result<u32> {
        let doing = || format!("cleaning up {}", self.dir.display());
        let names: BTreeSet<&str> = needed.iter().map(Digest::hex).collect();
        let entries = match std::fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries.doing_with(doing)?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry.doing_with(doing)?;
            if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                std::fs::remove_file(entry.path()).doing_with(doing)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Opens a file that somebody without rights put there: nothing is followed, nothing waited for, and it is a file.
pub(super) fn open(dir: &Dir, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = dir.open_with(name, &options)?.into_std();
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no file")) }
}

/// Reads a file that somebody without rights put there, if it is not larger than `limit`.
pub(super) fn read(dir: &Dir, name: &str, limit: u64) -> Result<Vec<u8>> {
    let doing = || format!("reading {name}");
    let mut bytes = Vec::new();
    open(dir, name).doing_with(doing)?.take(limit + 1).read_to_end(&mut bytes).doing_with(doing)?;
    match bytes.len() as u64 > limit {
        true => {
            Err(Error::new(ErrorKind::Unsupported, format!("{}: it is larger than {limit} bytes", doing())))
        }
        false => Ok(bytes),
    }
}

/// The digest and the size of a file that somebody without rights put there.
pub(super) fn digest(dir: &Dir, name: &str) -> Result<(Digest, u64)> {
    let doing = || format!("reading {name}");
    digest_of(open(dir, name).doing_with(doing)?.take(MAX_PACKAGE)).doing_with(doing)
}

/// The digest and the size of a file.
pub(in crate::derive) fn digest_of(mut file: impl Read) -> io::Result<(Digest, u64)> {
    copy(&mut file, &mut io::sink())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<(Digest, u64)> {
    let (mut hash, mut size, mut buffer) = (sha2::Sha256::new(), 0, vec![0; 256 << 10]);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok((Digest::finished(hash), size)),
            Ok(n) => {
                hash.update(&buffer[..n]);
                size += n as u64;
                to.write_all(&buffer[..n])?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn check(package: &LockedPackage, (digest, size): &(Digest, u64)) -> Result<()> {
    if *digest == package.digest && *size == package.size {
        return Ok(());
    }
    let what =
        format!("the file of {} is not the one that was promised; nothing was staged", package.describe());
    Err(Error::new(ErrorKind::DigestMismatch, what)
        .detail("expected", &package.digest)
        .detail("found", digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(content: &[u8]) -> LockedPackage {
        LockedPackage {
            name: "a".into(),
            version: "1".into(),
            architecture: "all".into(),
            digest: Digest::of(content),
            size: content.len() as u64,
            source: String::new(),
        }
    }

    #[test]
    fn only_what_has_its_digest_comes_in_and_goes_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let (file, wanted) = (dir.path().join("file"), package(b"content"));
        let open = Dir::open_ambient_dir(dir.path(), cap_std_ext::cap_std::ambient_authority()).unwrap();
        for wrong in [&b"contenT"[..], b"conten", b"contentt", b""] {
            std::fs::write(&file, wrong).unwrap();
            assert_eq!(cache.take(&wanted, &open, "file").unwrap_err().kind, ErrorKind::DigestMismatch);
            assert!(!cache.has(&wanted));
        }
        std::fs::write(&file, "content").unwrap();
        std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("dir")).unwrap();
        for strange in ["link", "dir", "missing"] {
            assert!(cache.take(&wanted, &open, strange).is_err(), "{strange}");
        }
        cache.take(&wanted, &open, "file").unwrap();
        // Twice to the same place, as by a job that solves twice: what is kept stays what it is.
        for _ in 0..2 {
            cache.copy(&wanted, &dir.path().join("out")).unwrap();
            assert_eq!(std::fs::read(dir.path().join("out")).unwrap(), b"content");
            assert_eq!(std::fs::read(cache.path(&wanted.digest)).unwrap(), b"content");
        }
        // Damaged since then, with the same length.
        std::fs::write(cache.path(&wanted.digest), "CONTENT").unwrap();
        assert_eq!(cache.copy(&wanted, &dir.path().join("2")).unwrap_err().kind, ErrorKind::DigestMismatch);
        assert_eq!(cache.missing(std::slice::from_ref(&wanted)), [&wanted], "it is fetched again");
        cache.take(&wanted, &open, "file").unwrap();
        assert_eq!(cache.keep_only(&BTreeSet::from([wanted.digest.clone()])).unwrap(), 0);
        assert_eq!(cache.keep_only(&BTreeSet::new()).unwrap(), 1);
        assert!(!cache.has(&wanted));
    }
}
