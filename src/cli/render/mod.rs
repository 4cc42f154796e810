//! Everything that people see. The only place that prints.

pub mod progress;
pub mod status;
mod time;

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
pub fn lint(report: &serde_json::Value) -> String {
    let mut text = String::new();
    let problems = report["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    for p in problems {
        let file = p["file"].as_str().unwrap_or("?");
        let message = p["message"].as_str().unwrap_or("?");
        match p["line"].as_u64() {
            Some(line) if line > 0 => text.push_str(&format!("{file}:{line}: {message}\n")),
            _ => text.push_str(&format!("{file}: {message}\n")),
        }
        if let Some(hint) = p["hint"].as_str().filter(|h| !h.is_empty()) {
            text.push_str(&format!("  hint: {hint}\n"));
        }
    }
    let files = report["files"].as_array().map_or(0, Vec::len);
    match problems.len() {
        0 => text.push_str(&format!("{files} files, no problems.\n")),
        n => text.push_str(&format!("{files} files, {n} problems.\n")),
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
