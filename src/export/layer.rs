//! A layer of an OCI image: a tar archive of what changed, the same bytes for the same changes.
//!
//! Entries are in the order of their paths, without times and names of users. What is gone is a whiteout. SELinux labels are left
//! out, as in every image: they come from the policy of the tree (`pull` sets them).

use super::diff::{self, Change, Changes};
use crate::model::image::Digest;
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::gio::prelude::*;
use ostree_ext::ostree;
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

const WHITEOUT: &str = ".wh.";
/// The largest number in a field of eight octal digits, of which the last ends it.
const MAX_ID: u32 = 0o7_777_777;
/// As above, for twelve digits.
const MAX_SIZE: u64 = 0o77_777_777_777;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// Understood everywhere.
    Gzip,
    /// Smaller and faster; what has such layers already is not read by older programs anyway.
    Zstd,
}

impl Compression {
    /// That of the last of these layers that is compressed.
    pub(super) fn like<'m>(media_types: impl DoubleEndedIterator<Item = &'m str>) -> Compression {
        let mut known = media_types.rev().filter_map(|kind| {
            let zstd = kind.ends_with("+zstd").then_some(Compression::Zstd);
            zstd.or(kind.ends_with("gzip").then_some(Compression::Gzip))
        });
        known.next().unwrap_or(Compression::Gzip)
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// A layer that was written.
#[derive(Debug)]
pub(super) struct Layer {
    /// Of the file.
    pub digest: Digest,
    pub size: u64,
    /// Of the archive in it.
    pub diff_id: Digest,
}

/// Writes the layer to a file.
pub(super) fn write(
    repo: &ostree::Repo,
    changes: &Changes,
    compression: Compression,
    to: &Path,
) -> Result<Layer> {
    let doing = || "writing the layer".to_owned();
    let blob = Hashed::new(BufWriter::new(File::create(to).doing_with(doing)?));
    let (blob, diff_id) = match compression {
        Compression::Gzip => {
            let gzip = flate2::write::GzEncoder::new(blob, flate2::Compression::default());
            let archive = archive(repo, changes, Hashed::new(gzip))?;
            let (gzip, diff_id, _) = archive.finish();
            (gzip.finish().doing_with(doing)?, diff_id)
        }
        Compression::Zstd => {
            let zstd = zstd::Encoder::new(blob, ZSTD_LEVEL).doing_with(doing)?;
            let archive = archive(repo, changes, Hashed::new(zstd))?;
            let (zstd, diff_id, _) = archive.finish();
            (zstd.finish().doing_with(doing)?, diff_id)
        }
    };
    let (mut file, digest, size) = blob.finish();
    file.flush().doing_with(doing)?;
    Ok(Layer { digest, size, diff_id })
}

fn archive<W: Write>(repo: &ostree::Repo, changes: &Changes, to: W) -> Result<W> {
    let mut tar = tar::Builder::new(to);
    for (path, change) in changes {
        add(repo, &mut tar, path, change)
            .doing_with(|| format!("writing {} to the layer; nothing was built", one_line(path)))?;
    }
    tar.into_inner().doing("writing the end of the layer")
}

fn add<W: Write>(repo: &ostree::Repo, tar: &mut tar::Builder<W>, path: &str, change: &Change) -> Result<()> {
    let (parent, name) = path.rsplit_once('/').map_or(("", path), |(parent, name)| (parent, name));
    if name.starts_with(WHITEOUT) {
        let why = format!("{} cannot be in an image: its name means that something is gone", one_line(path));
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    match change {
        Change::Removed => {
            let slash = if parent.is_empty() { "" } else { "/" };
            let path = format!("{parent}{slash}{WHITEOUT}{name}");
            Entry::new(tar::EntryType::Regular, 0o644, 0, 0).append(tar, &path, io::empty())
        }
        Change::Written(bytes) => {
            let entry =
                Entry { size: bytes.len() as u64, ..Entry::new(tar::EntryType::Regular, 0o644, 0, 0) };
            entry.append(tar, path, bytes.as_slice())
        }
        Change::Directory(meta) => {
            let (meta, xattrs) = diff::directory_meta(repo, meta)?;
            let entry = Entry::new(tar::EntryType::Directory, meta.mode, meta.uid, meta.gid);
            Entry { xattrs, ..entry }.append(tar, &format!("{path}/"), io::empty())
        }
        Change::Entry(object) => {
            let (stream, info, xattrs) = diff::file(repo, object)?;
            let number = |name| info.attribute_uint32(name);
            let (mode, uid, gid) = (number("unix::mode"), number("unix::uid"), number("unix::gid"));
            if let Some(target) = info.symlink_target() {
                let link = Some(target.as_os_str().as_encoded_bytes().to_vec());
                let entry = Entry::new(tar::EntryType::Symlink, 0o777, uid, gid);
                return Entry { link, xattrs, ..entry }.append(tar, path, io::empty());
            }
            let size = u64::try_from(info.size()).unwrap_or_default();
            let entry = Entry { size, xattrs, ..Entry::new(tar::EntryType::Regular, mode, uid, gid) };
            match stream {
                Some(stream) => entry.append(tar, path, stream.into_read()),
                None => entry.append(tar, path, io::empty()),
            }
        }
    }
}

/// An entry under construction.
struct Entry {
    kind: tar::EntryType,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    link: Option<Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn new(kind: tar::EntryType, mode: u32, uid: u32, gid: u32) -> Entry {
        Entry { kind, mode: mode & 0o7777, uid, gid, size: 0, link: None, xattrs: Vec::new() }
    }

    /// Writes the entry. What has no room in the header stands in a PAX record in front of it.
    fn append<W: Write>(self, tar: &mut tar::Builder<W>, path: &str, content: impl Read) -> Result<()> {
        let doing = "writing an entry";
        let mut header = tar::Header::new_ustar();
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        let mut place = |field: &mut [u8], key: &str, value: &[u8]| {
            let fits = value.len().min(field.len());
            field[..fits].copy_from_slice(&value[..fits]);
            if value.len() > field.len() {
                records.push((key.to_owned(), value.to_vec()));
            }
        };
        place(&mut header.as_old_mut().name, "path", path.as_bytes());
        if let Some(link) = &self.link {
            place(&mut header.as_old_mut().linkname, "linkpath", link);
        }
        let mut number = |key: &str, value: u64, max: u64| {
            if value > max {
                records.push((key.to_owned(), value.to_string().into_bytes()));
                return 0;
            }
            value
        };
        header.set_uid(number("uid", self.uid.into(), MAX_ID.into()));
        header.set_gid(number("gid", self.gid.into(), MAX_ID.into()));
        header.set_size(number("size", self.size, MAX_SIZE));
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_mtime(0);
        for (name, value) in self.xattrs.iter().filter(|(name, _)| name != b"security.selinux") {
            let name = std::str::from_utf8(name).doing("reading the name of an extended attribute")?;
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        records.sort();
        tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
            .doing(doing)?;
        header.set_cksum();
        // The builder pads to what it has read, which is what the object has.
        let read = &mut Counted(content, 0);
        tar.append(&header, &mut *read).doing(doing)?;
        if read.1 != self.size {
            let why = format!("it has {} bytes and should have {}", read.1, self.size);
            return Err(Error::new(ErrorKind::Corrupt, why));
        }
        Ok(())
    }
}

struct Counted<R>(R, u64);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buf)?;
        self.1 += n as u64;
        Ok(n)
    }
}

/// Counts and hashes what passes.
struct Hashed<W> {
    inner: W,
    hash: sha2::Sha256,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Hashed<W> {
        Hashed { inner, hash: sha2::Sha256::new(), size: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::finished(self.hash), self.size)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hash.update(&buf[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, Scratch, commit_tree};
    use std::collections::BTreeMap;

    fn long(name: &str) -> String {
        format!("usr/lib/{}/{name}", "x".repeat(120))
    }

    fn written(scratch: &Scratch, changes: &Changes, compression: Compression) -> (Layer, Vec<u8>) {
        let path = scratch.dir.path().join("layer");
        let layer = write(&scratch.repo, changes, compression, &path).unwrap();
        (layer, std::fs::read(path).unwrap())
    }

    #[test]
    fn a_layer_has_what_changed_and_whiteouts_and_is_the_same_every_time() {
        use Base::*;
        let scratch = Scratch::with(ostree::RepoMode::Bare, [("usr/lib/gone", File(0o644, "x"))]);
        let derived = commit_tree(
            &scratch.repo,
            [
                ("usr/bin/su".to_owned(), File(0o4755, "tool")),
                ("usr/etc/link".to_owned(), Link(&"t".repeat(150))),
                (long("f"), File(0o600, "secret")),
                ("usr/lib/d".to_owned(), Dir(0o1777)),
            ],
        );
        let mut changes = diff::between(&scratch.repo, &scratch.base, &derived).unwrap();
        changes.insert("usr/lib/written".into(), Change::Written(b"words".to_vec()));
        let (layer, bytes) = written(&scratch, &changes, Compression::Gzip);
        let (again, same) = written(&scratch, &changes, Compression::Gzip);
        assert_eq!((&layer.digest, &layer.diff_id, &bytes), (&again.digest, &again.diff_id, &same));
        assert_eq!((layer.digest, layer.size), (Digest::of(&bytes), bytes.len() as u64));
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut plain).unwrap();
        assert_eq!(layer.diff_id, Digest::of(&plain));
        let (packed, bytes) = written(&scratch, &changes, Compression::Zstd);
        assert_eq!(packed.diff_id, layer.diff_id);
        assert_eq!(zstd::decode_all(bytes.as_slice()).unwrap(), plain);

        let mut archive = tar::Archive::new(plain.as_slice());
        let mut found = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mode = entry.header().mode().unwrap();
            let link = entry.link_name_bytes().map(|l| String::from_utf8(l.into_owned()).unwrap());
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.insert(path, (mode, link.unwrap_or(text)));
        }
        let entry = |mode: u32, text: &str| (mode, text.to_owned());
        let (dir, long_dir) = (entry(0o755, ""), long(""));
        assert_eq!(
            found,
            BTreeMap::from([
                ("etc/".to_owned(), dir.clone()),
                ("etc/link".to_owned(), entry(0o777, &"t".repeat(150))),
                ("usr/".to_owned(), dir.clone()),
                ("usr/bin/".to_owned(), dir.clone()),
                ("usr/bin/su".to_owned(), entry(0o4755, "tool")),
                ("usr/lib/".to_owned(), dir.clone()),
                ("usr/lib/.wh.gone".to_owned(), entry(0o644, "")),
                ("usr/lib/d/".to_owned(), entry(0o1777, "")),
                ("usr/lib/written".to_owned(), entry(0o644, "words")),
                (long_dir, dir),
                (long("f"), entry(0o600, "secret")),
            ])
        );
    }

    #[test]
    fn a_name_that_means_something_else_is_refused() {
        let scratch = Scratch::new();
        let changes = Changes::from([("usr/.wh.x".to_owned(), Change::Written(Vec::new()))]);
        let error =
            write(&scratch.repo, &changes, Compression::Gzip, &scratch.dir.path().join("x")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    }

    #[test]
    fn the_layer_is_compressed_as_the_last_one_of_the_base() {
        for (types, expected) in [
            (&["tar+gzip", "tar+zstd"][..], Compression::Zstd),
            (&["tar+zstd", "tar.gzip"], Compression::Gzip),
            (&["tar+zstd", "tar"], Compression::Zstd),
            (&["tar"], Compression::Gzip),
        ] {
            assert_eq!(Compression::like(types.iter().copied()), expected, "{types:?}");
        }
    }
}
