//! What drop-ins named by URL, kept by its digest: the same tree can be made again when the server is gone.
//!
//! ```text
//! <state>/contents/sha256-<64 digits>     unpacked, and readable by root only
//! ```

use crate::model::contents::{Expected, Packed, Remote, gunzip};
use crate::model::dropin::MAX_CONTENTS;
use crate::model::{Context, Error, ErrorKind, Result};
use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// A directory of contents.
#[derive(Debug, Clone)]
pub struct Kept {
    dir: PathBuf,
}

impl Kept {
    /// In this directory, which is made when the first content comes.
    pub fn at(dir: PathBuf) -> Kept {
        Kept { dir }
    }

    /// The content with this digest, if it is here and not damaged.
    pub fn get(&self, digest: &Expected) -> Result<Option<Vec<u8>>> {
        let doing = || format!("reading the kept content {digest}");
        let mut bytes = Vec::new();
        match std::fs::File::open(self.dir.join(digest.to_string())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => {
                file.doing_with(doing)?.take(MAX_CONTENTS + 1).read_to_end(&mut bytes).doing_with(doing)?
            }
        };
        // A damaged one is fetched again.
        Ok(digest.is(&bytes).then_some(bytes))
    }

    /// Unpacks what somebody without rights fetched, and keeps it, if it is what it has to be.
    pub fn take(&self, remote: &Remote, fetched: Vec<u8>) -> Result<Vec<u8>> {
        let refused =
            |why: String| Error::new(ErrorKind::DigestMismatch, format!("{why}; nothing was staged"));
        let bytes = match remote.gzip {
            false => fetched,
            true => gunzip(&fetched, MAX_CONTENTS).map_err(|packed| match packed {
                Packed::Bad(e) => refused("what came is not gzip".into()).source(e),
                Packed::TooLarge => refused(format!("what came is more than {MAX_CONTENTS} bytes, unpacked")),
            })?,
        };
        if !remote.digest.is(&bytes) {
            let why = format!("what came has another digest than {}", remote.digest);
            return Err(refused(why).hint("look at what is there now; if it is right, change the digest"));
        }
        let doing = || format!("keeping the content {}", remote.digest);
        std::fs::create_dir_all(&self.dir).doing_with(doing)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir).doing_with(doing)?;
        file.write_all(&bytes).doing_with(doing)?;
        file.as_file().sync_all().doing_with(doing)?;
        file.persist(self.dir.join(remote.digest.to_string())).doing_with(doing)?;
        Ok(bytes)
    }

    /// Whether anything is kept.
    pub fn any(&self) -> bool {
        std::fs::read_dir(&self.dir).is_ok_and(|mut dir| dir.next().is_some())
    }

    /// Removes everything else.
    pub fn keep_only(&self, needed: &BTreeSet<Expected>) -> Result<()> {
        let doing = || format!("cleaning up {}", self.dir.display());
        let names: BTreeSet<String> = needed.iter().map(Expected::to_string).collect();
        for entry in std::fs::read_dir(&self.dir).doing_with(doing)? {
            let entry = entry.doing_with(doing)?;
            if !entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                std::fs::remove_file(entry.path()).doing_with(doing)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest as _;
    use std::os::unix::fs::PermissionsExt;

    fn remote(content: &[u8], gzip: bool) -> Remote {
        let digest = Expected::Sha512(hex::encode(sha2::Sha512::digest(content)));
        Remote { url: "https://example.com/x".into(), digest, gzip }
    }

    #[test]
    fn only_what_has_its_digest_comes_in_and_goes_out() {
        let tmp = tempfile::tempdir().unwrap();
        let kept = Kept::at(tmp.path().join("contents"));
        let (plain, packed) = (remote(b"plain", false), remote(b"packed", true));
        assert_eq!(kept.get(&plain.digest).unwrap(), None);
        assert!(!kept.any());
        for (remote, wrong) in [(&plain, &b"plaiN"[..]), (&packed, b"packed"), (&packed, b"")] {
            let error = kept.take(remote, wrong.to_vec()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::DigestMismatch, "{error}");
            assert!(!kept.any());
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"packed").unwrap();
        assert_eq!(kept.take(&packed, gzip.finish().unwrap()).unwrap(), b"packed");
        assert_eq!(kept.take(&plain, b"plain".to_vec()).unwrap(), b"plain");
        assert_eq!(kept.get(&packed.digest).unwrap().as_deref(), Some(&b"packed"[..]));
        let file = tmp.path().join("contents").join(plain.digest.to_string());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "damaged").unwrap();
        assert_eq!(kept.get(&plain.digest).unwrap(), None, "it is fetched again");
        kept.keep_only(&BTreeSet::from([packed.digest.clone()])).unwrap();
        assert!(!file.exists() && kept.any());
    }

    #[test]
    fn a_small_archive_of_something_large_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let large = vec![0; MAX_CONTENTS as usize + 1];
        gzip.write_all(&large).unwrap();
        let error =
            Kept::at(tmp.path().into()).take(&remote(&large, true), gzip.finish().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "what came is more than 16777216 bytes, unpacked; nothing was staged");
    }
}
