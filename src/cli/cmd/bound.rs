//! `osctl bound`.

use crate::cli::args::Following;
use crate::cli::{Session, exit, follow, render, select};
use crate::client::Result;
use crate::model::image::ImageRef;
use crate::model::request::{BoundName, Options, Request, Subject};
use crate::model::status::{Bound, Status};
use crate::model::{Context, Error, ErrorKind};

/// Arguments of `bound`.
#[derive(Debug, Default, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do with them [default: list].
    #[command(subcommand)]
    pub what: Option<What>,
    /// What to list.
    #[command(flatten)]
    pub list: List,
}

/// What can be done with bound images.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// List the bound images of all deployments, and whether they are there.
    List(List),
    /// Check every file of every bound image against its digest, and fetch again what is damaged.
    Verify {
        /// Only report what is damaged; exit with 1 if anything is.
        #[arg(long)]
        dry_run: bool,
        /// Print JSON: what was checked, and what became of it.
        #[arg(long)]
        json: bool,
        /// Fail instead of waiting for other jobs.
        #[arg(long)]
        no_wait: bool,
        /// How to follow the job.
        #[command(flatten)]
        following: Following,
    },
    /// Fetch the bound images that are missing, such as those that could not be fetched ahead.
    Pull {
        /// Only this one: the reference as osctl bound list shows it.
        image: Option<String>,
        /// Say what would be fetched, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Fail instead of waiting for other jobs.
        #[arg(long)]
        no_wait: bool,
        /// How to follow the job.
        #[command(flatten)]
        following: Following,
    },
}

/// Arguments of `bound list`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct List {
    /// Only those of this deployment: an id, an index, or booted, staged, default or rollback.
    #[arg(long, value_name = "DEPLOYMENT")]
    pub deployment: Option<String>,
    /// Print a JSON array.
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// How the job is followed, if there is one.
    pub fn following(&self) -> Option<&Following> {
        match &self.what {
            Some(What::Verify { following, .. } | What::Pull { following, .. }) => Some(following),
            Some(What::List(_)) | None => None,
        }
    }
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    match &args.what {
        None => list(&args.list, session).await,
        Some(What::List(args)) => list(args, session).await,
        Some(What::Verify { dry_run, json, no_wait, following }) => {
            let options = Options { dry_run: *dry_run, no_wait: *no_wait, ..Options::default() };
            verify(Request::Verify { what: vec![Subject::Bound], options }, *json, following, session).await
        }
        Some(What::Pull { image, dry_run, no_wait, following }) => {
            let options = Options { dry_run: *dry_run, no_wait: *no_wait, ..Options::default() };
            let names = match image {
                None => vec![None],
                Some(image) => named(&session.client.status().await?, image)?,
            };
            let mut code = exit::OK;
            for only in names {
                let request = Request::PullBound { only, options: options.clone() };
                code = follow::run(session, &request, following).await?;
                if code == exit::DETACHED {
                    break;
                }
            }
            Ok(code)
        }
    }
}

async fn list(args: &List, session: &Session) -> Result<u8> {
    let status = session.client.status().await?;
    let only = args.deployment.as_deref().map(|name| select::named(&status, name)).transpose()?;
    let shown = |b: &&Bound| only.is_none_or(|d| b.deployments.contains(&d.id));
    let images: Vec<&Bound> = status.bound.iter().filter(shown).collect();
    if args.json {
        let text =
            serde_json::to_string(&images).kind(ErrorKind::Internal, "writing bound images as JSON")?;
        render::print(&format!("{text}\n"))?;
    } else {
        render::print(&render::bound::table(&status, &images))?;
    }
    Ok(exit::OK)
}

/// The images with this reference: two deployments may have two digests of one.
fn named(status: &Status, image: &str) -> Result<Vec<Option<BoundName>>> {
    let reference: ImageRef = image.parse()?;
    let found = status.bound.iter().filter(|b| b.reference == reference);
    let names: Vec<_> =
        found.map(|b| Some(BoundName { reference: b.reference.clone(), digest: b.digest.clone() })).collect();
    if names.is_empty() {
        let why = format!("no deployment has the bound image {}", reference.name);
        return Err(Error::new(ErrorKind::InvalidArgument, why).hint("see: osctl bound list").into());
    }
    Ok(names)
}

async fn verify(request: Request, json: bool, following: &Following, session: &Session) -> Result<u8> {
    let Some(id) = session.client.submit(&request).await? else { return Ok(exit::OK) };
    let Some(job) = follow::ended(session, &id, following).await? else { return Ok(exit::DETACHED) };
    let verified = job.result.as_ref().and_then(|r| r.verified.as_deref());
    if let (true, Some(verified)) = (json, verified) {
        let text = serde_json::to_string(&serde_json::json!({"version": 1, "images": verified.images}));
        render::print(&format!(
            "{}\n",
            text.kind(ErrorKind::Internal, "writing what was verified as JSON")?
        ))?;
    } else if let (false, Some(result)) = (following.quiet, &job.result) {
        render::print(&render::result(result, false))?;
    }
    match (job.failure, &job.result) {
        (Some(failure), _) => Err(Error::from(failure).into()),
        (None, Some(result)) => Ok(follow::code(result, following)),
        (None, None) => Ok(exit::OK),
    }
}
