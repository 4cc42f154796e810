//! Building an image from a base and drop-ins: what is asked, what says it afterwards, and when it is the same again.

use super::error::{Error, ErrorKind, Result};
use super::image::{Digest, ImageRef, Transport};
use super::manifest::{Manifest, Node};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Label: the digest of the base's manifest (image-spec, annotations).
pub const LABEL_BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
/// Label: the name of the base (image-spec, annotations).
pub const LABEL_BASE_NAME: &str = "org.opencontainers.image.base.name";
/// Label: the digest of all drop-ins, those of the base included.
pub const LABEL_INPUT: &str = "org.osctl1.input-digest";
/// Label: the digest of what was handed in, known before the base is here.
pub const LABEL_HANDED_IN: &str = "org.osctl1.handed-in-digest";
/// Label: the digest of the lock, where there are packages.
pub const LABEL_LOCK: &str = "org.osctl1.lock-digest";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Build {
    /// The image to derive from.
    pub base: ImageRef,
    /// A directory of drop-ins, a root that has one, or a single drop-in.
    pub input: PathBuf,
    /// The lock to use where it fits; without one, the root's that was named as input.
    pub lock: Option<PathBuf>,
    /// Where the image goes.
    pub target: ImageRef,
    /// Credentials for both.
    pub auth_file: Option<PathBuf>,
    /// What stays for the next build; without it nothing does.
    pub work: Option<PathBuf>,
    /// Install exactly what the lock says, or fail.
    pub frozen: bool,
    /// Solve packages anew, whatever the lock or the image of before says.
    pub update_lock: bool,
    /// Leave out the files that the base has in `/var`.
    pub drop_var: bool,
    /// Build although a file is for its owner only.
    pub allow_secrets: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Built {
    /// Whether there is a new image.
    pub changed: bool,
    /// Where the image is.
    pub image: ImageRef,
    /// The digest of its manifest.
    pub digest: Digest,
    /// Where it is from.
    #[serde(flatten)]
    pub origin: Origin,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What is asked for where the root itself is derived.
#[derive(Debug, Clone)]
pub struct InPlace {
    /// The root; without one that of the container that is being built.
    pub root: Option<PathBuf>,
    /// A directory of drop-ins, a root that has one, or a single drop-in; without one those that the root has.
    pub input: Option<PathBuf>,
    /// The lock to use where it fits.
    pub lock: Option<PathBuf>,
    /// Install exactly what the lock says, or fail.
    pub frozen: bool,
    /// Solve packages anew, whatever the lock says.
    pub update_lock: bool,
    /// Change it although a file is for its owner only.
    pub allow_secrets: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Applied {
    /// Whether the root was changed.
    pub changed: bool,
    /// The root.
    pub root: PathBuf,
    /// What it is made of: the base is the tree of before, by a digest of its own.
    #[serde(flatten)]
    pub origin: Origin,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What decides an image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Origin {
    /// The digest of the base's manifest.
    pub base_digest: Digest,
    /// The digest of all drop-ins.
    pub input_digest: Digest,
    /// The digest of the lock, where there are packages.
    pub lock_digest: Option<Digest>,
}

impl Origin {
    /// What the labels of an image say, if osctl built it.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Option<Origin> {
        let digest = |label: &str| labels.get(label).and_then(|text| text.parse().ok());
        Some(Origin {
            base_digest: digest(LABEL_BASE_DIGEST)?,
            input_digest: digest(LABEL_INPUT)?,
            lock_digest: digest(LABEL_LOCK),
        })
    }

    /// The labels of an image, over those of its base; `None` is one that must not be there.
    pub fn labels(&self, base: &ImageRef, handed_in: &Digest) -> BTreeMap<&'static str, Option<String>> {
        // A path of the machine that built it would mean nothing elsewhere.
        let name = (base.transport == Transport::Registry).then(|| base.name.clone());
        BTreeMap::from([
            (LABEL_BASE_DIGEST, Some(self.base_digest.to_string())),
            (LABEL_BASE_NAME, name),
            (LABEL_INPUT, Some(self.input_digest.to_string())),
            (LABEL_HANDED_IN, Some(handed_in.to_string())),
            (LABEL_LOCK, self.lock_digest.as_ref().map(Digest::to_string)),
        ])
    }
}

/// The digest of what is handed in: what is declared, and which drop-ins of the base it replaces or masks.
pub fn handed_in(names: &[(String, bool)], declared: &Manifest) -> Digest {
    let decides = (names, declared.input_digest());
    Digest::of(&serde_json::to_vec(&decides).expect("lists of strings always serialise"))
}

/// Whether an image with these labels is what a build would give, as far as that is known before anything is fetched.
///
/// Without a lock of its own a build goes on with what the image was made of.
pub fn is_same(
    labels: &BTreeMap<String, String>,
    base: &Digest,
    handed_in: &Digest,
    lock: Option<&Digest>,
) -> Option<Origin> {
    let origin = Origin::of_labels(labels)?;
    let same = origin.base_digest == *base
        && labels.get(LABEL_HANDED_IN).map(String::as_str) == Some(handed_in.as_str())
        && (lock.is_none() || origin.lock_digest.is_none() || origin.lock_digest.as_ref() == lock);
    same.then_some(origin)
}

/// Refuses files that only their owner can read: everybody who gets the image can read it.
pub fn no_secrets(declared: &Manifest) -> Result<()> {
    let secret = |(path, node): (&String, &Node)| match node {
        Node::File(f) if f.meta.mode & 0o077 == 0 => Some((path.clone(), f.owner.clone(), f.meta.mode)),
        Node::File(_) | Node::Directory(_) | Node::Link(_) => None,
    };
    let Some((path, owner, mode)) = declared.nodes.iter().find_map(secret) else { return Ok(()) };
    let why = format!(
        "{owner}: {path} has the mode {mode:04o}, and whoever gets an image can read everything in it; nothing was built"
    );
    Err(Error::new(ErrorKind::Unsupported, why)
        .hint("leave the file to the host (LoadCredential= of systemd), or build with --allow-secrets")
        .detail("drop-in", owner)
        .detail("path", path))
}

/// Refuses what cannot be a target.
pub fn target(image: &ImageRef) -> Result<()> {
    let refuse = |why: &str| {
        Err(Error::new(ErrorKind::InvalidArgument, format!("{image} cannot be built: {why}"))
            .hint("one of oci:PATH[:TAG], oci-archive:PATH[:TAG], containers-storage:NAME, docker://NAME"))
    };
    match image.transport {
        Transport::Dir => refuse("images are not written as dir:"),
        _ if image.digest().is_some() => refuse("nobody knows its digest before"),
        Transport::Registry | Transport::Oci | Transport::OciArchive | Transport::ContainersStorage => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::contents::Contents;
    use crate::model::manifest::{File, Meta, OnConflict};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn labels_say_what_an_image_is_made_of_and_nothing_of_where() {
        let origin = Origin {
            base_digest: digest("base"),
            input_digest: digest("input"),
            lock_digest: Some(digest("lock")),
        };
        let labels = |image: &str| origin.labels(&image.parse().unwrap(), &digest("handed in"));
        let texts = |labels: BTreeMap<&str, Option<String>>| -> BTreeMap<String, String> {
            labels.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect()
        };
        let there = texts(labels("r.io/os:1"));
        assert_eq!(Origin::of_labels(&there), Some(origin.clone()));
        assert_eq!(there[LABEL_BASE_NAME], "r.io/os:1");
        assert_eq!(labels("oci:/home/me/os")[LABEL_BASE_NAME], None);
        assert_eq!(Origin::of_labels(&BTreeMap::new()), None);
    }

    #[test]
    fn an_image_is_the_same_if_base_input_and_a_given_lock_are() {
        let origin = |lock: Option<&str>| Origin {
            base_digest: digest("base"),
            input_digest: digest("input"),
            lock_digest: lock.map(digest),
        };
        let (lock, other) = (Some(digest("lock")), Some(digest("other")));
        for (has, base, handed, given, same) in [
            (Some("lock"), "base", "handed", &None, true),
            (Some("lock"), "base", "handed", &lock, true),
            (Some("lock"), "base", "handed", &other, false),
            (None, "base", "handed", &other, true),
            (Some("lock"), "new base", "handed", &None, false),
            (Some("lock"), "base", "other input", &None, false),
        ] {
            let labels = origin(has).labels(&"r.io/os:1".parse().unwrap(), &digest("handed"));
            let labels = labels.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
            let found = is_same(&labels, &digest(base), &digest(handed), given.as_ref());
            assert_eq!(found, same.then(|| origin(has)), "{has:?} {base} {handed} {given:?}");
        }
    }

    #[test]
    fn what_is_handed_in_is_also_what_it_masks() {
        let name = |there| [("50-a.yaml".to_owned(), there)];
        let empty = Manifest::default();
        assert_eq!(handed_in(&name(true), &empty), handed_in(&name(true), &empty));
        assert_ne!(handed_in(&name(true), &empty), handed_in(&name(false), &empty));
        assert_ne!(handed_in(&name(true), &empty), handed_in(&[], &empty));
    }

    #[test]
    fn a_file_for_its_owner_only_is_a_secret() {
        for (mode, secret) in
            [(0o600, true), (0o400, true), (0o700, true), (0o640, false), (0o604, false), (0o644, false)]
        {
            let file = File {
                owner: "50-a.yaml".into(),
                meta: Meta { mode, uid: 0, gid: 0 },
                contents: Contents::Here(b"secret".to_vec()),
                overwrite: false,
                on_conflict: OnConflict::Error,
            };
            let nodes = BTreeMap::from([("/etc/key".to_owned(), Node::File(file))]);
            let refused = no_secrets(&Manifest { nodes, ..Manifest::default() });
            assert_eq!(refused.is_err(), secret, "{mode:o}");
            if let Err(error) = refused {
                assert_eq!(error.kind, ErrorKind::Unsupported);
                assert!(error.to_string().starts_with("50-a.yaml: /etc/key has the mode "), "{error}");
            }
        }
    }

    #[test]
    fn a_target_is_a_place_that_has_no_digest_yet() {
        let pinned = format!("r.io/os@{}", digest("x"));
        for (image, fits) in [
            ("oci:/x/y:1", true),
            ("oci-archive:/x.tar", true),
            ("containers-storage:localhost/os:1", true),
            ("r.io/os:1", true),
            ("dir:/x", false),
            (&pinned, false),
        ] {
            assert_eq!(target(&image.parse().unwrap()).is_ok(), fits, "{image}");
        }
    }
}
