//! A sysroot and an `/etc` in a temporary directory, driven by the real `osctl --direct`.

use crate::image::{Image, Layer, os_layer};
use crate::registry::Registry;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Everything one test needs: a registry with two versions of an OS and an app, and a host.
pub struct World {
    pub registry: Registry,
    pub images: tempfile::TempDir,
}

impl World {
    pub fn new() -> World {
        let world = World { registry: Registry::start(), images: tempfile::tempdir().unwrap() };
        world.push_os("1");
        let app = world.images.path().join("app");
        Image::with_file("app", b"#!/bin/true\n").write(&app);
        world.registry.push_layout(&app, "app:1");
        world
    }

    /// Moves the tag `os:stable` to this version.
    pub fn push_os(&self, version: &str) {
        let dir = self.images.path().join(format!("os-{version}"));
        let created = format!("2026-01-0{version}T00:00:00Z");
        let change = Layer::new().file("usr/lib/version", version.as_bytes());
        let image = Image::default().layer(os_layer(version)).layer(change).created(&created);
        image.label("org.opencontainers.image.version", version).write(&dir);
        self.registry.push_layout(&dir, "os:stable");
    }

    pub fn os(&self) -> String {
        format!("{}/os:stable", self.registry.address)
    }

    /// A host that has version 1 deployed, without drop-ins.
    pub fn host(&self) -> Host {
        let host = self.empty_host();
        let out = host.osctl(&["rebase", &self.os(), "--stateroot", "test", "--karg", "root=LABEL=root"]);
        assert!(out.status.success(), "{}", text(&out));
        host
    }

    /// A sysroot without any deployment.
    pub fn empty_host(&self) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let host = Host { dir, registries: self.registry.conf() };
        std::fs::create_dir_all(host.etc().join("osctl")).unwrap();
        std::fs::create_dir_all(host.sysroot()).unwrap();
        host.ostree(&["admin", "init-fs", &host.sysroot().to_string_lossy()]);
        host
    }

    /// Drop-ins and a bound image, as an administrator writes them.
    pub fn declare(&self, host: &Host) {
        host.drop_in(
            "50-agent.yaml",
            "files:\n  - path: /etc/agent.conf\n    contents: {inline: \"mode=on\\n\"}\n    mode: 0600\nunits:\n  - name: agent.service\n    enabled: true\n    contents: |\n      [Service]\n      ExecStart=/bin/true\n      [Install]\n      WantedBy=multi-user.target\n",
        );
        host.drop_in("60-args.yaml", "kernel-arguments: {append: [nosmt]}\n");
        host.bind(
            "app",
            &format!("image = \"{}/app:1\"\nmode = \"bind\"\ntls-verify = false\n", self.registry.address),
        );
    }
}

pub struct Host {
    pub dir: tempfile::TempDir,
    registries: PathBuf,
}

impl Host {
    pub fn sysroot(&self) -> PathBuf {
        self.dir.path().join("sysroot")
    }

    pub fn etc(&self) -> PathBuf {
        self.dir.path().join("config/etc")
    }

    /// Where podman finds the bound images of a deployment; what it shall be is written in the deployment's origin.
    pub fn view(&self, deployment: &str) -> PathBuf {
        let origin = self.sysroot().join("ostree/deploy/test/deploy").join(format!("{deployment}.origin"));
        let origin = std::fs::read_to_string(origin).unwrap();
        let key = origin.lines().find_map(|line| line.strip_prefix("bound-set=")).unwrap();
        self.sysroot().join("ostree/osctl/views").join(key)
    }

    /// Lets this host reach one more registry without TLS.
    pub fn add_registry(&self, registry: &Registry) {
        let more = std::fs::read_to_string(registry.conf()).unwrap();
        let conf = std::fs::read_to_string(&self.registries).unwrap();
        std::fs::write(&self.registries, conf + &more).unwrap();
    }

    pub fn drop_in(&self, name: &str, contents: &str) {
        let dir = self.etc().join("osctl/derive.d");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), contents).unwrap();
    }

    pub fn bind(&self, name: &str, toml: &str) {
        let dir = self.etc().join("osctl/bound-images.d");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.toml")), toml).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_osctl"));
        command.arg("--direct").args(self.roots()).args(args);
        // A group of its own, so that a kill failpoint does not take the test along.
        self.environment(&mut command).process_group(0);
        command
    }

    /// The options that name this host.
    pub fn roots(&self) -> [std::ffi::OsString; 4] {
        let config = self.dir.path().join("config");
        ["--sysroot".into(), self.sysroot().into(), "--config-root".into(), config.into()]
    }

    /// The variables that reach this world's registry.
    pub fn environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("CONTAINERS_REGISTRIES_CONF", &self.registries)
            // The immutable flag would outlive the test's directory.
            .env("OSTREE_SYSROOT_DEBUG", "mutable-deployments")
    }

    pub fn osctl(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn osctl_with(&self, failpoints: &str, args: &[&str]) -> Output {
        self.command(args).env("OSCTL_FAILPOINTS", failpoints).output().unwrap()
    }

    pub fn status(&self) -> serde_json::Value {
        let out = self.osctl(&["status", "--json"]);
        assert!(out.status.success(), "{}", text(&out));
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&out)))
    }

    pub fn ostree(&self, args: &[&str]) -> String {
        let out = Command::new("ostree")
            .args(args)
            .env("OSTREE_SYSROOT_DEBUG", "mutable-deployments")
            .output()
            .unwrap();
        assert!(out.status.success(), "ostree {args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// The deployments as `ostree admin status` names them, the default first.
    pub fn deployments(&self) -> Vec<String> {
        let status = self.ostree(&["admin", "status", &format!("--sysroot={}", self.sysroot().display())]);
        let name = |l: &str| l.trim().trim_start_matches("* ").split_whitespace().nth(1).map(str::to_owned);
        status
            .lines()
            .filter(|l| l.trim_start_matches([' ', '*']).starts_with("test "))
            .filter_map(name)
            .collect()
    }

    pub fn fsck(&self) {
        self.ostree(&["fsck", "-q", &format!("--repo={}", self.sysroot().join("ostree/repo").display())]);
    }

    /// The references of the images that podman finds for the default deployment.
    pub fn podman_images(&self) -> Vec<String> {
        self.podman_images_of(&self.deployments()[0])
    }

    /// The same for another deployment.
    pub fn podman_images_of(&self, deployment: &str) -> Vec<String> {
        let own = tempfile::tempdir().unwrap();
        let list = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
        self.podman_at(own.path(), deployment, &list).lines().map(str::to_owned).collect()
    }

    /// The digest that podman finds under this name, which may be the end of one.
    pub fn podman_digest(&self, name: &str) -> String {
        let all = self.podman(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}}"]);
        let line = all.lines().find_map(|l| l.split_once(' ').filter(|(n, _)| n.ends_with(name)));
        line.unwrap_or_else(|| panic!("no {name} in {all}")).1.to_owned()
    }

    /// podman with the bound images of the default deployment, as on a host that booted it, and nothing else.
    fn podman(&self, args: &[&str]) -> String {
        self.podman_of(tempfile::tempdir().unwrap().path(), args)
    }

    /// The same with a store of the administrator's own.
    pub fn podman_of(&self, own: &Path, args: &[&str]) -> String {
        self.podman_at(own, &self.deployments()[0], args)
    }

    fn podman_at(&self, own: &Path, deployment: &str, args: &[&str]) -> String {
        let out = Command::new("podman")
            .arg("--root")
            .arg(own.join("root"))
            .arg("--runroot")
            .arg(own.join("run"))
            .arg("--storage-opt")
            .arg(format!("additionalimagestore={}", self.view(deployment).display()))
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    /// The boot entry that is taken by default.
    pub fn boot_entry(&self) -> String {
        let dir = self.sysroot().join("boot/loader/entries");
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        std::fs::read_to_string(names.last().unwrap()).unwrap()
    }

    /// The root of the default deployment.
    pub fn deployed(&self) -> PathBuf {
        self.sysroot().join("ostree/deploy/test/deploy").join(&self.deployments()[0])
    }
}

/// Everything a command printed.
pub fn text(out: &Output) -> String {
    format!(
        "{}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// The content of a file below a directory.
pub fn read(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}
