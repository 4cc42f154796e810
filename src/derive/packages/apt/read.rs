//! What apt and dpkg read and print.

use crate::derive::packages::FILES;
use crate::derive::packages::base::{Installed, Known, Package, names, unsolved};
use crate::model::image::Digest;
use crate::model::lock::{BasePackage, LockedPackage};
use crate::model::packages::{Packages, Repo, is_name};
use crate::model::text::one_line;
use crate::model::{Error, ErrorKind, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Where our keys are, in the target.
const KEYS: &str = "/etc/apt/keyrings";

/// Repositories of images come before all others: they are made for the base (apt_preferences(5)).
pub(super) const FIRST: &str = "Package: *\nPin: origin \"\"\nPin-Priority: 990\n";

/// What dpkg-deb prints for [`package`].
pub(super) const FORMAT: &str = "${Package}\\t${Architecture}\\t${Version}\\n";

/// The package that a line in [`FORMAT`] describes.
pub(super) fn package(line: &str) -> Option<Package> {
    let mut fields = line.trim_end().split('\t').map(str::to_owned);
    let package = Package { name: fields.next()?, architecture: fields.next()?, version: fields.next()? };
    (is_name(&package.name) && fields.next().is_none()).then_some(package)
}

/// The packages that are installed, with their versions.
pub(super) fn installed(status: &str) -> Installed {
    let field = |stanza: &str, name: &str| -> Option<String> {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(|v| v.trim().to_owned())
    };
    let package = |stanza: &str| {
        let here = field(stanza, "Status")?.ends_with(" installed");
        let (name, architecture) = (field(stanza, "Package")?, field(stanza, "Architecture")?);
        here.then_some(Package { name, architecture, version: field(stanza, "Version")? })
    };
    Installed(status.split("\n\n").filter_map(package).collect())
}

/// The names of packages that requests may change.
pub(super) fn freed(packages: &Packages) -> BTreeSet<String> {
    let bare = |name: &String| name.split([':', '=']).next().unwrap_or_default().to_owned();
    names(&packages.remove).chain(names(&packages.replace)).map(bare).collect()
}

/// The database with every package on hold, but for those that may be changed.
pub(super) fn hold(status: &str, free: &BTreeSet<String>) -> String {
    let mut name = "";
    let mut out = String::with_capacity(status.len());
    for line in status.lines() {
        if let Some(package) = line.strip_prefix("Package: ") {
            name = package.trim();
        }
        match line {
            "Status: install ok installed" if !free.contains(name) => {
                out.push_str("Status: hold ok installed")
            }
            _ => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

/// The arguments of `apt-get` for what is asked.
///
/// What the base has is not: apt would want to have the newest of it, and the base is on hold.
pub(super) fn arguments(packages: &Packages, base: &Installed) -> Vec<String> {
    let here = |request: &&String| {
        let (name, arch) = request.split_once(':').map_or((request.as_str(), None), |(n, a)| (n, Some(a)));
        base.has(name, arch)
    };
    let mut all = vec!["--allow-downgrades".to_owned(), "install".to_owned()];
    all.extend(names(&packages.install).filter(|request| !here(request)).cloned());
    all.extend(names(&packages.replace).cloned());
    all.extend(packages.remove.keys().map(|name| format!("{name}-")));
    all
}

/// A source in deb822 format (sources.list(5)), and where its key belongs.
pub(super) fn source(id: &str, repo: &Repo, key: Option<&[u8]>) -> Result<(String, Option<String>)> {
    if repo.baseurl.is_empty() {
        let why = format!("{}: repository {id} has no baseurl, which apt needs", repo.owner);
        return Err(Error::new(ErrorKind::InvalidDropIn, why).detail("drop-in", &repo.owner));
    }
    let flat = repo.suites.is_empty();
    let suites = if flat { "./".to_owned() } else { repo.suites.join(" ") };
    let mut text = format!("Types: deb\nURIs: {}\nSuites: {suites}\n", repo.baseurl.join(" "));
    let components = match repo.components.is_empty() {
        // A flat repository has none.
        true if flat => String::new(),
        true => "main".to_owned(),
        false => repo.components.join(" "),
    };
    if !components.is_empty() {
        text.push_str(&format!("Components: {components}\n"));
    }
    let keyring = match (&repo.key, key) {
        (None, _) => {
            text.push_str("Trusted: yes\n");
            None
        }
        (Some(_), Some(key)) => {
            // apt goes by the ending.
            let ending = if key.starts_with(b"-----BEGIN PGP") { "asc" } else { "gpg" };
            let path = format!("{KEYS}/osctl-{id}.{ending}");
            text.push_str(&format!("Signed-By: {path}\n"));
            Some(path)
        }
        (Some(_), None) => {
            return Err(Error::new(ErrorKind::Internal, format!("the key of repository {id} was not read")));
        }
    };
    Ok((text, keyring))
}

/// What apt would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Name and architecture: the version before, and the one to come.
    pub install: BTreeMap<(String, String), (Option<String>, String)>,
    /// Name, and the version before.
    pub remove: BTreeMap<String, String>,
}

impl Changes {
    /// What of the base would go, and what of it would be replaced.
    pub(super) fn of_base(&self, base: &Installed) -> (Vec<BasePackage>, Vec<BasePackage>) {
        let record = |(name, version): (&String, &String)| BasePackage {
            name: name.clone(),
            version: version.clone(),
        };
        let gone = self.remove.iter().filter(|(name, _)| base.has(name, None));
        let other = self.install.iter().filter_map(|((name, _), (old, _))| Some((name, old.as_ref()?)));
        (gone.map(record).collect(), other.map(record).collect())
    }
}

/// Reads the lines `Inst NAME [OLD] (NEW ORIGIN [ARCH])` and `Remv NAME [OLD]` of a simulation (apt-get(8), -s).
pub(super) fn changes(text: &str) -> Changes {
    let mut changes = Changes::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (verb, Some(name)) = (words.next(), words.next()) else { continue };
        let old = words.next().and_then(|w| w.strip_prefix('[')?.strip_suffix(']')).map(str::to_owned);
        let name = name.split(':').next().unwrap_or(name).to_owned();
        match verb {
            Some("Inst") => {
                let Some(new) = line.split_once(" (").map(|(_, rest)| rest) else { continue };
                let version = new.split_whitespace().next().unwrap_or_default().to_owned();
                let arch = new.split_once('[').and_then(|(_, a)| a.split(']').next()).unwrap_or_default();
                changes.install.insert((name, arch.to_owned()), (old, version));
            }
            Some("Remv" | "Purg") => _ = changes.remove.insert(name, old.unwrap_or_default()),
            _ => {}
        }
    }
    changes
}

/// The packages, with their digests and where they are.
///
/// `--print-uris` has lines of `'URI' FILE SIZE SHA256:DIGEST`, without names: the file's name has them.
pub(super) fn packages(changes: &Changes, known: &Known, uris: &str) -> Result<Vec<LockedPackage>> {
    let mut left = changes.install.clone();
    let mut found = Vec::new();
    left.retain(|(name, architecture), (_, version)| match known.find(name, architecture, version) {
        Some(package) => {
            found.push(package.clone());
            false
        }
        None => true,
    });
    for line in uris.lines() {
        let Some((uri, rest)) = line.strip_prefix('\'').and_then(|l| l.split_once("' ")) else { continue };
        if uri.starts_with(&format!("file:{FILES}/")) {
            continue;
        }
        let bad =
            || unsolved(format!("apt says of a package what osctl does not understand: {}", one_line(line)));
        let words: Vec<&str> = rest.split_whitespace().collect();
        let [file, size, digest] = words[..] else { return Err(bad()) };
        let (digest, size) =
            (digest.strip_prefix("SHA256:").ok_or_else(bad)?, size.parse().map_err(|_| bad())?);
        let digest =
            format!("sha256:{}", digest.to_ascii_lowercase()).parse::<Digest>().map_err(|_| bad())?;
        let parts: Vec<&str> = file.strip_suffix(".deb").ok_or_else(bad)?.split('_').collect();
        let [name, version, arch] = parts[..] else { return Err(bad()) };
        if file.contains('/') {
            return Err(bad());
        }
        let (key, version) = ((name.to_owned(), arch.to_owned()), version.replace("%3a", ":"));
        // A repository may have the same.
        if known.find(name, arch, &version).is_some() {
            continue;
        }
        let Some((_, expected)) = left.remove(&key) else { return Err(bad()) };
        if version != expected {
            return Err(bad());
        }
        let package = LockedPackage {
            name: key.0,
            version: expected,
            architecture: key.1,
            digest,
            size,
            source: without_login(uri),
        };
        found.push(package);
    }
    match left.keys().next() {
        None => Ok(found),
        Some((name, _)) => Err(unsolved(format!("apt does not say where {name} is"))
            .hint("a repository on the host's disk cannot be used: serve it by http")),
    }
}

fn without_login(uri: &str) -> String {
    match uri.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::packages::Key;

    const STATUS: &str = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n\
        Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
        Package: moby\nStatus: install ok installed\nArchitecture: all\nVersion: 1:2-3\n";

    fn base() -> Installed {
        installed(STATUS)
    }

    /// As apt 2.6.1 prints it.
    const SIMULATED: &str = "\
Reading package lists...
The following NEW packages will be installed:
  tree
Remv moby [1:2-3]
Inst libc6 [2.36-9] (2.36-10 Debian:12.15/oldstable [amd64])
Inst tree (2.1.0-1 Debian:12.15/oldstable, Debian-Security:12 [amd64]) []
Inst libx:i386 (1-1 Debian:12.15/oldstable [i386])
Conf tree (2.1.0-1 Debian:12.15/oldstable [amd64])
";

    #[test]
    fn only_what_is_installed_counts() {
        let names: Vec<String> =
            base().0.into_iter().map(|p| format!("{} {} {}", p.name, p.architecture, p.version)).collect();
        assert_eq!(names, ["libc6 amd64 2.36-9", "moby all 1:2-3"]);
    }

    #[test]
    fn everything_is_held_but_what_requests_name() {
        let held = hold(STATUS, &BTreeSet::from(["moby".to_owned()]));
        assert!(held.contains("Package: libc6\nStatus: hold ok installed\n"), "{held}");
        assert!(held.contains("Package: moby\nStatus: install ok installed\n"), "{held}");
        assert!(held.contains("deinstall ok config-files"), "{held}");
    }

    #[test]
    fn a_simulation_is_read_line_by_line() {
        let changes = changes(SIMULATED);
        assert_eq!(changes.remove, BTreeMap::from([("moby".into(), "1:2-3".into())]));
        let install: Vec<String> = (changes.install.iter())
            .map(|((name, arch), (old, new))| {
                format!("{name} {arch} {} {new}", old.as_deref().unwrap_or("-"))
            })
            .collect();
        assert_eq!(install, ["libc6 amd64 2.36-9 2.36-10", "libx i386 - 1-1", "tree amd64 - 2.1.0-1"]);
    }

    #[test]
    fn a_simulation_says_what_of_the_base_would_change() {
        let (removed, replaced) = changes(SIMULATED).of_base(&base());
        assert_eq!((removed[0].name.as_str(), removed[0].version.as_str()), ("moby", "1:2-3"));
        assert_eq!((replaced[0].name.as_str(), replaced[0].version.as_str()), ("libc6", "2.36-9"));
        assert_eq!((removed.len(), replaced.len()), (1, 1));
    }

    #[test]
    fn the_files_are_those_of_the_simulation_and_hide_no_login() {
        let changes = changes("Inst vim (2:9.0-2 X [amd64])\n");
        let digest = "ab".repeat(32);
        let line = |file: &str, hash: &str| format!("'http://u:p@r.example/pool/x.deb' {file} 12 {hash}\n");
        let good = line("vim_2%3a9.0-2_amd64.deb", &format!("SHA256:{digest}"));
        let found = packages(&changes, &Known::default(), &good).unwrap();
        let package = &found[0];
        assert_eq!(package.describe(), "vim 2:9.0-2 (amd64)");
        assert_eq!((package.size, package.digest.hex()), (12, digest.as_str()));
        assert_eq!(package.source, "http://r.example/pool/x.deb");
        for bad in [
            line("vim_2%3a9.0-3_amd64.deb", &format!("SHA256:{digest}")),
            line("vim_2%3a9.0-2_amd64.deb", "MD5Sum:00"),
            line("../vim_2%3a9.0-2_amd64.deb", &format!("SHA256:{digest}")),
            format!("{good}{good}"),
            String::new(),
        ] {
            assert_eq!(
                packages(&changes, &Known::default(), &bad).unwrap_err().kind,
                ErrorKind::DepsolveFailed,
                "{bad}"
            );
        }
    }

    #[test]
    fn a_repository_is_a_source_with_its_key_beside_it() {
        let repo = |suites: &[&str], key: Option<Key>| Repo {
            owner: "a.yaml".into(),
            baseurl: vec!["https://r.example/debian".into()],
            suites: suites.iter().map(|s| (*s).to_owned()).collect(),
            components: Vec::new(),
            metalink: None,
            mirrorlist: None,
            key,
        };
        let inline = || Some(Key::Inline(Vec::new()));
        let (text, key) =
            source("v", &repo(&["bookworm"], inline()), Some(b"-----BEGIN PGP PUBLIC")).unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: https://r.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: /etc/apt/keyrings/osctl-v.asc\n"
        );
        assert_eq!(key.as_deref(), Some("/etc/apt/keyrings/osctl-v.asc"));
        let (text, key) = source("v", &repo(&[], None), None).unwrap();
        assert_eq!(text, "Types: deb\nURIs: https://r.example/debian\nSuites: ./\nTrusted: yes\n");
        assert_eq!(key, None);
        let mirrors = Repo { baseurl: Vec::new(), metalink: Some("https://m".into()), ..repo(&[], None) };
        assert_eq!(source("v", &mirrors, None).unwrap_err().kind, ErrorKind::InvalidDropIn);
    }
}
