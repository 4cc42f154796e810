//! What an update would bring and take, before a byte of it is here.
//!
//! The JSON form is `docs/plan.schema.json`.

use super::bytes::human;
use super::image::{Digest, ImageRef};
use super::text::one_line;
use super::{Error, ErrorKind, Result};
use std::collections::BTreeSet;

/// The version of the JSON form. Members are added within one, never changed.
const VERSION: u32 = 1;

/// An image with what its manifest says of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its size, as it is transferred.
    pub size: u64,
    /// How it is packed.
    pub media_type: String,
    /// Whether it need not be fetched.
    pub here: bool,
}

/// A digest with the version that it claims.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Release {
    /// The manifest of this architecture; `None` for what was made of no image.
    pub digest: Option<Digest>,
    /// The version label, which may be empty.
    pub version: String,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The image of the OS.
    Os,
    /// A bound image.
    Bound,
    /// Kernel and initramfs.
    Boot,
}

/// What a file system is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The repository and the deployments.
    Root,
    /// Kernels and boot entries.
    Boot,
    /// The store of bound images.
    Bound,
}

/// One part of an update, net of what is here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Part {
    /// For people.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The image, where it is one.
    pub reference: Option<ImageRef>,
    /// What will be fetched, whatever the reference means by then.
    pub digest: Option<Digest>,
    /// Bytes of layers to fetch. Manifests and configurations, some KB, are not counted.
    pub download: u64,
    /// The same on a host that has nothing.
    pub full_download: u64,
    /// Bytes that will be written.
    pub unpacked: u64,
    /// Whether `unpacked` is a guess: manifests do not say it.
    pub estimated: bool,
    /// Layers to fetch.
    pub layers_new: u32,
    /// Layers in all.
    pub layers_total: u32,
    /// Where it is written to.
    pub file_system: Role,
}

/// What one file system has to take.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileSystem {
    /// What it is for; several, where they are one file system.
    pub roles: Vec<Role>,
    /// A path on it.
    pub path: String,
    /// Bytes that must be free: what is written, what lies beside it while that happens, and a reserve.
    pub need: u64,
    /// Bytes that are.
    pub free: u64,
    /// Whether `need` is a guess.
    pub estimated: bool,
}

/// A place that parts are written to, as it was found.
#[derive(Debug, Clone)]
pub struct Place {
    /// What for.
    pub role: Role,
    /// Where.
    pub path: String,
    /// The number of its file system: equal ones are one.
    pub device: u64,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that are needed besides those of the parts.
    pub beside: u64,
}

/// An update, before it happens.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// The version of this format: 1.
    pub version: u32,
    /// The reference that was asked; `None` where the base stays and follows none.
    pub image: Option<ImageRef>,
    /// What would be deployed.
    pub target: Release,
    /// What the next boot takes without it.
    pub current: Option<Release>,
    /// Whether there is anything to do.
    pub changed: bool,
    /// The bytes to fetch, of all parts.
    pub download: u64,
    /// The same on a host that has nothing.
    pub full_download: u64,
    /// The bytes to write, of all parts.
    pub unpacked: u64,
    /// The parts: the OS, `/boot`, each bound image.
    pub parts: Vec<Part>,
    /// What the file systems have to take.
    pub file_systems: Vec<FileSystem>,
    /// What else changes, what is not known, what stands in the way.
    pub notes: Vec<String>,
}

/// What is planned, before the sums.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The reference that was asked.
    pub image: Option<ImageRef>,
    /// What would be deployed.
    pub target: Release,
    /// What the next boot takes without it.
    pub current: Option<Release>,
    /// Whether there is anything to do.
    pub changed: bool,
    /// The parts.
    pub parts: Vec<Part>,
    /// What the parts are written to.
    pub places: Vec<Place>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// A guess at what a layer unpacks to.
///
/// Measured on one image (a Debian with a desktop's tools): 1.08 GB are 387 MB in gzip layers, 356 MB in zstd layers.
/// Text unpacks to more and firmware to less; files that other layers share cost nothing, so that it is rather too much.
pub fn unpacked(media_type: &str, size: u64) -> u64 {
    let (times, of) = if media_type.ends_with("gzip") {
        (1080, 387)
    } else if media_type.contains("zstd") {
        (1080, 356)
    } else {
        (1, 1)
    };
    u64::try_from(u128::from(size) * times / of).unwrap_or(u64::MAX)
}

/// The space for blobs that wait on disk, beside what is unpacked already.
///
/// A blob that waits takes less than the room that it will be unpacked into. Only those that are being unpacked are on
/// the disk twice: so many as are imported at once, and the largest at worst.
pub fn spool(blobs: impl IntoIterator<Item = u64>, at_once: usize) -> u64 {
    let mut sizes: Vec<u64> = blobs.into_iter().collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sum(sizes.into_iter().take(at_once))
}

/// Sizes come from manifests, and may be anything.
fn sum(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

impl Part {
    /// The part that an image is.
    pub fn image(kind: Kind, reference: &ImageRef, digest: &Digest, layers: &[Layer]) -> Part {
        // One manifest may list a layer twice.
        let mut seen = BTreeSet::new();
        let layers: Vec<&Layer> = layers.iter().filter(|l| seen.insert(&l.digest)).collect();
        let new: Vec<&&Layer> = layers.iter().filter(|l| !l.here).collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (name, file_system) = match kind {
            Kind::Bound => (reference.name.as_str(), Role::Bound),
            Kind::Os | Kind::Boot => ("os", Role::Root),
        };
        Part {
            reference: Some(reference.clone()),
            digest: Some(digest.clone()),
            download: sum(new.iter().map(|l| l.size)),
            full_download: sum(layers.iter().map(|l| l.size)),
            unpacked: sum(new.iter().map(|l| unpacked(&l.media_type, l.size))),
            estimated: !new.is_empty(),
            layers_new: count(new.len()),
            layers_total: count(layers.len()),
            ..Part::none(name, kind, file_system)
        }
    }

    /// The base that is here, and stays.
    pub fn present(reference: Option<ImageRef>, digest: Digest) -> Part {
        Part { reference, digest: Some(digest), ..Part::none("os", Kind::Os, Role::Root) }
    }

    /// What goes to `/boot`.
    pub fn boot(bytes: u64, estimated: bool) -> Part {
        Part { unpacked: bytes, estimated, ..Part::none("kernel and initramfs", Kind::Boot, Role::Boot) }
    }

    fn none(name: &str, kind: Kind, file_system: Role) -> Part {
        Part {
            name: name.into(),
            kind,
            reference: None,
            digest: None,
            download: 0,
            full_download: 0,
            unpacked: 0,
            estimated: false,
            layers_new: 0,
            layers_total: 0,
            file_system,
        }
    }
}

impl Plan {
    /// Adds everything up.
    pub fn new(facts: Facts) -> Plan {
        let Facts { image, target, current, changed, parts, places, notes } = facts;
        let notes = notes.iter().map(|note| one_line(note)).collect();
        let mut file_systems: Vec<(u64, FileSystem)> = Vec::new();
        for place in places {
            let here = || parts.iter().filter(|p| p.file_system == place.role);
            let need = sum(here().map(|p| p.unpacked)).saturating_add(place.beside);
            let estimated = here().any(|p| p.estimated);
            match file_systems.iter_mut().find(|(device, _)| *device == place.device) {
                Some((_, known)) => {
                    known.roles.push(place.role);
                    known.need = known.need.saturating_add(need);
                    known.estimated |= estimated;
                }
                None => {
                    let (roles, path, free) = (vec![place.role], place.path, place.free);
                    file_systems.push((place.device, FileSystem { roles, path, need, free, estimated }));
                }
            }
        }
        Plan {
            version: VERSION,
            image,
            target,
            current,
            changed,
            download: sum(parts.iter().map(|p| p.download)),
            full_download: sum(parts.iter().map(|p| p.full_download)),
            unpacked: sum(parts.iter().map(|p| p.unpacked)),
            parts,
            file_systems: file_systems.into_iter().map(|(_, fs)| fs).collect(),
            notes,
        }
    }

    /// The bytes that go to `/boot`, and whether that is a guess.
    pub fn boot(&self) -> (u64, bool) {
        let boot = || self.parts.iter().filter(|p| p.kind == Kind::Boot);
        (sum(boot().map(|p| p.unpacked)), boot().any(|p| p.estimated))
    }

    /// Whether what is written is a guess.
    pub fn estimated(&self) -> bool {
        self.parts.iter().any(|p| p.estimated)
    }

    /// Fails with `NoSpace`, or `BootNoSpace` where it is only `/boot`, if a file system cannot take its part.
    pub fn fits(&self) -> Result<()> {
        let Some(fs) = self.file_systems.iter().find(|fs| fs.need > fs.free) else { return Ok(()) };
        let kind = if fs.roles == [Role::Boot] { ErrorKind::BootNoSpace } else { ErrorKind::NoSpace };
        let about = if fs.estimated { "about " } else { "" };
        let why = format!(
            "{} has {} free and the update needs {about}{}; nothing was downloaded, the running system is unchanged",
            fs.path,
            human(fs.free),
            human(fs.need)
        );
        Err(Error::new(kind, why)
            .hint("drop a pinned deployment with: osctl unpin ID, or free space by hand; sizes: osctl plan --sizes")
            .detail("fs", &fs.path)
            .detail("need", fs.need)
            .detail("have", fs.free))
    }

    /// Fails with `Rejected` if more would be downloaded than the caller wants.
    pub fn within(&self, max_bytes: Option<u64>) -> Result<()> {
        match max_bytes {
            Some(limit) if self.download > limit => Err(too_much(self.download, limit, "downloaded")),
            Some(_) | None => Ok(()),
        }
    }
}

/// What is said of a download that is larger than the caller wants. `undone` is what has not happened.
pub fn too_much(need: u64, limit: u64, undone: &str) -> Error {
    let why = format!(
        "{} would be downloaded and {} are allowed; nothing was {undone}, the running system is unchanged",
        human(need),
        human(limit)
    );
    Error::new(ErrorKind::Rejected, why)
        .hint(format!("allow it with: --max-bytes {need}"))
        .detail("need", need)
        .detail("limit", limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn layer(name: &str, size: u64, here: bool) -> Layer {
        Layer { digest: Digest::of(name.as_bytes()), size, media_type: GZIP.into(), here }
    }

    fn image(kind: Kind, layers: &[Layer]) -> Part {
        Part::image(kind, &"r.io/app:1".parse().unwrap(), &Digest::of(b"m"), layers)
    }

    fn place(role: Role, device: u64, free: u64, beside: u64) -> Place {
        Place { role, path: format!("/{device}"), device, free, beside }
    }

    fn plan(parts: Vec<Part>, places: Vec<Place>) -> Plan {
        let target = Release { digest: Some(Digest::of(b"m")), version: "2".into() };
        let (image, current, notes) = (None, None, Vec::new());
        Plan::new(Facts { image, target, current, changed: true, parts, places, notes })
    }

    #[test]
    fn what_a_layer_unpacks_to_is_guessed_from_how_it_is_packed() {
        for (media_type, size, expected) in [
            (GZIP, 387_000_000, 1_080_000_000),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", 387, 1080),
            ("application/vnd.oci.image.layer.v1.tar+zstd", 356, 1080),
            ("application/vnd.oci.image.layer.v1.tar", 5, 5),
            (GZIP, 0, 0),
            (GZIP, u64::MAX, u64::MAX),
        ] {
            assert_eq!(unpacked(media_type, size), expected, "{media_type} {size}");
        }
    }

    #[test]
    fn a_blob_waits_beside_what_is_unpacked_only_while_that_happens() {
        for (blobs, at_once, expected) in [
            (&[][..], 2, 0),
            (&[5, 9, 7], 2, 16),
            (&[5], 4, 5),
            (&[u64::MAX, u64::MAX], 2, u64::MAX),
            (&[5], 0, 0),
        ] {
            assert_eq!(spool(blobs.iter().copied(), at_once), expected, "{blobs:?}");
        }
    }

    #[test]
    fn what_is_here_costs_nothing_and_a_layer_costs_once() {
        let part = image(Kind::Os, &[layer("a", 387, false), layer("b", 100, true), layer("a", 387, false)]);
        assert_eq!((part.download, part.full_download, part.unpacked), (387, 487, 1080));
        assert_eq!((part.layers_new, part.layers_total, part.estimated), (1, 2, true));
        let part = image(Kind::Bound, &[layer("a", 387, true)]);
        assert_eq!((part.download, part.full_download, part.unpacked), (0, 387, 0));
        assert_eq!((part.layers_new, part.layers_total, part.estimated), (0, 1, false));
    }

    #[test]
    fn sums_are_of_all_parts_and_one_file_system_is_counted_once() {
        let parts = vec![
            image(Kind::Os, &[layer("a", 387, false)]),
            Part::boot(60, false),
            image(Kind::Bound, &[layer("c", 387, false)]),
        ];
        let places = vec![
            place(Role::Root, 1, 9000, 10),
            place(Role::Boot, 2, 100, 1),
            place(Role::Bound, 1, 9000, 5),
        ];
        let plan = plan(parts, places);
        assert_eq!(
            (plan.download, plan.full_download, plan.unpacked, plan.boot()),
            (774, 774, 2220, (60, false))
        );
        let fs = |roles: &[Role], path: &str, need, free, estimated| FileSystem {
            roles: roles.into(),
            path: path.into(),
            need,
            free,
            estimated,
        };
        let expected =
            [fs(&[Role::Root, Role::Bound], "/1", 2175, 9000, true), fs(&[Role::Boot], "/2", 61, 100, false)];
        assert_eq!(plan.file_systems, expected);
        plan.fits().unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let os = || image(Kind::Os, &[layer("a", 387, false)]);
        for (parts, places, expected) in [
            (vec![os()], vec![place(Role::Root, 1, 1080, 0)], None),
            (vec![os()], vec![place(Role::Root, 1, 1080, 1)], Some((ErrorKind::NoSpace, "1081", "1080"))),
            (
                vec![Part::boot(60, true)],
                vec![place(Role::Root, 1, 0, 0), place(Role::Boot, 2, 60, 1)],
                Some((ErrorKind::BootNoSpace, "61", "60")),
            ),
            (
                vec![Part::boot(60, true)],
                vec![place(Role::Root, 1, 60, 1), place(Role::Boot, 1, 60, 0)],
                Some((ErrorKind::NoSpace, "61", "60")),
            ),
            (
                vec![image(Kind::Bound, &[layer("a", u64::MAX, false)])],
                vec![place(Role::Bound, 1, 7, 7)],
                Some((ErrorKind::NoSpace, "18446744073709551615", "7")),
            ),
        ] {
            let found = plan(parts, places).fits().err();
            let found =
                found.as_ref().map(|e| (e.kind, e.details["need"].as_str(), e.details["have"].as_str()));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn more_than_the_caller_allows_is_refused() {
        let plan = plan(vec![image(Kind::Os, &[layer("a", 387, false)])], Vec::new());
        plan.within(None).unwrap();
        plan.within(Some(387)).unwrap();
        let error = plan.within(Some(386)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
        assert_eq!((error.details["need"].as_str(), error.details["limit"].as_str()), ("387", "386"));
    }

    #[test]
    fn a_plan_survives_json() {
        let parts = vec![image(Kind::Bound, &[layer("a", 387, false)]), Part::boot(60, true)];
        let plan = plan(parts, vec![place(Role::Bound, 1, 7, 7)]);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
