//! How two derivations differ, and what of it a person wants to know.

use std::fmt;

/// What happens to a declared thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// It is declared now and was not.
    Added,
    /// It was declared and is not any more.
    Removed,
    /// It is declared otherwise.
    Changed,
}

/// What kind of thing it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A file, directory or link.
    Path,
    /// The state of a unit.
    Unit,
    /// A system user.
    User,
    /// A system group.
    Group,
    /// An appended kernel argument.
    KernelArgument,
    /// A deleted kernel argument.
    DeletedKernelArgument,
    /// A package to be there.
    Package,
    /// A package of the base to be gone.
    RemovedPackage,
    /// A package of the base in another version.
    ReplacedPackage,
    /// An image that carries packages for the base.
    Extension,
    /// An image on top of the base.
    Layer,
}

impl Subject {
    fn words(self) -> &'static str {
        match self {
            Subject::Path => "",
            Subject::Unit => "unit ",
            Subject::User => "user ",
            Subject::Group => "group ",
            Subject::KernelArgument => "kernel argument ",
            Subject::DeletedKernelArgument => "deletion of kernel argument ",
            Subject::Package => "package ",
            Subject::RemovedPackage => "removal of package ",
            Subject::ReplacedPackage => "replacement of package ",
            Subject::Extension => "extension ",
            Subject::Layer => "layer ",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// What kind of thing.
    pub subject: Subject,
    /// Its path, name or argument.
    pub name: String,
    /// What happens to it.
    pub change: Verb,
    /// The drop-in that declares it, or did.
    pub drop_in: String,
}

impl fmt::Display for Difference {
    /// `add /etc/agent.conf (50-agent.yaml)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.change {
            Verb::Added => "add",
            Verb::Removed => "remove",
            Verb::Changed => "change",
        };
        write!(f, "{verb} {}{} ({})", self.subject.words(), self.name, self.drop_in)
    }
}

/// All differences, by subject and name.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Differences {
    /// Whether the input digests differ: if so, the derivation is made anew, whatever else is here.
    pub changed: bool,
    /// What a person would want to know. May be empty although something changed: the order of
    /// kernel arguments, or a policy (`overwrite`, `on-conflict`).
    pub list: Vec<Difference>,
}

impl Differences {
    /// One line for people per difference. Empty only if nothing changed.
    pub fn lines(&self) -> Vec<String> {
        if self.changed && self.list.is_empty() {
            return vec![
                "change order of kernel arguments, a repository, or a policy such as overwrite".to_owned(),
            ];
        }
        self.list.iter().map(Difference::to_string).collect()
    }
}

/// How what two deployments were derived from differs.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Between {
    /// What is declared.
    pub declared: Vec<Difference>,
    /// What requests came to.
    pub packages: Vec<LockChange>,
}

/// What a lock names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Changed {
    /// A package that is installed, by its version.
    Package,
    /// A package of the base that is there or not, by its version.
    OfBase,
    /// An image, by its digest.
    Image,
}

/// One difference between two locks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LockChange {
    /// What kind of thing.
    pub what: Changed,
    /// Its name.
    pub name: String,
    /// What was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The drop-ins that ask for it; `None` if it is needed by what they ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

impl LockChange {
    /// The same the other way round.
    #[must_use]
    pub fn undone(self) -> LockChange {
        LockChange { from: self.to, to: self.from, ..self }
    }
}

impl fmt::Display for LockChange {
    /// `install agent 1.0 (50-agent.yaml)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        let needed = match (self.what, &self.to) {
            (Changed::Package, None) | (Changed::OfBase, Some(_)) => "nothing asks for it",
            _ => "needed by what is requested",
        };
        let by = self.by.as_deref().unwrap_or(needed);
        match (self.what, &self.from, &self.to) {
            (_, Some(from), Some(to)) => write!(f, "change {name} {from} to {to} ({by})"),
            (Changed::Package, None, Some(to)) => write!(f, "install {name} {to} ({by})"),
            (Changed::Package, Some(from), None) => write!(f, "uninstall {name} {from} ({by})"),
            (Changed::OfBase, Some(from), None) => write!(f, "remove {name} {from} ({by})"),
            (Changed::OfBase, None, Some(to)) => write!(f, "bring back {name} {to} ({by})"),
            (Changed::Image, None, Some(to)) => write!(f, "take {name} as {to} ({by})"),
            (Changed::Image, Some(from), None) => write!(f, "leave out {name} {from} ({by})"),
            (_, None, None) => write!(f, "{name} ({by})"),
        }
    }
}
