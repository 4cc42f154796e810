//! How two deployments differ.

use super::value;
use crate::model::difference::Between;
use crate::model::status::Deployment;

/// The format of [`json`].
const VERSION: u32 = 1;

/// For people: the images, then a line for each difference.
pub fn text(from: &Deployment, to: &Deployment, between: &Between) -> String {
    let mut lines = vec![format!("From {} to {}", value(&from.id), value(&to.id))];
    let digest = |d: &Deployment| d.digest.as_ref().map_or_else(|| d.checksum.clone(), ToString::to_string);
    let version = |d: &Deployment| match d.version.is_empty() {
        true => digest(d),
        false => format!("{} {}", d.version, digest(d)),
    };
    if digest(from) != digest(to) {
        lines.push(format!("OS image: {} to {}", value(&version(from)), value(&version(to))));
    }
    lines.extend(between.declared.iter().map(|d| value(&d.to_string()).into_owned()));
    lines.extend(between.packages.iter().map(|c| value(&c.to_string()).into_owned()));
    if lines.len() == 1 {
        lines.push("No differences in what they are made of.".to_owned());
    }
    lines.join("\n") + "\n"
}

/// For programs.
pub fn json(from: &Deployment, to: &Deployment, between: &Between) -> serde_json::Value {
    let side = |d: &Deployment| serde_json::json!({"id": d.id, "digest": d.digest, "version": d.version});
    serde_json::json!({
        "version": VERSION, "from": side(from), "to": side(to),
        "declared": between.declared, "packages": between.packages,
    })
}
