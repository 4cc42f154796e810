//! Failpoints: places where a test can make the pipeline fail or die.
//!
//! There are exactly two for every [`Step`]: `<step>` before its work and `<step>.done` after it. They are
//! compiled into every build and inert unless the daemon is started with `OSCTL_FAILPOINTS`
//! (`stage.publish=error;pull.layers.done=kill`).

use crate::model::job::Step;
use crate::model::{Error, ErrorKind, Result};
use std::collections::HashMap;

/// What an armed failpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Return an error.
    Error,
    /// Kill the whole process group with SIGKILL, as a crash or the OOM killer would.
    Kill,
    /// Wait until cancelled or killed.
    Hang,
    /// Stop this process with SIGSTOP, until somebody continues it: the world can change in between.
    Stop,
}

/// The armed failpoints. The default has none.
#[derive(Debug, Clone, Default)]
pub struct Failpoints(HashMap<String, Action>);

impl Failpoints {
    /// The names of all failpoints, in pipeline order.
    pub fn names() -> Vec<String> {
        Step::ALL.iter().flat_map(|s| [s.name().to_owned(), format!("{}.done", s.name())]).collect()
    }

    /// Parses `name=action;...`, where action is `error`, `kill`, `hang` or `stop`.
    pub fn parse(text: &str) -> Result<Failpoints> {
        let known = Self::names();
        let mut armed = HashMap::new();
        for part in text.split(';').filter(|p| !p.trim().is_empty()) {
            let bad = || {
                Error::new(ErrorKind::InvalidArgument, format!("failpoint {part:?} is not NAME=ACTION")).hint(
                    "list the names with: osctld --list-failpoints; actions are error, kill, hang and stop",
                )
            };
            let (name, action) = part.trim().split_once('=').ok_or_else(bad)?;
            if !known.iter().any(|k| k == name) {
                return Err(bad());
            }
            let action = match action {
                "error" => Action::Error,
                "kill" => Action::Kill,
                "hang" => Action::Hang,
                "stop" => Action::Stop,
                _ => return Err(bad()),
            };
            armed.insert(name.to_owned(), action);
        }
        Ok(Failpoints(armed))
    }

    /// Passes the failpoint, unless it is armed.
    pub async fn pass(&self, name: &str) -> Result<()> {
        match self.0.get(name) {
            None => Ok(()),
            Some(Action::Error) => Err(Error::new(ErrorKind::Internal, format!("failpoint {name}"))),
            Some(Action::Kill) => {
                crate::sys::process::kill_own_group();
                std::future::pending().await
            }
            Some(Action::Hang) => std::future::pending().await,
            Some(Action::Stop) => crate::sys::process::stop_self(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_and_actions_are_refused() {
        for text in ["nope=error", "stage.publish", "stage.publish=explode"] {
            assert_eq!(Failpoints::parse(text).unwrap_err().kind, ErrorKind::InvalidArgument, "{text}");
        }
    }

    #[tokio::test]
    async fn only_the_armed_point_fails() {
        let points = Failpoints::parse("stage.publish=error;").unwrap();
        assert!(points.pass("stage.publish.done").await.is_ok());
        assert_eq!(points.pass("stage.publish").await.unwrap_err().to_string(), "failpoint stage.publish");
    }
}
