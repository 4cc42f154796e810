//! Where the parts of an image are to be had, and with what: everything that a program without rights of its own must
//! be told before it can fetch them.
//!
//! ```text
//!  registries.conf, registries.conf.d/   where: mirrors, other locations, what is blocked or insecure
//!  auth.json, docker-credential-*        the login of each place
//!  certs.d/HOST[:PORT]/                  *.crt authorities, NAME.cert and NAME.key our own certificate
//! ```
//!
//! Only the system's files count, not those in a home directory: an image is the same for whoever asks for it.

mod conf;
#[cfg(test)]
mod tests;

use super::credentials::{AuthFile, Credentials, Login, auth_file};
use super::process;
use crate::engine::cx::Cx;
use crate::model::image::full_name;
use crate::model::image::{ImageRef, Transport};
use crate::model::{Context, Error, ErrorKind, Result};
use cap_std_ext::RootDir;
use cap_std_ext::cap_std::ambient_authority;
use cap_std_ext::cap_std::fs::Dir;
use conf::{AUTH_FILE, Conf, Form};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The main file: the first that is there. The second is that of newer distributions.
const MAIN: [&str; 2] = ["etc/containers/registries.conf", "usr/share/containers/registries.conf"];

/// The first of these that has a directory for a host is used, and the other not.
const CERTIFICATES: [&str; 2] = ["etc/containers/certs.d", "etc/docker/certs.d"];

/// How long a credential helper may take. Some ask a service on the network, none may ask a person.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of Docker Hub in references and configuration, and the one that answers.
const HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// A registry that has an image, as it must be spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `host[:port]` to connect to.
    pub host: String,
    /// The repository, as it stands behind `/v2/`.
    pub repository: String,
    /// Certificates need not be valid, and there may be no TLS at all.
    pub insecure: bool,
    /// What it wants to see.
    pub access: Access,
}

/// What is needed to talk to a registry. `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The login.
    pub credentials: Credentials,
    /// Certificates in PEM that are trusted beside those of the system.
    pub authorities: Vec<Vec<u8>>,
    /// Our own certificates, in the order of their names.
    pub certificates: Vec<ClientCertificate>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("credentials", &self.credentials)
            .field("authorities", &self.authorities.len())
            .field("certificates", &self.certificates.len())
            .finish()
    }
}

/// A certificate that we show to a registry. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificate {
    /// The certificate and its chain in PEM.
    pub certificate: Vec<u8>,
    /// Its key in PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(..)")
    }
}

/// Where a home has its drop-ins.
pub const HOME: &str = ".config/containers/registries.conf.d";

/// The files that decide where an image is.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The root of the configuration. Symbolic links, also absolute ones, stay below it.
    pub root: &'a Dir,
    /// The file with credentials; `None` is anonymous.
    pub auth_file: Option<&'a Path>,
    /// A main file in place of the system's. Drop-ins are read all the same, as skopeo does.
    pub registries_conf: Option<&'a Path>,
    /// The home of whoever asks, whose drop-ins come last, as skopeo does it; `None` has none.
    pub home: Option<&'a Path>,
    /// Where credential helpers are searched for, in place of `PATH`.
    pub helpers: Option<&'a OsStr>,
    /// Whether all endpoints are insecure, whatever the files say.
    pub insecure: bool,
    /// A directory below the root with the certificates for whatever host, in place of the system's for each.
    pub cert_dir: Option<&'a str>,
}

/// Returns where an image is to be had, in the order to try: mirrors first. Never none.
///
/// Mirrors may be for tags or for digests only. For the blobs of an image, ask with the reference that is pinned to
/// its digest; for its manifest, with the one that skopeo is asked with.
pub async fn endpoints(cx: &Cx, sources: &Sources<'_>, image: &ImageRef) -> Result<Vec<Endpoint>> {
    if image.transport != Transport::Registry {
        let why = format!("{image} is in no registry");
        return Err(Error::new(ErrorKind::InvalidArgument, why));
    }
    let root = RootDir::new(sources.root, ".").doing("opening the configuration")?;
    let conf = read_conf(&root, sources.registries_conf, sources.home)?;
    let auth = sources.auth_file.map(read_auth_file).transpose()?;
    let places = conf.places(&full_name(image.repository()), image.digest().is_some())?;
    let mut endpoints = Vec::new();
    for place in places {
        let (host, repository) = place.name.split_once('/').expect("a place has a host and a repository");
        let credentials = credentials(cx, sources, &conf, auth.as_ref(), &place.name).await?;
        let (authorities, certificates) = certificates(&root, sources.cert_dir, host)?;
        endpoints.push(Endpoint {
            host: if host == HUB.0 { HUB.1 } else { host }.to_owned(),
            repository: repository.to_owned(),
            insecure: place.insecure || sources.insecure,
            access: Access { credentials, authorities, certificates },
        });
    }
    Ok(endpoints)
}

/// Returns a containers-auth.json(5) with the logins of these endpoints and no others.
pub fn auth_json(endpoints: &[Endpoint]) -> String {
    auth_file(endpoints.iter().map(|endpoint| {
        let host = if endpoint.host == HUB.1 { HUB.0 } else { &endpoint.host };
        (format!("{host}/{}", endpoint.repository), &endpoint.access.credentials)
    }))
}

fn reading(path: impl fmt::Display) -> String {
    format!("reading {path}; the running system is unchanged")
}

/// What there is, or nothing.
fn optional<T>(result: io::Result<T>, path: &str) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).kind(ErrorKind::InvalidArgument, reading(path)),
    }
}

fn read_conf(root: &RootDir, instead: Option<&Path>, home: Option<&Path>) -> Result<Conf> {
    let mut conf = Conf::default();
    if let Some(path) = instead {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).kind(ErrorKind::InvalidArgument, reading(&name))?;
        conf.add(&name, &text, Form::Any)?;
    } else {
        for path in MAIN {
            if let Some(text) = optional(root.read_to_string(path), path)? {
                conf.add(&format!("/{path}"), &text, Form::Any)?;
                break;
            }
        }
    }
    let dir = format!("{}.d", MAIN[0]);
    for name in names(root, &dir)?.iter().filter(|name| name.ends_with(".conf")) {
        let path = format!("{dir}/{name}");
        if let Some(text) = optional(root.read_to_string(&path), &path)? {
            conf.add(&format!("/{path}"), &text, Form::VersionTwo)?;
        }
    }
    if let Some(home) = home {
        let home = Dir::open_ambient_dir(home, ambient_authority())
            .doing_with(|| format!("opening {}", home.display()))?;
        let home = RootDir::new(&home, ".").doing("opening a home")?;
        for name in names(&home, HOME)?.iter().filter(|name| name.ends_with(".conf")) {
            let path = format!("{HOME}/{name}");
            if let Some(text) = optional(home.read_to_string(&path), &path)? {
                conf.add(&path, &text, Form::VersionTwo)?;
            }
        }
    }
    Ok(conf)
}

/// Fails with `SignatureRejected` if the files of a host block this repository.
pub fn allows(root: &Dir, registries_conf: Option<&Path>, repository: &str) -> Result<()> {
    let root = RootDir::new(root, ".").doing("opening the configuration")?;
    read_conf(&root, registries_conf, None)?.places(&full_name(repository), true).map(drop)
}

/// The names of what is in a directory and is no directory itself, in order. None if it is not there.
fn names(root: &RootDir, dir: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in optional(root.read_dir(dir), dir)?.into_iter().flatten() {
        let entry = entry.doing_with(|| reading(dir))?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn read_auth_file(path: &Path) -> Result<AuthFile> {
    let name = path.display();
    let text = std::fs::read(path).kind(ErrorKind::AuthRequired, reading(&name))?;
    AuthFile::parse(&text).ok_or_else(|| {
        Error::new(ErrorKind::AuthRequired, format!("{name} is no file with credentials"))
            .hint("see containers-auth.json(5), or write it anew with: podman login --authfile FILE REGISTRY")
    })
}

/// The login for a name: that of the first store that has one.
async fn credentials(
    cx: &Cx,
    sources: &Sources<'_>,
    conf: &Conf,
    auth: Option<&AuthFile>,
    name: &str,
) -> Result<Credentials> {
    let registry = name.split('/').next().unwrap_or_default();
    for store in conf.helpers() {
        let found = match store {
            AUTH_FILE => match auth.map_or(Login::None, |file| file.find(name)) {
                Login::Here(credentials) => credentials,
                Login::Helper(helper) => ask_helper(cx, sources, &helper, registry).await?,
                Login::None => Credentials::Anonymous,
                Login::Damaged => {
                    let file = sources.auth_file.map(|f| f.display().to_string()).unwrap_or_default();
                    let why = format!("{file} has credentials for {name} that cannot be decoded");
                    return Err(Error::new(ErrorKind::AuthRequired, why)
                        .hint("write them anew with: podman login --authfile FILE REGISTRY"));
                }
            },
            helper => ask_helper(cx, sources, helper, registry).await?,
        };
        if found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    Ok(Credentials::Anonymous)
}

/// What a credential helper answers, in the protocol of docker-credential-helpers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

async fn ask_helper(cx: &Cx, sources: &Sources<'_>, helper: &str, registry: &str) -> Result<Credentials> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: &str| {
        Error::new(ErrorKind::AuthRequired, format!("{program} {why} for {registry}"))
            .hint(format!("see what it says: echo {registry} | {program} get"))
    };
    if helper.contains('/') {
        return Err(failed("is no name of a credential helper"));
    }
    let mut command = tokio::process::Command::new(&program);
    command.arg("get");
    if let Some(path) = sources.helpers {
        command.env("PATH", path);
    }
    let asked = process::run_with_input(cx, command, registry.as_bytes());
    let output = tokio::time::timeout(HELPER_TIMEOUT, asked)
        .await
        .map_err(|_| failed("has no answer in 30 seconds"))??;
    if !output.success {
        // It says why on standard output, where otherwise the secret is.
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("credentials not found in native keychain") {
            return Ok(Credentials::Anonymous);
        }
        return Err(failed("gives no credentials").source(output.stderr));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("gives an answer that is no credentials"))?;
    Ok(match answer {
        Answer { username, secret } if username.is_empty() && secret.is_empty() => Credentials::Anonymous,
        Answer { username, secret } if username == "<token>" => Credentials::IdentityToken(secret),
        Answer { username, secret } => Credentials::Basic { user: username, password: secret },
    })
}

/// The authorities for a host, and the certificates for us, as containers-certs.d(5) has them.
fn certificates(
    root: &RootDir,
    instead: Option<&str>,
    host: &str,
) -> Result<(Vec<Vec<u8>>, Vec<ClientCertificate>)> {
    let (mut authorities, mut certificates) = (Vec::new(), Vec::new());
    let dirs = match instead {
        Some(dir) => vec![dir.trim_start_matches('/').to_owned()],
        None => CERTIFICATES.map(|dir| format!("{dir}/{host}")).to_vec(),
    };
    let mut dir = None;
    for candidate in &dirs {
        if optional(root.open_optional(candidate), candidate)?.flatten().is_some() {
            dir = Some(candidate);
            break;
        }
    }
    let Some(dir) = dir else {
        let Some(missing) = instead else { return Ok((authorities, certificates)) };
        let why = format!("{}: there is no such directory", reading(missing));
        return Err(Error::new(ErrorKind::InvalidArgument, why).hint("see containers-certs.d(5)"));
    };
    let names = names(root, dir)?;
    let read = |name: &str| {
        let path = format!("{dir}/{name}");
        root.read(&path).kind(ErrorKind::InvalidArgument, reading(format!("/{path}")))
    };
    let partner = |name: &str, partner: String| match names.contains(&partner) {
        true => Ok(partner),
        false => {
            Err(Error::new(ErrorKind::InvalidArgument, format!("/{dir}/{name} is without its {partner}"))
                .hint("see containers-certs.d(5); the certificate of an authority ends with .crt"))
        }
    };
    for name in &names {
        if name.ends_with(".crt") {
            authorities.push(read(name)?);
        } else if let Some(stem) = name.strip_suffix(".cert") {
            let key = partner(name, format!("{stem}.key"))?;
            certificates.push(ClientCertificate { certificate: read(name)?, key: read(&key)? });
        } else if let Some(stem) = name.strip_suffix(".key") {
            partner(name, format!("{stem}.cert"))?;
        }
    }
    Ok((authorities, certificates))
}
