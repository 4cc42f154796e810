//! Images that a derivation is made with beside the base: layers on top of it, and extensions with packages for it.

use super::image::{Digest, ImageRef};
use super::manifest::Owner;
use super::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// An image whose content is put on top of the base, below everything else that drop-ins declare.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LayerImage {
    /// The reference, with what is to be filled in: see [`expand`].
    pub image: String,
    /// The drop-in that declares it.
    pub owner: Owner,
    /// Whether it may replace files of the base.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub overwrite: bool,
}

/// What an image says of itself that references can be made of.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its version.
    pub version: Option<&'a str>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// The reference that a template stands for: `{version}` and `{label:KEY}` are of the base image.
///
/// Fails with `InvalidDropIn` where the base does not say it, naming the drop-in.
pub fn expand(template: &str, owner: &str, base: Facts<'_>) -> Result<ImageRef> {
    let wrong = |why: String| {
        Error::new(ErrorKind::InvalidDropIn, format!("{owner}: {template}: {why}; nothing was staged"))
            .detail("drop-in", owner)
    };
    let text = fill(template, |key| {
        let found = match key.strip_prefix("label:") {
            Some(label) => base.labels.get(label).map(String::as_str),
            None => base.version,
        };
        found.map(str::to_owned).ok_or_else(|| format!("the base image has no {}", shown(key)))
    });
    let text = text.map_err(|why| wrong(why).hint("name the image in full, or take a base that says it"))?;
    text.parse().map_err(|e: Error| wrong(e.to_string()))
}

/// Says what is wrong with a template, whatever a base says of itself.
pub fn check(template: &str) -> Result<(), String> {
    // A tag and a digest may hold less than a version; which it is, is known when there is a base.
    let text = fill(template, |_| Ok("x".to_owned()))?;
    text.parse::<ImageRef>().map(drop).map_err(|e| e.to_string())
}

/// Replaces what stands in braces.
fn fill(template: &str, value: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let (mut text, mut rest) = (String::new(), template);
    while let Some((before, behind)) = rest.split_once('{') {
        let (key, after) = behind.split_once('}').ok_or("a `{` has no `}`")?;
        if key != "version" && key.strip_prefix("label:").is_none_or(str::is_empty) {
            return Err(format!("`{{{key}}}` is neither {{version}} nor {{label:KEY}}"));
        }
        text.push_str(before);
        text.push_str(&value(key)?);
        rest = after;
    }
    if rest.contains('}') {
        return Err("a `}` has no `{`".into());
    }
    Ok(text + rest)
}

fn shown(key: &str) -> String {
    match key.strip_prefix("label:") {
        Some(label) => format!("label {label}"),
        None => key.to_owned(),
    }
}

/// The digests of images, by their references as they were asked for.
pub type Digests = BTreeMap<String, Digest>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_made_of_what_the_base_says_of_itself() {
        let labels =
            [("stream".to_owned(), "stable".to_owned()), ("bad".to_owned(), "a b".to_owned())].into();
        let base = Facts { version: Some("40.2"), labels: &labels };
        let silent = Facts { version: None, ..base };
        for (template, base, expected) in [
            ("r.io/ext:{version}", base, Ok("docker://r.io/ext:40.2")),
            ("r.io/{label:stream}/ext:{version}", base, Ok("docker://r.io/stable/ext:40.2")),
            ("r.io/ext:1", silent, Ok("docker://r.io/ext:1")),
            ("r.io/ext:{version}", silent, Err("the base image has no version")),
            ("r.io/ext:{label:x}", base, Err("the base image has no label x")),
            ("r.io/ext:{label:bad}", base, Err("contains the character ' '")),
        ] {
            let found = expand(template, "50-a.yaml", base);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected, "{template}"),
                (Err(error), Err(why)) => {
                    assert_eq!(error.kind, ErrorKind::InvalidDropIn);
                    let text = error.to_string();
                    assert!(text.starts_with("50-a.yaml: ") && text.contains(why), "{text}");
                }
                (found, _) => panic!("{template}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_template_that_can_be_no_reference_is_refused_without_a_base() {
        for (template, why) in [
            ("r.io/ext:{version}", None),
            ("oci:/srv/{label:a}", None),
            ("", Some("has no name")),
            ("r.io/{arch}", Some("`{arch}` is neither {version} nor {label:KEY}")),
            ("r.io/{label:}", Some("`{label:}` is neither")),
            ("r.io/a{version", Some("a `{` has no `}`")),
            ("r.io/a}", Some("a `}` has no `{`")),
            ("ftp://x/y", Some("unknown transport")),
            ("user:secret@r.io/a", Some("like a login")),
        ] {
            match (check(template), why) {
                (Ok(()), None) => {}
                (Err(error), Some(why)) => assert!(error.contains(why), "{template}: {error}"),
                (found, _) => panic!("{template}: {found:?}"),
            }
        }
    }
}
