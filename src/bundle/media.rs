//! An OCI layout that somebody handed over: an open directory, or an open tar file, which is not unpacked.
//!
//! Who hands it over is allowed to choose what this host boots, and still the files are nobody's in particular: only regular
//! files are read, below the directory, and whoever uses a blob compares its digest.

use crate::model::bundle::Index;
use crate::model::image::{Digest, full_name};
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

const BLOCK: u64 = 512;
/// Entries of an archive that are looked at: a layout has a file for each blob.
const MOST_ENTRIES: usize = 100_000;
/// The largest document: an index, a manifest, a list of manifests.
const DOCUMENT: u64 = 4 << 20;
const INDEX: &str = "index.json";

/// A layout.
#[derive(Debug)]
pub struct Media {
    form: Form,
    /// What is in it.
    pub index: Index,
}

#[derive(Debug)]
enum Form {
    Directory(Dir),
    /// Where each file is in the archive: offset and length.
    Archive(File, BTreeMap<String, (u64, u64)>),
}

/// A part of a file that is a file of the layout.
#[derive(Debug)]
pub struct Piece {
    file: File,
    start: u64,
    /// The bytes of it.
    pub len: u64,
}

impl Piece {
    /// Reads from a place in it on; 0 at the end.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        self.file.read_at(&mut buffer[..len], self.start + at)
    }

    /// All of it.
    pub fn all(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len).unwrap_or_default()];
        self.file.read_exact_at(&mut bytes, self.start)?;
        Ok(bytes)
    }
}

impl Media {
    /// Opens what was handed over, and reads its index. Blocks.
    pub fn open(handed: OwnedFd) -> Result<Media> {
        let file = File::from(handed);
        let kind = file.metadata().doing("looking at the bundle")?.file_type();
        let form = if kind.is_dir() {
            Form::Directory(Dir::from_std_file(file))
        } else if kind.is_file() {
            let members = members(&file)?;
            Form::Archive(file, members)
        } else {
            return Err(Error::new(ErrorKind::InvalidArgument, "a bundle is a directory or a tar file"));
        };
        let text = document(&form, INDEX)?.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                "there is no index.json: it is no bundle, and no OCI layout",
            )
            .hint("make one with: osctl bundle create")
        })?;
        let mut index = Index::parse(&text)?;
        if index.images.is_empty() {
            let why = "the bundle holds no image under a name that a host could ask for";
            return Err(Error::new(ErrorKind::InvalidArgument, why)
                .hint("it may not be complete: make it again with osctl bundle create"));
        }
        index.instances = instances(&form, &index)?;
        Ok(Media { form, index })
    }

    /// A manifest or a list of manifests; `None` if it is not there.
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>> {
        document(&self.form, &path(digest))
    }

    /// A blob; `None` if it is not there.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Piece>> {
        self.form.piece(&path(digest))
    }
}

impl Form {
    fn piece(&self, name: &str) -> Result<Option<Piece>> {
        let doing = || format!("opening {name} of the bundle");
        match self {
            Form::Archive(file, members) => {
                let Some(&(start, len)) = members.get(name) else { return Ok(None) };
                Ok(Some(Piece { file: file.try_clone().doing_with(doing)?, start, len }))
            }
            Form::Directory(dir) => {
                let mut options = OpenOptions::new();
                // Opening a pipe must not wait for a writer.
                options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
                let file = match dir.open_with(name, &options) {
                    Ok(file) => file.into_std(),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(e).kind(ErrorKind::InvalidArgument, doing()),
                };
                let meta = file.metadata().doing_with(doing)?;
                if !meta.is_file() {
                    let why = format!("{name} of the bundle is no regular file");
                    return Err(Error::new(ErrorKind::InvalidArgument, why));
                }
                Ok(Some(Piece { file, start: 0, len: meta.len() }))
            }
        }
    }
}

fn document(form: &Form, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(piece) = form.piece(name)? else { return Ok(None) };
    if piece.len > DOCUMENT {
        let why = format!("{name} of the bundle has {} bytes, and can have {DOCUMENT}", piece.len);
        return Err(Error::new(ErrorKind::InvalidArgument, why));
    }
    piece.all().doing_with(|| format!("reading {name} of the bundle")).map(Some)
}

/// The manifests that lists name, and that are there: a list may be for more platforms than the bundle.
fn instances(form: &Form, index: &Index) -> Result<BTreeSet<(String, Digest)>> {
    #[derive(serde::Deserialize)]
    struct Entry {
        digest: Digest,
    }
    #[derive(serde::Deserialize)]
    struct List {
        manifests: Vec<Entry>,
    }
    let mut found = BTreeSet::new();
    for image in &index.images {
        let Some(text) = document(form, &path(&image.digest))? else { continue };
        let Ok(list) = serde_json::from_slice::<List>(&text) else { continue };
        for Entry { digest } in list.manifests {
            if form.piece(&path(&digest))?.is_some() {
                found.insert((full_name(image.reference.repository()), digest));
            }
        }
    }
    Ok(found)
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Where the files of a layout lie in a tar file. Names of a layout are short: what extends a header is of no interest.
fn members(file: &File) -> Result<BTreeMap<String, (u64, u64)>> {
    let doing = "reading the bundle's tar file";
    let no_archive = |why: &str| {
        Error::new(ErrorKind::InvalidArgument, format!("the bundle is no tar file that we read: {why}"))
            .hint("a directory, or a tar file that is not compressed")
    };
    let total = file.metadata().doing(doing)?.len();
    let (mut members, mut at, mut entries) = (BTreeMap::new(), 0_u64, 0);
    loop {
        if at + BLOCK > total {
            return Err(no_archive("its end is missing"));
        }
        let mut header = tar::Header::new_old();
        file.read_exact_at(header.as_mut_bytes(), at).doing(doing)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            break;
        }
        let sum: u32 = header.as_bytes().iter().enumerate().map(|(i, byte)| checked(i, *byte)).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(no_archive("a header has a wrong checksum"));
        }
        entries += 1;
        if entries > MOST_ENTRIES {
            return Err(no_archive("it has too many entries"));
        }
        let size =
            header.entry_size().kind(ErrorKind::InvalidArgument, "the size of an entry cannot be read")?;
        let start = at + BLOCK;
        let padded = size.checked_next_multiple_of(BLOCK).and_then(|padded| start.checked_add(padded));
        let Some(next) = padded.filter(|_| size <= total - start) else {
            return Err(no_archive("it ends in the middle of a file"));
        };
        if header.entry_type().is_file() {
            let name = header.path_bytes();
            let name = String::from_utf8_lossy(&name);
            members.insert(name.strip_prefix("./").unwrap_or(&name).to_owned(), (start, size));
        }
        at = next;
    }
    if members.is_empty() { Err(no_archive("there is nothing in it")) } else { Ok(members) }
}

/// What a byte of a header counts in its checksum: those of the checksum itself count as spaces.
fn checked(at: usize, byte: u8) -> u32 {
    u32::from(if (148..156).contains(&at) { b' ' } else { byte })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const TEXT: &str = r#"{"manifests":[{"mediaType":"m","digest":"sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        "size":3,"annotations":{"org.opencontainers.image.ref.name":"r.io/os:1"}}]}"#;

    fn layout(dir: &Path) -> Digest {
        let digest = Digest::of(b"foo");
        std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        std::fs::write(dir.join("index.json"), TEXT).unwrap();
        std::fs::write(dir.join(path(&digest)), "foo").unwrap();
        digest
    }

    fn open(path: &Path) -> Result<Media> {
        Media::open(File::open(path).unwrap().into())
    }

    #[test]
    fn a_directory_and_its_archive_are_the_same_bundle() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("layout");
        let digest = layout(&dir);
        let tar = temp.path().join("layout.tar");
        let mut builder = tar::Builder::new(File::create(&tar).unwrap());
        builder.append_dir_all(".", &dir).unwrap();
        builder.finish().unwrap();
        for bundle in [&dir, &tar] {
            let media = open(bundle).unwrap();
            assert_eq!(media.index.images[0].reference.name, "r.io/os:1");
            let piece = media.blob(&digest).unwrap().unwrap();
            assert_eq!((piece.len, piece.all().unwrap()), (3, b"foo".to_vec()));
            let mut rest = [0; 8];
            assert_eq!((piece.read_at(&mut rest, 1).unwrap(), &rest[..2]), (2, &b"oo"[..]));
            assert_eq!(piece.read_at(&mut rest, 3).unwrap(), 0);
            assert!(media.blob(&Digest::of(b"none")).unwrap().is_none());
        }
        let whole = std::fs::read(&tar).unwrap();
        for end in [0, 100, 512, 700, 1500] {
            std::fs::write(&tar, &whole[..end]).unwrap();
            assert_eq!(open(&tar).unwrap_err().kind, ErrorKind::InvalidArgument, "cut at {end}");
        }
    }

    #[test]
    fn what_is_no_regular_file_below_the_directory_is_not_read() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("layout");
        let digest = layout(&dir);
        let blob = dir.join(path(&digest));
        std::fs::write(temp.path().join("outside"), "foo").unwrap();
        std::fs::remove_file(&blob).unwrap();
        std::os::unix::fs::symlink("../../../outside", &blob).unwrap();
        assert_eq!(open(&dir).unwrap_err().kind, ErrorKind::InvalidArgument);
        std::fs::remove_file(&blob).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &blob, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        assert_eq!(open(&dir).unwrap_err().kind, ErrorKind::InvalidArgument);
        assert_eq!(open(Path::new("/dev/null")).unwrap_err().kind, ErrorKind::InvalidArgument);
        assert!(open(temp.path()).unwrap_err().hint.is_some_and(|hint| hint.contains("bundle create")));
    }

    #[test]
    fn no_bytes_are_an_archive_by_accident() {
        use std::io::Write;
        for seed in 0..200_u32 {
            let mut file = tempfile::tempfile().unwrap();
            let bytes: Vec<u8> = (0..2048_u32).map(|i| (i.wrapping_mul(seed + 7) >> 3) as u8).collect();
            file.write_all(&bytes).unwrap();
            members(&file).unwrap_err();
        }
    }
}
