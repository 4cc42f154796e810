//! What becomes of the entries of a plain image.

use crate::model::{ErrorKind, Result};
use crate::pull::fixture::{Layout, Pack, Scratch, Tar, below, bootable};
use crate::pull::types::Report;

/// What is in `/usr/x` after these layers.
async fn merged(layers: Vec<Tar>) -> Result<Vec<(String, String)>> {
    let scratch = Scratch::new();
    let base = scratch.pull_layers(layers).await?;
    Ok(below(&scratch.tree(&base.commit), "/usr/x"))
}

async fn expect(what: &str, layers: Vec<Tar>, expected: &[(&str, &str)]) {
    let found = merged(layers).await.unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
    let found: Vec<(&str, &str)> = found.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    assert_eq!(found, expected, "{what}");
}

async fn refused(what: &str, layers: Vec<Tar>, kind: ErrorKind, text: &str) {
    let scratch = Scratch::new();
    let error = scratch.pull_layers(layers).await.expect_err(what);
    assert_eq!(error.kind, kind, "{what}: {}", error.chain());
    assert!(error.chain().contains(text), "{what}: {}", error.chain());
    assert!(error.chain().contains("the running system is unchanged"), "{what}: {}", error.chain());
    let refs = scratch.repo.list_refs(Some("ostree/container/image"), ostree_ext::gio::Cancellable::NONE);
    assert!(refs.unwrap().is_empty(), "{what}: an image ref was written");
}

fn x() -> Tar {
    Tar::new().dir("usr/x", 0o755)
}

#[tokio::test]
async fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let low = || x().file("usr/x/a", 0o644, b"1").dir("usr/x/d", 0o755).file("usr/x/d/f", 0o644, b"1");
    expect(
        "a file",
        vec![low(), Tar::new().file("usr/x/.wh.a", 0o644, b"")],
        &[("d", "dir 755"), ("d/f", "644 1")],
    )
    .await;
    expect("a directory", vec![low(), Tar::new().file("usr/x/.wh.d", 0, b"")], &[("a", "644 1")]).await;
    expect(
        "its own layer stays, in either order",
        vec![
            low(),
            Tar::new().file("usr/x/a", 0o600, b"2").file("usr/x/.wh.a", 0, b"").file("usr/x/.wh.d", 0, b""),
        ],
        &[("a", "600 2")],
    )
    .await;
    expect(
        "removed and made again",
        vec![low(), Tar::new().file("usr/x/.wh.a", 0, b""), Tar::new().file("usr/x/a", 0o644, b"3")],
        &[("a", "644 3"), ("d", "dir 755"), ("d/f", "644 1")],
    )
    .await;
    expect(
        "opaque",
        vec![
            low(),
            Tar::new().dir("usr/x/d", 0o700).file("usr/x/d/.wh..wh..opq", 0, b"").file(
                "usr/x/d/g",
                0o644,
                b"2",
            ),
        ],
        &[("a", "644 1"), ("d", "dir 700"), ("d/g", "644 2")],
    )
    .await;
    expect(
        "in the lowest layer, and aufs' notes",
        vec![
            x().file("usr/x/.wh.none", 0, b"")
                .file("usr/x/.wh..wh.plnk", 0, b"")
                .file("usr/x/a", 0o644, b"1"),
        ],
        &[("a", "644 1")],
    )
    .await;
    expect(
        "in a directory that is new",
        vec![
            x(),
            Tar::new().dir("usr/x/n", 0o755).file("usr/x/n/.wh.a", 0, b"").file("usr/x/n/b", 0o644, b"1"),
        ],
        &[("n", "dir 755"), ("n/b", "644 1")],
    )
    .await;
    refused("a directory", vec![x().dir("usr/x/.wh.d", 0o755)], ErrorKind::Unsupported, "/usr/x/.wh.d").await;
}

#[tokio::test]
async fn etc_is_not_part_of_usr() {
    let usr = || {
        Tar::new()
            .dir("usr/lib/modules/6.2", 0o755)
            .file("usr/lib/modules/6.2/vmlinuz", 0o644, b"k")
            .file("usr/lib/modules/6.2/initramfs.img", 0o644, b"i")
            .dir("usr/bin", 0o755)
            .file("etc/new", 0o644, b"n")
    };
    for (what, layers) in [
        ("opaque", vec![usr().file("usr/.wh..wh..opq", 0, b"")]),
        ("a whiteout", vec![Tar::new().file(".wh.usr", 0, b""), usr()]),
        ("a whiteout in the same layer", vec![usr().file(".wh.usr", 0, b"")]),
    ] {
        let scratch = Scratch::new();
        let base = scratch.pull_layers(layers).await.unwrap_or_else(|e| panic!("{what}: {}", e.chain()));
        let tree = scratch.tree(&base.commit);
        assert!(!tree.contains_key("/usr/lib/modules/6.1"), "{what}");
        assert!(tree.contains_key("/usr/etc/passwd") && tree.contains_key("/usr/etc/new"), "{what}");
    }
    refused(
        "etc itself",
        vec![
            Tar::new().file("etc/.wh..wh..opq", 0, b"").file(".wh.etc", 0, b""),
            Tar::new().file(".wh.etc", 0, b""),
        ],
        ErrorKind::Unsupported,
        "has no /etc",
    )
    .await;
}

#[tokio::test]
async fn a_whiteout_that_is_content_and_a_file_are_one_place() {
    use tar::EntryType::Char;
    let device = || x().special(Char, "usr/x/a");
    let file = |layer: Tar| layer.file("usr/x/a", 0o644, b"1");
    let (hidden, shown) = ([(".ostree-wh.a", "600 ")], [("a", "644 1")]);
    expect("a device over a file", vec![file(x()), device()], &hidden).await;
    expect("a file over a device", vec![device(), file(x())], &shown).await;
    expect("the last entry of one layer", vec![file(device())], &shown).await;
    expect("in the other order", vec![file(x()).special(Char, "usr/x/a")], &hidden).await;
    expect("a directory", vec![device(), x().dir("usr/x/a", 0o755)], &[("a", "dir 755")]).await;
    expect("removed", vec![device(), x().file("usr/x/.wh.a", 0, b"")], &[]).await;
    expect(
        "linked",
        vec![device().hardlink("usr/x/b", 0, "usr/x/a")],
        &[(".ostree-wh.a", "600 "), (".ostree-wh.b", "600 ")],
    )
    .await;
    for name in ["usr/x/.ostree-wh.a", "usr/x/.wh..ostree-wh.a"] {
        refused("literally", vec![x().file(name, 0o644, b"")], ErrorKind::Unsupported, "make a device").await;
    }
}

#[tokio::test]
async fn a_later_layer_replaces_files_and_directories() {
    let low = || x().file("usr/x/a", 0o644, b"1").dir("usr/x/d", 0o755).file("usr/x/d/f", 0o644, b"1");
    expect(
        "a file over a directory",
        vec![low(), Tar::new().file("usr/x/d", 0o644, b"2")],
        &[("a", "644 1"), ("d", "644 2")],
    )
    .await;
    expect(
        "a directory over a file",
        vec![low(), Tar::new().dir("usr/x/a", 0o755).file("usr/x/a/f", 0o644, b"2")],
        &[("a", "dir 755"), ("a/f", "644 2"), ("d", "dir 755"), ("d/f", "644 1")],
    )
    .await;
    expect(
        "an entry changes a directory's mode, an implied parent does not",
        vec![
            x().dir("usr/x/d", 0o711).dir("usr/x/e", 0o711),
            Tar::new().owner(7, 8).dir("usr/x/d", 0o2750).owner(0, 0).file("usr/x/e/f", 0o644, b"1"),
        ],
        &[("d", "dir 2750 7:8"), ("e", "dir 711"), ("e/f", "644 1")],
    )
    .await;
    expect(
        "a link over a directory, removed and made again as a directory",
        vec![
            low(),
            Tar::new().symlink("usr/x/d", "a"),
            Tar::new().file("usr/x/.wh.d", 0, b"").dir("usr/x/d", 0o755),
        ],
        &[("a", "644 1"), ("d", "dir 755")],
    )
    .await;
    expect(
        "a directory that an entry describes over a link",
        vec![
            low().symlink("usr/x/l", "/tmp"),
            Tar::new().dir("usr/x/l", 0o711).file("usr/x/l/f", 0o644, b"2"),
        ],
        &[("a", "644 1"), ("d", "dir 755"), ("d/f", "644 1"), ("l", "dir 711"), ("l/f", "644 2")],
    )
    .await;
}

#[tokio::test]
async fn entries_keep_their_modes_owners_and_attributes() {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("usr/x/{}", "n".repeat(150));
    let target = "t".repeat(150);
    expect(
        "everything",
        vec![
            x().owner(1000, 2000)
                .file("usr/x/setuid", 0o4755, b"s")
                .owner(0, 0)
                .pax(&[("SCHILY.xattr.security.capability", capability), ("mtime", b"1.5")])
                .file("usr/x/cap", 0o755, b"c")
                .pax(&[
                    ("SCHILY.xattr.user.b", b"2"),
                    ("SCHILY.xattr.user.a", b"1"),
                    ("SCHILY.xattr.security.selinux", b"old"),
                    ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ])
                .dir("usr/x/dir", 0o1777)
                .pax(&[("path", b"usr/x/pax-path"), ("uid", b"3000000"), ("gid", b"4000000")])
                .file("short", 0o640, b"p")
                .file(&long, 0o600, b"l")
                .symlink("usr/x/link", &target)
                .hardlink("usr/x/hard", 0o4755, "./usr/x/setuid")
                .hardlink("usr/x/hardlink-to-link", 0o644, "/usr/x/link")
                .file("./usr//x/./norm", 0o644, b"n")
                .file("/usr/x/twice", 0o644, b"1")
                .file("usr/x/twice", 0o600, b"2"),
        ],
        &[
            ("cap", &format!("755 security.capability={} c", hex::encode(capability))),
            ("dir", "dir 1777 user.a=31 user.b=32"),
            ("hard", "4755 1000:2000 s"),
            ("hardlink-to-link", &format!("-> {target}")),
            ("link", &format!("-> {target}")),
            (&long["usr/x/".len()..], "600 l"),
            ("norm", "644 n"),
            ("pax-path", "640 3000000:4000000 p"),
            ("setuid", "4755 1000:2000 s"),
            ("twice", "600 2"),
        ],
    )
    .await;
}

#[tokio::test]
async fn large_files_are_streamed_and_hard_links_reach_lower_layers() {
    let large = vec![b'z'; 3 << 20];
    expect(
        "links",
        vec![
            x().file("usr/x/large", 0o644, &large).file("etc/conf", 0o644, b"etc"),
            Tar::new()
                .hardlink("usr/x/new/large", 0o644, "usr/x/large")
                .hardlink("usr/x/conf", 0o644, "etc/conf")
                .file("usr/x/.wh.large", 0, b""),
        ],
        &[("conf", "644 etc"), ("new", "dir 755"), ("new/large", "644 3145728 bytes")],
    )
    .await;
    refused("nowhere", vec![x().hardlink("usr/x/a", 0o644, "usr/none")], ErrorKind::Unsupported, "/usr/none")
        .await;
    refused(
        "to a directory",
        vec![x().hardlink("usr/x/a", 0o644, "usr/x")],
        ErrorKind::Unsupported,
        "directory",
    )
    .await;
}

#[tokio::test]
async fn entries_that_leave_the_tree_are_refused() {
    let unsupported = ErrorKind::Unsupported;
    refused("dot dot", vec![x().file("usr/x/../../../a", 0o644, b"")], unsupported, "climbs").await;
    refused("link to dot dot", vec![x().hardlink("usr/x/a", 0o644, "../etc/shadow")], unsupported, "climbs")
        .await;
    refused(
        "through a link of the same layer",
        vec![x().symlink("usr/x/l", "/tmp").file("usr/x/l/f", 0o644, b"")],
        unsupported,
        "/usr/x/l, which is a link",
    )
    .await;
    refused(
        "through a link of a lower layer",
        vec![x().symlink("usr/x/l", "/tmp"), Tar::new().file("usr/x/l/f", 0o644, b"")],
        unsupported,
        "link to /tmp in an earlier one",
    )
    .await;
    refused(
        "not UTF-8",
        vec![x().pax(&[("path", b"usr/x/\xff")]).file("s", 0o644, b"")],
        unsupported,
        "UTF-8",
    )
    .await;
}

#[tokio::test]
async fn what_the_kernel_cannot_store_is_refused_by_a_text_that_can_be_shown() {
    let pax = |key: &str, value: &[u8]| x().pax(&[(key, value)]);
    let file = |layer: Tar| layer.file("usr/x/f", 0o644, b"");
    let acl = |tail: &[u8]| [&[2, 0, 0, 0][..], tail].concat();
    let entry = |tag: u8, permissions: u8| [tag, 0, permissions, 0, 255, 255, 255, 255];
    let contradiction = acl(&[entry(1, 7), entry(4, 4), entry(32, 4)].concat());
    let no_mask = acl(&[entry(1, 6), [2, 0, 4, 0, 1, 0, 0, 0], entry(4, 4), entry(32, 4)].concat());
    let deep = format!("usr/x/{}f", "d/".repeat(260));
    let long = format!("usr/x/{}", "n".repeat(256));
    let (access, default) = ("SCHILY.xattr.system.posix_acl_access", "SCHILY.xattr.system.posix_acl_default");
    let minimal = acl(&[entry(1, 6), entry(4, 4), entry(32, 4)].concat());
    for (what, layer, text) in [
        ("NUL in a path", file(pax("path", b"usr/x/a\0b")), "/usr/x/a\\u{0}b contains a NUL"),
        ("escape in a path", file(pax("path", b"usr/\x1b[2J/../../../x")), "\\u{1b}[2J"),
        (
            "NUL in a target",
            pax("linkpath", b"a\0b").symlink("usr/x/l", "t"),
            "/usr/x/l is a link whose target",
        ),
        ("NUL in an attribute", file(pax("SCHILY.xattr.user.a\0b", b"1")), "user.a\\u{0}b"),
        ("a namespace", file(pax("SCHILY.xattr.system.x", b"1")), "cannot store"),
        ("an attribute of a link", pax("SCHILY.xattr.user.a", b"1").symlink("usr/x/l", "t"), "cannot have"),
        ("an owner", file(pax("uid", b"4294967295")), "an owner or a group that cannot exist"),
        ("a group", file(pax("gid", b"4294967295")), "an owner or a group that cannot exist"),
        ("no ACL", file(pax(access, b"nonsense")), "no POSIX ACL"),
        ("an ACL without a mask", file(pax(access, &no_mask)), "no valid POSIX ACL"),
        ("an ACL of another mode", file(pax(access, &contradiction)), "contradicts its mode"),
        ("a default of a file", file(pax(default, &minimal)), "cannot have"),
        ("large attributes", file(pax("SCHILY.xattr.user.a", &[1; 65 << 10])), "more than 64 KiB"),
        ("depth", x().file(&deep, 0o644, b""), "longer or deeper"),
        ("a long name", x().file(&long, 0o644, b""), "255 bytes"),
        ("PAX sparse", file(pax("GNU.sparse.major", b"2")), "the unknown format 2.0 of PAX"),
    ] {
        let scratch = Scratch::new();
        let error = scratch.pull_layers(vec![layer]).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Unsupported, "{what}: {}", error.chain());
        assert!(error.chain().contains(text), "{what}: {}", error.chain());
        assert!(!error.chain().contains(char::is_control), "{what}: {:?}", error.chain());
    }
}

#[tokio::test]
async fn a_chain_of_hard_links_ends_at_the_file_that_its_first_link_named() {
    expect(
        "through a name that has another file below",
        vec![
            x().file("usr/x/old", 0o644, b"old").file("usr/x/new", 0o644, b"new"),
            Tar::new().hardlink("usr/x/old", 0o644, "usr/x/new").hardlink("usr/x/third", 0o644, "usr/x/old"),
        ],
        &[("new", "644 new"), ("old", "644 new"), ("third", "644 new")],
    )
    .await;
}

#[tokio::test]
async fn devices_are_dropped_in_dev_and_refused_elsewhere() {
    use tar::EntryType::{Block, Char, Fifo};
    let scratch = Scratch::new();
    let dev = Tar::new().dir("dev", 0o755).special(Block, "dev/sda").special(Fifo, "dev/fifo");
    let base = scratch.pull_layers(vec![dev, x().special(Char, "usr/x/gone")]).await.unwrap();
    let tree = scratch.tree(&base.commit);
    assert_eq!(below(&tree, "/dev"), []);
    // Character device 0:0: a whiteout that is content of the image.
    assert_eq!(below(&tree, "/usr/x"), [(".ostree-wh.gone".to_owned(), "600 ".to_owned())]);
    let notes: Vec<_> =
        scratch.reports.lock().unwrap().iter().filter(|r| matches!(r, Report::Note(_))).cloned().collect();
    let Report::Note(note) = &notes[0] else { unreachable!() };
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(note.contains("left out 2 devices (/dev/sda, /dev/fifo): "), "{note}");
    let mut many = Tar::new().dir("dev", 0o755);
    for n in 0..300 {
        many = many.special(Block, &format!("dev/n{n}"));
    }
    let scratch = Scratch::new();
    scratch.pull_layers(vec![many]).await.unwrap();
    let said = format!("{:?}", scratch.reports.lock().unwrap());
    assert!(
        said.contains("300 devices (/dev/n0, /dev/n1, /dev/n2, ...)") && !said.contains("/dev/n3"),
        "{said}"
    );
    refused("block", vec![x().special(Block, "usr/x/b")], ErrorKind::Unsupported, "/usr/x/b is a device")
        .await;
    refused("fifo", vec![x().special(Fifo, "usr/x/p")], ErrorKind::Unsupported, "/usr/x/p is a named pipe")
        .await;
}

#[tokio::test]
async fn the_top_level_is_that_of_an_ostree_host() {
    let scratch = Scratch::new();
    let layer = Tar::new()
        .file(".dockerenv", 0o755, b"")
        .dir("boot", 0o700)
        .file("boot/config", 0o644, b"dropped")
        .dir("run", 0o755)
        .file("run/pid", 0o644, b"dropped")
        .dir("home", 0o755)
        .owner(1000, 1000)
        .dir("home/core", 0o700)
        .owner(0, 0)
        .symlink("srv", "var/srv")
        .dir("var/lib/my app", 0o750)
        .symlink("var/run", "/run")
        .dir("media", 0o755)
        .dir("opt", 0o755);
    let base = scratch.pull_layers(vec![layer]).await.unwrap();
    let tree = scratch.tree(&base.commit);
    let top: Vec<(&str, &str)> = tree
        .iter()
        .filter(|(path, _)| path.matches('/').count() == 1)
        .map(|(p, t)| (p.as_str(), t.as_str()))
        .collect();
    assert_eq!(
        top,
        [
            ("/bin", "-> usr/bin"),
            ("/boot", "dir 700"),
            ("/dev", "dir 755"),
            ("/home", "-> var/home"),
            ("/lib", "-> usr/lib"),
            ("/media", "-> run/media"),
            ("/mnt", "-> var/mnt"),
            ("/opt", "-> var/opt"),
            ("/ostree", "-> sysroot/ostree"),
            ("/proc", "dir 755"),
            ("/root", "-> var/roothome"),
            ("/run", "dir 755"),
            ("/sbin", "-> usr/sbin"),
            ("/srv", "-> var/srv"),
            ("/sys", "dir 755"),
            ("/sysroot", "dir 755"),
            ("/tmp", "dir 1777"),
            ("/usr", "dir 755"),
            ("/var", "dir 755"),
        ]
    );
    for empty in ["/boot", "/run", "/var", "/sysroot"] {
        assert_eq!(below(&tree, empty), [], "{empty}");
    }
    assert_eq!(tree["/usr/etc/passwd"], "644 root:x:0:0::/root:/bin/sh\n");
    assert_eq!(
        scratch.read(&base.commit, "usr/lib/tmpfiles.d/osctl-var.conf"),
        "# Made by osctl of the directories and links that the image has in /var.\n\
         d /var/home 0755 0 0 - -\n\
         d /var/home/core 0700 1000 1000 - -\n\
         d /var/lib 0755 0 0 - -\n\
         d /var/lib/my\\x20app 0750 0 0 - -\n\
         d /var/mnt 0755 0 0 - -\n\
         d /var/opt 0755 0 0 - -\n\
         d /var/roothome 0700 0 0 - -\n\
         L /var/run - - - - /run\n"
    );
    assert_eq!((base.version.as_deref(), base.created), (Some("1.2"), 1_704_164_645));
}

#[tokio::test]
async fn images_that_do_not_fit_an_ostree_host_are_refused_by_name() {
    let unsupported = ErrorKind::Unsupported;
    refused(
        "top level",
        vec![Tar::new().file("data", 0o644, b"").dir("nix", 0o755)],
        unsupported,
        "/data, /nix",
    )
    .await;
    refused(
        "opt",
        vec![Tar::new().file("opt/app/bin", 0o755, b"")],
        unsupported,
        "/opt has content (/opt/app)",
    )
    .await;
    refused("ostree", vec![Tar::new().dir("ostree/repo", 0o755)], unsupported, "/ostree has content").await;
    refused(
        "unmerged",
        vec![Tar::new().file(".wh.sbin", 0, b"").dir("sbin", 0o755)],
        unsupported,
        "/sbin is not a link to usr/sbin",
    )
    .await;
    refused("lib64", vec![Tar::new().dir("lib64", 0o755)], unsupported, "/lib64 is not a link").await;
    refused("no bin", vec![Tar::new().file(".wh.bin", 0, b"")], unsupported, "has no /bin").await;
    refused("no etc", vec![Tar::new().file(".wh.etc", 0, b"")], unsupported, "has no /etc").await;
    let no_initramfs = Tar::new().file("usr/lib/modules/6.1/.wh.initramfs.img", 0, b"");
    refused(
        "no initramfs",
        vec![no_initramfs],
        unsupported,
        "there is no /usr/lib/modules/6.1/initramfs.img",
    )
    .await;
    let modules = || Tar::new().dir("usr/lib/modules/6.1", 0o755);
    let initramfs = "/usr/lib/modules/6.1/initramfs.img";
    for (what, layer, text) in [
        ("initramfs elsewhere", modules().symlink(&initramfs[1..], "/etc/shadow"), "initramfs.img is a link"),
        (
            "kernel elsewhere",
            modules().symlink("usr/lib/modules/6.1/vmlinuz", "/etc/shadow"),
            "vmlinuz is a link",
        ),
        ("empty initramfs", modules().file(&initramfs[1..], 0o644, b""), "initramfs.img is empty"),
        ("empty kernel", modules().file("usr/lib/modules/6.1/vmlinuz", 0o644, b""), "vmlinuz is empty"),
        (
            "our tmpfiles",
            modules().dir("usr/lib/tmpfiles.d/osctl-var.conf", 0o755),
            "/usr/lib/tmpfiles.d/osctl-var.conf is a directory",
        ),
    ] {
        refused(what, vec![layer], unsupported, text).await;
    }
    refused(
        "no kernel",
        vec![Tar::new().file("usr/lib/.wh.modules", 0, b"")],
        unsupported,
        "/usr/lib/modules/*/vmlinuz",
    )
    .await;
    refused(
        "two kernels",
        vec![Tar::new().file("usr/lib/modules/6.2/vmlinuz", 0o644, b"")],
        unsupported,
        "6.1, 6.2",
    )
    .await;
}

#[tokio::test]
async fn a_kernel_in_boot_is_pointed_out() {
    let scratch = Scratch::new();
    let layer =
        Tar::new().file("usr/lib/modules/6.1/.wh.vmlinuz", 0, b"").file("boot/vmlinuz-6.1", 0o644, b"kernel");
    let error = scratch.pull_layers(vec![layer]).await.unwrap_err();
    assert!(error.hint.as_deref().unwrap_or_default().contains("/boot/vmlinuz-6.1"), "{error:?}");
}

#[tokio::test]
async fn files_in_var_are_listed_and_refused_unless_dropped() {
    let scratch = Scratch::new();
    let mut layer = Tar::new().file("root/.profile", 0o644, b"");
    for n in 0..30 {
        layer = layer.file(&format!("var/lib/dpkg/{n:02}"), 0o644, b"");
    }
    let error = scratch.pull_layers(vec![layer]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    let text = error.to_string();
    assert!(text.contains("31 files in /var"), "{text}");
    assert!(text.contains("/root/.profile, /var/lib/dpkg/00,") && text.contains("and 11 more"), "{text}");
    assert_eq!(error.details.get("files").map(String::as_str), Some("31"));
    let image = format!("oci:{}:latest", scratch.path("oci").display()).parse().unwrap();
    let opts = crate::pull::FetchOptions { drop_var: true, ..scratch.opts() };
    let base = scratch.pull_with(&image, &opts).await.unwrap();
    assert_eq!(below(&scratch.tree(&base.commit), "/var"), []);
}

#[tokio::test]
async fn the_same_image_is_the_same_commit_in_every_repository() {
    let (one, two) = (Scratch::new(), Scratch::new());
    let layers = || {
        vec![
            x().file("usr/x/a", 0o644, b"1").dir("var/lib/x", 0o755),
            Tar::new().file("usr/x/b", 0o644, b"2"),
        ]
    };
    let (first, second) =
        (one.pull_layers(layers()).await.unwrap(), two.pull_layers(layers()).await.unwrap());
    assert_eq!(first, second);
    // The layers were in the repository already, and the image is tracked by another name.
    one.repo
        .set_ref_immediate(
            None,
            &crate::pull::refs::of_image(
                &format!("oci:{}:latest", one.path("oci").display()).parse().unwrap(),
            )
            .unwrap(),
            None,
            ostree_ext::gio::Cancellable::NONE,
        )
        .unwrap();
    assert_eq!(one.pull_layers(layers()).await.unwrap(), first);
}

#[tokio::test]
async fn a_finished_layer_is_never_fetched_again() {
    let scratch = Scratch::new();
    let layers = |top: &[u8]| {
        vec![(bootable().finish(), Pack::Gzip), (x().file("usr/x/a", 0o644, top).finish(), Pack::Zstd)]
    };
    let layout = Layout::write(&scratch.path("oci"), &layers(b"1"));
    let first = scratch.pull(&layout.image()).await.unwrap();
    // Without their blobs, the layers cannot be fetched: nothing may ask for them.
    for digest in &layout.layers {
        std::fs::remove_file(layout.path(digest)).unwrap();
    }
    scratch.reports.lock().unwrap().clear();
    assert_eq!(scratch.pull(&layout.image()).await.unwrap(), first);
    assert_eq!(*scratch.reports.lock().unwrap(), []);
    // The second version shares its lowest layer.
    let second = Layout::write(&scratch.path("oci2"), &layers(b"2"));
    std::fs::remove_file(second.path(&second.layers[0])).unwrap();
    let second = scratch.pull(&second.image()).await.unwrap();
    assert_ne!(second.commit, first.commit);
    let total = scratch.reports.lock().unwrap().iter().find_map(|r| match r {
        Report::Items { total, .. } => Some(*total),
        _ => None,
    });
    assert_eq!(total, Some(1));
}

#[tokio::test]
async fn damaged_layers_are_digest_mismatches_and_leave_no_ref() {
    let scratch = Scratch::new();
    let good = bootable().finish();
    let layout = Layout::write(&scratch.path("oci"), &[(good.clone(), Pack::None)]);
    let blob = layout.path(&layout.layers[0]);
    // One byte of a file's content; the end cut off.
    let mut damaged = good.clone();
    let at = damaged.windows(6).position(|w| w == b"kernel").unwrap();
    damaged[at] ^= 1;
    for bytes in [&damaged[..], &good[..good.len() - 4096]] {
        std::fs::write(&blob, bytes).unwrap();
        let error = scratch.pull(&layout.image()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DigestMismatch, "{}", error.chain());
        let refs = scratch.repo.list_refs(None, ostree_ext::gio::Cancellable::NONE).unwrap();
        assert!(refs.is_empty(), "{refs:?}");
    }
    std::fs::write(&blob, &good).unwrap();
    scratch.pull(&layout.image()).await.unwrap();
}

#[tokio::test]
async fn a_blob_must_have_its_digest_and_its_size_even_if_it_is_empty() {
    let scratch = Scratch::new();
    let write = |name: &str| {
        let layers = [(bootable(), Pack::Gzip), (x().file("usr/x/fix", 0o644, b"on"), Pack::Gzip)];
        Layout::write(&scratch.path(name), &layers.map(|(tar, pack)| (tar.finish(), pack)))
    };
    let (good, mut evil, mut sizes) = (write("good"), write("evil"), write("sizes"));
    // Its configuration says that the layer is empty, and so it is: the digest is that of the good one.
    evil.rewrite(|_, config| {
        config["rootfs"]["diff_ids"][1] = crate::model::image::Digest::of(b"").to_string().into();
    });
    std::fs::write(evil.path(&evil.layers[1]), b"").unwrap();
    sizes.rewrite(|manifest, _| {
        let size = manifest["layers"][1]["size"].as_u64().unwrap();
        manifest["layers"][1]["size"] = (size + 1).into();
    });
    for layout in [&evil, &sizes, &evil] {
        let error = scratch.pull(&layout.image()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DigestMismatch, "{}", error.chain());
    }
    let base = scratch.pull(&good.image()).await.unwrap();
    assert_eq!(scratch.tree(&base.commit)["/usr/x/fix"], "644 on");
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_into_memory_is_refused() {
    let scratch = Scratch::new();
    let mut layout = Layout::write(&scratch.path("oci"), &[(bootable().finish(), Pack::Gzip)]);
    layout.rewrite(|_, config| config["padding"] = " ".repeat(9 << 20).into());
    let image = layout.image();
    let true_size = std::fs::read_to_string(layout.path(&layout.manifest)).unwrap();
    for lies in [false, true] {
        // Also if the manifest says that it is small: skopeo would wait for somebody to read all of it.
        if lies {
            let mut manifest: serde_json::Value = serde_json::from_str(&true_size).unwrap();
            manifest["config"]["size"] = 9.into();
            let manifest = serde_json::to_vec(&manifest).unwrap();
            layout.manifest = layout.blob(&manifest);
            layout.manifest_size = manifest.len();
            layout.index(&[layout.descriptor()]);
        }
        let resolving = scratch.resolve(&image);
        let error =
            tokio::time::timeout(std::time::Duration::from_secs(60), resolving).await.unwrap().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported, "{}", error.chain());
    }
}

#[tokio::test]
async fn a_wrong_uncompressed_digest_is_a_mismatch() {
    let scratch = Scratch::new();
    let layout = Layout::write(&scratch.path("oci"), &[(bootable().finish(), Pack::Gzip)]);
    let mut resolved = scratch.resolve(&layout.image()).await.unwrap();
    resolved.layers[0].diff_id = crate::model::image::Digest::of(b"other");
    let report: crate::pull::Reporter = std::sync::Arc::new(|_| {});
    let error = crate::pull::import_in_process(&report, &scratch.path("repo"), &resolved, &scratch.opts())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::DigestMismatch, "{}", error.chain());
    assert!(scratch.repo.list_refs(None, ostree_ext::gio::Cancellable::NONE).unwrap().is_empty());
}
