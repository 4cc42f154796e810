//! Between `a{sv}` and our types. The only reader of option dictionaries.

use crate::model::deviation::{self, Asked};
use crate::model::difference::Between;
use crate::model::edit::{self, Edit, What};
use crate::model::handover::Tool;
use crate::model::image::{Digest, ImageRef};
use crate::model::job::{Failure, JobResult};
use crate::model::lock::Lock;
use crate::model::request::{Goal, Options, Request, Subject, stateroot};
use crate::model::status::{Bound, Deployment, Outcome, PackageRequest};
use crate::model::verification::Requirement;
use crate::model::verified::{Damage, Part};
use crate::model::{Error, ErrorKind, Result, bytes, kargs as karg};
use std::collections::HashMap;
use std::num::NonZeroU64;
use zbus::zvariant::{OwnedValue, Value};

/// A dictionary as it comes in.
pub type Dict = HashMap<String, OwnedValue>;
/// A dictionary as it goes out.
pub type Out = HashMap<String, Value<'static>>;

/// The longest text that an option or an argument can have: a path's length. Whoever may call may be anybody, and what
/// is refused stands in the answer, escaped, where the bus has a limit of its own and drops who exceeds it.
pub const TEXT_LIMIT: usize = 4096;
/// The largest lock that is sent: the system bus drops who sends 32 MiB.
const LOCK_LIMIT: usize = 16 << 20;
/// The longest label. It is kept with the job.
const LABEL_LIMIT: usize = 128;
/// The most entries of a list. Together they are as long as one text at most: of kernel arguments more than most kernels
/// take.
const ENTRIES_LIMIT: usize = 256;
/// An edit: every package is to be as the image has it.
const RESET_ALL: &str = "override-reset-all";
/// An edit: what is so already is fine.
const IDEMPOTENT: &str = "idempotent";

/// Options that every method takes: labels for people, which decide nothing.
const LABELS: &[&str] = &["client-id", "cmdline"];
/// What check understands.
const CHECK: &[&str] = &["queue"];
/// What upgrade understands.
const UPGRADE: &[&str] = &[
    "queue",
    "require-digest",
    "download-only",
    "dry-run",
    "allow-downgrade",
    "replace-staged",
    "allow-rejected",
    "allow-unverified",
    "rate-limit",
    "max-bytes",
    "drop-var",
    "frozen",
];
/// What rebase understands beyond upgrade.
const REBASE: &[&str] = &["kargs", "stateroot"];
/// What importing a bundle understands beyond rebase.
const IMPORT: &[&str] = &["image"];
/// What reconcile understands.
const RECONCILE: &[&str] = &[
    "queue",
    "download-only",
    "dry-run",
    "replace-staged",
    "allow-rejected",
    "drop-var",
    "frozen",
    "update-lock",
    "retry",
];
/// What an edit understands beside the edit itself.
const EDIT: &[&str] = &["queue", "dry-run", "replace-staged", "allow-rejected"];
/// What adopt understands.
const ADOPT: &[&str] = &["queue", "dry-run", "lossy", "replace-staged", "allow-rejected"];
/// What release understands.
const RELEASE: &[&str] = &["queue", "dry-run", "lossy", "replace-staged", "to"];
/// What rollback understands.
const ROLLBACK: &[&str] = &["reject"];
/// What verify understands.
const VERIFY: &[&str] = &["queue", "dry-run"];
/// What a pull of bound images understands.
const PULL_BOUND: &[&str] = &["queue", "dry-run"];
/// Options of the API that this version does not have yet: refused by name, never ignored.
const LATER: &[&str] = &[
    "if-generation",
    "lock-finalization",
    "reboot",
    "class",
    "lifetime",
    "deadline",
    "on-repo-unavailable",
    "offline",
];

/// A method that takes options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named as on the bus
pub enum Verb {
    Check,
    Upgrade,
    Rebase,
    ImportBundle,
    Reconcile,
    Edit,
    Adopt,
    Release,
    Rollback,
    Verify,
    PullBound,
    ListJobs,
    Cancel,
}

impl Verb {
    fn knows(self, key: &str) -> bool {
        LABELS.contains(&key)
            || match self {
                Verb::Check => CHECK.contains(&key),
                Verb::Upgrade => UPGRADE.contains(&key),
                Verb::Rebase => UPGRADE.contains(&key) || REBASE.contains(&key),
                Verb::ImportBundle => Verb::Rebase.knows(key) || IMPORT.contains(&key),
                Verb::Reconcile => RECONCILE.contains(&key),
                Verb::Edit => EDIT.contains(&key),
                Verb::Adopt => ADOPT.contains(&key),
                Verb::Release => RELEASE.contains(&key),
                Verb::Rollback => ROLLBACK.contains(&key),
                Verb::Verify => VERIFY.contains(&key),
                Verb::PullBound => PULL_BOUND.contains(&key),
                Verb::ListJobs => key == "active",
                Verb::Cancel => false,
            }
    }
}

/// Options as decoded: those of the request and those that only this call has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// For the request.
    pub options: Options,
    /// What the client calls itself.
    pub client_id: String,
    /// Rollback: keep automatic jobs away from what was rolled back from.
    pub reject: Option<bool>,
    /// Release: the tool that gets the host.
    pub to: Option<Tool>,
    /// ImportBundle: the image to move to.
    pub image: Option<ImageRef>,
    /// ListJobs: only those that have not ended, or only those that have.
    pub active: Option<bool>,
}

/// Decodes the options of a method. A key that the method does not know is refused by name.
pub fn decode(verb: Verb, dict: &Dict) -> Result<Decoded> {
    let mut out = Decoded::default();
    // In key order, so that the same mistake always gives the same message.
    let mut keys: Vec<&String> = dict.keys().collect();
    keys.sort();
    for key in keys {
        let value = &dict[key];
        if key.len() > LABEL_LIMIT {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("unknown option with a name of {} bytes", key.len()),
            ));
        }
        if !verb.knows(key) {
            return Err(if LATER.contains(&key.as_str()) {
                Error::new(ErrorKind::Unsupported, format!("option {key:?} is not supported in this version"))
            } else {
                Error::new(ErrorKind::InvalidArgument, format!("unknown option {key:?}"))
            }
            .detail("key", key));
        }
        let o = &mut out.options;
        match key.as_str() {
            "queue" => o.no_wait = queue(&string(key, value)?)?,
            "require-digest" => o.require_digest = Some(string(key, value)?.parse::<Digest>()?),
            "download-only" => o.download_only = boolean(key, value)?,
            "dry-run" => o.dry_run = boolean(key, value)?,
            "allow-downgrade" => o.allow_downgrade = boolean(key, value)?,
            "replace-staged" => o.replace_staged = boolean(key, value)?,
            "allow-rejected" => o.allow_rejected = boolean(key, value)?,
            "allow-unverified" => o.allow_unverified = boolean(key, value)?,
            "rate-limit" => o.rate_limit = Some(rate(key, value)?),
            "max-bytes" => o.max_bytes = Some(number(key, value)?),
            "lossy" => o.lossy = boolean(key, value)?,
            "to" => out.to = Some(string(key, value)?.parse().map_err(|e: Error| e.detail("key", key))?),
            "image" => out.image = Some(image(&string(key, value)?).map_err(|e| e.detail("key", key))?),
            "drop-var" => o.drop_var = boolean(key, value)?,
            "frozen" => o.frozen = boolean(key, value)?,
            "update-lock" => o.update_lock = boolean(key, value)?,
            "retry" => o.retry = boolean(key, value)?,
            "kargs" => o.kargs = kernel_arguments(key, value)?,
            "stateroot" => o.stateroot = Some(stateroot(&string(key, value)?)?),
            "client-id" => out.client_id = label(key, value)?,
            "cmdline" => drop(string(key, value)?),
            "reject" => out.reject = Some(boolean(key, value)?),
            "active" => out.active = Some(boolean(key, value)?),
            other => {
                return Err(Error::new(ErrorKind::Internal, format!("option {other:?} has no decoder")));
            }
        }
    }
    if out.options.frozen && out.options.update_lock {
        let why = "\"frozen\" and \"update-lock\" exclude each other";
        return Err(Error::new(ErrorKind::InvalidArgument, why).detail("key", "update-lock"));
    }
    Ok(out)
}

/// Decodes what is to be planned: a verb, its image and its options.
pub fn decode_plan(mut dict: Dict) -> Result<(Goal, Decoded)> {
    let mut take = |key: &str| dict.remove(key).map(|value| string(key, &value)).transpose();
    let (verb, image) = (take("verb")?, take("image")?);
    let (verb, goal) = match (verb.as_deref().unwrap_or("upgrade"), image) {
        ("upgrade", None) => (Verb::Upgrade, Goal::Upgrade),
        ("reconcile", None) => (Verb::Reconcile, Goal::Reconcile),
        ("rebase", Some(text)) => (Verb::Rebase, Goal::Rebase(self::image(&text)?)),
        ("rebase", None) => return Err(plan_key("image", "a rebase needs an image")),
        ("upgrade" | "reconcile", Some(_)) => return Err(plan_key("image", "only a rebase has an image")),
        (other, _) => {
            let error = plan_key("verb", &format!("option \"verb\" cannot be {other:?}"));
            return Err(error.hint("use upgrade, rebase or reconcile"));
        }
    };
    Ok((goal, decode(verb, &dict)?))
}

/// Decodes what is to be verified.
pub fn subjects(names: &[String]) -> Result<Vec<Subject>> {
    let wrong = |why: String| {
        let known: Vec<&str> = Subject::ALL.iter().map(|s| s.name()).collect();
        Error::new(ErrorKind::InvalidArgument, why)
            .hint(format!("what can be verified: {}", known.join(", ")))
    };
    if names.is_empty() || names.len() > ENTRIES_LIMIT {
        return Err(wrong(format!("{} things are named that are to be verified", names.len())));
    }
    let mut subjects = Vec::new();
    for name in names {
        short("what", name, LABEL_LIMIT)?;
        let subject = Subject::ALL.iter().find(|s| s.name() == name);
        let subject = *subject.ok_or_else(|| wrong(format!("{name:?} cannot be verified")))?;
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    Ok(subjects)
}

/// Decodes what is to be edited, and the options.
pub fn decode_edit(mut dict: Dict) -> Result<(Edit, Decoded)> {
    let mut wishes = Vec::new();
    for what in What::ALL {
        let Some(value) = dict.remove(what.name()) else { continue };
        wishes.extend(entries(what.name(), &value)?.into_iter().map(|item| (*what, item)));
    }
    let mut flag = |key: &str| dict.remove(key).map_or(Ok(false), |value| boolean(key, &value));
    let (reset_all, idempotent) = (flag(RESET_ALL)?, flag(IDEMPOTENT)?);
    // What is unknown is said before what is wrong.
    let decoded = decode(Verb::Edit, &dict)?;
    Ok((Edit::new(wishes, reset_all, idempotent)?, decoded))
}

/// Encodes what [`decode_edit`] reads beside the options.
pub fn encode_edit(edit: &Edit) -> Out {
    let mut out = Out::new();
    for what in What::ALL {
        let items: Vec<String> =
            edit.wishes().iter().filter(|(w, _)| w == what).map(|(_, item)| item.clone()).collect();
        if !items.is_empty() {
            out.insert(what.name().into(), Value::from(items));
        }
    }
    for (key, _) in
        [(RESET_ALL, edit.reset_all()), (IDEMPOTENT, edit.idempotent())].iter().filter(|(_, on)| *on)
    {
        out.insert((*key).into(), Value::from(true));
    }
    out
}

fn plan_key(key: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, why.to_owned()).detail("key", key)
}

/// Encodes what [`decode_plan`] reads beside the options.
pub fn encode_goal(goal: &Goal) -> Out {
    let verb = |name: &'static str| ("verb".to_owned(), Value::from(name));
    match goal {
        Goal::Upgrade => Out::from([verb("upgrade")]),
        Goal::Rebase(image) => {
            Out::from([verb("rebase"), ("image".to_owned(), Value::from(image.to_string()))])
        }
        Goal::Reconcile => Out::from([verb("reconcile")]),
    }
}

/// Encodes options for the bus; what is left at its default is left out.
pub fn encode(options: &Options) -> Out {
    let mut out = Out::new();
    out.extend(
        flags(options).iter().filter(|(_, on)| *on).map(|(k, _)| ((*k).to_owned(), Value::from(true))),
    );
    if options.no_wait {
        out.insert("queue".into(), Value::from("fail"));
    }
    if let Some(digest) = &options.require_digest {
        out.insert("require-digest".into(), Value::from(digest.to_string()));
    }
    if let Some(rate) = options.rate_limit {
        out.insert("rate-limit".into(), Value::from(rate.get()));
    }
    if let Some(limit) = options.max_bytes {
        out.insert("max-bytes".into(), Value::from(limit));
    }
    if !options.kargs.is_empty() {
        out.insert("kargs".into(), Value::from(options.kargs.clone()));
    }
    if let Some(stateroot) = &options.stateroot {
        out.insert("stateroot".into(), Value::from(stateroot.clone()));
    }
    out
}

fn flags(options: &Options) -> [(&'static str, bool); 11] {
    [
        ("download-only", options.download_only),
        ("dry-run", options.dry_run),
        ("allow-downgrade", options.allow_downgrade),
        ("replace-staged", options.replace_staged),
        ("allow-rejected", options.allow_rejected),
        ("allow-unverified", options.allow_unverified),
        ("drop-var", options.drop_var),
        ("lossy", options.lossy),
        ("frozen", options.frozen),
        ("update-lock", options.update_lock),
        ("retry", options.retry),
    ]
}

fn queue(value: &str) -> Result<bool> {
    match value {
        "wait" => Ok(false),
        "fail" => Ok(true),
        other => Err(Error::new(ErrorKind::InvalidArgument, format!("option \"queue\" cannot be {other:?}"))
            .hint("use wait or fail")
            .detail("key", "queue")),
    }
}

fn wrong(key: &str, wanted: &str, value: &Value<'_>) -> Error {
    let got = value.value_signature().to_string();
    Error::new(ErrorKind::InvalidArgument, format!("option {key:?} must be {wanted}, not of type {got}"))
        .detail("key", key)
}

fn boolean(key: &str, value: &OwnedValue) -> Result<bool> {
    bool::try_from(value).map_err(|_| wrong(key, "a boolean (b)", value))
}

fn number(key: &str, value: &OwnedValue) -> Result<u64> {
    u64::try_from(value).map_err(|_| wrong(key, "a number (t)", value))
}

fn rate(key: &str, value: &OwnedValue) -> Result<NonZeroU64> {
    NonZeroU64::new(number(key, value)?).ok_or_else(|| bytes::no_rate().detail("key", key))
}

fn string(key: &str, value: &OwnedValue) -> Result<String> {
    let text = <&str>::try_from(value).map_err(|_| wrong(key, "a string (s)", value))?;
    short(key, text, TEXT_LIMIT)?;
    Ok(text.to_owned())
}

/// Refuses a text that is too long, without repeating it.
fn short(key: &str, text: &str, limit: usize) -> Result<()> {
    if text.len() <= limit {
        return Ok(());
    }
    let why = format!("option {key:?} has {} bytes, and can have {limit}", text.len());
    Err(Error::new(ErrorKind::InvalidArgument, why).detail("key", key))
}

/// A text that people see and that is kept.
fn label(key: &str, value: &OwnedValue) -> Result<String> {
    let text = string(key, value)?;
    short(key, &text, LABEL_LIMIT)?;
    if text.chars().any(char::is_control) {
        let why = format!("option {key:?} holds a control character");
        return Err(Error::new(ErrorKind::InvalidArgument, why).detail("key", key));
    }
    Ok(text)
}

/// A list that is not too long, and neither is all of it.
fn entries(key: &str, value: &OwnedValue) -> Result<Vec<String>> {
    let entries = strings(key, value)?;
    if entries.len() > ENTRIES_LIMIT {
        let why = format!("option {key:?} has {} entries, and can have {ENTRIES_LIMIT}", entries.len());
        return Err(Error::new(ErrorKind::InvalidArgument, why).detail("key", key));
    }
    short(key, &entries.concat(), TEXT_LIMIT)?;
    Ok(entries)
}

fn kernel_arguments(key: &str, value: &OwnedValue) -> Result<Vec<String>> {
    let args = entries(key, value)?;
    for arg in &args {
        karg::form(arg).map_err(|refused| {
            let error =
                Error::new(ErrorKind::InvalidArgument, format!("option {key:?}: {}", refused.message));
            let error = error.detail("key", key);
            if let Some(hint) = refused.hint { error.hint(hint) } else { error }
        })?;
    }
    Ok(args)
}

fn strings(key: &str, value: &OwnedValue) -> Result<Vec<String>> {
    let error = || wrong(key, "a list of strings (as)", value);
    let Value::Array(array) = &**value else { return Err(error()) };
    array.iter().map(|v| <&str>::try_from(v).map(str::to_owned).map_err(|_| error())).collect()
}

/// What a polkit rule may look at. `client-id` and `cmdline` are the caller's own words and stay out.
pub fn details(request: &Request) -> HashMap<&'static str, String> {
    let mut out = HashMap::from([("verb", request.kind().to_owned())]);
    if let Request::Rebase { image, .. } | Request::Plan { goal: Goal::Rebase(image), .. } = request {
        out.insert("image", image.to_string());
        out.insert("transport", image.transport.prefix().to_owned());
    }
    if let Request::ImportBundle { image: Some(image), .. } = request {
        out.insert("image", image.to_string());
    }
    if let Request::Release { to: Some(tool), .. } = request {
        out.insert("to", tool.name().to_owned());
    }
    if let Request::Pin { deployment, .. } = request {
        out.insert("deployment", deployment.clone());
    }
    if let Request::Verify { what, .. } = request {
        out.insert("what", what.iter().map(|s| s.name()).collect::<Vec<_>>().join(" "));
    }
    if let Request::PullBound { only: Some(only), .. } = request {
        out.insert("image", only.reference.to_string());
        out.insert("digest", only.digest.to_string());
    }
    if let Request::EditDerivation { edit, .. } = request {
        out.insert("drop-in", edit::NAME.to_owned());
        for what in What::ALL {
            let items = edit.wishes().iter().filter(|(w, _)| w == what).map(|(_, item)| item.as_str());
            let items = items.collect::<Vec<_>>().join(" ");
            if !items.is_empty() {
                out.insert(what.name(), items);
            }
        }
        if edit.reset_all() {
            out.insert(RESET_ALL, "true".to_owned());
        }
    }
    let Some(options) = request.options() else { return out };
    if let Some(digest) = &options.require_digest {
        out.insert("digest", digest.to_string());
    }
    if !options.kargs.is_empty() {
        out.insert("kargs", options.kargs.join(" "));
    }
    if let Some(stateroot) = &options.stateroot {
        out.insert("stateroot", stateroot.clone());
    }
    out.extend(flags(options).into_iter().filter(|(_, on)| *on).map(|(key, _)| (key, "true".to_owned())));
    out
}

/// `Job.Result`.
pub fn result(result: Option<&JobResult>) -> Out {
    let Some(r) = result else { return Out::new() };
    let mut out = Out::from([
        ("changed".to_owned(), Value::from(r.changed)),
        ("summary".to_owned(), Value::from(r.summary.clone())),
        ("deployment".to_owned(), path_value(r.deployment.as_deref())),
        (
            "discarded".to_owned(),
            Value::from(
                r.discarded.iter().map(|d| super::path::deployment(d).into_inner()).collect::<Vec<_>>(),
            ),
        ),
        ("notes".to_owned(), Value::from(r.notes.clone())),
    ]);
    if let Some(digest) = &r.digest {
        out.insert("digest".into(), Value::from(digest.to_string()));
    }
    if let Some(plan) = &r.plan {
        let text = serde_json::to_string(plan).expect("a plan is plain data");
        out.insert("plan".into(), Value::from(text));
    }
    if let Some(handover) = &r.handover {
        let text = serde_json::to_string(handover).expect("a handover is plain data");
        out.insert("handover".into(), Value::from(text));
    }
    if let Some(verified) = &r.verified {
        let text = serde_json::to_string(verified).expect("what was verified is plain data");
        out.insert("verified".into(), Value::from(text));
    }
    out
}

fn path_value(id: Option<&str>) -> Value<'static> {
    Value::from(super::path::deployment_or_none(id).into_inner())
}

/// Reads `Job.Result` back.
pub fn parse_result(dict: &Dict) -> JobResult {
    let text = |key: &str| dict.get(key).and_then(|v| <&str>::try_from(v).ok()).map(str::to_owned);
    let list = |key: &str| dict.get(key).and_then(|v| strings(key, v).ok()).unwrap_or_default();
    let id = |v: &Value<'_>| match v {
        Value::ObjectPath(p) => super::path::deployment_id(p.as_str()),
        _ => None,
    };
    JobResult {
        changed: dict.get("changed").and_then(|v| bool::try_from(v).ok()).unwrap_or_default(),
        summary: text("summary").unwrap_or_default(),
        deployment: dict.get("deployment").and_then(|v| id(v)),
        digest: text("digest").and_then(|d| d.parse().ok()),
        discarded: match dict.get("discarded").map(|v| &**v) {
            Some(Value::Array(a)) => a.iter().filter_map(id).collect(),
            _ => Vec::new(),
        },
        notes: list("notes"),
        plan: text("plan").and_then(|plan| serde_json::from_str(&plan).ok()),
        handover: text("handover").and_then(|handover| serde_json::from_str(&handover).ok()),
        verified: text("verified").and_then(|verified| serde_json::from_str(&verified).ok()),
    }
}

/// `Job.ErrorDetails`: the facts, and the hint under its own key.
pub fn failure(failure: Option<&Failure>) -> Out {
    let Some(f) = failure else { return Out::new() };
    let mut out: Out = f.details.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
    if !f.hint.is_empty() {
        out.insert("hint".into(), Value::from(f.hint.clone()));
    }
    out
}

/// `Manager.LastOutcome`.
pub fn outcome(outcome: Option<&Outcome>) -> Out {
    let Some(o) = outcome else { return Out::new() };
    Out::from([
        ("ok".to_owned(), Value::from(o.ok)),
        ("checksum".to_owned(), Value::from(o.checksum.clone())),
        ("digest".to_owned(), Value::from(o.digest.as_ref().map_or_else(String::new, Digest::to_string))),
        ("phase".to_owned(), Value::from(o.phase.clone())),
        ("error".to_owned(), Value::from(o.message.clone())),
    ])
}

/// `Deployment.Origin`.
pub fn origin(deployment: &Deployment) -> Out {
    let mut out = Out::new();
    match &deployment.image {
        Some(image) => {
            out.insert("kind".into(), Value::from("image"));
            out.insert("image".into(), Value::from(image.to_string()));
            out.insert("transport".into(), Value::from(image.transport.prefix()));
            if let Some(tag) = image.tag() {
                out.insert("tag".into(), Value::from(tag.to_owned()));
            }
        }
        None => {
            out.insert("kind".into(), Value::from("foreign"));
        }
    }
    if let Some(digest) = &deployment.digest {
        out.insert("digest".into(), Value::from(digest.to_string()));
    }
    if !deployment.incompatible.is_empty() {
        out.insert("incompatible".into(), Value::from(deployment.incompatible.clone()));
    }
    out
}

/// `Deployment.Verification`.
pub fn verification(deployment: &Deployment) -> Out {
    let Some(v) = &deployment.verification else { return Out::new() };
    let one = |r: &Requirement| {
        Out::from([
            ("type".to_owned(), Value::from(r.kind.clone())),
            ("keys".to_owned(), Value::from(r.keys.clone())),
            ("identities".to_owned(), Value::from(r.identities.clone())),
        ])
    };
    Out::from([
        ("level".to_owned(), Value::from(v.level.name())),
        ("scope".to_owned(), Value::from(v.scope.clone())),
        ("requirements".to_owned(), Value::from(v.requirements.iter().map(one).collect::<Vec<_>>())),
    ])
}

/// `BoundImage.Verification`.
pub fn bound_verification(bound: &Bound) -> Out {
    let one = |d: &Damage| {
        let part = match d.part {
            Part::Image => "image",
            Part::Manifest => "manifest",
            Part::Config => "config",
            Part::Layer => "layer",
        };
        let mut out = Out::from([
            ("part".to_owned(), Value::from(part)),
            ("digest".to_owned(), Value::from(d.digest.clone())),
            ("why".to_owned(), Value::from(d.why.clone())),
        ]);
        if let Some(path) = &d.path {
            out.insert("path".into(), Value::from(path.clone()));
        }
        out
    };
    Out::from([
        ("checked".to_owned(), Value::from(bound.checked)),
        ("damage".to_owned(), Value::from(bound.damage.iter().map(one).collect::<Vec<_>>())),
    ])
}

/// `Deployment.Derivation`.
pub fn derivation(deployment: &Deployment) -> Out {
    let d = &deployment.derivation;
    let names: Vec<String> = d.drop_ins.iter().map(|s| s.name.clone()).collect();
    let mut out = Out::from([
        ("drop-ins".to_owned(), Value::from(names)),
        ("kept-local".to_owned(), Value::from(d.kept_local.clone())),
    ]);
    if let Some(digest) = &d.input_digest {
        out.insert("input-digest".into(), Value::from(digest.to_string()));
    }
    out
}

/// `Deployment.Packages`.
pub fn packages(deployment: &Deployment) -> Vec<Out> {
    let one = |p: &PackageRequest| {
        let asked = match p.asked {
            Asked::Install => "install",
            Asked::Remove => "remove",
            Asked::Replace => "replace",
            Asked::Extension => "extension",
            Asked::Layer => "layer",
        };
        let outcome = match p.outcome {
            deviation::Outcome::Applied => "applied",
            deviation::Outcome::Redundant => "redundant",
        };
        let mut out = Out::from([
            ("request".to_owned(), Value::from(p.request.clone())),
            ("asked".to_owned(), Value::from(asked)),
            ("outcome".to_owned(), Value::from(outcome)),
            ("drop-ins".to_owned(), Value::from(p.owners.clone())),
        ]);
        if let Some(version) = &p.version {
            out.insert("version".into(), Value::from(version.clone()));
        }
        out
    };
    deployment.derivation.packages.iter().map(one).collect()
}

/// What `Manager.Diff` answers.
pub fn between(between: &Between) -> Out {
    fn records<T: serde::Serialize>(all: &[T]) -> Vec<Out> {
        let record = |one: &T| match serde_json::to_value(one) {
            Ok(serde_json::Value::Object(fields)) => fields
                .into_iter()
                .filter_map(|(key, value)| Some((key, Value::from(value.as_str()?.to_owned()))))
                .collect(),
            _ => Out::new(),
        };
        all.iter().map(record).collect()
    }
    Out::from([
        ("declared".to_owned(), Value::from(records(&between.declared))),
        ("packages".to_owned(), Value::from(records(&between.packages))),
    ])
}

/// The same, as a client reads it. What it does not know of is left out.
pub fn to_between(answer: &Dict) -> Between {
    fn records<T: serde::de::DeserializeOwned>(answer: &Dict, key: &str) -> Vec<T> {
        let Some(value) = answer.get(key).and_then(|value| value.try_clone().ok()) else { return Vec::new() };
        let all = Vec::<HashMap<String, String>>::try_from(value).unwrap_or_default();
        all.iter().filter_map(|one| serde_json::from_value(serde_json::to_value(one).ok()?).ok()).collect()
    }
    Between { declared: records(answer, "declared"), packages: records(answer, "packages") }
}

/// What `Deployment.ExportLock` answers.
pub fn lock(deployment: &str, lock: Option<Lock>) -> Result<String> {
    let Some(lock) = lock else {
        let why = format!("{deployment} has no lock: none of its packages is from a drop-in");
        return Err(
            Error::new(ErrorKind::WrongState, why).hint("see which deployment has packages: osctl status -v")
        );
    };
    let text = String::from_utf8(lock.to_bytes()).expect("JSON is UTF-8");
    if text.len() > LOCK_LIMIT {
        let why = format!("the lock of {deployment} has {} bytes, too many for the bus", text.len());
        return Err(Error::new(ErrorKind::Unsupported, why)
            .hint("it is the file /usr/lib/osctl/derive.lock of the deployment"));
    }
    Ok(text)
}

/// `Deployment.Kargs`.
pub fn kargs(deployment: &Deployment) -> Vec<Out> {
    let one = |k: &crate::model::status::OwnedKarg| {
        Out::from([
            ("arg".to_owned(), Value::from(k.arg.clone())),
            ("owner".to_owned(), Value::from(k.owner.clone())),
        ])
    };
    deployment.derivation.kargs.iter().map(one).collect()
}

/// Reads an image reference of a caller. It limits its length itself.
pub fn image(text: &str) -> Result<ImageRef> {
    text.parse()
}

#[cfg(test)]
mod tests;
