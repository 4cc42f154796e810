//! What stays in the repository, and what is kept apart in it.

use crate::model::ErrorKind;
use crate::pull::fixture::{Layout, Pack, Scratch, Tar, bootable};
use crate::pull::types::{Base, FetchOptions, ImageKind};
use crate::pull::{Needed, find, find_content, forget_unused, has_unused, retain, retain_latest};
use ostree_ext::gio;

fn needed<const N: usize>(bases: [&String; N]) -> Needed {
    Needed { bases: bases.into_iter().cloned().collect(), ..Needed::default() }
}

#[tokio::test]
async fn only_kept_images_stay() {
    let scratch = Scratch::new();
    let pull = async |n: u8| -> Base {
        let layers = [
            (bootable().finish(), Pack::Gzip),
            (Tar::new().file("usr/x/a", 0o644, &[n]).finish(), Pack::Gzip),
        ];
        let layout = Layout::write(&scratch.path(&format!("oci{n}")), &layers);
        scratch.pull(&layout.image()).await.unwrap()
    };
    let (one, two) = (pull(1).await, pull(2).await);
    retain(&scratch.repo, &one).unwrap();
    retain_latest(&scratch.repo, &two).unwrap();
    let names = || scratch.repo.list_refs(None, ostree_ext::gio::Cancellable::NONE).unwrap().len();
    // Three layers that are vouched for, two images that are claimed, two bases, and which of them came last.
    assert_eq!(names(), 13);
    let theirs = &crate::pull::refs::of_image(&"docker://quay.io/admin/other:1".parse().unwrap()).unwrap();
    let none = ostree_ext::gio::Cancellable::NONE;
    scratch.repo.set_ref_immediate(None, theirs, Some(&one.commit), none).unwrap();
    assert_eq!(forget_unused(&scratch.repo, &needed([&one.commit, &two.commit])).unwrap(), 0);
    assert_eq!(forget_unused(&scratch.repo, &needed([&two.commit])).unwrap(), 3);
    assert_eq!(names(), 11, "another program's image stays, with its layers");
    scratch.repo.set_ref_immediate(None, theirs, None, none).unwrap();
    assert_eq!(forget_unused(&scratch.repo, &needed([&two.commit])).unwrap(), 1);
    // What was downloaded last stays without a deployment.
    assert_eq!(forget_unused(&scratch.repo, &Needed::default()).unwrap(), 0);
    assert_eq!(find(&scratch.repo, &one.digest).unwrap(), None);
    assert_eq!(find(&scratch.repo, &two.digest).unwrap(), Some(two));
}

#[tokio::test]
async fn an_image_that_is_no_os_is_taken_as_it_is_and_never_for_one() {
    let scratch = Scratch::new();
    let content =
        Tar::new().file("repo/Packages", 0o644, b"x").file("etc/a", 0o600, b"1").file("var/b", 0o644, b"2");
    let layers =
        [(content.finish(), Pack::Gzip), (Tar::new().file("repo/.wh.Packages", 0, b"").finish(), Pack::Gzip)];
    let layout = Layout::write(&scratch.path("oci"), &layers);
    let as_content = FetchOptions { content: true, ..scratch.opts() };
    let refused = scratch.pull(&layout.image()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported, "{}", refused.chain());

    let base = scratch.pull_with(&layout.image(), &as_content).await.unwrap();
    let tree = scratch.tree(&base.commit);
    let files: Vec<&String> =
        tree.iter().filter(|(_, what)| !what.starts_with("dir")).map(|(path, _)| path).collect();
    assert_eq!(files, ["/usr/etc/a", "/var/b"]);
    assert_eq!(base.kind, ImageKind::Content);
    // Nobody who looks for an OS finds it, also where its layers are here by now.
    assert_eq!(find(&scratch.repo, &base.digest).unwrap(), None);
    let refused = scratch.pull(&layout.image()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported, "{}", refused.chain());
    let images = scratch.repo.list_refs(Some("ostree/container/image"), gio::Cancellable::NONE).unwrap();
    assert!(images.is_empty(), "{images:?}");

    // It is found again, and kept for as long as it is needed.
    assert_eq!(scratch.pull_with(&layout.image(), &as_content).await.unwrap(), base);
    let keep = Needed { contents: [base.digest.clone()].into(), ..Needed::default() };
    assert_eq!(forget_unused(&scratch.repo, &keep).unwrap(), 0);
    assert_eq!(find_content(&scratch.repo, &base.digest).unwrap().as_ref(), Some(&base));
    assert!(has_unused(&scratch.repo, &Needed::default()).unwrap());
    assert_eq!(forget_unused(&scratch.repo, &Needed::default()).unwrap(), 3, "it and its two layers");
    assert_eq!(find_content(&scratch.repo, &base.digest).unwrap(), None);
}

#[tokio::test]
async fn a_whole_os_in_ostree_form_is_no_content() {
    let scratch = Scratch::new();
    let tar = bootable().finish();
    let last = crate::model::image::Digest::of(&tar).to_string();
    let labels = [("ostree.bootable", "1"), ("ostree.final-diffid", last.as_str())];
    let layout = Layout::write_labelled(&scratch.path("oci"), &[(tar, Pack::Gzip)], &labels);
    let as_content = FetchOptions { content: true, ..scratch.opts() };
    let error = scratch.pull_with(&layout.image(), &as_content).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.to_string().contains("is a whole OS, and not content for one"), "{error}");
}
