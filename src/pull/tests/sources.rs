//! Where images come from, and what goes wrong there.

use super::faults::{descendants, users};
use crate::engine::cx::Cx;
use crate::model::ErrorKind;
use crate::model::image::{Digest, ImageRef};
use crate::pull::fixture::{Layout, Pack, Scratch, Tar, arch, bootable};
use crate::pull::{FetchOptions, Worker, pull, refs, resolve};
use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

pub(super) fn simple(scratch: &Scratch, name: &str, content: &[u8]) -> Layout {
    let top = Tar::new().file("usr/content", 0o644, content);
    let layers = [(bootable().finish(), Pack::Gzip), (top.finish(), Pack::Gzip)];
    Layout::write(&scratch.path(name), &layers)
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A real registry on loopback, at a port that it chose.
struct Registry {
    child: Child,
    host: String,
}

impl Registry {
    fn start(dir: &Path) -> Registry {
        let config = dir.join("registry.yml");
        let storage = dir.join("registry");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
                storage.display()
            ),
        )
        .unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let host = loop {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(|c: char| c == '"' || c.is_whitespace()).next().unwrap().to_owned();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Registry { child, host }
    }

    fn push(&self, layout: &Layout, name: &str, arguments: &[&str]) -> ImageRef {
        let target = format!("docker://{}/{name}", self.host);
        let mut all = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        let source = layout.image().to_string();
        all.extend(arguments);
        all.extend([source.as_str(), target.as_str()]);
        run("skopeo", &all);
        target.parse().unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_registry_image_is_fetched_by_digest_and_tracked_by_tag() {
    let scratch = Scratch::new();
    let registry = Registry::start(scratch.dir.path());
    let first = simple(&scratch, "one", b"1");
    let image = registry.push(&first, "os/base:stable", &[]);
    let resolved = scratch.resolve(&image).await.unwrap();
    assert_eq!(resolved.digest, first.manifest);
    assert_eq!(resolved.layers.iter().map(|l| l.digest.clone()).collect::<Vec<_>>(), first.layers);
    // The tag moves between plan and pull: the planned digest is what is pulled.
    registry.push(&simple(&scratch, "two", b"2"), "os/base:stable", &[]);
    let base = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &scratch.opts()).await.unwrap();
    assert_eq!(base.digest, first.manifest);
    assert_eq!(scratch.tree(&base.commit)["/usr/content"], "644 1");
    let name = refs::of_image(&image).unwrap();
    assert_eq!(scratch.repo.resolve_rev(&name, true).unwrap().unwrap(), base.commit);
    assert_ne!(scratch.resolve(&image).await.unwrap().digest, first.manifest);
    // A pinned reference, and one that pins what the registry does not have.
    let pinned = scratch.resolve(&image.pinned(&first.manifest)).await.unwrap();
    assert_eq!(pinned.digest, first.manifest);
    let error = scratch.resolve(&image.pinned(&Digest::of(b"none"))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageNotFound, "{}", error.chain());
    // A Docker manifest has the digest that the registry knows it by, so that it can be pulled by it.
    let docker = registry.push(&first, "os/docker:1", &["--format", "v2s2"]);
    let resolved = scratch.resolve(&docker).await.unwrap();
    assert_ne!(resolved.digest, first.manifest);
    let base = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &scratch.opts()).await.unwrap();
    assert_eq!(base.digest, resolved.digest);
    assert_eq!(scratch.tree(&base.commit)["/usr/content"], "644 1");
    // What a registry can answer.
    let named = |name: &str| format!("docker://{}/{name}", registry.host).parse::<ImageRef>().unwrap();
    for name in ["os/base:none", "none/none:1"] {
        let error = scratch.resolve(&named(name)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ImageNotFound, "{}", error.chain());
        assert!(error.to_string().contains(name) && error.to_string().contains("unchanged"), "{error}");
    }
    let secure = FetchOptions { insecure: false, ..scratch.opts() };
    let error = crate::pull::resolve_in_process(&image, &secure).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RegistryUnavailable, "{}", error.chain());
    drop(registry);
    let error = scratch.resolve(&image).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RegistryUnavailable, "{}", error.chain());
}

#[tokio::test]
async fn a_manifest_list_is_resolved_to_this_architecture_or_refused() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", b"1");
    let entry = |arch: &str| {
        let mut entry = layout.descriptor();
        entry["platform"] = serde_json::json!({"architecture": arch, "os": "linux"});
        entry
    };
    for (arches, found) in [(vec!["s390x", &arch()], true), (vec!["s390x", "mips"], false)] {
        let entries: Vec<_> = arches.iter().map(|a| entry(a)).collect();
        let list = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}))
        .unwrap();
        layout.index(&[serde_json::json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": layout.blob(&list), "size": list.len(),
            "annotations": {"org.opencontainers.image.ref.name": "latest"}})]);
        let resolved = scratch.resolve(&layout.image()).await;
        if found {
            assert_eq!(resolved.unwrap().digest, layout.manifest);
            scratch.pull(&layout.image()).await.unwrap();
        } else {
            let error = resolved.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{}", error.chain());
        }
    }
}

#[tokio::test]
async fn local_transports_are_read_and_their_damages_named() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", b"1");
    let source = layout.image().to_string();
    let archive = format!("oci-archive:{}", scratch.path("os.tar").display());
    let dir = format!("dir:{}", scratch.path("dir").display());
    let mut digests = vec![scratch.pull(&layout.image()).await.unwrap()];
    for target in [&archive, &dir] {
        run("skopeo", &["copy", "--quiet", &source, target]);
        digests.push(scratch.pull(&target.parse().unwrap()).await.unwrap());
    }
    digests.dedup_by_key(|b| b.digest.clone());
    assert_eq!(digests.len(), 1);
    let whole = std::fs::read(scratch.path("os.tar")).unwrap();
    for length in [100, whole.len() / 2] {
        std::fs::write(scratch.path("os.tar"), &whole[..length]).unwrap();
        let error = scratch.resolve(&archive.parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{length}: {}", error.chain());
    }
    for (image, kind) in [
        ("oci:/nonexistent/layout:latest".to_owned(), ErrorKind::ImageNotFound),
        ("oci-archive:/nonexistent.tar".to_owned(), ErrorKind::ImageNotFound),
        ("dir:/nonexistent".to_owned(), ErrorKind::ImageNotFound),
        (format!("oci:{}:other", scratch.path("oci").display()), ErrorKind::ImageNotFound),
    ] {
        let error = scratch.resolve(&image.parse().unwrap()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{image}: {}", error.chain());
    }
}

#[tokio::test]
async fn an_archive_is_unpacked_where_we_say_and_nothing_is_left() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", b"1");
    let archive = format!("oci-archive:{}", scratch.path("os.tar").display());
    run("skopeo", &["copy", "--quiet", &layout.image().to_string(), &archive]);
    let tmp = scratch.path("state/tmp");
    std::fs::create_dir_all(tmp.join("scratch-left/oci1")).unwrap();
    let opts = FetchOptions { tmp: Some(tmp.clone()), ..in_worker() };
    let resolved = resolve(&Cx::detached(), &archive.parse().unwrap(), &opts).await.unwrap();
    pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap();
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
    // That it is used: without it, nothing can be unpacked.
    std::fs::write(scratch.path("file"), "").unwrap();
    let opts = FetchOptions { tmp: Some(scratch.path("file")), ..scratch.opts() };
    assert!(crate::pull::resolve_in_process(&archive.parse().unwrap(), &opts).await.is_err());
}

#[tokio::test]
async fn local_storage_serves_images_with_their_original_manifest() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", b"1");
    let target = format!(
        "containers-storage:[vfs@{}+{}]localhost/os:1",
        scratch.path("storage").display(),
        scratch.path("run").display()
    );
    run("skopeo", &["copy", "--quiet", &layout.image().to_string(), &target]);
    let base = scratch.pull(&target.parse().unwrap()).await.unwrap();
    assert_eq!(base.digest, layout.manifest);
    assert_eq!(scratch.tree(&base.commit)["/usr/content"], "644 1");
}

#[tokio::test]
async fn a_policy_that_rejects_is_a_signature_error() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", b"1");
    let policy = scratch.path("policy.json");
    std::fs::write(&policy, r#"{"default": [{"type": "reject"}]}"#).unwrap();
    let opts = FetchOptions { policy: Some(policy), ..scratch.opts() };
    let error = crate::pull::resolve_in_process(&layout.image(), &opts).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::SignatureRejected, "{}", error.chain());
    assert!(error.to_string().contains("the running system is unchanged"), "{error}");
    // One that asks for something elsewhere is checked, and accepts this image without fetching it.
    let policy = scratch.path("policy2.json");
    std::fs::write(
        &policy,
        r#"{"default": [{"type": "reject"}],
            "transports": {"oci": {"": [{"type": "insecureAcceptAnything"}]}}}"#,
    )
    .unwrap();
    let opts = FetchOptions { policy: Some(policy), ..scratch.opts() };
    crate::pull::resolve_in_process(&layout.image(), &opts).await.unwrap();
}

#[tokio::test]
async fn a_policy_for_a_tag_holds_for_what_the_tag_is() {
    let scratch = Scratch::new();
    let registry = Registry::start(scratch.dir.path());
    let layout = simple(&scratch, "oci", b"1");
    let policy = scratch.path("policy.json");
    let one = format!("{}/os:1", registry.host);
    let rules = serde_json::json!({"default": [{"type": "reject"}],
        "transports": {"docker": {one: [{"type": "insecureAcceptAnything"}]}}});
    std::fs::write(&policy, rules.to_string()).unwrap();
    let opts = FetchOptions { policy: Some(policy), ..scratch.opts() };
    for (name, accepted) in [("os:1", true), ("os:2", false)] {
        let image = registry.push(&layout, name, &[]);
        match crate::pull::resolve_in_process(&image, &opts).await {
            Ok(_) => assert!(accepted, "{name}"),
            Err(e) => assert_eq!((e.kind, accepted), (ErrorKind::SignatureRejected, false), "{}", e.chain()),
        }
    }
}

#[tokio::test]
async fn what_was_planned_is_pulled_although_its_name_means_another_image_now() {
    let scratch = Scratch::new();
    let first = simple(&scratch, "oci", b"1");
    let resolved = scratch.resolve(&first.image()).await.unwrap();
    simple(&scratch, "oci", b"2");
    let base = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &scratch.opts()).await.unwrap();
    assert_eq!((&base.digest, &*scratch.read(&base.commit, "usr/content")), (&resolved.digest, "1"));
    // Where it is gone, it is not replaced.
    let other = Scratch::new();
    for layer in &resolved.layers {
        std::fs::remove_file(first.path(&layer.digest)).unwrap();
    }
    let error = pull(&Cx::detached(), &other.path("repo"), &resolved, &other.opts()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageNotFound, "{}", error.chain());
}

#[test]
#[ignore = "no test: the worker process of the tests below"]
fn worker_entry() {
    crate::pull::worker_main();
    std::process::exit(0);
}

pub(super) fn in_worker() -> FetchOptions {
    let arguments = ["--exact", "pull::tests::sources::worker_entry", "--ignored", "--nocapture"];
    let program = std::env::current_exe().unwrap();
    FetchOptions {
        insecure: true,
        worker: Worker::Program(program, arguments.iter().map(Into::into).collect()),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_worker_process_does_the_same_and_reports() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", &vec![b'x'; 3 << 20]);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = seen.clone();
    let cx = Cx::new(
        CancellationToken::new(),
        Arc::new(move |event| sink.lock().unwrap().push(format!("{event:?}"))),
        Arc::default(),
    );
    let resolved = resolve(&cx, &layout.image(), &in_worker()).await.unwrap();
    assert_eq!(resolved.digest, layout.manifest);
    let base = pull(&cx, &scratch.path("repo"), &resolved, &in_worker()).await.unwrap();
    assert_eq!(scratch.tree(&base.commit)["/usr/content"], "644 3145728 bytes");
    let other = Scratch::new();
    assert_eq!(pull(&cx, &other.path("repo"), &resolved, &scratch.opts()).await.unwrap(), base);
    let seen = seen.lock().unwrap().join("\n");
    assert!(seen.contains("Bytes") && seen.contains("Items"), "{seen}");
    let error = resolve(&cx, &"oci:/nonexistent/layout".parse().unwrap(), &in_worker()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::ImageNotFound, "{}", error.chain());
    assert!(error.hint.is_some());
}

#[tokio::test]
async fn cancelling_ends_skopeo_whose_registry_never_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let token = CancellationToken::new();
    let cx = Cx::new(token.clone(), Arc::new(|_| {}), Arc::default());
    let image: ImageRef = format!("docker://127.0.0.1:{port}/os:1").parse().unwrap();
    let opts = in_worker();
    let job = tokio::spawn(async move { resolve(&cx, &image, &opts).await.map(|_| ()) });
    let (connection, _) = tokio::task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
    // What talks to it is nobody in particular.
    let skopeo = descendants();
    let fetcher = crate::sys::user::fetcher().map_or(rustix::process::geteuid().as_raw(), |(uid, _)| uid);
    assert_eq!(skopeo.iter().map(|stat| users(stat)).collect::<Vec<_>>(), [vec![fetcher; 4]], "{skopeo:?}");
    let since = Instant::now();
    token.cancel();
    let error = job.await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // The peer sees the end of the connection: skopeo is gone.
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        std::io::copy(&mut &connection, &mut std::io::sink()).map_err(|e| e.kind())
    });
    let ended = ended.await.unwrap();
    assert!(matches!(ended, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "{ended:?}");
}

#[tokio::test]
async fn a_worker_that_dies_is_an_error_that_says_what_it_said() {
    let scratch = Scratch::new();
    let layout = simple(&scratch, "oci", b"1");
    let arguments = ["-c", "read line; echo not json; echo out of luck >&2; kill -9 $$"];
    let worker = Worker::Program("/bin/sh".into(), arguments.iter().map(Into::into).collect());
    let opts = FetchOptions { worker, ..scratch.opts() };
    let resolved = scratch.resolve(&layout.image()).await.unwrap();
    let error = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(
        error.chain().contains("out of luck") && error.chain().contains("unchanged"),
        "{}",
        error.chain()
    );
}
