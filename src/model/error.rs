//! The closed list of errors, with what each means to a caller.
//!
//! One table maps every kind to its D-Bus name and whether a retry can help; exit codes and D-Bus
//! replies are derived from it and never decided anywhere else.

use std::borrow::Cow;

/// A boxed cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Result with our [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $retryable:literal,)*) => {
        /// What went wrong, as a caller can act on it. The D-Bus name is `org.osctl1.Error.<Kind>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum ErrorKind { $($(#[$doc])* $kind,)* }

        impl ErrorKind {
            /// Every kind, in the order of the API document.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$kind,)*];

            /// The kind's name as it stands behind `org.osctl1.Error.`.
            pub fn name(self) -> &'static str {
                match self { $(ErrorKind::$kind => stringify!($kind),)* }
            }

            /// Whether the same request can succeed later without anybody changing anything.
            pub fn retryable(self) -> bool {
                match self { $(ErrorKind::$kind => $retryable,)* }
            }

            /// Returns the kind with this name.
            pub fn from_name(name: &str) -> Option<ErrorKind> {
                Self::ALL.iter().copied().find(|k| k.name() == name)
            }
        }
    };
}

kinds! {
    /// polkit, the bus policy or a policy of the host or its image said no.
    NotAuthorized => false,
    /// Another job runs and the caller did not want to wait.
    Busy => true,
    /// The state is not the one the caller named, or somebody else owns it.
    Conflict => false,
    /// The job is past its point of no return.
    TooLate => false,
    /// The target or the host cannot do this.
    Unsupported => false,
    /// The host works, but a part of what it should do does not.
    Degraded => true,
    /// The object is not in a state that allows this.
    WrongState => false,
    /// Somebody cancelled the job.
    Cancelled => false,
    /// The daemon ended while the job ran.
    Interrupted => true,
    /// An argument makes no sense.
    InvalidArgument => false,
    /// A drop-in is wrong: file, line and key are in the details.
    InvalidDropIn => false,
    /// A drop-in asks for something that only works at first boot.
    UnsupportedStanza => false,
    /// A bound file uses a systemd specifier.
    Specifier => false,
    /// There is nothing newer.
    NoUpdate => false,
    /// This digest or input was rejected before.
    Rejected => false,
    /// The target is older than what runs.
    Downgrade => false,
    /// Content does not have the digest it must have.
    DigestMismatch => true,
    /// The registry does not have the image.
    ImageNotFound => false,
    /// The registry wants other credentials.
    AuthRequired => false,
    /// The signature policy refused the image.
    SignatureRejected => false,
    /// The registry cannot be reached or answers with server errors.
    RegistryUnavailable => true,
    /// The registry asks to slow down.
    RateLimited => true,
    /// A package repository cannot be used.
    RepoUnavailable => true,
    /// Package requests cannot be met.
    DepsolveFailed => false,
    /// The lock does not fit what was asked.
    LockMismatch => false,
    /// A package's scriptlet failed.
    ScriptletFailed => false,
    /// A bound image could not be had.
    BoundImageFailed => true,
    /// Not enough space on a file system.
    NoSpace => false,
    /// Not enough space on the boot file system.
    BootNoSpace => false,
    /// Local changes in /etc collide with declared content.
    EtcConflict => false,
    /// The operation needs a booted ostree host.
    NotBooted => false,
    /// Changes are refused until the state is repaired.
    ReadOnly => false,
    /// Stored content is damaged.
    Corrupt => false,
    /// A bug or an unexpected failure of the system below.
    Internal => false,
}

/// A failed operation: what failed, whether a retry helps, and what to type next.
///
/// `Display` never contains the source: renderers print the chain.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// What a caller can act on.
    pub kind: ErrorKind,
    /// What to type next, if there is something.
    pub hint: Option<Cow<'static, str>>,
    /// Machine-readable facts (file, line, key, paths, need, have, ...). Never secrets.
    pub details: std::collections::BTreeMap<String, String>,
    context: Cow<'static, str>,
    #[source]
    source: Option<BoxError>,
}

impl Error {
    /// An error with a context that names the operation and its object.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Error { kind, hint: None, details: Default::default(), context: context.into(), source: None }
    }

    /// The same error once more, for another who waits for the same. Its causes become text.
    #[must_use]
    pub fn again(&self) -> Self {
        let mut again = Error::new(self.kind, self.chain());
        again.hint.clone_from(&self.hint);
        again.details.clone_from(&self.details);
        again
    }

    /// Adds what to type next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a machine-readable fact.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl ToString) -> Self {
        self.details.insert(key.to_owned(), value.to_string());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to type next: our own hint, else that of the nearest cause that has one, else what fits the kind.
    pub fn advice(&self) -> Option<&str> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(e) = cause {
            if let Some(hint) = e.downcast_ref::<Error>().and_then(|ours| ours.hint.as_deref()) {
                return Some(hint);
            }
            cause = e.source();
        }
        match self.kind {
            ErrorKind::NoSpace => {
                Some("free some space and try again; osctl unpin ID gives up a kept deployment")
            }
            ErrorKind::Corrupt => Some("see what is damaged with: ostree fsck"),
            ErrorKind::Internal => {
                Some("journalctl -u osctld.service may say more; if it does not, this is a bug")
            }
            _ => None,
        }
    }

    /// The message with its whole chain of causes, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(c) = cause {
            let line = c.to_string();
            // Libraries often repeat their cause in their own text.
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = c.source();
        }
        text
    }

    /// The chain for a job that goes on in another way: without what became of one that ends here.
    pub fn reason(&self) -> String {
        self.chain().replace("; nothing was staged", "")
    }
}

/// Turns foreign errors into ours, with a kind and a context.
pub trait Context<T> {
    /// Wraps the error as `kind` with `context`.
    fn kind(self, kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Result<T>;
    /// Wraps the error as [`ErrorKind::Internal`], or `NoSpace` where the cause says so.
    fn doing(self, context: impl Into<Cow<'static, str>>) -> Result<T>;
    /// As `doing`, with the context made only on failure.
    fn doing_with<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<BoxError>> Context<T> for Result<T, E> {
    fn kind(self, kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|e| Error::new(kind, context).source(e))
    }

    fn doing(self, context: impl Into<Cow<'static, str>>) -> Result<T> {
        self.doing_with(|| context)
    }

    fn doing_with<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| {
            let e: BoxError = e.into();
            Error::new(kind_of(&*e), context()).source(e)
        })
    }
}

/// The kind of a foreign error: ours keeps its own, a full disk is `NoSpace`, the rest is `Internal`.
fn kind_of(error: &(dyn std::error::Error + 'static)) -> ErrorKind {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(ours) = e.downcast_ref::<Error>() {
            return ours.kind;
        }
        if let Some(io) = e.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return ErrorKind::NoSpace;
        }
        // GLib wraps errno in text only.
        if e.to_string().contains("No space left on device") {
            return ErrorKind::NoSpace;
        }
        cause = e.source();
    }
    ErrorKind::Internal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.name()), Some(*kind));
        }
        assert_eq!(ErrorKind::ALL.len(), 34);
    }

    #[test]
    fn the_advice_is_the_nearest_hint_or_that_of_the_kind() {
        let inner = || Error::new(ErrorKind::NoSpace, "writing").hint("inner");
        assert_eq!(Error::new(ErrorKind::NoSpace, "x").source(inner()).hint("own").advice(), Some("own"));
        assert_eq!(Error::new(ErrorKind::NoSpace, "x").source(inner()).advice(), Some("inner"));
        assert!(Error::new(ErrorKind::NoSpace, "x").advice().unwrap().contains("free some space"));
        assert_eq!(Error::new(ErrorKind::Busy, "x").advice(), None);
    }

    #[test]
    fn the_reason_of_a_job_that_goes_on_does_not_say_how_it_ended() {
        let error = Error::new(
            ErrorKind::RepoUnavailable,
            "the repositories cannot be used: E: x; nothing was staged",
        )
        .source(std::io::Error::other("it is down"));
        assert_eq!(error.reason(), "the repositories cannot be used: E: x: it is down");
    }

    #[test]
    fn the_chain_names_each_cause_once() {
        let io = std::io::Error::other("disk on fire");
        let error = Error::new(ErrorKind::Corrupt, "reading object 1").source(io);
        assert_eq!(error.chain(), "reading object 1: disk on fire");
        let outer = Result::<(), _>::Err(error).doing("importing layer 2").unwrap_err();
        assert_eq!(
            (outer.kind, outer.chain().as_str()),
            (ErrorKind::Corrupt, "importing layer 2: reading object 1: disk on fire")
        );
    }
}
