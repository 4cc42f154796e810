//! What `osctl lint` reports.

use super::Error;

/// The format of the report.
const VERSION: u32 = 1;

/// What was found. Serialises to `{"version":1,"files":[...]}`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LintReport {
    /// The format's version.
    pub version: u32,
    /// Every file that was looked at, in path order.
    pub files: Vec<LintFile>,
}

impl LintReport {
    /// The report about these files.
    pub fn new(mut files: Vec<LintFile>) -> LintReport {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        LintReport { version: VERSION, files }
    }

    /// Whether no file has an error. Warnings do not count.
    pub fn is_clean(&self) -> bool {
        self.files.iter().all(|f| f.errors.is_empty())
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LintKind {
    /// A drop-in in a `derive.d`.
    DropIn,
    /// A client treefile of rpm-ostree in an `origin.d`.
    Treefile,
    /// A file in a `bound-images.d`.
    Bound,
    /// A file in a `policy.d`.
    Policy,
    /// A quadlet file.
    Quadlet,
    /// A drop-in of a quadlet file.
    QuadletDropIn,
    /// A Kubernetes YAML file that a quadlet names.
    Kubernetes,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LintFile {
    /// The path, as reached from the argument.
    pub path: String,
    /// What it is.
    pub kind: LintKind,
    /// The images that a bound file, a quadlet or a Kubernetes file names.
    pub images: Vec<String>,
    /// What makes it unusable.
    pub errors: Vec<LintError>,
    /// What is allowed, and probably a mistake.
    pub warnings: Vec<LintError>,
}

impl LintFile {
    /// A file without findings.
    pub fn new(path: String, kind: LintKind) -> LintFile {
        LintFile { path, kind, images: Vec::new(), errors: Vec::new(), warnings: Vec::new() }
    }
}

/// One error or warning.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LintError {
    /// Line, from one.
    pub line: Option<u64>,
    /// Column, from one.
    pub column: Option<u64>,
    /// `files[0].mode`
    pub key: Option<String>,
    /// What is wrong, without the place.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl LintError {
    /// One about the file as a whole.
    pub fn plain(message: &str, hint: &str) -> LintError {
        LintError { line: None, column: None, key: None, message: message.into(), hint: Some(hint.into()) }
    }
}

impl From<&Error> for LintError {
    /// Takes the place out of the text, because it has its own fields.
    fn from(error: &Error) -> LintError {
        let detail = |key: &str| error.details.get(key).map(String::as_str);
        let number = |key: &str| detail(key).and_then(|t| t.parse().ok());
        let (line, column, key) = (number("line"), number("column"), detail("key").map(str::to_owned));
        let text = error.chain();
        let mut rest = detail("file").and_then(|file| text.strip_prefix(file)).unwrap_or(&text);
        for number in [line, column].into_iter().flatten() {
            rest = rest.strip_prefix(&format!(":{number}")).unwrap_or(rest);
        }
        let rest = rest.strip_prefix(": ").unwrap_or(rest);
        let message =
            key.as_deref().and_then(|k| rest.strip_prefix(&format!("{k}: "))).unwrap_or(rest).to_owned();
        LintError { line, column, key, message, hint: error.hint.as_deref().map(str::to_owned) }
    }
}
