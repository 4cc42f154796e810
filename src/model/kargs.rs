//! Kernel arguments and their owners.
//!
//! ```text
//! entry of the merge deployment ── what we appended + what we deleted ──► local
//! local + kargs.d of the target + drop-ins' append ── drop-ins' delete ──► new entry, and who owns what
//! ```
//!
//! Arguments are compared as whole text: `console=tty0` and `console=ttyS0` are two, and deleting `quiet` does
//! not delete `quiet=1`. What somebody else wrote into the entry becomes local.

use super::error::{Error, ErrorKind, Result};
use super::manifest::{Manifest, Owner};

/// These say which root and which deployment boots: libostree and the installation own them.
const REFUSED: [&str; 3] = ["root", "ostree", "rootflags"];
/// The only version of [`Owned`] so far.
const OWNED_VERSION: u32 = 1;

/// Why an argument is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub hint: Option<&'static str>,
}

/// Checks one argument of a drop-in or an image: its form, and that it is theirs to set.
pub fn check(arg: &str) -> Result<(), Refused> {
    form(arg)?;
    let Some(key) = REFUSED.iter().find(|r| **r == key(arg)) else { return Ok(()) };
    Err(Refused {
        message: format!("`{key}=` belongs to the installation and to libostree"),
        hint: Some("change it with the tools that installed the host"),
    })
}

/// The kernel strips quotes around the whole argument as well (next_arg in lib/cmdline.c).
fn key(arg: &str) -> &str {
    arg.trim_start_matches('"').split('=').next().unwrap_or_default()
}

/// Checks that this is one argument, `key` or `key=value`, and nothing else to a boot entry or the kernel.
pub fn form(arg: &str) -> Result<(), Refused> {
    let refuse = |message: String, hint| Err(Refused { message, hint });
    if arg.is_empty() {
        return refuse("the argument is empty".into(), None);
    }
    if arg.chars().any(char::is_control) {
        return refuse(format!("`{arg}` holds a control character"), None);
    }
    let mut quoted = false;
    for c in arg.chars() {
        quoted ^= c == '"';
        if c.is_whitespace() && !quoted {
            return refuse(
                format!("`{arg}` holds a space outside double quotes"),
                Some("write one argument per list entry, or key=\"a b\""),
            );
        }
    }
    if quoted {
        return refuse(format!("`{arg}` has an open double quote"), None);
    }
    if key(arg).is_empty() {
        return refuse(format!("`{arg}` has no name"), None);
    }
    if arg == "--" {
        return refuse("`--` would give everything behind it to init".into(), None);
    }
    Ok(())
}

/// An argument from a `kargs.d` directory of the target tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorKarg {
    /// The file, `/usr/lib/bootc/kargs.d/10-console.toml`.
    pub owner: Owner,
    /// The argument.
    pub arg: String,
    /// Whether it is deleted, and not appended.
    pub delete: bool,
}

/// An argument that we appended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Appended {
    /// The argument.
    pub arg: String,
    /// The drop-in or the kargs.d file.
    pub owner: Owner,
}

/// A local argument that we deleted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deleted {
    /// The argument.
    pub arg: String,
    /// The drop-in.
    pub owner: Owner,
    /// Where it stood among the local arguments, to put it back there.
    pub index: usize,
}

/// What we did to an entry's arguments. Stored in the deployment's origin, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owned {
    version: u32,
    /// Arguments that are in the entry because of us.
    pub appended: Vec<Appended>,
    /// Local arguments that are not in the entry because of us, by index.
    pub deleted: Vec<Deleted>,
}

impl Default for Owned {
    fn default() -> Self {
        Owned { version: OWNED_VERSION, appended: Vec::new(), deleted: Vec::new() }
    }
}

impl Owned {
    /// Reads what [`Owned::to_json`] wrote; a version or key that is not ours is `Unsupported`.
    pub fn from_json(text: &str) -> Result<Owned> {
        let refuse = |e: String| {
            Error::new(ErrorKind::Unsupported, format!("the record of kernel arguments cannot be read: {e}"))
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| refuse(e.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(v) if v == u64::from(OWNED_VERSION) => {}
            version => return Err(refuse(format!("version {version:?} is not {OWNED_VERSION}"))),
        }
        serde_json::from_value(value).map_err(|e| refuse(e.to_string()))
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialise")
    }

    /// Whether the entry is as its administrator wrote it.
    pub fn is_empty(&self) -> bool {
        self.appended.is_empty() && self.deleted.is_empty()
    }
}

/// The arguments of a new entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Computed {
    /// All of them, in order: local ones, then vendor, then drop-ins.
    pub args: Vec<String>,
    /// Which of them are ours, and which we left out.
    pub owned: Owned,
}

/// Computes the arguments of a new entry.
///
/// `current` are those of the merge deployment's entry and `previous` what we had done to them. An argument
/// that is local already is not appended again and stays local. Fails if a vendor argument or one of the
/// manifest is refused by [`check`].
pub fn compute(
    current: &[String],
    previous: &Owned,
    vendor: &[VendorKarg],
    manifest: &Manifest,
) -> Result<Computed> {
    let wanted = vendor
        .iter()
        .filter(|v| !v.delete)
        .map(|v| (&v.arg, &v.owner))
        .chain(manifest.kargs_append.iter().map(|k| (&k.arg, &k.owner)));
    let deletes = vendor
        .iter()
        .filter(|v| v.delete)
        .map(|v| (&v.arg, &v.owner))
        .chain(manifest.kargs_delete.iter().map(|k| (&k.arg, &k.owner)));
    for (arg, owner) in wanted.clone().chain(deletes.clone()) {
        check(arg).map_err(|r| invalid(owner, r))?;
    }
    // What a drop-in of the host appends, an image does not take away.
    let of_host = |arg: &str| manifest.kargs_append.iter().any(|k| k.arg == arg);
    let by_host = |arg: &str| manifest.kargs_delete.iter().any(|k| k.arg == arg);
    let deleter = |arg: &str| -> Option<&Owner> {
        let (_, by) = deletes.clone().find(|(deleted, _)| *deleted == arg)?;
        (by_host(arg) || !of_host(arg)).then_some(by)
    };

    let local = local(current, previous);
    let mut owned = Owned::default();
    for (arg, owner) in wanted {
        let present = local.contains(arg) || owned.appended.iter().any(|a| a.arg == *arg);
        if !present && deleter(arg).is_none() {
            owned.appended.push(Appended { arg: arg.clone(), owner: owner.clone() });
        }
    }
    let mut args = Vec::with_capacity(local.len() + owned.appended.len());
    for (index, arg) in local.into_iter().enumerate() {
        match deleter(&arg) {
            Some(by) => owned.deleted.push(Deleted { arg, owner: by.clone(), index }),
            None => args.push(arg),
        }
    }
    args.extend(owned.appended.iter().map(|a| a.arg.clone()));
    Ok(Computed { args, owned })
}

/// The administrator's arguments: without what we appended, with what we had deleted.
fn local(current: &[String], previous: &Owned) -> Vec<String> {
    let mut local = current.to_vec();
    // Ours stand behind; an equal one in front is somebody else's.
    for ours in previous.appended.iter().rev() {
        if let Some(at) = local.iter().rposition(|a| *a == ours.arg) {
            local.remove(at);
        }
    }
    // One that somebody wrote back by hand needs no restoring.
    let mut back = local.clone();
    let mut restore: Vec<&Deleted> = previous
        .deleted
        .iter()
        .filter(|gone| match back.iter().position(|a| *a == gone.arg) {
            Some(at) => {
                back.remove(at);
                false
            }
            None => true,
        })
        .collect();
    restore.sort_by_key(|gone| gone.index);
    for gone in restore {
        local.insert(gone.index.min(local.len()), gone.arg.clone());
    }
    local
}

fn invalid(owner: &str, refused: Refused) -> Error {
    let error =
        Error::new(ErrorKind::InvalidDropIn, format!("{owner}: kernel arguments: {}", refused.message))
            .detail("file", owner)
            .detail("key", "kargs");
    match refused.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Where an image built by osctl has the arguments that its drop-ins append: bootc reads them as well.
pub const BUILT_APPEND: &str = "/usr/lib/bootc/kargs.d/90-osctl-derived.toml";
/// Where it has those that they delete, for which bootc has no word.
pub const BUILT_DELETE: &str = "/usr/lib/osctl/kargs.d/90-osctl-derived.toml";

/// The text of a kargs.d file with one list.
pub fn built(list: &str, args: &[String]) -> String {
    let array = toml::Value::from(args.to_vec());
    format!("# Of the drop-ins that this image was built with. Written by osctl.\n{list} = {array}\n")
}

/// A kargs.d file, in bootc's documented format.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct KargsFile {
    kargs: Vec<String>,
    match_architectures: Option<Vec<String>>,
}

/// The same in our own directory, where arguments can be deleted as well.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OurKargsFile {
    #[serde(default)]
    kargs: Vec<String>,
    #[serde(default)]
    delete: Vec<String>,
    match_architectures: Option<Vec<String>>,
}

impl From<KargsFile> for OurKargsFile {
    fn from(KargsFile { kargs, match_architectures }: KargsFile) -> Self {
        OurKargsFile { kargs, delete: Vec::new(), match_architectures }
    }
}

/// Reads a kargs.d file: `kargs = [...]`, optionally `match-architectures = [...]`, and in `/usr/lib/osctl` also
/// `delete = [...]`.
///
/// `arch` is the target's, as Rust and the kernel call it (`x86_64`). An entry may hold several arguments, divided
/// by spaces outside quotes. Fails with `InvalidDropIn` and the file, line and column.
pub fn parse_vendor(path: &str, text: &str, arch: &str) -> Result<Vec<VendorKarg>> {
    let file = match path.starts_with("/usr/lib/osctl/") {
        true => toml::from_str(text),
        false => toml::from_str::<KargsFile>(text).map(Into::into),
    };
    let file: OurKargsFile = file.map_err(|e: toml::de::Error| {
        let before = e.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Error::new(ErrorKind::InvalidDropIn, format!("{path}:{line}:{column}: {}", e.message()))
            .detail("file", path)
            .detail("line", line)
            .detail("column", column)
    })?;
    if file.match_architectures.is_some_and(|list| !list.iter().any(|a| a == arch)) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (list, delete) in [(&file.kargs, false), (&file.delete, true)] {
        for arg in list.iter().flat_map(|entry| split(entry)) {
            check(&arg).map_err(|r| invalid(path, r))?;
            found.push(VendorKarg { owner: path.to_owned(), arg, delete });
        }
    }
    Ok(found)
}

/// Splits a command line at spaces outside double quotes, as the kernel does.
pub fn split(line: &str) -> Vec<String> {
    let mut args = Vec::new();
    let mut arg = String::new();
    let mut quoted = false;
    for c in line.chars() {
        quoted ^= c == '"';
        if c.is_whitespace() && !quoted {
            args.push(std::mem::take(&mut arg));
        } else {
            arg.push(c);
        }
    }
    args.push(arg);
    args.retain(|a| !a.is_empty());
    args
}

#[cfg(test)]
mod tests;
