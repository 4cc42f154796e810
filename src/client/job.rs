//! A job as its properties tell it.

use crate::dbus::{convert, error};
use crate::model::job::{Failure, Initiator, Job, State};
use crate::model::{Error, ErrorKind, Result};
use zbus::zvariant::{OwnedValue, Value};

type Dict = convert::Dict;

/// Builds the job from all properties of its object.
pub(super) fn parse(properties: &Dict) -> Result<Job> {
    let p = Properties(properties);
    let state = p.text("State")?;
    let state = State::ALL
        .iter()
        .copied()
        .find(|s| s.name() == state)
        .ok_or_else(|| strange("State", &format!("the value {state:?}")))?;
    let (client_id, uid, unit) = p.get::<(String, u32, String)>("Initiator")?;
    let initiator = Initiator { client_id, uid, unit };
    let mut job = Job::new(p.text("Id")?, &p.text("Kind")?, initiator, p.get("Created")?);
    job.state = state;
    job.step = p.text("Phase")?;
    job.progress = p.get("Progress")?;
    (job.bytes_done, job.bytes_total) = (p.get("BytesDone")?, p.get("BytesTotal")?);
    (job.items_done, job.items_total) = (p.get("ItemsDone")?, p.get("ItemsTotal")?);
    job.current_item = p.text("CurrentItem")?;
    let parts: Vec<(String, u64, u64)> = p.get("Parts")?;
    job.parts = parts.into_iter().map(|(name, done, total)| (name, (done, total))).collect();
    (job.started, job.finished) = (p.get("Started")?, p.get("Finished")?);
    job.point_of_no_return = p.get("PointOfNoReturn")?;
    job.messages = p.get("Messages")?;
    let name = p.text("ErrorName")?;
    if !name.is_empty() {
        job.failure = Some(failure(&name, p.text("ErrorMessage")?, p.get("ErrorDetails")?));
    }
    let result: Dict = p.get("Result")?;
    if !result.is_empty() {
        job.result = Some(convert::parse_result(&result));
    }
    Ok(job)
}

fn failure(name: &str, message: String, details: Dict) -> Failure {
    let mut details: std::collections::BTreeMap<String, String> = details
        .into_iter()
        .filter_map(|(k, v)| <&str>::try_from(&v).map(str::to_owned).ok().map(|v| (k, v)))
        .collect();
    let hint = details.remove("hint").unwrap_or_default();
    Failure { kind: error::parse(name, "").kind, message, hint, details }
}

struct Properties<'a>(&'a Dict);

impl Properties<'_> {
    fn get<T: TryFrom<OwnedValue>>(&self, name: &str) -> Result<T> {
        let value = self.0.get(name).ok_or_else(|| strange(name, "nothing"))?;
        let value = Value::try_clone(value).ok().and_then(|v| OwnedValue::try_from(v).ok());
        value.and_then(|v| T::try_from(v).ok()).ok_or_else(|| strange(name, "another type"))
    }

    fn text(&self, name: &str) -> Result<String> {
        self.get(name)
    }
}

fn strange(property: &str, got: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("the daemon sent {got} as the property {property} of a job"))
        .hint("osctl and osctld may be of different versions: systemctl restart osctld.service")
}
