//! `osctl bundle`.

use super::derive::absolute;
use crate::bundle::Media;
use crate::cli::alone::Alone;
use crate::cli::args::Following;
use crate::cli::exit;
use crate::cli::render::{self, Terminal};
use crate::client::Result;
use crate::engine::bundle;
use crate::engine::cx::Cx;
use crate::engine::failpoint::Failpoints;
use crate::model::bundle::{Made, Make, Target};
use crate::model::job::JobResult;
use crate::model::{Context, Error, ErrorKind, bytes};
use std::path::{Path, PathBuf};

/// Arguments of `bundle`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What can be done with bundles.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// Write an OS image and everything that it needs into one OCI layout, for hosts without a network.
    Create(Create),
    /// List what is in a bundle.
    List {
        /// The bundle: a directory or a tar file.
        path: PathBuf,
        /// Print JSON: `{"version": 1, "images": [{"reference", "role", "digest"}]}`.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `bundle create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Needs no ostree host and no daemon, but skopeo, and root. On the host: \
                        osctl upgrade --from-bundle PATH")]
pub struct Create {
    /// The OS image, as hosts follow it: r.io/os:stable.
    pub image: String,
    /// Where the bundle goes: a directory, or `oci-archive:FILE` for a tar file.
    #[arg(short, long, value_name = "TARGET")]
    pub output: String,
    /// Drop-ins of the hosts, whose images are to be in it: a directory of drop-ins, a root that has one in
    /// etc/osctl/derive.d (and bound images in etc/osctl/bound-images.d), or a single .yaml or .bu file.
    #[arg(short, long, value_name = "PATH")]
    pub input: Option<PathBuf>,
    /// Another image; can be repeated.
    #[arg(long = "image", value_name = "IMAGE")]
    pub others: Vec<String>,
    /// Keep what was fetched and made here, for the next bundle [default: nothing is kept].
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Credentials for all registries (containers-auth.json(5)).
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Print JSON: `{"version": 1, "path", "size", "images", "notes"}`, images as bundle list prints them.
    #[arg(long)]
    pub json: bool,
    /// How to follow the work.
    #[command(flatten)]
    pub following: Following,
}

impl Create {
    /// What is asked. Paths may be relative here, and nowhere else.
    pub fn asked(&self) -> crate::model::Result<Make> {
        let others: crate::model::Result<Vec<_>> = self.others.iter().map(|image| image.parse()).collect();
        Ok(Make {
            image: self.image.parse()?,
            input: self.input.clone(),
            others: others?,
            auth_file: self.authfile.as_deref().map(absolute).transpose()?,
            target: target(&self.output)?,
            work: self.work.clone(),
        })
    }
}

fn target(text: &str) -> crate::model::Result<Target> {
    let (archive, path) = match text.strip_prefix("oci-archive:") {
        Some(path) => (true, path),
        None => (false, text.strip_prefix("oci:").unwrap_or(text)),
    };
    // A colon would be taken for the beginning of a tag by other tools.
    if path.is_empty() || path.contains(':') {
        let why = format!("{text:?} is no place for a bundle");
        return Err(Error::new(ErrorKind::InvalidArgument, why).hint("name a directory, or oci-archive:FILE"));
    }
    let path = absolute(Path::new(path))?;
    Ok(if archive { Target::Archive(path) } else { Target::Directory(path) })
}

/// Runs the verb.
pub fn run(
    args: &Args,
    terminal: &Terminal,
    config_root: &Path,
    environment: Vec<(String, String)>,
    failpoints: Failpoints,
) -> Result<u8> {
    match &args.what {
        What::Create(create) => self::create(create, terminal, config_root, environment, failpoints),
        What::List { path, json } => list(path, *json),
    }
}

fn create(
    args: &Create,
    terminal: &Terminal,
    config_root: &Path,
    environment: Vec<(String, String)>,
    failpoints: Failpoints,
) -> Result<u8> {
    let (make, root) = (args.asked()?, config_root.to_owned());
    if !rustix::process::geteuid().is_root() {
        let why = "a bundle is made by root: the OS is unpacked to see what it binds";
        return Err(Error::new(ErrorKind::NotAuthorized, why).hint("sudo osctl bundle create ...").into());
    }
    let work = async |cx: &Cx| bundle::create(cx, make, root, environment).await;
    let nothing = "the bundle is not complete";
    let alone = Alone { kind: "bundle", nothing, following: &args.following, terminal };
    let made = alone.run(failpoints, work, result)?;
    if args.json {
        #[derive(serde::Serialize)]
        struct Written<'m> {
            version: u32,
            #[serde(flatten)]
            made: &'m Made,
        }
        let text = serde_json::to_string(&Written { version: 1, made: &made })
            .kind(ErrorKind::Internal, "writing the result as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else if !args.following.quiet {
        render::print(&render::bundle::table(&made.images))?;
        render::print(&render::result(&result(&made), false))?;
    }
    Ok(exit::OK)
}

fn result(made: &Made) -> JobResult {
    let summary = format!("Wrote {} ({}).", made.path.display(), bytes::human(made.size));
    JobResult { changed: true, summary, notes: made.notes.clone(), ..JobResult::default() }
}

fn list(path: &Path, json: bool) -> Result<u8> {
    let file = std::fs::File::open(path);
    let file = file.kind(ErrorKind::InvalidArgument, format!("opening the bundle {}", path.display()))?;
    let media = Media::open(file.into())?;
    let images = &media.index.images;
    if json {
        let text = serde_json::to_string(&serde_json::json!({"version": 1, "images": images}));
        render::print(&format!("{}\n", text.kind(ErrorKind::Internal, "writing the bundle as JSON")?))?;
    } else {
        render::print(&render::bundle::table(images))?;
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_goes_to_a_directory_or_a_tar_file() {
        for (text, expected) in [
            ("/b", Target::Directory("/b".into())),
            ("oci:/b", Target::Directory("/b".into())),
            ("oci-archive:/b.tar", Target::Archive("/b.tar".into())),
        ] {
            assert_eq!(target(text).unwrap(), expected);
        }
        for text in ["", "oci:", "/b:1", "docker://r.io/b"] {
            assert_eq!(target(text).unwrap_err().kind, ErrorKind::InvalidArgument, "{text}");
        }
    }
}
