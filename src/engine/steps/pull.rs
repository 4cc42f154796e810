//! pull: the layers into the repository.

use crate::engine::pipeline::Job;
use crate::engine::stages::{Planned, Pulled, Target};
use crate::engine::steps::resolve::{fetch_options, open_repo};
use crate::model::Result;
use crate::model::job::Step;

/// Brings the planned digest into the repository, or finds it there.
pub async fn pull(job: &Job<'_>, planned: Planned) -> Result<Pulled> {
    let stateroot = planned.stateroot;
    let (base, image, verification, keep): (_, _, _, fn(&_, &_) -> _) = match planned.target {
        Target::Present { base, image, verification } => (base, image, verification, crate::pull::retain),
        Target::Image { resolved, verification } => {
            let options = fetch_options(job.env, &job.options)?;
            let repo = job.env.layout.repo();
            let base =
                job.cx.step(Step::PullLayers, crate::pull::pull(job.cx, &repo, &resolved, &options)).await?;
            (base, Some(resolved.image.clone()), Some(verification), crate::pull::retain_latest)
        }
    };
    job.cx.step(Step::PullRecord, async { keep(&open_repo(job.env)?, &base) }).await?;
    Ok(Pulled { base, image, stateroot, verification, bound: planned.bound, download: planned.download })
}
