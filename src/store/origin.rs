//! The origin file of a deployment: what it tracks, and what of it is ours.
//!
//! ```text
//! [origin]
//! container-image-reference=ostree-unverified-image:docker://registry/os:tag   (ostree-image-signed: if it was)
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
//! verification={...}                what vouched for the image
//! kept-local=["/etc/a"]             declared paths where the local version was kept
//! ```

use crate::model::handover::Key;
use crate::model::image::{Digest, ImageRef};
use crate::model::verification::{Level, Verification};
use crate::model::{Context, Result};
use ostree_ext::glib;

const ORIGIN: &str = "origin";
const OURS: &str = "osctl";
const IMAGE: &str = "container-image-reference";
/// What rpm-ostree and bootc read as: the policy must ask for a signature.
const SIGNED: &str = "ostree-image-signed:";
const UNVERIFIED: &str = "ostree-unverified-image:";
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
    /// What vouched for the image; `None` if nobody noted that.
    pub verification: Option<Verification>,
    /// `/etc` paths where a drop-in agreed to the local version.
    pub kept_local: Vec<String>,
    /// Keys that are not ours to rewrite, as `group/key`.
    pub unknown: Vec<String>,
    /// What another tool reads, which the deployment is handed back to: nothing of ours is written.
    pub released: Option<Vec<Key>>,
}

/// Every key of an origin file.
pub fn keys(file: &glib::KeyFile) -> Vec<Key> {
    let mut found = Vec::new();
    for group in file.groups() {
        for key in file.keys(&group).iter().flat_map(|keys| keys.iter()) {
            let value = file.value(&group, key).unwrap_or_default();
            found.push(Key { group: group.to_string(), key: key.to_string(), value: value.to_string() });
        }
    }
    found
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
                // The signatures of an ostree remote are not ours to ask for, and not to be dropped in silence.
                let remote =
                    key == IMAGE && file.string(&group, &key).is_ok_and(|v| v.starts_with("ostree-remote-"));
                if !known || remote {
                    unknown.push(format!("{group}/{key}"));
                }
            }
        }
        let noted = ours("verification").map(|text| Verification::from_json(&text));
        if let Some(Err(_)) = noted {
            // Taken for nothing, it would let an unsigned image follow.
            unknown.push(format!("{OURS}/verification"));
        }
        let noted = noted.and_then(|read| read.ok());
        let demanded = file.string(ORIGIN, IMAGE).is_ok_and(|v| v.starts_with(SIGNED));
        Origin {
            // Whoever wrote the prefix meant it, whatever our note says.
            verification: match noted {
                Some(verification) if !demanded || verification.level == Level::Signed => Some(verification),
                noted => {
                    if demanded {
                        Some(Verification::demanded())
                    } else {
                        noted
                    }
                }
            },
            image: file.string(ORIGIN, IMAGE).ok().and_then(|s| s.parse().ok()),
            digest: ours("digest").and_then(|d| d.parse().ok()),
            base: ours("base-checksum"),
            input: ours("input-digest").and_then(|d| d.parse().ok()),
            kargs: ours("kargs"),
            bound_set: ours("bound-set"),
            kept_local: ours("kept-local").and_then(|p| serde_json::from_str(&p).ok()).unwrap_or_default(),
            unknown,
            released: None,
        }
    }

    /// Whether we wrote it, or would.
    pub fn is_ours(&self) -> bool {
        self.base.is_some() && self.unknown.is_empty()
    }

    /// The origin file to write.
    pub fn write(&self) -> Result<glib::KeyFile> {
        let file = glib::KeyFile::new();
        if let Some(image) = &self.image {
            let signed = self.verification.as_ref().is_some_and(|v| v.level == Level::Signed);
            let prefix = if signed { SIGNED } else { UNVERIFIED };
            file.set_string(ORIGIN, IMAGE, &format!("{prefix}{image}"));
        }
        match &self.released {
            Some(keys) => keys.iter().for_each(|key| file.set_value(&key.group, &key.key, &key.value)),
            None => self.write_ours(&file),
        }
        // A key file that GLib cannot read back would be found at the next boot only.
        glib::KeyFile::new()
            .load_from_data(&file.to_data(), glib::KeyFileFlags::NONE)
            .doing("checking the new origin file")?;
        Ok(file)
    }

    fn write_ours(&self, file: &glib::KeyFile) {
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
            ("verification", self.verification.as_ref().map(Verification::to_json)),
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
            verification: Some(Verification::default()),
            kept_local: vec!["/etc/a".into(), "/etc/b".into()],
            ..Default::default()
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
    fn an_image_that_a_remote_signs_is_not_ours_to_follow() {
        let text = "[origin]\ncontainer-image-reference=ostree-remote-registry:fedora:quay.io/os:1\n";
        assert_eq!(parse(text).unknown, ["origin/container-image-reference"]);
    }

    #[test]
    fn a_signature_that_anybody_demands_is_demanded() {
        let of = |reference: &str, ours: &str| {
            let origin =
                parse(&format!("[origin]\ncontainer-image-reference={reference}\n[osctl]\n{ours}\n"));
            (origin.verification.map(|v| v.level), origin.unknown.len())
        };
        let (plain, signed) =
            ("ostree-unverified-image:docker://r.io/os:1", "ostree-image-signed:docker://r.io/os:1");
        let note = |level: &str| {
            format!("verification={{\"level\":\"{level}\",\"scope\":\"default\",\"requirements\":[]}}")
        };
        for (reference, ours, expected) in [
            (plain, "", (None, 0)),
            (signed, "", (Some(Level::Signed), 0)),
            (plain, &*note("unverified"), (Some(Level::Unverified), 0)),
            (plain, &*note("signed"), (Some(Level::Signed), 0)),
            (signed, &*note("unverified"), (Some(Level::Signed), 0)),
            (plain, &*note("blessed"), (None, 1)),
            (signed, &*note("blessed"), (Some(Level::Signed), 1)),
        ] {
            assert_eq!(of(reference, ours), expected, "{reference} {ours}");
        }
        let verification = Some(Verification::demanded());
        let origin = Origin { image: Some("r.io/os:1".parse().unwrap()), verification, ..Default::default() };
        let file = origin.write().unwrap();
        assert_eq!(file.string(ORIGIN, IMAGE).unwrap(), signed);
        assert_eq!(Origin::read(&file), origin);
    }

    #[test]
    fn a_released_origin_is_the_image_and_what_the_other_tool_reads() {
        let key = Key { group: "packages".into(), key: "requested".into(), value: "vim;no;".into() };
        let origin = Origin {
            image: Some("r.io/os:1".parse().unwrap()),
            base: Some("abc".into()),
            input: Some(Digest::of(b"y")),
            released: Some(vec![key.clone()]),
            ..Default::default()
        };
        let file = origin.write().unwrap();
        let image = Key {
            group: ORIGIN.into(),
            key: IMAGE.into(),
            value: "ostree-unverified-image:docker://r.io/os:1".into(),
        };
        assert_eq!(keys(&file), [image, key]);
        let names = file.string_list("packages", "requested").unwrap();
        assert_eq!(names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), ["vim", "no"]);
        assert!(!Origin::read(&file).is_ours());
    }

    #[test]
    fn an_unconfigured_state_that_is_not_ours_is_foreign() {
        assert_eq!(
            parse("[origin]\nunconfigured-state=register first\n").unknown,
            ["origin/unconfigured-state"]
        );
    }
}
