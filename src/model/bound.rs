//! Bound images: what a deployment must find in the local store.

use super::image::{Digest, ImageRef, Transport};
use super::text::one_line;
use super::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// Whether a missing image keeps a deployment from being staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It does.
    #[default]
    Bind,
    /// It is reported and tried again.
    Prefetch,
}

impl Mode {
    /// As it is written in a declaration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Bind => "bind",
            Mode::Prefetch => "prefetch",
        }
    }
}

/// When a reference with a tag is resolved to a digest again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// By each upgrade.
    #[default]
    Newer,
    /// Only if the deployment before has no digest for it.
    Missing,
}

impl Policy {
    /// Reads podman's word for it; the error completes the sentence `VALUE ...` and has a hint.
    pub(crate) fn read(text: &str) -> std::result::Result<Policy, (&'static str, &'static str)> {
        match text {
            "always" | "newer" => Ok(Policy::Newer),
            "missing" => Ok(Policy::Missing),
            "never" => Err((
                "cannot be bound: nobody would pull the image",
                "missing pulls it once; leave the file out if another one puts it into the store",
            )),
            _ => Err(("is no policy", "it is newer (each upgrade asks the registry) or missing")),
        }
    }

    fn is_default(&self) -> bool {
        *self == Policy::default()
    }
}

/// A request for a bound image, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BoundSpec {
    /// The image; always in a registry.
    pub reference: ImageRef,
    /// Bind or prefetch.
    pub mode: Mode,
    /// The credentials file by path.
    pub auth_file: Option<String>,
    /// Whether TLS certificates are checked; the system's configuration if absent.
    pub tls_verify: Option<bool>,
    /// The file that asks for it.
    pub source: String,
    /// The architecture (GOARCH), if it is not this machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// The operating system (GOOS), if it is not `linux`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// The variant of the architecture, for example `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// A directory with the registry's certificates, an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_dir: Option<String>,
    /// When a tag is resolved again.
    #[serde(default, skip_serializing_if = "Policy::is_default")]
    pub policy: Policy,
}

/// A bound image with its digest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BoundImage {
    /// What was asked.
    #[serde(flatten)]
    pub spec: BoundSpec,
    /// The per-architecture manifest digest.
    pub digest: Digest,
}

/// The images of one deployment, sorted by reference.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct BoundSet {
    /// The images.
    pub images: Vec<BoundImage>,
}

/// A part of a platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    /// GOARCH.
    Arch,
    /// GOOS.
    Os,
    /// A variant of the architecture.
    Variant,
}

impl Platform {
    /// Reads one as registries write it; the error completes the sentence `KEY=...`.
    pub(crate) fn read(self, text: &str) -> std::result::Result<String, String> {
        let word = !text.is_empty()
            && text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !word {
            return Err(format!("{text:?} is not a word of letters and digits, like arm64 or v8"));
        }
        Ok(match (self, text) {
            // The kernel's names, which podman takes as well.
            (Platform::Arch, "x86_64") => "amd64",
            (Platform::Arch, "aarch64") => "arm64",
            (_, other) => other,
        }
        .to_owned())
    }
}

/// Whether a path is absolute and can be an argument; the error completes the sentence `PATH ...`.
pub(crate) fn absolute(path: &str) -> std::result::Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("is not an absolute path");
    }
    if path.chars().any(char::is_control) {
        return Err("has control characters");
    }
    Ok(())
}

/// Keys of a TOML file that cannot be honoured, and what to write instead. The values may be secrets.
const TOML_REFUSED: [(&str, &str, &str); 4] = [
    ("all-tags", "which tags there are changes", "bind each tag that is needed with a file of its own"),
    (
        "creds",
        "anybody can read the file",
        "put the credentials into a file, with podman login --authfile, and write auth-file = \"/path\"",
    ),
    (
        "decryption-key",
        "images are stored as they are in the registry",
        "bind an image that is not encrypted",
    ),
    (
        "image-tag",
        "an image is found by the name it has in the registry",
        "write that name where the image is used, and leave image-tag out",
    ),
];

impl BoundSpec {
    /// A spec with defaults for everything but the image and the file that asks for it.
    pub fn new(reference: ImageRef, source: &str) -> BoundSpec {
        BoundSpec {
            reference,
            mode: Mode::Bind,
            auth_file: None,
            tls_verify: None,
            source: source.to_owned(),
            arch: None,
            os: None,
            variant: None,
            cert_dir: None,
            policy: Policy::default(),
        }
    }

    /// Whether both ask for the same: who asks, how it is reached and how much it matters is another question.
    pub fn same_image(&self, other: &BoundSpec) -> bool {
        self.reference == other.reference && self.platform() == other.platform()
    }

    /// The platform as far as it is asked for, by key: `arch`, `os`, `variant`.
    pub fn platform(&self) -> BTreeMap<&'static str, &str> {
        [("arch", &self.arch), ("os", &self.os), ("variant", &self.variant)]
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect()
    }

    /// Parses a `bound-images.d/*.toml` file. `source` is the file's path, for messages and provenance.
    pub fn from_toml(text: &str, source: &str) -> Result<BoundSpec> {
        BoundSpec::from_toml_located(text, source).map(|(spec, _)| spec)
    }

    /// As [`BoundSpec::from_toml`], with the line of `image`.
    pub fn from_toml_located(text: &str, source: &str) -> Result<(BoundSpec, usize)> {
        let place = |at: usize| {
            let before = text.get(..at).unwrap_or(text);
            let line = before.rsplit('\n').next().unwrap_or_default();
            (before.matches('\n').count() + 1, line.chars().count() + 1)
        };
        let table = DeTable::parse(text).map_err(|e| {
            let (line, column) = e.span().map_or((1, 1), |s| place(s.start));
            refused(source, Some(line), format!("is not valid TOML: {}", e.message()))
                .detail("column", column)
        })?;
        // Filled in as the keys are found, and returned only with an image.
        let nothing = ImageRef { transport: Transport::Registry, name: String::new() };
        let mut spec = BoundSpec::new(nothing, source);
        let mut image = None;
        let mut keys: Vec<_> = table.get_ref().iter().collect();
        // The first mistake in the file is the one reported.
        keys.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in keys {
            let (line, column) = place(key.span().start);
            let name = key.get_ref().as_ref();
            let fail =
                |why: String| refused(source, Some(line), why).detail("key", name).detail("column", column);
            let text_value = || match value.get_ref() {
                DeValue::String(s) => Ok(s.as_ref()),
                _ => Err(fail(format!("{name} must be a string"))),
            };
            let path = || {
                let path = text_value()?;
                absolute(path).map_err(|why| fail(format!("{name} {path:?} {why}")))?;
                Ok::<_, Error>(Some(path.to_owned()))
            };
            let word = |part: Platform| {
                part.read(text_value()?).map(Some).map_err(|why| fail(format!("{name} {why}")))
            };
            match name {
                "image" => {
                    spec.reference =
                        registry_reference(text_value()?).map_err(|why| fail(format!("image {why}")))?;
                    image = Some(line);
                }
                "mode" => {
                    spec.mode = match text_value()? {
                        "bind" => Mode::Bind,
                        "prefetch" => Mode::Prefetch,
                        other => {
                            return Err(fail(format!("mode {other:?} is neither \"bind\" nor \"prefetch\"")));
                        }
                    }
                }
                "auth-file" => spec.auth_file = path()?,
                "cert-dir" => spec.cert_dir = path()?,
                "arch" => spec.arch = word(Platform::Arch)?,
                "os" => spec.os = word(Platform::Os)?,
                "variant" => spec.variant = word(Platform::Variant)?,
                "policy" => {
                    let policy = text_value()?;
                    spec.policy = Policy::read(policy)
                        .map_err(|(why, hint)| fail(format!("policy {policy:?} {why}")).hint(hint))?;
                }
                "tls-verify" => match value.get_ref() {
                    DeValue::Boolean(b) => spec.tls_verify = Some(*b),
                    _ => return Err(fail("tls-verify must be true or false".into())),
                },
                other => {
                    return Err(match TOML_REFUSED.iter().find(|(known, ..)| *known == other) {
                        Some((_, why, hint)) => fail(format!("{other} cannot be bound: {why}")).hint(*hint),
                        None => fail(format!("unknown key {other:?}")).hint(
                            "the keys are image, mode, policy, auth-file, tls-verify, cert-dir, arch, os and variant",
                        ),
                    });
                }
            }
        }
        match image {
            Some(line) => Ok((spec, line)),
            None => Err(refused(source, None, "has no image")
                .hint("add a line like image = \"quay.io/example/app:1\"")),
        }
    }
}

impl BoundSet {
    /// Sorts the images and merges requests for the same reference.
    ///
    /// Fails if two files pin the same name to different digests. Of two modes `bind` wins, of two policies `newer`, and
    /// the file that sorts first is named.
    pub fn new(mut images: Vec<BoundImage>) -> Result<BoundSet> {
        images.sort_by(|a, b| {
            (&a.spec.reference.name, &a.spec.source).cmp(&(&b.spec.reference.name, &b.spec.source))
        });
        let mut merged: Vec<BoundImage> = Vec::new();
        for image in images {
            let Some(last) = merged.last_mut().filter(|l| l.spec.reference == image.spec.reference) else {
                merged.push(image);
                continue;
            };
            if last.digest != image.digest {
                return Err(two_digests(&last.spec, &image.spec));
            }
            if image.spec.mode == Mode::Bind {
                last.spec.mode = Mode::Bind;
            }
            if image.spec.policy == Policy::Newer {
                last.spec.policy = Policy::Newer;
            }
        }
        check_pins(merged.iter().map(|i| &i.spec))?;
        Ok(BoundSet { images: merged })
    }

    /// The digest of what is bound: references, digests, modes and platforms, not the files that ask for them.
    pub fn digest(&self) -> Digest {
        let fact = |i: &BoundImage| {
            let mut fact = vec![
                serde_json::json!(i.spec.reference.to_string()),
                serde_json::json!(i.digest),
                serde_json::json!(i.spec.mode),
            ];
            // Only where one is asked for: sets of before keep their digest.
            let platform = i.spec.platform();
            if !platform.is_empty() {
                fact.push(serde_json::json!(platform));
            }
            fact
        };
        let facts: Vec<_> = self.images.iter().map(fact).collect();
        Digest::of(&serde_json::to_vec(&facts).expect("strings always serialise"))
    }
}

/// Refuses two files that pin the same `repository:tag` to different digests, or want it for different platforms.
///
/// It needs no network, so discovery calls it before anything is resolved.
pub fn check_pins<'a>(specs: impl Iterator<Item = &'a BoundSpec>) -> Result<()> {
    let mut pinned: BTreeMap<&str, &BoundSpec> = BTreeMap::new();
    let mut platforms: BTreeMap<&str, &BoundSpec> = BTreeMap::new();
    for spec in specs {
        if let Some(other) = platforms.insert(&spec.reference.name, spec)
            && other.platform() != spec.platform()
        {
            let why =
                format!("binds {} for another platform than {} does", spec.reference.name, other.source);
            return Err(refused(&spec.source, None, why).detail("other-file", &other.source).hint(
                "a name means one image: ask for the same platform in both, or give one of them another tag",
            ));
        }
        let Some((name, digest)) = spec.reference.name.split_once('@') else { continue };
        // Without a tag there is no name that both could claim: two digests of one repository may coexist.
        if name == spec.reference.repository() {
            continue;
        }
        if let Some(other) = pinned.insert(name, spec)
            && other.reference.name.split_once('@').is_some_and(|(_, d)| d != digest)
        {
            return Err(two_digests(other, spec));
        }
    }
    Ok(())
}

fn two_digests(a: &BoundSpec, b: &BoundSpec) -> Error {
    let name = a.reference.name.split('@').next().unwrap_or_default();
    refused(&b.source, None, format!("binds {name} to another digest than {} does", a.source))
        .detail("other-file", &a.source)
        .hint("pin the same digest in both files, or give one of them another tag")
}

/// An error about one file, and one line of it where that is known: `FILE:LINE: why`.
pub(crate) fn refused(file: &str, line: Option<usize>, why: impl std::fmt::Display) -> Error {
    refused_as(ErrorKind::InvalidDropIn, file, line, why)
}

pub(crate) fn refused_as(
    kind: ErrorKind,
    file: &str,
    line: Option<usize>,
    why: impl std::fmt::Display,
) -> Error {
    // Whatever it quotes, it stays one line.
    let why = one_line(&why.to_string());
    let error = match line {
        Some(line) => Error::new(kind, format!("{file}:{line}: {why}")).detail("line", line),
        None => Error::new(kind, format!("{file}: {why}")),
    };
    error.detail("file", file)
}

/// Parses a reference that must name its registry; the error completes the sentence `image ...`.
pub(crate) fn registry_reference(text: &str) -> std::result::Result<ImageRef, String> {
    let short = |t: &str| {
        format!(
            "{t:?} names no registry; write it in full, for example quay.io/example/{}",
            t.trim_matches('/')
        )
    };
    let reference: ImageRef = text.parse().map_err(|e: Error| match e.to_string().split_once("\" ") {
        Some((_, why)) => format!("{text:?} {why}"),
        // What does not repeat the text has a reason.
        None => e.to_string().trim_start_matches("image ").to_owned(),
    })?;
    if reference.transport != Transport::Registry {
        return Err(format!("{text:?} is not in a registry; only docker:// can be bound"));
    }
    let Some((host, _)) = reference.name.split_once('/') else { return Err(short(text)) };
    if !host.contains(['.', ':']) && host != "localhost" {
        return Err(short(text));
    }
    // distribution/reference's grammar, as far as it decides what reaches a command line.
    let repository = reference.repository().split_once('/').map_or("", |(_, r)| r);
    let odd = |c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c));
    let host_odd = |c: char| !(c.is_ascii_alphanumeric() || ".:-[]".contains(c));
    let tag_odd = |c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c));
    let tag =
        reference.name.split('@').next().and_then(|n| n.strip_prefix(reference.repository())).unwrap_or("");
    for (part, found) in [
        ("registry", host.chars().find(|c| host_odd(*c))),
        ("repository", repository.chars().find(|c| odd(*c))),
        ("tag", tag.trim_start_matches(':').chars().find(|c| tag_odd(*c))),
    ] {
        if let Some(c) = found {
            return Err(format!("{text:?} has the character {c:?} in its {part}"));
        }
    }
    Ok(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, source: &str, content: &[u8], mode: Mode) -> BoundImage {
        let spec = BoundSpec { mode, ..BoundSpec::new(reference.parse().unwrap(), source) };
        BoundImage { spec, digest: Digest::of(content) }
    }

    #[test]
    fn a_set_is_sorted_and_merged_and_its_digest_does_not_depend_on_order_or_files() {
        let a = image("quay.io/x/a:1", "/one.toml", b"a", Mode::Prefetch);
        let again = image("quay.io/x/a:1", "/two.toml", b"a", Mode::Bind);
        let b = image("quay.io/x/b:1", "/one.toml", b"b", Mode::Bind);
        let one = BoundSet::new(vec![b.clone(), a.clone(), again.clone()]).unwrap();
        let two = BoundSet::new(vec![again.clone(), b.clone()]).unwrap();
        assert_eq!(
            one.images.iter().map(|i| (i.spec.reference.name.as_str(), i.spec.mode)).collect::<Vec<_>>(),
            [("quay.io/x/a:1", Mode::Bind), ("quay.io/x/b:1", Mode::Bind)]
        );
        assert_eq!(one.digest(), two.digest());
        let moved = image("quay.io/x/b:1", "/one.toml", b"c", Mode::Bind);
        assert_ne!(one.digest(), BoundSet::new(vec![again, moved]).unwrap().digest());
        let json = serde_json::to_string(&two.images[1]).unwrap();
        assert_eq!(serde_json::from_str::<BoundImage>(&json).unwrap(), two.images[1]);
        assert!(json.contains("\"auth-file\":null") && json.contains("\"mode\":\"bind\""), "{json}");
    }

    #[test]
    fn sets_that_were_recorded_before_are_read_and_keep_their_digest() {
        let digest = Digest::of(b"a");
        let old = format!(
            r#"[{{"reference":"docker://quay.io/x/a:1","mode":"bind","auth-file":null,"tls-verify":null,"source":"/a.toml","digest":"{digest}"}}]"#
        );
        let set: BoundSet = serde_json::from_str(&old).unwrap();
        assert_eq!(set.images, [image("quay.io/x/a:1", "/a.toml", b"a", Mode::Bind)]);
        assert_eq!(serde_json::to_string(&set).unwrap(), old);
        let facts = format!(r#"[["{}","{digest}","bind"]]"#, set.images[0].spec.reference);
        assert_eq!(set.digest(), Digest::of(facts.as_bytes()));

        let mut new = set.clone();
        let spec = &mut new.images[0].spec;
        (spec.arch, spec.variant) = (Some("arm64".into()), Some("v8".into()));
        (spec.cert_dir, spec.policy) = (Some("/etc/certs".into()), Policy::Missing);
        assert_ne!(new.digest(), set.digest());
        let json = serde_json::to_string(&new).unwrap();
        assert!(
            json.contains(r#""arch":"arm64","variant":"v8","cert-dir":"/etc/certs","policy":"missing""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<BoundSet>(&json).unwrap(), new);
    }

    #[test]
    fn two_pins_of_one_name_are_refused_with_both_files() {
        let pin =
            |c: &[u8], file: &str| image(&format!("quay.io/x/a:1@{}", Digest::of(c)), file, c, Mode::Bind);
        let error = BoundSet::new(vec![pin(b"1", "/one.toml"), pin(b"2", "/two.toml")]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidDropIn);
        let text = error.to_string();
        assert!(
            text.contains("/one.toml") && text.contains("/two.toml") && text.contains("quay.io/x/a:1 "),
            "{text}"
        );
        assert!(BoundSet::new(vec![pin(b"1", "/one.toml"), pin(b"1", "/two.toml")]).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_parsing_panic_and_every_refusal_names_it(
            text in "\\PC{0,60}|(image|mode|auth-file|tls-verify|x|=|\"bind\"|\"quay.io/a:1\"|\"|true|#|\\[|\\]|\n| ){0,16}"
        ) {
            if let Err(error) = BoundSpec::from_toml(&text, "a.toml") {
                proptest::prop_assert_eq!(error.details["file"].as_str(), "a.toml");
            }
        }
    }
}
