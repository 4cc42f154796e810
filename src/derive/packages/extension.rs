//! Extensions: packages from an image that carries a repository and is versioned with the host.
//!
//! The image is verified as a whole, by its digest, so its repository needs no signatures; and it comes before all
//! others, because its packages are made for this base.

use crate::model::image::Digest;
use crate::model::lock::Manager;
use crate::model::manifest::Owner;
use crate::model::packages::Repo;
use crate::model::{Error, ErrorKind, Result};
use crate::store::tree::{CommitTree, Kind};
use std::path::PathBuf;

/// Where in such an image the repository may be: ours, that of Fedora CoreOS, and the top.
const PLACES: [&str; 3] = ["/usr/share/osctl/extensions", "/usr/share/rpm-ostree/extensions", "/"];

/// The content of such an image, where it is checked out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The drop-in that names the image.
    pub owner: Owner,
    /// The digest of the image.
    pub digest: Digest,
    /// The directory of the repository.
    pub real: PathBuf,
}

impl Directory {
    /// The id of the repository.
    pub(super) fn id(&self) -> String {
        // As long as nobody takes one for another.
        format!("osctl-extension-{}", &self.digest.hex()[..16])
    }

    /// Where the sandbox has it.
    pub(super) fn seen(&self) -> String {
        format!("/run/{}", self.id())
    }

    /// What is declared of it.
    pub(super) fn repository(&self, manager: Manager) -> Repo {
        let scheme = match manager {
            // What `file:` has stays where it is, and is then gone with the sandbox.
            Manager::Apt => "copy",
            Manager::Dnf => "file",
        };
        Repo {
            owner: self.owner.clone(),
            baseurl: vec![format!("{scheme}://{}/", self.seen())],
            suites: Vec::new(),
            components: Vec::new(),
            metalink: None,
            mirrorlist: None,
            key: None,
        }
    }
}

/// The directory in the image's tree that is a repository of this package manager.
pub fn find(tree: &CommitTree, manager: Manager, image: &str, owner: &str) -> Result<&'static str> {
    let signs: &[&str] = match manager {
        Manager::Apt => &["Packages", "Packages.gz", "Packages.xz"],
        Manager::Dnf => &["repodata/repomd.xml"],
    };
    for place in PLACES {
        for sign in signs {
            if tree.kind(&format!("{place}/{sign}"))? == Some(Kind::File) {
                return Ok(place);
            }
        }
    }
    let (manager, places) = (manager.name(), PLACES.join(", "));
    let why =
        format!("{owner}: {image} has no repository of {manager} in any of {places}; nothing was staged");
    let hint = format!("put the packages and {} into one of them in the image's build", signs[0]);
    Err(Error::new(ErrorKind::Unsupported, why).detail("drop-in", owner).hint(hint))
}
