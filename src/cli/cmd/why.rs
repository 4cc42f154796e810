//! `osctl why`.

use crate::cli::{Session, exit, render, select};
use crate::client::Result;
use crate::model::deviation::Outcome;
use crate::model::lock::Lock;
use crate::model::why::{Finding, why};
use crate::model::{Error, ErrorKind};

/// Arguments of `why`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path, or the name of a package, a unit, a user or a kernel argument.
    pub name: String,
    /// An id, an index, or booted, staged, default or rollback [default: booted].
    #[arg(long, value_name = "DEPLOYMENT")]
    pub deployment: Option<String>,
}

/// Runs the verb.
pub async fn run(args: &Args, session: &Session) -> Result<u8> {
    let status = session.client.status().await?;
    let deployment = select::or_booted(&status, args.deployment.as_deref())?;
    let mut found = why(deployment, &args.name);
    let requests = &deployment.derivation.packages;
    if found.is_empty() && requests.iter().any(|request| request.outcome == Outcome::Applied) {
        let lock = Lock::parse("the lock", session.client.lock(&deployment.id).await?.as_bytes())?;
        let dependency = lock.packages.iter().filter(|package| package.name == args.name);
        let requests: Vec<&str> = requests.iter().map(|request| request.request.as_str()).collect();
        found.extend(dependency.map(|package| Finding {
            what: format!("package {} {}", package.name, package.version),
            owners: Vec::new(),
            how: format!("needed by what is requested: {}", requests.join(", ")),
        }));
    }
    if found.is_empty() {
        let why = format!("no drop-in of {} is about {:?}", deployment.id, args.name);
        return Err(Error::new(ErrorKind::WrongState, why)
            .hint("it is of the image, or this host's own; osctl status -v lists what drop-ins brought")
            .into());
    }
    render::print(&render::status::findings(&found))?;
    Ok(exit::OK)
}
