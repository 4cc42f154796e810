//! A bundle as it is written: a directory in OCI layout, which can then become a tar file.
//!
//! A new one names no image in its index while it is not complete, so that nobody takes it for one; one that is made anew stays
//! what it was until then. What is in it already is kept for the next attempt.

use crate::model::bundle::Index;
use crate::model::image::Digest;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::fs::remove_whole;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BLOBS: &str = "blobs/sha256";
const INDEX: &str = "index.json";
const LAYOUT: (&str, &str) = ("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}\n");
/// The ending of a file that is not whole.
const PART: &str = "part";

/// A bundle that is being made.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
}

impl Draft {
    /// Begins in a directory that is not there, is empty, or has a bundle of ours, whole or not.
    ///
    /// A bundle that is there stays one until [`Draft::finish`]. Its blobs are compared with their digests: of one that was cut
    /// off by a power cut, they may be anything. Blocks.
    pub fn open(dir: &Path) -> Result<Draft> {
        let doing = || format!("preparing {}", dir.display());
        let draft = Draft { dir: dir.to_owned() };
        let index = match fs::read(dir.join(INDEX)) {
            Ok(text) => Some(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            // It may be a file, or on the way there is one.
            Err(e) => return Err(e).kind(ErrorKind::InvalidArgument, doing()),
        };
        let ours = match &index {
            Some(text) => Index::is_ours(text),
            None => is_begun(dir).doing_with(doing)?,
        };
        if !ours {
            let why = format!("{} has something in it that is no bundle; nothing was written", dir.display());
            return Err(Error::new(ErrorKind::InvalidArgument, why).hint("name an empty or a new directory"));
        }
        fs::create_dir_all(draft.blobs()).doing_with(doing)?;
        draft.compare().doing_with(doing)?;
        if index.is_none() {
            draft.write(INDEX, Index::default().text().as_bytes())?;
        }
        draft.write(LAYOUT.0, LAYOUT.1.as_bytes())?;
        Ok(draft)
    }

    /// Removes what does not have the digest that is its name.
    fn compare(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.blobs())? {
            let entry = entry?;
            let mut hash = Hash { to: io::sink(), hash: Default::default() };
            if entry.file_type()?.is_file() {
                io::copy(&mut File::open(entry.path())?, &mut hash)?;
            }
            if *Digest::finished(hash.hash).hex() != *entry.file_name() {
                remove_whole(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Where the blobs are, each by its digits.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join(BLOBS)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// Whether it has this blob.
    pub fn has(&self, digest: &Digest, size: u64) -> bool {
        fs::symlink_metadata(self.blob(digest)).is_ok_and(|meta| meta.is_file() && meta.len() == size)
    }

    /// Takes a blob from a spool, where whoever fetched it can write: never through a link, and compared once more. Blocks.
    pub fn take(&self, spool: &Path, digest: &Digest) -> Result<()> {
        let doing = || format!("putting {digest} into the bundle");
        let from = spool.join(digest.hex());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut from_file = File::from(rustix::fs::open(&from, flags, Mode::empty()).doing_with(doing)?);
        let part = self.blob(digest).with_extension(PART);
        let to = fresh(&part).doing_with(doing)?;
        let mut hash = Hash { to, hash: Default::default() };
        io::copy(&mut from_file, &mut hash).doing_with(doing)?;
        if Digest::finished(hash.hash) != *digest {
            return Err(Error::new(ErrorKind::DigestMismatch, format!("{} was changed", from.display())));
        }
        fs::rename(&part, self.blob(digest)).doing_with(doing)?;
        remove_whole(&from).doing_with(doing)
    }

    /// Adds a document.
    pub fn put(&self, document: &[u8]) -> Result<Digest> {
        let digest = Digest::of(document);
        self.write(&format!("{BLOBS}/{}", digest.hex()), document)?;
        Ok(digest)
    }

    /// Makes it a bundle of these images, durably: nothing else stays in it. Returns the bytes of all blobs.
    pub fn finish(&self, index: &Index, blobs: &BTreeSet<Digest>) -> Result<u64> {
        let doing = || format!("finishing {}", self.dir.display());
        // Before the index: whatever medium it is, it may be pulled out.
        self.sync()?;
        self.write(INDEX, index.text().as_bytes())?;
        self.sync()?;
        let mut size = 0;
        for entry in fs::read_dir(self.blobs()).doing_with(doing)? {
            let entry = entry.doing_with(doing)?;
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy()).parse::<Digest>();
            if digest.is_ok_and(|digest| blobs.contains(&digest)) {
                size += entry.metadata().doing_with(doing)?.len();
            } else {
                remove_whole(&entry.path()).doing_with(doing)?;
            }
        }
        Ok(size)
    }

    fn sync(&self) -> Result<()> {
        let dir = File::open(&self.dir).doing("opening the bundle")?;
        rustix::fs::syncfs(dir).doing_with(|| format!("syncing {}", self.dir.display()))
    }

    fn write(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let part = path.with_extension(PART);
        let write = || -> io::Result<()> {
            fresh(&part)?.write_all(text)?;
            fs::rename(&part, &path)
        };
        let written = write();
        written.doing_with(|| format!("writing {}", path.display()))
    }
}

/// What is written, and its digest.
struct Hash<W> {
    to: W,
    hash: sha2::Sha256,
}

impl<W: Write> Write for Hash<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        sha2::Digest::update(&mut self.hash, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A new file, in place of what another attempt left: never what a link leads to.
fn fresh(path: &Path) -> io::Result<File> {
    remove_whole(path)?;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)
}

/// Whether there is nothing but what an attempt that was cut off may have left, before there was an index.
fn is_begun(dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if !["blobs", LAYOUT.0].iter().any(|ours| name == *ours)
            && Path::new(&name).extension() != Some(OsStr::new(PART))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a bundle as a tar file, the same for the same bundle. A file that is there is replaced when the new one is whole.
pub fn archive(draft: &Draft, to: &Path) -> Result<()> {
    let doing = || format!("writing {}", to.display());
    let mut part = to.as_os_str().to_owned();
    part.push(".");
    part.push(PART);
    let part = PathBuf::from(part);
    let write = || -> io::Result<()> {
        let mut builder = tar::Builder::new(fresh(&part)?);
        let mut names = vec![LAYOUT.0.to_owned(), INDEX.to_owned()];
        let mut blobs: Vec<String> = Vec::new();
        for entry in fs::read_dir(draft.blobs())? {
            blobs.push(format!("{BLOBS}/{}", entry?.file_name().to_string_lossy()));
        }
        blobs.sort();
        names.extend(blobs);
        for name in names {
            let mut file = File::open(draft.dir.join(&name))?;
            let mut header = tar::Header::new_gnu();
            header.set_size(file.metadata()?.len());
            header.set_mode(0o644);
            builder.append_data(&mut header, &name, &mut file)?;
        }
        builder.into_inner()?.sync_all()?;
        fs::rename(&part, to)?;
        let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        // What failed is said; that this stays as well is not worth another word.
        let _ = fs::remove_file(&part);
    }
    written.doing_with(doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Media;
    use crate::model::bundle::{Image, Role};

    fn index(digest: &Digest) -> Index {
        let reference = "r.io/os:1".parse().unwrap();
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let image = Image { reference, role: Role::Os, media_type, digest: digest.clone(), size: 2 };
        Index { images: vec![image], ..Index::default() }
    }

    fn open(path: &Path) -> Result<Media> {
        Media::open(File::open(path).unwrap().into())
    }

    #[test]
    fn a_bundle_is_one_when_it_is_finished_and_not_before() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, tar, spool) =
            (temp.path().join("new/bundle"), temp.path().join("b.tar"), temp.path().join("spool"));
        let blob = Digest::of(b"blob");
        fs::create_dir(&spool).unwrap();
        fs::write(spool.join(blob.hex()), "blob").unwrap();
        let draft = Draft::open(&dir).unwrap();
        draft.take(&spool, &blob).unwrap();
        let manifest = draft.put(b"{}").unwrap();
        open(&dir).unwrap_err();
        fs::write(draft.blobs().join("left"), "of another attempt").unwrap();
        let keep = BTreeSet::from([blob.clone(), manifest.clone()]);
        assert_eq!(draft.finish(&index(&manifest), &keep).unwrap(), 6);
        archive(&draft, &tar).unwrap();
        let again = fs::read(&tar).unwrap();
        archive(&draft, &tar).unwrap();
        assert_eq!(fs::read(&tar).unwrap(), again);
        for bundle in [&dir, &tar] {
            let media = open(bundle).unwrap();
            assert_eq!(media.index, index(&manifest));
            assert_eq!(media.document(&manifest).unwrap().unwrap(), b"{}");
            assert_eq!(media.blob(&blob).unwrap().unwrap().len, 4);
        }
        assert!(!draft.blobs().join("left").exists());
        // What is there is not fetched again, and a bundle stays one until there is another.
        let again = Draft::open(&dir).unwrap();
        assert!(again.has(&blob, 4));
        open(&dir).unwrap();
        // As after a power cut.
        fs::write(again.blobs().join(blob.hex()), [0; 4]).unwrap();
        assert!(!Draft::open(&dir).unwrap().has(&blob, 4));
        // Cut off before there was an index.
        fs::remove_file(dir.join(INDEX)).unwrap();
        fs::write(dir.join("index.part"), "").unwrap();
        Draft::open(&dir).unwrap();
    }

    #[test]
    fn what_is_no_bundle_is_not_written_over() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("other");
        fs::create_dir(&dir).unwrap();
        Draft::open(&dir).unwrap();
        fs::write(dir.join(INDEX), r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
        assert_eq!(Draft::open(&dir).unwrap_err().kind, ErrorKind::InvalidArgument);
        fs::remove_file(dir.join(INDEX)).unwrap();
        fs::write(dir.join("precious"), "").unwrap();
        assert_eq!(Draft::open(&dir).unwrap_err().kind, ErrorKind::InvalidArgument);
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(Draft::open(&file).unwrap_err().kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_spool_that_somebody_changed_gives_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, spool, blob) = (temp.path().join("b"), temp.path().join("spool"), Digest::of(b"blob"));
        fs::create_dir(&spool).unwrap();
        let draft = Draft::open(&dir).unwrap();
        fs::write(spool.join(blob.hex()), "evil").unwrap();
        assert_eq!(draft.take(&spool, &blob).unwrap_err().kind, ErrorKind::DigestMismatch);
        fs::remove_file(spool.join(blob.hex())).unwrap();
        fs::write(temp.path().join("secret"), "blob").unwrap();
        std::os::unix::fs::symlink("../secret", spool.join(blob.hex())).unwrap();
        draft.take(&spool, &blob).unwrap_err();
        assert!(!draft.has(&blob, 4));
    }
}
