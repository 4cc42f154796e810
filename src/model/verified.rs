//! What checking stored content found, and what became of it.

use super::image::Digest;
use super::text::printable;
use std::fmt;

/// What part of an image is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The image as a whole: it is not there.
    Image,
    /// Its manifest.
    Manifest,
    /// Its configuration.
    Config,
    /// One of its layers.
    Layer,
}

/// One thing that is not as it was published.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Damage {
    /// The part.
    pub part: Part,
    /// The digest that the part must have: of a layer that of its uncompressed stream.
    pub digest: String,
    /// The file in the layer, if it is one.
    pub path: Option<String>,
    /// What is wrong.
    pub why: String,
}

impl Damage {
    /// Something about a whole part.
    pub fn of(part: Part, digest: &Digest, why: impl Into<String>) -> Damage {
        Damage { part, digest: digest.to_string(), path: None, why: printable(&why.into()) }
    }

    /// Something about one file of a layer. Its name is the image's: it is made fit for people.
    pub fn of_file(layer: &Digest, path: &str, why: impl Into<String>) -> Damage {
        Damage { path: Some(printable(path)), ..Damage::of(Part::Layer, layer, why) }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Image => "image",
            Part::Manifest => "manifest",
            Part::Config => "configuration",
            Part::Layer => "layer",
        };
        write!(f, "{part} {}", self.digest)?;
        if let Some(path) = &self.path {
            write!(f, ", {path}:")?;
        }
        write!(f, " {}", self.why)
    }
}

/// What became of a checked image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All of it has its digests.
    Whole,
    /// It was missing or damaged, and is whole again.
    Repaired,
    /// It is not in the store.
    Missing,
    /// It is in the store, and not as it was published.
    Damaged,
}

/// One image that was checked.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// The reference.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// What became of it.
    pub outcome: Outcome,
    /// What was found.
    pub damage: Vec<Damage>,
    /// Why it was not repaired, if that was tried.
    pub failure: Option<String>,
}

/// What a job of the kind `verify` found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Verified {
    /// The bound images of all deployments, sorted by reference.
    pub images: Vec<Checked>,
}

impl Verified {
    /// How many images ended like this.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.images.iter().filter(|i| i.outcome == outcome).count()
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let mut text = match self.images.len() {
            1 => "Checked 1 bound image".to_owned(),
            n => format!("Checked {n} bound images"),
        };
        for (outcome, what) in
            [(Outcome::Repaired, "repaired"), (Outcome::Missing, "missing"), (Outcome::Damaged, "damaged")]
        {
            let count = self.count(outcome);
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        if self.count(Outcome::Whole) == self.images.len() && !self.images.is_empty() {
            text.push_str(", all whole");
        }
        text.push('.');
        text
    }

    /// What was found, one line each.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for image in self.images.iter().filter(|i| i.outcome != Outcome::Whole) {
            let outcome = match image.outcome {
                Outcome::Whole => "whole",
                Outcome::Repaired => "repaired",
                Outcome::Missing => "missing",
                Outcome::Damaged => "damaged",
            };
            lines.push(format!("{} is {outcome}", image.reference));
            lines.extend(image.damage.iter().map(|d| format!("  {d}")));
            lines.extend(image.failure.iter().map(|why| format!("  not repaired: {why}")));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(reference: &str, outcome: Outcome, damage: Vec<Damage>) -> Checked {
        let digest = Digest::of(reference.as_bytes());
        Checked { reference: reference.into(), digest, outcome, damage, failure: None }
    }

    #[test]
    fn the_summary_counts_what_is_not_whole() {
        let layer = Digest::of(b"layer");
        let file = Damage::of_file(&layer, "/bin/\u{1b}[2Jx", "has 5 bytes, not 9");
        assert_eq!(file.to_string(), format!("layer {layer}, /bin/\\u{{1b}}[2Jx: has 5 bytes, not 9"));
        let whole = checked("a:1", Outcome::Whole, Vec::new());
        let mut verified = Verified { images: vec![whole] };
        assert_eq!(verified.summary(), "Checked 1 bound image, all whole.");
        assert_eq!(verified.lines(), [""; 0]);
        verified.images.push(checked("b:1", Outcome::Repaired, vec![file.clone()]));
        verified.images.push(checked("c:1", Outcome::Damaged, Vec::new()));
        verified.images[2].failure = Some("the registry is down".into());
        assert_eq!(verified.summary(), "Checked 3 bound images, 1 repaired, 1 damaged.");
        assert_eq!(
            verified.lines(),
            [
                "b:1 is repaired".to_owned(),
                format!("  {file}"),
                "c:1 is damaged".into(),
                "  not repaired: the registry is down".into()
            ]
        );
        assert_eq!(Verified::default().summary(), "Checked 0 bound images.");
    }
}
