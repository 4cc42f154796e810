//! Signatures: a real key, real simple signing beside the registry, and a policy that asks for it.

use crate::host::{Host, World, text};
use base64::Engine;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The digest of what the registry has under `os:stable`, which was pushed from this layout.
fn digest(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

/// Says in registries.d where the registry's signatures are.
fn look_at(world: &World, host: &Host, place: &Value) {
    let configuration = host.etc().join("containers/registries.d");
    std::fs::create_dir_all(&configuration).unwrap();
    let docker = json!({"docker": {world.registry.address.clone(): place}});
    // JSON is YAML.
    std::fs::write(configuration.join("test.yaml"), docker.to_string()).unwrap();
}

/// A key, and a place where its signatures lie.
struct Signer {
    dir: tempfile::TempDir,
}

impl Signer {
    fn new(world: &World, host: &Host) -> Signer {
        let signer = Signer { dir: tempfile::tempdir().unwrap() };
        // Signatures are for everybody, and whoever fetches is nobody in particular.
        Command::new("chmod").arg("755").arg(signer.dir.path()).status().unwrap();
        let place = format!("file://{}", signer.signatures().display());
        look_at(world, host, &json!({"sigstore": place}));
        std::fs::create_dir(signer.gnupg()).unwrap();
        Command::new("chmod").arg("700").arg(signer.gnupg()).status().unwrap();
        signer.gpg(&["--quick-gen-key", "os@example.com", "default", "default", "never"]);
        signer.gpg(&["--armor", "--output", signer.key().to_str().unwrap(), "--export", "os@example.com"]);
        signer
    }

    fn gnupg(&self) -> PathBuf {
        self.dir.path().join("gnupg")
    }

    fn signatures(&self) -> PathBuf {
        self.dir.path().join("signatures")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("os.asc")
    }

    fn gpg(&self, args: &[&str]) {
        let mut command = Command::new("gpg");
        command.env("GNUPGHOME", self.gnupg()).args(["--batch", "--passphrase", ""]).args(args);
        let out = command.output().expect("gpg is installed");
        assert!(out.status.success(), "gpg {args:?}: {}", text(&out));
    }

    /// Signs what the registry has under `os:stable`, which was pushed from this layout.
    fn sign(&self, world: &World, version: &str) {
        let layout = world.images.path().join(format!("os-{version}"));
        let digest = digest(&layout);
        let hex = digest.trim_start_matches("sha256:");
        let place = self.signatures().join(format!("os@sha256={hex}"));
        std::fs::create_dir_all(&place).unwrap();
        let mut command = Command::new("skopeo");
        command.env("GNUPGHOME", self.gnupg()).arg("standalone-sign");
        command.arg(layout.join("blobs/sha256").join(hex)).args([&world.os(), "os@example.com", "--output"]);
        let out = command.arg(place.join("signature-1")).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        // gpg left an agent.
        let kill = Command::new("gpgconf").env("GNUPGHOME", self.gnupg()).args(["--kill", "all"]).status();
        kill.unwrap();
    }
}

fn ok(host: &Host, args: &[&str]) -> String {
    let out = host.command(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    text(&out)
}

fn refused(host: &Host, world: &World, args: &[&str], wanted: &str) {
    let before = host.deployments();
    world.registry.clear_log();
    let out = host.command(args).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{args:?}: {}", text(&out));
    assert!(text(&out).contains(wanted), "{args:?}: {}", text(&out));
    let failure = host.status()["jobs"][0]["failure"].clone();
    assert_eq!(failure["kind"], "SignatureRejected", "{failure}");
    assert_eq!(host.deployments(), before);
    assert!(world.registry.blobs_sent().len() <= 2, "only the configuration, and what is signed");
}

fn policy(host: &Host, requirement: Value, address: &str) {
    let anything = json!({"type": "insecureAcceptAnything"});
    let policy = json!({"default": [anything], "transports": {"docker": {address: [requirement]}}});
    std::fs::create_dir_all(host.etc().join("containers")).unwrap();
    std::fs::write(host.etc().join("containers/policy.json"), policy.to_string()).unwrap();
}

fn origin(host: &Host) -> String {
    std::fs::read_to_string(format!("{}.origin", host.deployed().display())).unwrap()
}

#[test]
fn a_host_that_asked_for_signatures_goes_on_asking_until_somebody_allows_less() {
    let world = World::new();
    let host = world.empty_host();
    let signer = Signer::new(&world, &host);
    let by_key = json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": signer.key()});
    let address = world.registry.address.clone();
    policy(&host, by_key.clone(), &address);
    let first = ["rebase", &world.os(), "--stateroot", "test", "--karg", "root=LABEL=root"];
    refused(&host, &world, &first, "no signature");
    signer.sign(&world, "1");
    ok(&host, &first);
    let shown = host.status()["deployments"][0]["verification"].clone();
    let key = signer.key().to_str().unwrap().to_owned();
    assert_eq!((&shown["level"], &shown["scope"]), (&"signed".into(), &format!("docker {address}").into()));
    assert_eq!(shown["requirements"], json!([{"type": "signedBy", "keys": [key], "identities": []}]));
    let human = ok(&host, &["status"]);
    assert!(human.contains(&format!("Verified: by signature: signedBy {key} (policy: docker {address})")));
    assert!(origin(&host).contains("=ostree-image-signed:docker://"), "{}", origin(&host));

    // The signature was for what the tag meant before it moved.
    world.push_os("2");
    refused(&host, &world, &["upgrade"], "no signature");
    signer.sign(&world, "2");
    ok(&host, &["upgrade"]);

    world.push_os("3");
    policy(&host, json!({"type": "insecureAcceptAnything"}), &address);
    let said = "is verified less than what it follows";
    refused(&host, &world, &["upgrade"], said);
    refused(&host, &world, &["upgrade"], "--allow-unverified");
    refused(&host, &world, &["rebase", &world.registry.name("os:stable")], said);
    let planned = ok(&host, &["plan"]);
    assert!(planned.contains("it would be refused: ") && planned.contains(said), "{planned}");
    // What is here is not asked for again.
    host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\n");
    ok(&host, &["reconcile"]);
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "signed");

    let message = ok(&host, &["upgrade", "--allow-unverified"]);
    assert!(message.contains(said) && message.contains("--allow-unverified was given"), "{message}");
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "unverified");
    assert!(origin(&host).contains("=ostree-unverified-image:docker://"), "{}", origin(&host));
    assert!(ok(&host, &["upgrade"]).contains("No changes in input."), "it was allowed once and for this");

    // Asking again begins with the image that is there.
    policy(&host, by_key, &address);
    refused(&host, &world, &["upgrade"], "no signature");
    signer.sign(&world, "3");
    ok(&host, &["upgrade"]);
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "signed");
}

/// Signs what the registry has under `os:stable` as cosign does: an image of its own beside it, whose layer is what was
/// signed, with the signature in an annotation.
fn sign_as_cosign(world: &World, version: &str, key: &Path) {
    let signed = digest(&world.images.path().join(format!("os-{version}")));
    let name = world.os();
    let payload = json!({"critical": {"identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": signed}, "type": "cosign container image signature"},
        "optional": {}});
    let dir = tempfile::tempdir().unwrap();
    let store = |content: &str| {
        let digest = osctl::model::image::Digest::of(content.as_bytes());
        std::fs::write(dir.path().join(digest.hex()), content).unwrap();
        (digest.to_string(), content.len())
    };
    let (payload, payload_size) = store(&payload.to_string());
    let config = json!({"architecture": "", "os": "", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [payload]}});
    let (config, config_size) = store(&config.to_string());
    let content = dir.path().join(payload.trim_start_matches("sha256:"));
    let mut openssl = Command::new("openssl");
    let out = openssl.args(["dgst", "-sha256", "-sign"]).arg(key).arg(content).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let signature = base64::engine::general_purpose::STANDARD.encode(out.stdout);
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": payload,
            "size": payload_size, "annotations": {"dev.cosignproject.cosign/signature": signature}}]});
    std::fs::write(dir.path().join("manifest.json"), manifest.to_string()).unwrap();
    std::fs::write(dir.path().join("version"), "Directory Transport Version: 1.1\n").unwrap();
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"]);
    skopeo.arg(format!("dir:{}", dir.path().display()));
    skopeo.arg(format!("docker://{}:{}.sig", name.trim_end_matches(":stable"), signed.replace(':', "-")));
    let out = skopeo.output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
}

#[test]
fn sigstore_signatures_are_asked_for_as_the_policy_says() {
    let world = World::new();
    let host = world.empty_host();
    let keys = tempfile::tempdir().unwrap();
    let (private, public) = (keys.path().join("private.pem"), keys.path().join("public.pem"));
    let openssl = |args: &[&str], file: &Path| {
        let out = Command::new("openssl").args(args).arg("-out").arg(file).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], &private);
    openssl(&["ec", "-in", private.to_str().unwrap(), "-pubout"], &public);
    look_at(&world, &host, &json!({"use-sigstore-attachments": true}));
    let address = world.registry.address.clone();
    policy(&host, json!({"type": "sigstoreSigned", "keyPath": public}), &address);
    let first = ["rebase", &world.os(), "--stateroot", "test", "--karg", "root=LABEL=root"];
    refused(&host, &world, &first, "no signature");
    sign_as_cosign(&world, "1", &private);
    let out = host.command(&first).output().unwrap();
    if text(&out).contains("sigstore disabled") {
        // Debian 12's skopeo is built without it.
        assert!(text(&out).contains("the signature policy cannot be met"), "{}", text(&out));
        return;
    }
    assert!(out.status.success(), "{}", text(&out));
    let shown = host.status()["deployments"][0]["verification"].clone();
    assert_eq!(
        (&shown["level"], &shown["requirements"][0]["type"]),
        (&"signed".into(), &"sigstoreSigned".into())
    );

    // By somebody else.
    world.push_os("2");
    let other = keys.path().join("other.pem");
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout"], &other);
    sign_as_cosign(&world, "2", &other);
    refused(&host, &world, &["upgrade"], "signature");
    sign_as_cosign(&world, "2", &private);
    ok(&host, &["upgrade"]);
}

#[test]
fn a_bundle_is_taken_under_the_policy_of_the_registry_whose_names_it_has() {
    let world = World::new();
    let host = world.empty_host();
    let signer = Signer::new(&world, &host);
    let dir = host.dir.path().join("bundle").display().to_string();
    let config = host.dir.path().join("config");
    let create = || {
        let mut create = Command::new(env!("CARGO_BIN_EXE_osctl"));
        create.args(["bundle", "create", &world.os(), "-o", &dir, "--config-root"]).arg(&config);
        let out = host.environment(&mut create).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    };
    create();
    let by_key = json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": signer.key()});
    policy(&host, by_key, &world.registry.address);
    let first =
        ["rebase", &world.os(), "--from-bundle", &dir, "--stateroot", "test", "--karg", "root=LABEL=root"];
    refused(&host, &world, &first, "no signature");
    signer.sign(&world, "1");
    refused(&host, &world, &first, "no signature");
    create();
    // Neither the registry nor what lies beside it can be reached.
    world.registry.clear_log();
    std::fs::rename(signer.signatures(), signer.dir.path().join("away")).unwrap();
    ok(&host, &first);
    assert_eq!(world.registry.requests(), []);
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "signed");
}

#[test]
fn the_signatures_that_a_registry_has_are_part_of_a_bundle() {
    let world = World::new();
    let host = world.empty_host();
    let key = host.dir.path().join("private.pem");
    let openssl = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"];
    assert!(Command::new("openssl").args(openssl).arg(&key).status().unwrap().success());
    sign_as_cosign(&world, "1", &key);
    let dir = host.dir.path().join("bundle").display().to_string();
    let mut create = Command::new(env!("CARGO_BIN_EXE_osctl"));
    create.args(["bundle", "create", &world.os(), "-o", &dir, "--json"]);
    let out = host.environment(&mut create).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let made: Value = serde_json::from_slice(&out.stdout).unwrap();
    let signed = digest(&world.images.path().join("os-1")).replace(':', "-");
    let image = &made["images"][1];
    assert_eq!(image["role"], "signature", "{made}");
    assert!(image["reference"].as_str().unwrap().ends_with(&format!(":{signed}.sig")), "{image}");
}
