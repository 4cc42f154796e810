use super::*;
use crate::bound::root::unpacked;
use crate::bound::tarsplit::{Look, reassemble};
use crate::pull::fixture::{Pack, Tar, pack};
use proptest::prelude::*;
use rustix::fs::{listxattr, major, minor};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

/// The time of everything that the fixture writes.
const THEN: i64 = 1_700_000_000;

struct Layer {
    dir: tempfile::TempDir,
    outcome: Result<Written>,
    stream: Digest,
}

impl Layer {
    fn of(tar: &[u8], how: Pack) -> Layer {
        let dir = tempfile::tempdir().unwrap();
        let (blob, _) = pack(tar, how);
        let (digest, size) = (Digest::of(&blob), blob.len() as u64);
        let outcome = write(io::Cursor::new(blob), &digest, size, &dir.path().join("layer"));
        Layer { dir, outcome, stream: Digest::of(tar) }
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("layer").join(FILES)
    }

    fn written(&self) -> &Written {
        self.outcome.as_ref().unwrap_or_else(|error| panic!("{}", error.chain()))
    }

    /// What lies there, by path: kind and mode, owner, what is in it, attributes, and the time where it is not that of the fixture.
    fn lies(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        list(&self.files(), "", &mut all);
        all
    }

    /// What is wrong with the layer when it is put together again.
    fn damage(&self) -> Vec<String> {
        let split = std::fs::File::open(self.dir.path().join("layer").join(SPLIT)).unwrap();
        let found = reassemble(split, &self.files(), Look::Digest, &mut |_| Ok(())).unwrap();
        let mut damage: Vec<String> = found.damage.into_iter().map(|(_, why)| why).collect();
        if !found.sparse && found.digest.as_ref() != Some(&self.stream) {
            damage.push("another stream".into());
        }
        damage
    }
}

fn list(dir: &Path, at: &str, into: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        let (path, name) = (entry.path(), entry.file_name());
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let here = format!("{at}/{}", String::from_utf8_lossy(name.as_bytes()));
        let kind = meta.file_type();
        let text = match () {
            () if kind.is_dir() => {
                list(&path, &here, into);
                format!("dir {:o}", meta.mode() & 0o7777)
            }
            () if kind.is_symlink() => format!("-> {}", std::fs::read_link(&path).unwrap().display()),
            () if kind.is_file() => {
                let links = if meta.nlink() > 1 { format!(" x{}", meta.nlink()) } else { String::new() };
                format!(
                    "{:o}{links} {:?}",
                    meta.mode() & 0o7777,
                    String::from_utf8_lossy(&std::fs::read(&path).unwrap())
                )
            }
            () if kind.is_fifo() => format!("fifo {:o}", meta.mode() & 0o7777),
            () => {
                let name = if kind.is_char_device() { "char" } else { "block" };
                format!("{name} {}:{} {:o}", major(meta.rdev()), minor(meta.rdev()), meta.mode() & 0o7777)
            }
        };
        let owner = match (meta.uid(), meta.gid()) {
            (0, 0) => String::new(),
            (uid, gid) => format!(" {uid}:{gid}"),
        };
        let time = match (meta.mtime(), meta.mtime_nsec()) {
            (THEN, 0) => String::new(),
            (seconds, _) if seconds > THEN => " now".into(),
            (seconds, nanos) => format!(" at {seconds}.{nanos}"),
        };
        into.insert(here, format!("{text}{owner}{}{time}", attributes_of(&path)));
    }
}

fn attributes_of(path: &Path) -> String {
    if std::fs::symlink_metadata(path).unwrap().is_symlink() {
        return String::new();
    }
    let mut names = vec![0; 4096];
    let length = listxattr(path, &mut names[..]).unwrap();
    let mut all = String::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && *name != b"security.selinux")
    {
        let mut value = vec![0; 4096];
        let length = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
        all += &format!(" {}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(&value[..length]));
    }
    all
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What is written, and what lies there then.
type Case = (&'static str, Tar, &'static [(&'static str, &'static str)]);

#[test]
fn what_lies_on_the_disk_is_what_the_entries_say() {
    if !is_root() {
        return;
    }
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = format!("{}/{}", "d".repeat(150), "n".repeat(200));
    let cases: Vec<Case> = vec![
        ("a file", Tar::new().file("a", 0o640, b"text"), &[("/a", "640 \"text\"")]),
        (
            "an owner",
            Tar::new().owner(5, 4_000_000_000).file("a", 0o644, b""),
            &[("/a", "644 \"\" 5:4000000000")],
        ),
        ("setuid of another user", Tar::new().owner(5, 6).file("a", 0o6755, b""), &[("/a", "6755 \"\" 5:6")]),
        ("a directory", Tar::new().dir("./d/", 0o1777), &[("/d", "dir 1777")]),
        (
            "a directory that is written into later",
            Tar::new().dir("d", 0o700).file("d/a", 0o600, b""),
            &[("/d", "dir 700"), ("/d/a", "600 \"\"")],
        ),
        (
            "directories that nothing describes",
            Tar::new().owner(5, 6).file("p/q/a", 0o644, b""),
            &[("/p", "dir 755 now"), ("/p/q", "dir 755 now"), ("/p/q/a", "644 \"\" 5:6")],
        ),
        (
            "no group from the directory",
            Tar::new()
                .owner(0, 44)
                .dir("d", 0o2775)
                .owner(0, 0)
                .file("d/a", 0o644, b"")
                .file("d/e/a", 0o644, b""),
            &[("/d", "dir 2775 0:44"), ("/d/a", "644 \"\""), ("/d/e", "dir 755 now"), ("/d/e/a", "644 \"\"")],
        ),
        ("a link", Tar::new().owner(1, 2).symlink("l", "/etc/a"), &[("/l", "-> /etc/a 1:2")]),
        (
            "a hard link, which describes its file anew",
            Tar::new().file("a", 0o600, b"x").owner(3, 3).hardlink("b", 0o644, "./a"),
            &[("/a", "644 x2 \"x\" 3:3"), ("/b", "644 x2 \"x\" 3:3")],
        ),
        (
            "a hard link through a link",
            Tar::new()
                .dir("usr", 0o755)
                .file("usr/a", 0o600, b"x")
                .symlink("l", "/usr")
                .hardlink("b", 0o600, "l/a"),
            &[("/b", "600 x2 \"x\""), ("/l", "-> /usr"), ("/usr", "dir 755"), ("/usr/a", "600 x2 \"x\"")],
        ),
        (
            "a hard link to a link",
            Tar::new().symlink("l", "x").hardlink("m", 0o777, "l"),
            &[("/l", "-> x"), ("/m", "-> x")],
        ),
        (
            "a link on the way",
            Tar::new().dir("usr", 0o755).symlink("l", "../../usr").file("l/a", 0o644, b"x"),
            &[("/l", "-> ../../usr"), ("/usr", "dir 755"), ("/usr/a", "644 \"x\"")],
        ),
        (
            "devices and pipes",
            Tar::new()
                .special(tar::EntryType::Char, "c")
                .special(tar::EntryType::Block, "b")
                .special(tar::EntryType::Fifo, "f"),
            &[("/b", "block 1:0 600"), ("/c", "char 0:0 600"), ("/f", "fifo 600")],
        ),
        (
            "whiteouts",
            Tar::new().owner(7, 8).file("d/.wh.gone", 0o600, b"").dir("e", 0o755).file(
                "e/.wh..wh..opq",
                0o600,
                b"",
            ),
            &[
                ("/d", "dir 755 now"),
                ("/d/gone", "char 0:0 0 7:8 now"),
                ("/e", "dir 755 7:8 trusted.overlay.opaque=y"),
            ],
        ),
        (
            "other names of aufs are whiteouts as well",
            Tar::new().dir(".wh..wh.plnk", 0o700).file(".wh..wh.aufs", 0o600, b""),
            &[("/.wh.aufs", "char 0:0 0 now"), ("/.wh.plnk", "char 0:0 0 now")],
        ),
        (
            "attributes, but those that are not an image's",
            Tar::new()
                .pax(&[
                    ("SCHILY.xattr.user.a", b"1"),
                    ("SCHILY.xattr.security.capability", capability),
                    ("SCHILY.xattr.security.selinux", b"x"),
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ])
                .file("a", 0o644, b""),
            &[("/a", "644 \"\" security.capability=\u{1}\0\0\u{2}\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0 user.a=1")],
        ),
        (
            "times",
            Tar::new()
                .pax(&[("mtime", b"1500000000.25")])
                .file("a", 0o644, b"")
                .pax(&[("mtime", b"-7")])
                .file("b", 0o644, b"")
                .pax(&[("mtime", b"-7.5")])
                .symlink("l", "x")
                .pax(&[("mtime", b"99999999999")])
                .dir("d", 0o755),
            &[
                ("/a", "644 \"\" at 1500000000.250000000"),
                ("/b", "644 \"\" at 0.0"),
                ("/d", "dir 755 at 0.0"),
                ("/l", "-> x at -8.500000000"),
            ],
        ),
        (
            "names of two kinds",
            Tar::new().file("/abs", 0o644, b"").file("x/../b", 0o644, b""),
            &[("/abs", "644 \"\""), ("/b", "644 \"\"")],
        ),
        ("the root as it is", Tar::new().owner(1, 1).dir("./", 0o700), &[]),
        ("nothing", Tar::new(), &[]),
    ];
    for (what, tar, expected) in cases {
        let layer = Layer::of(&tar.finish(), Pack::Gzip);
        layer.written();
        let lies = layer.lies();
        let lies: Vec<(&str, &str)> =
            lies.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        assert_eq!(lies, expected, "{what}");
        assert_eq!(layer.damage(), [""; 0], "{what}");
    }
    let layer = Layer::of(&Tar::new().file(&long, 0o644, b"x").finish(), Pack::None);
    assert_eq!(layer.lies()[&format!("/{long}")], "644 \"x\"");
    assert_eq!(layer.damage(), [""; 0]);
}

#[test]
fn what_is_said_of_a_layer_is_what_it_is() {
    let tar = Tar::new().owner(0, 7).dir("/", 0o711).file("a", 0o600, b"x").finish();
    if !is_root() {
        return;
    }
    for (how, compression) in
        [(Pack::Gzip, Compression::Gzip), (Pack::Zstd, Compression::Zstd), (Pack::None, Compression::None)]
    {
        let layer = Layer::of(&tar, how);
        let written = layer.written();
        assert_eq!((&written.diff_id, written.diff_size), (&layer.stream, tar.len() as u64));
        assert_eq!((written.compression, written.size), (compression, pack(&tar, how).0.len() as u64));
        assert_eq!((&written.uids, &written.gids), (&BTreeSet::from([0]), &BTreeSet::from([7])));
        let root = std::fs::metadata(layer.files()).unwrap();
        assert_eq!(
            (written.has_root, root.mode() & 0o7777, root.gid(), root.mtime()),
            (true, 0o711, 7, THEN)
        );
        assert_eq!(layer.damage(), [""; 0]);
    }
    let plain = Layer::of(&Tar::new().file("a", 0o600, b"x").finish(), Pack::Gzip);
    assert!(!plain.written().has_root);
    assert_eq!(std::fs::metadata(plain.files()).unwrap().mode() & 0o7777, ROOT_MODE);
}

#[test]
fn a_later_entry_replaces_an_earlier_one_that_a_link_leads_to() {
    if !is_root() {
        return;
    }
    let begin = || {
        Tar::new().dir("usr", 0o755).symlink("l", "usr").dir("usr/d", 0o755).file("usr/d/x", 0o644, b"old")
    };
    for (what, tar, expected) in [
        ("a file for a directory", begin().file("l/d", 0o644, b"new"), "644 \"new\""),
        ("a link for a directory", begin().symlink("l/d", "/etc"), "-> /etc"),
        ("a pipe", begin().special(tar::EntryType::Fifo, "l/d"), "fifo 600"),
        ("a directory for a directory", begin().dir("l/d", 0o700), "dir 700"),
    ] {
        let layer = Layer::of(&tar.finish(), Pack::Gzip);
        layer.written();
        assert_eq!(layer.lies()["/usr/d"], expected, "{what}");
        assert_eq!(layer.lies().contains_key("/usr/d/x"), expected == "dir 700", "{what}");
    }
    // What led to a place before does not any more.
    let moved = begin().dir("other", 0o755).file("l/a", 0o644, b"1").hardlink("m", 0o777, "l");
    let layer = Layer::of(&moved.finish(), Pack::Gzip);
    assert_eq!(layer.lies()["/usr/a"], "644 \"1\"");
}

#[test]
fn a_sparse_file_keeps_its_holes_in_each_format() {
    if !is_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let script = "truncate -s 3M holes; printf middle | dd of=holes bs=1 seek=1048576 conv=notrunc status=none; echo z > z";
    let run = |command: &str| {
        let out =
            std::process::Command::new("sh").args(["-euc", command]).current_dir(scratch.path()).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    run(script);
    let whole = std::fs::read(scratch.path().join("holes")).unwrap();
    for format in [
        "--format=gnu",
        "--format=posix",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
    ] {
        let layer = Layer::of(&run(&format!("tar -c --sparse {format} holes z")), Pack::Gzip);
        layer.written();
        let path = layer.files().join("holes");
        assert!(std::fs::read(&path).unwrap() == whole, "{format}");
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 2 << 20, "{format}");
        assert_eq!(std::fs::read(layer.files().join("z")).unwrap(), b"z\n", "{format}");
        assert_eq!(layer.damage(), [""; 0], "{format}");
    }
}

#[test]
fn nothing_is_written_outside_of_the_layer() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    std::fs::write(&target, "mine").unwrap();
    let out = outside.path().to_str().unwrap();
    let up = "../".repeat(20) + out.trim_start_matches('/');
    let absolute = target.to_str().unwrap();
    let refused: Vec<(&str, Tar, &str)> = vec![
        ("a name that climbs", Tar::new().file("../target", 0o644, b"x"), "leads out of its layer"),
        (
            "one that climbs later",
            Tar::new().dir("a", 0o755).file("a/../../x", 0o644, b"x"),
            "leads out of its layer",
        ),
        (
            "a hard link that climbs",
            Tar::new().hardlink("a", 0o644, "../../target"),
            "is a hard link out of its layer",
        ),
        ("a hard link to the host", Tar::new().hardlink("a", 0o644, absolute), "which is not in its layer"),
        (
            "a hard link through a link",
            Tar::new().symlink("l", &up).hardlink("a", 0o644, "l/target"),
            "which is not in its layer",
        ),
        (
            "a hard link to itself",
            Tar::new().file("a", 0o644, b"").hardlink("b/../a", 0o644, "a"),
            "which is not in its layer",
        ),
        (
            "below a link to the host",
            Tar::new().symlink("l", out).file("l/target", 0o644, b"x"),
            "which leads nowhere",
        ),
        (
            "below a climbing link",
            Tar::new().symlink("l", &up).file("l/new/x", 0o644, b"x"),
            "which leads nowhere",
        ),
        ("below a file", Tar::new().file("a", 0o644, b"").file("a/b", 0o644, b""), "opening its directory"),
        (
            "below a device",
            Tar::new().special(tar::EntryType::Char, "a").file("a/b", 0o644, b""),
            "opening its directory",
        ),
        ("a link in a circle", Tar::new().symlink("l", "l").file("l/x", 0o644, b""), "opening its directory"),
        ("a root that is a file", Tar::new().file("/", 0o644, b"").file("./.", 0o644, b"x"), "no directory"),
        ("a whiteout of the parent", Tar::new().file("a/.wh...", 0o644, b""), "is a whiteout of nothing"),
        ("a whiteout of the directory", Tar::new().file("a/.wh..", 0o644, b""), "is a whiteout of nothing"),
        ("a whiteout of no name", Tar::new().file(".wh.", 0o644, b""), "is a whiteout of nothing"),
        (
            "a whiteout of its own",
            Tar::new().file("a", 0o644, b"").file(".wh.a", 0o644, b""),
            "is a whiteout of what is in its own layer",
        ),
        ("a whiteout with content", Tar::new().file(".wh.a", 0o644, b"x"), "is a whiteout with content"),
        ("one by another name", Tar::new().file(".wh.a/.", 0o644, b"x"), "is a whiteout with content"),
        ("twice", Tar::new().file("a", 0o644, b"1").file("./a", 0o644, b"2"), "is in the archive twice"),
        (
            "an owner that is none",
            Tar::new().pax(&[("uid", b"4294967295")]).file("a", 0o644, b""),
            "cannot exist",
        ),
        (
            "an owner that is too large",
            Tar::new().pax(&[("uid", b"4294967296")]).file("a", 0o644, b""),
            "does not fit",
        ),
        ("a name that is too long", Tar::new().file(&"n".repeat(256), 0o644, b""), "creating it"),
        ("a NUL in a name", Tar::new().pax(&[("path", b"a\0b")]).file("a", 0o644, b""), "creating it"),
        ("a link to nowhere at all", Tar::new().symlink("a", ""), "creating it"),
        (
            "an attribute of no kind",
            Tar::new().pax(&[("SCHILY.xattr.user.", b"1")]).file("a", 0o644, b""),
            "its attribute user.",
        ),
        (
            "an attribute of a link",
            Tar::new().pax(&[("SCHILY.xattr.user.a", b"1")]).symlink("a", "b"),
            "its attribute user.a",
        ),
        ("depth", Tar::new().file(&"d/".repeat(300), 0o644, b""), "lies deeper than"),
        (
            "depth behind a link",
            Tar::new()
                .dir(&"d/".repeat(200), 0o755)
                .symlink("l", &"d/".repeat(200))
                .dir(&format!("l/{}", "e/".repeat(100)), 0o755),
            "lies deeper than",
        ),
        (
            "a sparse file of absurd size",
            Tar::new()
                .pax(&[
                    ("GNU.sparse.major", b"0"),
                    ("GNU.sparse.minor", b"1"),
                    ("GNU.sparse.map", b""),
                    ("GNU.sparse.size", b"9000000000000000000"),
                ])
                .file("a", 0o644, b""),
            "sparse",
        ),
    ];
    for (what, tar, why) in refused {
        let layer = Layer::of(&tar.finish(), Pack::Gzip);
        let error = layer.outcome.as_ref().expect_err(what);
        assert!(error.chain().contains(why), "{what}: {}", error.chain());
        assert!(!error.chain().contains(char::is_control), "{what}: {:?}", error.chain());
        assert!(
            matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Corrupt | ErrorKind::Internal),
            "{what}"
        );
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{what}");
        assert_eq!(std::fs::read(&target).unwrap(), b"mine", "{what}");
    }
    // A link that leads out of the layer is that link, and its place is inside.
    let layer = Layer::of(
        &Tar::new().dir("etc", 0o755).symlink("l", "/../../etc").file("l/x", 0o644, b"").finish(),
        Pack::Gzip,
    );
    assert_eq!(layer.lies()["/etc/x"], "644 \"\"");
}

#[test]
fn a_blob_that_is_not_what_it_should_be_is_no_layer() {
    let tar = Tar::new().file("a", 0o600, &[7; 100_000]).finish();
    let (blob, _) = pack(&tar, Pack::Gzip);
    let attempt = |blob: &[u8], digest: &Digest, size: usize| {
        let dir = tempfile::tempdir().unwrap();
        write(io::Cursor::new(blob.to_vec()), digest, size as u64, &dir.path().join("layer"))
            .unwrap_err()
            .kind
    };
    let digest = Digest::of(&blob);
    assert_eq!(attempt(&blob, &Digest::of(b"x"), blob.len()), ErrorKind::DigestMismatch);
    assert_eq!(attempt(&blob, &digest, blob.len() + 1), ErrorKind::DigestMismatch);
    let mut flipped = blob.clone();
    flipped[blob.len() / 2] ^= 1;
    assert_eq!(attempt(&flipped, &digest, blob.len()), ErrorKind::DigestMismatch);
    let cut = &tar[..700];
    assert_eq!(attempt(cut, &Digest::of(cut), cut.len()), ErrorKind::Corrupt);
    let bzip2 = b"BZh91AY&SY\xd0\x9c\xc1\x1c".repeat(60);
    assert_eq!(attempt(&bzip2, &Digest::of(&bzip2), bzip2.len()), ErrorKind::Corrupt);
}

/// Some entry, many of which have something to do with each other.
fn entry() -> impl Strategy<Value = (u8, String, String, Vec<u8>)> {
    let part = prop::sample::select(vec!["a", "b", "..", ".", "", ".wh.a", ".wh..wh..opq", "l"]);
    let path = prop::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(b"012345670xg\0".to_vec());
    (kind, path.clone(), path, prop::collection::vec(any::<u8>(), 0..700))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_the_entries_are_a_layer_that_is_taken_can_be_put_together_again(
        entries in prop::collection::vec(entry(), 0..12),
        flip in prop::option::of((any::<usize>(), any::<u8>())),
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, path, target, content) in &entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::new(*kind));
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            let content = if b"07xg\0".contains(kind) { &content[..] } else { &[] };
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        let mut stream = builder.into_inner().unwrap();
        if let Some((at, value)) = flip {
            let length = stream.len();
            stream[at % length] = value;
        }
        let layer = Layer::of(&stream, Pack::None);
        prop_assert_eq!(std::fs::read_dir(layer.dir.path()).unwrap().count(), 1);
        // Where two entries have one place, one file cannot be the content of both.
        let below = |a: &str, b: &str| unpacked(b.as_bytes()).unwrap_or_default().starts_with(&unpacked(a.as_bytes()).unwrap_or_default());
        let apart = entries.iter().enumerate().all(|(at, a)| {
            !b"12".contains(&a.0) && entries[..at].iter().all(|b| (a.0 == b'5' || !below(&a.1, &b.1)) && (b.0 == b'5' || !below(&b.1, &a.1)))
        });
        if flip.is_none() && apart && layer.outcome.is_ok() {
            prop_assert_eq!(layer.damage(), [""; 0]);
        }
    }
}
