//! What enabling a unit means: the `[Install]` section, as systemctl(1) reads it.
//!
//! `Also=` is not followed: another unit is another entry of the drop-in.

use crate::model::error::{Error, ErrorKind, Result};

const LIB_UNITS: &str = "/usr/lib/systemd/system";
const ETC_UNITS: &str = "/etc/systemd/system";
const TYPES: [&str; 11] = [
    "service",
    "socket",
    "target",
    "timer",
    "path",
    "mount",
    "automount",
    "swap",
    "slice",
    "device",
    "scope",
];
/// UNIT_NAME_MAX of systemd, with its terminating zero.
const MAX_NAME: usize = 255;

/// Whether this is a valid name of a unit, a template or an instance (systemd.unit(5)).
pub fn is_unit_name(name: &str) -> bool {
    let Some((stem, kind)) = name.rsplit_once('.') else { return false };
    let prefix = stem.split_once('@').map_or(stem, |(prefix, _)| prefix);
    TYPES.contains(&kind)
        && name.len() <= MAX_NAME
        && !prefix.is_empty()
        && prefix != "."
        && prefix != ".."
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\".contains(&b))
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
}

/// Whether a valid unit name is a template without instance, `name@.service`.
pub fn is_template(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, _)| stem.split_once('@').is_some_and(|(_, i)| i.is_empty()))
}

/// The links, as (path, target), that enabling a unit with this text makes, in the order of the text.
///
/// Paths are below `/etc/systemd/system`. The target is the unit's file (the template's, for an instance) below
/// `/usr/lib/systemd/system`: whoever knows that the file is elsewhere replaces the directory. A template is
/// enabled as its `DefaultInstance=`. Fails with `InvalidDropIn` if there is nothing to enable.
pub fn install_links(unit_name: &str, unit_text: &str) -> Result<Vec<(String, String)>> {
    if !is_unit_name(unit_name) {
        return Err(refuse(format!("`{unit_name}` is not a unit name")));
    }
    let install = Install::parse(unit_text);
    let unit = Name::split(unit_name);
    let target = format!("{LIB_UNITS}/{}", unit.file());
    // Requests are made in the name of an instance; aliases of a template stay templates.
    let default = install.default_instance.as_deref().map(|i| unit.expand(i)).transpose()?;
    let started = match (&unit.instance, &default) {
        (Some(""), Some(instance)) if !instance.is_empty() => {
            let name = format!("{}@{instance}.{}", unit.prefix, unit.kind);
            if !is_unit_name(&name) {
                return Err(refuse(format!("DefaultInstance={instance} makes no unit name")));
            }
            name
        }
        _ => unit_name.to_owned(),
    };
    let started = Name::split(&started);
    let mut links: Vec<(String, String)> = Vec::new();
    let mut link = |path: String| {
        if !links.iter().any(|(p, _)| *p == path) {
            links.push((path, target.clone()));
        }
    };
    for alias in &install.alias {
        let mut alias = unit.expand(alias)?;
        let valid = is_unit_name(&alias);
        let name = Name::split(&alias);
        if !valid || name.kind != unit.kind || name.instance.is_some() != unit.instance.is_some() {
            return Err(refuse(format!("Alias={alias} is not a possible other name of {unit_name}"))
                .hint("an alias has the same type, and is a template where the unit is one"));
        }
        if let (Some(""), Some(instance)) = (name.instance, unit.instance) {
            alias = format!("{}@{instance}.{}", name.prefix, name.kind);
        }
        if alias != unit_name {
            link(format!("{ETC_UNITS}/{alias}"));
        }
    }
    for (key, kind, units) in [
        ("WantedBy", "wants", &install.wanted_by),
        ("RequiredBy", "requires", &install.required_by),
        ("UpheldBy", "upholds", &install.upheld_by),
    ] {
        for by in units {
            let by = started.expand(by)?;
            if !is_unit_name(&by) {
                return Err(refuse(format!("{key}={by} is not a unit name")));
            }
            if started.instance == Some("") {
                return Err(refuse(format!("the template {unit_name} has no DefaultInstance="))
                    .hint("name an instance, as in NAME@INSTANCE.service"));
            }
            link(format!("{ETC_UNITS}/{by}.{kind}/{}", started.whole));
        }
    }
    if links.is_empty() {
        let error = refuse(format!("there is nothing to enable in {unit_name}: [Install] names no unit"));
        return Err(match install.also.first() {
            Some(also) => error.hint(format!("it only has Also=: enable {also} in the drop-in instead")),
            None => error.hint("add [Install] with WantedBy=, or leave out `enabled: true`"),
        });
    }
    Ok(links)
}

fn refuse(message: String) -> Error {
    Error::new(ErrorKind::InvalidDropIn, message)
}

/// The `[Install]` section.
#[derive(Debug, Default)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    upheld_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Install {
    fn parse(text: &str) -> Install {
        let mut install = Install::default();
        let mut here = false;
        for line in logical_lines(text) {
            if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                here = section == "Install";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| here) else { continue };
            let (key, value) = (key.trim_end(), value.trim());
            let list = match key {
                "WantedBy" => &mut install.wanted_by,
                "RequiredBy" => &mut install.required_by,
                "UpheldBy" => &mut install.upheld_by,
                "Alias" => &mut install.alias,
                "Also" => &mut install.also,
                "DefaultInstance" => {
                    install.default_instance = Some(value.to_owned()).filter(|v| !v.is_empty());
                    continue;
                }
                _ => continue,
            };
            // An empty assignment resets what was said before.
            if value.is_empty() {
                list.clear();
            }
            list.extend(value.split_whitespace().map(|w| w.trim_matches(['"', '\'']).to_owned()));
        }
        install
    }
}

/// Lines with continuations joined and comments removed, also those between the lines of a continuation.
fn logical_lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut open = String::new();
    for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
        let start = line.trim_start();
        if start.starts_with(['#', ';']) || (open.is_empty() && start.is_empty()) {
            continue;
        }
        match line.strip_suffix('\\') {
            Some(begun) => {
                open.push_str(begun);
                open.push(' ');
            }
            None => {
                open.push_str(line);
                lines.push(std::mem::take(&mut open).trim().to_owned());
            }
        }
    }
    if !open.is_empty() {
        lines.push(open.trim().to_owned());
    }
    lines
}

/// The parts of a unit name: `prefix[@instance].kind`.
#[derive(Debug)]
struct Name<'a> {
    whole: &'a str,
    prefix: &'a str,
    instance: Option<&'a str>,
    kind: &'a str,
}

impl<'a> Name<'a> {
    fn split(whole: &'a str) -> Name<'a> {
        let (stem, kind) = whole.rsplit_once('.').unwrap_or((whole, ""));
        let (prefix, instance) = match stem.split_once('@') {
            Some((prefix, instance)) => (prefix, Some(instance)),
            None => (stem, None),
        };
        Name { whole, prefix, instance, kind }
    }

    /// The file that holds the unit: the template of an instance.
    fn file(&self) -> String {
        match self.instance {
            Some(_) => format!("{}@.{}", self.prefix, self.kind),
            None => self.whole.to_owned(),
        }
    }

    /// Expands the specifiers that depend on the name alone. Others would make the tree depend on a host.
    fn expand(&self, text: &str) -> Result<String> {
        let mut out = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('%') => out.push('%'),
                Some('n') => out.push_str(self.whole),
                Some('N') => out.push_str(self.whole.rsplit_once('.').map_or(self.whole, |(stem, _)| stem)),
                Some('p') => out.push_str(self.prefix),
                Some('j') => out.push_str(self.prefix.rsplit('-').next().unwrap_or_default()),
                Some('i') => out.push_str(self.instance.unwrap_or_default()),
                other => {
                    let specifier = other.map_or("%".to_owned(), |c| format!("%{c}"));
                    return Err(Error::new(
                        ErrorKind::Specifier,
                        format!("the specifier {specifier} cannot be used in [Install]: `{text}`"),
                    )
                    .hint("%n, %N, %p, %j, %i and %% depend on the unit's name only and can be used"));
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str, text: &str) -> Result<Vec<String>> {
        let prefix = format!("{ETC_UNITS}/");
        Ok(install_links(name, text)?
            .into_iter()
            .map(|(p, t)| {
                let link = p.strip_prefix(&prefix).unwrap().to_owned();
                format!("{link} -> {}", t.strip_prefix("/usr/lib/systemd/system/").unwrap())
            })
            .collect())
    }

    #[test]
    fn the_install_section_is_read_as_systemd_reads_it() {
        let table: &[(&str, &str, &[&str])] = &[
            (
                "a.service",
                "[Install]\nWantedBy=multi-user.target\n",
                &["multi-user.target.wants/a.service -> a.service"],
            ),
            (
                "a.service",
                "[Unit]\nWantedBy=no.target\n[Install]\nWantedBy = x.target y.target\nRequiredBy=z.target",
                &[
                    "x.target.wants/a.service -> a.service",
                    "y.target.wants/a.service -> a.service",
                    "z.target.requires/a.service -> a.service",
                ],
            ),
            (
                "a.service",
                "[Install]\n# WantedBy=no.target\n;WantedBy=no.target\nWantedBy=x.target \\\n# in between\n  y.target\n",
                &["x.target.wants/a.service -> a.service", "y.target.wants/a.service -> a.service"],
            ),
            (
                "a.service",
                "[Install]\nWantedBy=x.target\nWantedBy=\nWantedBy=y.target",
                &["y.target.wants/a.service -> a.service"],
            ),
            (
                "a.service",
                "[Install]\nWantedBy=x.target\n[Service]\nWantedBy=n.target\n[Install]\nWantedBy=y.target x.target",
                &["x.target.wants/a.service -> a.service", "y.target.wants/a.service -> a.service"],
            ),
            (
                "a.service",
                "[Install]\nAlias=b.service a.service\nUpheldBy=u.service",
                &["b.service -> a.service", "u.service.upholds/a.service -> a.service"],
            ),
            (
                "a@x.service",
                "[Install]\nWantedBy=%i.target\nAlias=b@.service",
                &["b@x.service -> a@.service", "x.target.wants/a@x.service -> a@.service"],
            ),
            (
                "a@.service",
                "[Install]\nDefaultInstance=tty1\nWantedBy=getty.target\nAlias=b@.service",
                &["b@.service -> a@.service", "getty.target.wants/a@tty1.service -> a@.service"],
            ),
            (
                "a-b.socket",
                "[Install]\r\nWantedBy=%p-%j-%N.target\r\n",
                &["a-b-b-a-b.target.wants/a-b.socket -> a-b.socket"],
            ),
            ("a.service", "[Install]\nWantedBy=\"x.target\"", &["x.target.wants/a.service -> a.service"]),
        ];
        for (name, text, expected) in table {
            assert_eq!(&paths(name, text).unwrap(), expected, "{name} {text}");
        }
    }

    #[test]
    fn what_cannot_be_enabled_says_why() {
        for (name, text, message) in [
            ("a.service", "", "there is nothing to enable in a.service: [Install] names no unit"),
            (
                "a.service",
                "[Install]\nAlso=b.socket",
                "there is nothing to enable in a.service: [Install] names no unit",
            ),
            ("a@.service", "[Install]\nWantedBy=x.target", "the template a@.service has no DefaultInstance="),
            ("a.service", "[Install]\nWantedBy=x", "WantedBy=x is not a unit name"),
            ("a.service", "[Install]\nWantedBy=%%.target", "WantedBy=%.target is not a unit name"),
            ("a.service", "[Install]\nWantedBy=../x.target", "WantedBy=../x.target is not a unit name"),
            (
                "a.service",
                "[Install]\nWantedBy=%H.target",
                "the specifier %H cannot be used in [Install]: `%H.target`",
            ),
            (
                "a.service",
                "[Install]\nAlias=b.socket",
                "Alias=b.socket is not a possible other name of a.service",
            ),
            (
                "a.service",
                "[Install]\nAlias=b@.service",
                "Alias=b@.service is not a possible other name of a.service",
            ),
            ("a", "[Install]\nWantedBy=x.target", "`a` is not a unit name"),
        ] {
            assert_eq!(install_links(name, text).unwrap_err().to_string(), message, "{name} {text}");
        }
    }

    #[test]
    fn names_follow_systemd() {
        for good in [
            "a.service",
            "dev-sda1.device",
            "a@.service",
            "a@b.service",
            "a@b@c.service",
            "x\\x2dy.mount",
            "-.mount",
            "a:b_c.timer",
        ] {
            assert!(is_unit_name(good), "{good}");
        }
        for bad in [
            "",
            "a",
            ".service",
            "@.service",
            "@x.service",
            "a b.service",
            "a/b.service",
            "a.txt",
            "ä.service",
            "a.service/",
        ] {
            assert!(!is_unit_name(bad), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_or_leave_the_unit_directory(name in "[a-z@%.]{0,9}\\.service", text in "(\\[Install\\]|WantedBy=|Alias=|DefaultInstance=|[a-z@%./\\\\ ]{0,6}|\n){0,12}") {
            if let Ok(links) = install_links(&name, &text) {
                for (path, _) in links {
                    let rest = path.strip_prefix("/etc/systemd/system/").unwrap().to_owned();
                    proptest::prop_assert!(rest.split('/').all(|c| !c.is_empty() && c != "." && c != ".."));
                }
            }
        }
    }
}
