use super::*;
use std::io::Write as _;

/// A tar-split of these lines.
fn split(lines: &[String]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(lines.join("\n").as_bytes()).unwrap();
    gz.finish().unwrap()
}

fn raw(bytes: &[u8]) -> String {
    let payload = base64::engine::general_purpose::STANDARD.encode(bytes);
    format!(r#"{{"type":2,"payload":"{payload}","position":0}}"#)
}

fn file(name: &str, content: &[u8]) -> String {
    let mut crc = Crc::default();
    crc.update(content);
    let payload = base64::engine::general_purpose::STANDARD.encode(crc.sum().to_be_bytes());
    serde_json::json!({"type": 1, "name": name, "size": content.len(), "payload": payload}).to_string()
}

fn run(dir: &Path, lines: &[String], look: Look) -> Layer {
    reassemble(&split(lines)[..], dir, look, &mut |_| Ok(())).unwrap()
}

fn found(dir: &Path, lines: &[String]) -> Vec<String> {
    let layer = run(dir, lines, Look::EachFile);
    let one = |(path, why): (Option<String>, String)| format!("{} {why}", path.unwrap_or_default());
    layer.damage.into_iter().map(one).collect()
}

#[test]
fn the_checksum_is_the_one_that_tar_split_writes() {
    // Out of the tar-split that skopeo wrote of files with this content.
    for (content, sum) in [(&b"own"[..], "PZq8AAAAAAA="), (b"absolute name", "lXYpGftUyHk=")] {
        let mut crc = Crc::default();
        crc.update(content);
        assert_eq!(base64::engine::general_purpose::STANDARD.encode(crc.sum().to_be_bytes()), sum);
    }
}

#[test]
fn names_stay_in_their_layer() {
    for (name, expected) in [
        (&b"./a/b/"[..], Some(&b"a/b"[..])),
        (b"/a//b", Some(b"a/b")),
        (b"x/../b", Some(b"b")),
        (b"./", Some(b".")),
        (b"", Some(b".")),
        (b"../a", None),
        (b"a/../../b", None),
        (b"/..", None),
    ] {
        assert_eq!(unpacked(name).as_deref(), expected, "{name:?}");
    }
}

#[test]
fn no_name_and_no_link_leads_out_of_the_layer() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("layer");
    std::fs::create_dir_all(dir.join("usr")).unwrap();
    std::fs::write(temp.path().join("secret"), "secret").unwrap();
    std::fs::write(dir.join("usr/in"), "in").unwrap();
    std::os::unix::fs::symlink(temp.path(), dir.join("out")).unwrap();
    std::os::unix::fs::symlink("../..", dir.join("up")).unwrap();
    std::os::unix::fs::symlink("/usr", dir.join("lib")).unwrap();
    std::os::unix::fs::symlink("usr/in", dir.join("last")).unwrap();
    for (name, expected) in [
        ("../secret", "leads out of its layer"),
        ("out/secret", "is missing"),
        ("up/secret", "is missing"),
        ("last", "is no file any more"),
        ("usr", "has other content"),
    ] {
        let content: &[u8] = if name == "last" { b"in" } else { b"secret" };
        let damage = found(&dir, &[file(name, content)]);
        let expected = if name == "usr" { "is no file any more" } else { expected };
        assert_eq!(damage, [format!("/{name} {expected}")]);
    }
    // The layer's own links are followed, as they were when it was unpacked.
    assert_eq!(found(&dir, &[file("lib/in", b"in")]), [""; 0]);
    assert_eq!(found(&dir, &[file("up/usr/in", b"in")]), [""; 0]);
}

#[test]
fn the_stream_is_what_lies_between_the_files_with_the_files() {
    let temp = tempfile::tempdir().unwrap();
    std::fs::write(temp.path().join("a"), "content").unwrap();
    let whole = [raw(b"before"), file("a", b"content"), raw(b"after"), raw(b"")];
    let layer = run(temp.path(), &whole, Look::Digest);
    assert_eq!((layer.digest, layer.damage.len()), (Some(Digest::of(b"beforecontentafter")), 0));
    std::fs::write(temp.path().join("a"), "cOntent").unwrap();
    let layer = run(temp.path(), &whole, Look::Digest);
    assert_eq!((layer.digest, layer.damage.len()), (Some(Digest::of(b"beforecOntentafter")), 0));
    assert_eq!(found(temp.path(), &whole), ["/a has other content"]);
    std::fs::write(temp.path().join("a"), "short").unwrap();
    assert_eq!(found(temp.path(), &whole), ["/a has 5 bytes, not 7"]);
    std::fs::remove_file(temp.path().join("a")).unwrap();
    assert_eq!(found(temp.path(), &whole), ["/a is missing"]);
    assert_eq!(run(temp.path(), &whole, Look::Digest).digest, None);
}

#[test]
fn of_a_list_that_is_damaged_that_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let good = split(&[raw(b"before"), raw(&[7; 5000])]);
    let said = |bytes: &[u8]| {
        let layer = reassemble(bytes, temp.path(), Look::Digest, &mut |_| Ok(())).unwrap();
        assert_eq!(layer.digest, None);
        layer.damage[0].1.clone()
    };
    assert!(said(&good[..good.len() / 2]).contains("has a list of contents (tar-split) that "));
    let mut flipped = good.clone();
    let last = flipped.len() - 6;
    flipped[last] ^= 1;
    assert!(said(&flipped).contains("cannot be read"));
    for (line, expected) in [
        ("{", "a line that is damaged"),
        (r#"{"type":3}"#, "an entry of an unknown kind"),
        (r#"{"type":1,"size":1}"#, "an entry without a name"),
        (r#"{"type":2,"payload":"*"}"#, "damaged bytes"),
    ] {
        assert_eq!(
            said(&split(&[line.to_owned()])),
            format!("has a list of contents (tar-split) that has {expected}")
        );
    }
}

#[test]
fn a_lost_disk_does_not_name_every_file() {
    let temp = tempfile::tempdir().unwrap();
    let lines: Vec<String> = (0..1000).map(|n| file(&format!("{n}"), b"x")).collect();
    let damage = found(temp.path(), &lines);
    assert_eq!((damage.len(), damage.last().unwrap().as_str()), (NAMED + 1, " has more damaged files"));
}

#[test]
fn whoever_cancels_is_heard_in_the_middle_of_a_file() {
    let temp = tempfile::tempdir().unwrap();
    let content = vec![1; 4 * PIECE];
    std::fs::write(temp.path().join("a"), &content).unwrap();
    let mut calls = 0;
    let error = reassemble(&split(&[file("a", &content)])[..], temp.path(), Look::Digest, &mut |_| {
        calls += 1;
        if calls < 2 { Ok(()) } else { Err(crate::engine::cx::cancelled()) }
    });
    assert_eq!((error.unwrap_err().kind, calls), (crate::model::ErrorKind::Cancelled, 2));
}
