//! Contents that drop-ins name by URL: fetched once, by digest, and kept.

use crate::host::{World, read, text};
use sha2::Digest as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

/// A web server that has these files, and notes what it is asked for. It goes with the test.
fn serve(files: Vec<(&'static str, Vec<u8>)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let (status, body) = match files.iter().find(|(name, _)| *name == path) {
                Some((_, body)) => ("200 OK", body.as_slice()),
                None => ("404 Not Found", &[][..]),
            };
            notes.lock().unwrap().push(path);
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        }
    });
    (address, asked)
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(sha2::Sha256::digest(bytes))
}

#[test]
fn a_download_is_fetched_once_and_a_new_version_is_derived_without_the_server() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"packed\n").unwrap();
    let (server, asked) =
        serve(vec![("/plain", b"plain\n".to_vec()), ("/packed.gz", gzip.finish().unwrap())]);
    let world = World::new();
    let host = world.host();
    let plain = |path: &str, digest: &str| {
        format!("files: [{{path: /etc/plain, contents: {{source: '{server}{path}', sha256: {digest}}}}}]\n")
    };
    host.drop_in("50-a.yaml", &plain("/plain", &sha256(b"plain\n")));
    host.drop_in(
        "60-b.bu",
        &format!(
            "variant: fcos\nversion: 1.6.0\nstorage:\n  files:\n    - path: /etc/packed\n      mode: 0600\n      \
             contents:\n        source: {server}/packed.gz\n        compression: gzip\n        \
             verification: {{hash: sha256-{}}}\n",
            sha256(b"packed\n")
        ),
    );
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    let there = || (read(&host.deployed(), "usr/etc/plain"), read(&host.deployed(), "usr/etc/packed"));
    assert_eq!(there(), ("plain\n".to_owned(), "packed\n".to_owned()));
    assert_eq!(*asked.lock().unwrap(), ["/packed.gz", "/plain"]);

    // Nothing changed, and a new version of the OS: nobody is asked again.
    let out = host.osctl(&["reconcile"]);
    assert!(text(&out).contains("No changes in input."), "{}", text(&out));
    world.push_os("2");
    let out = host.osctl(&["upgrade"]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(read(&host.deployed(), "usr/lib/version"), "2");
    assert_eq!(there(), ("plain\n".to_owned(), "packed\n".to_owned()));
    assert_eq!(asked.lock().unwrap().len(), 2);

    // What is there has to be what was declared.
    let before = host.deployments();
    let wrong = sha256(b"other\n");
    for (path, digest, message) in [
        ("/plain", &wrong, format!("what came has another digest than sha256-{wrong}; nothing was staged")),
        ("/gone?key=secret", &wrong, "the server does not have it (status 404)".to_owned()),
    ] {
        host.drop_in("50-a.yaml", &plain(path, digest));
        let out = host.osctl(&["reconcile"]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        let said = text(&out);
        let where_ =
            format!("50-a.yaml: fetching /etc/plain from {server}{}", path.split('?').next().unwrap());
        assert!(said.contains(&where_) && said.contains(&message) && !said.contains("secret"), "{said}");
        assert_eq!(host.deployments(), before);
    }

    // What no drop-in names any more is not kept.
    host.drop_in("50-a.yaml", "");
    let out = host.osctl(&["reconcile"]);
    assert!(out.status.success(), "{}", text(&out));
    let kept = std::fs::read_dir(host.sysroot().join("ostree/osctl/contents")).unwrap();
    let kept: Vec<_> = kept.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(kept, [format!("sha256-{}", sha256(b"packed\n"))]);
    host.fsck();
}
