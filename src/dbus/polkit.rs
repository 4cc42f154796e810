//! Who may do what. Asked before anything is queued, and never under a lock.

use crate::model::{Context, Error, ErrorKind, Result};
use std::collections::HashMap;
use zbus::message::{Flags, Header};
use zbus::names::UniqueName;
use zbus::zvariant::Value;

/// How callers are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// polkit decides: the system bus.
    Polkit,
    /// Only our own uid: a bus that somebody chose.
    OwnUid,
    /// The other end of a socket pair is ourselves.
    Peer,
}

/// Polkit's flag that it may ask the person.
const ALLOW_USER_INTERACTION: u32 = 1;

#[zbus::proxy(
    interface = "org.freedesktop.PolicyKit1.Authority",
    default_service = "org.freedesktop.PolicyKit1",
    default_path = "/org/freedesktop/PolicyKit1/Authority",
    gen_blocking = false
)]
trait Polkit {
    /// Asks for one action. Returns (authorised, could be after asking, details).
    fn check_authorization(
        &self,
        subject: &(&str, HashMap<&str, Value<'_>>),
        action: &str,
        details: &HashMap<&str, String>,
        flags: u32,
        cancellation_id: &str,
    ) -> zbus::Result<(bool, bool, HashMap<String, String>)>;
}

impl Authority {
    /// The caller's uid.
    pub async fn uid(self, connection: &zbus::Connection, call: &Header<'_>) -> Result<u32> {
        if self == Authority::Peer {
            return Ok(rustix::process::geteuid().as_raw());
        }
        let sender = sender(call)?;
        let unknown = "asking the bus who calls";
        let bus = zbus::fdo::DBusProxy::new(connection).await.kind(ErrorKind::NotAuthorized, unknown)?;
        bus.get_connection_unix_user(sender.clone().into()).await.kind(ErrorKind::NotAuthorized, unknown)
    }

    /// Fails with `NotAuthorized` unless the caller may do all of `actions`.
    pub async fn require(
        self,
        connection: &zbus::Connection,
        call: &Header<'_>,
        uid: u32,
        actions: &[&str],
        details: &HashMap<&'static str, String>,
    ) -> Result<()> {
        match self {
            Authority::Peer => Ok(()),
            Authority::OwnUid => own_uid(uid, rustix::process::geteuid().as_raw()),
            // polkit would say yes, if it were well: a host whose polkitd is broken must still be updated.
            Authority::Polkit if uid == 0 => Ok(()),
            Authority::Polkit => {
                for action in actions {
                    ask(connection, call, action, details).await?;
                }
                Ok(())
            }
        }
    }
}

fn own_uid(caller: u32, own: u32) -> Result<()> {
    if caller == own {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NotAuthorized,
        format!("on this bus only uid {own} may change the host, and you are uid {caller}"),
    )
    .hint("use the system bus, where polkit decides"))
}

async fn ask(
    connection: &zbus::Connection,
    call: &Header<'_>,
    action: &str,
    details: &HashMap<&'static str, String>,
) -> Result<()> {
    let sender = sender(call)?.to_string();
    let interactive = call.primary().flags().contains(Flags::AllowInteractiveAuth);
    let flags = if interactive { ALLOW_USER_INTERACTION } else { 0 };
    let subject = ("system-bus-name", HashMap::from([("name", Value::from(sender))]));
    let asked = async {
        PolkitProxy::new(connection).await?.check_authorization(&subject, action, details, flags, "").await
    };
    match asked.await {
        Ok((true, _, _)) => Ok(()),
        Ok((false, challenge, _)) => Err(Error::new(
            ErrorKind::NotAuthorized,
            format!("polkit does not allow you {action}; nothing was changed"),
        )
        .hint(if challenge {
            "an administrator can: sudo osctl ..., or run it where a polkit agent can ask for a password"
        } else {
            "an administrator can: sudo osctl ..."
        })
        .detail("action", action)),
        // Without polkit the host has one administrator.
        Err(error) if absent(&error) => Err(without_polkit(action)),
        Err(error) => Err(error).kind(ErrorKind::NotAuthorized, format!("asking polkit about {action}")),
    }
}

fn without_polkit(action: &str) -> Error {
    Error::new(
        ErrorKind::NotAuthorized,
        format!("polkit is not installed, so only root may do {action}; nothing was changed"),
    )
    .hint("sudo osctl ..., or install polkit")
    .detail("action", action)
}

fn absent(error: &zbus::Error) -> bool {
    let name = match error {
        zbus::Error::MethodError(name, _, _) => name.as_str(),
        zbus::Error::FDO(error) => {
            return matches!(
                **error,
                zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_)
            );
        }
        _ => return false,
    };
    matches!(
        name,
        "org.freedesktop.DBus.Error.ServiceUnknown"
            | "org.freedesktop.DBus.Error.NameHasNoOwner"
            | "org.freedesktop.DBus.Error.Spawn.ServiceNotFound"
    )
}

fn sender<'m>(call: &'m Header<'_>) -> Result<&'m UniqueName<'m>> {
    call.sender().ok_or_else(|| Error::new(ErrorKind::NotAuthorized, "the call has no sender"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_uid_may_on_a_chosen_bus() {
        assert!(own_uid(7, 7).is_ok());
        let error = own_uid(1000, 0).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotAuthorized);
        assert_eq!(error.to_string(), "on this bus only uid 0 may change the host, and you are uid 1000");
    }
}
