//! What a bundle says of itself: the `index.json` of an OCI layout (image-spec, image-layout.md) that holds the images of an
//! update under the names by which hosts know them.

use super::image::{Digest, ImageRef, Transport, full_name};
use super::{Context, Error, ErrorKind, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The annotation with the name of an image.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that says what an image is for.
const ROLE: &str = "org.osctl.bundle.role";
/// The annotation of an index that says that we wrote it.
const VERSION: &str = "org.osctl.bundle.version";
/// Images in one bundle. A person made it, and a daemon reads it.
const MOST: usize = 10_000;

/// What an image of a bundle is for. It says nothing to a host, which knows what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The OS.
    Os,
    /// An app image that the OS, or a drop-in, binds.
    Bound,
    /// A layer on top of the OS.
    Layer,
    /// An image that carries packages.
    Extension,
    /// A signature of another one, as registries have it: a tag made of a digest.
    Signature,
    /// A signature of another one, as it lies beside registries. It is no image: what its name says is what is signed.
    SimpleSignature,
    /// Whatever else somebody put in.
    Other,
}

impl Role {
    const ALL: [Role; 7] = [
        Role::Os,
        Role::Bound,
        Role::Layer,
        Role::Extension,
        Role::Signature,
        Role::SimpleSignature,
        Role::Other,
    ];

    /// As it stands in the index.
    pub fn name(self) -> &'static str {
        match self {
            Role::Os => "os",
            Role::Bound => "bound",
            Role::Layer => "layer",
            Role::Extension => "extension",
            Role::Signature => "signature",
            Role::SimpleSignature => "simple-signature",
            Role::Other => "other",
        }
    }
}

/// An image of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Image {
    /// The name that hosts ask for, with a tag or a digest.
    pub reference: ImageRef,
    /// What it is for.
    pub role: Role,
    /// The media type of its manifest, or of the list of manifests that the name stands for.
    #[serde(skip)]
    pub media_type: String,
    /// The digest of that.
    pub digest: Digest,
    /// The bytes of that.
    #[serde(skip)]
    pub size: u64,
}

/// Everything that a bundle offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// The images, in the order of the file.
    pub images: Vec<Image>,
    /// The manifests that lists of those name, as far as they are there, by the full names of the repositories.
    pub instances: BTreeSet<(String, Digest)>,
    /// Repositories that the host blocks, and why.
    pub blocked: BTreeMap<String, String>,
}

impl Index {
    /// Reads an `index.json`. Entries without the name of an image in a registry are nothing that a host asks for.
    pub fn parse(text: &[u8]) -> Result<Index> {
        let wrong = "the bundle's index.json is none of an OCI layout";
        let index: Value = serde_json::from_slice(text).kind(ErrorKind::InvalidArgument, wrong)?;
        let entries =
            index["manifests"].as_array().ok_or_else(|| Error::new(ErrorKind::InvalidArgument, wrong))?;
        if entries.len() > MOST {
            let why = format!("the bundle has {} images, and can have {MOST}", entries.len());
            return Err(Error::new(ErrorKind::InvalidArgument, why));
        }
        Ok(Index { images: entries.iter().filter_map(image).collect(), ..Index::default() })
    }

    /// The text of an `index.json`.
    pub fn text(&self) -> String {
        let one = |image: &Image| {
            let (repository, name) = (image.reference.repository(), &image.reference.name);
            let name = format!("{}{}", full_name(repository), &name[repository.len()..]);
            json!({"mediaType": image.media_type, "digest": image.digest, "size": image.size,
                "annotations": {NAME: name, ROLE: image.role.name()}})
        };
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.images.iter().map(one).collect::<Vec<_>>(), "annotations": {VERSION: "1"}});
        format!("{index}\n")
    }

    /// Whether somebody may write a bundle over the layout that has this index: it is one of ours.
    pub fn is_ours(text: &[u8]) -> bool {
        serde_json::from_slice(text).is_ok_and(|index: Value| index["annotations"][VERSION].is_string())
    }

    /// Whether a host can ask for this: by a tag that is in it, or by the digest of what is.
    pub fn offers(&self, reference: &ImageRef) -> bool {
        let name = full_name(reference.repository());
        let same = |other: &ImageRef| full_name(other.repository()) == name;
        let mut there = self.images.iter().filter(|image| same(&image.reference));
        match reference.digest() {
            Some(digest) => {
                there.any(|image| image.digest == digest)
                    || self.instances.contains(&(name.clone(), digest.clone()))
            }
            None => there
                .any(|image| image.reference.digest().is_none() && tag(&image.reference) == tag(reference)),
        }
    }

    /// Fails with `ImageNotFound` where a host cannot ask for this, and with `SignatureRejected` where it must not.
    pub fn require(&self, reference: &ImageRef) -> Result<()> {
        if reference.transport != Transport::Registry {
            return Ok(());
        }
        if let Some(why) = self.blocked.get(&full_name(reference.repository())) {
            return Err(Error::new(ErrorKind::SignatureRejected, why.clone()));
        }
        if self.offers(reference) {
            return Ok(());
        }
        let why = format!("the bundle does not have {reference}; the running system is unchanged");
        let hint = format!("make one that has it: osctl bundle create --image {} ...", reference.name);
        Err(Error::new(ErrorKind::ImageNotFound, why).hint(hint))
    }

    /// The digest of each tag, by the full name of the repository. Repositories without a tag are there, too.
    pub fn repositories(&self) -> BTreeMap<String, BTreeMap<&str, &Digest>> {
        let mut all: BTreeMap<String, BTreeMap<&str, &Digest>> = BTreeMap::new();
        for image in &self.images {
            let tags = all.entry(full_name(image.reference.repository())).or_default();
            if image.reference.digest().is_none() {
                tags.insert(tag(&image.reference), &image.digest);
            }
        }
        all
    }

    /// The images that are an OS, for a message.
    pub fn systems(&self) -> impl Iterator<Item = &Image> {
        self.images.iter().filter(|image| image.role == Role::Os)
    }
}

/// The tag that a reference means.
fn tag(reference: &ImageRef) -> &str {
    reference.tag().unwrap_or("latest")
}

fn image(entry: &Value) -> Option<Image> {
    let annotations = &entry["annotations"];
    let reference: ImageRef = annotations[NAME].as_str()?.parse().ok()?;
    let role = annotations[ROLE].as_str();
    // A bare tag, as other tools write it, reads like a short name of Docker Hub; ours are whole.
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/@[]".contains(c);
    let named = reference.transport == Transport::Registry
        && reference.name.contains('/')
        && reference.name.chars().all(plain);
    named.then_some(())?;
    Some(Image {
        reference,
        role: Role::ALL.into_iter().find(|r| Some(r.name()) == role).unwrap_or(Role::Other),
        media_type: entry["mediaType"].as_str()?.to_owned(),
        digest: entry["digest"].as_str()?.parse().ok()?,
        size: entry["size"].as_u64()?,
    })
}

/// What is to be put into a bundle.
#[derive(Debug, Clone)]
pub struct Make {
    /// The OS.
    pub image: ImageRef,
    /// Drop-ins: a directory, a root that has them in `etc/osctl`, or a file.
    pub input: Option<PathBuf>,
    /// Images beside those that the OS and the drop-ins ask for.
    pub others: Vec<ImageRef>,
    /// Credentials for all registries, in place of the machine's.
    pub auth_file: Option<PathBuf>,
    /// Where it goes.
    pub target: Target,
    /// Where what was fetched is kept.
    pub work: Option<PathBuf>,
}

/// Where a bundle goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A directory.
    Directory(PathBuf),
    /// A tar file.
    Archive(PathBuf),
}

/// A bundle that was made.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Made {
    /// Where it is.
    pub path: PathBuf,
    /// The bytes of all blobs.
    pub size: u64,
    /// What is in it.
    pub images: Vec<Image>,
    /// What a person should know.
    pub notes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(name: &str, role: Role) -> Image {
        Image {
            reference: name.parse().unwrap(),
            role,
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: Digest::of(name.as_bytes()),
            size: 7,
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let pinned = format!("r.io/app@{}", Digest::of(b"list"));
        let names =
            [("r.io:5000/os:stable", Role::Os), (&pinned, Role::Bound), ("r.io/ext", Role::Extension)];
        let images = names.iter().map(|(name, role)| image(name, *role)).collect();
        let index = Index { images, ..Index::default() };
        let text = index.text();
        assert_eq!(Index::parse(text.as_bytes()).unwrap(), index);
        assert!(Index::is_ours(text.as_bytes()));
        assert!(!Index::is_ours(br#"{"manifests":[]}"#));
    }

    #[test]
    fn a_host_is_offered_the_tags_and_digests_that_are_in_the_bundle() {
        let pinned = format!("r.io/app@{}", Digest::of(b"list"));
        let index = Index {
            images: vec![
                image("r.io/os:stable", Role::Os),
                image(&pinned, Role::Bound),
                image("r.io/x", Role::Other),
                image("docker.io/library/hub:1", Role::Other),
            ],
            instances: BTreeSet::from([("r.io/app".to_owned(), Digest::of(b"instance"))]),
            ..Index::default()
        };
        let (instance, other) = (Digest::of(b"instance"), Digest::of(b"other"));
        for (name, expected) in [
            ("r.io/os:stable".to_owned(), true),
            ("r.io/os:next".to_owned(), false),
            ("r.io/os".to_owned(), false),
            (format!("r.io/os@{}", Digest::of(b"r.io/os:stable")), true),
            (format!("r.io/os@{other}"), false),
            (format!("r.io/app@{instance}"), true),
            (format!("r.io/app@{other}"), false),
            ("hub:1".to_owned(), true),
            ("docker.io/hub:1".to_owned(), true),
            ("docker.io/me/hub:1".to_owned(), false),
            ("r.io/app:1".to_owned(), false),
            ("r.io/x:latest".to_owned(), true),
            ("r.io/x/y:latest".to_owned(), false),
            (format!("r.io/none@{other}"), false),
        ] {
            assert_eq!(index.offers(&name.parse().unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn what_other_tools_wrote_is_taken_as_far_as_it_has_names() {
        let entry = |name: &str| json!({"mediaType": "m", "digest": Digest::of(b"x"), "size": 1, "annotations": {NAME: name}});
        let text =
            json!({"manifests": [entry("stable"), entry("r.io/os:1"), entry("oci:/x"), {"digest": 7}]});
        let index = Index::parse(text.to_string().as_bytes()).unwrap();
        let names: Vec<_> = index.images.iter().map(|i| (i.reference.name.as_str(), i.role)).collect();
        assert_eq!(names, [("r.io/os:1", Role::Other)]);
        for text in ["", "[]", "{}", r#"{"manifests":{}}"#] {
            assert_eq!(Index::parse(text.as_bytes()).unwrap_err().kind, ErrorKind::InvalidArgument, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "\\PC*", name in "\\PC*") {
            let _ = Index::parse(text.as_bytes());
            let entry = json!({"manifests": [{"mediaType": name, "digest": name, "size": 1, "annotations": {NAME: name}}]});
            let _ = Index::parse(entry.to_string().as_bytes());
        }
    }
}
