//! Quadlet files, as far as they decide which image podman will want.
//!
//! The reading follows systemd.syntax(7) and podman's parser: `\` continues a line, `#` and `;` comment (also between
//! continued lines), of repeated keys the last counts, an empty value resets.

use super::bound::{BoundSpec, refused, refused_as, registry_reference};
use super::{Error, ErrorKind, Result};

/// The two types of files that can be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `x.container`
    Container,
    /// `x.image`
    Image,
}

impl Type {
    /// The type that a file name says, or an error that completes the sentence `FILE: ...`.
    pub fn of_name(name: &str) -> std::result::Result<Type, &'static str> {
        match name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map(|(_, suffix)| suffix) {
            Some("container") => Ok(Type::Container),
            Some("image") => Ok(Type::Image),
            Some("build") => Err("a .build file is built on the host, so there is no image to bind"),
            Some("kube") => Err("binding a .kube file is not supported by this version"),
            _ => Err("does not end in .container or .image"),
        }
    }

    fn section(self) -> &'static str {
        match self {
            Type::Container => "Container",
            Type::Image => "Image",
        }
    }
}

/// What a quadlet file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wants {
    /// An image of a registry.
    Image(BoundSpec),
    /// What another file, `x.image`, asks for; with the line that says so.
    File(String, usize),
}

/// Keys of `[Image]` that change what is pulled in a way that we cannot do yet.
const UNSUPPORTED: [&str; 8] =
    ["AllTags", "Arch", "CertDir", "Creds", "DecryptionKey", "ImageTag", "OS", "Variant"];
/// Keys of `[Image]` that do not change what is pulled, or that are handled.
const KNOWN: [&str; 9] = [
    "AuthFile",
    "ContainersConfModule",
    "GlobalArgs",
    "Image",
    "PodmanArgs",
    "Policy",
    "Retry",
    "RetryDelay",
    "ServiceName",
];
/// Arguments of podman that change which image is found, or how it is pulled.
const ARGUMENTS: [&str; 17] = [
    "--arch",
    "--authfile",
    "--cert-dir",
    "--connection",
    "--creds",
    "--decryption-key",
    "--os",
    "--platform",
    "--remote",
    "--root",
    "--rootfs",
    "--storage-driver",
    "--tls-verify",
    "--url",
    "--variant",
    "-r",
    "-c",
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    file: String,
    line: usize,
    section: String,
    key: String,
    value: String,
}

/// A unit file with the drop-ins that were merged into it.
#[derive(Debug, Clone)]
pub struct Unit {
    file: String,
    entries: Vec<Entry>,
}

impl Unit {
    /// Parses a unit file; `file` is its path, for messages.
    pub fn parse(text: &str, file: &str) -> Result<Unit> {
        Ok(Unit { file: file.to_owned(), entries: entries(text, file)? })
    }

    /// Adds a drop-in: its keys come after all the others.
    pub fn merge(&mut self, text: &str, file: &str) -> Result<()> {
        self.entries.extend(entries(text, file)?);
        Ok(())
    }

    /// What the unit asks for. `source` is the file that the administrator would look for: the link.
    pub fn wants(&self, kind: Type, source: &str) -> Result<Wants> {
        let section = kind.section();
        for entry in self.entries.iter().filter(|e| e.section == section) {
            let fail = |why: String| refused(&entry.file, Some(entry.line), why).detail("key", &entry.key);
            match (kind, entry.key.as_str()) {
                (Type::Image, "TLSVerify") => {}
                (Type::Image, key) if UNSUPPORTED.contains(&key) => {
                    return Err(fail(format!("{key}= is not supported by this version")));
                }
                (Type::Image, key) if !KNOWN.contains(&key) => {
                    return Err(fail(format!("unknown key {key}=")));
                }
                (
                    Type::Container,
                    key @ ("AuthFile" | "TLSVerify" | "Creds" | "CertDir" | "Arch" | "OS" | "Variant"),
                ) => {
                    return Err(fail(format!("{key}= is not a key of [Container]"))
                        .hint("put it into an .image file and write Image=NAME.image"));
                }
                (_, "GlobalArgs" | "PodmanArgs") => harmless(entry)?,
                _ => {}
            }
        }
        let Some(image) = self.last(section, "Image").filter(|e| !e.value.is_empty()) else {
            return Err(refused(&self.file, None, format!("has no Image= in [{section}]")));
        };
        let value = literal(image)?;
        let at = |why: String| refused(&image.file, Some(image.line), why).detail("key", "Image");
        if kind == Type::Container && value.ends_with(".image") && !value.contains('/') {
            return Ok(Wants::File(value, image.line));
        }
        if value.ends_with(".build") && !value.contains('/') {
            return Err(at(format!(
                "Image={value}: a .build file is built on the host, so there is no image to bind"
            )));
        }
        let reference = registry_reference(&value).map_err(|why| at(format!("image {why}")))?;
        let mut spec = BoundSpec::new(reference, source);
        if kind == Type::Image {
            if let Some(auth) = self.last(section, "AuthFile").filter(|e| !e.value.is_empty()) {
                let path = literal(auth)?;
                if !path.starts_with('/') {
                    return Err(refused(
                        &auth.file,
                        Some(auth.line),
                        format!("AuthFile={path} is not an absolute path"),
                    ));
                }
                spec.auth_file = Some(path);
            }
            if let Some(tls) = self.last(section, "TLSVerify").filter(|e| !e.value.is_empty()) {
                spec.tls_verify = Some(match tls.value.to_ascii_lowercase().as_str() {
                    "1" | "yes" | "true" | "on" => true,
                    "0" | "no" | "false" | "off" => false,
                    _ => {
                        return Err(refused(
                            &tls.file,
                            Some(tls.line),
                            format!("TLSVerify={} is neither true nor false", tls.value),
                        ));
                    }
                });
            }
        }
        Ok(Wants::Image(spec))
    }

    fn last(&self, section: &str, key: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|e| e.section == section && e.key == key)
    }
}

fn entries(text: &str, file: &str) -> Result<Vec<Entry>> {
    let comment = |l: &str| l.trim_start().starts_with(['#', ';']);
    let mut found = Vec::new();
    let mut section: Option<String> = None;
    let mut lines = text.lines().enumerate();
    while let Some((number, first)) = lines.next() {
        let at = number + 1;
        if first.trim().is_empty() || comment(first) {
            continue;
        }
        let mut line = first.trim_end().to_owned();
        while let Some(joined) = line.strip_suffix('\\') {
            line = format!("{joined} ");
            // Comments between continued lines are skipped, systemd.syntax(7).
            match lines.by_ref().find(|(_, l)| !comment(l)) {
                Some((_, next)) => line.push_str(next.trim()),
                None => break,
            }
        }
        let line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.strip_suffix(']').filter(|n| !n.is_empty());
            section =
                Some(name.ok_or_else(|| refused(file, Some(at), "the section has no closing ]"))?.to_owned());
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(refused(file, Some(at), format!("{line:?} is neither [Section] nor Key=value")));
        };
        let Some(section) = &section else {
            return Err(refused(file, Some(at), "there is a key before the first [Section]"));
        };
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        found.push(Entry {
            file: file.to_owned(),
            line: at,
            section: section.clone(),
            key: key.trim().to_owned(),
            value: value.to_owned(),
        });
    }
    Ok(found)
}

/// The value with `%%` as `%`. Any other `%` is a specifier, which only systemd on the booted host can expand.
fn literal(entry: &Entry) -> Result<String> {
    let mut text = String::new();
    let mut chars = entry.value.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('%') => text.push('%'),
            other => {
                let specifier = format!("%{}", other.map(String::from).unwrap_or_default());
                return Err(refused_as(
                    ErrorKind::Specifier,
                    &entry.file,
                    Some(entry.line),
                    format!(
                        "{}= uses the specifier {specifier}, whose value is not known before boot",
                        entry.key
                    ),
                )
                .hint("write the value itself; %% is a literal %"));
            }
        }
    }
    Ok(text)
}

/// Refuses arguments for podman that would make it look for another image than the one we pull.
fn harmless(entry: &Entry) -> Result<()> {
    let fail = |argument: &str| -> Error {
        refused(
            &entry.file,
            Some(entry.line),
            format!("{}={argument} changes the pull, which is not supported by this version", entry.key),
        )
    };
    let mut words = entry.value.split_whitespace().map(|w| w.trim_matches(['"', '\'']));
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
        if name == "--storage-opt" {
            let option = value.or_else(|| words.next()).unwrap_or_default();
            if !option.starts_with("additionalimagestore=") && !option.starts_with("overlay.") {
                return Err(fail(&format!("--storage-opt={option}")));
            }
        } else if entry.key == "GlobalArgs" && ARGUMENTS.contains(&name)
            || ARGUMENTS[..ARGUMENTS.len() - 2].contains(&name)
        {
            return Err(fail(name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
