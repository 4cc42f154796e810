//! When nobody needs the daemon any more.
//!
//! Match rules of clients are invisible to a service, so every connection that ever called us counts as a
//! watcher until it leaves the bus.

use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;
use zbus::fdo::NameOwnerChanged;

#[derive(Debug)]
pub(super) struct Idle {
    after: Option<Duration>,
    since: Instant,
    clients: HashSet<String>,
}

impl Idle {
    /// Never elapses without `after`.
    pub fn new(after: Option<Duration>) -> Idle {
        Idle { after, since: Instant::now(), clients: HashSet::new() }
    }

    /// Something was done.
    pub fn touch(&mut self) {
        self.since = Instant::now();
    }

    /// Sees a message: calls keep us, and their senders with them until the bus says that they are gone.
    ///
    /// Both have to come from one stream, in the order of the bus: a client whose end is seen before its call would be
    /// a client for ever.
    pub fn message(&mut self, message: &zbus::Message) {
        match message.message_type() {
            zbus::message::Type::MethodCall => {
                if let Some(sender) = message.header().sender() {
                    self.clients.insert(sender.to_string());
                }
                self.touch();
            }
            zbus::message::Type::Signal => {
                if let Some(change) = NameOwnerChanged::from_message(message.clone())
                    && let Ok(change) = change.args()
                    && change.new_owner().is_none()
                {
                    self.gone(change.name().as_str());
                }
            }
            _ => {}
        }
    }

    fn gone(&mut self, name: &str) {
        if self.clients.remove(name) {
            self.touch();
        }
    }

    /// Waits until it has been quiet for long enough; for ever while a client is connected.
    pub async fn elapsed(&self) {
        match self.after {
            Some(after) if self.clients.is_empty() => tokio::time::sleep_until(self.since + after).await,
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn elapses(idle: &Idle, within: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(within), idle.elapsed()).await.is_ok()
    }

    #[tokio::test]
    async fn the_bus_says_who_has_left() {
        let mut idle = Idle::new(Some(Duration::from_millis(10)));
        let call = zbus::Message::method_call("/", "Ping").unwrap();
        idle.message(&call.sender(":1.7").unwrap().build(&()).unwrap());
        let left = zbus::Message::signal("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged");
        let left = left.unwrap().sender("org.freedesktop.DBus").unwrap();
        idle.message(&left.build(&(":1.7", ":1.7", "")).unwrap());
        assert!(elapses(&idle, 5_000).await);
    }

    #[tokio::test]
    async fn a_connected_client_keeps_the_daemon() {
        let mut idle = Idle::new(Some(Duration::from_millis(100)));
        let call = zbus::Message::method_call("/", "Ping").unwrap();
        idle.message(&call.sender(":1.7").unwrap().build(&()).unwrap());
        assert!(!elapses(&idle, 200).await);
        idle.gone(":1.8");
        assert!(!elapses(&idle, 200).await);
        idle.gone(":1.7");
        assert!(!elapses(&idle, 20).await, "leaving starts the time anew");
        assert!(elapses(&idle, 5_000).await);
        assert!(!elapses(&Idle::new(None), 200).await);
    }
}
