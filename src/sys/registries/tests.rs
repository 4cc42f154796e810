use super::*;
use cap_std_ext::cap_std::ambient_authority;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

/// A configuration root in a scratch directory.
struct Host {
    dir: tempfile::TempDir,
    root: Dir,
}

impl Host {
    fn new(files: &[(&str, &str)]) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let root = Dir::open_ambient_dir(dir.path(), ambient_authority()).unwrap();
        let host = Host { dir, root };
        for (path, text) in files {
            host.write(path, text);
        }
        host
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            home: None,
            root: &self.root,
            auth_file: None,
            registries_conf: None,
            helpers: None,
            insecure: false,
            cert_dir: None,
        }
    }
}

async fn ask(sources: &Sources<'_>, image: &str) -> Result<Vec<Endpoint>> {
    endpoints(&Cx::detached(), sources, &image.parse().unwrap()).await
}

async fn names_of(sources: &Sources<'_>, image: &str) -> Vec<String> {
    let mark = |e: Endpoint| format!("{} {}{}", e.host, e.repository, if e.insecure { " !" } else { "" });
    ask(sources, image).await.unwrap().into_iter().map(mark).collect()
}

fn basic(user: &str, password: &str) -> Credentials {
    Credentials::Basic { user: user.to_owned(), password: password.to_owned() }
}

const DIGEST: &str = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn names_are_completed_and_docker_hub_has_another_host() {
    let host = Host::new(&[]);
    for (image, expected) in [
        ("r.io/team/os:1", "r.io team/os"),
        ("r.io:5000/os", "r.io:5000 os"),
        ("localhost/os:1", "localhost os"),
        ("docker.io/os:1", "registry-1.docker.io library/os"),
        ("index.docker.io/me/os", "registry-1.docker.io me/os"),
        ("me/os:1", "registry-1.docker.io me/os"),
    ] {
        assert_eq!(names_of(&host.sources(), image).await, [expected], "{image}");
    }
    let wish = Sources { insecure: true, ..host.sources() };
    assert_eq!(names_of(&wish, "r.io/os:1").await, ["r.io os !"]);
    assert_eq!(ask(&wish, "oci:/x").await.unwrap_err().kind, ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn the_main_file_may_be_another_and_drop_ins_are_read_with_each() {
    let location = |name: &str| format!("[[registry]]\nprefix = 'r.io'\nlocation = '{name}'\n");
    let host = Host::new(&[]);
    let mut sources = host.sources();
    assert_eq!(names_of(&sources, "r.io/os").await, ["r.io os"]);
    host.write("usr/share/containers/registries.conf", &location("share.io"));
    assert_eq!(names_of(&sources, "r.io/os").await, ["share.io os"]);
    host.write("etc/containers/registries.conf", &location("etc.io"));
    assert_eq!(names_of(&sources, "r.io/os").await, ["etc.io os"]);
    let own = host.write("own.conf", &location("own.io"));
    sources.registries_conf = Some(&own);
    assert_eq!(names_of(&sources, "r.io/os").await, ["own.io os"]);
    for (name, location) in [("20.conf", location("20.io")), ("10.conf", location("10.io"))] {
        host.write(&format!("etc/containers/registries.conf.d/{name}"), &location);
    }
    host.write("etc/containers/registries.conf.d/30.conf.off", "nonsense");
    std::fs::create_dir(host.dir.path().join("etc/containers/registries.conf.d/40.conf")).unwrap();
    assert_eq!(names_of(&sources, "r.io/os").await, ["20.io os"]);
    let none = host.dir.path().join("none.conf");
    sources.registries_conf = Some(&none);
    let error = ask(&sources, "r.io/os").await.unwrap_err();
    assert!(error.kind == ErrorKind::InvalidArgument && error.to_string().contains("none.conf"), "{error}");
}

#[tokio::test]
async fn each_endpoint_has_its_own_login_and_the_file_for_skopeo_has_them_all() {
    let conf = "[[registry]]\nlocation = 'r.io'\n[[registry.mirror]]\nlocation = 'm.io/r'\ninsecure = true\n\
        pull-from-mirror = 'digest-only'\n[[registry.mirror]]\nlocation = 'docker.io/me'\n";
    let host = Host::new(&[("etc/containers/registries.conf", conf)]);
    // me:pw, r:pw, hub:pw, and a stranger's that must not be given away.
    let auth = host.write(
        "auth.json",
        r#"{"auths": {"m.io/r": {"auth": "bWU6cHc="}, "r.io": {"auth": "cjpwdw=="},
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"}, "m.io": {"auth": "eDp5"}}}"#,
    );
    let sources = Sources { auth_file: Some(&auth), ..host.sources() };
    let found = ask(&sources, &format!("r.io/os{DIGEST}")).await.unwrap();
    let logins: Vec<_> = found.iter().map(|e| (e.host.as_str(), e.access.credentials.clone())).collect();
    let expected = [
        ("m.io", basic("me", "pw")),
        ("registry-1.docker.io", basic("hub", "pw")),
        ("r.io", basic("r", "pw")),
    ];
    assert_eq!(logins, expected);
    assert_eq!(names_of(&sources, "r.io/os:1").await, ["registry-1.docker.io me/os", "r.io os"]);
    let file: serde_json::Value = serde_json::from_str(&auth_json(&found)).unwrap();
    let expected = serde_json::json!({"auths": {"m.io/r/os": {"auth": "bWU6cHc="},
        "docker.io/me/os": {"auth": "aHViOnB3"}, "r.io/os": {"auth": "cjpwdw=="}}});
    assert_eq!(file, expected);
    let none = host.dir.path().join("none.json");
    for (path, text) in [(&none, "none.json"), (&host.write("bad.json", "[]"), "bad.json")] {
        let error = ask(&Sources { auth_file: Some(path), ..sources }, "r.io/os").await.unwrap_err();
        assert!(error.kind == ErrorKind::AuthRequired && error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_credential_helper_is_asked_with_the_registry_and_its_failures_name_it() {
    let helper = r#"#!/bin/sh
        [ "$1" = get ] || exit 9
        read registry
        case "$registry" in
            basic.io) echo '{"ServerURL": "basic.io", "Username": "me", "Secret": "hunter2"}';;
            token.io) echo '{"Username": "<token>", "Secret": "hunter2"}';;
            none.io) echo "credentials not found in native keychain"; exit 1;;
            odd.io) echo "hunter2";;
            *) echo "hunter2"; echo "no such luck" >&2; exit 1;;
        esac"#;
    let host = Host::new(&[]);
    let program = host.write("bin/docker-credential-test", helper);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let all = ["basic.io", "token.io", "none.io", "odd.io", "bad.io"].map(|r| format!(r#""{r}": "test""#));
    let auth = host.write(
        "auth.json",
        &format!(r#"{{"credHelpers": {{{}, "gone.io": "gone", "path.io": "../x"}}}}"#, all.join(",")),
    );
    let bin = host.dir.path().join("bin");
    let path = format!("{}:/bin:/usr/bin", bin.display());
    let sources = Sources { auth_file: Some(&auth), helpers: Some(OsStr::new(&path)), ..host.sources() };
    let token = Credentials::IdentityToken("hunter2".to_owned());
    for (image, expected) in [
        ("basic.io/os", basic("me", "hunter2")),
        ("token.io/os", token),
        ("none.io/os", Credentials::Anonymous),
        ("other.io/os", Credentials::Anonymous),
    ] {
        assert_eq!(ask(&sources, image).await.unwrap()[0].access.credentials, expected, "{image}");
    }
    for (image, kind, text) in [
        ("odd.io/os", ErrorKind::AuthRequired, "docker-credential-test"),
        ("bad.io/os", ErrorKind::AuthRequired, "no such luck"),
        ("gone.io/os", ErrorKind::Unsupported, "docker-credential-gone"),
        ("path.io/os", ErrorKind::AuthRequired, "docker-credential-../x"),
    ] {
        let error = ask(&sources, image).await.unwrap_err();
        assert_eq!(error.kind, kind, "{image}: {}", error.chain());
        assert!(error.chain().contains(text) && !error.chain().contains("hunter2"), "{}", error.chain());
    }
    // Stores for all registries: asked in their order, until one has something.
    host.write("etc/containers/registries.conf", "credential-helpers = ['test', 'containers-auth.json']");
    let auth = host.write("auth.json", r#"{"auths": {"none.io": {"auth": "bWU6cHc="}}}"#);
    let sources = Sources { auth_file: Some(&auth), ..sources };
    for (image, expected) in [("basic.io/os", basic("me", "hunter2")), ("none.io/os", basic("me", "pw"))] {
        assert_eq!(ask(&sources, image).await.unwrap()[0].access.credentials, expected, "{image}");
    }
}

#[tokio::test]
async fn certificates_are_those_of_the_host_and_port() {
    let host = Host::new(&[
        ("etc/containers/certs.d/r.io:5000/b.crt", "b"),
        ("etc/containers/certs.d/r.io:5000/a.crt", "a"),
        ("etc/containers/certs.d/r.io:5000/me.cert", "certificate"),
        ("etc/containers/certs.d/r.io:5000/me.key", "key"),
        ("etc/containers/certs.d/r.io:5000/README", "text"),
        ("etc/docker/certs.d/r.io:5000/ca.crt", "unused"),
        ("etc/docker/certs.d/d.io/ca.crt", "docker"),
        ("etc/containers/certs.d/docker.io/ca.crt", "hub"),
        ("etc/containers/certs.d/cert.io/me.cert", "certificate"),
        ("etc/containers/certs.d/key.io/me.key", "key"),
        ("etc/pki/ca.pem", "linked"),
    ]);
    std::fs::create_dir_all(host.dir.path().join("etc/docker/certs.d/l.io")).unwrap();
    symlink("/etc/pki/ca.pem", host.dir.path().join("etc/docker/certs.d/l.io/ca.crt")).unwrap();
    for (image, authorities) in [
        ("r.io:5000/os", vec!["a", "b"]),
        ("r.io/os", vec![]),
        ("d.io/os", vec!["docker"]),
        ("docker.io/os", vec!["hub"]),
        ("l.io/os", vec!["linked"]),
    ] {
        let found = &ask(&host.sources(), image).await.unwrap()[0].access;
        let authorities: Vec<Vec<u8>> = authorities.into_iter().map(Into::into).collect();
        assert_eq!(found.authorities, authorities, "{image}");
        assert_eq!(found.certificates.len(), usize::from(image == "r.io:5000/os"), "{image}");
    }
    for (image, text) in [("cert.io/os", "me.key"), ("key.io/os", "me.cert")] {
        let error = ask(&host.sources(), image).await.unwrap_err();
        assert!(error.kind == ErrorKind::InvalidArgument && error.to_string().contains(text), "{error}");
    }
}

#[test]
fn an_endpoint_survives_the_pipe_and_shows_no_secret() {
    let secret = b"hunter2".to_vec();
    for credentials in [
        basic("hunter2", "hunter2"),
        Credentials::IdentityToken("hunter2".to_owned()),
        Credentials::Anonymous,
    ] {
        let endpoint = Endpoint {
            host: "r.io".to_owned(),
            repository: "os".to_owned(),
            insecure: false,
            access: Access {
                credentials,
                authorities: vec![secret.clone()],
                certificates: vec![ClientCertificate { certificate: secret.clone(), key: secret.clone() }],
            },
        };
        for shown in [format!("{endpoint:?}"), format!("{endpoint:#?}"), format!("{:?}", endpoint.access)] {
            assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
        }
        assert_eq!(format!("{:?}", endpoint.access.certificates[0]), "ClientCertificate(..)");
        let text = serde_json::to_string(&endpoint).unwrap();
        assert_eq!(serde_json::from_str::<Endpoint>(&text).unwrap(), endpoint);
    }
}

/// The hosts that skopeo tries, in its order: nobody listens at any of them.
fn skopeo_tries(conf: &Path, image: &str) -> Vec<String> {
    let output = std::process::Command::new("skopeo")
        .args(["--debug", "--registries-conf"])
        .arg(conf)
        .args(["inspect", "--raw", &format!("docker://{image}")])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    let tried = log.lines().filter(|line| line.contains("GET https://") && line.contains("/v2/"));
    tried.map(|line| line.split("https://").nth(1).unwrap().split('/').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn skopeo_tries_the_same_hosts_in_the_same_order() {
    let mirrors = "[[registry.mirror]]\nlocation = '127.0.0.1:3'\npull-from-mirror = 'tag-only'\n\
        [[registry.mirror]]\nlocation = '127.0.0.1:4/x'\npull-from-mirror = 'digest-only'\n\
        [[registry.mirror]]\nlocation = '127.0.0.1:2'\n";
    let table =
        |more: &str| format!("[[registry]]\nprefix = '127.0.0.9:1'\nlocation = '127.0.0.1:1'\n{more}\n");
    let blocked = "[[registry]]\nlocation = '127.0.0.1:2'\nblocked = true\n";
    let host = Host::new(&[]);
    for (conf, expected) in [
        (String::new(), vec!["127.0.0.9:1"]),
        (table(""), vec!["127.0.0.1:1"]),
        (table(mirrors), vec!["127.0.0.1:4", "127.0.0.1:2", "127.0.0.1:1"]),
        (table(mirrors) + blocked, vec!["127.0.0.1:4", "127.0.0.1:1"]),
        (
            table(mirrors) + "[[registry]]\nprefix = '127.0.0.9:1/team'\nlocation = '127.0.0.1:5'",
            vec!["127.0.0.1:5"],
        ),
        (
            table(mirrors) + "[[registry]]\nprefix = '127.0.0.9:1/te'\nlocation = '127.0.0.1:5'",
            vec!["127.0.0.1:4", "127.0.0.1:2", "127.0.0.1:1"],
        ),
    ] {
        let path = host.write("registries.conf", &conf);
        let image = format!("127.0.0.9:1/team/os{DIGEST}");
        let sources = Sources { registries_conf: Some(&path), ..host.sources() };
        let ours: Vec<String> = ask(&sources, &image).await.unwrap().into_iter().map(|e| e.host).collect();
        assert_eq!(ours, expected, "{conf}");
        assert_eq!(skopeo_tries(&path, &image), expected, "{conf}");
    }
}
