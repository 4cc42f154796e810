//! Bound images against a real registry, a real containers-storage and podman.

use crate::image::{Image, Layer, noise};
use crate::registry::{self, CREDENTIALS, Registry};
use cap_std_ext::cap_std::{ambient_authority, fs::Dir};
use osctl::bound::{Skopeo, Store, collect, pull_all, resolve, verify_present};
use osctl::engine::cx::Cx;
use osctl::model::ErrorKind;
use osctl::model::bound::{BoundImage, BoundSet, BoundSpec, Mode};
use osctl::pull::{FetchOptions, Patience, WORKER_ARG, Worker};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const SOURCE: &str = "/etc/osctl/bound-images.d/app.toml";

/// A sysroot with a store of bound images, without an OS.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub cx: Cx,
}

impl Host {
    pub fn new() -> Host {
        let dir = tempfile::tempdir().unwrap();
        let store = Host::open(dir.path());
        Host { dir, store, cx: Cx::detached() }
    }

    fn open(dir: &Path) -> Store {
        let root = Dir::open_ambient_dir(dir, ambient_authority()).unwrap();
        let skopeo = Skopeo::new(&root, &dir.join("ostree/osctl/tmp"), std::env::vars()).unwrap();
        Store::open(dir, skopeo).unwrap()
    }

    pub async fn set(&self, specs: &[BoundSpec]) -> BoundSet {
        let resolved = resolve(&self.cx, specs, self.store.skopeo(), Patience::default())
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        assert!(resolved.later.is_empty(), "{:?}", resolved.later);
        BoundSet::new(resolved.images).unwrap()
    }

    pub async fn pull(&self, set: &BoundSet) {
        let warnings = pull_all(&self.cx, &self.store, set, &self.opts())
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        assert!(warnings.is_empty(), "{warnings:?}");
        verify_present(&self.cx, &self.store, set).await.unwrap();
    }

    /// As the engine fetches on this host.
    pub fn opts(&self) -> FetchOptions {
        let root = Dir::open_ambient_dir(self.dir.path(), ambient_authority()).unwrap();
        FetchOptions {
            spool: Some(self.dir.path().join("ostree/osctl/bound-spool")),
            tmp: Some(self.dir.path().join("ostree/osctl/tmp")),
            policy: osctl::sys::auth::policy(&root),
            config_root: Some(self.dir.path().to_owned()),
            worker: Worker::Program(env!("CARGO_BIN_EXE_osctl").into(), vec![WORKER_ARG.into()]),
            ..FetchOptions::default()
        }
    }

    /// Lets podman find this set, as after a boot. Returns whether its view had to be made.
    pub fn show(&self, set: &BoundSet) -> bool {
        let key = set.digest().hex().to_owned();
        let made = self.store.publish(&key, set, &BoundSet::default()).unwrap();
        osctl::bound::present(&self.shown(), &self.store.view(&key)).unwrap();
        made
    }

    fn shown(&self) -> PathBuf {
        self.dir.path().join("run/osctl/storage")
    }

    /// Runs podman with a scratch store of its own and what is shown as the additional one.
    pub fn podman(&self, args: &[&str]) -> String {
        let scratch = self.dir.path().join("podman");
        let done = Command::new("podman")
            .arg("--root")
            .arg(scratch.join("root"))
            .arg("--runroot")
            .arg(scratch.join("run"))
            .arg("--storage-opt")
            .arg(format!("additionalimagestore={}", self.shown().display()))
            .args(args)
            .output()
            .unwrap();
        assert!(done.status.success(), "podman {args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// What a container of this image finds in its `/hello`, without any network.
    fn hello(&self, image: &str) -> String {
        let id = self.podman(&["create", "--pull=never", "--network=none", image]);
        let mounted = self.podman(&["mount", &id]);
        let text = std::fs::read_to_string(Path::new(&mounted).join("hello")).unwrap();
        self.podman(&["umount", &id]);
        self.podman(&["rm", &id]);
        text
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // podman's overlay driver leaves a bind mount on its scratch root.
        let scratch = self.dir.path().join("podman/root/overlay");
        if scratch.exists() {
            Command::new("umount").arg(scratch).output().unwrap();
        }
    }
}

pub fn spec(registry: &Registry, name: &str) -> BoundSpec {
    BoundSpec { tls_verify: Some(false), ..BoundSpec::new(registry.name(name).parse().unwrap(), SOURCE) }
}

#[tokio::test]
async fn two_digests_of_one_tag_live_side_by_side_and_the_tag_means_that_of_the_set_that_is_shown() {
    let mut registry = Registry::start();
    let host = Host::new();
    let name = registry.name("app:v1");
    let a = registry.push(&Image::with_file("hello", b"one"), "app:v1");
    let old = host.set(&[spec(&registry, "app:v1")]).await;
    assert_eq!(old.images[0].digest, a);
    host.pull(&old).await;
    assert!(host.show(&old));
    assert_eq!(host.hello(&name), "one");

    let b = registry.push(&Image::with_file("hello", b"two"), "app:v1");
    let new = host.set(&[spec(&registry, "app:v1")]).await;
    assert_eq!(new.images[0].digest, b);
    host.pull(&new).await;
    // Pulled, but the running system's name still means what it meant.
    assert_eq!(host.hello(&name), "one");

    registry.stop();
    assert!(host.show(&new));
    assert_eq!(host.hello(&name), "two");
    assert_eq!(host.hello(&registry.name(&format!("app@{b}"))), "two");
    verify_present(&host.cx, &host.store, &old).await.unwrap();
    // Rolled back: its view is there since it was staged.
    assert!(!host.show(&old));
    assert_eq!(host.hello(&name), "one");
    assert_eq!(host.hello(&registry.name(&format!("app@{a}"))), "one");
    verify_present(&host.cx, &host.store, &new).await.unwrap();
    // Read-only for podman, whatever it is asked to do.
    let listed = || host.podman(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}"]);
    assert!(listed().contains(&format!("{name} true")));
    for prune in [["image", "prune", "-af"], ["system", "prune", "-af"]] {
        host.podman(&prune);
    }
    assert!(listed().contains(&format!("{name} true")));
    assert_eq!(host.hello(&name), "one");
}

#[tokio::test]
async fn a_view_has_its_own_images_and_those_that_containers_stand_on_and_outlives_no_deployment() {
    let registry = Registry::start();
    let host = Host::new();
    registry.push(&Image::with_file("hello", b"one"), "app:1");
    registry.push(&Image::with_file("hello", b"two"), "other:1");
    let (app, other) = (spec(&registry, "app:1"), spec(&registry, "other:1"));
    let (app, other) = (host.set(&[app]).await, host.set(&[other]).await);
    host.pull(&app).await;
    host.pull(&other).await;
    host.show(&app);
    assert_eq!(host.podman(&["images", "--quiet"]).lines().count(), 1);
    // By its digest alone: the tag is not this deployment's to name.
    let key = app.digest().hex().to_owned();
    assert!(host.store.publish(&key, &app, &other).unwrap());
    assert_eq!(host.hello(&registry.name(&format!("other@{}", other.images[0].digest))), "two");
    let listed = host.podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(
        listed.contains(&registry.name("app:1")) && !listed.contains(&registry.name("other:1")),
        "{listed}"
    );
    // An image that is not there is no part of it: it may have been one to prefetch.
    collect(&host.cx, &host.store, std::slice::from_ref(&other)).await.unwrap();
    assert!(host.store.publish(&key, &app, &BoundSet::default()).unwrap());
    assert_eq!(host.podman(&["images", "--quiet"]), "");
    host.store.prune_views(&[]).unwrap();
    assert!(!host.store.view(&key).exists());
}

#[tokio::test]
async fn what_is_there_is_not_fetched_again() {
    let registry = Registry::start();
    let host = Host::new();
    let base = Layer::new().file("base", b"shared");
    let hello =
        |text: &str| Image::default().layer(base.clone()).layer(Layer::new().file("hello", text.as_bytes()));
    registry.push(&hello("a"), "a:1");
    registry.push(&hello("b"), "b:1");
    let a = host.set(&[spec(&registry, "a:1")]).await;
    assert_eq!(registry.blobs_sent(), [""; 0], "resolving fetches manifests only");
    host.pull(&a).await;
    assert_eq!(registry.blobs_sent().len(), 3);

    registry.clear_log();
    host.pull(&a).await;
    assert_eq!(registry.requests(), []);
    // A second process finds it as well.
    assert!(Host::open(host.dir.path()).has(&a.images[0]).unwrap());

    let both = host.set(&[spec(&registry, "a:1"), spec(&registry, "b:1")]).await;
    registry.clear_log();
    host.pull(&both).await;
    assert_eq!(registry.blobs_sent().len(), 2, "configuration and one layer: {:?}", registry.requests());
}

#[tokio::test]
async fn a_killed_pull_does_not_count_and_the_next_one_succeeds() {
    let registry = Registry::start();
    let host = Host::new();
    // Large, so that there is a middle to be killed in.
    let noise = noise(48 << 20);
    registry.push(&Image::with_file("hello", b"small").layer(Layer::new().file("noise", &noise)), "big:1");
    let set = host.set(&[spec(&registry, "big:1")]).await;
    let mut kills = 0;
    for delay in [60, 120, 240, 480] {
        // Dropping the future kills skopeo's whole process group with SIGKILL.
        let opts = host.opts();
        let pull = pull_all(&host.cx, &host.store, &set, &opts);
        if tokio::time::timeout(Duration::from_millis(delay), pull).await.is_err() {
            // One that was killed when all was done has done it.
            if let Err(error) = verify_present(&host.cx, &host.store, &set).await {
                kills += 1;
                assert_eq!(error.kind, ErrorKind::BoundImageFailed);
            }
        }
    }
    assert!(kills > 0);
    host.pull(&set).await;
    host.show(&set);
    assert_eq!(host.hello(&registry.name("big:1")), "small");
    assert_eq!(collect(&host.cx, &host.store, &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_named_with_the_file_that_asks_for_it() {
    let mut registry = Registry::start();
    let host = Host::new();
    let missing = spec(&registry, "missing:1");
    let error = resolve(&host.cx, std::slice::from_ref(&missing), host.store.skopeo(), Patience::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::BoundImageFailed);
    assert_eq!(
        error.to_string(),
        format!(
            "bound image {}, needed by {SOURCE}, could not be resolved; the running system is unchanged, nothing was staged",
            registry.name("missing:1")
        )
    );
    assert_eq!(
        [&error.details["image"], &error.details["source"], &error.details["cause"]],
        [&registry.name("missing:1"), SOURCE, "ImageNotFound"]
    );
    assert!(error.hint.is_some());

    // Prefetch only warns, at resolving and at pulling.
    let optional = BoundSpec { mode: Mode::Prefetch, ..missing };
    let resolved = resolve(&host.cx, &[optional], host.store.skopeo(), Patience::default()).await.unwrap();
    assert_eq!((resolved.images.len(), resolved.later.len()), (0, 1));

    // It vanishes between resolving and pulling; what was finished is kept.
    registry.push(&Image::with_file("hello", b"one"), "a:1");
    let layer = Image::with_file("hello", b"two");
    registry.push(&layer, "b:1");
    let set = host.set(&[spec(&registry, "a:1"), spec(&registry, "b:1")]).await;
    let gone = set.images.iter().find(|i| i.spec.reference.name.ends_with("b:1")).unwrap();
    let path = registry::blob_path(&registry, &gone.digest);
    std::fs::rename(&path, path.with_extension("away")).unwrap();
    let error = pull_all(&host.cx, &host.store, &set, &host.opts()).await.unwrap_err();
    assert_eq!(
        (error.kind, error.details["image"].as_str()),
        (ErrorKind::BoundImageFailed, registry.name("b:1").as_str())
    );
    std::fs::rename(path.with_extension("away"), &path).unwrap();
    registry.clear_log();
    host.pull(&set).await;
    assert_eq!(registry.blobs_sent().len(), 2, "only the image that was missing is fetched");

    registry.stop();
    let error = resolve(&host.cx, &[spec(&registry, "a:1")], host.store.skopeo(), Patience::default())
        .await
        .unwrap_err();
    assert_eq!(error.details["cause"], "RegistryUnavailable");
}

#[tokio::test]
async fn a_private_registry_is_entered_with_the_images_own_credentials() {
    let registry = Registry::with_password();
    let host = Host::new();
    registry.push(&Image::with_file("hello", b"secret"), "app:1");
    let anonymous = spec(&registry, "app:1");
    let error = resolve(&host.cx, std::slice::from_ref(&anonymous), host.store.skopeo(), Patience::default())
        .await
        .unwrap_err();
    assert_eq!(error.details["cause"], "AuthRequired", "{}", error.chain());
    let auth = serde_json::json!({"auths": {registry.address.clone(): {"auth": CREDENTIALS}}}).to_string();
    std::fs::create_dir_all(host.dir.path().join("etc/osctl")).unwrap();
    std::fs::write(host.dir.path().join("etc/app.json"), &auth).unwrap();
    let own = BoundSpec { auth_file: Some("/etc/app.json".into()), ..anonymous.clone() };
    host.pull(&host.set(&[own]).await).await;
    std::fs::write(host.dir.path().join("etc/osctl/auth.json"), &auth).unwrap();
    host.pull(&host.set(&[anonymous]).await).await;
}

#[tokio::test]
async fn collection_removes_what_no_set_needs_and_nothing_else() {
    let registry = Registry::start();
    let host = Host::new();
    let base = Layer::new().file("base", b"shared");
    let hello =
        |text: &str| Image::default().layer(base.clone()).layer(Layer::new().file("hello", text.as_bytes()));
    registry.push(&hello("a"), "a:1");
    let b = hello("b");
    registry.push(&b, "b:1");
    registry.push(&b, "twin:1");
    let all = host.set(&[spec(&registry, "a:1"), spec(&registry, "b:1"), spec(&registry, "twin:1")]).await;
    host.pull(&all).await;
    let only = |names: &[&str]| BoundSet {
        images: all
            .images
            .iter()
            .filter(|i| names.iter().any(|n| i.spec.reference.name.ends_with(n)))
            .cloned()
            .collect::<Vec<BoundImage>>(),
    };
    assert_eq!(collect(&host.cx, &host.store, &[only(&["a:1"]), all.clone()]).await.unwrap(), [""; 0]);
    // The twin is the same image under another name: it must survive the removal of the first name.
    let gone = collect(&host.cx, &host.store, &[only(&["twin:1"])]).await.unwrap();
    let expected: Vec<String> = only(&["a:1", "b:1"])
        .images
        .iter()
        .map(|i| format!("{}@{}", i.spec.reference.repository(), i.digest))
        .collect();
    assert_eq!(gone, expected);
    verify_present(&host.cx, &host.store, &only(&["twin:1"])).await.unwrap();
    host.show(&only(&["twin:1"]));
    assert_eq!(host.hello(&registry.name("twin:1")), "b");
    for name in ["a:1", "b:1"] {
        assert!(verify_present(&host.cx, &host.store, &only(&[name])).await.is_err(), "{name}");
    }
    collect(&host.cx, &host.store, &[]).await.unwrap();
    assert_eq!(std::fs::read_dir(host.store.graph_root().join("overlay-layers")).unwrap().count(), 2);
}

#[tokio::test]
async fn an_image_pinned_to_a_digest_is_found_by_it() {
    let registry = Registry::start();
    let host = Host::new();
    let digest = registry.push(&Image::with_file("hello", b"pinned"), "app:1");
    registry.push(&Image::with_file("hello", b"moved"), "app:1");
    let set = host.set(&[spec(&registry, &format!("app:1@{digest}"))]).await;
    assert_eq!(set.images[0].digest, digest);
    host.pull(&set).await;
    host.show(&set);
    assert_eq!(host.hello(&registry.name(&format!("app@{digest}"))), "pinned");
    let names = host.podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(!names.contains(&registry.name("app:1")), "{names}");
}

#[tokio::test]
async fn the_policy_judges_the_registry_by_tag_and_not_our_own_store() {
    let registry = Registry::start();
    let host = Host::new();
    for tag in ["app:1", "app:2"] {
        registry.push(&Image::with_file("hello", tag.as_bytes()), tag);
    }
    let policy = serde_json::json!({"default": [{"type": "reject"}],
        "transports": {"docker": {registry.name("app:1"): [{"type": "insecureAcceptAnything"}]}}});
    std::fs::create_dir_all(host.dir.path().join("etc/containers")).unwrap();
    std::fs::write(host.dir.path().join("etc/containers/policy.json"), policy.to_string()).unwrap();
    let accepted = host.set(&[spec(&registry, "app:1")]).await;
    host.pull(&accepted).await;
    host.show(&accepted);
    assert_eq!(host.hello(&registry.name("app:1")), "app:1");
    let rejected = host.set(&[spec(&registry, "app:2")]).await;
    let error = pull_all(&host.cx, &host.store, &rejected, &host.opts()).await.unwrap_err();
    assert_eq!(error.details["cause"], "SignatureRejected", "{}", error.chain());
    collect(&host.cx, &host.store, &[]).await.unwrap();
}

#[tokio::test]
async fn what_a_cut_off_copy_left_is_written_anew_and_layers_of_no_image_go() {
    let registry = Registry::start();
    let host = Host::new();
    let base = Layer::new().file("base", b"shared");
    let hello =
        |text: &str| Image::default().layer(base.clone()).layer(Layer::new().file("hello", text.as_bytes()));
    registry.push(&hello("a"), "a:1");
    registry.push(&hello("b"), "b:1");
    let (a, b) = (host.set(&[spec(&registry, "a:1")]).await, host.set(&[spec(&registry, "b:1")]).await);
    host.pull(&a).await;
    host.pull(&b).await;
    // As after a power cut in the middle of the second: it is in the lists of containers-storage, with empty files.
    let index = host.dir.path().join("ostree/osctl/storage-index");
    for entry in std::fs::read_dir(index).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if text.contains(b.images[0].digest.as_str()) {
            std::fs::write(path, text.replace("true", "false")).unwrap();
        }
    }
    let layers = || -> Vec<PathBuf> {
        let overlay = host.store.graph_root().join("overlay");
        std::fs::read_dir(overlay)
            .unwrap()
            .map(|e| e.unwrap().path().join("diff"))
            .filter(|p| p.is_dir())
            .collect()
    };
    let of_b =
        layers().into_iter().map(|d| d.join("hello")).find(|f| std::fs::read(f).is_ok_and(|c| c == b"b"));
    std::fs::write(of_b.unwrap(), "").unwrap();
    host.pull(&b).await;
    host.show(&b);
    assert_eq!(host.hello(&registry.name("b:1")), "b");
    host.show(&a);
    assert_eq!(host.hello(&registry.name("a:1")), "a");

    // Of an image whose copy failed half-way a layer is left.
    let only = |set: &BoundSet| vec![set.clone()];
    collect(&host.cx, &host.store, &only(&a)).await.unwrap();
    assert_eq!(layers().len(), 2);
    let list = host.store.graph_root().join("overlay-layers/layers.json");
    let mut all: serde_json::Value = serde_json::from_slice(&std::fs::read(&list).unwrap()).unwrap();
    all.as_array_mut()
        .unwrap()
        .push(serde_json::json!({"id": "0".repeat(64), "diff-digest": a.images[0].digest}));
    std::fs::write(&list, all.to_string()).unwrap();
    std::fs::create_dir_all(host.store.graph_root().join("overlay").join("0".repeat(64)).join("diff"))
        .unwrap();
    collect(&host.cx, &host.store, &only(&a)).await.unwrap();
    assert_eq!(layers().len(), 2);
    assert_eq!(host.hello(&registry.name("a:1")), "a");
}
