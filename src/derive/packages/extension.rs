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
        // Nothing on the way may be a link: on the host it would lead somewhere else than in the image.
        if place != "/" && tree.resolve(place, true)?.as_deref() != Some(place) {
            continue;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::testing::{Base, Scratch};
    use ostree_ext::ostree::RepoMode;

    #[test]
    fn a_repository_is_found_where_it_is_and_never_behind_a_link() {
        let (index, nothing) = ("Packages", Base::Dir(0o755));
        let file = || Base::File(0o644, "x");
        for (entries, manager, found) in [
            (vec![(format!("usr/share/osctl/extensions/{index}"), file())], Manager::Apt, Some(PLACES[0])),
            (
                vec![(format!("usr/share/rpm-ostree/extensions/{index}.gz"), file())],
                Manager::Apt,
                Some(PLACES[1]),
            ),
            (vec![(index.to_owned(), file())], Manager::Apt, Some(PLACES[2])),
            (vec![("repodata/repomd.xml".to_owned(), file())], Manager::Dnf, Some(PLACES[2])),
            (vec![(index.to_owned(), file())], Manager::Dnf, None),
            (vec![(index.to_owned(), nothing)], Manager::Apt, None),
            (
                vec![
                    ("usr/share/osctl/extensions".to_owned(), Base::Link("/srv/repo")),
                    (format!("srv/repo/{index}"), file()),
                ],
                Manager::Apt,
                None,
            ),
            (
                vec![
                    ("usr/share/osctl".to_owned(), Base::Link("../../srv")),
                    (format!("srv/extensions/{index}"), file()),
                ],
                Manager::Apt,
                None,
            ),
        ] {
            let names: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
            let scratch = Scratch::with(RepoMode::Bare, entries);
            let tree = CommitTree::open(&scratch.repo, &scratch.base).unwrap();
            match (find(&tree, manager, "r.io/ext", "50-a.yaml"), found) {
                (Ok(place), Some(expected)) => assert_eq!(place, expected, "{names:?}"),
                (Err(error), None) => {
                    let text = error.to_string();
                    assert!(text.starts_with("50-a.yaml: r.io/ext has no repository of "), "{text}");
                }
                (found, _) => panic!("{names:?}: {found:?}"),
            }
        }
    }
}
