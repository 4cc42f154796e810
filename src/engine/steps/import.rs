//! resolve.bundle: images from a medium, under the names by which the host knows them.

use super::resolve::tracked;
use crate::bundle::{self, Media, Served};
use crate::engine::cx::Cx;
use crate::engine::env::{Bundle, Env};
use crate::engine::pipeline::Job;
use crate::engine::stages::Target;
use crate::model::image::ImageRef;
use crate::model::job::Step;
use crate::model::request::{Goal, Handed};
use crate::model::verification::Level;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::sys::scratch::Scratch;
use crate::sys::{auth, registries, user};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A host with a bundle in it. Everything that was made for that goes with this.
#[derive(Debug)]
pub struct Imported {
    /// The host whose images come from there.
    pub env: Env,
    _served: Arc<Served>,
    _dir: Scratch,
}

/// Opens a bundle. A medium that does not answer keeps nobody who cancels.
pub async fn open(cx: &Cx, handed: &Handed) -> Result<Media> {
    let file = handed.try_clone().doing("opening the bundle")?;
    let opened = tokio::task::spawn_blocking(move || Media::open(file));
    let opened = async { opened.await.doing("opening the bundle")? };
    cx.step(Step::ResolveBundle, cx.or_cancelled(opened)).await
}

/// Serves a bundle to this job, which has the lock of the sysroot.
pub async fn serve(env: &Env, mut media: Media) -> Result<Imported> {
    let (root, registries) = (env.config_root()?, env.variable(auth::REGISTRIES_CONF).map(PathBuf::from));
    let mut blocked = BTreeMap::new();
    for repository in media.index.repositories().into_keys() {
        match registries::allows(&root, registries.as_deref(), &repository) {
            Err(error) if error.kind == ErrorKind::SignatureRejected => {
                blocked.insert(repository, error.to_string());
            }
            allowed => allowed?,
        }
    }
    media.index.blocked = blocked;
    let media = Arc::new(media);
    let served = Arc::new(bundle::serve(media.clone()).await?);
    let dir = Scratch::below(&env.layout.state.join("tmp"))?;
    let index = Arc::new(media.index.clone());
    let conf = served.conf(&media);
    let (path, place) = (dir.path().to_owned(), served.clone());
    let bundle = tokio::task::spawn_blocking(move || -> Result<Bundle> {
        let lookaside = bundle::lay_out(&media, &place, &path)?;
        let home = path.join("home");
        let write = || -> std::io::Result<()> {
            let conf_dir = home.join(registries::HOME);
            std::fs::create_dir_all(&conf_dir)?;
            std::fs::write(conf_dir.join("osctl-bundle.conf"), conf)?;
            // Who can read it can ask for every image: root, and whoever fetches.
            user::share_with_fetcher(&path)
        };
        write().doing("saying where the bundle is served")?;
        Ok(Bundle { offered: index, home, lookaside })
    });
    let env = env.with_bundle(bundle.await.doing("serving the bundle")??);
    Ok(Imported { env, _served: served, _dir: dir })
}

/// Says that nobody vouches for what comes from a medium, where that is so: the TLS of a registry did before.
pub fn warn(job: &Job<'_>, target: &Target) {
    let Target::Image { resolved, verification } = target else { return };
    if job.env.offered().is_some() && verification.level == Level::Unverified {
        let image = &resolved.image;
        job.cx.message(format!(
            "no signature policy vouches for {image}: this host takes what the bundle has under that name"
        ));
    }
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
