//! The service on a real, private bus, against an engine that does what the test says.

use super::*;
use crate::client::{Client, Failure, Target};
use crate::engine::Handle;
use crate::engine::actor::Command;
use crate::model::bound::Mode;
use crate::model::image::Digest;
use crate::model::job::{Event, Job, JobResult, State, Step};
use crate::model::request::{Options, Request};
use crate::model::status::{Bound, BoundState, Deployment, Status};
use crate::model::verified::Damage;
use crate::model::{Error, ErrorKind, Result};
use futures_util::StreamExt;
use std::io::BufRead;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A bus that everybody may use, which ends with the test.
struct Bus {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Bus {
    fn start() -> Bus {
        Bus::with("")
    }

    /// A bus with more lines in its configuration.
    fn with(more: &str) -> Bus {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/><allow send_destination=\"*\" eavesdrop=\"true\"/>\
             <allow eavesdrop=\"true\"/>\
             <allow own=\"*\"/></policy>{more}</busconfig>",
            dir.path().display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = std::process::Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--print-address", "--nofork"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut address = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Bus { child, address: address.trim().to_owned(), _dir: dir }
    }

    async fn connect(&self) -> zbus::Connection {
        zbus::connection::Builder::address(self.address.as_str()).unwrap().build().await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect(&Target::Bus(self.address.clone()), "test").await.unwrap()
    }

    /// Runs busctl as a foreign client, as another user if one is named.
    async fn busctl(&self, uid: Option<u32>, args: &[&str]) -> (bool, String) {
        let mut command = tokio::process::Command::new("busctl");
        command.arg(format!("--address={}", self.address)).args(args);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let out = command.output().await.unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}

/// An engine without a pipeline: jobs go where the test pushes them.
#[derive(Clone)]
struct Engine {
    handle: Handle,
    status: watch::Sender<Arc<Status>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Engine {
    fn start() -> Engine {
        let (commands, mut received) = mpsc::channel(8);
        let mut status = Status::initializing();
        status.state = "idle".into();
        status.deployments.push(deployment("os-abc.0"));
        status.booted = Some("os-abc.0".into());
        let (status, watch) = watch::channel(Arc::new(status));
        let engine = Engine { handle: Handle::from_parts(commands, watch), status, requests: Arc::default() };
        let me = engine.clone();
        tokio::spawn(async move {
            while let Some(command) = received.recv().await {
                me.handle(command);
            }
        });
        engine
    }

    fn handle(&self, command: Command) {
        match command {
            Command::Submit { request, initiator, reply } => {
                let job = Job::new(uuid::Uuid::now_v7().to_string(), request.kind(), initiator, 1);
                self.requests.lock().unwrap().push(request.clone());
                self.change(|s| s.jobs.insert(0, job.clone()));
                if let Request::Pin { pinned, .. } = request {
                    self.change(|s| s.deployments[0].pinned = pinned);
                    self.apply(&job.id, &done("Pinned."));
                }
                let _ = reply.send(Ok(job));
            }
            Command::Cancel { id, reply } => {
                let late = self.handle.job(&id).is_some_and(|j| j.point_of_no_return);
                if late {
                    let _ = reply.send(Err(Error::new(ErrorKind::TooLate, "too late")));
                    return;
                }
                self.apply(&id, &Event::Cancelling);
                let error = Error::new(ErrorKind::Cancelled, "cancelled").hint("try again");
                self.apply(&id, &Event::Finished { at: 9, outcome: Err((&error).into()) });
                let _ = reply.send(Ok(()));
            }
            Command::Reload { reply } => drop(reply.send(Ok(()))),
            Command::Lock { reply, .. } => drop(reply.send(Ok(None))),
            Command::Diff { reply, .. } => drop(reply.send(Ok(Default::default()))),
            Command::Drain { reply } => drop(reply.send(())),
        }
    }

    fn change(&self, f: impl FnOnce(&mut Status)) {
        self.status.send_modify(|s| f(Arc::make_mut(s)));
    }

    fn apply(&self, id: &str, event: &Event) {
        self.change(|s| s.jobs.iter_mut().filter(|j| j.id == id).for_each(|j| j.apply(event)));
    }

    async fn serve(&self, bus: &Bus) -> zbus::Connection {
        self.serve_as(bus, Authority::OwnUid).await
    }

    async fn serve_as(&self, bus: &Bus, authority: Authority) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(bus.address.as_str()).unwrap();
        let service = Service::connect(builder, authority).await.unwrap();
        let connection = service.connection().clone();
        connection.request_name(NAME).await.unwrap();
        service.attach(self.handle.clone());
        connection
    }
}

fn done(summary: &str) -> Event {
    let result = JobResult {
        changed: true,
        summary: summary.into(),
        deployment: Some("os-abc.0".into()),
        ..Default::default()
    };
    Event::Finished { at: 9, outcome: Ok(result) }
}

fn deployment(id: &str) -> Deployment {
    Deployment {
        id: id.into(),
        index: 0,
        stateroot: "os".into(),
        checksum: "abc".into(),
        base_checksum: "abc".into(),
        image: Some("example.com/os:1".parse().unwrap()),
        digest: Some(Digest::of(b"1")),
        version: "1".into(),
        timestamp: 1,
        booted: true,
        staged: false,
        default: true,
        pinned: false,
        verification: None,
        derivation: Default::default(),
        bound_images: Default::default(),
        labels: Default::default(),
        incompatible: Vec::new(),
    }
}

fn bound(id: &str) -> Bound {
    Bound {
        id: id.into(),
        reference: "example.com/app:1".parse().unwrap(),
        digest: Digest::of(b"app"),
        mode: Mode::Bind,
        source: "/etc/osctl/bound-images.d/app.toml".into(),
        state: BoundState::Present,
        size: 7,
        checked: 0,
        damage: Vec::new(),
        deployments: vec!["os-abc.0".into()],
    }
}

async fn submit(client: &Client) -> String {
    client.submit(&Request::Upgrade(Options::default())).await.unwrap().unwrap()
}

/// Collects signals below a path until one with this member comes.
async fn until(signals: &mut zbus::MessageStream, member: &str) -> Vec<zbus::Message> {
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(10), signals.next()).await;
        let message = next.expect("a signal within 10 s").unwrap().unwrap();
        let last = message.header().member().is_some_and(|m| m.as_str() == member);
        seen.push(message);
        if last {
            return seen;
        }
    }
}

fn members(messages: &[zbus::Message]) -> Vec<String> {
    messages.iter().map(|m| m.header().member().unwrap().to_string()).collect()
}

async fn signals(connection: &zbus::Connection) -> zbus::MessageStream {
    let rule = zbus::MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .path_namespace(path::ROOT)
        .unwrap()
        .build();
    zbus::MessageStream::for_match_rule(rule, connection, Some(1000)).await.unwrap()
}

/// The `<interface>` element of an introspection answer.
fn interface<'x>(xml: &'x str, name: &str) -> &'x str {
    let start = xml.find(&format!("<interface name=\"{name}\">")).unwrap();
    let end = xml[start..].find("</interface>").unwrap() + "</interface>".len();
    &xml[start..start + end]
}

/// The methods that change nothing, and that anybody may call.
const READS: &[&str] = &["Describe", "Diff", "ListJobs", "ExportLock"];

#[tokio::test]
async fn the_xml_is_what_introspect_answers_and_every_method_has_an_action() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    engine.change(|s| s.bound.push(bound("abc")));
    let job = submit(&bus.client().await).await;
    let connection = bus.connect().await;
    for (name, path) in [
        ("Manager", path::ROOT.to_owned()),
        ("Job", path::job(&job).to_string()),
        ("Deployment", path::deployment("os-abc.0").to_string()),
        ("BoundImage", path::bound("abc").to_string()),
    ] {
        let proxy = zbus::fdo::IntrospectableProxy::builder(&connection)
            .destination(NAME)
            .unwrap()
            .path(path)
            .unwrap()
            .build()
            .await
            .unwrap();
        let name = format!("{NAME}.{name}");
        let answer = proxy.introspect().await.unwrap();
        let interface = interface(&answer, &name);
        let methods: Vec<&str> =
            interface.split("<method name=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let listed = |m: &str| {
            ACTIONS.iter().any(|(i, n, a)| *i == name && *n == m && (!a.is_empty() || READS.contains(&m)))
        };
        assert!(methods.iter().all(|m| listed(m)), "{name}: a method of {methods:?} is not in ACTIONS");
        assert_eq!(ACTIONS.iter().filter(|(i, ..)| *i == name).count(), methods.len(), "{name}");

        let file = format!("{}/dbus/{name}.xml", env!("CARGO_MANIFEST_DIR"));
        let xml = format!(
            "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
             \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n  {interface}\n</node>\n"
        );
        if std::env::var_os("UPDATE_XML").is_some() {
            std::fs::write(&file, &xml).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), xml, "UPDATE_XML=1 rewrites {file}");
    }
}

#[tokio::test]
async fn a_job_is_there_when_the_reply_is_and_tells_its_whole_life() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    let client = bus.client().await;
    let listener = bus.connect().await;
    let mut signals = signals(&listener).await;

    let id = submit(&client).await;
    let job = client.job(&id).await.unwrap();
    assert_eq!(
        (job.kind.as_str(), job.state, job.initiator.client_id.as_str()),
        ("upgrade", State::Queued, "test")
    );
    assert_eq!(job.initiator.uid, rustix::process::geteuid().as_raw());

    let seen = Mutex::new(Vec::new());
    let pushing = async {
        for event in [
            Event::Started { at: 2 },
            Event::Step(Step::PullLayers),
            Event::Message("half".into()),
            Event::Bytes { done: 5, total: 10 },
            done("Staged 2."),
        ] {
            engine.apply(&id, &event);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let follow = client.follow(&id, |j| seen.lock().unwrap().push((j.state, j.bytes_done)));
    let (last, ()) = tokio::join!(follow, pushing);
    let last = last.unwrap();
    assert_eq!(last, engine.handle.job(&id).unwrap());
    assert!(seen.lock().unwrap().contains(&(State::Running, 5)), "{seen:?}");

    let all = until(&mut signals, "Completed").await;
    let names = members(&all);
    for name in ["InterfacesAdded", "JobAdded", "PropertiesChanged", "Message"] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    let (outcome, error, message, result): (String, String, String, convert::Dict) =
        all.last().unwrap().body().deserialize().unwrap();
    assert_eq!((outcome.as_str(), error.as_str(), message.as_str()), ("succeeded", "", ""));
    assert_eq!(convert::parse_result(&result), last.result.unwrap());
    // Whoever comes too late finds the same.
    assert_eq!(client.follow(&id, |_| {}).await.unwrap().state, State::Succeeded);
}

#[tokio::test]
async fn progress_is_sent_at_most_five_times_a_second() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    let id = submit(&bus.client().await).await;
    engine.apply(&id, &Event::Started { at: 2 });
    engine.apply(&id, &Event::Step(Step::PullLayers));
    let listener = bus.connect().await;
    let mut signals = signals(&listener).await;
    let start = tokio::time::Instant::now();
    for done in 1..=100 {
        engine.apply(&id, &Event::Bytes { done, total: 200 });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    engine.apply(&id, &done("Staged."));
    let seen = until(&mut signals, "Completed").await;
    let most = start.elapsed().as_millis() / 200 + 4;
    let changes = members(&seen).iter().filter(|m| *m == "PropertiesChanged").count() as u128;
    // Beside progress: its first, its last, the end, and Manager's properties.
    assert!((4..=most).contains(&changes), "{changes} changes, {most} at the most");
}

#[tokio::test]
async fn cancel_ends_the_job_with_its_error() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    let client = bus.client().await;
    let id = submit(&client).await;
    engine.apply(&id, &Event::PointOfNoReturn);
    let Err(Failure::Refused(error)) = client.cancel(&id).await else { panic!("it was too late") };
    assert_eq!(error.kind, ErrorKind::TooLate);
    let id = submit(&client).await;
    client.cancel(&id).await.unwrap();
    let job = client.follow(&id, |_| {}).await.unwrap();
    assert_eq!(job.state, State::Cancelled);
    let failure = job.failure.unwrap();
    assert_eq!((failure.kind, failure.hint.as_str()), (ErrorKind::Cancelled, "try again"));
    let Err(Failure::Refused(error)) = client.cancel("2f1c8c3e").await else { panic!("no such job") };
    assert_eq!(error.to_string(), "there is no job 2f1c8c3e");
}

#[tokio::test]
async fn busctl_reads_calls_and_is_refused_as_everybody() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    let bus = &bus;
    let call = async |uid, args: &[&str]| {
        let manager = ["call", NAME, path::ROOT, "org.osctl1.Manager"];
        bus.busctl(uid, &[manager.as_slice(), args].concat()).await
    };

    let (ok, text) = call(None, &["Upgrade", "a{sv}", "1", "colour", "b", "true"]).await;
    assert!(!ok && text.contains("unknown option \"colour\""), "{text}");
    let (ok, text) = call(None, &["Upgrade", "a{sv}", "1", "dry-run", "s", "yes"]).await;
    assert!(!ok && text.contains("\"dry-run\" must be a boolean"), "{text}");
    for what in [["1", "etc"].as_slice(), &["0"]] {
        let (ok, text) = call(None, &[["Verify", "asa{sv}"].as_slice(), what, &["0"]].concat()).await;
        assert!(!ok && text.contains("verified"), "{text}");
    }
    let (ok, text) = call(None, &["Verify", "asa{sv}", "1", "bound", "1", "frozen", "b", "true"]).await;
    assert!(!ok && text.contains("unknown option \"frozen\""), "{text}");
    let (ok, text) = call(None, &["Rebase", "sa{sv}", "a b", "0"]).await;
    assert!(!ok && text.contains("image reference"), "{text}");
    assert!(engine.requests.lock().unwrap().is_empty(), "nothing that is wrong reaches the engine");

    let (ok, text) = call(None, &["Upgrade", "a{sv}", "1", "dry-run", "b", "true"]).await;
    assert!(ok && text.starts_with("o \"/org/osctl1/job/"), "{text}");
    let expected = Request::Upgrade(Options { dry_run: true, ..Default::default() });
    assert_eq!(*engine.requests.lock().unwrap(), [expected]);

    let (ok, text) = bus.busctl(None, &["tree", NAME]).await;
    assert!(ok && text.contains("/org/osctl1/deployment/os_2dabc_2e0"), "{text}");
    let path = path::deployment("os-abc.0");
    let (ok, text) = bus.busctl(None, &["introspect", NAME, path.as_str()]).await;
    assert!(ok && text.contains(".SetPinned"), "{text}");
    let pin = ["call", NAME, path.as_str(), "org.osctl1.Deployment", "SetPinned", "b", "true"];
    let (ok, text) = bus.busctl(None, &pin).await;
    assert!(ok, "{text}");
    let get = ["get-property", NAME, path.as_str(), "org.osctl1.Deployment", "Pinned"];
    assert_eq!(bus.busctl(None, &get).await, (true, "b true\n".to_owned()));

    // Only root can become somebody else.
    if rustix::process::geteuid().is_root() {
        let before = engine.requests.lock().unwrap().len();
        let (ok, text) = call(Some(65_534), &["Upgrade", "a{sv}", "0"]).await;
        assert!(!ok && text.contains("only uid 0 may change the host, and you are uid 65534"), "{text}");
        let (ok, text) = bus.busctl(Some(65_534), &pin).await;
        assert!(!ok && text.contains("you are uid 65534"), "{text}");
        assert_eq!(engine.requests.lock().unwrap().len(), before);
        let (ok, text) = call(Some(65_534), &["Describe"]).await;
        assert!(ok && text.contains("os-abc.0"), "reading is free: {text}");
    }
}

#[tokio::test]
async fn nobody_can_make_the_bus_drop_the_daemon_with_a_long_text() {
    // What dbus-daemon allows on the system bus.
    let bus = Bus::with("<limit name=\"max_message_size\">33554432</limit>");
    let engine = Engine::start();
    let server = engine.serve(&bus).await;
    let connection = bus.connect().await;
    let huge = "\u{1}".repeat(8 << 20);
    let empty = convert::Out::new();
    let with = |key: &str, value: &str| convert::Out::from([(key.to_owned(), value.to_owned().into())]);
    let call = async |method: &str, body: &(&str, convert::Out)| {
        let error = match method {
            "Rebase" => {
                connection.call_method(Some(NAME), path::ROOT, Some("org.osctl1.Manager"), method, body).await
            }
            _ => {
                connection
                    .call_method(Some(NAME), path::ROOT, Some("org.osctl1.Manager"), method, &body.1)
                    .await
            }
        };
        let Err(zbus::Error::MethodError(name, ..)) = error else { panic!("{method} took it") };
        assert_eq!(name.as_str(), "org.osctl1.Error.InvalidArgument");
    };
    call("Rebase", &(&huge, empty)).await;
    call("Upgrade", &("", with("require-digest", &huge))).await;
    call("Upgrade", &("", with(&huge, "x"))).await;
    call("ListJobs", &("", with("active", &huge))).await;
    assert!(engine.requests.lock().unwrap().is_empty());
    server
        .call_method(Some("org.freedesktop.DBus"), "/", Some("org.freedesktop.DBus.Peer"), "Ping", &())
        .await
        .unwrap();
}

#[tokio::test]
async fn root_needs_no_healthy_polkit() {
    let services = tempfile::tempdir().unwrap();
    let broken = "[D-BUS Service]\nName=org.freedesktop.PolicyKit1\nExec=/bin/false\n";
    std::fs::write(services.path().join("org.freedesktop.PolicyKit1.service"), broken).unwrap();
    let bus = Bus::with(&format!("<servicedir>{}</servicedir>", services.path().display()));
    let engine = Engine::start();
    let _server = engine.serve_as(&bus, Authority::Polkit).await;
    let upgrade = ["call", NAME, path::ROOT, "org.osctl1.Manager", "Upgrade", "a{sv}", "0"];
    let (ok, text) = bus.busctl(None, &upgrade).await;
    if rustix::process::geteuid().is_root() {
        assert!(ok, "{text}");
        let (ok, text) = bus.busctl(Some(65_534), &upgrade).await;
        assert!(!ok && text.contains("asking polkit about org.osctl1.upgrade"), "{text}");
        assert_eq!(engine.requests.lock().unwrap().len(), 1);
    } else {
        assert!(!ok && text.contains("asking polkit about org.osctl1.upgrade"), "{text}");
    }
}

#[tokio::test]
async fn the_job_of_the_call_that_starts_the_daemon_is_announced_and_those_of_before_are_not() {
    let bus = Bus::start();
    let engine = Engine::start();
    engine.change(|s| {
        let mut old = Job::new("old".into(), "upgrade", Default::default(), 1);
        old.apply(&done("Staged 1."));
        let new = Job::new("new".into(), "upgrade", Default::default(), 2);
        s.jobs = vec![new, old];
    });
    let listener = bus.connect().await;
    let mut signals = signals(&listener).await;
    let _server = engine.serve(&bus).await;
    let seen = until(&mut signals, "JobAdded").await;
    let added: zbus::zvariant::OwnedObjectPath = seen.last().unwrap().body().deserialize().unwrap();
    assert_eq!(added, path::job("new"));
    let client = bus.client().await;
    assert_eq!(client.job("old").await.unwrap().state, State::Succeeded, "it is there all the same");
    engine.apply("new", &done("Staged 2."));
    let seen = until(&mut signals, "Completed").await;
    let added = members(&seen).iter().filter(|m| *m == "JobAdded").count();
    assert_eq!(
        (added, seen.last().unwrap().header().path().unwrap().as_str()),
        (0, path::job("new").as_str())
    );
}

#[tokio::test]
async fn a_call_with_other_types_is_a_mistake_of_the_caller() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    let connection = bus.connect().await;
    let call =
        connection.call_method(Some(NAME), path::ROOT, Some("org.osctl1.Manager"), "Upgrade", &(7u32,));
    let Err(zbus::Error::MethodError(name, text, _)) = call.await else { panic!("it was taken") };
    assert_eq!(error::parse(&name, &text.unwrap()).kind, ErrorKind::InvalidArgument, "{name}");
}

#[tokio::test]
async fn following_a_job_that_there_is_not_fails_at_once() {
    let bus = Bus::start();
    let engine = Engine::start();
    let server = engine.serve(&bus).await;
    let client = bus.client().await;
    let start = tokio::time::Instant::now();
    let Err(Failure::Refused(error)) = client.follow("2f1c8c3e", |_| {}).await else { panic!("no such job") };
    assert_eq!(error.to_string(), "there is no job 2f1c8c3e");
    assert!(start.elapsed() < Duration::from_secs(5));

    // A daemon that is still loading does not know its history yet.
    server.close().await.unwrap();
    engine.change(|s| {
        s.state = Status::INITIALIZING.into();
        s.jobs.clear();
    });
    let _server = engine.serve(&bus).await;
    let loading = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        engine.change(|s| {
            let mut old = Job::new("old".into(), "upgrade", Default::default(), 1);
            old.apply(&done("Staged 1."));
            s.jobs.push(old);
            s.state = "idle".into();
        });
    };
    let (job, ()) = tokio::join!(client.follow("old", |_| {}), loading);
    assert_eq!(job.unwrap().state, State::Succeeded);
}

#[tokio::test]
async fn objects_come_and_go_with_what_they_show() {
    let bus = Bus::start();
    let engine = Engine::start();
    let _server = engine.serve(&bus).await;
    let client = bus.client().await;
    let id = submit(&client).await;
    let listener = bus.connect().await;
    let mut signals = signals(&listener).await;
    engine.change(|s| {
        s.jobs.clear();
        s.deployments.insert(0, deployment("os-new.0"));
    });
    let names = members(&until(&mut signals, "JobRemoved").await);
    for name in ["InterfacesAdded", "DeploymentsChanged", "InterfacesRemoved"] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    engine.change(|s| s.bound.push(bound("abc")));
    until(&mut signals, "InterfacesAdded").await;
    let object = |name: &'static str, property: &'static str| {
        let path = if name == "BoundImage" { path::bound("abc") } else { path::deployment("os-abc.0") };
        let interface = format!("{NAME}.{name}");
        let bus = &bus;
        async move { bus.busctl(None, &["get-property", NAME, path.as_str(), &interface, property]).await.1 }
    };
    assert_eq!(object("BoundImage", "State").await, "s \"present\"\n");
    let deployments = object("BoundImage", "Deployments").await;
    assert_eq!(deployments, "ao 1 \"/org/osctl1/deployment/os_2dabc_2e0\"\n");
    assert_eq!(object("Deployment", "BoundImages").await, "ao 1 \"/org/osctl1/bound/abc\"\n");
    engine.change(|s| {
        s.bound[0].state = BoundState::Damaged;
        s.bound[0].damage = vec![Damage::of_file(&Digest::of(b"layer"), "/bin/x", "is missing")];
    });
    until(&mut signals, "PropertiesChanged").await;
    assert_eq!(object("BoundImage", "State").await, "s \"damaged\"\n");
    assert!(object("BoundImage", "Verification").await.contains("\"path\" s \"/bin/x\""));
    engine.change(|s| s.bound.clear());
    until(&mut signals, "InterfacesRemoved").await;
    let proxy = zbus::fdo::ObjectManagerProxy::new(&listener, NAME, path::ROOT).await.unwrap();
    let objects = proxy.get_managed_objects().await.unwrap();
    // zbus also lists the nodes in between, with the standard interfaces only.
    let ours = objects.iter().filter(|(_, i)| i.keys().any(|i| i.starts_with(NAME)));
    let mut paths: Vec<_> = ours.map(|(p, _)| p.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/org/osctl1/deployment/os_2dabc_2e0", "/org/osctl1/deployment/os_2dnew_2e0"]);
    let Err(Failure::Refused(error)) = client.job(&id).await else { panic!("the job is gone") };
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_follower_outlives_a_restart_of_the_daemon() {
    let bus = Bus::start();
    let engine = Engine::start();
    let server = engine.serve(&bus).await;
    let client = bus.client().await;
    let id = submit(&client).await;
    let restart = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.close().await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        engine.apply(&id, &done("Staged."));
        engine.serve(&bus).await
    };
    let (job, _server) = tokio::join!(client.follow(&id, |_| {}), restart);
    assert_eq!(job.unwrap().state, State::Succeeded);
}

#[tokio::test]
async fn the_same_interfaces_work_over_a_socket_pair() {
    let engine = Engine::start();
    let client = Client::direct(engine.handle.clone(), "test").await.unwrap();
    let id = submit(&client).await;
    engine.apply(&id, &Event::Started { at: 2 });
    let ending = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        engine.apply(&id, &done("Deployed."));
    };
    let start = tokio::time::Instant::now();
    let (job, ()) = tokio::join!(client.follow(&id, |_| {}), ending);
    assert_eq!(job.unwrap().result.unwrap().summary, "Deployed.");
    assert!(start.elapsed() < Duration::from_secs(1), "signals arrive: nobody waits for the next reading");
    assert_eq!(client.status().await.unwrap(), *engine.handle.status());
    let unpin = Request::Pin { deployment: "os-abc.0".into(), pinned: true };
    assert_eq!(client.submit(&unpin).await.unwrap(), None);
    client.close().await;
}

#[tokio::test]
async fn without_a_daemon_the_hint_says_how_to_get_one() {
    let mut bus = Bus::start();
    let client = bus.client().await;
    let Err(Failure::NoDaemon(error)) = client.describe().await else { panic!("there is no daemon") };
    assert!(error.hint.unwrap().contains("systemctl start osctld.service"));
    bus.stop();
    let target = Target::Bus(bus.address.clone());
    let Err(Failure::NoDaemon(error)) = Client::connect(&target, "test").await else { panic!("no bus") };
    assert!(error.hint.unwrap().contains("--direct"));
}

fn daemon(bus: &Bus, more: &[&str]) -> tokio::task::JoinHandle<Result<()>> {
    use clap::Parser as _;
    let words = ["osctld", "--sysroot", "/nonexistent", "--bus", &bus.address];
    let args = crate::daemon::Args::parse_from(words.iter().chain(more));
    tokio::spawn(crate::daemon::run(args, Default::default()))
}

async fn owned(bus: &Bus, wanted: bool) {
    let connection = bus.connect().await;
    let proxy = zbus::fdo::DBusProxy::new(&connection).await.unwrap();
    let wait = async {
        while proxy.name_has_owner(NAME.try_into().unwrap()).await.unwrap() != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap();
}

#[tokio::test]
async fn a_second_daemon_gives_up_and_the_first_fails_when_the_bus_goes() {
    let mut bus = Bus::start();
    let first = daemon(&bus, &[]);
    owned(&bus, true).await;
    let error = daemon(&bus, &[]).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    bus.stop();
    let ended = tokio::time::timeout(Duration::from_secs(15), first).await.unwrap().unwrap();
    assert_eq!(ended.unwrap_err().to_string(), "the connection to the bus is lost");
}

#[tokio::test]
async fn an_idle_daemon_leaves_when_its_last_client_has_left() {
    let bus = Bus::start();
    let daemon = daemon(&bus, &["--idle-exit", "1"]);
    owned(&bus, true).await;
    let client = bus.client().await;
    client.describe().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!daemon.is_finished(), "a connected client keeps it");
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), daemon).await.unwrap().unwrap().unwrap();
    owned(&bus, false).await;
}

#[tokio::test]
async fn clients_that_leave_before_their_answer_keep_no_daemon() {
    let bus = Bus::start();
    let daemon = daemon(&bus, &["--idle-exit", "1"]);
    owned(&bus, true).await;
    for _ in 0..50 {
        let connection = bus.connect().await;
        let call = zbus::Message::method_call(path::ROOT, "Describe").unwrap();
        let call =
            call.destination(NAME).unwrap().interface("org.osctl1.Manager").unwrap().build(&()).unwrap();
        connection.send(&call).await.unwrap();
        connection.close().await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(10), daemon).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_is_answered_however_early_it_comes() {
    for _ in 0..200 {
        let client = Client::direct(Engine::start().handle, "test").await.unwrap();
        let described = tokio::time::timeout(Duration::from_secs(5), client.describe()).await;
        described.expect("an answer").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_a_name_in_the_status_may_call_what_has_it() {
    for _ in 0..20 {
        let engine = Engine::start();
        engine.change(|s| s.deployments.extend((1..50).map(|at| deployment(&format!("os-abc.{at}")))));
        let client = Client::direct(engine.handle.clone(), "test").await.unwrap();
        let last = client.status().await.unwrap().deployments.last().unwrap().id.clone();
        assert_eq!(last, "os-abc.49");
        let answer = client.submit(&Request::Pin { deployment: last, pinned: true }).await;
        let answer = format!("{answer:?}");
        assert!(!answer.contains("Unknown object"), "{answer}");
    }
}
