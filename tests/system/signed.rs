//! Signatures: a real key, real simple signing beside the registry, and a policy that asks for it.

use crate::host::{Host, World, text};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// A key, and a place where its signatures lie.
struct Signer {
    dir: tempfile::TempDir,
}

impl Signer {
    fn new(world: &World, host: &Host) -> Signer {
        let signer = Signer { dir: tempfile::tempdir().unwrap() };
        let configuration = host.etc().join("containers/registries.d");
        std::fs::create_dir_all(&configuration).unwrap();
        // Signatures are for everybody, and whoever fetches is nobody in particular.
        Command::new("chmod").arg("755").arg(signer.dir.path()).status().unwrap();
        let place = json!({"docker": {world.registry.address.clone():
            {"sigstore": format!("file://{}", signer.signatures().display())}}});
        // JSON is YAML.
        std::fs::write(configuration.join("test.yaml"), place.to_string()).unwrap();
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
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap();
        let hex = digest.trim_start_matches("sha256:");
        let place = self.signatures().join(format!("os@sha256={hex}"));
        std::fs::create_dir_all(&place).unwrap();
        let mut command = Command::new("skopeo");
        command.env("GNUPGHOME", self.gnupg()).arg("standalone-sign");
        command.arg(layout.join("blobs/sha256").join(hex)).args([&world.os(), "os@example.com", "--output"]);
        let out = command.arg(place.join("signature-1")).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }

    fn ok(&self, host: &Host, args: &[&str]) -> String {
        let out = host.command(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        text(&out)
    }

    fn refused(&self, host: &Host, world: &World, args: &[&str], wanted: &str) {
        let before = host.deployments();
        world.registry.clear_log();
        let out = host.command(args).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {}", text(&out));
        assert!(text(&out).contains(wanted), "{args:?}: {}", text(&out));
        let failure = host.status()["jobs"][0]["failure"].clone();
        assert_eq!(failure["kind"], "SignatureRejected", "{failure}");
        assert_eq!(host.deployments(), before);
        assert!(world.registry.blobs_sent().len() <= 1, "only the configuration");
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        // gpg left an agent.
        let kill = Command::new("gpgconf").env("GNUPGHOME", self.gnupg()).args(["--kill", "all"]).status();
        kill.unwrap();
    }
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
    signer.refused(&host, &world, &first, "no signature");
    signer.sign(&world, "1");
    signer.ok(&host, &first);
    let shown = host.status()["deployments"][0]["verification"].clone();
    let key = signer.key().to_str().unwrap().to_owned();
    assert_eq!((&shown["level"], &shown["scope"]), (&"signed".into(), &format!("docker {address}").into()));
    assert_eq!(shown["requirements"], json!([{"type": "signedBy", "keys": [key], "identities": []}]));
    let human = signer.ok(&host, &["status"]);
    assert!(human.contains(&format!("Verified: by signature: signedBy {key} (policy: docker {address})")));
    assert!(origin(&host).contains("=ostree-image-signed:docker://"), "{}", origin(&host));

    // The signature was for what the tag meant before it moved.
    world.push_os("2");
    signer.refused(&host, &world, &["upgrade"], "no signature");
    signer.sign(&world, "2");
    signer.ok(&host, &["upgrade"]);

    world.push_os("3");
    policy(&host, json!({"type": "insecureAcceptAnything"}), &address);
    let said = "is verified less than what it follows";
    signer.refused(&host, &world, &["upgrade"], said);
    signer.refused(&host, &world, &["upgrade"], "--allow-unverified");
    signer.refused(&host, &world, &["rebase", &world.registry.name("os:stable")], said);
    let planned = signer.ok(&host, &["plan"]);
    assert!(planned.contains("it would be refused: ") && planned.contains(said), "{planned}");
    // What is here is not asked for again.
    host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\n");
    signer.ok(&host, &["reconcile"]);
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "signed");

    let message = signer.ok(&host, &["upgrade", "--allow-unverified"]);
    assert!(message.contains(said) && message.contains("--allow-unverified was given"), "{message}");
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "unverified");
    assert!(origin(&host).contains("=ostree-unverified-image:docker://"), "{}", origin(&host));
    assert!(
        signer.ok(&host, &["upgrade"]).contains("No changes in input."),
        "it was allowed once and for this"
    );

    // Asking again begins with the image that is there.
    policy(&host, by_key, &address);
    signer.refused(&host, &world, &["upgrade"], "no signature");
    signer.sign(&world, "3");
    signer.ok(&host, &["upgrade"]);
    assert_eq!(host.status()["deployments"][0]["verification"]["level"], "signed");
}
