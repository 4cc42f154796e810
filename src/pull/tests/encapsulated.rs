//! Encapsulated ostree commits: what comes out is what the reference importer makes of them.

use super::foreign::{reference_tool, run};
use crate::model::ErrorKind;
use crate::model::image::Digest;
use crate::pull::fixture::{Layout, Pack, Scratch, Tar, pack};
use crate::pull::refs;
use crate::pull::types::{Base, ImageKind};
use ostree_ext::container::store::{self, ImageImporter, PrepareResult};
use ostree_ext::container::{ImageReference, OstreeImageReference, SignatureSource};
use ostree_ext::gio::prelude::*;
use ostree_ext::{gio, glib, ostree};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;

/// An ostree commit in OCI clothes, made by the reference tool, and the commit's root.
async fn encapsulate(scratch: &Scratch, content: &str, labels: &[(&str, &str)]) -> (Layout, String) {
    encapsulate_tree(scratch, labels, 1, &[], |tree| {
        std::fs::write(tree.join("usr/etc/conf"), content).unwrap();
    })
}

/// As [`encapsulate`], in so many layers, with more options of `ostree commit`, and with changes to the tree.
fn encapsulate_tree(
    scratch: &Scratch,
    labels: &[(&str, &str)],
    layers: usize,
    options: &[&str],
    change: impl FnOnce(&Path),
) -> (Layout, String) {
    let repo = ostree::Repo::new_for_path(scratch.path("build"));
    repo.create(ostree::RepoMode::Bare, gio::Cancellable::NONE).unwrap();
    let tree = scratch.path("tree");
    for dir in ["usr/lib/modules/6.1", "usr/etc", "usr/bin", "usr/share/d", "sysroot", "var"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for (file, text) in [
        ("usr/lib/modules/6.1/vmlinuz", "kernel"),
        ("usr/lib/modules/6.1/initramfs.img", "initramfs"),
        ("usr/share/removed", "1"),
        ("usr/share/d/f", "1"),
    ] {
        std::fs::write(tree.join(file), text).unwrap();
    }
    for (link, target) in [
        ("absolute", "/nowhere"),
        ("relative", "d"),
        ("chain", "../share/relative"),
        ("out", "../../../tmp"),
        ("circle", "circle"),
        ("dangling", "nothing"),
        ("to-file", "d/f"),
    ] {
        symlink(target, tree.join("usr/share").join(link)).unwrap();
    }
    change(&tree);
    let (path, tree) =
        (scratch.path("build").display().to_string(), format!("--tree=dir={}", tree.display()));
    let mut arguments = vec!["commit", "--repo", &path, "-b", "os", "--bootable", &tree, "--owner-uid=0"];
    arguments.extend(["--owner-gid=0", "--add-metadata-string=version=7"]);
    arguments.extend(options);
    run("ostree", &arguments);
    // Which object goes into which layer.
    let listed = run("ostree", &["ls", "--repo", &path, "-R", "-C", "os"]);
    let objects = listed.lines().filter(|line| !line.starts_with('d'));
    let objects: BTreeMap<&str, String> = objects
        .map(|line| line.split_whitespace().nth(4).unwrap())
        .enumerate()
        .map(|(at, checksum)| (checksum, format!("group{}", at % layers)))
        .collect();
    let groups: BTreeMap<&str, &str> = objects.values().map(|g| (g.as_str(), g.as_str())).collect();
    let meta = serde_json::json!({"version": 1, "layers": groups, "mapping": objects});
    let meta_path = scratch.path("meta.json").display().to_string();
    std::fs::write(&meta_path, meta.to_string()).unwrap();
    let (repo_option, meta_option) = (format!("--repo={path}"), format!("--contentmeta={meta_path}"));
    let dest = format!("oci:{}:latest", scratch.path("enc").display());
    let mut arguments = vec!["container", "encapsulate", &repo_option];
    if layers > 1 {
        arguments.push(&meta_option);
    }
    let labels: Vec<String> = labels.iter().map(|(key, value)| format!("--label={key}={value}")).collect();
    arguments.extend(labels.iter().map(String::as_str));
    arguments.extend(["os", &dest]);
    reference_tool(&arguments);
    (read_layout(&scratch.path("enc")), contents(&repo, "os"))
}

fn read_layout(dir: &Path) -> Layout {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    Layout { dir: dir.to_owned(), manifest, manifest_size: 0, layers: Vec::new() }
}

/// Puts a layer on top of an image.
fn on_top(layout: &mut Layout, tar: &[u8]) {
    let (blob, media_type) = pack(tar, Pack::Gzip);
    let digest = layout.blob(&blob);
    layout.rewrite(|manifest, config| {
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(Digest::of(tar).to_string().into());
        let layers = manifest["layers"].as_array_mut().unwrap();
        layers.push(serde_json::json!({"mediaType": media_type, "digest": digest, "size": blob.len()}));
    });
}

/// The checksums of a tree's root: contents and metadata.
fn contents(repo: &ostree::Repo, rev: &str) -> String {
    let (root, _) = repo.read_commit(rev, gio::Cancellable::NONE).unwrap();
    let root = root.downcast::<ostree::RepoFile>().unwrap();
    root.ensure_resolved().unwrap();
    format!("{} {}", root.tree_get_contents_checksum().unwrap(), root.tree_get_metadata_checksum().unwrap())
}

/// What the reference importer makes of an image.
async fn reference(scratch: &Scratch, layout: &Layout) -> (ostree::Repo, String) {
    let repo = ostree::Repo::new_for_path(scratch.path("reference"));
    repo.create(ostree::RepoMode::Bare, gio::Cancellable::NONE).unwrap();
    reference_again(scratch, layout).await
}

/// What it makes of another image, in the same repository.
async fn reference_again(scratch: &Scratch, layout: &Layout) -> (ostree::Repo, String) {
    let repo = ostree::Repo::new_for_path(scratch.path("reference"));
    repo.open(gio::Cancellable::NONE).unwrap();
    let imgref = OstreeImageReference {
        sigverify: SignatureSource::ContainerPolicyAllowInsecure,
        imgref: ImageReference::try_from(layout.image().to_string().as_str()).unwrap(),
    };
    let mut importer = ImageImporter::new(&repo, &imgref, Default::default()).await.unwrap();
    let PrepareResult::Ready(prepared) = importer.prepare().await.unwrap() else { panic!("it is new") };
    let state = importer.import(prepared).await.unwrap();
    (repo, state.merge_commit)
}

#[tokio::test]
async fn an_encapsulated_commit_comes_back_as_it_was() {
    let scratch = Scratch::new();
    let (layout, root) = encapsulate(&scratch, "1", &[("containers.bootc", "1")]).await;
    let base = scratch.pull(&layout.image()).await.unwrap();
    assert_eq!((base.kind, base.version.as_deref()), (ImageKind::Encapsulated, Some("7")));
    assert_eq!(contents(&scratch.repo, &base.commit), root);
    // Again: nothing to do. In another repository: the same commit, whatever that run's hash seeds were.
    scratch.reports.lock().unwrap().clear();
    assert_eq!(scratch.pull(&layout.image()).await.unwrap(), base);
    assert_eq!(*scratch.reports.lock().unwrap(), []);
    let other = Scratch::new();
    assert_eq!(other.pull(&layout.image()).await.unwrap(), base);
    let imgref = ImageReference::try_from(layout.image().to_string().as_str()).unwrap();
    let state = store::query_image(&scratch.repo, &imgref).unwrap().unwrap();
    assert_eq!((state.get_commit(), state.version()), (base.commit.as_str(), Some("7")));
}

#[tokio::test]
async fn layers_on_top_of_a_commit_give_the_reference_importers_tree() {
    let scratch = Scratch::new();
    let (mut layout, _) = encapsulate(&scratch, "1", &[]).await;
    let first: Base = scratch.pull(&layout.image()).await.unwrap();
    on_top(
        &mut layout,
        &Tar::new()
            .file("etc/conf", 0o600, b"2")
            .file("usr/share/.wh.removed", 0, b"")
            .dir("usr/share/d", 0o700)
            .file("usr/share/d/g", 0o4755, b"2")
            .dir("var/lib/x", 0o755)
            .file("var/lib/x/f", 0o644, b"v")
            .hardlink("usr/share/hard", 0o4755, "usr/share/d/g")
            .symlink("sbin", "usr/sbin")
            .dir("nix", 0o755)
            .finish(),
    );
    on_top(&mut layout, &Tar::new().file("usr/share/last", 0o644, b"3").finish());
    let base = scratch.pull(&layout.image()).await.unwrap();
    assert_ne!(base.commit, first.commit);
    let tree = scratch.tree(&base.commit);
    assert_eq!(tree["/usr/etc/conf"], "600 2");
    assert!(!tree.contains_key("/usr/share/removed"));
    let (repo, merged) = reference(&scratch, &layout).await;
    let theirs = Scratch { dir: tempfile::tempdir().unwrap(), repo, reports: Default::default() };
    // What has no place is counted as they count it, and said.
    let filtered = |repo: &ostree::Repo, commit: &str| {
        let meta = glib::VariantDict::new(Some(&repo.load_commit(commit).unwrap().0.child_value(0)));
        meta.lookup::<BTreeMap<String, BTreeMap<String, u32>>>("ostree.tar-filtered").unwrap().unwrap()
    };
    let ours = filtered(&scratch.repo, &base.commit);
    assert_eq!(ours, filtered(&theirs.repo, &merged));
    let names: Vec<_> = ours.values().flatten().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(names, [("nix", 1), ("sbin", 1)]);
    let said = format!("{:?}", scratch.reports.lock().unwrap());
    assert!(
        said.contains("left out what is neither in /usr") && said.contains("/nix: 1, /sbin: 1"),
        "{said}"
    );
    assert_eq!(tree, theirs.tree(&merged));
    assert_eq!(contents(&scratch.repo, &base.commit), contents(&theirs.repo, &merged));
}

#[tokio::test]
async fn a_commit_in_many_layers_is_the_reference_importers() {
    let scratch = Scratch::new();
    let many = |tree: &Path| {
        for at in 0..40 {
            std::fs::write(tree.join(format!("usr/share/d/{at}")), format!("{}", at / 2)).unwrap();
        }
        // Too large to be held in memory.
        std::fs::write(tree.join("usr/bin/large"), vec![7; 3 << 20]).unwrap();
    };
    let (mut layout, root) = encapsulate_tree(&scratch, &[("containers.bootc", "1")], 5, &[], many);
    let base = scratch.pull(&layout.image()).await.unwrap();
    let resolved = scratch.resolve(&layout.image()).await.unwrap();
    assert!(resolved.layers.len() > 5, "{}", resolved.layers.len());
    assert_eq!(contents(&scratch.repo, &base.commit), root);
    let (repo, merged) = reference(&scratch, &layout).await;
    assert_eq!(contents(&repo, &merged), root);
    // What each layer was made into, too: the reference importer goes on where we were, and we where it was.
    for layer in &resolved.layers {
        let name = refs::of_layer(&layer.digest).unwrap();
        let commit = |repo: &ostree::Repo| repo.resolve_rev(&name, false).unwrap().map(String::from);
        assert_eq!(commit(&scratch.repo), commit(&repo), "{}", layer.digest);
    }
    on_top(&mut layout, &Tar::new().file("usr/share/last", 0o644, b"3").finish());
    let base = scratch.pull(&layout.image()).await.unwrap();
    let (repo, merged) = reference_again(&scratch, &layout).await;
    assert_eq!(contents(&scratch.repo, &base.commit), contents(&repo, &merged));
}

#[tokio::test]
async fn what_fsck_has_taken_away_is_fetched_again() {
    let scratch = Scratch::new();
    let (mut layout, _) = encapsulate_tree(&scratch, &[("containers.bootc", "1")], 5, &[], |tree| {
        for at in 0..10 {
            std::fs::write(tree.join(format!("usr/share/d/{at}")), format!("content {at}")).unwrap();
        }
    });
    on_top(&mut layout, &Tar::new().file("usr/share/on-top", 0o644, b"on top").finish());
    let derived = scratch.pull(&layout.image()).await.unwrap();
    let repo = scratch.path("repo").display().to_string();
    let object = |commit: &str, path: &str| {
        let (tree, _) = scratch.repo.read_commit(commit, gio::Cancellable::NONE).unwrap();
        let file = tree.resolve_relative_path(path).downcast::<ostree::RepoFile>().unwrap();
        file.ensure_resolved().unwrap();
        let sum = file.checksum().to_string();
        scratch.path(&format!("repo/objects/{}/{}.file", &sum[..2], &sum[2..]))
    };
    for path in ["usr/share/d/3", "usr/share/on-top"] {
        std::fs::remove_file(object(&derived.commit, path)).unwrap();
    }
    let fsck = |options: &[&str]| {
        let mut command = std::process::Command::new("ostree");
        let output = command.args(["fsck", "--quiet", "--repo", &repo]).args(options).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(!fsck(&["--delete"]).0);
    let again = scratch.pull(&layout.image()).await.unwrap();
    assert_eq!(again, derived);
    assert_eq!(scratch.read(&again.commit, "usr/share/d/3"), "content 3");
    assert_eq!(scratch.read(&again.commit, "usr/share/on-top"), "on top");
    assert_eq!(fsck(&[]), (true, String::new()));
}

#[tokio::test]
async fn what_a_layer_has_below_a_link_goes_where_that_leads_as_the_reference_importer_has_it() {
    let scratch = Scratch::new();
    let (mut layout, _) = encapsulate(&scratch, "1", &[]).await;
    on_top(
        &mut layout,
        &Tar::new()
            .file("usr/share/relative/new", 0o644, b"2")
            .dir("usr/share/relative/sub", 0o700)
            .dir("usr/share/chain", 0o700)
            .file("usr/share/chain/.wh.f", 0, b"")
            .file("usr/share/chain/sub/deep", 0o640, b"3")
            .finish(),
    );
    let base = scratch.pull(&layout.image()).await.unwrap();
    let tree = scratch.tree(&base.commit);
    assert_eq!(tree["/usr/share/relative"], "-> d");
    assert_eq!(tree["/usr/share/d/new"], "644 2");
    assert_eq!(tree["/usr/share/d/sub/deep"], "640 3");
    assert!(!tree.contains_key("/usr/share/d/f"));
    let (repo, merged) = reference(&scratch, &layout).await;
    assert_eq!(contents(&scratch.repo, &base.commit), contents(&repo, &merged));
}

#[tokio::test]
async fn a_layer_that_reaches_through_a_link_to_no_directory_of_the_tree_is_refused() {
    for (link, target) in [
        ("absolute", "/nowhere"),
        ("out", "../../../tmp"),
        ("circle", "circle"),
        ("dangling", "nothing"),
        ("to-file", "d/f"),
    ] {
        for described in [false, true] {
            let scratch = Scratch::new();
            let (mut layout, _) = encapsulate(&scratch, "1", &[]).await;
            let dir =
                if described { Tar::new().dir(&format!("usr/share/{link}"), 0o755) } else { Tar::new() };
            on_top(&mut layout, &dir.file(&format!("usr/share/{link}/f"), 0o644, b"").finish());
            let error = scratch.pull(&layout.image()).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{link}: {}", error.chain());
            let named = format!("/usr/share/{link} is a directory in one layer and a link to {target} in an");
            assert!(error.to_string().contains(&named), "{error}");
        }
    }
}

#[tokio::test]
async fn layers_above_a_labelled_commit_get_the_reference_importers_labels_without_a_checkout() {
    let contexts = "/.*	system_u:object_r:default_t:s0\n/usr/bin/.*	--	system_u:object_r:bin_t:s0\n";
    let changed = contexts.replace("bin_t", "other_t");
    for (what, change) in [("the same policy", None), ("another policy", Some(&changed))] {
        let scratch = Scratch::new();
        let policy = format!("--selinux-policy={}", scratch.path("tree").display());
        let (mut layout, _) = encapsulate_tree(&scratch, &[], 4, &[&policy], |tree| {
            let selinux = tree.join("usr/etc/selinux");
            for dir in ["test/contexts/files", "test/policy"] {
                std::fs::create_dir_all(selinux.join(dir)).unwrap();
            }
            std::fs::write(selinux.join("config"), "SELINUX=enforcing\nSELINUXTYPE=test\n").unwrap();
            std::fs::write(selinux.join("test/contexts/files/file_contexts"), contexts).unwrap();
            std::fs::write(selinux.join("test/policy/policy.33"), "policy").unwrap();
            std::fs::write(tree.join("usr/bin/old"), "old").unwrap();
        });
        let mut layer = Tar::new()
            .file("usr/bin/new", 0o755, b"new")
            .dir("usr/share/new", 0o700)
            .symlink("usr/share/new/link", "target")
            .file("usr/share/relative/new", 0o644, b"below a link")
            .file("etc/conf", 0o600, b"2");
        if let Some(contexts) = change {
            layer = layer.file("etc/selinux/test/contexts/files/file_contexts", 0o644, contexts.as_bytes());
        }
        on_top(&mut layout, &layer.finish());
        let base = scratch.pull(&layout.image()).await.unwrap();
        let tree = scratch.tree(&base.commit);
        let label = |name: &str| hex::encode(format!("system_u:object_r:{name}:s0\0"));
        let bin = if change.is_some() { "other_t" } else { "bin_t" };
        for name in ["old", "new"] {
            assert!(tree[&format!("/usr/bin/{name}")].contains(&label(bin)), "{what}: {tree:#?}");
        }
        assert!(tree["/usr/share/d/new"].contains(&label("default_t")), "{what}: {tree:#?}");
        let (repo, merged) = reference(&scratch, &layout).await;
        let theirs = Scratch { dir: tempfile::tempdir().unwrap(), repo, reports: Default::default() };
        assert_eq!(tree, theirs.tree(&merged), "{what}");
        assert_eq!(contents(&scratch.repo, &base.commit), contents(&theirs.repo, &merged), "{what}");
        // Labelling by a checkout makes a commit of its own, beside those of the layers and the image.
        let objects =
            run("find", &[&scratch.path("repo/objects").display().to_string(), "-name", "*.commit"]);
        let resolved = scratch.resolve(&layout.image()).await.unwrap();
        let own = objects.lines().count() - resolved.layers.len() - 1;
        assert_eq!(own, usize::from(change.is_some()), "{what}");
    }
}

#[tokio::test]
async fn a_chunk_with_other_content_is_refused_every_time_and_a_verified_one_is_kept() {
    let scratch = Scratch::new();
    let (mut layout, root) = encapsulate(&scratch, "1", &[("containers.bootc", "1")]).await;
    let mut layers = Vec::new();
    layout.rewrite(|manifest, _| {
        let digest = |l: &serde_json::Value| l["digest"].as_str().unwrap().parse::<Digest>().unwrap();
        layers = manifest["layers"].as_array().unwrap().iter().map(digest).collect();
    });
    let last = layout.path(layers.last().unwrap());
    let whole = std::fs::read(&last).unwrap();
    // Right for the reference importer, which has then written the ref: the same tar in other bytes.
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::MultiGzDecoder::new(&whole[..]), &mut tar).unwrap();
    std::fs::write(&last, pack(&tar, Pack::Gzip).0).unwrap();
    assert_ne!(std::fs::read(&last).unwrap(), whole);
    for attempt in ["first", "second", "after another tool"] {
        let error = scratch.pull(&layout.image()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DigestMismatch, "{attempt}: {}", error.chain());
        let name = refs::of_layer(layers.last().unwrap()).unwrap();
        if attempt != "after another tool" {
            assert_eq!(scratch.repo.resolve_rev(&name, true).unwrap(), None, "{attempt}");
        }
        if attempt == "second" {
            // A ref without our word for it.
            let other = scratch.repo.list_refs(None, gio::Cancellable::NONE).unwrap().into_values().next();
            let commit = other.unwrap_or_else(|| contents_commit(&scratch.repo));
            scratch.repo.set_ref_immediate(None, &name, Some(&commit), gio::Cancellable::NONE).unwrap();
        }
    }
    std::fs::write(&last, &whole).unwrap();
    let base = scratch.pull(&layout.image()).await.unwrap();
    assert_eq!(contents(&scratch.repo, &base.commit), root);
    // Now that they are verified, the next version does not fetch them.
    for digest in &layers {
        std::fs::remove_file(layout.path(digest)).unwrap();
    }
    on_top(&mut layout, &Tar::new().file("usr/share/new", 0o644, b"2").finish());
    let next = scratch.pull(&layout.image()).await.unwrap();
    assert_eq!(scratch.tree(&next.commit)["/usr/share/new"], "644 2");
    // Our word goes with the layer.
    for name in scratch.repo.list_refs(Some("ostree/container/image"), gio::Cancellable::NONE).unwrap().keys()
    {
        scratch.repo.set_ref_immediate(None, name, None, gio::Cancellable::NONE).unwrap();
    }
    crate::pull::forget_unused(&scratch.repo, &Default::default()).unwrap();
    let left = scratch.repo.list_refs(None, gio::Cancellable::NONE).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// Any commit.
fn contents_commit(repo: &ostree::Repo) -> String {
    let transaction = repo.auto_transaction(gio::Cancellable::NONE).unwrap();
    let meta = crate::pull::tree::write_dirmeta(repo, 0, 0, 0o755, &BTreeMap::new()).unwrap();
    let root = crate::pull::tree::Dir::new(meta).write(repo).unwrap();
    let commit =
        repo.write_commit_with_time(None, None, None, None, &root, 0, gio::Cancellable::NONE).unwrap();
    transaction.commit(gio::Cancellable::NONE).unwrap();
    commit.into()
}
