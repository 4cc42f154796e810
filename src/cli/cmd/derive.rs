//! `osctl derive`.

use crate::cli::args::Following;
use crate::cli::render::Terminal;
use crate::cli::render::progress::Progress;
use crate::cli::{exit, render};
use crate::client::Result;
use crate::engine::cx::{Cx, Sink};
use crate::engine::failpoint::Failpoints;
use crate::engine::{build, in_place};
use crate::model::build::{Applied, Build, Built, InPlace};
use crate::model::image::ImageRef;
use crate::model::job::{Event, Failure, Initiator, Job, JobResult};
use crate::model::{Context, Error, ErrorKind};
use crate::sys::fd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Bytes of a transfer are shown no more often.
const OFTEN: Duration = Duration::from_millis(200);

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

fn absolute(path: &Path) -> crate::model::Result<PathBuf> {
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
    let file = args.following.progress_fd.map(fd::inherited).transpose()?.map(Arc::new);
    let progress = Progress::new(terminal, args.following.quiet, file);
    let shown = Arc::new(Mutex::new(Shown::new(progress)));
    let sink: Sink = {
        let shown = shown.clone();
        Arc::new(move |event| shown.lock().expect("no holder of this lock panics").tell(&event))
    };
    let cx = Cx::new(CancellationToken::new(), sink, Arc::new(failpoints));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.doing("starting the runtime")?;
    let built = runtime.block_on(async {
        let mut interrupts = signal(SignalKind::interrupt()).doing("listening for Ctrl-C")?;
        let root = config_root.to_owned();
        let built = async {
            Ok(match asked {
                Asked::Image(build) => Done::Image(build::run(&cx, build, root, environment).await?),
                Asked::InPlace(what) => Done::InPlace(in_place::run(&cx, what, root, environment).await?),
            })
        };
        tokio::pin!(built);
        tokio::select! {
            built = &mut built => return built,
            _ = interrupts.recv() => drop(cx.cancel()),
        }
        tokio::select! {
            built = &mut built => built,
            _ = interrupts.recv() => {
                Err(Error::new(ErrorKind::Cancelled, "left in the middle; nothing was built"))
            }
        }
    });
    runtime.shutdown_background();
    shown.lock().expect("no holder of this lock panics").end(&built);
    let built = built?;
    if args.json {
        let text = serde_json::to_string(&built).kind(ErrorKind::Internal, "writing the result as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else if !args.following.quiet {
        render::print(&render::result(&built.result(), false))?;
    }
    Ok(if args.following.unchanged_exit_77 && !built.result().changed { exit::UNCHANGED } else { exit::OK })
}

/// The build as people and programs see it: a job like any other, that nobody else knows of.
struct Shown {
    job: Job,
    progress: Progress,
    last: Instant,
}

impl Shown {
    fn new(progress: Progress) -> Shown {
        let mut job = Job::new("build".into(), "derive", Initiator::default(), now());
        job.apply(&Event::Started { at: now() });
        Shown { job, progress, last: Instant::now() }
    }

    fn tell(&mut self, event: &Event) {
        self.job.apply(event);
        if matches!(event, Event::Step(_) | Event::Message(_)) || self.last.elapsed() > OFTEN {
            self.progress.update(&self.job);
            self.last = Instant::now();
        }
    }

    fn end(&mut self, done: &crate::model::Result<Done>) {
        let outcome = done.as_ref().map(Done::result).map_err(Failure::from);
        self.job.apply(&Event::Finished { at: now(), outcome });
        self.progress.finish(&self.job);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
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
