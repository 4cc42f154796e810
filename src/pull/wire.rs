//! What goes between a process and its child: one JSON object a line, and errors as plain data.

use crate::model::text::one_line;
use crate::model::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Writes one message. Ours are plain data, which always serialises.
pub(super) fn write_line(out: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    // At once: others write to the same pipe.
    out.write_all(&line)?;
    out.flush()
}

/// An error as plain data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Failed {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    details: BTreeMap<String, String>,
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        // Much of this is the text of images and registries.
        let visible = |text: &str| text.split('\n').map(one_line).collect::<Vec<_>>().join("\n");
        Failed {
            kind: e.kind,
            message: visible(&e.chain()),
            hint: e.hint.as_deref().map(visible),
            details: e.details.iter().map(|(key, value)| (key.clone(), visible(value))).collect(),
        }
    }
}

impl From<Failed> for Error {
    fn from(f: Failed) -> Self {
        let mut error = Error::new(f.kind, f.message);
        error.hint = f.hint.map(Into::into);
        error.details = f.details;
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_an_error_can_drive_a_terminal() {
        let error = Error::new(ErrorKind::Internal, "a\0b\x1b[2J\nc").hint("h\x1b").detail("path", "p\0");
        let error = Error::from(Failed::from(error));
        assert_eq!(error.to_string(), "a\\u{0}b\\u{1b}[2J\nc");
        assert_eq!(error.hint.as_deref(), Some("h\\u{1b}"));
        assert_eq!(error.details["path"], "p\\u{0}");
    }
}
