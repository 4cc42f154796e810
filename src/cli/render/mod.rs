//! Everything that people see. The only place that prints.

pub mod progress;
pub mod status;
mod time;

use crate::derive::lint::LintReport;
use crate::client::Failure;
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
    note(&error_text(&error.chain(), error.hint.as_deref(), terminal.color));
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

/// What `lint` found.
pub fn lint(report: &LintReport) -> String {
    let mut text = String::new();
    let mut errors = 0;
    for file in &report.files {
        errors += file.errors.len();
        let warnings = file.warnings.iter().map(|w| ("warning: ", w));
        for (what, problem) in file.errors.iter().map(|e| ("", e)).chain(warnings) {
            let place = match (problem.line, problem.column) {
                (Some(line), Some(column)) => format!("{}:{line}:{column}", file.path),
                (Some(line), None) => format!("{}:{line}", file.path),
                (None, _) => file.path.clone(),
            };
            text.push_str(&format!("{place}: {what}{}\n", problem.message));
            if let Some(hint) = &problem.hint {
                text.push_str(&format!("  hint: {hint}\n"));
            }
        }
    }
    let files = report.files.len();
    match errors {
        0 => text.push_str(&format!("{files} files, no errors.\n")),
        n => text.push_str(&format!("{files} files, {n} errors.\n")),
    }
    text
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
}
