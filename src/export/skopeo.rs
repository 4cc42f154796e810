//! The two ends of a build: the base into our layout, the image out of it. Nothing is compressed again.

use super::layout::Layout;
use crate::engine::cx::Cx;
use crate::model::image::{Digest, ImageRef, Transport};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::FetchOptions;
use crate::sys::scratch::Scratch;
use crate::sys::skopeo::{options, reason};
use crate::sys::{policy, process};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A policy for what is ours: it has passed the machine's when it came, or is what we are about to replace.
pub const ACCEPT: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

/// Copies the base as it is to the layout. The machine's signature policy decides.
pub async fn fetch(
    cx: &Cx,
    (base, digest): (&ImageRef, &Digest),
    (layout, tag): (&Layout, &str),
    opts: &FetchOptions,
) -> Result<()> {
    let scratch = Scratch::below(tmp(opts))?;
    // A policy may be for a tag, and is asked about a digest.
    let system = opts.policy.as_deref().unwrap_or(Path::new(policy::SYSTEM));
    let text = std::fs::read(system).ok().and_then(|text| policy::by_digest(&text, base, digest));
    let rewritten = text.map(|text| written(scratch.path(), &text)).transpose()?;
    let mut args = options(
        rewritten.as_deref().or(opts.policy.as_deref()),
        opts.registries.as_deref(),
        opts.lookaside.as_deref(),
    );
    args.extend(
        ["copy", "--quiet", "--remove-signatures", "--dest-oci-accept-uncompressed-layers"].map(Into::into),
    );
    args.extend(credentials("src", base, opts));
    args.extend([base.pinned(digest).to_string().into(), layout.reference(tag).into()]);
    run(cx, args, opts, &format!("copying {base}")).await
}

/// Writes the image to its target, whole or not at all, and returns the digest that it has there.
///
/// Registries get layers compressed: `has_plain_layers` says that there is one to be compressed.
pub async fn publish(
    cx: &Cx,
    (layout, tag): (&Layout, &str),
    target: &ImageRef,
    has_plain_layers: bool,
    opts: &FetchOptions,
) -> Result<Digest> {
    let doing = || format!("writing {target}");
    let scratch = Scratch::below(tmp(opts))?;
    let digest = scratch.path().join("digest");
    let mut args = options(
        Some(&written(scratch.path(), ACCEPT.as_bytes())?),
        opts.registries.as_deref(),
        opts.lookaside.as_deref(),
    );
    args.extend(["copy", "--quiet", "--dest-oci-accept-uncompressed-layers"].map(Into::into));
    if !(has_plain_layers && target.transport == Transport::Registry) {
        args.push("--preserve-digests".into());
    }
    args.extend(["--digestfile".into(), digest.clone().into()]);
    args.extend(credentials("dest", target, opts));
    args.push(layout.reference(tag).into());
    match place(target) {
        Some((path, tag)) if target.transport == Transport::OciArchive || !path.exists() => {
            // Where it is to be, under another name until it is complete.
            let parent = parent(&path);
            let beside = tempfile::Builder::new().prefix(".osctl-").tempdir_in(parent).doing_with(doing)?;
            let draft = beside.path().join("image");
            args.push(format!("{}{}{tag}", target.transport.prefix(), draft.display()).into());
            run(cx, args, opts, &doing()).await?;
            std::fs::rename(&draft, &path).doing_with(doing)?;
        }
        // A layout gets its index last, a registry its manifest, a storage its name.
        Some(_) | None => {
            args.push(target.to_string().into());
            run(cx, args, opts, &doing()).await?;
        }
    }
    let text = std::fs::read_to_string(&digest).doing_with(doing)?;
    text.trim().parse()
}

/// Refuses a target that has no place, before there is anything to be written.
pub fn has_place(target: &ImageRef) -> Result<()> {
    let Some((path, _)) = place(target) else { return Ok(()) };
    let refuse = |why: String| {
        let error = Error::new(ErrorKind::InvalidArgument, format!("{target} cannot be written: {why}"));
        Err(error)
    };
    if !parent(&path).is_dir() {
        return refuse(format!("{} is not a directory", parent(&path).display()));
    }
    let archive = target.transport == Transport::OciArchive;
    if archive && path.is_dir() {
        return refuse(format!("{} is a directory", path.display()));
    }
    if !archive && path.exists() && !path.join("index.json").is_file() {
        return refuse(format!("{} is there and is no OCI layout", path.display()));
    }
    Ok(())
}

/// Whether there may be an image, which has to be asked.
pub fn may_exist(target: &ImageRef) -> bool {
    place(target).is_none_or(|(path, _)| path.exists())
}

/// The path of a target that has one, and what is behind it.
fn place(target: &ImageRef) -> Option<(PathBuf, &str)> {
    if !matches!(target.transport, Transport::Oci | Transport::OciArchive) {
        return None;
    }
    // It ends with the first colon, containers-transports(5).
    let (path, tag) = target.name.split_at(target.name.find(':').unwrap_or(target.name.len()));
    Some((path.trim_end_matches('/').into(), tag))
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn written(dir: &Path, text: &[u8]) -> Result<PathBuf> {
    let path = dir.join("policy.json");
    std::fs::write(&path, text).doing("writing a policy for skopeo")?;
    Ok(path)
}

fn tmp(opts: &FetchOptions) -> &Path {
    opts.tmp.as_deref().unwrap_or(Path::new("/var/tmp"))
}

fn credentials(end: &str, image: &ImageRef, opts: &FetchOptions) -> Vec<OsString> {
    match (&opts.auth_file, image.transport) {
        (Some(file), Transport::Registry) => vec![format!("--{end}-authfile").into(), file.into()],
        // Else skopeo looks for files of its own.
        (None, Transport::Registry) => vec![format!("--{end}-no-creds").into()],
        _ => Vec::new(),
    }
}

async fn run(cx: &Cx, args: Vec<OsString>, opts: &FetchOptions, doing: &str) -> Result<()> {
    let mut command = Command::new("skopeo");
    command.args(args).env("TMPDIR", tmp(opts));
    let output = process::run(cx, command).await?;
    if output.success {
        return Ok(());
    }
    let cause = reason(&output.stderr);
    let kind = cause.kind;
    let hint = cause.hint.clone();
    let error = Error::new(kind, format!("{doing} failed; nothing was built")).source(cause);
    Err(match hint {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_with_a_path_needs_a_place_for_it() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().display();
        std::fs::create_dir(tmp.path().join("other")).unwrap();
        std::fs::create_dir(tmp.path().join("layout")).unwrap();
        std::fs::write(tmp.path().join("layout/index.json"), "{}").unwrap();
        for (target, fits) in [
            (format!("oci:{dir}/new:1"), true),
            (format!("oci:{dir}/layout:1"), true),
            (format!("oci:{dir}/other:1"), false),
            (format!("oci:{dir}/missing/new"), false),
            (format!("oci-archive:{dir}/new.tar:1"), true),
            (format!("oci-archive:{dir}/layout/index.json"), true),
            (format!("oci-archive:{dir}/other"), false),
            ("r.io/os:1".to_owned(), true),
        ] {
            let place = has_place(&target.parse().unwrap());
            assert_eq!(place.is_ok(), fits, "{target}: {place:?}");
        }
        assert!(!may_exist(&format!("oci:{dir}/new:1").parse().unwrap()));
        assert!(may_exist(&format!("oci:{dir}/layout:1").parse().unwrap()));
        assert!(may_exist(&"r.io/os:1".parse().unwrap()));
    }
}
