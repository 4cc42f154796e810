//! The real daemon on a real bus: what survives when clients, the daemon or the bus go away.

use crate::host::{Host, World, text};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A bus of our own at an address that stays the same over restarts.
struct Bus {
    dir: tempfile::TempDir,
    child: Child,
}

impl Bus {
    fn start() -> Bus {
        let dir = tempfile::tempdir().unwrap();
        let child = Bus::run(dir.path());
        Bus { dir, child }
    }

    fn run(dir: &std::path::Path) -> Child {
        let mut child = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--print-address"])
            .arg(format!("--address=unix:path={}", dir.join("bus").display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("unix:path="), "{line}");
        child
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.dir.path().join("bus").display())
    }

    fn restart(&mut self) {
        end(&mut self.child);
        let _ = std::fs::remove_file(self.dir.path().join("bus"));
        self.child = Bus::run(self.dir.path());
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The daemon in a process group of its own.
struct Daemon(Child);

impl Daemon {
    fn start(bus: &Bus, host: &Host, failpoints: &str) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_osctld"));
        command.args(["--bus", &bus.address()]).args(host.roots());
        host.environment(&mut command).env("OSCTL_FAILPOINTS", failpoints);
        let daemon = Daemon(command.process_group(0).stderr(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while !client(bus, &["status"]).status.success() {
            assert!(start.elapsed() < Duration::from_secs(20), "the daemon did not come up");
            std::thread::sleep(Duration::from_millis(30));
        }
        daemon
    }

    fn kill_group(&mut self) {
        let group = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }

    /// The children that the daemon has now.
    fn children(&self) -> String {
        let path = format!("/proc/{}/task", self.0.id());
        let of_thread = |t: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(t.ok()?.path().join("children")).ok()
        };
        std::fs::read_dir(path).unwrap().filter_map(of_thread).collect::<String>().trim().to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|s| s.is_none()) {
            self.kill_group();
        }
    }
}

fn client_command(bus: &Bus, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_osctl"));
    command.args(["--bus", &bus.address()]).args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn client(bus: &Bus, args: &[&str]) -> Output {
    client_command(bus, args).output().unwrap()
}

/// The state of the newest job.
fn newest_job(bus: &Bus) -> serde_json::Value {
    let out = client(bus, &["jobs", "--json"]);
    assert!(out.status.success(), "{}", text(&out));
    serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()[0].clone()
}

/// Waits until the newest job is at this step.
fn wait_for_step(bus: &Bus, step: &str) {
    let start = Instant::now();
    while newest_job(bus)["step"] != step {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", newest_job(bus));
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn two_upgrades_at_once_are_one_job_and_fetch_once() {
    let world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    world.declare(&host);
    world.push_os("2");
    let _daemon = Daemon::start(&bus, &host, "");
    world.registry.clear_log();
    let both: Vec<_> = (0..2).map(|_| client_command(&bus, &["upgrade"]).spawn().unwrap()).collect();
    for one in both {
        let out = one.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }
    assert_eq!(host.deployments().len(), 2);
    let mut fetched = world.registry.blobs_sent();
    let all = fetched.len();
    fetched.sort();
    fetched.dedup();
    assert_eq!(fetched.len(), all, "a blob was fetched twice");
}

#[test]
fn a_bundle_goes_to_the_daemon_as_an_open_file_and_a_client_may_leave() {
    let mut world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    world.push_os("2");
    // Where the daemon may not look.
    let private = host.dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    let bundle = private.join("bundle.tar");
    let mut create = Command::new(env!("CARGO_BIN_EXE_osctl"));
    create.args(["bundle", "create", &world.os(), "-o"]).arg(format!("oci-archive:{}", bundle.display()));
    let out = host.environment(&mut create).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    world.registry.stop();
    let _daemon = Daemon::start(&bus, &host, "resolve.bundle=hang");
    let mut upgrade = client_command(&bus, &["upgrade", "--from-bundle", bundle.to_str().unwrap()]);
    let mut upgrade = upgrade.spawn().unwrap();
    wait_for_step(&bus, "resolve.bundle");
    end(&mut upgrade);
    assert_eq!(newest_job(&bus)["state"], "running");
    let out = client(&bus, &["cancel"]);
    assert!(out.status.success(), "{}", text(&out));
    drop(_daemon);
    let _daemon = Daemon::start(&bus, &host, "");
    let out = client(&bus, &["upgrade", "--from-bundle", bundle.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(newest_job(&bus)["kind"], "import-bundle");
    assert_eq!(std::fs::read_to_string(host.deployed().join("usr/lib/version")).unwrap(), "2");
}

#[test]
fn a_job_outlives_the_client_that_started_it() {
    let world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    let before = host.deployments();
    world.push_os("2");
    let _daemon = Daemon::start(&bus, &host, "");
    let mut upgrade = client_command(&bus, &["upgrade"]).spawn().unwrap();
    let start = Instant::now();
    while newest_job(&bus)["kind"] != "upgrade" {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    end(&mut upgrade);
    let out = client(&bus, &["wait"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(newest_job(&bus)["state"], "succeeded");
    assert_eq!(host.deployments().len(), before.len() + 1);
}

#[test]
fn a_daemon_that_is_killed_leaves_an_interrupted_job_and_the_old_set() {
    let world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    let before = host.deployments();
    world.declare(&host);
    world.push_os("2");
    let mut daemon = Daemon::start(&bus, &host, "derive.commit=hang");
    let upgrade = client_command(&bus, &["upgrade"]).spawn().unwrap();
    wait_for_step(&bus, "derive.commit");
    daemon.kill_group();
    // The client waits for a daemon that comes back, and then tells how its job ended.
    let _daemon = Daemon::start(&bus, &host, "");
    let out = upgrade.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("run the same command again"), "{}", text(&out));
    assert_eq!(newest_job(&bus)["state"], "interrupted");
    assert_eq!(host.deployments(), before);
    let out = client(&bus, &["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(host.deployments().len(), 2);
    host.fsck();
}

#[test]
fn a_bus_that_restarts_costs_nothing_but_the_connection() {
    let world = World::new();
    let (host, mut bus) = (world.host(), Bus::start());
    let before = host.deployments();
    world.push_os("2");
    let mut daemon = Daemon::start(&bus, &host, "derive.commit=hang");
    let upgrade = client_command(&bus, &["upgrade"]).spawn().unwrap();
    wait_for_step(&bus, "derive.commit");
    bus.restart();
    let out = upgrade.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", text(&out));
    assert!(text(&out).contains("the connection to the bus is lost"), "{}", text(&out));
    let start = Instant::now();
    let ended = loop {
        if let Some(status) = daemon.0.try_wait().unwrap() {
            break status;
        }
        assert!(start.elapsed() < Duration::from_secs(15), "the daemon stays without a bus");
        std::thread::sleep(Duration::from_millis(30));
    };
    assert_eq!(ended.code(), Some(1), "so that the service manager starts it again");
    assert_eq!(host.deployments(), before);
    let _daemon = Daemon::start(&bus, &host, "");
    let out = client(&bus, &["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));
}

#[test]
fn a_job_that_hangs_is_cancelled_within_ten_seconds_and_leaves_no_process() {
    let world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    let before = host.deployments();
    world.declare(&host);
    world.push_os("2");
    for step in ["resolve.image", "pull.layers", "bind.pull"] {
        let daemon = Daemon::start(&bus, &host, &format!("{step}=hang"));
        let upgrade = client_command(&bus, &["upgrade"]).spawn().unwrap();
        wait_for_step(&bus, step);
        let busy = client(&bus, &["rebase", "oci:/nowhere", "--no-wait"]);
        assert_eq!(busy.status.code(), Some(3), "{}", text(&busy));
        let start = Instant::now();
        let out = client(&bus, &["cancel"]);
        assert!(out.status.success(), "{}", text(&out));
        assert!(start.elapsed() < Duration::from_secs(10));
        let out = upgrade.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains("cancelled"), "{}", text(&out));
        assert_eq!(daemon.children(), "");
        assert_eq!(host.deployments(), before);
        drop(daemon);
    }
    host.fsck();
}

#[test]
fn programs_follow_a_job_by_json_lines_on_a_descriptor() {
    let world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    world.push_os("2");
    let _daemon = Daemon::start(&bus, &host, "");
    let log = host.dir.path().join("progress");
    let script = format!(
        "exec {} --bus {} upgrade --quiet --progress-fd 3 3>{}",
        env!("CARGO_BIN_EXE_osctl"),
        bus.address(),
        log.display()
    );
    let out = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(), "{}", text(&out));
    let lines = std::fs::read_to_string(log).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let first = &lines[0];
    assert_eq!((&first["type"], &first["version"]), (&"start".into(), &1.into()));
    let last = lines.last().unwrap();
    assert_eq!((&last["type"], &last["job"]["state"]), (&"finished".into(), &"succeeded".into()));
    let progress: Vec<f64> = lines.iter().filter_map(|l| l["job"]["progress"].as_f64()).collect();
    assert!(progress.is_sorted() && progress.last() == Some(&1.0), "{progress:?}");
}

#[test]
fn without_a_daemon_the_exit_code_is_5_and_the_next_command_is_said() {
    let bus = Bus::start();
    let out = client(&bus, &["upgrade"]);
    assert_eq!(out.status.code(), Some(5), "{}", text(&out));
    assert!(text(&out).contains("hint:"), "{}", text(&out));
}

#[test]
fn what_makes_no_sense_is_refused_before_anybody_is_contacted() {
    let bus = Bus::start();
    for args in [
        ["rebase", ""].as_slice(),
        &["rebase", "quay.io//os"],
        &["rebase", "me:hunter2@quay.io/os"],
        &["upgrade", "--progress-fd", "99"],
    ] {
        let out = client(&bus, args);
        // Without a daemon anything else would be 5.
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out));
        assert!(!text(&out).contains("hunter2"), "{}", text(&out));
    }
    let config = tempfile::tempdir().unwrap();
    let explain = Command::new(env!("CARGO_BIN_EXE_osctl"))
        .args(["config", "explain-auth", "quay.io/os", "--config-root"])
        .arg(config.path())
        .output()
        .unwrap();
    assert!(explain.status.success(), "{}", text(&explain));
}

#[test]
fn who_only_looks_does_not_wait_for_the_lock_of_another_program() {
    let world = World::new();
    let (host, bus) = (world.host(), Bus::start());
    let lock = std::fs::File::create(host.sysroot().join("ostree/lock")).unwrap();
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let within = |what: &str, run: &dyn Fn() -> Output| {
        let start = Instant::now();
        let out = run();
        assert!(out.status.success(), "{what}: {}", text(&out));
        assert!(start.elapsed() < Duration::from_secs(2), "{what} took {:?}", start.elapsed());
    };
    within("osctl --direct status", &|| host.osctl(&["status"]));
    // Something to settle makes the recovery wait for the lock.
    let mut upgrade = host.command(&["upgrade"]).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(upgrade.stderr.take().unwrap()).lines();
    let waits = said.map_while(Result::ok).any(|l| l.contains(": waiting for "));
    assert!(waits, "the lock of this test is one that osctl knows");
    end(&mut upgrade);
    within("osctl --direct status after a crash", &|| host.osctl(&["status"]));
    let _daemon = Daemon::start(&bus, &host, "");
    within("osctl status", &|| client(&bus, &["status"]));
}
