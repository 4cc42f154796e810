//! What goes wrong between a registry and us, and what becomes of it: one table.

use super::registry::{Fault, Part, Registry, Request, Times};
use super::sources::{in_worker, simple};
use crate::engine::cx::Cx;
use crate::model::ErrorKind;
use crate::pull::fixture::{Layout, Scratch};
use crate::pull::{FetchOptions, Patience, pull, refs, resolve};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Noise, so that a layer is as large as its content.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

const SIZE: usize = 600_000;

fn image(scratch: &Scratch) -> (Registry, Layout) {
    let layout = simple(scratch, "oci", &noise(SIZE));
    (Registry::serve("os", "1", &layout), layout)
}

/// As impatient as a test.
fn hasty(scratch: &Scratch) -> FetchOptions {
    FetchOptions {
        insecure: true,
        spool: Some(scratch.path("spool")),
        patience: Patience {
            first: Duration::from_millis(10),
            longest: Duration::from_millis(40),
            asked: Duration::from_secs(2),
            tries: 3,
            stall: Duration::from_millis(700),
        },
        ..scratch.opts()
    }
}

/// The one layer that is large.
const LAYER: Part = Part::Layer(1);

fn spooled(scratch: &Scratch) -> usize {
    std::fs::read_dir(scratch.path("spool")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn every_fault_of_a_layer_has_its_error_its_retries_and_its_end() {
    use ErrorKind::*;
    let table: Vec<(Fault, Times, Result<(), ErrorKind>, usize)> = vec![
        // What cannot pass is asked once.
        (Fault::Status(401), Times::Always, Err(AuthRequired), 1),
        (Fault::Status(403), Times::Always, Err(AuthRequired), 1),
        (Fault::Status(404), Times::Always, Err(ImageNotFound), 1),
        (Fault::Status(400), Times::Always, Err(RegistryUnavailable), 1),
        // What can pass is asked again, and given up at some time.
        (Fault::Status(408), Times::Always, Err(RegistryUnavailable), 3),
        (Fault::Status(429), Times::Always, Err(RateLimited), 3),
        (Fault::Status(429), Times::Once, Ok(()), 2),
        (Fault::Throttle("1".into()), Times::Once, Ok(()), 2),
        (Fault::Throttle("3600".into()), Times::Once, Err(RateLimited), 1),
        (Fault::Status(500), Times::Always, Err(RegistryUnavailable), 3),
        (Fault::Status(502), Times::Always, Err(RegistryUnavailable), 3),
        (Fault::Status(503), Times::Exactly(2), Ok(()), 3),
        (Fault::Truncate(1000), Times::Always, Err(RegistryUnavailable), 3),
        (Fault::Truncate(300_000), Times::Once, Ok(()), 2),
        (Fault::ShortOk(300_000), Times::Once, Ok(()), 2),
        (Fault::Reset(1000), Times::Always, Err(RegistryUnavailable), 3),
        (Fault::Reset(300_000), Times::Once, Ok(()), 2),
        (Fault::Stall(1000), Times::Always, Err(RegistryUnavailable), 3),
        (Fault::Stall(300_000), Times::Once, Ok(()), 2),
        // A transfer that gets on is one bad connection after the other, and not a registry that is gone.
        (Fault::Truncate(100_000), Times::Always, Ok(()), 7),
        // Other content is fetched anew, once.
        (Fault::Corrupt, Times::Always, Err(DigestMismatch), 2),
        (Fault::Corrupt, Times::Once, Ok(()), 2),
    ];
    for (fault, times, expected, asked) in table {
        let what = format!("{fault:?} {times:?}");
        let scratch = Scratch::new();
        let (registry, layout) = image(&scratch);
        let opts = hasty(&scratch);
        // One layer is here already.
        registry.move_tag("os", "0", &simple(&scratch, "before", b"0"));
        let before = resolve(&Cx::detached(), &registry.image("os:0"), &opts).await.unwrap();
        pull(&Cx::detached(), &scratch.path("repo"), &before, &opts).await.unwrap();
        let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
        let so_far = registry.requests_for(LAYER).len();
        registry.fail(LAYER, fault, times);
        let start = Instant::now();
        let pulled = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: {:?}", start.elapsed());
        assert_eq!(pulled.as_ref().map(|_| ()).map_err(|e| e.kind), expected, "{what}: {pulled:?}");
        let requests = registry.requests_for(LAYER).split_off(so_far);
        assert_eq!(requests.len(), asked, "{what}: {requests:?}");
        if let Err(error) = pulled {
            assert!(error.to_string().contains("the running system is unchanged"), "{what}: {error}");
            // Nothing of it is named, and the next attempt fetches no more than this layer.
            let name = refs::of_layer(&layout.layers[1]).unwrap();
            assert_eq!(scratch.repo.resolve_rev(&name, true).unwrap(), None, "{what}");
            registry.heal();
            let before = registry.requests().len();
            pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap();
            let new: Vec<Option<Part>> = registry.requests()[before..].iter().map(|r| r.part).collect();
            assert_eq!(new, [Some(LAYER)], "{what}");
        }
        assert_eq!(spooled(&scratch), 0, "{what}: nothing is left of a pull that ended well");
    }
}

#[tokio::test]
async fn every_fault_of_a_manifest_or_configuration_has_its_error_and_its_retries() {
    use ErrorKind::*;
    let waits = |scratch: &Scratch| {
        let patience = Patience { stall: Duration::from_millis(1500), tries: 1, ..hasty(scratch).patience };
        FetchOptions { patience, insecure: true, ..in_worker() }
    };
    let table: Vec<(Fault, Times, Result<(), ErrorKind>)> = vec![
        (Fault::Status(401), Times::Always, Err(AuthRequired)),
        (Fault::Status(403), Times::Always, Err(AuthRequired)),
        (Fault::Status(404), Times::Always, Err(ImageNotFound)),
        (Fault::Throttle("1".into()), Times::Once, Ok(())),
        (Fault::Status(500), Times::Always, Err(RegistryUnavailable)),
        (Fault::Status(500), Times::Once, Ok(())),
        (Fault::Status(502), Times::Always, Err(RegistryUnavailable)),
        (Fault::Truncate(10), Times::Always, Err(RegistryUnavailable)),
        (Fault::Truncate(10), Times::Once, Ok(())),
        (Fault::Reset(10), Times::Always, Err(RegistryUnavailable)),
        (Fault::Reset(10), Times::Once, Ok(())),
        (Fault::Corrupt, Times::Always, Err(DigestMismatch)),
        (Fault::Disappear(10), Times::Once, Err(RegistryUnavailable)),
        (Fault::Stall(10), Times::Always, Err(RegistryUnavailable)),
    ];
    for part in [Part::Manifest, Part::Config] {
        for (fault, times, expected) in &table {
            let what = format!("{part:?} {fault:?} {times:?}");
            let scratch = Scratch::new();
            let (registry, layout) = image(&scratch);
            // By digest: otherwise nobody could say that a manifest is a wrong one.
            let image = registry.image("os:1").pinned(&layout.manifest);
            registry.fail(part, fault.clone(), *times);
            let stalls = matches!(fault, Fault::Stall(_));
            let opts = if stalls { waits(&scratch) } else { hasty(&scratch) };
            let resolved = resolve(&Cx::detached(), &image, &opts).await;
            assert_eq!(resolved.as_ref().map(|_| ()).map_err(|e| e.kind), *expected, "{what}: {resolved:?}");
            let layers =
                registry.requests().iter().filter(|r| matches!(r.part, Some(Part::Layer(_)))).count();
            assert_eq!(layers, 0, "{what}: nothing is downloaded before it is known what it is");
        }
    }
}

#[tokio::test]
async fn the_configuration_of_an_image_that_is_here_is_not_fetched_again() {
    let scratch = Scratch::new();
    let (registry, _) = image(&scratch);
    let opts = FetchOptions { repo: Some(scratch.path("repo")), ..hasty(&scratch) };
    let configs = || registry.requests_for(Part::Config).len();
    let first = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    pull(&Cx::detached(), &scratch.path("repo"), &first, &opts).await.unwrap();
    assert_eq!(configs(), 1);
    let again = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    assert_eq!(configs(), 1);
    assert_eq!(
        (again.digest, again.config_text, again.layers),
        (first.digest, first.config_text, first.layers)
    );
    // That of another one is.
    registry.move_tag("os", "1", &simple(&scratch, "other", b"2"));
    resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    assert_eq!(configs(), 2);
}

#[tokio::test]
async fn a_transfer_goes_on_where_it_was_also_after_the_registry_was_gone() {
    let scratch = Scratch::new();
    let (registry, layout) = image(&scratch);
    let opts = hasty(&scratch);
    let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    registry.fail(LAYER, Fault::Disappear(400_000), Times::Once);
    let error = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RegistryUnavailable, "{}", error.chain());
    let part = std::fs::metadata(scratch.path("spool").join(layout.layers[1].hex())).unwrap().len();
    assert!(part > 300_000 && part < SIZE as u64, "{part}");
    registry.come_back();
    pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap();
    let last = registry.requests_for(LAYER).pop().unwrap();
    assert_eq!((last.range, last.status), (Some((part, None)), 206));
    // A server that knows no ranges sends everything, and what is here is not taken twice.
    let other = Scratch::new();
    registry.ignore_ranges();
    registry.fail(LAYER, Fault::Truncate(300_000), Times::Once);
    let opts = hasty(&other);
    let base = pull(&Cx::detached(), &other.path("repo"), &resolved, &opts).await.unwrap();
    assert_eq!(other.tree(&base.commit)["/usr/content"], format!("644 {SIZE} bytes"));
    let last = registry.requests_for(LAYER).pop().unwrap();
    assert_eq!((last.range.is_some(), last.status), (true, 200));
}

#[tokio::test]
async fn a_tag_that_moves_after_the_plan_does_not_change_what_is_pulled() {
    let scratch = Scratch::new();
    let (registry, _) = image(&scratch);
    let opts = hasty(&scratch);
    let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    registry.move_tag("os", "1", &simple(&scratch, "newer", b"newer"));
    let base = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap();
    assert_eq!(base.digest, resolved.digest);
    assert_eq!(scratch.tree(&base.commit)["/usr/content"], format!("644 {SIZE} bytes"));
    assert_ne!(resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap().digest, base.digest);
}

#[tokio::test]
async fn logins_are_given_to_the_registry_and_to_nobody_that_it_sends_us_to() {
    type Guard = fn(&Registry);
    let guards: [(&str, Guard); 3] = [
        ("basic", |registry| registry.require_basic("user", "secret")),
        ("bearer", |registry| registry.require_bearer("user", "secret")),
        ("short tokens", |registry| registry.require_bearer("user", "secret")),
    ];
    for (what, guard) in guards {
        for opts in [FetchOptions::default(), in_worker()] {
            let scratch = Scratch::new();
            let (registry, _) = image(&scratch);
            let store = Registry::serve("store", "1", &simple(&scratch, "oci", &noise(SIZE)));
            guard(&registry);
            registry.fail(LAYER, Fault::Redirect(store.store()), Times::Always);
            let auth = scratch.path("auth.json");
            let login = serde_json::json!({"auths": {registry.host(): {"auth": "dXNlcjpzZWNyZXQ="}}});
            std::fs::write(&auth, login.to_string()).unwrap();
            let hasty = hasty(&scratch);
            let worker = if opts.insecure { opts.worker } else { hasty.worker.clone() };
            let opts = FetchOptions { auth_file: Some(auth), worker, ..hasty };
            let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
            if what == "short tokens" {
                registry.tokens_last(1);
            }
            let base = pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await;
            assert!(base.is_ok(), "{what}: {base:?}");
            let stored = store.requests();
            let leaked: Vec<&Request> = stored.iter().filter(|r| r.authorization).collect();
            assert!(!stored.is_empty() && leaked.is_empty(), "{what}: {leaked:?}");
            let wrong = FetchOptions { auth_file: None, ..opts };
            let other = Scratch::new();
            let error = pull(&Cx::detached(), &other.path("repo"), &resolved, &wrong).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::AuthRequired, "{what}: {}", error.chain());
        }
    }
}

#[tokio::test]
async fn a_rate_is_kept_by_all_connections_together() {
    let scratch = Scratch::new();
    let (registry, _) = image(&scratch);
    let opts = FetchOptions { rate_limit: NonZeroU64::new(400_000), ..hasty(&scratch) };
    let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    let start = Instant::now();
    pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(1400), "{:?}", start.elapsed());
}

#[tokio::test]
async fn layers_are_fetched_side_by_side() {
    let scratch = Scratch::new();
    let (registry, _) = image(&scratch);
    registry.delay(Duration::from_millis(300));
    let opts = hasty(&scratch);
    let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    pull(&Cx::detached(), &scratch.path("repo"), &resolved, &opts).await.unwrap();
    assert!(registry.peak_connections() >= 2, "{}", registry.peak_connections());
}

/// Processes that this one started, and theirs.
pub(super) fn descendants() -> Vec<String> {
    let all: Vec<(u32, u32, String)> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            let (start, rest) = stat.rsplit_once(") ")?;
            let mut fields = rest.split(' ');
            let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
            (state != "Z").then_some((start.split(' ').next()?.parse().ok()?, parent, stat.clone()))
        })
        .collect();
    let mut family = vec![std::process::id()];
    let mut found = Vec::new();
    while let Some(parent) = family.pop() {
        for (pid, _, stat) in all.iter().filter(|(_, of, _)| *of == parent) {
            family.push(*pid);
            found.push(stat.clone());
        }
    }
    found
}

/// The users that a process runs as, by its line in /proc.
pub(super) fn users(stat: &str) -> Vec<u32> {
    let pid = stat.split(' ').next().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    ids.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// Who fetches is nobody in particular, and the threads that work as root have no network.
fn roles() {
    let Some((fetcher, _)) = crate::sys::user::fetcher() else { return };
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    // The threads that work: the first one of a test program is the harness's.
    let networked = |pid: &str| {
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().any(|thread| {
            let name = std::fs::read_to_string(thread.path().join("comm")).unwrap();
            let works = ["import", "unpack", "write-back"].contains(&name.trim());
            let network = std::fs::read_link(thread.path().join("ns/net")).unwrap();
            works && network == ours
        })
    };
    let family = descendants();
    assert!(!family.iter().any(|stat| networked(stat.split(' ').next().unwrap())), "{family:?}");
    let mut seen: Vec<_> = family.iter().map(|stat| users(stat)).collect();
    seen.sort();
    assert_eq!(seen, [vec![0; 4], vec![fetcher; 4]]);
}

#[tokio::test]
async fn a_pull_that_is_cancelled_is_over_soon_leaves_nobody_behind_and_goes_on_where_it_was() {
    let scratch = Scratch::new();
    let (registry, layout) = image(&scratch);
    let opts = FetchOptions { worker: in_worker().worker, ..hasty(&scratch) };
    let resolved = resolve(&Cx::detached(), &registry.image("os:1"), &opts).await.unwrap();
    registry.fail(LAYER, Fault::Slow(200_000), Times::Always);
    let spooled = scratch.path("spool").join(layout.layers[1].hex());
    let here = || std::fs::metadata(&spooled).map_or(0, |m| m.len());
    let cx = Cx::detached();
    let (path, cancel) = (scratch.path("repo"), cx.clone());
    let watch = async {
        while here() < 100_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(descendants().len() >= 2, "a worker and a fetcher: {:?}", descendants());
        roles();
        assert!(cancel.cancel());
        Instant::now()
    };
    let (pulled, cancelled) = tokio::join!(pull(&cx, &path, &resolved, &opts), watch);
    assert_eq!(pulled.unwrap_err().kind, ErrorKind::Cancelled);
    assert!(cancelled.elapsed() < Duration::from_secs(10), "{:?}", cancelled.elapsed());
    assert_eq!(descendants(), Vec::<String>::new());
    let (part, asked) = (here(), registry.requests().len());
    assert!(part >= 100_000 && part < SIZE as u64, "{part}");
    registry.heal();
    let base = pull(&Cx::detached(), &path, &resolved, &opts).await.unwrap();
    assert_eq!(scratch.tree(&base.commit)["/usr/content"], format!("644 {SIZE} bytes"));
    let new = registry.requests().split_off(asked);
    assert_eq!(new.iter().map(|r| r.part).collect::<Vec<_>>(), [Some(LAYER)], "{new:?}");
    assert_eq!(new[0].range, Some((part, None)));
}
