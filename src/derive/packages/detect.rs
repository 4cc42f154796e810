//! Which package manager a tree has, and where it keeps what is installed.

use crate::model::lock::Manager;
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind};

/// Where dpkg's database can be in an image: `/var` belongs to the host.
const DPKG: [&str; 2] = ["/usr/lib/sysimage/dpkg", "/usr/share/dpkg-db"];
/// The same for rpm's; the second is rpm-ostree's.
const RPM: [&str; 2] = ["/usr/lib/sysimage/rpm", "/usr/share/rpm"];

/// A tree that packages can be installed into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its package manager.
    pub manager: Manager,
    /// The directory of the database in the tree.
    pub database: String,
}

/// Looks into a tree; fails with `Unsupported` where there is no package manager that can be used.
pub fn target(tree: &CommitTree) -> Result<Target> {
    let program = |path: &str| Ok::<_, Error>(tree.resolve(path, true)?.is_some());
    let apt = program("/usr/bin/apt-get")? && program("/usr/bin/dpkg")?;
    let dnf = (program("/usr/bin/dnf")? || program("/usr/bin/dnf5")?) && program("/usr/bin/rpm")?;
    if !apt && !dnf {
        return Err(unsupported("it has neither apt nor dnf"));
    }
    let database = |places: [&str; 2], files: &[&str]| -> Result<Option<String>> {
        for place in places {
            // A link would lead out of what the package manager may write to.
            let here = tree.resolve(place, true)?.is_some_and(|real| real == place);
            for file in files.iter().filter(|_| here) {
                if tree.kind(&format!("{place}/{file}"))? == Some(Kind::File) {
                    return Ok(Some(place.to_owned()));
                }
            }
        }
        Ok(None)
    };
    if apt && let Some(database) = database(DPKG, &["status"])? {
        return Ok(Target { manager: Manager::Apt, database });
    }
    if dnf && let Some(database) = database(RPM, &["rpmdb.sqlite", "Packages.db"])? {
        return Ok(Target { manager: Manager::Dnf, database });
    }
    if dnf && database(RPM, &["Packages"])?.is_some() {
        // Berkeley DB writes down where and when a file was made.
        return Err(unsupported("its package database is one of Berkeley DB, which is never twice the same"));
    }
    let places: Vec<&str> = DPKG.into_iter().filter(|_| apt).chain(RPM.into_iter().filter(|_| dnf)).collect();
    Err(unsupported(&format!("it has no package database in {}", places.join(" or "))))
}

fn unsupported(why: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("no packages can be installed into this image: {why}; nothing was staged"),
    )
    .hint("build an image with the packages, or remove them from the drop-ins")
}
