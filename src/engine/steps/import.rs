//! resolve.bundle: images from a medium, under the names by which the host knows them.

use super::resolve::tracked;
use crate::bundle::{self, Lookaside, Media, Served};
use crate::engine::cx::Cx;
use crate::engine::env::{Bundle, Env};
use crate::engine::pipeline::Job;
use crate::model::image::ImageRef;
use crate::model::job::Step;
use crate::model::request::{Goal, Handed};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::scratch::Scratch;
use std::sync::Arc;

/// The file with the configuration of registries.
const CONF: &str = "registries.conf";

/// A host with a bundle in it. Everything that was made for that goes with this.
#[derive(Debug)]
pub struct Imported {
    /// The host whose images come from there.
    pub env: Env,
    _served: Served,
    _conf: Scratch,
    _lookaside: Lookaside,
}

/// Opens a bundle, and serves it to this job.
pub async fn open(cx: &Cx, env: &Env, handed: &Handed) -> Result<Imported> {
    cx.step(Step::ResolveBundle, async {
        let file = handed.try_clone().doing("opening the bundle")?;
        let media = tokio::task::spawn_blocking(move || Media::open(file));
        let media = Arc::new(media.await.doing("opening the bundle")??);
        let served = bundle::serve(media.clone()).await?;
        let lookaside = Lookaside::write(&media, &served)?;
        let conf = Scratch::below(&env.layout.state.join("tmp"))?;
        let registries = conf.path().join(CONF);
        // Who can read it can ask for the images: the directory is root's.
        std::fs::write(&registries, served.conf(&media)).doing("saying where the bundle is served")?;
        let bundle = Bundle { offered: media.index.clone(), registries, lookaside: lookaside.path() };
        let env = env.with_bundle(bundle);
        Ok(Imported { env, _served: served, _conf: conf, _lookaside: lookaside })
    })
    .await
}

/// What is to be done with the bundle of this job: what the host follows, or what somebody asked for, if it is in it.
pub fn goal(job: &Job<'_>, image: Option<ImageRef>) -> Result<Goal> {
    let wanted = match &image {
        Some(image) => image.clone(),
        None => tracked(&job.before)?,
    };
    let index = job.env.offered().ok_or_else(|| Error::new(ErrorKind::Internal, "there is no bundle"))?;
    if index.offers(&wanted) {
        return Ok(image.map_or(Goal::Upgrade, Goal::Rebase));
    }
    let systems: Vec<String> = index.systems().map(|system| system.reference.to_string()).collect();
    let has = if systems.is_empty() { "no OS".to_owned() } else { systems.join(", ") };
    let why = match image {
        Some(_) => format!("the bundle does not have {wanted}, but {has}; the running system is unchanged"),
        None => {
            format!("this host follows {wanted}, and the bundle has {has}; the running system is unchanged")
        }
    };
    let error = Error::new(ErrorKind::ImageNotFound, why).detail("image", wanted.to_string());
    Err(match systems.first() {
        Some(system) => error.hint(format!("move to it with: osctl rebase {system} --from-bundle PATH")),
        None => error.hint("see what it has: osctl bundle list PATH"),
    })
}
