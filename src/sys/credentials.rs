//! Logins, and what a containers-auth.json(5) has for a repository.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// How to log in to a registry. `Debug` tells the kind and nothing else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credentials {
    /// Not at all.
    Anonymous,
    /// With a name and a password, also where tokens are given.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// With a token that gives other tokens, "refresh token" in OAuth 2.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credentials::Anonymous => "Anonymous",
            Credentials::Basic { .. } => "Basic(..)",
            Credentials::IdentityToken(_) => "IdentityToken(..)",
        })
    }
}

/// A containers-auth.json(5). Without `Debug`: it is full of secrets.
#[derive(Deserialize)]
pub(super) struct AuthFile {
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    #[serde(rename = "identitytoken", skip_serializing_if = "String::is_empty")]
    identity_token: String,
}

/// Where the credentials of a repository are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Login {
    /// In the file.
    Here(Credentials),
    /// With `docker-credential-NAME`.
    Helper(String),
    /// Nowhere.
    None,
    /// In the file, but not readable.
    Damaged,
}

impl AuthFile {
    /// Parses the file; `None` if it is none. The reason is not told, because parsers like to quote.
    pub(super) fn parse(text: &[u8]) -> Option<AuthFile> {
        // An array would do for the derived parser.
        let text = text.trim_ascii();
        text.starts_with(b"{").then(|| serde_json::from_slice(text).ok()).flatten()
    }

    /// What it has for a repository (`host[:port]/path`), as containers/image looks for it.
    pub(super) fn find(&self, repository: &str) -> Login {
        let registry = repository.split('/').next().unwrap_or_default();
        // A helper knows registries only, and comes first all the same.
        if let Some(helper) = self.helpers.as_ref().and_then(|helpers| helpers.get(registry)) {
            return Login::Helper(helper.clone());
        }
        let Some(auths) = &self.auths else { return Login::None };
        let mut scope = Some(repository);
        while let Some(key) = scope {
            if let Some(entry) = auths.get(key) {
                return entry.login();
            }
            scope = key.rsplit_once('/').map(|(parent, _)| parent);
        }
        // What docker login writes: URLs, and for Docker Hub one with a name of its own.
        let registry = normal(registry);
        let found = auths.iter().find(|(key, _)| normal(key) == registry);
        found.map_or(Login::None, |(_, entry)| entry.login())
    }
}

/// The host of a URL, and the name that stands for all of Docker Hub's.
fn normal(key: &str) -> &str {
    let url = key.strip_prefix("https://").or(key.strip_prefix("http://"));
    match url.map_or(key, |url| url.split('/').next().unwrap_or(url)) {
        "registry-1.docker.io" | "docker.io" => "index.docker.io",
        other => other,
    }
}

impl Entry {
    fn login(&self) -> Login {
        if !self.identity_token.is_empty() {
            return Login::Here(Credentials::IdentityToken(self.identity_token.clone()));
        }
        let decoded = BASE64_STANDARD.decode(&self.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(decoded) = decoded else { return Login::Damaged };
        match decoded.split_once(':').map(|(user, password)| (user, password.trim_matches('\0'))) {
            // `{}` stands beside a helper, and an empty password is none.
            None | Some(("", _) | (_, "")) => Login::None,
            Some((user, password)) => {
                Login::Here(Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
            }
        }
    }
}

/// Makes a containers-auth.json(5) of these scopes and nothing else.
pub(super) fn auth_file<'a>(logins: impl Iterator<Item = (String, &'a Credentials)>) -> String {
    let entry = |credentials: &Credentials| match credentials {
        Credentials::Anonymous => None,
        Credentials::Basic { user, password } => {
            let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
            Some(Entry { auth, identity_token: String::new() })
        }
        // Readers want something to decode there, even if they do not use it.
        Credentials::IdentityToken(token) => {
            Some(Entry { auth: BASE64_STANDARD.encode(":"), identity_token: token.clone() })
        }
    };
    let auths: BTreeMap<String, Entry> =
        logins.filter_map(|(scope, credentials)| Some((scope, entry(credentials)?))).collect();
    serde_json::json!({ "auths": auths }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(text: &str) -> Login {
        let (user, password) = text.split_once(':').unwrap();
        Login::Here(Credentials::Basic { user: user.to_owned(), password: password.to_owned() })
    }

    #[test]
    fn the_most_specific_scope_wins_and_a_helper_beats_all() {
        let auth = |text: &str| serde_json::json!({"auth": BASE64_STANDARD.encode(text)});
        let file = serde_json::json!({
            "auths": {
                "r.io": auth("registry:1"),
                "r.io/team": auth("team:2:3"),
                "r.io/team/os": auth("os:4\0\0"),
                "r.io:5000": auth("port:5"),
                "r.io/token": {"auth": "", "identitytoken": "t"},
                "https://url.io/v1/": auth("url:6"),
                "https://index.docker.io/v1/": auth("hub:7"),
                "scoped.io/team": auth("scoped:8"),
                "helped.io/team": auth("unused:9"),
                "r.io/none": {},
                "r.io/empty": auth("user:"),
                "r.io/damaged": {"auth": "x"},
            },
            "credHelpers": {"helped.io": "store"},
        });
        let file = AuthFile::parse(file.to_string().as_bytes()).unwrap();
        for (repository, expected) in [
            ("r.io/team/os", basic("os:4")),
            ("r.io/team/os/more", basic("os:4")),
            ("r.io/team/oses", basic("team:2:3")),
            ("r.io/teams/os", basic("registry:1")),
            ("r.io:5000/team/os", basic("port:5")),
            ("r.io/token/os", Login::Here(Credentials::IdentityToken("t".to_owned()))),
            ("url.io/os", basic("url:6")),
            ("docker.io/library/os", basic("hub:7")),
            ("docker.io/me/os", basic("hub:7")),
            ("scoped.io/team/os", basic("scoped:8")),
            ("scoped.io/other", Login::None),
            ("helped.io/team", Login::Helper("store".to_owned())),
            ("helped.io:5000/team", Login::None),
            ("r.io/none/os", Login::None),
            ("r.io/empty", Login::None),
            ("r.io/damaged", Login::Damaged),
            ("unknown.io/os", Login::None),
        ] {
            assert_eq!(file.find(repository), expected, "{repository}");
        }
    }

    #[test]
    fn what_is_no_object_with_the_right_members_is_no_file() {
        for (text, is) in [
            ("{}", true),
            (r#" {"auths": null, "HttpHeaders": {}}"#, true),
            ("", false),
            ("[]", false),
            (r#"{"auths": []}"#, false),
            (r#"{"auths": {"r.io": "secret"}}"#, false),
        ] {
            assert_eq!(AuthFile::parse(text.as_bytes()).is_some(), is, "{text}");
        }
    }

    #[test]
    fn a_file_made_of_credentials_has_just_these() {
        let token = Credentials::IdentityToken("t".to_owned());
        let Login::Here(login) = basic("me:p:q") else { unreachable!() };
        let all = [("r.io/os", &login), ("t.io/os", &token), ("open.io/os", &Credentials::Anonymous)];
        let text = auth_file(all.iter().map(|(scope, login)| ((*scope).to_owned(), *login)));
        let file = AuthFile::parse(text.as_bytes()).unwrap();
        assert_eq!(file.find("r.io/os"), Login::Here(login));
        assert_eq!(file.find("r.io/other"), Login::None);
        assert_eq!(file.find("t.io/os"), Login::Here(token));
        assert_eq!(file.find("open.io/os"), Login::None);
        assert_eq!(auth_file(std::iter::empty()), r#"{"auths":{}}"#);
    }

    #[test]
    fn secrets_are_not_shown() {
        let login = Credentials::Basic { user: "hunter".to_owned(), password: "hunter2".to_owned() };
        assert_eq!(format!("{login:?}"), "Basic(..)");
        assert_eq!(format!("{:#?}", Credentials::IdentityToken("hunter2".to_owned())), "IdentityToken(..)");
    }
}
