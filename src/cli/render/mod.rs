//! Everything that people see. The only place that prints.

pub mod progress;
pub mod status;
mod time;

use crate::client::Failure;
use crate::derive::lint::{LintError, LintReport};
use crate::model::job::JobResult;
use crate::model::{Context, ErrorKind, Result};
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

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.kind(ErrorKind::Internal, "writing to standard output"),
    }
}

/// A line on standard error. There is no place to complain about a closed one.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a failure with its causes and its hint.
pub fn failure(terminal: &Terminal, failure: &Failure) {
    let (Failure::NoDaemon(error) | Failure::Refused(error)) = failure;
    note(&error_text(&error.chain(), error.advice(), terminal.color));
}

fn error_text(message: &str, hint: Option<&str>, color: bool) -> String {
    let label = |name: &str, code: &str| {
        if color { format!("\x1b[1;{code}m{name}:\x1b[0m") } else { format!("{name}:") }
    };
    let mut text = format!("{} {}", label("error", "31"), message.trim_end());
    if let Some(hint) = hint {
        text.push_str(&format!("\n{} {hint}", label("hint", "36")));
    }
    text
}

/// What a job did, and what to do next.
pub fn result(result: &JobResult, reboot: bool) -> String {
    let mut text = format!("{}\n", result.summary);
    for note in &result.notes {
        text.push_str(&format!("  {note}\n"));
    }
    for discarded in &result.discarded {
        text.push_str(&format!("  discarded: {discarded}\n"));
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
    let mut place = path.to_owned();
    for number in [e.line, e.column].into_iter().map_while(|n| n) {
        place.push_str(&format!(":{number}"));
    }
    let key = e.key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default();
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
        use crate::derive::lint::{LintFile, LintKind};
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
            warnings: Vec::new(),
        };
        assert_eq!(
            lint(&LintReport { version: 1, files: vec![file] }),
            "50-a.yaml:3:7: error: files[0].mode: bad mode\n  hint: write 0644\n1 file, 1 error, 0 warnings.\n"
        );
    }
}
