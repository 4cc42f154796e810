//! What dnf and rpm read and print.

use crate::derive::packages::base::{Installed, Package, names};
use crate::model::lock::BasePackage;
use crate::model::packages::{Key, Packages, Repo};
use crate::model::text::one_line;
use crate::model::{Error, ErrorKind, Result};
use std::collections::BTreeSet;

/// A line of `rpm -qa` for [`installed`].
pub(super) const FORMAT: &str = "%{NAME}\\t%{ARCH}\\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\\n";

/// The packages that are installed, of lines in [`FORMAT`].
pub(super) fn installed(text: &str) -> Installed {
    let package = |line: &str| {
        let mut fields = line.split('\t');
        let (name, architecture, version) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Package {
            name: name.to_owned(),
            architecture: architecture.to_owned(),
            version: without_zero(version).to_owned(),
        })
    };
    Installed(text.lines().filter_map(package).collect())
}

/// No epoch is the epoch 0.
fn without_zero(version: &str) -> &str {
    version.strip_prefix("0:").unwrap_or(version)
}

/// `NAME-[EPOCH:]VERSION-RELEASE.ARCH`
pub(super) fn nevra(name: &str, version: &str, architecture: &str) -> String {
    format!("{name}-{version}.{architecture}")
}

/// The package of a full name.
pub(super) fn split(nevra: &str) -> Option<Package> {
    let (rest, architecture) = nevra.rsplit_once('.')?;
    let (rest, release) = rest.rsplit_once('-')?;
    let (name, version) = rest.rsplit_once('-')?;
    let version = format!("{}-{release}", without_zero(version));
    Some(Package { name: name.to_owned(), architecture: architecture.to_owned(), version })
}

/// What of the base a request is about: a name, or one with an architecture or a version behind it.
fn named<'b>(request: &str, base: &'b Installed) -> Option<&'b Package> {
    let is_named = |p: &&Package| match request.strip_prefix(p.name.as_str()) {
        Some("") => true,
        Some(rest) => {
            rest.strip_prefix('.') == Some(&p.architecture)
                || rest.strip_prefix('-').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
        }
        None => false,
    };
    // `a-1-2` is the version 2 of a package a-1 where there is one.
    base.0.iter().filter(is_named).max_by_key(|p| p.name.len())
}

/// The names of packages that requests may change.
pub(super) fn freed(packages: &Packages, base: &Installed) -> BTreeSet<String> {
    let requests = packages.remove.keys().chain(names(&packages.replace));
    requests.filter_map(|request| named(request, base)).map(|p| p.name.clone()).collect()
}

/// What dnf is asked to install: not what the base has.
pub(super) fn requests(packages: &Packages, base: &Installed) -> Vec<String> {
    let here = |request: &&String| {
        named(request, base).is_none_or(|p| p.name.len() < request.len() && !is_arch(request, p))
    };
    let replaced = |request: &&String| {
        let Some(p) = named(request, base) else { return true };
        let spec = &request[p.name.len()..].trim_start_matches('-');
        let whole = p.version.as_str();
        let upstream = whole.rsplit_once('-').map_or(whole, |(version, _)| version);
        let bare = |text: &str| text.split_once(':').map_or(text, |(_, rest)| rest).to_owned();
        ![whole.to_owned(), upstream.to_owned(), bare(whole), bare(upstream)].contains(&(**spec).to_owned())
    };
    let install = names(&packages.install).filter(here);
    install.chain(names(&packages.replace).filter(replaced)).cloned().collect()
}

fn is_arch(request: &str, package: &Package) -> bool {
    request.strip_prefix(package.name.as_str()).and_then(|rest| rest.strip_prefix('.'))
        == Some(package.architecture.as_str())
}

/// Whether one of these packages is what a request asks for.
pub(super) fn is_met(request: &str, has: impl Fn(&str) -> bool) -> bool {
    let ends = request.match_indices(['-', '.']).map(|(at, _)| at).chain([request.len()]);
    ends.map(|end| &request[..end]).any(has)
}

/// Options that exclude these packages, none longer than an argument may be.
pub(super) fn excludes<'n>(names: impl Iterator<Item = &'n str>, limit: usize) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for name in names {
        match options.last_mut() {
            Some(option) if option.len() + name.len() < limit => {
                option.push(',');
                option.push_str(name);
            }
            _ => options.push(format!("--exclude={name}")),
        }
    }
    options
}

/// The ids of the repositories that count where drop-ins choose some: those, and the ones that they declare.
pub(super) fn chosen(packages: &Packages) -> Vec<String> {
    match packages.enabled_repos.is_empty() {
        true => Vec::new(),
        false => packages.enabled_repos.keys().chain(packages.repos.keys()).cloned().collect(),
    }
}

/// Where the key of one of our repositories is, in the target.
pub(super) fn key_path(id: &str) -> String {
    format!("/etc/pki/osctl-{id}.asc")
}

/// A repository as dnf.conf(5) has it.
pub(super) fn repository(id: &str, repo: &Repo, is_first: bool) -> Result<String> {
    if !repo.suites.is_empty() || !repo.components.is_empty() {
        let why =
            format!("{}: repository {id} has suites or components, which dnf does not know", repo.owner);
        return Err(Error::new(ErrorKind::InvalidDropIn, why).detail("drop-in", &repo.owner));
    }
    let mut text = format!("[{id}]\nname={id}\nenabled=1\n");
    if is_first {
        text.push_str("priority=1\n");
    }
    if !repo.baseurl.is_empty() {
        text.push_str(&format!("baseurl={}\n", repo.baseurl.join(" ")));
    }
    for (key, value) in [("metalink", &repo.metalink), ("mirrorlist", &repo.mirrorlist)] {
        if let Some(value) = value {
            text.push_str(&format!("{key}={value}\n"));
        }
    }
    match repo.key.as_ref() {
        Some(Key::Inline(_) | Key::File(_)) => {
            text.push_str(&format!("gpgcheck=1\ngpgkey=file://{}\n", key_path(id)));
        }
        None => text.push_str("gpgcheck=0\n"),
    }
    Ok(text)
}

/// The file of a package that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// The id of the repository that it is from.
    pub repository: String,
    /// Where it is in what dnf stored.
    pub path: String,
}

/// What dnf would do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Transaction {
    pub new: Vec<(Package, File)>,
    gone: Vec<Package>,
}

impl Transaction {
    /// What of the base would go, and what of it would be replaced.
    pub(super) fn of_base(&self) -> (Vec<BasePackage>, Vec<BasePackage>) {
        let record = |p: &Package| BasePackage { name: p.name.clone(), version: p.version.clone() };
        let (replaced, removed): (Vec<&Package>, Vec<&Package>) =
            self.gone.iter().partition(|gone| self.new.iter().any(|(new, _)| new.name == gone.name));
        (removed.into_iter().map(record).collect(), replaced.into_iter().map(record).collect())
    }
}

/// Reads what `dnf5 --store` writes (dnf5(8)), or our script for dnf 4.
pub(super) fn transaction(text: &str) -> Result<Transaction> {
    #[derive(serde::Deserialize)]
    struct Stored {
        #[serde(default)]
        rpms: Vec<Rpm>,
    }
    #[derive(serde::Deserialize)]
    struct Rpm {
        nevra: String,
        action: String,
        #[serde(default)]
        repo_id: String,
        package_path: Option<String>,
    }
    let stored: Stored =
        serde_json::from_str(text).map_err(|e| strange("what it would do", &e.to_string()))?;
    let mut transaction = Transaction::default();
    for rpm in stored.rpms {
        let package = split(&rpm.nevra).ok_or_else(|| strange("a name", &rpm.nevra))?;
        match (rpm.action.as_str(), rpm.package_path) {
            ("Install" | "Upgrade" | "Downgrade", Some(path)) => {
                let repository = rpm.repo_id.strip_prefix("@stored_transaction(");
                let repository = repository.and_then(|id| id.strip_suffix(')')).unwrap_or(&rpm.repo_id);
                let path = path.strip_prefix("./").unwrap_or(&path).to_owned();
                let file = File { repository: repository.to_owned(), path };
                transaction.new.push((package, file));
            }
            ("Remove" | "Replaced" | "Obsoleted", _) => transaction.gone.push(package),
            (action, _) => return Err(strange("an action", action)),
        }
    }
    Ok(transaction)
}

/// A repository of the target.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
pub(super) struct Repository {
    pub id: String,
    /// Whether its packages have to be signed.
    #[serde(rename = "pkg_gpgcheck")]
    pub is_signed: bool,
    #[serde(rename = "gpg_key", default)]
    keys: Vec<String>,
}

impl Repository {
    /// The files that its keys are in.
    pub(super) fn key_files(&self) -> Result<Vec<String>> {
        let refused = |why: String| {
            Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged"))
                .detail("repository", &self.id)
                .hint("put the keys into the image, and name them with gpgkey=file:///etc/pki/...")
        };
        if self.keys.is_empty() {
            return Err(refused(format!("repository {} promises signatures and names no keys", self.id)));
        }
        let file = |key: &String| match key.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Ok(path.to_owned()),
            _ => Err(refused(format!(
                "repository {} has its keys at {}, where everybody could have put them",
                self.id,
                one_line(&crate::model::text::without_logins(key))
            ))),
        };
        self.keys.iter().map(file).collect()
    }
}

/// Reads what `dnf5 repo info --json` prints.
pub(super) fn repositories(text: &str) -> Result<Vec<Repository>> {
    let repositories: Vec<Repository> =
        serde_json::from_str(text).map_err(|e| strange("its repositories", &e.to_string()))?;
    // An id becomes a part of a path.
    match repositories.iter().find(|r| r.id.contains('/') || r.id.starts_with('.')) {
        Some(repository) => Err(strange("an id", &repository.id)),
        None => Ok(repositories),
    }
}

fn strange(what: &str, why: &str) -> Error {
    let why = format!("dnf says of {what} what osctl does not understand: {}", one_line(why));
    Error::new(ErrorKind::Unsupported, format!("{why}; nothing was staged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Installed {
        installed(
            "base\tnoarch\t1.0-1\nkernel\tx86_64\t0:6.8-1\nkernel-core\tx86_64\t6.8-1\nvim\tx86_64\t2:9.0-3\n",
        )
    }

    fn asked(install: &[&str], remove: &[&str], replace: &[&str]) -> Packages {
        let map = |names: &[&str]| {
            names.iter().map(|n| ((*n).to_owned(), BTreeSet::from(["a.yaml".to_owned()]))).collect()
        };
        Packages { install: map(install), remove: map(remove), replace: map(replace), ..Packages::default() }
    }

    #[test]
    fn a_full_name_is_split_from_its_end() {
        for (text, name, version, architecture) in [
            ("agent-common-1.0-1.noarch", "agent-common", "1.0-1", "noarch"),
            ("vim-2:9.0-3.fc40.x86_64", "vim", "2:9.0-3.fc40", "x86_64"),
            ("a-0:1-2.i686", "a", "1-2", "i686"),
        ] {
            let package = split(text).unwrap();
            let found = (package.name.as_str(), package.version.as_str(), package.architecture.as_str());
            assert_eq!(found, (name, version, architecture));
        }
        assert_eq!(nevra("vim", "2:9.0-3", "x86_64"), "vim-2:9.0-3.x86_64");
        for text in ["", "a", "a.noarch", "a-1.noarch"] {
            assert_eq!(split(text), None, "{text}");
        }
    }

    #[test]
    fn requests_are_free_to_change_what_they_name() {
        let packages = asked(&["base"], &["vim.x86_64", "nothing"], &["kernel-core-6.9-2", "kernel-6.9"]);
        let free: Vec<String> = freed(&packages, &base()).into_iter().collect();
        assert_eq!(free, ["kernel", "kernel-core", "vim"]);
    }

    #[test]
    fn what_the_base_has_is_not_asked_for() {
        let install = ["base", "vim.x86_64", "vim-minimal", "agent", "kernel-modules"];
        let asked = asked(
            &install,
            &[],
            &["kernel-6.8", "vim-9.0-3", "kernel-core-6.9", "base-1.0-2", "vim-2:9.0-4"],
        );
        let requests = requests(&asked, &base());
        assert_eq!(
            requests,
            ["agent", "kernel-modules", "vim-minimal", "base-1.0-2", "kernel-core-6.9", "vim-2:9.0-4"]
        );
    }

    #[test]
    fn a_choice_of_repositories_includes_those_that_drop_ins_declare() {
        let mut packages = asked(&[], &[], &[]);
        let repo = Repo {
            owner: "a.yaml".into(),
            baseurl: vec!["https://r.example".into()],
            suites: Vec::new(),
            components: Vec::new(),
            metalink: None,
            mirrorlist: None,
            key: None,
        };
        packages.repos.insert("own".into(), repo);
        assert!(chosen(&packages).is_empty(), "nobody chose");
        packages.enabled_repos.insert("fedora".into(), BTreeSet::from(["origin.d/a.yaml".to_owned()]));
        assert_eq!(chosen(&packages), ["fedora", "own"]);
    }

    #[test]
    fn a_request_is_met_by_its_name() {
        let has = |name: &str| ["agent", "python3.11", "a-b"].contains(&name);
        for request in ["agent", "agent.noarch", "agent-1.0-1", "python3.11", "python3.11.x86_64", "a-b-1"] {
            assert!(is_met(request, has), "{request}");
        }
        for request in ["agen", "agents", "a", "python3"] {
            assert!(!is_met(request, has), "{request}");
        }
    }

    #[test]
    fn an_exclusion_is_no_longer_than_an_argument_may_be() {
        let names = ["aaaa", "bbbb", "cccc"];
        assert_eq!(excludes(names.into_iter(), 100), ["--exclude=aaaa,bbbb,cccc"]);
        assert_eq!(excludes(names.into_iter(), 20), ["--exclude=aaaa,bbbb", "--exclude=cccc"]);
        assert!(excludes([].into_iter(), 20).is_empty());
    }

    /// As dnf5 5.4.6 writes it.
    const STORED: &str = r#"{"rpms":[
        {"nevra":"hotfix-1.1-1.noarch","action":"Upgrade","reason":"External User","repo_id":"@stored_transaction(test)","package_path":".\/packages\/hotfix-1.1-1.noarch.rpm"},
        {"nevra":"leftover-1.0-1.noarch","action":"Remove","reason":"User","repo_id":"@System"},
        {"nevra":"hotfix-1.0-1.noarch","action":"Replaced","reason":"External User","repo_id":"@System"}
        ],"version":"1.0"}"#;

    #[test]
    fn what_dnf_would_do_is_read() {
        let found = transaction(STORED).unwrap();
        let [(package, file)] = &found.new[..] else { panic!("{found:?}") };
        assert_eq!((package.name.as_str(), package.version.as_str()), ("hotfix", "1.1-1"));
        assert_eq!(
            (file.repository.as_str(), file.path.as_str()),
            ("test", "packages/hotfix-1.1-1.noarch.rpm")
        );
        let (removed, replaced) = found.of_base();
        assert_eq!((removed[0].name.as_str(), removed.len()), ("leftover", 1));
        assert_eq!((replaced[0].version.as_str(), replaced.len()), ("1.0-1", 1));
        for bad in [
            "",
            "[1]",
            r#"{"rpms":[{"nevra":"a","action":"Install"}]}"#,
            r#"{"rpms":[{"nevra":"a-1-1.x","action":"Dance"}]}"#,
            r#"{"rpms":[{"nevra":"a-1-1.x","action":"Install"}]}"#,
        ] {
            assert_eq!(transaction(bad).unwrap_err().kind, ErrorKind::Unsupported, "{bad}");
        }
    }

    #[test]
    fn keys_of_repositories_are_files_of_the_image() {
        let repository = |keys: &str| {
            let text = format!(r#"[{{"id":"r","name":"x","pkg_gpgcheck":true,"gpg_key":{keys}}}]"#);
            repositories(&text).unwrap().remove(0).key_files()
        };
        assert_eq!(repository(r#"["file:///etc/pki/a"]"#).unwrap(), ["/etc/pki/a"]);
        for keys in ["[]", r#"["https://u:p@r/key"]"#, r#"["file://x/key"]"#] {
            let error = repository(keys).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{keys}");
            assert!(!error.to_string().contains("u:p"), "{error}");
        }
        assert!(repositories(r#"[{"id":"../x","pkg_gpgcheck":false}]"#).is_err());
    }

    #[test]
    fn a_repository_is_a_section_with_its_key_beside_it() {
        let repo = |key: Option<Key>| Repo {
            owner: "a.yaml".into(),
            baseurl: vec!["https://r.example/el9".into()],
            suites: Vec::new(),
            components: Vec::new(),
            metalink: None,
            mirrorlist: Some("https://m.example".into()),
            key,
        };
        assert_eq!(
            repository("v", &repo(Some(Key::Inline(Vec::new()))), false).unwrap(),
            "[v]\nname=v\nenabled=1\nbaseurl=https://r.example/el9\nmirrorlist=https://m.example\ngpgcheck=1\ngpgkey=file:///etc/pki/osctl-v.asc\n"
        );
        let first = repository("v", &repo(None), true).unwrap();
        assert!(first.contains("\npriority=1\n") && first.ends_with("gpgcheck=0\n"));
        let of_apt = Repo { suites: vec!["bookworm".into()], ..repo(None) };
        assert_eq!(repository("v", &of_apt, false).unwrap_err().kind, ErrorKind::InvalidDropIn);
    }
}
