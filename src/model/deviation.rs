//! How a deployment deviates from its image: what was asked, what became of it, and all of it in one line.

use super::dropin::install::is_unit_name;
use super::status::Derivation;
use std::collections::BTreeSet;

/// What a request asks of the package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// A package to be there.
    Install,
    /// A package of the base to be gone.
    Remove,
    /// A package of the base in another version.
    Replace,
    /// An image that carries packages for the base.
    Extension,
    /// An image on top of the base.
    Layer,
}

impl Asked {
    /// As a drop-in says it: `package`, `removal of package`, `replacement of package`.
    pub fn words(self) -> &'static str {
        match self {
            Asked::Install => "package",
            Asked::Remove => "removal of package",
            Asked::Replace => "replacement of package",
            Asked::Extension => "extension",
            Asked::Layer => "layer",
        }
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It changed the tree.
    Applied,
    /// The base is so without it.
    Redundant,
}

/// What a declared path did to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// The base has nothing there.
    Added,
    /// The base has something else there.
    Replaced,
    /// The base has exactly this.
    Unchanged,
}

/// The unit that a file in `/etc/systemd/system` belongs to: it is the unit's own, or one of its drop-ins.
pub fn unit_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/etc/systemd/system/")?;
    let unit = match rest.split_once('/') {
        None => rest,
        Some((dir, _)) => dir.strip_suffix(".d")?,
    };
    is_unit_name(unit).then_some(unit)
}

/// Whether an owner of a kernel argument is a drop-in: not the host itself, and not a file of the image.
pub fn is_dropin(owner: &str) -> bool {
    owner != "local" && owner != "vendor" && !owner.starts_with('/')
}

/// `2 packages, 1 replaced, 3 files`: what the deployment has beyond its image; `None` if it is as the image is.
pub fn line(derivation: &Derivation) -> Option<String> {
    let packages = |asked: Asked| {
        let applied = derivation.packages.iter().filter(|p| p.outcome == Outcome::Applied);
        applied.filter(|p| p.asked == asked).count()
    };
    let differs = derivation.files.iter().filter(|f| f.effect != Some(Effect::Unchanged));
    let (units, files): (Vec<&str>, Vec<&str>) =
        differs.map(|f| f.path.as_str()).partition(|path| unit_of(path).is_some());
    let units: BTreeSet<&str> = units
        .iter()
        .filter_map(|path| unit_of(path))
        .chain(derivation.units.iter().map(|unit| unit.name.as_str()))
        .collect();
    let appended = derivation.kargs.iter().filter(|karg| is_dropin(&karg.owner)).count();
    let parts = [
        (packages(Asked::Install), "package", "packages"),
        (packages(Asked::Remove), "removed", "removed"),
        (packages(Asked::Replace), "replaced", "replaced"),
        (packages(Asked::Layer), "layer", "layers"),
        (files.len(), "file", "files"),
        (units.len(), "unit", "units"),
        (derivation.users.len(), "user", "users"),
        (derivation.groups.len(), "group", "groups"),
        (appended + derivation.deleted_kargs.len(), "kernel argument", "kernel arguments"),
    ];
    let parts = parts.iter().filter(|(n, ..)| *n > 0);
    let text: Vec<String> =
        parts.map(|(n, one, more)| format!("{n} {}", if *n == 1 { one } else { more })).collect();
    (!text.is_empty()).then(|| text.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::status::{OwnedKarg, OwnedPath, OwnedUnit, OwnedUser, PackageRequest};

    #[test]
    fn a_file_of_a_unit_belongs_to_it() {
        for (path, unit) in [
            ("/etc/systemd/system/a.service", Some("a.service")),
            ("/etc/systemd/system/a.service.d/10-x.conf", Some("a.service")),
            ("/etc/systemd/system/README", None),
            ("/etc/systemd/system/multi-user.target.wants/a.service", None),
            ("/usr/lib/systemd/system/a.service", None),
        ] {
            assert_eq!(unit_of(path), unit, "{path}");
        }
    }

    #[test]
    fn every_kind_of_deviation_is_counted_and_what_the_image_has_is_none() {
        let owner = || "50-a.yaml".to_owned();
        let file = |path: &str, effect| OwnedPath { path: path.into(), owner: owner(), effect: Some(effect) };
        let package = |request: &str, asked, outcome| PackageRequest {
            request: request.into(),
            asked,
            outcome,
            owners: vec![owner()],
            version: None,
        };
        let karg = |arg: &str, owner: &str| OwnedKarg { arg: arg.into(), owner: owner.into() };
        let mut all = Derivation::default();
        assert_eq!(line(&all), None);
        all.kargs = vec![karg("ro", "local"), karg("console=tty0", "/usr/lib/bootc/kargs.d/1.toml")];
        all.packages = vec![package("had", Asked::Install, Outcome::Redundant)];
        all.files = vec![file("/etc/same", Effect::Unchanged)];
        assert_eq!(line(&all), None);
        all.packages.extend([
            package("a", Asked::Install, Outcome::Applied),
            package("b", Asked::Install, Outcome::Applied),
            package("c=1", Asked::Replace, Outcome::Applied),
            package("d", Asked::Remove, Outcome::Applied),
        ]);
        all.files.extend([
            file("/etc/a", Effect::Added),
            file("/usr/b", Effect::Replaced),
            file("/etc/systemd/system/x.service", Effect::Added),
            file("/etc/systemd/system/x.service.d/1.conf", Effect::Added),
        ]);
        let unit = |name: &str| OwnedUnit {
            name: name.into(),
            owner: owner(),
            enabled: Some(true),
            mask: false,
            links: Vec::new(),
        };
        all.units = vec![unit("x.service")];
        all.users = vec![OwnedUser { name: "u".into(), owner: owner() }];
        all.groups = vec![OwnedUser { name: "g".into(), owner: owner() }];
        all.kargs.push(karg("nosmt", "50-a.yaml"));
        all.deleted_kargs = vec![karg("quiet", "50-a.yaml")];
        assert_eq!(
            line(&all).unwrap(),
            "2 packages, 1 removed, 1 replaced, 2 files, 1 unit, 1 user, 1 group, 2 kernel arguments"
        );
    }
}
