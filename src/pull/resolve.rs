//! What an image reference stands for now. Transfers the manifest and the configuration.

use super::caller::Caller;
use super::import;
use super::pulse;
use super::refs;
use super::source::Source;
use super::trust;
use super::types::{FetchOptions, ImageKind, Layer, Resolved};
use crate::model::image::{Digest, ImageRef, Transport};
use crate::model::text::one_line;
use crate::model::{Context, Error, ErrorKind, Result};
use ostree_ext::glib;
use ostree_ext::oci_spec::image::{self as oci, ImageConfiguration, ImageManifest};
use std::collections::BTreeMap;

/// The label that names the last layer of the encapsulated commit.
pub(super) const FINAL_DIFFID: &str = "ostree.final-diffid";
/// Any of these labels says that an encapsulated image boots.
const BOOTABLE: [&str; 2] = ["ostree.bootable", "containers.bootc"];

/// The layer formats that are read. The proxy has converted Docker's names already, except in local storage.
const LAYER_TYPES: [&str; 5] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

/// Resolves in this process. Dropping the future may leave a thread and skopeo behind until the registry answers.
pub async fn resolve_in_process(image: &ImageRef, opts: &FetchOptions) -> Result<Resolved> {
    resolve_with(image, opts, &Caller::default()).await
}

/// Resolves in this process, calling skopeo so.
pub(super) async fn resolve_with(image: &ImageRef, opts: &FetchOptions, caller: &Caller) -> Result<Resolved> {
    opts.patience.again(|| ask(image, opts, caller)).await
}

async fn ask(image: &ImageRef, opts: &FetchOptions, caller: &Caller) -> Result<Resolved> {
    let (source, configs) = Source::open_beside(image, opts, caller, configurations(opts)).await?;
    let configs = configs?;
    pulse::tick();
    let (digest, manifest_text) = source.manifest().await?;
    pulse::tick();
    // Skopeo has compared a pinned registry reference itself. Where the pin names a manifest list, the digest of
    // the entry rightly differs, and only skopeo saw the list. No other transport knows pins.
    if let Some(pinned) = image.digest()
        && image.transport != Transport::Registry
        && pinned != digest
    {
        return Err(Error::new(
            ErrorKind::DigestMismatch,
            format!("{image} has the digest {digest} now; the running system is unchanged"),
        ));
    }
    let manifest: ImageManifest = serde_json::from_str(&manifest_text)
        .kind(ErrorKind::Unsupported, format!("{image}: its manifest is not one of an image"))?;
    // What skopeo renders from the configuration depends on its version, the blob does not: but only an
    // unconverted manifest names a blob that exists, and local storage does not serve it by digest.
    let unconverted = Digest::of(manifest_text.as_bytes()) == digest;
    let config = if unconverted && image.transport != Transport::ContainersStorage {
        let wanted = manifest.config().digest().to_string();
        let known = wanted.parse::<Digest>().ok().and_then(|wanted| configs.get(&wanted));
        let blob = match known {
            Some(known) => known.clone().into_bytes(),
            None => source.small_blob(manifest.config()).await?,
        };
        if Digest::of(&blob).as_str() != wanted {
            return Err(Error::new(
                ErrorKind::DigestMismatch,
                format!(
                    "{image}: the configuration does not have its digest; the running system is unchanged"
                ),
            ));
        }
        blob
    } else {
        source.rendered_config().await?
    };
    pulse::tick();
    trust::check(image, &digest, opts, caller).await?;
    let resolved = describe(image.clone(), digest, manifest, manifest_text, config)?;
    if opts.content { as_content(resolved) } else { Ok(resolved) }
}

/// The same for an image that is no OS.
fn as_content(resolved: Resolved) -> Result<Resolved> {
    if resolved.kind == ImageKind::Encapsulated {
        let why = format!("{} is a whole OS, and not content for one; nothing was staged", resolved.image);
        return Err(Error::new(ErrorKind::Unsupported, why).hint("move to it with: osctl rebase IMAGE"));
    }
    Ok(Resolved { kind: ImageKind::Content, ..resolved })
}

/// The configurations that need not be fetched, by their digest.
async fn configurations(opts: &FetchOptions) -> Result<BTreeMap<Digest, String>> {
    let Some(path) = opts.repo.clone() else { return Ok(BTreeMap::new()) };
    let read = tokio::task::spawn_blocking(move || refs::configurations(&import::open(&path)?));
    read.await.doing("looking for images that are here")?
}

/// Builds the description, and refuses what cannot be pulled before anything else is transferred.
fn describe(
    image: ImageRef,
    digest: Digest,
    manifest: ImageManifest,
    manifest_text: String,
    config: Vec<u8>,
) -> Result<Resolved> {
    let unsupported = |why: String| {
        Error::new(ErrorKind::Unsupported, format!("{image} {why}; the running system is unchanged"))
    };
    let config_text =
        String::from_utf8(config).map_err(|_| unsupported("has no readable configuration".into()))?;
    let (config_text, had_history) = with_history(config_text);
    let config: ImageConfiguration = serde_json::from_str(&config_text)
        .map_err(|e| unsupported("has no readable configuration".into()).source(e))?;
    if *config.os() != oci::Os::Linux {
        return Err(unsupported(format!("is for the operating system {}", config.os())));
    }
    if *config.architecture() != oci::Arch::default() {
        return Err(unsupported(format!(
            "is for the architecture {}, this host is {}",
            config.architecture(),
            oci::Arch::default()
        )));
    }
    let diff_ids = config.rootfs().diff_ids();
    if manifest.layers().is_empty() || diff_ids.len() != manifest.layers().len() {
        return Err(unsupported(format!(
            "lists {} layers and {} uncompressed digests",
            manifest.layers().len(),
            diff_ids.len()
        )));
    }
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
        let media_type = layer.media_type().to_string();
        if !LAYER_TYPES.contains(&media_type.as_str()) {
            return Err(unsupported(format!("has a layer of the type {media_type}")));
        }
        let digest = |text: &str| {
            text.parse::<Digest>().map_err(|e| {
                unsupported(format!("has a layer with the digest {text}, which is not a SHA-256")).source(e)
            })
        };
        layers.push(Layer {
            digest: digest(layer.digest().as_ref())?,
            size: layer.size(),
            diff_id: digest(diff_id)?,
            media_type,
        });
    }
    let labels: BTreeMap<String, String> = config
        .config()
        .as_ref()
        .and_then(|c| c.labels().as_ref())
        .map(|l| l.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
        .unwrap_or_default();
    // Neither D-Bus nor GLib can hold one.
    if let Some((key, _)) = labels.iter().find(|(k, v)| k.contains('\0') || v.contains('\0')) {
        return Err(unsupported(format!("has a NUL in its label {}", one_line(key))));
    }
    let kind = kind_of(&labels, diff_ids).map_err(unsupported)?;
    // Of a plain image we can do without, see above; the reference importer reads the configuration itself.
    if kind == ImageKind::Encapsulated && !had_history {
        return Err(unsupported("has no history in its configuration".into())
            .hint("an image that carries an ostree commit needs one: was it rewritten by another tool?"));
    }
    let created = manifest
        .annotations()
        .as_ref()
        .and_then(|a| a.get("org.opencontainers.image.created"))
        .or(config.created().as_ref())
        .and_then(|text| seconds(text))
        .unwrap_or(0);
    let version = version_of(&labels);
    Ok(Resolved {
        image,
        digest,
        manifest,
        manifest_text,
        config,
        config_text,
        kind,
        version,
        created,
        labels,
        layers,
    })
}

/// The history is optional in the specification, and skopeo leaves out an empty one. Readers of the commit's
/// metadata (ostree-ext, zincati) cannot do without. Also says whether it was there.
fn with_history(text: String) -> (String, bool) {
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(serde_json::Value::Object(mut config)) if !config.contains_key("history") => {
            config.insert("history".to_owned(), serde_json::json!([]));
            (serde_json::Value::Object(config).to_string(), false)
        }
        _ => (text, true),
    }
}

/// Decides as ostree-ext does: by the label that names the commit's last layer.
pub(super) fn kind_of(labels: &BTreeMap<String, String>, diff_ids: &[String]) -> Result<ImageKind, String> {
    let Some(last) = labels.get(FINAL_DIFFID) else { return Ok(ImageKind::Plain) };
    if !diff_ids.contains(last) {
        return Err(format!(
            "claims an ostree commit ending in layer {last}, which it does not have: was it squashed?"
        ));
    }
    if !BOOTABLE.iter().any(|l| labels.contains_key(*l)) {
        return Err(format!("is not bootable: it has neither the label {} nor {}", BOOTABLE[0], BOOTABLE[1]));
    }
    Ok(ImageKind::Encapsulated)
}

/// Seconds since 1970 of an RFC 3339 time.
fn seconds(text: &str) -> Option<u64> {
    // GLib's strings end at one, and its bindings panic.
    if text.contains('\0') {
        return None;
    }
    let time = glib::DateTime::from_iso8601(text, Some(&glib::TimeZone::utc())).ok()?;
    u64::try_from(time.to_unix()).ok()
}

/// The version that an image's labels claim, as one line: libostree writes it into the boot entry, where a line break
/// would begin another setting.
pub(super) fn version_of(labels: &BTreeMap<String, String>) -> Option<String> {
    let version = ["org.opencontainers.image.version", "version"].iter().find_map(|k| labels.get(*k))?;
    Some(version.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_version_is_one_line() {
        let labels = [("version".to_owned(), "3\noptions evil".to_owned())].into();
        assert_eq!(version_of(&labels).as_deref(), Some("3 options evil"));
    }

    #[test]
    fn what_an_image_cannot_be_is_said_before_a_layer_is_fetched() {
        let sha256 = Digest::of(b"").to_string();
        let sha512 = format!("sha512:{}", "0".repeat(128));
        let amd = oci::Arch::default().to_string();
        let plain = json!({"version": "1"});
        let encapsulated = json!({"ostree.final-diffid": sha256, "ostree.bootable": "1"});
        for (os, labels, blob, diff_id, history, refusal) in [
            ("linux", &plain, &sha256, &sha256, false, None),
            ("linux", &encapsulated, &sha256, &sha256, true, None),
            ("linux", &encapsulated, &sha256, &sha256, false, Some("has no history")),
            ("windows", &plain, &sha256, &sha256, true, Some("the operating system windows")),
            ("linux", &plain, &sha512, &sha256, true, Some("sha512:0")),
            ("linux", &plain, &sha256, &sha512, true, Some("sha512:0")),
            ("linux", &json!({"a": "x\0y"}), &sha256, &sha256, true, Some("a NUL in its label a;")),
            ("linux", &json!({"a\0": "x"}), &sha256, &sha256, true, Some("its label a\\u{0};")),
        ] {
            let mut config = json!({"architecture": amd, "os": os, "config": {"Labels": labels},
                "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
            if history {
                config["history"] = json!([]);
            }
            let manifest = json!({"schemaVersion": 2,
                "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256, "size": 1},
                "layers": [{"mediaType": LAYER_TYPES[0], "digest": blob, "size": 1}]});
            let described = describe(
                "r.io/os:1".parse().unwrap(),
                Digest::of(b""),
                serde_json::from_value(manifest.clone()).unwrap(),
                manifest.to_string(),
                config.to_string().into_bytes(),
            );
            match (described, refusal) {
                (Ok(_), None) => {}
                (Err(e), Some(text)) => {
                    assert_eq!(e.kind, ErrorKind::Unsupported, "{}", e.chain());
                    assert!(e.to_string().contains(text) && e.to_string().contains("r.io/os:1"), "{e}");
                }
                (described, _) => panic!("{refusal:?}: {described:?}"),
            }
        }
    }

    #[test]
    fn times_are_read_in_every_zone_and_nonsense_is_none() {
        for (text, expected) in [
            ("2024-01-02T03:04:05Z", Some(1_704_164_645)),
            ("2024-01-02T03:04:05.123456789Z", Some(1_704_164_645)),
            ("2024-01-02T04:04:05+01:00", Some(1_704_164_645)),
            ("0001-01-01T00:00:00Z", None),
            ("yesterday", None),
            ("2024-01-02T03:04:05Z\0", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn the_kind_follows_the_labels() {
        let labels =
            |keys: &[(&str, &str)]| keys.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let diff_ids = vec!["sha256:a".to_owned()];
        let ours = [(FINAL_DIFFID, "sha256:a"), ("ostree.bootable", "1")];
        assert_eq!(kind_of(&labels(&[("version", "1")]), &diff_ids), Ok(ImageKind::Plain));
        assert_eq!(kind_of(&labels(&ours), &diff_ids), Ok(ImageKind::Encapsulated));
        assert!(kind_of(&labels(&ours[..1]), &diff_ids).unwrap_err().contains("not bootable"));
        assert!(kind_of(&labels(&ours), &[]).unwrap_err().contains("squashed"));
    }
}
