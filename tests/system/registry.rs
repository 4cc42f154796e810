//! A real registry on loopback, with its access log.

use crate::image::Image;
use osctl::model::image::Digest;
use serde_json::json;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A `docker-registry` on a free port; it ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    child: Option<Child>,
    dir: tempfile::TempDir,
    /// `127.0.0.1:PORT`
    pub address: String,
    password: bool,
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// `/v2/NAME/blobs/DIGEST`, ...
    pub path: String,
    /// The HTTP status.
    pub status: u16,
    /// The bytes of the answer's body.
    pub bytes: u64,
}

/// `user:secret`, hashed by bcrypt with the lowest cost.
const HTPASSWD: &str = "user:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";
/// base64 of `user:secret`, for auth files.
pub const CREDENTIALS: &str = "dXNlcjpzZWNyZXQ=";

impl Registry {
    /// Starts a registry that asks for nothing.
    pub fn start() -> Registry {
        Registry::with(false)
    }

    /// Starts a registry that wants `user` and `secret`.
    pub fn with_password() -> Registry {
        Registry::with(true)
    }

    fn with(password: bool) -> Registry {
        // The port is free when the registry starts, unless somebody is faster: tests would fail loudly.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry { child: None, dir, address: format!("127.0.0.1:{port}"), password };
        registry.resume();
        registry
    }

    /// Starts it again after [`Registry::stop`], on the same port and with the same content.
    pub fn resume(&mut self) {
        let base = self.dir.path();
        let mut config = json!({
            "version": "0.1",
            "log": {"accesslog": {"disabled": false}, "level": "error"},
            "storage": {"filesystem": {"rootdirectory": base.join("data")}},
            "http": {"addr": self.address},
        });
        if self.password {
            std::fs::write(base.join("htpasswd"), HTPASSWD).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": base.join("htpasswd")}});
        }
        // JSON is YAML.
        std::fs::write(base.join("config.yml"), config.to_string()).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(base.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), base.join("config.yml").as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("docker-registry is installed");
        self.child = Some(child);
        let start = Instant::now();
        while TcpStream::connect(&self.address).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "the registry did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; the content stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// The name of a repository (with tag) in this registry.
    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    fn log(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Forgets the requests so far.
    pub fn clear_log(&self) {
        std::fs::File::options().write(true).open(self.dir.path().join("log")).unwrap().set_len(0).unwrap();
    }

    /// The requests so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        let parse = |line: &str| {
            let mut parts = line.split('"');
            let (_, request, rest) = (parts.next()?, parts.next()?, parts.next()?);
            let mut words = request.split(' ');
            let (method, path, proto) = (words.next()?, words.next()?, words.next()?);
            let mut answer = rest.split_whitespace();
            let (status, bytes) = (answer.next()?.parse().ok()?, answer.next()?.parse().ok()?);
            proto.starts_with("HTTP/").then(|| Request {
                method: method.to_owned(),
                path: path.to_owned(),
                status,
                bytes,
            })
        };
        self.log().lines().filter_map(parse).collect()
    }

    /// The digests of the blobs that were sent, in order.
    pub fn blobs_sent(&self) -> Vec<String> {
        // The registry writes its line after the last byte: give it a moment.
        std::thread::sleep(Duration::from_millis(50));
        let sent = |r: Request| {
            let (_, digest) = r.path.split_once("/blobs/")?;
            (r.method == "GET" && matches!(r.status, 200 | 206)).then(|| digest.to_owned())
        };
        self.requests().into_iter().filter_map(sent).collect()
    }

    /// Pushes an image and returns its manifest digest.
    pub fn push(&self, image: &Image, name_and_tag: &str) -> Digest {
        let layout = tempfile::tempdir().unwrap();
        let digest = image.write(layout.path());
        self.push_layout(layout.path(), name_and_tag);
        digest
    }

    /// Pushes an OCI layout; of an index in it all instances.
    pub fn push_layout(&self, layout: &Path, name_and_tag: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--all", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]);
        if self.password {
            command.arg("--dest-creds=user:secret");
        }
        let done = command
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{}", self.name(name_and_tag)))
            .output()
            .expect("skopeo is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// A registries.conf(5) that reaches this registry without TLS.
    pub fn conf(&self) -> PathBuf {
        let path = self.dir.path().join("registries.conf");
        let text = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", self.address);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Removes a repository, as an administrator's mistake would.
    pub fn lose(&self, repository: &str) {
        std::fs::remove_dir_all(
            self.dir.path().join("data/docker/registry/v2/repositories").join(repository),
        )
        .unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where files of a registry's blob lie, to damage or remove them.
pub fn blob_path(registry: &Registry, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    registry.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}
