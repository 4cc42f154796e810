//! The origin file of a deployment: what it tracks, and what of it is ours.
//!
//! ```text
//! [origin]
//! container-image-reference=ostree-unverified-image:docker://registry/os:tag
//! unconfigured-state=...            (makes rpm-ostree refuse to upgrade and drop the derivation)
//! [rpmostree]
//! osctl-managed=true                (the group makes bootc refuse to upgrade; docs/decisions/0005)
//! [osctl]
//! version=1
//! digest=sha256:...                 the base image
//! base-checksum=...                 its commit
//! input-digest=sha256:...           the merged drop-ins; absent if nothing is derived
//! kargs={...}                       the kernel arguments that we added or deleted
//! bound-set=...                     the key of the record below bound/
//! kept-local=["/etc/a"]             declared paths where the local version was kept
//! ```

use crate::model::image::{Digest, ImageRef};
use crate::model::{Context, Result};
use ostree_ext::glib;

const ORIGIN: &str = "origin";
const OURS: &str = "osctl";
const IMAGE: &str = "container-image-reference";
const UNCONFIGURED: &str = "unconfigured-state";

const RPMOSTREE: &str = "rpmostree";
const MANAGED: &str = "osctl-managed";

/// What rpm-ostree prints when somebody asks it to upgrade a derived deployment.
const REFUSAL: &str = "this deployment is managed by osctl; use: osctl upgrade";

/// A decoded origin file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The tracked image.
    pub image: Option<ImageRef>,
    /// The base image's digest.
    pub digest: Option<Digest>,
    /// The base commit.
    pub base: Option<String>,
    /// The digest of the merged drop-ins.
    pub input: Option<Digest>,
    /// The kernel arguments that we own, as JSON.
    pub kargs: Option<String>,
    /// The key of the bound set's record.
    pub bound_set: Option<String>,
    /// `/etc` paths where a drop-in agreed to the local version.
    pub kept_local: Vec<String>,
    /// Keys that are not ours to rewrite, as `group/key`.
    pub unknown: Vec<String>,
}

impl Origin {
    /// Reads what we understand and lists what we do not.
    pub fn read(file: &glib::KeyFile) -> Origin {
        let ours = |key: &str| file.string(OURS, key).ok().map(|s| s.to_string()).filter(|s| !s.is_empty());
        let managed = file.has_group(OURS);
        let mut unknown = Vec::new();
        for group in file.groups() {
            // libostree's own, dropped at each deploy (ostree_deployment_origin_remove_transient_state).
            if group == "libostree-transient" || group == OURS {
                continue;
            }
            for key in file
                .keys(&group)
                .map(|k| k.iter().map(|k| k.to_string()).collect::<Vec<_>>())
                .unwrap_or_default()
            {
                let known = (group == ORIGIN && (key == IMAGE || key == UNCONFIGURED && managed))
                    || (group == RPMOSTREE && key == MANAGED);
                // A verification that the host demands must not be dropped in silence.
                let signed = key == IMAGE
                    && file.string(&group, &key).is_ok_and(|v| {
                        v.starts_with("ostree-image-signed:") || v.starts_with("ostree-remote-")
                    });
                if !known || signed {
                    unknown.push(format!("{group}/{key}"));
                }
            }
        }
        Origin {
            image: file.string(ORIGIN, IMAGE).ok().and_then(|s| s.parse().ok()),
            digest: ours("digest").and_then(|d| d.parse().ok()),
            base: ours("base-checksum"),
            input: ours("input-digest").and_then(|d| d.parse().ok()),
            kargs: ours("kargs"),
            bound_set: ours("bound-set"),
            kept_local: ours("kept-local").and_then(|p| serde_json::from_str(&p).ok()).unwrap_or_default(),
            unknown,
        }
    }

    /// The origin file to write.
    pub fn write(&self) -> Result<glib::KeyFile> {
        let file = glib::KeyFile::new();
        if let Some(image) = &self.image {
            file.set_string(ORIGIN, IMAGE, &format!("ostree-unverified-image:{image}"));
        }
        if self.input.is_some() {
            file.set_string(ORIGIN, UNCONFIGURED, REFUSAL);
            file.set_boolean(RPMOSTREE, MANAGED, true);
        }
        file.set_string(OURS, "version", "1");
        let pairs = [
            ("digest", self.digest.as_ref().map(|d| d.to_string())),
            ("base-checksum", self.base.clone()),
            ("input-digest", self.input.as_ref().map(|d| d.to_string())),
            ("kargs", self.kargs.clone()),
            ("bound-set", self.bound_set.clone()),
            (
                "kept-local",
                (!self.kept_local.is_empty()).then(|| serde_json::json!(self.kept_local).to_string()),
            ),
        ];
        for (key, value) in pairs {
            if let Some(value) = value {
                file.set_string(OURS, key, &value);
            }
        }
        // A key file that GLib cannot read back would be found at the next boot only.
        glib::KeyFile::new()
            .load_from_data(&file.to_data(), glib::KeyFileFlags::NONE)
            .doing("checking the new origin file")?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Origin {
        let file = glib::KeyFile::new();
        file.load_from_data(text, glib::KeyFileFlags::NONE).unwrap();
        Origin::read(&file)
    }

    #[test]
    fn what_we_write_is_what_we_read() {
        let origin = Origin {
            image: Some("quay.io/os:1".parse().unwrap()),
            digest: Some(Digest::of(b"x")),
            base: Some("abc".into()),
            input: Some(Digest::of(b"y")),
            kargs: Some(r#"{"a":["b c=d;"]}"#.into()),
            bound_set: Some("k".into()),
            kept_local: vec!["/etc/a".into(), "/etc/b".into()],
            unknown: Vec::new(),
        };
        assert_eq!(Origin::read(&origin.write().unwrap()), origin);
    }

    #[test]
    fn foreign_keys_are_listed_and_a_plain_image_origin_is_ours_to_manage() {
        let layered = "[origin]\nbaserefspec=fedora:x\n[packages]\nrequested=vim;\n";
        assert_eq!(parse(layered).unknown, ["origin/baserefspec", "packages/requested"]);
        let plain = "[origin]\ncontainer-image-reference=ostree-unverified-registry:quay.io/os:1\n[libostree-transient]\npinned=true\n";
        let origin = parse(plain);
        assert_eq!(
            (origin.unknown.len(), origin.image.unwrap().to_string()),
            (0, "docker://quay.io/os:1".into())
        );
    }

    #[test]
    fn an_image_that_must_be_signed_is_not_ours_to_follow_unsigned() {
        for value in
            ["ostree-image-signed:docker://quay.io/os:1", "ostree-remote-registry:fedora:quay.io/os:1"]
        {
            let text = format!("[origin]\ncontainer-image-reference={value}\n");
            assert_eq!(parse(&text).unknown, ["origin/container-image-reference"], "{value}");
        }
    }

    #[test]
    fn an_unconfigured_state_that_is_not_ours_is_foreign() {
        assert_eq!(
            parse("[origin]\nunconfigured-state=register first\n").unknown,
            ["origin/unconfigured-state"]
        );
    }
}
