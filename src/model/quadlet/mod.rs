//! Quadlet files, as far as they decide which images podman will want.
//!
//! ```text
//! text ── syntax ──► entries of the unit and its drop-ins ── Unit::wants ──► images, other units, Kubernetes YAML
//! ```

mod arguments;
mod kube;
mod names;
mod syntax;

pub use kube::{KubeImage, Kubernetes};
pub use names::{Type, drop_in_dirs};

use super::bound::{BoundSpec, Platform, Policy, absolute, refused, refused_as, registry_reference};
use super::{Error, ErrorKind, Result};
use names::BUILT;
use syntax::{Entry, entries};

/// What a unit asks for, beside what it names itself.
#[derive(Debug, Default)]
pub struct Wants {
    /// Images and files, in the order of the keys.
    pub list: Vec<Want>,
    /// What is allowed, and probably not meant.
    pub warnings: Vec<Error>,
}

/// One thing that a unit asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// An image of a registry.
    Image(Box<BoundSpec>),
    /// What another unit asks for: `x.image`, or `x.volume`, which may ask for nothing.
    Unit(Pointer),
    /// All images of a Kubernetes YAML file; a relative path begins where the unit is.
    Yaml(Pointer, WorkingDirectory),
}

/// A name in a unit, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    /// A file name, or a path.
    pub name: String,
    /// The file that says so.
    pub file: String,
    /// Its line, from one.
    pub line: usize,
    /// The key.
    pub key: String,
}

impl Pointer {
    /// An error about it: `FILE:LINE: KEY=NAME: why`.
    pub fn refused(&self, why: &str) -> Error {
        let why = format!("{}={}: {why}", self.key, self.name);
        refused(&self.file, Some(self.line), why).detail("key", &self.key)
    }
}

/// Where podman runs, which is where it looks for directories to build images from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkingDirectory {
    /// The directory of the YAML file.
    Yaml,
    /// The directory of the unit.
    Unit,
    /// This one, an absolute path.
    Path(String),
}

/// A unit file with the drop-ins that were merged into it.
#[derive(Debug, Clone)]
pub struct Unit {
    file: String,
    entries: Vec<Entry>,
}

impl Unit {
    /// Parses a unit file; `file` is its path, for messages.
    pub fn parse(text: &str, file: &str) -> Result<Unit> {
        Ok(Unit { file: file.to_owned(), entries: entries(text, file)? })
    }

    /// Adds a drop-in: its keys come after all the others.
    pub fn merge(&mut self, text: &str, file: &str) -> Result<()> {
        self.entries.extend(entries(text, file)?);
        Ok(())
    }

    /// What the unit asks for. `source` is the file that the administrator would look for: the link.
    pub fn wants(&self, kind: Type, source: &str) -> Result<Wants> {
        match kind {
            Type::Container => self.container(source),
            Type::Image => self.image(source),
            Type::Kube => self.kube(),
            Type::Volume => self.volume(source),
        }
    }

    fn container(&self, source: &str) -> Result<Wants> {
        const SECTION: &str = "Container";
        let mut wants = Wants::default();
        for key in ["AuthFile", "TLSVerify", "Creds", "CertDir", "Arch", "OS", "Variant", "Policy"] {
            if let Some(entry) = self.written(SECTION, key) {
                return Err(fail(entry, format!("{key}= is not a key of [Container]"))
                    .hint("put it into an .image file and write Image=NAME.image"));
            }
        }
        if let Some(root) = self.last(SECTION, "Rootfs") {
            return Err(fail(root, "Rootfs= runs a directory, so there is no image to bind"));
        }
        let image = self.required(SECTION, "Image")?;
        wants.list.push(self.image_or_unit(image, source)?);
        let mut mounts = self.arguments(SECTION)?;
        for entry in self.all(SECTION, "Mount") {
            mounts
                .extend(syntax::words(&entry.raw).unwrap_or_default().into_iter().map(|word| (entry, word)));
        }
        for (entry, mount) in mounts {
            let Some(image) = arguments::mounted_image(&mount) else { continue };
            wants.list.push(match image.ends_with(".image") {
                true => Want::Unit(pointer(entry, literal(entry, &image)?)),
                false => registry(entry, &literal(entry, &image)?, source)?,
            });
        }
        for entry in self.all(SECTION, "Volume") {
            let volume =
                entry.raw.split(':').next().filter(|v| entry.raw.contains(':') && v.ends_with(".volume"));
            if let Some(volume) = volume {
                wants.list.push(Want::Unit(pointer(entry, literal(entry, volume)?)));
            }
        }
        if let Some(pull) = self.last(SECTION, "Pull") {
            match pull.text() {
                "missing" | "never" => {}
                "always" | "newer" => wants.warnings.push(
                    fail(pull, format!("Pull={}: podman asks the registry at each start", pull.text()))
                        .hint("write Pull=missing, so that it starts without a network"),
                ),
                other => {
                    return Err(fail(pull, format!("Pull={other} is no policy of podman"))
                        .hint("it is one of missing, never, newer and always"));
                }
            }
        }
        Ok(wants)
    }

    fn image(&self, source: &str) -> Result<Wants> {
        const SECTION: &str = "Image";
        for entry in self.entries.iter().filter(|e| e.section == SECTION) {
            if !IMAGE_KEYS.contains(&&*entry.key) && !REFUSED.iter().any(|(key, ..)| *key == entry.key) {
                return Err(fail(entry, format!("unknown key {}=", entry.key)));
            }
        }
        for (key, why, hint) in REFUSED {
            let set = self.last(SECTION, key);
            if let Some(entry) = set.filter(|e| key != "AllTags" || boolean(e) != Ok(false)) {
                return Err(fail(entry, format!("{key}= cannot be bound: {why}")).hint(hint));
            }
        }
        self.arguments(SECTION)?;
        let image = self.required(SECTION, "Image")?;
        let reference = reference(image, &literal(image, image.text())?)?;
        let mut spec = BoundSpec::new(reference, source);
        let path = |key: &str| match self.last(SECTION, key) {
            Some(entry) => {
                let path = literal(entry, entry.text())?;
                let wrong = |why| fail(entry, format!("{key}={path} {why}"));
                absolute(&path).map_err(wrong)?;
                Ok(Some(path))
            }
            None => Ok::<_, Error>(None),
        };
        let word = |key: &str, part: Platform| match self.last(SECTION, key) {
            Some(entry) => {
                let value = literal(entry, entry.text())?;
                part.read(&value).map(Some).map_err(|why| fail(entry, format!("{key}={why}")))
            }
            None => Ok::<_, Error>(None),
        };
        spec.auth_file = path("AuthFile")?;
        spec.cert_dir = path("CertDir")?;
        spec.arch = word("Arch", Platform::Arch)?;
        spec.os = word("OS", Platform::Os)?;
        spec.variant = word("Variant", Platform::Variant)?;
        if let Some(tls) = self.last(SECTION, "TLSVerify") {
            spec.tls_verify = Some(boolean(tls).map_err(|why| fail(tls, why))?);
        }
        if let Some(policy) = self.last(SECTION, "Policy") {
            spec.policy = Policy::read(policy.text())
                .map_err(|(why, hint)| fail(policy, format!("Policy={} {why}", policy.text())).hint(hint))?;
        }
        Ok(Wants { list: vec![Want::Image(Box::new(spec))], warnings: Vec::new() })
    }

    fn kube(&self) -> Result<Wants> {
        const SECTION: &str = "Kube";
        self.arguments(SECTION)?;
        let directory = match self.last(SECTION, "SetWorkingDirectory") {
            Some(set) => match set.text().to_ascii_lowercase().as_str() {
                "yaml" => WorkingDirectory::Yaml,
                "unit" => WorkingDirectory::Unit,
                _ => {
                    let why = format!("SetWorkingDirectory={} is neither yaml nor unit", set.text());
                    return Err(fail(set, why));
                }
            },
            None => match self.last("Service", "WorkingDirectory") {
                Some(set) => WorkingDirectory::Path(literal(set, set.text())?),
                None => WorkingDirectory::Path("/".to_owned()),
            },
        };
        self.required(SECTION, "Yaml")?;
        // Newer versions of podman play them all, older ones the last: all of them are bound.
        let mut list = Vec::new();
        for entry in self.all(SECTION, "Yaml") {
            let path = literal(entry, entry.text())?;
            if path.contains("://") {
                return Err(fail(
                    entry,
                    format!("Yaml={path} is not a file of the image, so its images are not known"),
                ));
            }
            list.push(Want::Yaml(pointer(entry, path), directory.clone()));
        }
        Ok(Wants { list, warnings: Vec::new() })
    }

    /// A volume asks for an image if its driver says so.
    fn volume(&self, source: &str) -> Result<Wants> {
        const SECTION: &str = "Volume";
        let driver = self.last(SECTION, "Driver").map(Entry::text);
        let mut wants = Wants::default();
        if driver == Some("image") {
            wants.list.push(self.image_or_unit(self.required(SECTION, "Image")?, source)?);
        }
        Ok(wants)
    }

    /// The value of `Image=`, which may name a unit.
    fn image_or_unit(&self, entry: &Entry, source: &str) -> Result<Want> {
        let value = literal(entry, entry.text())?;
        match value.rsplit_once('.') {
            Some((_, "image")) => Ok(Want::Unit(pointer(entry, value))),
            Some((_, "build")) => Err(fail(entry, format!("Image={value}: {BUILT}"))),
            _ => registry(entry, &value, source),
        }
    }

    /// Checks what is passed to podman and returns the mounts among it.
    fn arguments(&self, section: &str) -> Result<Vec<(&Entry, String)>> {
        let mut mounts = Vec::new();
        for key in ["GlobalArgs", "PodmanArgs"] {
            for entry in self.all(section, key) {
                mounts.extend(arguments::check(entry)?.into_iter().map(|mount| (entry, mount)));
            }
        }
        Ok(mounts)
    }

    fn required(&self, section: &str, key: &str) -> Result<&Entry> {
        self.last(section, key).ok_or_else(|| match self.written(section, key) {
            Some(reset) => fail(reset, format!("{key}= is empty, which takes back what was before")),
            None => refused(&self.file, None, format!("has no {key}= in [{section}]")).detail("key", key),
        })
    }

    /// The last line with this key.
    fn written(&self, section: &str, key: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|e| e.section == section && e.key == key)
    }

    /// The one that counts of a key that holds one value; none if it is empty.
    fn last(&self, section: &str, key: &str) -> Option<&Entry> {
        self.written(section, key).filter(|e| !e.text().is_empty())
    }

    /// Those that count of a key that holds several; an empty one takes back all before it.
    fn all<'u>(&'u self, section: &str, key: &str) -> Vec<&'u Entry> {
        let mut found = Vec::new();
        for entry in self.entries.iter().filter(|e| e.section == section && e.key == key) {
            match entry.raw.is_empty() {
                true => found.clear(),
                false => found.push(entry),
            }
        }
        found
    }
}

/// Keys of `[Image]` that are honoured, or that do not change what is pulled.
const IMAGE_KEYS: [&str; 14] = [
    "Arch",
    "AuthFile",
    "CertDir",
    "ContainersConfModule",
    "GlobalArgs",
    "Image",
    "OS",
    "PodmanArgs",
    "Policy",
    "Retry",
    "RetryDelay",
    "ServiceName",
    "TLSVerify",
    "Variant",
];

/// Keys of `[Image]` that cannot be honoured: why, and what to write instead. The values may be secrets.
const REFUSED: [(&str, &str, &str); 4] = [
    ("AllTags", "which tags there are changes", "bind each tag that is needed with a file of its own"),
    (
        "Creds",
        "anybody can read the file",
        "put the credentials into a file, with podman login --authfile, and write AuthFile=",
    ),
    ("DecryptionKey", "images are stored as they are in the registry", "bind an image that is not encrypted"),
    (
        "ImageTag",
        "an image is found by the name it has in the registry",
        "write that name where the image is used, and leave ImageTag= out",
    ),
];

fn fail(entry: &Entry, why: impl std::fmt::Display) -> Error {
    refused(&entry.file, Some(entry.line), why).detail("key", &entry.key)
}

fn pointer(entry: &Entry, name: String) -> Pointer {
    Pointer { name, file: entry.file.clone(), line: entry.line, key: entry.key.clone() }
}

fn reference(entry: &Entry, value: &str) -> Result<super::image::ImageRef> {
    registry_reference(value).map_err(|why| fail(entry, format!("image {why}")))
}

fn registry(entry: &Entry, value: &str, source: &str) -> Result<Want> {
    Ok(Want::Image(Box::new(BoundSpec::new(reference(entry, value)?, source))))
}

fn boolean(entry: &Entry) -> std::result::Result<bool, String> {
    match entry.text().to_ascii_lowercase().as_str() {
        "1" | "yes" | "true" | "on" => Ok(true),
        "0" | "no" | "false" | "off" => Ok(false),
        _ => Err(format!("{}={} is neither true nor false", entry.key, entry.text())),
    }
}

/// The value with `%%` as `%`. Any other `%` is a specifier, which only systemd on the booted host can expand.
fn literal(entry: &Entry, value: &str) -> Result<String> {
    let mut text = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => text.push('%'),
            other => {
                let specifier = format!("%{}", other.map(String::from).unwrap_or_default());
                let why = format!(
                    "{}= uses the specifier {specifier}, whose value is not known before boot",
                    entry.key
                );
                return Err(refused_as(ErrorKind::Specifier, &entry.file, Some(entry.line), why)
                    .detail("key", &entry.key)
                    .hint("write the value itself; %% is a literal %"));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
