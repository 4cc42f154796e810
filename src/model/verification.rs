//! What vouches for an image, besides that its content has its digests.
//!
//! A level belongs to a deployment, and the next one may not have less unless somebody allows that (`permit`). A digest in
//! a reference is no level: it says which content was asked for, and nothing about who made it.

use super::Error;

/// How much vouches for an image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Nothing: the policy takes any content.
    #[default]
    Unverified,
    /// A signature that the policy asks for.
    Signed,
}

impl Level {
    /// The name in JSON and on the bus.
    pub fn name(self) -> &'static str {
        match self {
            Level::Unverified => "unverified",
            Level::Signed => "signed",
        }
    }
}

/// One requirement of containers-policy.json(5) that an image met.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Requirement {
    /// Its type, as the policy spells it: `signedBy`, `sigstoreSigned`, `insecureAcceptAnything`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The keys by path; one that stands in the policy itself is not repeated.
    pub keys: Vec<String>,
    /// Whose certificates are taken, where those of persons are.
    pub identities: Vec<String>,
}

impl Requirement {
    /// Whether meeting it takes a signature. What is not known does not.
    fn signs(&self) -> bool {
        matches!(self.kind.as_str(), "signedBy" | "sigstoreSigned")
    }
}

/// What was verified of an image, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verification {
    /// How much that is.
    pub level: Level,
    /// The scope of the policy that applied: `docker r.io/os`, `docker`, or `default`; empty if it is not known.
    pub scope: String,
    /// What was required there, all of it.
    pub requirements: Vec<Requirement>,
}

impl Verification {
    /// What meeting all of these requirements means.
    pub fn new(scope: String, requirements: Vec<Requirement>) -> Verification {
        let signed = requirements.iter().any(Requirement::signs);
        Verification { level: if signed { Level::Signed } else { Level::Unverified }, scope, requirements }
    }

    /// A signature that another tool demands; how is in its own configuration.
    pub fn demanded() -> Verification {
        Verification { level: Level::Signed, ..Default::default() }
    }

    /// From the origin of a deployment. A text that is not ours fails.
    pub fn from_json(text: &str) -> Result<Verification, Error> {
        use super::{Context as _, ErrorKind};
        serde_json::from_str(text).kind(ErrorKind::Unsupported, "what was verified is not readable")
    }

    /// For the origin of a deployment.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings always serialise")
    }

    /// In words: `by signature: signedBy /etc/pki/os.asc (policy: docker r.io/os)`.
    pub fn describe(&self) -> String {
        let scope = if self.scope.is_empty() { String::new() } else { format!(" (policy: {})", self.scope) };
        let asked: Vec<String> = self.requirements.iter().filter(|r| r.signs()).map(in_words).collect();
        match self.level {
            Level::Unverified => format!("no: the policy asks for no signature{scope}"),
            Level::Signed if asked.is_empty() => format!("by signature{scope}"),
            Level::Signed => format!("by signature: {}{scope}", asked.join(" and ")),
        }
    }
}

fn in_words(requirement: &Requirement) -> String {
    let by: Vec<&str> = requirement.keys.iter().chain(&requirement.identities).map(String::as_str).collect();
    format!("{} {}", requirement.kind, by.join(", ")).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(kind: &str, keys: &[&str], identities: &[&str]) -> Requirement {
        let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect();
        Requirement { kind: kind.into(), keys: own(keys), identities: own(identities) }
    }

    #[test]
    fn a_signature_that_is_required_beside_others_was_verified() {
        let anything = requirement("insecureAcceptAnything", &[], &[]);
        let gpg = requirement("signedBy", &["/k.asc"], &[]);
        let fulcio = requirement("sigstoreSigned", &[], &["me@example.com (https://issuer)"]);
        for (requirements, level, words) in [
            (vec![], Level::Unverified, "no: the policy asks for no signature (policy: default)"),
            (
                vec![anything.clone()],
                Level::Unverified,
                "no: the policy asks for no signature (policy: default)",
            ),
            (
                vec![requirement("fromTheFuture", &[], &[])],
                Level::Unverified,
                "no: the policy asks for no signature (policy: default)",
            ),
            (vec![gpg.clone()], Level::Signed, "by signature: signedBy /k.asc (policy: default)"),
            (
                vec![anything, gpg, fulcio],
                Level::Signed,
                "by signature: signedBy /k.asc and sigstoreSigned me@example.com (https://issuer) (policy: default)",
            ),
        ] {
            let verification = Verification::new("default".into(), requirements);
            assert_eq!((verification.level, verification.describe().as_str()), (level, words));
            assert_eq!(Verification::from_json(&verification.to_json()).unwrap(), verification);
        }
        assert!(Level::Unverified < Level::Signed);
        assert_eq!(Verification::demanded().describe(), "by signature");
    }
}
