//! When nobody needs the daemon any more.
//!
//! Match rules of clients are invisible to a service, so every connection that ever called us counts as a
//! watcher until it leaves the bus.

use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;

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

    /// Sees a message: calls keep us, and their senders with them.
    pub fn message(&mut self, message: &zbus::Message) {
        if message.message_type() == zbus::message::Type::MethodCall {
            if let Some(sender) = message.header().sender() {
                self.clients.insert(sender.to_string());
            }
            self.touch();
        }
    }

    /// A name has left the bus.
    pub fn gone(&mut self, name: &str) {
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

    #[tokio::test(start_paused = true)]
    async fn a_connected_client_keeps_the_daemon() {
        let mut idle = Idle::new(Some(Duration::from_secs(60)));
        let call = zbus::Message::method_call("/", "Ping").unwrap();
        idle.message(&call.sender(":1.7").unwrap().build(&()).unwrap());
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, idle.elapsed()).await.is_err());
        idle.gone(":1.8");
        assert!(tokio::time::timeout(hour, idle.elapsed()).await.is_err());
        idle.gone(":1.7");
        assert!(tokio::time::timeout(Duration::from_secs(59), idle.elapsed()).await.is_err());
        assert!(tokio::time::timeout(Duration::from_secs(2), idle.elapsed()).await.is_ok());
    }
}
