//! The image: its layer, its configuration and its manifest, in a layout that has the base.

use super::diff;
use super::layer::{self, Compression};
use super::layout::{Layout, Stored};
use crate::model::image::Digest;
use crate::model::manifest::Manifest;
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::CommitTree;
use ostree_ext::ostree;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image that is in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Whether it has a layer that is not compressed, which a registry gets compressed.
    pub has_plain_layers: bool,
}

/// Adds the image with the tag `tag` to a layout that has the base with the tag `base_tag`.
///
/// `labels` are set over those of the base; one without a value is removed.
pub fn write(
    repo: &ostree::Repo,
    (base, derived): (&str, &str),
    manifest: &Manifest,
    layout: &Layout,
    (base_tag, tag): (&str, &str),
    labels: &BTreeMap<&str, Option<String>>,
) -> Result<Written> {
    let base_manifest = layout.manifest(base_tag)?;
    let layers: Vec<Value> = base_manifest["layers"].as_array().cloned().unwrap_or_default();
    let types = || layers.iter().filter_map(|layer| layer["mediaType"].as_str());
    let compression = Compression::like(types());
    let mut changes = diff::between(repo, base, derived)?;
    super::kargs::add(&mut changes, &CommitTree::open(repo, derived)?, manifest)?;
    let draft = layout.draft()?;
    let layer = layer::write(repo, &changes, compression, &draft)?;
    layout.keep(draft, &layer.digest)?;

    let mut config = layout.described(&base_manifest["config"])?;
    let depth = layers.len();
    configure(&mut config, &layer.diff_id, depth, labels)?;
    let config = layout.put(&config)?;
    let on_top = json!({"mediaType": compression.media_type(), "digest": layer.digest, "size": layer.size});
    let mut image = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.digest, "size": config.size},
        "layers": layers.iter().cloned().chain([on_top]).collect::<Vec<_>>()});
    let annotations = annotated(&base_manifest["annotations"], labels);
    if !annotations.is_empty() {
        image["annotations"] = json!(annotations);
    }
    let stored: Stored = layout.put(&image)?;
    layout.tag(tag, &stored)?;
    let has_plain_layers = types().any(|kind| kind.ends_with(".tar"));
    Ok(Written { digest: stored.digest, has_plain_layers })
}

/// The configuration of the base with one layer more.
fn configure(
    config: &mut Value,
    diff_id: &Digest,
    depth: usize,
    labels: &BTreeMap<&str, Option<String>>,
) -> Result<()> {
    let damaged =
        || Error::new(ErrorKind::Unsupported, "the base has no readable configuration; nothing was built");
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().ok_or_else(damaged)?;
    diff_ids.push(json!(diff_id));
    // The same base and input are the same image, whenever it is built: the time stays the base's.
    let created = config.get("created").cloned();
    if let Some(history) = config.get_mut("history").and_then(Value::as_array_mut) {
        // One that does not tell of all layers would tell of a wrong one.
        let told = history.iter().filter(|step| step["empty_layer"] != true).count();
        if told == depth {
            let mut step = json!({"created_by": "osctl derive"});
            if let Some(created) = created {
                step["created"] = created;
            }
            history.push(step);
        }
    }
    let settings = config.as_object_mut().ok_or_else(damaged)?.entry("config").or_insert_with(|| json!({}));
    if settings.is_null() {
        *settings = json!({});
    }
    let all = settings.as_object_mut().ok_or_else(damaged)?.entry("Labels").or_insert_with(|| json!({}));
    if all.is_null() {
        *all = json!({});
    }
    let all = all.as_object_mut().ok_or_else(damaged)?;
    for (label, value) in labels {
        match value {
            Some(value) => drop(all.insert((*label).to_owned(), json!(value))),
            None => drop(all.remove(*label)),
        }
    }
    Ok(())
}

/// The annotations of the base with those of our labels that are annotations (image-spec, annotations.md).
fn annotated(base: &Value, labels: &BTreeMap<&str, Option<String>>) -> serde_json::Map<String, Value> {
    let mut all = base.as_object().cloned().unwrap_or_default();
    for (label, value) in labels.iter().filter(|(label, _)| label.starts_with("org.opencontainers.")) {
        match value {
            Some(value) => drop(all.insert((*label).to_owned(), json!(value))),
            None => drop(all.remove(*label)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_bases_with_a_layer_a_step_and_labels() {
        let diff_id = Digest::of(b"layer");
        let labels = BTreeMap::from([("new", Some("1".to_owned())), ("gone", None)]);
        let step = |by: &str| json!({"created_by": by, "created": "2026-01-01T00:00:00Z"});
        for (mut config, history) in [
            (json!({"history": [step("a"), {"empty_layer": true}]}), Some(3)),
            (json!({"history": []}), Some(0)),
            (json!({"config": null}), None),
            (json!({"config": {"Labels": null, "Shell": ["sh"]}}), None),
            (json!({"config": {"Labels": {"gone": "x", "kept": "y"}}}), None),
        ] {
            config["created"] = json!("2026-01-01T00:00:00Z");
            config["rootfs"] = json!({"type": "layers", "diff_ids": ["sha256:base"]});
            let before = config.clone();
            configure(&mut config, &diff_id, 1, &labels).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"], json!(["sha256:base", diff_id]), "{before}");
            assert_eq!(config["config"]["Labels"]["new"], "1", "{before}");
            assert_eq!(config["config"]["Labels"].get("gone"), None, "{before}");
            assert_eq!(config["config"]["Labels"]["kept"], before["config"]["Labels"]["kept"]);
            assert_eq!(config["config"]["Shell"], before["config"]["Shell"]);
            assert_eq!(config["created"], before["created"]);
            assert_eq!(config.get("history").and_then(Value::as_array).map(Vec::len), history, "{before}");
            if history == Some(3) {
                assert_eq!(config["history"][2], step("osctl derive"));
            }
        }
        assert!(configure(&mut json!({}), &diff_id, 1, &labels).is_err());
    }
}
