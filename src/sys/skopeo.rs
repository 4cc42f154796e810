//! How skopeo is called, and what its error texts mean.
//!
//! The proxy protocol has no status codes, only the text of Go errors, so this is a table of needles. It was
//! collected from skopeo 1.9.3 (containers/image 5.22) and is tested against the running program where a local
//! registry can produce the error, and against recorded texts elsewhere.

use crate::model::{Error, ErrorKind};
use std::ffi::OsString;
use std::path::Path;

/// skopeo's global options: a signature policy, a registries' configuration and places of signatures
/// (containers-registries.d(5)) other than the running system's.
///
/// `--registries-conf` is hidden in skopeo's help, and the only way: it reads no variable for this.
pub fn options(policy: Option<&Path>, registries: Option<&Path>, lookaside: Option<&Path>) -> Vec<OsString> {
    let options = [("--policy", policy), ("--registries-conf", registries), ("--registries.d", lookaside)];
    let given = options.into_iter().filter_map(|(name, path)| Some([name.into(), path?.into()]));
    given.flatten().collect()
}

/// Text to look for (in lower case), the kind it stands for, and what to tell a person. The first hit wins.
const TABLE: &[(&str, ErrorKind, &str)] = {
    use ErrorKind::*;
    &[
        // ENOSPC as well, of the space for attributes.
        ("setxattr", Unsupported, "the file system does not take an extended attribute of it"),
        ("no space left on device", NoSpace, "the disk is full"),
        ("disk quota exceeded", NoSpace, "the quota of the disk is used up"),
        // A damaged archive fails while it is unpacked, with an inner text that looks like a network error.
        ("untarring file", InvalidArgument, "the archive is damaged or not an OCI archive"),
        ("invalid tar header", InvalidArgument, "the archive is damaged or not an OCI archive"),
        ("rejected by policy", SignatureRejected, "the signature policy rejects it"),
        ("a signature was required", SignatureRejected, "it carries no signature that the policy accepts"),
        ("signature for identity", SignatureRejected, "its signature is for another name"),
        ("invalid gpg signature", SignatureRejected, "its signature is not valid"),
        ("invalid signature", SignatureRejected, "its signature is not valid"),
        ("is blocked in", SignatureRejected, "registries.conf blocks the registry"),
        ("corrupted blob", DigestMismatch, "a blob does not have the digest that the manifest lists"),
        ("bytes in blob, got", DigestMismatch, "a blob does not have the size that the manifest lists"),
        ("does not match provided manifest digest", DigestMismatch, "the manifest does not have its digest"),
        ("digest did not match", DigestMismatch, "content does not have its digest"),
        (
            "no image found in manifest list for architecture",
            Unsupported,
            "it has no variant for this architecture",
        ),
        (
            "no image found in image index for architecture",
            Unsupported,
            "it has no variant for this architecture",
        ),
        ("toomanyrequests", RateLimited, "the registry asks to slow down"),
        ("too many requests", RateLimited, "the registry asks to slow down"),
        ("rate limit", RateLimited, "the registry asks to slow down"),
        ("status code from registry 429", RateLimited, "the registry asks to slow down"),
        ("manifest unknown", ImageNotFound, "the registry does not have it"),
        ("name_unknown", ImageNotFound, "the registry does not have the repository"),
        ("name unknown", ImageNotFound, "the registry does not have the repository"),
        ("repository name not known", ImageNotFound, "the registry does not have the repository"),
        ("blob unknown", ImageNotFound, "the registry lost one of its blobs"),
        ("status code from registry 404", ImageNotFound, "the registry does not have it"),
        ("statuscode: 404", ImageNotFound, "the registry does not have it"),
        ("identifier is not an image", ImageNotFound, "the local storage does not have it"),
        ("does not resolve to an image id", ImageNotFound, "the local storage does not have it"),
        ("archive file not found", ImageNotFound, "there is no such archive"),
        ("no descriptor found for reference", ImageNotFound, "the layout has no such tag"),
        ("unauthorized", AuthRequired, "the registry wants other credentials"),
        ("authentication required", AuthRequired, "the registry wants credentials"),
        ("access to the resource is denied", AuthRequired, "the registry does not let these credentials in"),
        ("invalid username/password", AuthRequired, "the registry refuses the credentials"),
        ("unable to retrieve auth token", AuthRequired, "the registry gives no token for these credentials"),
        ("status code from registry 401", AuthRequired, "the registry wants credentials"),
        ("status code from registry 403", AuthRequired, "the registry does not let these credentials in"),
        ("(forbidden)", AuthRequired, "the registry does not let these credentials in"),
        ("statuscode: 403", AuthRequired, "the registry does not let these credentials in"),
        ("denied: ", AuthRequired, "the registry does not let these credentials in"),
        ("server gave http response to https client", RegistryUnavailable, "the registry does not speak TLS"),
        ("x509: ", RegistryUnavailable, "the registry's certificate cannot be verified"),
        ("tls: ", RegistryUnavailable, "the registry's TLS cannot be used"),
        (
            "more than one image in oci",
            InvalidArgument,
            "the layout holds several images and no tag was given",
        ),
        ("unsupported manifest", Unsupported, "its manifest has an unknown format"),
        ("unsupported mimetype", Unsupported, "its manifest has an unknown format"),
        ("unsupported schema version", Unsupported, "its manifest has an unknown format"),
        ("unimplemented manifest mime type", Unsupported, "its manifest has an unknown format"),
        ("invalid reference format", InvalidArgument, "the name is not valid"),
        ("invalid image name", InvalidArgument, "the name is not valid"),
        ("permission denied", InvalidArgument, "a file of it cannot be read"),
        // Below the permission of files, which ends in the same words without a colon.
        (": denied", AuthRequired, "the registry does not let these credentials in"),
        (
            "invalid character '<'",
            RegistryUnavailable,
            "a web page answers in its place: is there a login to the network?",
        ),
        ("connection refused", RegistryUnavailable, "the registry refuses connections"),
        ("connection reset", RegistryUnavailable, "the registry ended the connection"),
        ("no such host", RegistryUnavailable, "the registry's name cannot be resolved"),
        ("server misbehaving", RegistryUnavailable, "the registry's name cannot be resolved"),
        ("name resolution", RegistryUnavailable, "the registry's name cannot be resolved"),
        ("network is unreachable", RegistryUnavailable, "there is no way to the registry"),
        ("no route to host", RegistryUnavailable, "there is no way to the registry"),
        ("timeout", RegistryUnavailable, "the registry does not answer"),
        ("deadline exceeded", RegistryUnavailable, "the registry does not answer"),
        ("status code from registry 5", RegistryUnavailable, "the registry has an internal error"),
        ("received unexpected http status", RegistryUnavailable, "the registry has an internal error"),
        ("internal server error", RegistryUnavailable, "the registry has an internal error"),
        ("bad gateway", RegistryUnavailable, "the registry has an internal error"),
        ("service unavailable", RegistryUnavailable, "the registry has an internal error"),
        ("unexpected eof", RegistryUnavailable, "the transfer broke off"),
        // Below the archive and network texts: a bare path of a layout, archive or directory.
        ("no such file or directory", ImageNotFound, "it is not there"),
        ("not a directory", InvalidArgument, "it is not an OCI layout"),
        ("pinging container registry", RegistryUnavailable, "the registry cannot be used"),
        // Last: behind it may be why a signature could not be fetched. Debian 12 says here that it has no sigstore.
        ("source image rejected", SignatureRejected, "the signature policy cannot be met"),
    ]
};

fn hint(kind: ErrorKind, text: &str) -> Option<&'static str> {
    match kind {
        ErrorKind::AuthRequired => Some(
            "log in with: podman login --authfile /etc/osctl/auth.json REGISTRY; see: osctl config explain-auth REF",
        ),
        ErrorKind::ImageNotFound => Some("check the spelling of the name and the tag"),
        ErrorKind::SignatureRejected => Some("see containers-policy.json(5) and /etc/containers/policy.json"),
        ErrorKind::RegistryUnavailable
            if text.contains("HTTP response to HTTPS") || text.contains("x509: ") =>
        {
            Some("for a test registry, mark it as insecure in /etc/containers/registries.conf")
        }
        ErrorKind::RegistryUnavailable | ErrorKind::RateLimited => Some("try again later"),
        ErrorKind::NoSpace => Some("free some space and try again"),
        ErrorKind::InvalidArgument if text.contains("more than one image") => {
            Some("add the tag: oci:/path/to/layout:TAG")
        }
        _ => None,
    }
}

/// The kind that an error text of skopeo stands for, and what it says to a person.
fn classify(text: &str) -> (ErrorKind, &'static str) {
    let text = text.to_lowercase();
    // Some registries give a code and no message.
    if text == "denied" {
        return (ErrorKind::AuthRequired, "the registry does not let these credentials in");
    }
    let found = TABLE.iter().find(|(needle, _, _)| text.contains(needle));
    found.map_or((ErrorKind::Internal, "skopeo failed"), |(_, kind, meaning)| (*kind, *meaning))
}

/// The text without where a bundle is served, which is a key to all that is in it: `127.0.0.1:PORT/TOKEN/NUMBER`.
pub fn without_places(text: &str) -> String {
    const HOST: &str = "127.0.0.1:";
    let is_token = |part: &str| part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let (mut rest, mut safe) = (text, String::with_capacity(text.len()));
    while let Some(at) = rest.find(HOST) {
        let end = rest[at..]
            .find(|c: char| !(c.is_ascii_alphanumeric() || "./:".contains(c)))
            .map_or(rest.len(), |end| at + end);
        let place = &rest[at..end];
        match place.split('/').position(is_token) {
            Some(_) => {
                safe.push_str(&rest[..at]);
                safe.push_str("the bundle");
                // A tag, a digest, or Go's colon behind it.
                safe.push_str(if place.ends_with(':') { ":" } else { "" });
            }
            None => safe.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    safe.push_str(rest);
    safe
}

/// The text without the queries of its URLs: those of blobs that a registry keeps elsewhere are keys to them. And without the
/// places of [`without_places`].
pub fn without_queries(text: &str) -> String {
    let text = without_places(text);
    let mut rest = text.as_str();
    let mut safe = String::with_capacity(text.len());
    while let Some(at) = rest.find("://") {
        let end = rest[at..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '\\'))
            .map_or(rest.len(), |end| at + end);
        match rest[..end].find('?').filter(|query| *query > at) {
            // A colon behind the URL is Go's, not the query's.
            Some(query) => {
                safe.push_str(&rest[..query]);
                safe.push_str("?...");
                safe.push_str(if rest[..end].ends_with(':') { ":" } else { "" });
            }
            None => safe.push_str(&rest[..end]),
        }
        rest = &rest[end..];
    }
    safe.push_str(rest);
    safe
}

/// Our error for a failure of skopeo or its proxy while `doing` something (`reading docker://...`).
pub fn from_skopeo(doing: &str, error: impl Into<crate::model::error::BoxError>) -> Error {
    let error = error.into();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    if text.contains("skopeo spawn error") || text.starts_with("No such file or directory") {
        return Error::new(
            ErrorKind::Unsupported,
            "skopeo cannot be started; the running system is unchanged",
        )
        .hint("install the package skopeo")
        .source(error);
    }
    let (kind, meaning) = classify(&text);
    // The proxy wraps the Go text in the same words up to three times.
    let cause = text.rsplit_once("failed to invoke method ").map_or(text.as_str(), |(_, t)| t);
    let cause = without_queries(cause);
    let ours = Error::new(kind, format!("{doing}: {meaning}; the running system is unchanged")).source(cause);
    match hint(kind, &text) {
        Some(hint) => ours.hint(hint),
        None => ours,
    }
}

/// Whether the same question may have another answer in a moment: the registry did not answer, or not as one.
pub fn may_pass(error: &Error) -> bool {
    const LASTING: [&str; 3] = ["x509: ", "tls: ", "server gave http response to https client"];
    let text = error.chain().to_lowercase();
    error.kind == ErrorKind::RegistryUnavailable && !LASTING.iter().any(|needle| text.contains(needle))
}

/// What skopeo wrote to standard error, as an error with the fitting kind and hint. The message is skopeo's own.
pub fn reason(stderr: &str) -> Error {
    let text = without_queries(&message(stderr));
    let (kind, _) = classify(&text);
    let hint = hint(kind, &text);
    let error = Error::new(kind, text);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The text of the last `level=fatal msg="..."` line, or all there is.
fn message(stderr: &str) -> String {
    let fatal = stderr.lines().rev().find_map(|l| l.split_once("level=fatal msg=").map(|(_, m)| m));
    let text = fatal.unwrap_or_else(|| stderr.trim()).trim();
    match text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\\\"", "\"").replace("\\\\", "\\"),
        None if text.is_empty() => "skopeo failed without a message".to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from skopeo 1.9.3, or written after the sources of containers/image 5.22 where marked.
    const RECORDED: &[(&str, ErrorKind)] = &[
        (
            "reading manifest 1 in 127.0.0.1:5997/none: manifest unknown: manifest unknown",
            ErrorKind::ImageNotFound,
        ),
        (
            r#"pinging container registry 127.0.0.1:5996: Get "http://127.0.0.1:5996/v2/": dial tcp 127.0.0.1:5996: connect: connection refused"#,
            ErrorKind::RegistryUnavailable,
        ),
        (
            r#"pinging container registry nohost.invalid: Get "http://nohost.invalid/v2/": dial tcp: lookup nohost.invalid on 10.0.0.53:53: no such host"#,
            ErrorKind::RegistryUnavailable,
        ),
        (
            r#"pinging container registry 127.0.0.1:5997: Get "https://127.0.0.1:5997/v2/": http: server gave HTTP response to HTTPS client"#,
            ErrorKind::RegistryUnavailable,
        ),
        // From skopeo 1.18.
        (r#"creating temp directory: archive file not found: "/nonexistent.tar""#, ErrorKind::ImageNotFound),
        ("Source image rejected: Debian-local change: sigstore disabled", ErrorKind::SignatureRejected),
        (
            r#"Source image rejected: Get "https://r.io/sigs/1": dial tcp 10.0.0.1:443: connect: connection refused"#,
            ErrorKind::RegistryUnavailable,
        ),
        ("open /nonexistent/index.json: no such file or directory", ErrorKind::ImageNotFound),
        (
            "creating temp directory: open /nonexistent.tar: no such file or directory",
            ErrorKind::ImageNotFound,
        ),
        (
            r#"creating temp directory: untarring file "/var/tmp/oci2674923842": archive/tar: invalid tar header"#,
            ErrorKind::InvalidArgument,
        ),
        (
            r#"creating temp directory: untarring file "/var/tmp/oci1": unexpected EOF"#,
            ErrorKind::InvalidArgument,
        ),
        (
            r#"reference "[overlay@/var/lib/containers/storage+/run/containers/storage]localhost/none:1" does not resolve to an image ID: identifier is not an image"#,
            ErrorKind::ImageNotFound,
        ),
        // From the sources.
        ("reading manifest 1 in r.io/x: unauthorized: authentication required", ErrorKind::AuthRequired),
        (
            "reading manifest 1 in r.io/x: denied: requested access to the resource is denied",
            ErrorKind::AuthRequired,
        ),
        (
            "unable to retrieve auth token: invalid username/password: unauthorized: incorrect username or password",
            ErrorKind::AuthRequired,
        ),
        (
            "reading manifest 1 in r.io/x: toomanyrequests: You have reached your pull rate limit",
            ErrorKind::RateLimited,
        ),
        ("too many requests to registry", ErrorKind::RateLimited),
        ("received unexpected HTTP status: 502 Bad Gateway", ErrorKind::RegistryUnavailable),
        ("Running image docker://r.io/x:1 is rejected by policy.", ErrorKind::SignatureRejected),
        ("A signature was required, but no signature exists", ErrorKind::SignatureRejected),
        (
            r#"choosing image instance: no image found in manifest list for architecture amd64, variant "", OS linux"#,
            ErrorKind::Unsupported,
        ),
        (
            r#"no image found in image index for architecture amd64, variant "", OS linux"#,
            ErrorKind::Unsupported,
        ),
        ("corrupted blob, expecting sha256:1, got sha256:2", ErrorKind::DigestMismatch),
        ("expected 12 bytes in blob, got 10", ErrorKind::DigestMismatch),
        ("Manifest does not match provided manifest digest sha256:1", ErrorKind::DigestMismatch),
        ("more than one image in oci, choose an image", ErrorKind::InvalidArgument),
        ("reading manifest 1 in r.io/x: denied", ErrorKind::AuthRequired),
        ("denied", ErrorKind::AuthRequired),
        ("open /srv/os/index.json: permission denied", ErrorKind::InvalidArgument),
        ("Error reading blob: StatusCode: 403, <html>", ErrorKind::AuthRequired),
        (
            "reading manifest: invalid character '<' looking for beginning of value",
            ErrorKind::RegistryUnavailable,
        ),
        ("fsetxattr(user.a): No space left on device", ErrorKind::Unsupported),
        ("write /x: no space left on device", ErrorKind::NoSpace),
        ("something nobody has seen", ErrorKind::Internal),
    ];

    #[test]
    fn every_recorded_text_has_its_kind() {
        for (text, kind) in RECORDED {
            assert_eq!(classify(text).0, *kind, "{text}");
        }
    }

    #[test]
    fn no_message_has_the_query_of_a_url() {
        for (text, expected) in [
            (
                r#"Get "https://s3.io/blob?X-Sig=secret&b=c": dial tcp: timeout"#,
                r#"Get "https://s3.io/blob?...": dial tcp: timeout"#,
            ),
            (
                "Get https://s3.io/b?sig=1: EOF, then http://r.io/v2/?n=1",
                "Get https://s3.io/b?...: EOF, then http://r.io/v2/?...",
            ),
            ("is it there? https://r.io/v2/", "is it there? https://r.io/v2/"),
            ("docker://r.io/x:1", "docker://r.io/x:1"),
        ] {
            assert_eq!(without_queries(text), expected);
            assert!(!from_skopeo("reading x", text).chain().contains("sig"), "{text}");
        }
        assert!(
            !reason("level=fatal msg=\"Get \\\"https://s3.io/b?sig=1\\\": EOF\"").to_string().contains("sig")
        );
    }

    #[test]
    fn no_message_says_where_a_bundle_is_served() {
        let token = "a64cb755e72f4d5d84a4680ad372707d";
        for (text, expected) in [
            (
                format!("reading manifest 1 in 127.0.0.1:43705/{token}/0: name unknown"),
                "reading manifest 1 in the bundle: name unknown".to_owned(),
            ),
            (
                format!("Get \"http://127.0.0.1:43705/v2/{token}/0/manifests/x\": EOF"),
                "Get \"http://the bundle\": EOF".to_owned(),
            ),
            (
                "127.0.0.1:5000/os:1 and 127.0.0.1:1".to_owned(),
                "127.0.0.1:5000/os:1 and 127.0.0.1:1".to_owned(),
            ),
        ] {
            assert_eq!(without_queries(&text), expected);
        }
    }

    #[test]
    fn the_message_names_the_image_and_the_state_of_the_system() {
        let text = "failed to invoke method OpenImage: failed to invoke method OpenImage: manifest unknown";
        let error = from_skopeo("reading docker://r.io/x:1", text);
        assert_eq!(
            error.chain(),
            "reading docker://r.io/x:1: the registry does not have it; the running system is unchanged: \
             OpenImage: manifest unknown"
        );
        assert_eq!(error.hint.as_deref(), Some("check the spelling of the name and the tag"));
    }
    #[test]
    fn skopeos_messages_have_kinds() {
        use ErrorKind::*;
        for (stderr, kind, text) in [
            (
                "time=\"2026-11-21T14:47:26Z\" level=fatal msg=\"Error parsing image name \\\"docker://x\\\": reading manifest nope in 127.0.0.1:5977/app: manifest unknown: manifest unknown\"",
                ImageNotFound,
                "Error parsing image name \"docker://x\": reading manifest nope in 127.0.0.1:5977/app: manifest unknown: manifest unknown",
            ),
            (
                "level=fatal msg=\"dial tcp 127.0.0.1:1: connect: connection refused\"",
                RegistryUnavailable,
                "dial tcp 127.0.0.1:1: connect: connection refused",
            ),
            (
                "level=fatal msg=\"http: server gave HTTP response to HTTPS client\"",
                RegistryUnavailable,
                "http: server gave HTTP response to HTTPS client",
            ),
            (
                "reading manifest: unauthorized: authentication required",
                AuthRequired,
                "reading manifest: unauthorized: authentication required",
            ),
            ("write /x: no space left on device", NoSpace, "write /x: no space left on device"),
            ("toomanyrequests: slow down", RateLimited, "toomanyrequests: slow down"),
            (
                "Source image rejected: Running image docker://x is rejected by policy.",
                SignatureRejected,
                "Source image rejected: Running image docker://x is rejected by policy.",
            ),
            (
                "Digest did not match, expected sha256:1, got sha256:2",
                DigestMismatch,
                "Digest did not match, expected sha256:1, got sha256:2",
            ),
            (
                "received unexpected HTTP status: 503 Service Unavailable",
                RegistryUnavailable,
                "received unexpected HTTP status: 503 Service Unavailable",
            ),
            ("", Internal, "skopeo failed without a message"),
        ] {
            let error = reason(stderr);
            assert_eq!((error.kind, error.to_string().as_str()), (kind, text));
        }
    }
}
