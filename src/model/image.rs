//! References to container images and content digests.

use super::error::{Error, ErrorKind, Result};
use std::{fmt, str::FromStr};

/// A SHA-256 content digest, written `sha256:<64 hex digits>`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The whole text, `sha256:...`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Digest::finished(sha2::Sha256::new_with_prefix(bytes))
    }

    /// The digest of everything that was hashed.
    pub fn finished(hash: sha2::Sha256) -> Self {
        use sha2::Digest as _;
        Digest(format!("sha256:{}", hex::encode(hash.finalize())))
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let ok = s.strip_prefix("sha256:").is_some_and(|h| {
            h.len() == 64 && h.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if ok {
            Ok(Digest(s.to_owned()))
        } else {
            Err(Error::new(ErrorKind::InvalidArgument, format!("{s:?} is not a digest"))
                .hint("write it as sha256: and 64 lower-case hexadecimal digits"))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> String {
        d.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How an image is reached: the transports of containers-transports(5) that we take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// A registry, `docker://`.
    Registry,
    /// A directory in OCI layout, `oci:`.
    Oci,
    /// A tar file of an OCI layout, `oci-archive:`.
    OciArchive,
    /// The local containers storage, `containers-storage:`.
    ContainersStorage,
    /// A plain directory of blobs, `dir:`.
    Dir,
}

impl Transport {
    const PREFIXES: [(&'static str, Transport); 6] = [
        ("docker://", Transport::Registry),
        ("registry:", Transport::Registry),
        ("oci-archive:", Transport::OciArchive),
        ("oci:", Transport::Oci),
        ("containers-storage:", Transport::ContainersStorage),
        ("dir:", Transport::Dir),
    ];

    /// The prefix, with its separator.
    pub fn prefix(self) -> &'static str {
        match self {
            Transport::Registry => "docker://",
            Transport::Oci => "oci:",
            Transport::OciArchive => "oci-archive:",
            Transport::ContainersStorage => "containers-storage:",
            Transport::Dir => "dir:",
        }
    }
}

/// A reference to an image: transport and name, where the name may end in a tag or a digest.
///
/// A bare name means `docker://`. The `ostree-unverified-image:` family of prefixes that
/// rpm-ostree and bootc write is accepted and dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// How the image is reached.
    pub transport: Transport,
    /// Everything behind the transport prefix.
    pub name: String,
}

impl ImageRef {
    /// The digest that the reference pins, if it does.
    pub fn digest(&self) -> Option<Digest> {
        self.name.rsplit_once('@').and_then(|(_, d)| d.parse().ok())
    }

    /// The tag of a registry reference, if it has one and is not pinned.
    pub fn tag(&self) -> Option<&str> {
        if self.transport != Transport::Registry || self.name.contains('@') {
            return None;
        }
        let (_, last) = self.name.rsplit_once('/').unwrap_or(("", &self.name));
        last.split_once(':').map(|(_, tag)| tag)
    }

    /// The registry name without tag and digest: `host/repository`.
    pub fn repository(&self) -> &str {
        let name = self.name.split_once('@').map_or(self.name.as_str(), |(n, _)| n);
        if self.transport != Transport::Registry {
            return name;
        }
        match name.rfind(':') {
            Some(colon) if !name[colon..].contains('/') => &name[..colon],
            _ => name,
        }
    }

    /// The same image pinned to this digest. Only registries can be pinned; others are returned as they are.
    #[must_use]
    pub fn pinned(&self, digest: &Digest) -> ImageRef {
        match self.transport {
            Transport::Registry => {
                ImageRef { transport: self.transport, name: format!("{}@{digest}", self.repository()) }
            }
            _ => self.clone(),
        }
    }
}

/// The name of a repository with what Docker Hub's short names leave out, as policies spell it.
pub fn full_name(repository: &str) -> String {
    match repository.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
            match repository.split_once('/') {
                Some(("docker.io" | "index.docker.io", rest)) if !rest.contains('/') => {
                    format!("docker.io/library/{rest}")
                }
                Some(("index.docker.io", rest)) => format!("docker.io/{rest}"),
                _ => repository.to_owned(),
            }
        }
        Some(_) => format!("docker.io/{repository}"),
        None => format!("docker.io/library/{repository}"),
    }
}

/// The longest reference: that of a path.
const REFERENCE_LIMIT: usize = 4096;

/// Whether a reference to a registry carries a login. It would end up in origins, logs and status, which all can read.
fn has_login(reference: &str) -> bool {
    let path = |t: &Transport| *t != Transport::Registry;
    if Transport::PREFIXES.iter().any(|(p, t)| path(t) && reference.starts_with(p)) {
        return false;
    }
    reference.split_once('@').is_some_and(|(_, rest)| !rest.starts_with("sha256:") || rest.contains('@'))
}

impl FromStr for ImageRef {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        // Neither of the two is repeated: one is too long to be an answer, the other holds a secret.
        let too_long = |bytes: usize| {
            let why = format!("image reference has {bytes} bytes, and can have {REFERENCE_LIMIT}");
            Err(Error::new(ErrorKind::InvalidArgument, why))
        };
        if s.len() > REFERENCE_LIMIT {
            return too_long(s.len());
        }
        let bad = |why: &str| {
            Err(Error::new(ErrorKind::InvalidArgument, format!("image reference {s:?} {why}"))
                .hint("for example registry.example.com/os:stable or oci:/path/to/layout"))
        };
        let mut rest = s;
        for prefix in ["ostree-unverified-image:", "ostree-image-signed:"] {
            rest = rest.strip_prefix(prefix).unwrap_or(rest);
        }
        if has_login(rest) {
            let why = "image reference has something else than a digest behind its @, like a login";
            return Err(Error::new(ErrorKind::InvalidArgument, why)
                .hint("write logins to a credentials file, see: osctl config explain-auth IMAGE; a digest is sha256:..."));
        }
        if let Some(name) = rest.strip_prefix("ostree-unverified-registry:") {
            return ImageRef::from_str(&format!("docker://{name}"));
        }
        if rest.starts_with("ostree-remote-") {
            return bad("names an ostree remote, which osctl does not use");
        }
        let (transport, name) = Transport::PREFIXES
            .iter()
            .find_map(|(p, t)| rest.strip_prefix(p).map(|n| (*t, n)))
            .unwrap_or((Transport::Registry, rest));
        // As it is written down: a name without a transport gets one.
        let written = transport.prefix().len() + name.len();
        if written > REFERENCE_LIMIT {
            return too_long(written);
        }
        if name.is_empty() {
            return bad("has no name");
        }
        if let Some(c) = name.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return bad(&format!("contains the character {c:?}"));
        }
        if transport == Transport::Registry {
            if name.contains("://") {
                return bad("has an unknown transport");
            }
            if let Some((_, digest)) = name.rsplit_once('@') {
                digest.parse::<Digest>()?;
            }
            let path = name.split('@').next().unwrap_or(name);
            let repository = path.split_once('/').map_or(path, |(_, r)| r);
            if repository.is_empty()
                || repository.chars().any(|c| c.is_ascii_uppercase()) && !repository.contains(':')
            {
                return bad("has a repository that is empty or not in lower case");
            }
            if path.starts_with('/') || path.contains("//") || path.ends_with([':', '/']) {
                return bad("is not host/repository[:tag][@digest]");
            }
        } else if transport != Transport::ContainersStorage && !name.starts_with('/') {
            return bad("needs an absolute path");
        }
        Ok(ImageRef { transport, name: name.to_owned() })
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<ImageRef> for String {
    fn from(r: ImageRef) -> String {
        r.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.transport.prefix(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn references_are_parsed_and_printed_with_their_transport() {
        for (input, printed) in [
            ("quay.io/os/base:stable", "docker://quay.io/os/base:stable"),
            ("docker://localhost:5000/os", "docker://localhost:5000/os"),
            ("registry:quay.io/a/b", "docker://quay.io/a/b"),
            ("oci:/srv/os:latest", "oci:/srv/os:latest"),
            ("oci-archive:/srv/os.tar", "oci-archive:/srv/os.tar"),
            ("containers-storage:localhost/os:1", "containers-storage:localhost/os:1"),
            ("dir:/srv/os", "dir:/srv/os"),
            ("ostree-unverified-registry:quay.io/os/base:stable", "docker://quay.io/os/base:stable"),
            ("ostree-image-signed:docker://quay.io/os/base", "docker://quay.io/os/base"),
            ("ostree-unverified-image:oci:/srv/os", "oci:/srv/os"),
        ] {
            let parsed: ImageRef = input.parse().unwrap_or_else(|e| panic!("{input}: {e}"));
            assert_eq!(parsed.to_string(), printed);
            assert_eq!(printed.parse::<ImageRef>().map_err(|e| e.to_string()), Ok(parsed));
        }
    }

    #[test]
    fn bad_references_are_refused_with_their_text() {
        for input in [
            "",
            "docker://",
            "a b",
            "ftp://x/y",
            "oci:relative",
            "quay.io/os@sha256:12",
            "quay.io//os",
            "quay.io/os:",
            "quay.io/UPPER",
        ] {
            let error = input.parse::<ImageRef>().expect_err(input);
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{input}");
        }
    }

    #[test]
    fn a_login_is_refused_and_not_repeated() {
        for input in [
            "me:hunter2@quay.io/os",
            "docker://me:hunter2@quay.io/os:1",
            "https://me:hunter2@quay.io/os",
            "me:hunter2@@quay.io/os",
            "ostree-unverified-registry:me:hunter2@quay.io/os",
            "ostree-remote-registry:x:me:hunter2@quay.io/os",
            &format!("me:hunter2@quay.io/os@{D}"),
            &format!("hunter2@sha256:@quay.io/os@{D}"),
        ] {
            let error = input.parse::<ImageRef>().expect_err(input);
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{input}");
            assert!(!error.chain().contains("hunter2"), "{error}");
        }
        assert!("oci:/srv/me@home".parse::<ImageRef>().is_ok(), "a path is no login");
        let error = "x".repeat(4097).parse::<ImageRef>().unwrap_err();
        assert_eq!(error.to_string(), "image reference has 4097 bytes, and can have 4096");
    }

    #[test]
    fn pinning_replaces_the_tag_and_keeps_the_port() {
        let digest: Digest = D.parse().unwrap();
        let image: ImageRef = "localhost:5000/os/base:v1".parse().unwrap();
        assert_eq!((image.repository(), image.tag()), ("localhost:5000/os/base", Some("v1")));
        let pinned = image.pinned(&digest);
        assert_eq!(pinned.to_string(), format!("docker://localhost:5000/os/base@{D}"));
        assert_eq!(pinned.digest(), Some(digest));
        let bare: ImageRef = "localhost:5000/os".parse().unwrap();
        assert_eq!((bare.repository(), bare.tag()), ("localhost:5000/os", None));
    }

    #[test]
    fn the_longest_reference_can_be_read_as_it_is_written_down() {
        let name = |bytes: usize| format!("a/{}", "b".repeat(bytes - 2));
        let longest: ImageRef = name(REFERENCE_LIMIT - "docker://".len()).parse().unwrap();
        assert_eq!(longest.to_string().parse::<ImageRef>().unwrap(), longest);
        let error = name(REFERENCE_LIMIT).parse::<ImageRef>().unwrap_err();
        assert_eq!(error.to_string(), "image reference has 4105 bytes, and can have 4096");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_parsing_panic_and_what_is_shown_can_be_read(
            text in "(docker://|oci:|oci-archive:|containers-storage:)?([a-z0-9A-Z./_:@-]{0,40}|\\PC{0,20})(@sha256:[0-9a-f]{63,64})?"
        ) {
            if let Ok(image) = text.parse::<ImageRef>() {
                proptest::prop_assert_eq!(&image.to_string().parse::<ImageRef>().unwrap(), &image);
                let digest = Digest::of(b"x");
                if image.transport == Transport::Registry {
                    proptest::prop_assert_eq!(image.pinned(&digest).digest(), Some(digest));
                }
            }
        }
    }
}
