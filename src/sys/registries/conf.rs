//! What containers-registries.conf(5) says about a name: pure text in, places to ask out.
//!
//! The rules are those of containers/image where it differs from its manual, because skopeo, which reads the
//! manifests, follows them. Seen with skopeo 1.9.3:
//!
//! - A prefix with a tag or digest matches nothing.
//! - `blocked` forbids to contact a name, also that of a mirror or of another location. The mirrors of a blocked
//!   registry are used: that is how "never contact the source" is written.
//! - `insecure` holds for the location of its own table, and not where that location is somebody's mirror.

use crate::model::image::full_name;
use crate::model::{Context, Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};

/// Whether a file may be in the first version of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The main file.
    Any,
    /// A drop-in.
    VersionTwo,
}

/// All files, merged.
#[derive(Debug, Default)]
pub(super) struct Conf {
    /// By prefix.
    registries: BTreeMap<String, Table>,
    /// The stores of credentials, in the order in which they are asked.
    helpers: Option<Vec<String>>,
}

/// A name to fetch from, `host[:port]/repository`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub name: String,
    pub insecure: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Table>,
    credential_helpers: Option<Vec<String>>,
    registries: Option<VersionOne>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Table {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    pull_from_mirror: Option<For>,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<For>,
}

/// What a mirror is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum For {
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct VersionOne {
    insecure: Names,
    block: Names,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Names {
    registries: Vec<String>,
}

/// The entry of `credential-helpers` that stands for the file with credentials.
pub(super) const AUTH_FILE: &str = "containers-auth.json";

impl Conf {
    /// Adds a file, whose tables replace those of the same prefix. `name` is for messages.
    pub(super) fn add(&mut self, name: &str, text: &str, form: Form) -> Result<()> {
        let file: File = toml::from_str(text)
            .kind(ErrorKind::InvalidArgument, format!("{name} is no containers-registries.conf(5)"))?;
        let wrong = |why: String| {
            Err(Error::new(ErrorKind::InvalidArgument, format!("{name}: {why}"))
                .hint("see containers-registries.conf(5)"))
        };
        let tables = match file.registries {
            None => file.registry,
            Some(old) if form == Form::Any && file.registry.is_empty() => old.tables(),
            Some(_) => {
                let why = format!("{name} has [registries.*] of the first version of the format");
                return Err(Error::new(ErrorKind::Unsupported, why)
                    .hint("write a [[registry]] table with location, insecure and blocked for each"));
            }
        };
        let mut new = BTreeMap::new();
        let mut settings = HashMap::new();
        for table in tables {
            let table = match table.checked() {
                Ok(table) => table,
                Err(why) => return wrong(why),
            };
            let place = if table.location.is_empty() { &table.prefix } else { &table.location };
            let own = (table.insecure, table.blocked);
            if *settings.entry(place.clone()).or_insert(own) != own {
                return wrong(format!("{place:?} has two tables that differ in insecure or blocked"));
            }
            // Of several tables for one prefix the first counts.
            new.entry(table.prefix.clone()).or_insert(table);
        }
        self.registries.extend(new);
        self.helpers = file.credential_helpers.or(self.helpers.take());
        Ok(())
    }

    /// Where a repository is to be had, in the order to try. `pinned` is whether it is asked by digest.
    pub(super) fn places(&self, name: &str, pinned: bool) -> Result<Vec<Place>> {
        let Some((matched, table)) = self.find(name) else {
            return Ok(vec![Place { name: name.to_owned(), insecure: false }]);
        };
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            None => pinned || !table.mirror_by_digest_only,
            Some(For::All) => true,
            Some(For::DigestOnly) => pinned,
            Some(For::TagOnly) => !pinned,
        };
        let mirrors = table.mirror.iter().filter(wanted).map(|m| (m.location.as_str(), m.insecure));
        let own = (!table.blocked).then_some((table.location.as_str(), table.insecure));
        let mut places = Vec::new();
        for (location, insecure) in mirrors.chain(own) {
            let name = match location {
                "" => name.to_owned(),
                _ => format!("{location}{}", &name[matched..]),
            };
            if full_name(&name) != name {
                let why = format!("registries.conf: the location {location:?} does not lead to a registry");
                return Err(Error::new(ErrorKind::InvalidArgument, why)
                    .hint("a location is host[:port][/path]; for Docker Hub it ends with a namespace"));
            }
            if !self.find(&name).is_some_and(|(_, other)| other.blocked) {
                places.push(Place { name, insecure });
            }
        }
        if places.is_empty() {
            let why = format!("{name}: registries.conf blocks the registry; the running system is unchanged");
            return Err(Error::new(ErrorKind::SignatureRejected, why).hint(
                "see the table with blocked = true in /etc/containers/registries.conf and registries.conf.d",
            ));
        }
        Ok(places)
    }

    /// The stores of credentials, in the order in which they are asked.
    pub(super) fn helpers(&self) -> impl Iterator<Item = &str> {
        let helpers = self.helpers.as_deref().filter(|all| !all.is_empty());
        let default = helpers.is_none().then_some(AUTH_FILE);
        helpers.unwrap_or_default().iter().map(String::as_str).chain(default)
    }

    /// The table with the longest prefix of a name, and the length of what its prefix matched.
    fn find(&self, name: &str) -> Option<(usize, &Table)> {
        let mut found: Option<(usize, &Table)> = None;
        for (prefix, table) in &self.registries {
            if found.is_none_or(|(_, best)| best.prefix.len() < prefix.len())
                && let Some(length) = matching(name, prefix)
            {
                found = Some((length, table));
            }
        }
        found
    }
}

/// The length of the part of a name that a prefix matches: up to a port, path, or the end.
fn matching(name: &str, prefix: &str) -> Option<usize> {
    match prefix.strip_prefix('*') {
        Some(domain) => {
            let host = name.find([':', '/']).unwrap_or(name.len());
            name[..host].ends_with(domain).then_some(host)
        }
        None => {
            let rest = name.strip_prefix(prefix)?;
            (rest.is_empty() || rest.starts_with([':', '/'])).then_some(prefix.len())
        }
    }
}

impl Table {
    /// The table with its prefix, if it makes sense, and otherwise why not.
    fn checked(mut self) -> Result<Table, String> {
        self.location = location(&self.location)?;
        self.prefix = location(&self.prefix)?;
        let wildcard = self.prefix.strip_prefix("*.");
        if wildcard.is_some_and(|domain| domain.contains(['/', '@', ':'])) {
            return Err(format!("the prefix {:?} must be of the form *.example.com", self.prefix));
        }
        match (self.prefix.is_empty(), self.location.is_empty()) {
            (true, true) => return Err("a [[registry]] has neither prefix nor location".to_owned()),
            (true, false) => self.prefix.clone_from(&self.location),
            (false, true) if wildcard.is_none() => {
                return Err(format!("the [[registry]] with the prefix {:?} has no location", self.prefix));
            }
            (false, _) => {}
        }
        if self.pull_from_mirror.is_some() {
            return Err(format!("pull-from-mirror belongs into a mirror of {:?}", self.prefix));
        }
        for mirror in &mut self.mirror {
            mirror.location = location(&mirror.location)?;
            if mirror.location.is_empty() {
                return Err(format!("a mirror of {:?} has no location", self.prefix));
            }
            if self.mirror_by_digest_only && mirror.pull_from_mirror.is_some() {
                let prefix = &self.prefix;
                return Err(format!("{prefix:?} has both mirror-by-digest-only and pull-from-mirror"));
            }
        }
        Ok(self)
    }
}

fn location(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    match text.starts_with("http://") || text.starts_with("https://") {
        true => Err(format!("{text:?} must be without its https:// or http://")),
        false => Ok(text.to_owned()),
    }
}

impl VersionOne {
    fn tables(self) -> Vec<Table> {
        let mut tables: BTreeMap<String, Table> = BTreeMap::new();
        for location in self.insecure.registries {
            tables.entry(location).or_default().insecure = true;
        }
        for location in self.block.registries {
            tables.entry(location).or_default().blocked = true;
        }
        tables.into_iter().map(|(location, table)| Table { location, ..table }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> Conf {
        let mut conf = Conf::default();
        conf.add("test.conf", text, Form::Any).unwrap_or_else(|e| panic!("{text}: {}", e.chain()));
        conf
    }

    /// The places of a name, with a `!` behind the insecure ones.
    fn places(conf: &Conf, name: &str, pinned: bool) -> Vec<String> {
        let mark = |p: Place| format!("{}{}", p.name, if p.insecure { "!" } else { "" });
        conf.places(name, pinned).unwrap().into_iter().map(mark).collect()
    }

    #[test]
    fn prefixes_match_up_to_a_boundary() {
        for (name, prefix, expected) in [
            ("r.io/team/os", "r.io", Some("/team/os")),
            ("r.io/team/os", "r.io/team", Some("/os")),
            ("r.io/team/os", "r.io/team/os", Some("")),
            ("r.io/team/os", "r.io/te", None),
            ("r.io/team/os", "r.io/team/os/more", None),
            ("r.io/team/os", "r.io/team/os:1", None),
            ("r.io.evil/os", "r.io", None),
            ("evil-r.io/os", "r.io", None),
            // Not meant so by its authors, and what skopeo does.
            ("r.io:5000/os", "r.io", Some(":5000/os")),
            ("r.io:5000/os", "r.io:5000", Some("/os")),
            ("r.io:5000/os", "r.io:500", None),
            ("a.r.io/os", "*.r.io", Some("/os")),
            ("a.b.r.io:5000/os", "*.r.io", Some(":5000/os")),
            ("r.io/os", "*.r.io", None),
            ("ar.io/os", "*.r.io", None),
            ("a.r.io.evil/os", "*.r.io", None),
            ("evil/a.r.io/os", "*.r.io", None),
        ] {
            let rest = matching(name, prefix).map(|length| &name[length..]);
            assert_eq!(rest, expected, "{name} {prefix}");
        }
    }

    #[test]
    fn the_longest_prefix_decides_where_an_image_is() {
        let conf = conf(
            r#"
            unqualified-search-registries = ["r.io"]
            [[registry]]
            location = "r.io"
            [[registry.mirror]]
            location = "m.io:5000/r/"
            insecure = true
            [[registry.mirror]]
            location = "digest.io"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "tag.io"
            pull-from-mirror = "tag-only"
            [[registry]]
            prefix = "r.io/team"
            location = "other.io/group"
            insecure = true
            [[registry]]
            prefix = "*.wild.io"
            [[registry.mirror]]
            location = "m.io/wild"
            [[registry]]
            prefix = "*.moved.io"
            location = "moved.io/old"
            [[registry]]
            location = "digests.io"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m.io"
            [[registry]]
            prefix = "docker.io/library"
            location = "m.io/hub"
            [aliases]
            "os" = "r.io/os"
            "#,
        );
        for (name, pinned, expected) in [
            ("none.io/os", true, vec!["none.io/os"]),
            ("r.io/os", true, vec!["m.io:5000/r/os!", "digest.io/os", "r.io/os"]),
            ("r.io/os", false, vec!["m.io:5000/r/os!", "tag.io/os", "r.io/os"]),
            ("r.io/team/os", true, vec!["other.io/group/os!"]),
            ("r.io/teams/os", true, vec!["m.io:5000/r/teams/os!", "digest.io/teams/os", "r.io/teams/os"]),
            ("a.b.wild.io/os", true, vec!["m.io/wild/os", "a.b.wild.io/os"]),
            ("a.moved.io:1/os", true, vec!["moved.io/old:1/os"]),
            ("digests.io/os", true, vec!["m.io/os", "digests.io/os"]),
            ("digests.io/os", false, vec!["digests.io/os"]),
            ("docker.io/library/os", true, vec!["m.io/hub/os"]),
            ("docker.io/me/os", true, vec!["docker.io/me/os"]),
        ] {
            assert_eq!(places(&conf, name, pinned), expected, "{name} {pinned}");
        }
    }

    #[test]
    fn what_is_blocked_is_not_asked_and_its_mirrors_are() {
        let conf = conf(
            r#"
            [[registry]]
            location = "bad.io"
            blocked = true
            [[registry]]
            prefix = "hidden.io"
            location = "elsewhere.io"
            blocked = true
            [[registry]]
            location = "source.io"
            blocked = true
            [[registry.mirror]]
            location = "m.io"
            [[registry]]
            location = "mirrored.io"
            [[registry.mirror]]
            location = "bad.io/m"
            "#,
        );
        assert_eq!(places(&conf, "source.io/os", true), ["m.io/os"]);
        assert_eq!(places(&conf, "mirrored.io/os", true), ["mirrored.io/os"]);
        for name in ["bad.io/os", "bad.io:5000/os", "hidden.io/os"] {
            let error = conf.places(name, true).unwrap_err();
            assert_eq!(error.kind, ErrorKind::SignatureRejected, "{name}");
            assert!(error.to_string().contains("registries.conf blocks the registry"), "{error}");
        }
    }

    #[test]
    fn drop_ins_replace_tables_of_their_prefix_and_the_first_version_is_only_for_the_main_file() {
        let mut conf = conf(
            "[registries.insecure]\nregistries = ['a.io', 'b.io']\n[registries.block]\nregistries = ['b.io']",
        );
        assert_eq!(places(&conf, "a.io/os", true), ["a.io/os!"]);
        assert!(conf.places("b.io/os", true).is_err());
        let more = "credential-helpers = ['x']\n[[registry]]\nlocation = 'a.io'\n[[registry]]\nlocation = 'c.io'\ninsecure = true";
        conf.add("more.conf", more, Form::VersionTwo).unwrap();
        assert_eq!(places(&conf, "a.io/os", true), ["a.io/os"]);
        assert_eq!(places(&conf, "c.io/os", true), ["c.io/os!"]);
        conf.add("empty.conf", "", Form::VersionTwo).unwrap();
        assert_eq!(conf.helpers().collect::<Vec<_>>(), ["x"]);
        assert_eq!(Conf::default().helpers().collect::<Vec<_>>(), [AUTH_FILE]);
        let old = "[registries.insecure]\nregistries = ['a.io']";
        let mixed = &format!("{old}\n[[registry]]\nlocation = 'a.io'");
        for (text, form) in [(old, Form::VersionTwo), (mixed, Form::Any)] {
            let error = conf.add("old.conf", text, form).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{text}");
            assert!(error.to_string().contains("old.conf"), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_name_of_its_file() {
        let mirror = |text: &str| format!("[[registry]]\nlocation = 'a.io'\n{text}\n[[registry.mirror]]\n");
        for text in [
            "[[registry]",
            "[[registry]]",
            "[[registry]]\nprefix = 'a.io'",
            "[[registry]]\nlocation = 'https://a.io'",
            "[[registry]]\nprefix = '*.a.io/team'\nlocation = 'b.io'",
            "[[registry]]\nlocation = 'a.io'\npull-from-mirror = 'all'",
            "[[registry]]\nlocation = 'a.io'\n[[registry]]\nprefix = 'b.io'\nlocation = 'a.io'\ninsecure = true",
            &mirror(""),
            &format!("{}location = 'b.io'\npull-from-mirror = 'some'", mirror("")),
            &format!("{}location = 'b.io'\npull-from-mirror = 'all'", mirror("mirror-by-digest-only = true")),
        ] {
            let error = Conf::default().add("test.conf", text, Form::Any).expect_err(text);
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{text}");
            assert!(error.to_string().contains("test.conf"), "{error}");
        }
        for location in ["docker.io", "host"] {
            let conf = conf(&format!("[[registry]]\nprefix = 'a.io'\nlocation = '{location}'"));
            assert_eq!(conf.places("a.io/os", true).unwrap_err().kind, ErrorKind::InvalidArgument);
        }
    }
}
