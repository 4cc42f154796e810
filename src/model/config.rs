//! `osctld.toml`: how the daemon works. What it works towards is said by drop-ins and requests.

use super::table::{Place, Value, in_order};
use super::unavailable::DegradedPolicy;
use super::{Result, bytes};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;
use toml::de::DeValue;

/// The settings. What no file says is `None`: our own choice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// How images are fetched.
    pub pull: Pull,
    /// How drop-ins become a part of the tree.
    pub derive: Derive,
}

/// `[pull]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pull {
    /// Layers that are fetched at the same time.
    pub connections: Option<NonZeroU32>,
    /// Layers that are imported at the same time.
    pub importers: Option<NonZeroU32>,
    /// Bytes a second, for all layers of the OS image together.
    pub rate_limit: Option<NonZeroU64>,
}

/// `[derive]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Derive {
    /// How long packages may not be to be had before `degraded_policy` counts.
    pub grace: Option<Duration>,
    /// What is done then.
    pub degraded_policy: Option<DegradedPolicy>,
}

/// A setting, for messages and the manual page.
#[derive(Debug)]
pub struct Key {
    /// The table that it stands in.
    pub table: &'static str,
    /// Its name there.
    pub name: &'static str,
    /// What its value is.
    pub value: &'static str,
    /// What it does.
    pub about: &'static str,
}

/// All settings that there are.
pub const KEYS: &[Key] = &[
    Key {
        table: "pull",
        name: "connections",
        value: "a number from 1 on",
        about: "How many layers are fetched at the same time.",
    },
    Key {
        table: "pull",
        name: "importers",
        value: "a number from 1 on",
        about: "How many layers are unpacked into the repository at the same time; one for each CPU if it is not set.",
    },
    Key {
        table: "pull",
        name: "rate-limit",
        value: "a number of bytes, or a text with a suffix: \"500K\", \"2Mi\"",
        about: "How many bytes a second of the OS image may be downloaded. An upgrade or rebase with --rate-limit has its own. \
                Bound images are fetched by skopeo, which knows no limit.",
    },
    Key {
        table: "derive",
        name: "grace",
        value: "a text of a number and s, min, h or d: \"7d\"",
        about: "How long packages of drop-ins may not be to be had before degraded-policy counts; 7d if it is not set.",
    },
    Key {
        table: "derive",
        name: "degraded-policy",
        value: "\"stay\" or \"skip\"",
        about: "What happens then: stay on the system that runs, as before, or go on without the drop-ins that ask for them. \
                Those with `on-unavailable: fail` are never left out.",
    },
];

impl Config {
    /// Reads one file. `file` is its path, for messages. A key that is not known is refused.
    pub fn parse(text: &str, file: &str) -> Result<Config> {
        let place = Place { text, file, manual: "osctld.toml(5)" };
        let root = place.parse()?;
        let mut config = Config::default();
        for (table, value) in in_order(root.get_ref()) {
            let names: Vec<&Key> = KEYS.iter().filter(|k| k.table == table.get_ref()).collect();
            if names.is_empty() {
                let mut tables: Vec<String> = KEYS.iter().map(|k| format!("[{}]", k.table)).collect();
                tables.dedup();
                return Err(place.unknown(table, &tables.join(", ")));
            }
            let DeValue::Table(entries) = value.get_ref() else {
                return Err(place.wrong(table, "a table"));
            };
            for (key, value) in in_order(entries) {
                let Some(known) = names.iter().find(|k| k.name == key.get_ref()) else {
                    let allowed: Vec<&str> = names.iter().map(|k| k.name).collect();
                    return Err(place.unknown(key, &allowed.join(", ")));
                };
                let read = match (known.table, known.name) {
                    ("pull", "connections") => count(value).map(|n| config.pull.connections = Some(n)),
                    ("pull", "importers") => count(value).map(|n| config.pull.importers = Some(n)),
                    ("pull", "rate-limit") => rate(value).map(|n| config.pull.rate_limit = Some(n)),
                    ("derive", "grace") => period(value).map(|d| config.derive.grace = Some(d)),
                    ("derive", "degraded-policy") => {
                        policy(value).map(|p| config.derive.degraded_policy = Some(p))
                    }
                    _ => None,
                };
                read.ok_or_else(|| place.wrong(key, known.value))?;
            }
        }
        Ok(config)
    }

    /// These settings, and where they say nothing, those of before.
    #[must_use]
    pub fn over(self, before: Config) -> Config {
        // Destructured, so that a new setting has to be thought of.
        let Config {
            pull: Pull { connections, importers, rate_limit },
            derive: Derive { grace, degraded_policy },
        } = self;
        Config {
            pull: Pull {
                connections: connections.or(before.pull.connections),
                importers: importers.or(before.pull.importers),
                rate_limit: rate_limit.or(before.pull.rate_limit),
            },
            derive: Derive {
                grace: grace.or(before.derive.grace),
                degraded_policy: degraded_policy.or(before.derive.degraded_policy),
            },
        }
    }
}

fn integer(value: Value<'_, '_>) -> Option<u64> {
    match value.get_ref() {
        DeValue::Integer(i) => u64::from_str_radix(i.as_str(), i.radix()).ok(),
        _ => None,
    }
}

fn count(value: Value<'_, '_>) -> Option<NonZeroU32> {
    integer(value).and_then(|n| u32::try_from(n).ok()).and_then(NonZeroU32::new)
}

fn rate(value: Value<'_, '_>) -> Option<NonZeroU64> {
    match value.get_ref() {
        DeValue::String(text) => bytes::parse_rate(text).ok(),
        _ => integer(value).and_then(NonZeroU64::new),
    }
}

fn period(value: Value<'_, '_>) -> Option<Duration> {
    let DeValue::String(text) = value.get_ref() else { return None };
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let seconds = match unit.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    Some(Duration::from_secs(digits.parse::<u64>().ok()?.checked_mul(seconds)?))
}

fn policy(value: Value<'_, '_>) -> Option<DegradedPolicy> {
    match value.get_ref() {
        DeValue::String(text) if text == "stay" => Some(DegradedPolicy::Stay),
        DeValue::String(text) if text == "skip" => Some(DegradedPolicy::Skip),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ErrorKind;

    fn pull(connections: u32, importers: u32, rate: u64) -> Config {
        let pull = Pull {
            connections: NonZeroU32::new(connections),
            importers: NonZeroU32::new(importers),
            rate_limit: NonZeroU64::new(rate),
        };
        Config { pull, ..Config::default() }
    }

    fn grace(seconds: u64) -> Config {
        let derive = Derive { grace: Some(Duration::from_secs(seconds)), degraded_policy: None };
        Config { derive, ..Config::default() }
    }

    #[test]
    fn a_file_says_what_it_wants_to_and_nothing_else() {
        for (text, expected) in [
            ("", pull(0, 0, 0)),
            ("[pull]\n", pull(0, 0, 0)),
            ("# x\n[pull]\nconnections = 6\nimporters = 0x2\nrate-limit = 5000\n", pull(6, 2, 5000)),
            ("pull.rate-limit = \"2Mi\"\n", pull(0, 0, 2 << 20)),
            ("[derive]\ngrace = \"36h\"\n", grace(36 * 3600)),
            ("derive.grace = \"2 d\"\n", grace(2 * 24 * 3600)),
        ] {
            assert_eq!(Config::parse(text, "f").unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_mistake_is_named_with_file_line_key_and_what_is_allowed() {
        let wrong_rate = "rate-limit must be a number of bytes, or a text with a suffix: \"500K\", \"2Mi\"";
        for (text, line, why, key, hint) in [
            ("x", 1, "is not valid TOML: ", None, None),
            ("\n[pul]\n", 2, "unknown key \"pul\"", Some("pul"), Some("[pull]")),
            ("pull = 1", 1, "pull must be a table", Some("pull"), None),
            (
                "[pull]\nconnections = 2\nrate = 5\n",
                3,
                "unknown key \"rate\"",
                Some("rate"),
                Some("connections, importers, rate-limit"),
            ),
            (
                "[pull]\nconnections = 0",
                2,
                "connections must be a number from 1 on",
                Some("connections"),
                None,
            ),
            ("[pull]\nimporters = \"2\"", 2, "importers must be a number from 1 on", Some("importers"), None),
            ("[pull]\nimporters = -1", 2, "importers must be a number from 1 on", Some("importers"), None),
            (
                "[derive]\ngrace = 7",
                2,
                "grace must be a text of a number and s, min, h or d: \"7d\"",
                Some("grace"),
                None,
            ),
            (
                "[derive]\ngrace = \"d\"",
                2,
                "grace must be a text of a number and s, min, h or d: \"7d\"",
                Some("grace"),
                None,
            ),
            (
                "[derive]\ndegraded-policy = \"leave\"",
                2,
                "degraded-policy must be \"stay\" or \"skip\"",
                Some("degraded-policy"),
                None,
            ),
            ("[pull]\nrate-limit = 1.5", 2, wrong_rate, Some("rate-limit"), None),
            ("[pull]\nrate-limit = \"1 MB\"", 2, wrong_rate, Some("rate-limit"), None),
        ] {
            let error = Config::parse(text, "/etc/osctl/osctld.toml").unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{text}");
            let start = format!("/etc/osctl/osctld.toml:{line}: {why}");
            assert!(error.to_string().starts_with(&start), "{text}: {error}");
            assert_eq!(error.details["line"], line.to_string());
            assert_eq!(error.details.get("key").map(String::as_str), key, "{text}");
            assert!(
                error.hint.as_deref().unwrap_or_default().contains(hint.unwrap_or_default()),
                "{error:?}"
            );
        }
    }

    #[test]
    fn what_a_later_file_does_not_say_stays() {
        assert_eq!(pull(0, 3, 7).over(pull(1, 2, 0)), pull(1, 3, 7));
        assert_eq!(Config::default().over(pull(1, 2, 3)), pull(1, 2, 3));
    }

    #[test]
    fn every_key_of_the_table_is_read() {
        for key in KEYS {
            let value = match key.name {
                "grace" => "\"7d\"",
                "degraded-policy" => "\"skip\"",
                _ => "7",
            };
            let text = format!("[{}]\n{} = {value}\n", key.table, key.name);
            assert_ne!(Config::parse(&text, "f").unwrap(), Config::default(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_parsing_panic_and_every_refusal_names_its_line(
            text in "\\PC{0,60}|(\\[pull\\]|connections|importers|rate-limit|=|\"2Mi\"|\"|-?[0-9]{1,20}|\n| |\\{|\\}){0,16}"
        ) {
            match Config::parse(&text, "a.toml") {
                Ok(config) => proptest::prop_assert_eq!(config.clone().over(Config::default()), config),
                Err(error) => proptest::prop_assert!(error.details.contains_key("line"), "{}", error),
            }
        }
    }
}
