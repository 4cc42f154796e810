//! `osctl derive`.

use crate::cli::alone::Alone;
use crate::cli::args::Following;
use crate::cli::render::Terminal;
use crate::cli::{exit, render};
use crate::client::Result;
use crate::engine::cx::Cx;
use crate::engine::failpoint::Failpoints;
use crate::engine::{build, in_place};
use crate::model::build::{Applied, Build, Built, InPlace};
use crate::model::image::ImageRef;
use crate::model::job::JobResult;
use crate::model::{Context, ErrorKind};
use std::path::{Path, PathBuf};

/// Arguments of `derive`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Needs no ostree host and no daemon, but skopeo, and root for packages. In a Containerfile: \
                  RUN --mount=type=bind,source=derive.d,target=/derive.d osctl derive --in-place -i /derive.d"
)]
pub struct Args {
    /// The image to derive from.
    #[arg(long, value_name = "IMAGE", required_unless_present = "in_place")]
    pub base: Option<String>,
    /// A directory of drop-ins, a root that has one in etc/osctl/derive.d, or a single .yaml or .bu file; with
    /// --in-place, those of the root itself if absent.
    #[arg(short, long, value_name = "PATH", required_unless_present = "in_place")]
    pub input: Option<PathBuf>,
    /// Where the image goes: `oci:PATH[:TAG]`, `oci-archive:PATH[:TAG]`, containers-storage:NAME, docker://NAME.
    #[arg(short, long, value_name = "TARGET", required_unless_present = "in_place")]
    pub output: Option<String>,
    /// Apply the drop-ins to the root file system of the container that is being built.
    #[arg(long, conflicts_with_all = ["base", "output", "work", "drop_var", "authfile"])]
    pub in_place: bool,
    /// Change this root instead [default: the one of the container].
    #[arg(long, value_name = "DIR", requires = "in_place")]
    pub root: Option<PathBuf>,
    /// Keep what was fetched and made here, for the next build [default: nothing is kept].
    #[arg(long, value_name = "DIR")]
    pub work: Option<PathBuf>,
    /// Install the packages of this lock where it fits [default: etc/osctl/derive.lock, if the input is a root].
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
    /// Install exactly the packages of the lock, or fail.
    #[arg(long, conflicts_with = "update_lock")]
    pub frozen: bool,
    /// Solve packages anew, although the image that is there was built from the same input.
    #[arg(long)]
    pub update_lock: bool,
    /// Build although a file can be read by its owner only: whoever gets the image can read it.
    #[arg(long)]
    pub allow_secrets: bool,
    /// Leave out files that the base has in /var.
    #[arg(long)]
    pub drop_var: bool,
    /// Credentials for the registries of base and target (containers-auth.json(5)).
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to follow the build.
    #[command(flatten)]
    pub following: Following,
}

impl Args {
    /// What is asked. Paths may be relative here, and nowhere else.
    pub fn asked(&self) -> crate::model::Result<Asked> {
        if self.in_place {
            return Ok(Asked::InPlace(InPlace {
                root: self.root.clone(),
                input: self.input.clone(),
                lock: self.lock.clone(),
                frozen: self.frozen,
                update_lock: self.update_lock,
                allow_secrets: self.allow_secrets,
            }));
        }
        let needed = "required without --in-place";
        Ok(Asked::Image(Build {
            base: image(self.base.as_deref().expect(needed))?,
            input: self.input.clone().expect(needed),
            lock: self.lock.clone(),
            target: image(self.output.as_deref().expect(needed))?,
            auth_file: self.authfile.as_deref().map(absolute).transpose()?,
            work: self.work.clone(),
            frozen: self.frozen,
            update_lock: self.update_lock,
            drop_var: self.drop_var,
            allow_secrets: self.allow_secrets,
        }))
    }
}

/// What is to be derived.
#[derive(Debug)]
pub enum Asked {
    /// An image, from another one.
    Image(Build),
    /// A root, where it is.
    InPlace(InPlace),
}

/// What became of it.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
enum Done {
    Image(Built),
    InPlace(Applied),
}

impl Done {
    fn result(&self) -> JobResult {
        let (changed, summary, notes) = match self {
            Done::Image(built) => {
                (built.changed, format!("Built {} ({}).", built.image, built.digest), &built.notes)
            }
            Done::InPlace(applied) => {
                (applied.changed, format!("Derived {}.", applied.root.display()), &applied.notes)
            }
        };
        let summary = if changed { summary } else { "No changes in input.".to_owned() };
        JobResult { changed, summary, notes: notes.clone(), ..JobResult::default() }
    }
}

fn image(text: &str) -> crate::model::Result<ImageRef> {
    for prefix in ["oci:", "oci-archive:", "dir:"] {
        if let Some(path) = text.strip_prefix(prefix).filter(|path| !path.is_empty()) {
            return format!("{prefix}{}", absolute(Path::new(path))?.display()).parse();
        }
    }
    text.parse()
}

pub(super) fn absolute(path: &Path) -> crate::model::Result<PathBuf> {
    std::path::absolute(path).kind(ErrorKind::InvalidArgument, format!("{} is no path", path.display()))
}

/// Runs the verb.
pub fn run(
    args: &Args,
    terminal: &Terminal,
    config_root: &Path,
    environment: Vec<(String, String)>,
    failpoints: Failpoints,
) -> Result<u8> {
    let asked = args.asked()?;
    let root = config_root.to_owned();
    let work = async |cx: &Cx| {
        Ok(match asked {
            Asked::Image(build) => Done::Image(build::run(cx, build, root, environment).await?),
            Asked::InPlace(what) => Done::InPlace(in_place::run(cx, what, root, environment).await?),
        })
    };
    let alone = Alone { kind: "derive", nothing: "nothing was built", following: &args.following, terminal };
    let built = alone.run(failpoints, work, Done::result)?;
    if args.json {
        let text = serde_json::to_string(&built).kind(ErrorKind::Internal, "writing the result as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else if !args.following.quiet {
        render::print(&render::result(&built.result(), false))?;
    }
    Ok(if args.following.unchanged_exit_77 && !built.result().changed { exit::UNCHANGED } else { exit::OK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_images_may_be_relative_on_the_command_line() {
        let here = std::env::current_dir().unwrap();
        let here = here.display();
        for (text, expected) in [
            ("oci:out:1", format!("oci:{here}/out:1")),
            ("oci-archive:./out.tar", format!("oci-archive:{here}/out.tar")),
            ("oci:/out", "oci:/out".to_owned()),
            ("r.io/os:1", "docker://r.io/os:1".to_owned()),
        ] {
            assert_eq!(image(text).unwrap().to_string(), expected);
        }
        assert!(image("oci:").is_err());
    }
}
