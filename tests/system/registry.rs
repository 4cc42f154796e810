//! A real registry on loopback, with its access log.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A running docker-registry; it ends when this is dropped.
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    pub fn start() -> Registry {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        for _ in 0..10 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            std::fs::write(
                &config,
                format!(
                    "version: 0.1\nlog: {{level: info, accesslog: {{disabled: false}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: '{address}'}}\n",
                    dir.path().join("data").display()
                ),
            )
            .unwrap();
            let mut child = Command::new("docker-registry")
                .args(["serve".as_ref(), config.as_os_str()])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is installed by make test");
            let log = Arc::new(Mutex::new(Vec::new()));
            let (lines, sink) = (BufReader::new(child.stdout.take().unwrap()), log.clone());
            std::thread::spawn(move || {
                lines.lines().map_while(Result::ok).for_each(|l| sink.lock().unwrap().push(l))
            });
            for _ in 0..100 {
                if std::net::TcpStream::connect(&address).is_ok() {
                    return Registry { child, dir, address, log };
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        panic!("no registry came up");
    }

    /// A registries.conf(5) that reaches this registry without TLS.
    pub fn conf(&self) -> PathBuf {
        let path = self.dir.path().join("registries.conf");
        std::fs::write(&path, format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", self.address))
            .unwrap();
        path
    }

    /// Copies an OCI layout to `name` here.
    pub fn push(&self, layout: &Path, name: &str) -> String {
        let reference = format!("{}/{name}", self.address);
        let out = Command::new("skopeo")
            .args([
                "copy",
                "-q",
                "--dest-tls-verify=false",
                &format!("oci:{}", layout.display()),
                &format!("docker://{reference}"),
            ])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        reference
    }

    /// The digests of the blobs that were fetched since the last call, one entry a request.
    pub fn fetched_blobs(&self) -> Vec<String> {
        // The registry writes its log line after the body; the reader of the pipe needs a moment.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let lines = std::mem::take(&mut *self.log.lock().unwrap());
        let get = |l: &String| {
            let (_, rest) = l.split_once("\"GET ")?;
            let (path, _) = rest.split_once(' ')?;
            path.split_once("/blobs/").map(|(_, digest)| digest.to_owned())
        };
        lines.iter().filter_map(get).collect()
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
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
