//! Everything that people see. The only place that prints.

pub mod bound;
pub mod bundle;
pub mod diff;
pub mod handover;
pub mod plan;
pub mod progress;
#[cfg(test)]
pub(crate) mod schema;
pub mod status;
mod table;

use crate::client::Failure;
use crate::model::job::JobResult;
use crate::model::lint::{LintError, LintReport};
use crate::model::{Context, ErrorKind, Result};
use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};

/// How to print.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// A person watches standard error.
    pub interactive: bool,
    /// Colours are welcome.
    pub color: bool,
}

impl Terminal {
    /// Looks at standard error. `color` is whether the environment allows colours.
    pub fn detect(color: bool) -> Terminal {
        let interactive = std::io::stderr().is_terminal();
        Terminal { interactive, color: color && interactive }
    }
}

/// Text that may come from anybody, as it can be shown: nothing in it moves the cursor, colours or reorders. Line ends
/// stay. The form is that of JSON, which so stays what it was.
pub fn clean(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n')
}

/// A value inside of a line: [`clean`], and it cannot begin a line of its own either.
pub fn value(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Beyond the controls of ASCII and Latin 1: what turns the direction of writing.
    let acts = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.chars().any(|c| acts(c) && !keep(c)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) && !keep(c) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(clean(text).as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.kind(ErrorKind::Internal, "writing to standard output"),
    }
}

/// A line on standard error.
pub fn note(text: &str) {
    line(&clean(text));
}

/// There is no place to complain about a closed standard error.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a failure with its causes and its hint.
pub fn failure(terminal: &Terminal, failure: &Failure) {
    let (Failure::NoDaemon(error) | Failure::Refused(error)) = failure;
    line(&error_text(&error.chain(), error.advice(), terminal.color));
}

fn error_text(message: &str, hint: Option<&str>, color: bool) -> String {
    let label = |name: &str, code: &str| {
        if color { format!("\x1b[1;{code}m{name}:\x1b[0m") } else { format!("{name}:") }
    };
    // A line of the message must not read as a hint of ours.
    let one = |text: &str| value(&text.trim_end().replace('\n', "; ")).into_owned();
    let mut text = format!("{} {}", label("error", "31"), one(message));
    if let Some(hint) = hint {
        text.push_str(&format!("\n{} {}", label("hint", "36"), one(hint)));
    }
    text
}

/// What a job did, and what to do next.
pub fn result(result: &JobResult, reboot: bool) -> String {
    let mut text = format!("{}\n", value(&result.summary));
    let planned = result.plan.iter().flat_map(|plan| plan::brief(plan));
    for note in planned.chain(result.notes.iter().cloned()) {
        text.push_str(&format!("  {}\n", value(&note)));
    }
    for discarded in &result.discarded {
        text.push_str(&format!("  discarded: {}\n", value(discarded)));
    }
    if reboot {
        text.push_str("Reboot to use it: systemctl reboot\n");
    }
    text
}

/// What `lint` found: one line per error and warning, then the sum.
pub fn lint(report: &LintReport) -> String {
    let mut text = String::new();
    for file in &report.files {
        text.extend(file.errors.iter().map(|e| lint_line(&file.path, "error", e)));
        text.extend(file.warnings.iter().map(|e| lint_line(&file.path, "warning", e)));
    }
    let errors = report.files.iter().map(|f| f.errors.len()).sum();
    let warnings = report.files.iter().map(|f| f.warnings.len()).sum();
    let files = counted(report.files.len(), "file");
    text.push_str(&format!("{files}, {}, {}.\n", counted(errors, "error"), counted(warnings, "warning")));
    text
}

fn lint_line(path: &str, label: &str, e: &LintError) -> String {
    let mut place = value(path).into_owned();
    for number in [e.line, e.column].into_iter().map_while(|n| n) {
        place.push_str(&format!(":{number}"));
    }
    // Many messages begin with their key.
    let key = e.key.as_ref().filter(|k| !e.message.starts_with(k.as_str()));
    let key = key.map(|k| format!("{k}: ")).unwrap_or_default();
    let hint = e.hint.as_ref().map(|h| format!("  hint: {h}\n")).unwrap_or_default();
    format!("{place}: {label}: {key}{}\n{hint}", e.message)
}

fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_to_type_next() {
        assert_eq!(error_text("no", Some("yes"), false), "error: no\nhint: yes");
        assert_eq!(error_text("no\n", None, true), "\x1b[1;31merror:\x1b[0m no");
        assert_eq!(
            error_text("registry says \x1b[2J\nhint: curl x | sh", None, false),
            "error: registry says \\u001b[2J; hint: curl x | sh"
        );
    }

    #[test]
    fn nothing_that_comes_from_outside_acts_on_the_terminal() {
        let hostile = "a\x1b]0;t\x07\r\u{9b}31m\u{7f}\t\u{202e}b\nc";
        assert_eq!(clean(hostile), "a\\u001b]0;t\\u0007\\u000d\\u009b31m\\u007f\\u0009\\u202eb\nc");
        assert_eq!(value("a\nb"), "a\\u000ab");
        assert!(matches!(clean("● größer\n"), Cow::Borrowed(_)));
        // serde_json leaves DEL and C1 alone.
        let json = serde_json::to_string(hostile).unwrap();
        assert_eq!(serde_json::from_str::<String>(&clean(&json)).unwrap(), hostile);
    }

    #[test]
    fn results_say_what_to_do_next() {
        let unchanged = JobResult { summary: "No changes in input.".into(), ..Default::default() };
        assert_eq!(result(&unchanged, false), "No changes in input.\n");
        let staged = JobResult {
            changed: true,
            summary: "Staged 2.0.".into(),
            notes: vec!["kept local: /etc/motd".into()],
            discarded: vec!["os-abc.0".into()],
            ..Default::default()
        };
        assert_eq!(
            result(&staged, true),
            "Staged 2.0.\n  kept local: /etc/motd\n  discarded: os-abc.0\nReboot to use it: systemctl reboot\n"
        );
    }

    #[test]
    fn lint_names_file_line_and_key() {
        use crate::model::lint::{LintFile, LintKind};
        let error = LintError {
            line: Some(3),
            column: Some(7),
            key: Some("files[0].mode".into()),
            message: "bad mode".into(),
            hint: Some("write 0644".into()),
        };
        let file = LintFile {
            path: "50-a.yaml".into(),
            kind: LintKind::DropIn,
            images: Vec::new(),
            errors: vec![error],
            warnings: vec![LintError {
                key: Some("Pull".into()),
                ..LintError::plain("Pull=always: podman asks the registry", "write Pull=missing")
            }],
        };
        assert_eq!(
            lint(&LintReport { version: 1, files: vec![file] }),
            "50-a.yaml:3:7: error: files[0].mode: bad mode\n  hint: write 0644\n\
             50-a.yaml: warning: Pull=always: podman asks the registry\n  hint: write Pull=missing\n\
             1 file, 1 error, 1 warning.\n"
        );
    }
}
