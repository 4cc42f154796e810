//! Our errors on the bus: name `org.osctl1.Error.<Kind>`, message, and the hint on a line of its own.

use crate::model::{Error, ErrorKind};
use zbus::message::{Header, Message};
use zbus::names::ErrorName;

/// What stands before the kind.
pub const PREFIX: &str = "org.osctl1.Error.";

/// Our error as a method's answer.
#[derive(Debug)]
pub struct Reply {
    kind: ErrorKind,
    text: String,
}

/// Result of an interface's method.
pub type Result<T> = std::result::Result<T, Reply>;

/// The D-Bus name of a kind.
pub fn name(kind: ErrorKind) -> String {
    format!("{PREFIX}{}", kind.name())
}

/// The longest line of an answer. Messages quote what callers and registries say, and a bus drops who sends too much.
const LINE_LIMIT: usize = 16 << 10;

/// The message on one line and, if there is one, the hint on the next.
pub fn text(message: &str, hint: &str) -> String {
    let message = line(message);
    if hint.is_empty() { message } else { format!("{message}\n{}", line(hint)) }
}

fn line(text: &str) -> String {
    let text = text.trim_end();
    let end = (0..=LINE_LIMIT.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let mut line = text[..end].replace('\n', "; ");
    if end < text.len() {
        line.push_str(&format!("... ({} more bytes)", text.len() - end));
    }
    line
}

/// The error that a name and a text of ours stand for. Foreign names are `Internal` (`fdo` access
/// refusals are `NotAuthorized`).
pub fn parse(name: &str, text: &str) -> Error {
    let kind = match name.strip_prefix(PREFIX) {
        Some(kind) => ErrorKind::from_name(kind).unwrap_or(ErrorKind::Internal),
        None => match name {
            "org.freedesktop.DBus.Error.AccessDenied" | "org.freedesktop.DBus.Error.AuthFailed" => {
                ErrorKind::NotAuthorized
            }
            // zbus itself answers so where the body of a call has other types than the method.
            "org.freedesktop.zbus.Error"
            | "org.freedesktop.DBus.Error.InvalidArgs"
            | "org.freedesktop.DBus.Error.UnknownObject"
            | "org.freedesktop.DBus.Error.UnknownInterface" => ErrorKind::InvalidArgument,
            "org.freedesktop.DBus.Error.UnknownMethod" => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        },
    };
    let (message, hint) = text.split_once('\n').unwrap_or((text, ""));
    let error = Error::new(kind, message.to_owned());
    if hint.is_empty() { error } else { error.hint(hint.to_owned()) }
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        Reply { kind: error.kind, text: text(&error.chain(), error.hint.as_deref().unwrap_or_default()) }
    }
}

impl zbus::DBusError for Reply {
    fn create_reply(&self, call: &Header<'_>) -> zbus::Result<Message> {
        Message::error(call, self.name())?.build(&(&self.text,))
    }

    fn name(&self) -> ErrorName<'_> {
        ErrorName::try_from(name(self.kind)).expect("every kind is a valid last element of a name")
    }

    fn description(&self) -> Option<&str> {
        Some(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::DBusError as _;

    #[test]
    fn a_line_has_an_end() {
        let text = text(&"é\n".repeat(1 << 20), &"x".repeat(1 << 20));
        assert!(text.len() < 2 * LINE_LIMIT * 2, "{}", text.len());
        assert_eq!(text.matches("more bytes)").count(), 2);
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn wrong_types_are_a_mistake_of_the_caller() {
        assert_eq!(
            parse("org.freedesktop.zbus.Error", "Signature mismatch").kind,
            ErrorKind::InvalidArgument
        );
    }

    #[test]
    fn every_kind_has_a_name_of_its_own_and_comes_back() {
        let mut names = std::collections::HashSet::new();
        for kind in ErrorKind::ALL {
            let reply = Reply::from(Error::new(*kind, "two\nlines").hint("do this"));
            assert!(names.insert(reply.name().to_string()));
            let back = parse(reply.name().as_str(), reply.description().unwrap());
            assert_eq!(
                (back.kind, back.to_string().as_str(), back.hint.as_deref()),
                (*kind, "two; lines", Some("do this"))
            );
        }
    }
}
