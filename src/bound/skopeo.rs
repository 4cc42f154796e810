//! How skopeo is called for bound images.

use crate::engine::cx::Cx;
use crate::model::bound::BoundSpec;
use crate::model::bundle::Index;
use crate::model::image::Digest;
use crate::model::{Context, Error, ErrorKind, Result};
use crate::pull::{FetchOptions, Patience};
use crate::sys::scratch::Scratch;
use crate::sys::skopeo::{options, reason};
use crate::sys::{auth, process};
use cap_std_ext::cap_std::fs::Dir;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::process::Command;

/// What of the daemon's environment reaches skopeo: where programs are, how the network is reached, whom to trust.
const ENVIRONMENT: [&str; 11] = [
    "PATH",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    auth::REGISTRIES_CONF,
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// Runs skopeo with a clean environment and the host's credentials.
#[derive(Debug)]
pub struct Skopeo {
    config_root: Dir,
    tmp: PathBuf,
    env: Vec<(String, String)>,
    /// Credentials for every image, whatever it names itself.
    logins: Option<PathBuf>,
    /// Where signatures lie; `None` for what the system says.
    lookaside: Option<PathBuf>,
    /// What can be had, where images come from a bundle and not from the network, and the home that leads there.
    bundle: Option<(Arc<Index>, PathBuf)>,
}

impl Skopeo {
    /// Uses the configuration below `config_root` and scratch space in `tmp`, which is made when it is needed.
    ///
    /// Of `env` only what skopeo may know is passed on: `PATH`, proxies, `CONTAINERS_REGISTRIES_CONF`, `SSL_CERT_*`.
    pub fn new(config_root: &Dir, tmp: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Skopeo> {
        Ok(Skopeo {
            config_root: config_root.try_clone().doing("duplicating a directory handle")?,
            tmp: tmp.to_owned(),
            env: env.filter(|(name, _)| ENVIRONMENT.contains(&name.as_str())).collect(),
            logins: None,
            lookaside: auth::lookaside(config_root),
            bundle: None,
        })
    }

    /// Uses these credentials for every image, whatever it names itself.
    #[must_use]
    pub fn with_logins(self, logins: Option<PathBuf>) -> Skopeo {
        Skopeo { logins, ..self }
    }

    /// Looks for signatures where this containers-registries.d(5) says.
    #[must_use]
    pub fn with_lookaside(self, lookaside: Option<PathBuf>) -> Skopeo {
        Skopeo { lookaside, ..self }
    }

    /// Asks for nothing that a bundle does not offer, which `home` leads to. It is served on this machine: what images say about
    /// logins and the TLS of their registries is about others.
    #[must_use]
    pub fn with_bundle(self, bundle: Option<(Arc<Index>, PathBuf)>) -> Skopeo {
        Skopeo { bundle, ..self }
    }

    fn auth_file(&self, spec: &BoundSpec) -> Option<PathBuf> {
        if self.bundle.is_some() {
            return None;
        }
        self.logins.clone().or_else(|| auth::find_auth(&self.config_root, spec.auth_file.as_deref()))
    }

    fn cert_dir<'s>(&self, spec: &'s BoundSpec) -> Option<&'s String> {
        spec.cert_dir.as_ref().filter(|_| self.bundle.is_none())
    }

    fn tls_verify(&self, spec: &BoundSpec) -> Option<bool> {
        spec.tls_verify.filter(|_| self.bundle.is_none())
    }

    fn registries(&self) -> Option<&str> {
        self.env.iter().find(|(name, _)| name == auth::REGISTRIES_CONF).map(|(_, value)| value.as_str())
    }

    pub(super) fn tmp(&self) -> &Path {
        &self.tmp
    }

    /// Runs `skopeo ARGS` and returns its standard output. The error is skopeo's reason, not yet what it is for.
    pub(super) async fn run<S: AsRef<OsStr>>(
        &self,
        cx: &Cx,
        trust: Trust,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>> {
        // Lives until skopeo has ended, and takes along what it left.
        let scratch = Scratch::below(&self.tmp)?;
        let mut command = Command::new("skopeo");
        command.env_clear().envs(self.env.iter().map(|(k, v)| (k, v))).env("TMPDIR", scratch.path());
        if let Some((_, home)) = &self.bundle {
            command.env("HOME", home);
        }
        // Of the variable only newer versions make use for blobs.
        command.arg("--tmpdir").arg(scratch.path());
        let policy = auth::policy(&self.config_root);
        let (registries, lookaside) = (self.registries().map(Path::new), self.lookaside.as_deref());
        command.args(options(policy.as_deref(), registries, lookaside));
        if matches!(trust, Trust::Verified) {
            command.arg("--insecure-policy");
        }
        command.args(args);
        let output = process::run(cx, command).await?;
        if output.success { Ok(output.stdout) } else { Err(reason(&output.stderr)) }
    }

    /// The options for talking to the registry of this image.
    pub(super) fn registry_options(&self, spec: &BoundSpec) -> Result<Vec<String>> {
        let mut options = Vec::new();
        if let Some(verify) = self.tls_verify(spec) {
            options.push(format!("--tls-verify={verify}"));
        }
        let file = match self.auth_file(spec) {
            Some(file) => file,
            // Without one skopeo looks for files of its own, such as root's; told to use no login it does so, too, as soon
            // as the image is in another place than its name says.
            None => self.no_logins()?,
        };
        options.push(format!("--authfile={}", file.display()));
        if let Some(dir) = self.cert_dir(spec) {
            let dir = auth::host_path(&self.config_root).join(dir.trim_start_matches('/'));
            options.push(format!("--cert-dir={}", dir.display()));
        }
        Ok(options)
    }

    /// A file with credentials for nothing.
    fn no_logins(&self) -> Result<PathBuf> {
        let (file, text) = (self.tmp.join("no-logins.json"), r#"{"auths":{}}"#);
        if !std::fs::read(&file).is_ok_and(|there| there == text.as_bytes()) {
            let dir = std::fs::create_dir_all(&self.tmp);
            dir.and_then(|()| std::fs::write(&file, text))
                .doing_with(|| format!("writing {}", file.display()))?;
        }
        Ok(file)
    }

    /// skopeo's global options for the platform that is asked for.
    pub(super) fn platform_options(spec: &BoundSpec) -> Vec<String> {
        let option = |(key, value): (&str, &str)| format!("--override-{key}={value}");
        spec.platform().into_iter().map(option).collect()
    }

    /// How the pull engine reaches the image, beside what counts for all images.
    pub(super) fn fetch_options(&self, spec: &BoundSpec, all: &FetchOptions) -> FetchOptions {
        FetchOptions {
            auth_file: self.auth_file(spec),
            insecure: self.tls_verify(spec) == Some(false),
            secure: self.tls_verify(spec) == Some(true),
            cert_dir: self.cert_dir(spec).cloned(),
            ..all.clone()
        }
    }

    /// The manifest of an image in a registry, byte for byte; asked for again as long as the trouble may pass.
    pub(super) async fn manifest(&self, cx: &Cx, spec: &BoundSpec, patience: Patience) -> Result<Vec<u8>> {
        if let Some((index, _)) = &self.bundle {
            index.require(&spec.reference)?;
        }
        patience.again(|| self.ask_manifest(cx, spec)).await
    }

    async fn ask_manifest(&self, cx: &Cx, spec: &BoundSpec) -> Result<Vec<u8>> {
        let mut args = vec!["inspect".into(), "--raw".into()];
        args.extend(self.registry_options(spec)?);
        // skopeo refuses references with both a tag and a digest; the digest says it all.
        let reference = match spec.reference.digest() {
            Some(digest) => spec.reference.pinned(&digest),
            None => spec.reference.clone(),
        };
        args.push(reference.to_string());
        self.run(cx, Trust::Policy, args).await
    }
}

/// Whose word is taken for an image.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trust {
    /// The signature policy's.
    Policy,
    /// Ours: the image came through the policy, and is named by its digest. A policy may well reject everything local.
    Verified,
}

/// Wraps the reason why a bound image could not be had, as the person at the console needs it.
///
/// `Cancelled` and `NoSpace` keep their kinds: they say what to do whatever the image is.
pub(super) fn failed(spec: &BoundSpec, verb: &str, cause: Error) -> Error {
    let kind = match cause.kind {
        ErrorKind::Cancelled => return cause,
        ErrorKind::NoSpace => ErrorKind::NoSpace,
        _ => ErrorKind::BoundImageFailed,
    };
    let context = format!(
        "bound image {}, needed by {}, could not be {verb}; the running system is unchanged, nothing was staged",
        spec.reference.name, spec.source
    );
    let hint = cause.hint.clone().map(|h| h.replace("REF", &spec.reference.name));
    let error = Error::new(kind, context)
        .detail("image", &spec.reference.name)
        .detail("source", &spec.source)
        .detail("cause", cause.kind.name())
        .source(cause);
    match hint {
        Some(hint) => error.hint(hint),
        None => error.hint("journalctl -u osctld.service may say more"),
    }
}

/// A platform instance of a manifest list, or the manifest itself.
///
/// Returns its digest, given the bytes that the registry sent for the reference. What the spec does not ask for is that of
/// this machine.
pub(super) fn instance(manifest: &[u8], spec: &BoundSpec) -> Result<Digest> {
    let architecture = spec.arch.as_deref().unwrap_or(architecture());
    let os = spec.os.as_deref().unwrap_or("linux");
    #[derive(serde::Deserialize)]
    struct Platform {
        architecture: String,
        os: String,
        #[serde(default)]
        variant: String,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        digest: Digest,
        platform: Option<Platform>,
    }
    #[derive(serde::Deserialize)]
    struct Manifest {
        manifests: Option<Vec<Entry>>,
    }
    let parsed: Manifest = serde_json::from_slice(manifest)
        .kind(ErrorKind::Unsupported, "the manifest is not one that we know")?;
    let Some(entries) = parsed.manifests else { return Ok(Digest::of(manifest)) };
    let mut fitting: Vec<(&str, &Digest)> = entries
        .iter()
        .filter_map(|e| e.platform.as_ref().map(|p| (p, &e.digest)))
        .filter(|(p, _)| p.os == os && p.architecture == architecture)
        .filter(|(p, _)| spec.variant.as_ref().is_none_or(|variant| p.variant == *variant))
        .map(|(p, digest)| (p.variant.as_str(), digest))
        .collect();
    // No variant is the baseline of the architecture; v8 is arm64's baseline, too.
    fitting.sort_by_key(|(variant, _)| (!variant.is_empty(), *variant != "v8", *variant));
    fitting.first().map(|(_, digest)| (*digest).clone()).ok_or_else(|| {
        let mut have: Vec<String> = entries
            .iter()
            .filter_map(|e| e.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture)))
            .filter(|p| p != "unknown/unknown")
            .collect();
        have.dedup();
        let variant = spec.variant.iter().map(|variant| format!("/{variant}")).collect::<String>();
        Error::new(
            ErrorKind::Unsupported,
            format!("there is no image for {os}/{architecture}{variant}, only for {}", have.join(", ")),
        )
    })
}

/// This machine's architecture as images name it (GOARCH).
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_credentials_of_ours_there_are_none() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_ambient_dir(temp.path(), cap_std_ext::cap_std::ambient_authority()).unwrap();
        let skopeo = Skopeo::new(&root, &temp.path().join("tmp"), std::iter::empty()).unwrap();
        let spec = BoundSpec::new("r.io/x:1".parse().unwrap(), "/etc/x.toml");
        let own = BoundSpec { auth_file: Some("/etc/app.json".into()), ..spec.clone() };
        let file = auth::host_path(&root).join("etc/app.json");
        assert_eq!(skopeo.registry_options(&own).unwrap(), [format!("--authfile={}", file.display())]);
        let none = skopeo.registry_options(&spec).unwrap();
        let file = none[0].strip_prefix("--authfile=").unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), r#"{"auths":{}}"#);
    }

    #[test]
    fn the_instance_of_a_list_is_chosen_by_platform() {
        let list = |platforms: &[(&str, &str, &str)]| {
            let entries: Vec<_> = platforms
                .iter()
                .enumerate()
                .map(|(i, (os, arch, variant))| {
                    serde_json::json!({"digest": Digest::of(&[u8::try_from(i).unwrap()]),
                        "platform": {"os": os, "architecture": arch, "variant": variant}})
                })
                .collect();
            serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": entries})).unwrap()
        };
        let on = |arch: &str| BoundSpec {
            arch: Some(arch.into()),
            ..BoundSpec::new("r.io/x:1".parse().unwrap(), "/etc/x.toml")
        };
        let two = list(&[("windows", "amd64", ""), ("linux", "arm64", "v8"), ("linux", "amd64", "")]);
        assert_eq!(instance(&two, &on("amd64")).unwrap(), Digest::of(&[2]));
        assert_eq!(instance(&two, &on("arm64")).unwrap(), Digest::of(&[1]));
        let error = instance(&two, &on("s390x")).unwrap_err();
        assert_eq!(
            (error.kind, error.to_string().as_str()),
            (
                ErrorKind::Unsupported,
                "there is no image for linux/s390x, only for windows/amd64, linux/arm64, linux/amd64"
            )
        );
        let variants = list(&[("linux", "amd64", "v3"), ("linux", "amd64", "")]);
        assert_eq!(instance(&variants, &on("amd64")).unwrap(), Digest::of(&[1]));
        let third = BoundSpec { variant: Some("v3".into()), ..on("amd64") };
        assert_eq!(instance(&variants, &third).unwrap(), Digest::of(&[0]));
        let windows = BoundSpec { os: Some("windows".into()), ..on("amd64") };
        assert_eq!(instance(&two, &windows).unwrap(), Digest::of(&[0]));
        let plain = br#"{"schemaVersion":2,"layers":[]}"#;
        assert_eq!(instance(plain, &on("amd64")).unwrap(), Digest::of(plain));
    }
}
