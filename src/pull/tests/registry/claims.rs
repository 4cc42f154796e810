//! That the fault registry is a registry, and that its faults are what they are called: seen by skopeo and by a
//! plain socket.

use super::{Fault, Part, Registry, Request, Times, basic};
use crate::model::image::Digest;
use crate::pull::fixture::{Layout, Pack};
use crate::sys::credentials::Credentials;
use crate::sys::registries::{Access, Endpoint, auth_json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of the upper layer.
const SIZE: u64 = 100_000;

fn content(of: u8) -> Vec<u8> {
    (0..SIZE).map(|n| u8::try_from(n % 251).unwrap() ^ of).collect()
}

fn layout(dir: &Path) -> Layout {
    Layout::write(dir, &[(vec![0; 2048], Pack::Gzip), (content(0), Pack::None)])
}

fn skopeo(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("skopeo").args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What a plain socket got.
struct Got {
    head: String,
    body: Vec<u8>,
    /// How the connection ended: `None` is regularly.
    end: Option<ErrorKind>,
}

impl Got {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).map_or(0, |s| s.parse().unwrap())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn ask(registry: &Registry, method: &str, target: &str, headers: &[(&str, &str)]) -> Got {
    let mut stream = TcpStream::connect(registry.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut request = format!("{method} {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).unwrap();
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all).err().map(|e| e.kind());
    let split = all.windows(4).position(|w| w == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    let body = all.split_off(split);
    Got { head: String::from_utf8(all).unwrap(), body, end }
}

fn get(registry: &Registry, target: &str) -> Got {
    ask(registry, "GET", target, &[])
}

fn blob_path(layout: &Layout) -> String {
    format!("/v2/os/blobs/{}", layout.layers[1])
}

#[test]
fn skopeo_copies_from_it_with_every_login() {
    type Prepare = fn(&Registry);
    let table: [(&str, Prepare, &[&str], bool); 9] = [
        ("open", |_| {}, &[], true),
        ("basic", |r| r.require_basic("me", "hunter2"), &["--src-creds=me:hunter2"], true),
        ("basic-wrong", |r| r.require_basic("me", "hunter2"), &["--src-creds=me:guess"], false),
        ("bearer", |r| r.require_bearer("me", "hunter2"), &["--src-creds=me:hunter2"], true),
        ("bearer-none", |r| r.require_bearer("me", "hunter2"), &[], false),
        ("bearer-anonymous", Registry::require_anonymous_bearer, &[], true),
        ("gone", |r| r.fail(Part::Manifest, Fault::Status(404), Times::Always), &[], false),
        ("redirected", |r| r.fail(Part::Layer(1), Fault::Redirect(r.store()), Times::Once), &[], true),
        ("corrupt", |r| r.fail(Part::Config, Fault::Corrupt, Times::Always), &[], false),
    ];
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(&temp.path().join("oci"));
    for (name, prepare, arguments, works) in table {
        let registry = Registry::serve("team/os", "1", &layout);
        prepare(&registry);
        let target = temp.path().join(name);
        let source = registry.image("team/os:1").to_string();
        let to = format!("dir:{}", target.display());
        let all = [&["copy", "--src-tls-verify=false"], arguments, &[&source, &to]].concat();
        let (done, errors) = skopeo(&all);
        assert_eq!(done, works, "{name}: {errors}");
        if works {
            assert_eq!(std::fs::read(target.join(layout.layers[1].hex())).unwrap(), content(0), "{name}");
        }
    }
}

#[test]
fn skopeo_logs_in_with_the_credentials_file_that_we_write_for_it() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(&temp.path().join("oci"));
    let registry = Registry::serve("team/os", "1", &layout);
    registry.require_bearer("me", "hunter2");
    for (credentials, works) in [
        (Credentials::Basic { user: "me".to_owned(), password: "hunter2".to_owned() }, true),
        (Credentials::IdentityToken("hunter2".to_owned()), true),
        (Credentials::IdentityToken("guess".to_owned()), false),
        (Credentials::Anonymous, false),
    ] {
        let name = format!("{credentials:?}");
        let endpoint = Endpoint {
            host: registry.host(),
            repository: "team/os".to_owned(),
            insecure: true,
            access: Access { credentials, authorities: Vec::new(), certificates: Vec::new() },
        };
        let file = temp.path().join("auth.json");
        std::fs::write(&file, auth_json(&[endpoint])).unwrap();
        let file = format!("--authfile={}", file.display());
        let source = registry.image("team/os:1").to_string();
        let (done, errors) = skopeo(&["inspect", "--raw", "--tls-verify=false", &file, &source]);
        assert_eq!(done, works, "{name}: {errors}");
    }
}

#[test]
fn an_identity_token_gives_a_token_that_lasts_as_long_as_it_was_told() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    registry.require_bearer("me", "hunter2");
    registry.tokens_last(2);
    let refused = get(&registry, "/v2/os/manifests/1");
    assert_eq!(refused.status(), 401);
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"test\",", registry.host());
    let challenge = refused.header("WWW-Authenticate").unwrap();
    assert_eq!(challenge, format!("{realm}scope=\"repository:os:pull\""));
    let body = "grant_type=refresh_token&service=test&refresh_token=hunter2";
    let auth = temp.path().join("body");
    std::fs::write(&auth, body).unwrap();
    let url = format!("http://{}/token", registry.host());
    let data = format!("@{}", auth.display());
    let given = Command::new("curl").args(["-sS", "--data", &data, &url]).output().unwrap();
    let given: serde_json::Value = serde_json::from_slice(&given.stdout).unwrap();
    let bearer = format!("Bearer {}", given["token"].as_str().unwrap());
    let statuses = [(); 3]
        .map(|()| ask(&registry, "HEAD", "/v2/os/manifests/1", &[("Authorization", &bearer)]).status());
    assert_eq!(statuses, [200, 200, 401]);
    assert_eq!(get(&registry, "/token").status(), 401);
    assert_eq!(ask(&registry, "GET", "/token", &[("Authorization", &basic("me", "hunter2"))]).status(), 200);
}

#[test]
fn heads_ranges_and_names_are_answered_as_the_specification_says() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    let blob = blob_path(&layout);
    let head = ask(&registry, "HEAD", "/v2/os/manifests/1", &[]);
    assert_eq!((head.status(), head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Type"), Some("application/vnd.oci.image.manifest.v1+json"));
    assert_eq!(head.header("Docker-Content-Digest"), Some(layout.manifest.as_str()));
    assert_eq!(head.header("Content-Length"), Some(layout.manifest_size.to_string().as_str()));
    let whole = content(0);
    for (range, status, expected, content_range) in [
        ("bytes=0-0", 206, &whole[..1], "bytes 0-0/100000"),
        ("bytes=99990-", 206, &whole[99_990..], "bytes 99990-99999/100000"),
        ("bytes=10-19", 206, &whole[10..20], "bytes 10-19/100000"),
        ("bytes=99999-200000", 206, &whole[99_999..], "bytes 99999-99999/100000"),
        ("bytes=100000-", 416, &[], "bytes */100000"),
    ] {
        let got = ask(&registry, "GET", &blob, &[("Range", range)]);
        assert_eq!((got.status(), got.header("Content-Range")), (status, Some(content_range)), "{range}");
        assert!(status == 416 || got.body == expected, "{range}");
    }
    registry.ignore_ranges();
    let got = ask(&registry, "GET", &blob, &[("Range", "bytes=10-19")]);
    assert_eq!((got.status(), got.body), (200, whole));
    for (target, status) in [
        ("/v2/", 200),
        ("/v2/os/manifests/2", 404),
        ("/v2/other/manifests/1", 404),
        (&format!("/v2/os/manifests/{}", layout.manifest), 200),
        (&format!("/v2/other/blobs/{}", layout.layers[1]), 404),
        (&format!("/v2/os/blobs/{}", Digest::of(b"none")), 404),
        ("/", 404),
        (&format!("/store/{}", layout.layers[1]), 403),
    ] {
        assert_eq!(get(&registry, target).status(), status, "{target}");
    }
}

#[test]
fn faults_that_break_a_transfer_are_seen_by_a_socket() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    let whole = content(0);
    let mut flipped = whole.clone();
    flipped[50_000] ^= 1;
    for (fault, length, body, end) in [
        (Fault::Truncate(70_000), SIZE, &whole[..70_000], None),
        (Fault::Truncate(0), SIZE, &[], None),
        (Fault::ShortOk(70_000), 70_000, &whole[..70_000], None),
        (Fault::Corrupt, SIZE, &flipped[..], None),
        (Fault::Stall(70_000), SIZE, &whole[..70_000], Some(ErrorKind::WouldBlock)),
        (Fault::Reset(10), SIZE, &whole[..10], Some(ErrorKind::ConnectionReset)),
        (Fault::Slow(400_000), SIZE, &whole[..], None),
    ] {
        let name = format!("{fault:?}");
        registry.fail(Part::Layer(1), fault, Times::Once);
        let since = Instant::now();
        let got = get(&registry, &blob_path(&layout));
        assert_eq!((got.status(), got.end), (200, end), "{name}");
        assert_eq!(got.header("Content-Length"), Some(length.to_string().as_str()), "{name}");
        assert!(got.body == body, "{name}: {} bytes", got.body.len());
        assert!(!name.starts_with("Slow") || since.elapsed() >= Duration::from_millis(200), "{name}");
        let last = registry.requests().pop().unwrap();
        assert_eq!((last.part, last.sent), (Some(Part::Layer(1)), body.len() as u64), "{name}");
    }
    assert!(get(&registry, &blob_path(&layout)).body == whole, "once is once");
}

#[test]
fn faults_with_a_status_come_as_often_as_they_were_ordered_and_in_that_order() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    registry.fail(Part::Manifest, Fault::Status(503), Times::Exactly(2));
    registry.fail(Part::Manifest, Fault::Throttle("7".to_owned()), Times::Once);
    registry.fail(Part::Manifest, Fault::Status(401), Times::Once);
    registry.fail(Part::Ping, Fault::Status(500), Times::Always);
    let manifest = || get(&registry, "/v2/os/manifests/1");
    assert_eq!([manifest().status(), manifest().status()], [503, 503]);
    let throttled = manifest();
    assert_eq!((throttled.status(), throttled.header("Retry-After")), (429, Some("7")));
    let body: serde_json::Value = serde_json::from_slice(&throttled.body).unwrap();
    assert_eq!(body["errors"][0]["code"], "TOOMANYREQUESTS");
    assert_eq!(manifest().header("WWW-Authenticate"), Some("Basic realm=\"test\""));
    assert_eq!(manifest().status(), 200);
    assert_eq!(get(&registry, "/v2/").status(), 500);
    registry.heal();
    assert_eq!(get(&registry, "/v2/").status(), 200);
    // Only those who may have it see it broken.
    registry.fail(Part::Layer(1), Fault::Status(500), Times::Once);
    registry.require_basic("me", "hunter2");
    let login = basic("me", "hunter2");
    let blob = blob_path(&layout);
    let authorized = || ask(&registry, "GET", &blob, &[("Authorization", &login)]).status();
    assert_eq!([get(&registry, &blob).status(), authorized(), authorized()], [401, 500, 200]);
}

#[test]
fn a_server_that_disappears_takes_its_connections_and_comes_back_at_its_port() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    let mut idle = TcpStream::connect(registry.host()).unwrap();
    registry.fail(Part::Layer(1), Fault::Disappear(1000), Times::Once);
    let got = get(&registry, &blob_path(&layout));
    assert_eq!((got.status(), got.body.len()), (200, 1000));
    assert!(matches!(idle.read(&mut [0]), Ok(0) | Err(_)));
    // The listener closes after the connection, at once.
    let since = Instant::now();
    while let Ok(_stream) = TcpStream::connect(registry.host()) {
        assert!(since.elapsed() < Duration::from_secs(5));
    }
    registry.come_back();
    assert_eq!(get(&registry, &blob_path(&layout)).body.len() as u64, SIZE);
}

#[test]
fn a_redirected_blob_comes_from_the_store_without_the_login() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    let store = Registry::serve("any", "1", &layout);
    registry.require_basic("me", "hunter2");
    registry.fail(Part::Layer(1), Fault::Redirect(store.store()), Times::Always);
    let url = format!("http://{}{}", registry.host(), blob_path(&layout));
    let file = temp.path().join("blob");
    let curl = Command::new("curl").args(["-sSL", "-u", "me:hunter2", "-o"]).arg(&file).arg(&url).status();
    assert!(curl.unwrap().success());
    assert!(std::fs::read(&file).unwrap() == content(0));
    let asked = |r: &Registry| r.requests_for(Part::Layer(1)).into_iter().next_back().unwrap();
    let (first, second) = (asked(&registry), asked(&store));
    assert_eq!((first.status, first.sent, first.authorization), (307, 0, true));
    assert_eq!((second.status, second.sent, second.authorization), (200, SIZE, false));
    assert_eq!(second.path, format!("/store/{}?X-Test-signature=secret", layout.layers[1]));
}

#[test]
fn a_moved_tag_leaves_the_old_image_at_its_digest() {
    let temp = tempfile::tempdir().unwrap();
    let old = layout(&temp.path().join("old"));
    let new = Layout::write(&temp.path().join("new"), &[(content(7), Pack::None)]);
    let registry = Registry::serve("os", "1", &old);
    registry.move_tag("os", "1", &new);
    let digest = |reference: &str| {
        let got = get(&registry, &format!("/v2/os/manifests/{reference}"));
        got.header("Docker-Content-Digest").unwrap().to_owned()
    };
    assert_eq!(digest("1"), new.manifest.as_str());
    assert_eq!(digest(old.manifest.as_str()), old.manifest.as_str());
}

#[test]
fn requests_are_logged_in_full_and_connections_counted() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layout(temp.path());
    let registry = Registry::serve("os", "1", &layout);
    ask(&registry, "GET", &blob_path(&layout), &[("Range", "bytes=5-9"), ("Authorization", "Basic eDp5")]);
    let expected = Request {
        method: "GET".to_owned(),
        path: blob_path(&layout),
        part: Some(Part::Layer(1)),
        range: Some((5, Some(9))),
        status: 206,
        sent: 5,
        authorization: true,
    };
    assert_eq!(registry.requests(), [expected]);
    assert_eq!(registry.peak_connections(), 1);
    registry.delay(Duration::from_millis(300));
    let since = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| get(&registry, "/v2/"));
        }
    });
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert_eq!(registry.peak_connections(), 3);
}
