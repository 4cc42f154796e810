//! Simple signatures (containers-signature(5)), which lie beside registries: into a bundle, and out of it.

use super::media::Media;
use super::serve::Served;
use crate::engine::cx::Cx;
use crate::model::bundle::Role;
use crate::model::image::Digest;
use crate::model::image::full_name;
use crate::model::lookaside::{self, File};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{self, FetchOptions};
use cap_std_ext::cap_std::fs::Dir;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const CONFIGURATION: &str = "etc/containers/registries.d";
/// The largest signature; they have some hundred bytes.
const LARGEST: u64 = 64 << 10;
/// Signatures of one image that are looked for, as containers/image does.
const MOST: usize = 128;

/// What the configuration of a machine says about where signatures lie.
pub fn configuration(config_root: &Dir) -> Result<Vec<File>> {
    let doing = || format!("reading /{CONFIGURATION}");
    let entries = match config_root.read_dir(CONFIGURATION) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).doing_with(doing),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry.doing_with(doing)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yaml") {
            let path = format!("{CONFIGURATION}/{name}");
            files.push((format!("/{path}"), config_root.read_to_string(path).doing_with(doing)?));
        }
    }
    files.sort();
    Ok(files)
}

/// The signatures of an image: none, where nobody signed it.
pub async fn fetch(
    cx: &Cx,
    configuration: &[File],
    repository: &str,
    digest: &Digest,
    opts: &FetchOptions,
) -> Result<Vec<Vec<u8>>> {
    let repository = full_name(repository);
    let base = lookaside::base(configuration, &repository)?;
    let mut found = Vec::new();
    for number in 1..=MOST {
        let url = format!("{base}/{}", lookaside::path(&repository, digest, number));
        let signature = match url.strip_prefix("file://") {
            Some(path) => of_file(Path::new(path)),
            None => of_server(cx, &url, opts).await,
        };
        match signature.map_err(|e| lost(&repository, &base, e))? {
            Some(signature) => found.push(signature),
            None => break,
        }
    }
    Ok(found)
}

fn lost(repository: &str, base: &str, error: Error) -> Error {
    Error::new(error.kind, format!("looking for signatures of {repository} at {base}"))
        .hint(format!("registries.d says that they are there: see /{CONFIGURATION}"))
        .source(error)
}

fn of_file(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) if bytes.len() as u64 > LARGEST => {
            Err(Error::new(ErrorKind::InvalidArgument, format!("{} is no signature", path.display())))
        }
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing_with(|| format!("reading {}", path.display())),
    }
}

async fn of_server(cx: &Cx, url: &str, opts: &FetchOptions) -> Result<Option<Vec<u8>>> {
    match pull::download(cx, url, LARGEST, opts).await {
        Ok(bytes) => Ok(Some(bytes)),
        // As containers/image takes it: places that let nobody list them answer 403.
        Err(e) if ["403", "404", "410"].iter().any(|s| e.details.get("status").is_some_and(|t| t == s)) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Writes out the signatures of a bundle below a directory of the job, for who is not this user as well, and returns the
/// containers-registries.d(5) that leads there. Blocks.
///
/// Skopeo looks where the registry that it asks is configured, and that is `served`: for it the configuration is.
pub fn lay_out(media: &Media, served: &Served, dir: &Path) -> Result<PathBuf> {
    let doing = "writing out the signatures of the bundle";
    let store = dir.join("signatures");
    let mut numbers: BTreeMap<(usize, Digest), usize> = BTreeMap::new();
    let repositories: Vec<String> = media.index.repositories().into_keys().collect();
    for signature in media.index.images.iter().filter(|image| image.role == Role::SimpleSignature) {
        let of = full_name(signature.reference.repository());
        let (Some(at), Some(digest)) =
            (repositories.iter().position(|r| *r == of), signature.reference.digest())
        else {
            continue;
        };
        let number = numbers.entry((at, digest.clone())).or_default();
        *number += 1;
        if *number > MOST || signature.size > LARGEST {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "the bundle has more signatures of {}, or larger ones, than anybody makes",
                    signature.reference
                ),
            ));
        }
        let Some(piece) = media.blob(&signature.digest)?.filter(|piece| piece.len == signature.size) else {
            continue;
        };
        let path = store.join(lookaside::path(&served.name(at), &digest, *number));
        let write = || -> io::Result<()> {
            fs::create_dir_all(path.parent().unwrap_or(&store))?;
            fs::write(&path, piece.all()?)
        };
        write().doing(doing)?;
    }
    let place = format!("file://{}", store.display());
    let scope = serde_json::json!({"lookaside": place, "sigstore": place, "use-sigstore-attachments": true});
    let configuration = serde_json::json!({"docker": {served.host(): scope}});
    let to = dir.join("registries.d");
    // JSON is YAML.
    fs::create_dir(&to)
        .and_then(|()| fs::write(to.join("bundle.yaml"), configuration.to_string()))
        .doing(doing)?;
    Ok(to)
}
