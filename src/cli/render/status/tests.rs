//! Golden files: what people read is looked at when it changes.

use super::*;
use crate::cli::render::schema::breaks;
use crate::model::bound::{BoundImage, BoundSet, BoundSpec, Mode};
use crate::model::deviation::{Asked, Effect, Outcome};
use crate::model::image::Digest;
use crate::model::job::{Failure, Initiator, JobResult};
use crate::model::plan::{Facts, Plan, Release};
use crate::model::status::{
    self, Bound, BoundState, Derivation, DropIn, OwnedKarg, OwnedPath, OwnedUnit, OwnedUser, PackageRequest,
    Rejected, Unmet,
};
use crate::model::verification::{Requirement, Verification};
use crate::model::verified::{Checked, Damage, Outcome as Checking, Verified};
use serde_json::Value;

fn deployment(id: &str, version: &str) -> Deployment {
    Deployment {
        id: id.into(),
        index: 0,
        stateroot: "os".into(),
        checksum: format!("{version}c"),
        base_checksum: format!("{version}b"),
        image: Some("registry.example.com/os:stable".parse().unwrap()),
        digest: Some(Digest::of(version.as_bytes())),
        version: version.into(),
        timestamp: 1_709_251_199,
        booted: false,
        staged: false,
        default: false,
        pinned: false,
        verification: None,
        derivation: Derivation::default(),
        bound_images: BoundSet::default(),
        labels: Default::default(),
        incompatible: Vec::new(),
    }
}

fn package(
    request: &str,
    asked: Asked,
    outcome: Outcome,
    owners: &[&str],
    version: Option<&str>,
) -> PackageRequest {
    PackageRequest {
        request: request.into(),
        asked,
        outcome,
        owners: owners.iter().map(|o| (*o).to_owned()).collect(),
        version: version.map(str::to_owned),
    }
}

fn status() -> Status {
    let mut staged = deployment("os-2c.0", "2");
    staged.staged = true;
    staged.derivation = Derivation {
        input_digest: Some(Digest::of(b"input")),
        drop_ins: ["50-agent.yaml", "60-bond.yaml"]
            .map(|n| DropIn { name: n.into(), digest: Digest::of(b"") })
            .into(),
        packages: vec![
            package(
                "agent",
                Asked::Install,
                Outcome::Applied,
                &["50-agent.yaml", "60-bond.yaml"],
                Some("1.0"),
            ),
            package("vim", Asked::Install, Outcome::Redundant, &["60-bond.yaml"], None),
            package("moby-engine", Asked::Remove, Outcome::Applied, &["60-bond.yaml"], None),
            package("kernel-6.9.1-2", Asked::Replace, Outcome::Redundant, &["60-bond.yaml"], None),
        ],
        files: ["/etc/agent.conf", "/etc/systemd/system/agent.service"]
            .map(|path| OwnedPath {
                path: path.into(),
                owner: "50-agent.yaml".into(),
                effect: Some(Effect::Added),
            })
            .into(),
        units: vec![OwnedUnit {
            name: "agent.service".into(),
            owner: "50-agent.yaml".into(),
            enabled: Some(true),
            mask: false,
            links: vec!["/etc/systemd/system/multi-user.target.wants/agent.service".into()],
        }],
        users: vec![OwnedUser { name: "agent".into(), owner: "50-agent.yaml".into() }],
        groups: vec![OwnedUser { name: "agents".into(), owner: "50-agent.yaml".into() }],
        deleted_kargs: vec![OwnedKarg { arg: "quiet".into(), owner: "60-bond.yaml".into() }],
        kargs: vec![
            OwnedKarg { arg: "rw".into(), owner: "local".into() },
            OwnedKarg { arg: "nosmt".into(), owner: "50-agent.yaml".into() },
        ],
        kept_local: vec!["/etc/motd".into()],
    };
    staged.bound_images.images.push(BoundImage {
        spec: BoundSpec {
            auth_file: Some("/root/secret.json".into()),
            ..BoundSpec::new("registry.example.com/app:1".parse().unwrap(), "app.toml")
        },
        digest: Digest::of(b"app"),
    });
    staged.verification = Some(Verification::new(
        "docker registry.example.com".into(),
        vec![Requirement {
            kind: "signedBy".into(),
            keys: vec!["/etc/pki/os.asc".into()],
            identities: Vec::new(),
        }],
    ));
    let mut booted = deployment("os-1c.0", "1");
    booted.verification = Some(Verification::new("default".into(), Vec::new()));
    (booted.booted, booted.default, booted.index) = (true, true, 1);
    let mut old = deployment("os-0c.0", "");
    (old.pinned, old.index, old.image, old.digest) = (true, 2, None, None);
    old.incompatible = vec!["packages".into()];
    let mut job =
        Job::new("2f1c8c3e-9f0b-4d84-9a5c-0d8a1f6e7b11".into(), "upgrade", Initiator::default(), 10);
    job.state = State::Failed;
    job.finished = 20;
    job.failure = Some(Failure {
        kind: crate::model::ErrorKind::NoSpace,
        message: "need 5 MB on /boot".into(),
        hint: String::new(),
        details: Default::default(),
    });
    let mut running =
        Job::new("7b0f2f4e-0000-4d84-9a5c-0d8a1f6e7b11".into(), "check", Initiator::default(), 30);
    (running.state, running.step, running.progress) = (State::Running, "resolve.image".into(), 0.015);
    Status {
        state: "degraded".into(),
        reasons: vec!["the registry cannot be reached since yesterday".into()],
        booted: Some(booted.id.clone()),
        staged: Some(staged.id.clone()),
        rollback: Some(old.id.clone()),
        deployments: vec![staged, booted, old],
        bound: vec![Bound {
            id: Digest::of(b"app").hex()[..12].to_owned(),
            reference: "quay.io/example/app:1".parse().unwrap(),
            digest: Digest::of(b"app"),
            mode: Mode::Bind,
            source: "/etc/osctl/bound-images.d/app.toml".into(),
            state: BoundState::Damaged,
            size: 7,
            checked: 1_709_251_199,
            damage: vec![Damage::of_file(&Digest::of(b"layer"), "/bin/app", "is missing")],
            deployments: vec!["os-2c.0".into()],
        }],
        pending_changes: vec!["60-bond.yaml changed".into()],
        unmet: vec![Unmet { request: "nope".into(), asked: Asked::Install, owner: "70-bad.yaml".into() }],
        last_outcome: Some(status::Outcome {
            shadowed: Vec::new(),
            ok: false,
            checksum: "2c".into(),
            digest: None,
            phase: "finalize".into(),
            message: "journalctl -b -1 -u ostree-finalize-staged".into(),
        }),
        rivals: vec!["rpm-ostreed-automatic.timer".into()],
        jobs: vec![running, job],
        ..Status::initializing()
    }
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, text: &str) {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/render/status/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "UPDATE_GOLDEN=1 rewrites {}", path.display());
}

#[test]
fn the_human_status_is_golden() {
    golden("human.txt", &human(&status(), false));
    golden("verbose.txt", &human(&status(), true));
    golden("empty.txt", &human(&Status { state: "idle".into(), ..Status::initializing() }, false));
    golden("jobs.txt", &jobs(&status().jobs));
    assert_eq!(jobs(&[]), "No jobs.\n");
}

#[test]
fn what_an_image_says_of_itself_cannot_pretend_to_be_our_line() {
    let mut status = status();
    let lie = "1\nState: idle\x1b[8m";
    let booted = &mut status.deployments[1];
    booted.version = lie.into();
    booted.labels.insert("a".into(), lie.into());
    booted.derivation.kept_local.push(lie.into());
    for job in &mut status.jobs {
        (job.step, job.failure) =
            (lie.into(), job.failure.clone().map(|f| Failure { message: lie.into(), ..f }));
    }
    status.reasons.push(lie.into());
    status.pending_changes.push(lie.into());
    status.last_outcome.as_mut().unwrap().message = lie.into();
    for text in [human(&status, true), jobs(&status.jobs)] {
        assert!(!text.contains('\x1b') && !text.contains("\nState: idle"), "{text}");
        assert!(text.contains("1\\u000aState: idle\\u001b[8m"), "{text}");
    }
}

#[test]
fn the_schema_names_every_member_of_the_status() {
    let schema: Value = serde_json::from_str(include_str!("../../../../docs/status.schema.json")).unwrap();
    let golden: Value = serde_json::from_str(include_str!("golden/status.json")).unwrap();
    assert_eq!(breaks(&schema, &schema, &golden, "status"), Vec::<String>::new());

    let mut full = status();
    full.deployments[0].labels.insert("org.opencontainers.image.revision".into(), "1".into());
    full.last_outcome.as_mut().unwrap().shadowed.push("/etc/motd".into());
    full.rejected.push(Rejected {
        digest: None,
        input_digest: Some(Digest::of(b"")),
        reason: "rolled back".into(),
    });
    let plan = Plan::new(Facts {
        image: None,
        target: Release::default(),
        current: None,
        changed: false,
        parts: Vec::new(),
        places: Vec::new(),
        notes: Vec::new(),
    });
    (full.jobs[0].state, full.jobs[0].result) =
        (State::Succeeded, Some(JobResult { plan: Some(Box::new(plan)), ..Default::default() }));
    let checked = Checked {
        reference: "quay.io/example/app:1".into(),
        digest: Digest::of(b"app"),
        outcome: Checking::Damaged,
        damage: full.bound[0].damage.clone(),
        failure: Some("the registry is down".into()),
    };
    full.jobs[0].result.as_mut().unwrap().verified = Some(Box::new(Verified { images: vec![checked] }));
    full.jobs[0].messages.push("said".into());
    let failure = full.jobs[1].failure.as_mut().unwrap();
    failure.details.insert("need".into(), "5".into());
    let mut full = serde_json::to_value(full).unwrap();
    assert_eq!(breaks(&schema, &schema, &full, "status"), Vec::<String>::new());

    full["jobs"][0]["result"]["surprise"] = true.into();
    full["deployments"][1].as_object_mut().unwrap().remove("pinned");
    let wrong = breaks(&schema, &schema, &full, "status").join("\n");
    assert!(wrong.contains("status.jobs[0].result.surprise is not in the schema"), "{wrong}");
    assert!(wrong.contains("status.deployments[1] has no pinned"), "{wrong}");
}

#[test]
fn the_json_status_is_golden_and_comes_back() {
    let text = serde_json::to_string_pretty(&status()).unwrap() + "\n";
    golden("status.json", &text);
    let mut shown = status();
    shown.deployments[0].bound_images.images[0].spec.auth_file = None;
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), shown, "all but the path of a secret");
}
