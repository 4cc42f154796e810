//! Making a bundle: everything that a host needs to have an OS, its bound images and its extensions, from their registries.
//!
//! ```text
//! OS ► manifests, policy ► blobs ► what the OS and the drop-ins ask for ► manifests, policy, signatures ► blobs ► index
//! ```
//!
//! Nothing of the machine is read but how registries are reached, and nothing of it is changed.

use super::build::{Place, accept_all, alone};
use super::cx::Cx;
use super::env::{Env, Handed};
use super::pipeline::Job;
use super::stages::Target;
use super::steps::resolve;
use crate::bound::{self, Gathered, Skopeo, Vouch};
use crate::bundle::{self, Draft};
use crate::derive::read;
use crate::model::bound::{BoundSpec, Mode};
use crate::model::bundle::{Image, Index, Made, Make, Role, Target as To};
use crate::model::image::{Digest, ImageRef, Transport};
use crate::model::job::Step;
use crate::model::layers::{Facts, expand};
use crate::model::request::{Goal, Options};
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{Base, FetchOptions, Resolved};
use crate::store::locked::Locked;
use crate::store::sysroot::{self, Layout};
use crate::store::tree::CommitTree;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Questions at once, over all registries.
const PARALLEL: usize = 4;
/// What a simple signature is in an index; there is no name for it in any registry of names.
const SIMPLE_SIGNATURE: &str = "application/vnd.osctl.simple-signature";
/// The only tag of the layout that the OS is read from.
const TAG: &str = "os";

/// An image that somebody asks for.
struct Asked {
    role: Role,
    spec: BoundSpec,
}

impl Asked {
    fn new(role: Role, reference: ImageRef, source: &str) -> Asked {
        Asked { role, spec: BoundSpec::new(reference, source) }
    }
}

/// Where the work is done.
struct Work<'w> {
    job: &'w Job<'w>,
    skopeo: Skopeo,
    opts: FetchOptions,
    draft: Draft,
    place: &'w Path,
}

/// Makes the bundle. What is in the directory already, or in the one that is named for the work, is not fetched again.
///
/// `config_root` is the root whose configuration says how registries are reached.
pub async fn create(
    cx: &Cx,
    make: Make,
    config_root: PathBuf,
    environment: Vec<(String, String)>,
) -> Result<Made> {
    for image in make.others.iter().chain([&make.image]) {
        by_name(image)?;
    }
    let tmp = environment.iter().find(|(name, _)| name == "TMPDIR").map(|(_, dir)| dir.clone());
    let place = Place::open(make.work.as_deref(), tmp.as_deref())?;
    let nothing = place.dir.join("none");
    let drop_ins = make.input.clone().unwrap_or_else(|| nothing.clone());
    std::fs::create_dir_all(&nothing).doing("making a directory")?;
    read::read_from(&read::Source::named(&drop_ins)?, None)?;
    let dir = match &make.target {
        To::Directory(dir) => dir.clone(),
        To::Archive(_) => place.dir.join("bundle"),
    };
    let draft = Draft::open(&dir)?;
    let layout = Layout::new(place.dir.join("sysroot"), config_root, None);
    sysroot::create(&layout.sysroot)?;
    let handed = Handed { drop_ins: drop_ins.clone(), lock: None, auth_file: make.auth_file.clone() };
    let env = Env::new(layout, environment).handed(handed);
    let store = Locked::acquire(cx, &env.layout).await?;
    let job = alone(cx, &env, store, Options { drop_var: true, ..Options::default() });
    let machine = resolve::fetch_options(&env, &job.options)?;
    let opts = FetchOptions { spool: Some(place.dir.join("spool")), ..machine };
    let work = Work { job: &job, skopeo: env.skopeo()?, opts, draft, place: &place.dir };
    let root = if drop_ins.join("etc/osctl").is_dir() { &drop_ins } else { &nothing };
    work.fill(&make, root).await
}

/// Refuses what no host could ask for by name.
fn by_name(image: &ImageRef) -> Result<()> {
    if image.transport == Transport::Registry {
        return Ok(());
    }
    let why = format!("{image} is in no registry; nothing was written");
    Err(Error::new(ErrorKind::InvalidArgument, why)
        .hint("a bundle has images under the names that hosts ask registries for: r.io/os:stable"))
}

impl Work<'_> {
    async fn fill(&self, make: &Make, root: &Path) -> Result<Made> {
        let cx = self.job.cx;
        let os = Asked::new(Role::Os, make.image.clone(), "the bundle");
        let (base, os) = self.system(os).await?;
        let mut images = vec![os];
        let (asked, mut notes) = self.asked(make, root, &base).await?;
        let found = cx.step(Step::BindResolve, self.gather(asked, Vouch::Policy)).await?;
        for (asked, gathered) in found {
            match gathered {
                Ok(gathered) => images.push((asked.role, gathered)),
                // What it is for can do without it.
                Err(error) if asked.spec.mode == Mode::Prefetch && error.kind != ErrorKind::Cancelled => {
                    notes.push(format!("{} is not in the bundle: {}", asked.spec.reference, error.chain()));
                }
                Err(error) => return Err(lost(&asked.spec, error)),
            }
        }
        let signatures = cx.step(Step::BindResolve, self.signatures(&images, &mut notes)).await?;
        images.extend(signatures.into_iter().map(|signature| (Role::Signature, signature)));
        let (roles, gathered): (Vec<Role>, Vec<Gathered>) = images.into_iter().unzip();
        let simple = cx.step(Step::BindResolve, self.simple_signatures(&gathered)).await?;
        self.fetch(&gathered).await?;
        let (mut index, mut keep) = self.index(&roles, &gathered)?;
        keep.extend(simple.iter().map(|signature| signature.digest.clone()));
        index.images.extend(simple);
        let write = async {
            let size = self.draft.finish(&index, &keep)?;
            if let To::Archive(file) = &make.target {
                bundle::archive(&self.draft, file)?;
            }
            Ok(size)
        };
        let size = cx.step(Step::ExportPublish, write).await?;
        let path = match &make.target {
            To::Directory(path) | To::Archive(path) => path.clone(),
        };
        Ok(Made { path, size, images: index.images, notes })
    }

    /// The OS, in the bundle and in a repository, where it is looked at.
    async fn system(&self, os: Asked) -> Result<(Base, (Role, Gathered))> {
        let cx = self.job.cx;
        let goal = Goal::Rebase(os.spec.reference.clone());
        let Target::Image { resolved, .. } = resolve::target(&self.job.view(), &goal).await? else {
            return Err(Error::new(ErrorKind::Internal, "an OS is always an image"));
        };
        let gathered = bound::gather(cx, &os.spec, &self.skopeo, &self.opts, Vouch::None).await?;
        if gathered.digest != resolved.digest {
            let why = format!("{} was replaced meanwhile; the bundle is not complete", os.spec.reference);
            return Err(Error::new(ErrorKind::DigestMismatch, why).hint("try again"));
        }
        self.fetch(std::slice::from_ref(&gathered)).await?;
        let base = self.look(&resolved, &gathered).await?;
        Ok((base, (os.role, gathered)))
    }

    /// Imports the OS from the bundle into a repository of our own.
    async fn look(&self, resolved: &Resolved, os: &Gathered) -> Result<Base> {
        let layout = self.place.join("os");
        let manifest = os.manifest.as_ref().unwrap_or(&os.top);
        self.draft.put(manifest)?;
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(layout.join("blobs"))?;
            let blobs = layout.join("blobs/sha256");
            crate::sys::fs::remove_whole(&blobs)?;
            std::os::unix::fs::symlink(std::path::absolute(self.draft.blobs())?, &blobs)?;
            std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
            let index = serde_json::json!({"schemaVersion": 2, "manifests": [
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": os.digest,
                 "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": TAG}}]});
            std::fs::write(layout.join("index.json"), index.to_string())
        };
        write().doing("preparing to look at the OS")?;
        let here = Resolved { image: format!("oci:{}:{TAG}", layout.display()).parse()?, ..resolved.clone() };
        let own = accept_all(self.job.env, &self.opts)?;
        let own = FetchOptions { spool: None, ..own };
        let repo = self.job.env.layout.repo();
        let pull = crate::pull::pull(self.job.cx, &repo, &here, &own);
        self.job.cx.step(Step::PullLayers, pull).await
    }

    /// What the OS and the drop-ins ask for, and what somebody adds.
    async fn asked(&self, make: &Make, root: &Path, base: &Base) -> Result<(Vec<Asked>, Vec<String>)> {
        let (commit, drop_ins) = (base.commit.clone(), self.job.env.drop_ins()?);
        let root = Dir::open_ambient_dir(root, ambient_authority())
            .doing_with(|| format!("opening {}", root.display()))?;
        let look = self.job.store.run(self.job.cx, move |s, _| {
            let tree = CommitTree::open(&s.repo(), &commit)?;
            Ok((bound::discover(&tree, &root)?, read::read_from(&drop_ins, Some(&tree))?))
        });
        let (bound, manifest) = self.job.cx.step(Step::BindDiscover, look).await?;
        let mut asked: Vec<Asked> = bound.into_iter().map(|spec| Asked { role: Role::Bound, spec }).collect();
        let facts = Facts { version: base.version.as_deref(), labels: &base.labels };
        let layers = manifest.layers.iter().map(|layer| (Role::Layer, &layer.image, layer.owner.clone()));
        let extensions = manifest.packages.extensions.iter();
        let extensions = extensions.map(|(image, owners)| {
            (Role::Extension, image, owners.iter().cloned().collect::<Vec<_>>().join(", "))
        });
        let mut notes = Vec::new();
        for (role, image, owner) in layers.chain(extensions) {
            let reference = expand(image, &owner, facts)?;
            if reference.transport == Transport::Registry {
                asked.push(Asked::new(role, reference, &owner));
            } else {
                notes.push(format!("{reference} of {owner} is not in the bundle: it is in no registry"));
            }
        }
        asked.extend(make.others.iter().map(|image| Asked::new(Role::Other, image.clone(), "the bundle")));
        if !manifest.packages.is_empty() {
            notes.push("packages of repositories are not in the bundle: the host takes them from its cache, or its lock and repositories".into());
        }
        Ok((asked, notes))
    }

    async fn gather(&self, asked: Vec<Asked>, vouch: Vouch) -> Result<Vec<(Asked, Result<Gathered>)>> {
        let one = |asked: Asked| async move {
            let gathered = bound::gather(self.job.cx, &asked.spec, &self.skopeo, &self.opts, vouch).await;
            (asked, gathered)
        };
        let all = futures_util::stream::iter(asked).map(one).buffered(PARALLEL).collect().await;
        self.job.cx.checkpoint()?;
        Ok(all)
    }

    /// The signatures that registries have beside images: each a tag that is made of the digest of what is signed
    /// (containers-registries.d(5), `use-sigstore-attachments`).
    async fn signatures(
        &self,
        images: &[(Role, Gathered)],
        notes: &mut Vec<String>,
    ) -> Result<Vec<Gathered>> {
        let mut asked: Vec<Asked> = Vec::new();
        for (_, image) in images {
            for digest in [&Digest::of(&image.top), &image.digest] {
                let repository = image.spec.reference.repository();
                let reference: ImageRef =
                    format!("docker://{repository}:sha256-{}.sig", digest.hex()).parse()?;
                if asked.iter().any(|asked| asked.spec.reference == reference) {
                    continue;
                }
                // Reached as the image is, and for no platform.
                let (arch, os, variant) = (None, None, None);
                let spec = BoundSpec { reference, arch, os, variant, ..image.spec.clone() };
                asked.push(Asked { role: Role::Signature, spec });
            }
        }
        let mut found = Vec::new();
        for (asked, gathered) in self.gather(asked, Vouch::None).await? {
            match gathered {
                Ok(gathered) => found.push(gathered),
                // Most images have none.
                Err(e) if e.kind == ErrorKind::ImageNotFound => {}
                // Some registries do not even say that.
                Err(e) if e.kind == ErrorKind::AuthRequired => {
                    let of = asked.spec.reference.repository();
                    notes.push(format!("signatures of {of} are not in the bundle: {}", e.chain()));
                }
                Err(error) => return Err(lost(&asked.spec, error)),
            }
        }
        Ok(found)
    }

    /// The signatures that lie beside registries, by the configuration of this machine.
    async fn simple_signatures(&self, images: &[Gathered]) -> Result<Vec<Image>> {
        let configuration = bundle::configuration(&self.job.env.config_root()?)?;
        let mut found = Vec::new();
        let mut asked = BTreeSet::new();
        for image in images {
            let repository = image.spec.reference.repository();
            for digest in [&Digest::of(&image.top), &image.digest] {
                if !asked.insert((repository.to_owned(), digest.clone())) {
                    continue;
                }
                let fetch = bundle::fetch(self.job.cx, &configuration, repository, digest, &self.opts);
                for signature in fetch.await? {
                    found.push(Image {
                        reference: image.spec.reference.pinned(digest),
                        role: Role::SimpleSignature,
                        media_type: SIMPLE_SIGNATURE.into(),
                        digest: self.draft.put(&signature)?,
                        size: signature.len() as u64,
                    });
                }
            }
        }
        Ok(found)
    }

    async fn fetch(&self, images: &[Gathered]) -> Result<()> {
        let spool = self.place.join("spool");
        let came = |digest: &Digest| self.draft.take(&spool, digest);
        let has = |digest: &Digest, size| self.draft.has(digest, size);
        let fetch = bound::fetch(self.job.cx, images, &self.skopeo, &self.opts, has, came);
        self.job.cx.step(Step::PullImage, fetch).await
    }

    /// Writes the manifests; returns the index, and all that belongs to it.
    fn index(&self, roles: &[Role], images: &[Gathered]) -> Result<(Index, BTreeSet<Digest>)> {
        let (mut index, mut keep) = (Index::default(), BTreeSet::new());
        for (role, image) in roles.iter().zip(images) {
            let digest = self.draft.put(&image.top)?;
            keep.insert(digest.clone());
            if let Some(manifest) = &image.manifest {
                keep.insert(self.draft.put(manifest)?);
            }
            keep.extend(image.blobs.iter().map(|(digest, _)| digest.clone()));
            let entry = Image {
                reference: image.spec.reference.clone(),
                role: *role,
                media_type: bundle::media_type(&image.top),
                digest,
                size: image.top.len() as u64,
            };
            if !index.images.iter().any(|other| other.reference == entry.reference) {
                index.images.push(entry);
            }
        }
        Ok((index, keep))
    }
}

fn lost(spec: &BoundSpec, error: Error) -> Error {
    let why = format!(
        "{}, needed by {}, cannot be put into the bundle, which is not complete",
        spec.reference, spec.source
    );
    let hint = error.hint.clone();
    hint.into_iter().fold(Error::new(error.kind, why).source(error), Error::hint)
}
