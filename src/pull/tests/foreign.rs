//! What foreign tools think of the result, and images that they made.

use crate::model::ErrorKind;
use crate::model::image::Digest;
use crate::pull::fixture::{Layout, Pack, Scratch, Tar, bootable};
use ostree_ext::container::ImageReference;
use ostree_ext::container::store;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {text}{errors}");
    text
}

/// The command line of ostree-ext, which is published as a library only, in a process of its own.
pub(super) fn reference_tool(arguments: &[&str]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pull::tests::foreign::reference_tool_entry", "--ignored", "--nocapture"])
        .env("REFERENCE_ARGUMENTS", arguments.join("\n"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    // The first lines are the test harness's.
    text.split_once("running 1 test\n").unwrap().1.to_owned()
}

#[test]
#[ignore = "no test: the reference tool of the test below"]
fn reference_tool_entry() {
    let arguments = std::env::var("REFERENCE_ARGUMENTS").unwrap();
    let arguments = std::iter::once("ostree-ext-cli").chain(arguments.lines());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let done = runtime.block_on(ostree_ext::cli::run_from_iter(arguments));
    std::process::exit(done.map_or_else(|e| panic!("{e:#}"), |()| 0));
}

#[tokio::test]
async fn the_reference_tools_read_what_was_pulled() {
    let scratch = Scratch::new();
    let layout = Layout::write(&scratch.path("oci"), &[(bootable().finish(), Pack::Gzip)]);
    let base = scratch.pull(&layout.image()).await.unwrap();
    assert_eq!(store::list_images(&scratch.repo).unwrap(), [layout.image().to_string()]);
    let imgref = ImageReference::try_from(layout.image().to_string().as_str()).unwrap();
    let state = store::query_image(&scratch.repo, &imgref).unwrap().unwrap();
    assert_eq!(state.merge_commit, base.commit);
    assert_eq!(state.manifest_digest.to_string(), base.digest.as_str());
    assert_eq!(state.version(), Some("1.2"));
    assert_eq!(store::image_filtered_content_warning(&scratch.repo, &imgref).unwrap(), None);
    let repo = scratch.path("repo").display().to_string();
    let listed = reference_tool(&["container", "image", "list", "--repo", &repo]);
    let name = layout.image().to_string();
    assert_eq!(listed.trim(), name);
    let manifest = reference_tool(&["container", "image", "metadata", "--repo", &repo, &name]);
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], layout.layers[0].to_string());
    let config = reference_tool(&["container", "image", "metadata", "--config", "--repo", &repo, &name]);
    assert!(config.contains("diff_ids"), "{config}");
    run("ostree", &["fsck", "--repo", &repo]);
    assert!(run("ostree", &["show", "--repo", &repo, &base.commit]).contains("Version: 1.2"));
}

#[tokio::test]
async fn libostree_deploys_a_plain_image() {
    let scratch = Scratch::new();
    let release = Tar::new().file("usr/lib/os-release", 0o644, b"NAME=Test\nID=test\nPRETTY_NAME=Test\n");
    let base = scratch.pull_layers(vec![release]).await.unwrap();
    let sysroot = scratch.path("sysroot").display().to_string();
    std::fs::create_dir(&sysroot).unwrap();
    run("ostree", &["admin", "init-fs", &sysroot]);
    run("ostree", &["admin", "os-init", "--sysroot", &sysroot, "test"]);
    let repo = scratch.path("repo").display().to_string();
    run("ostree", &["pull-local", "--repo", &format!("{sysroot}/ostree/repo"), &repo, &base.commit]);
    run("ostree", &["admin", "deploy", "--sysroot", &sysroot, "--os=test", &base.commit]);
    let root = format!("{sysroot}/ostree/deploy/test/deploy/{}.0", base.commit);
    let passwd = std::fs::read_to_string(format!("{root}/etc/passwd"));
    let home = std::fs::read_link(format!("{root}/root"));
    // libostree makes the root immutable.
    run("chattr", &["-i", &root]);
    assert!(passwd.unwrap().starts_with("root:"));
    assert_eq!(home.unwrap(), Path::new("var/roothome"));
}

/// Path, mode, owner, attributes and content of everything below a directory of the file system.
fn on_disk(root: &Path, at: &str, into: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(root.join(at)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{at}/{}", entry.file_name().to_str().unwrap());
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&full, &mut names[..]).unwrap();
        let mut names: Vec<_> = names[..length].split_inclusive(|b| *b == 0).map(<[u8]>::to_vec).collect();
        names.sort();
        let attributes: String = names
            .iter()
            .map(|name| {
                let name = std::str::from_utf8(name).unwrap().trim_end_matches('\0');
                let mut value = vec![0; 4096];
                let length = rustix::fs::lgetxattr(&full, name, &mut value[..]).unwrap();
                format!(" {name}={}", hex::encode(&value[..length]))
            })
            .collect();
        let content = if meta.is_symlink() {
            std::fs::read_link(&full).unwrap().display().to_string()
        } else if meta.is_file() {
            Digest::of(&std::fs::read(&full).unwrap()).to_string()
        } else {
            on_disk(root, &path, into);
            "directory".to_owned()
        };
        into.insert(
            path,
            format!("{:o} {}:{}{attributes} {content}", meta.permissions().mode(), meta.uid(), meta.gid()),
        );
    }
}

#[tokio::test]
async fn the_tree_is_the_one_that_podman_mounts() {
    let scratch = Scratch::new();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let low = Tar::new()
        .file("usr/bin/su", 0o4755, b"setuid")
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .file("usr/bin/ping", 0o755, b"capable")
        .dir("usr/share", 0o755)
        .owner(7, 9)
        .dir("usr/share/gone", 0o755)
        .file("usr/share/gone/f", 0o640, b"g")
        .dir("usr/share/opaque", 0o755)
        .file("usr/share/opaque/old", 0o640, b"o")
        .dir("usr/share/chmod", 0o700)
        .file("usr/share/chmod/kept", 0o600, b"k")
        .owner(0, 0)
        .file("usr/share/becomes-dir", 0o644, b"file")
        .dir("usr/share/becomes-file", 0o755)
        .file("usr/share/becomes-file/f", 0o644, b"x")
        .hardlink("usr/share/hard", 0o4755, "usr/bin/su")
        .symlink("usr/share/link", "../bin/su")
        .file("etc/conf", 0o600, b"one");
    let high = Tar::new()
        .dir("etc", 0o755)
        .file("etc/conf", 0o640, b"two")
        .file("usr/share/.wh.gone", 0, b"")
        .dir("usr/share/opaque", 0o750)
        .file("usr/share/opaque/.wh..wh..opq", 0, b"")
        .file("usr/share/opaque/new", 0o644, b"n")
        .owner(3, 4)
        .dir("usr/share/chmod", 0o2755)
        .owner(0, 0)
        .dir("usr/share/becomes-dir", 0o755)
        .file("usr/share/becomes-dir/f", 0o644, b"y")
        .file("usr/share/becomes-file", 0o644, b"z")
        .pax(&[("SCHILY.xattr.user.note", b"a\nb")])
        .file("usr/share/attr", 0o644, b"attr");
    let layers = [(bootable().finish(), Pack::Gzip), (low.finish(), Pack::Gzip), (high.finish(), Pack::Gzip)];
    let layout = Layout::write(&scratch.path("oci"), &layers);
    let base = scratch.pull(&layout.image()).await.unwrap();
    let (storage, rundir) = (scratch.path("storage"), scratch.path("run"));
    let podman = |arguments: &[&str]| {
        let mut all = vec!["--root", storage.to_str().unwrap(), "--runroot", rundir.to_str().unwrap()];
        all.extend(["--storage-driver", "vfs", "--events-backend", "none"]);
        all.extend(arguments);
        run("podman", &all).trim().to_owned()
    };
    // podman pull wants a name in lower case and takes the layout's path for one.
    let stored = format!("containers-storage:[vfs@{}+{}]localhost/os:1", storage.display(), rundir.display());
    run("skopeo", &["copy", "--quiet", &layout.image().to_string(), &stored]);
    let mounted = podman(&["image", "mount", "localhost/os:1"]);
    let mut theirs = BTreeMap::new();
    on_disk(Path::new(&mounted), "usr", &mut theirs);
    let mut etc = BTreeMap::new();
    on_disk(Path::new(&mounted), "etc", &mut etc);
    theirs.extend(etc.into_iter().map(|(path, text)| (format!("usr/{path}"), text)));
    podman(&["image", "umount", "localhost/os:1"]);
    let checkout = scratch.path("checkout");
    let repo = scratch.path("repo").display().to_string();
    run("ostree", &["checkout", "--repo", &repo, "-H", &base.commit, checkout.to_str().unwrap()]);
    let mut ours = BTreeMap::new();
    on_disk(&checkout, "usr", &mut ours);
    // The mapping: /etc moves, and the state directories become tmpfiles.d lines.
    for added in ["usr/etc", "usr/lib/tmpfiles.d", "usr/lib/tmpfiles.d/osctl-var.conf"] {
        assert!(ours.remove(added).is_some(), "{added}");
    }
    assert!(theirs.len() >= 20, "{theirs:#?}");
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn a_tree_with_a_policy_is_labelled_by_it() {
    let scratch = Scratch::new();
    let contexts = "/.*	system_u:object_r:default_t:s0\n/usr/bin/.*	--	system_u:object_r:bin_t:s0\n";
    let policy = |contexts: &str| {
        Tar::new()
            .file("etc/selinux/config", 0o644, b"SELINUX=enforcing\nSELINUXTYPE=test\n")
            .file("etc/selinux/test/contexts/files/file_contexts", 0o644, contexts.as_bytes())
            .file("etc/selinux/test/policy/policy.33", 0o644, b"policy")
            .pax(&[("SCHILY.xattr.security.selinux", b"stale")])
            .file("usr/bin/tool", 0o755, b"tool")
            .dir("usr/share", 0o755)
    };
    let base = scratch.pull_layers(vec![policy(contexts)]).await.unwrap();
    let tree = scratch.tree(&base.commit);
    let label =
        |name: &str| format!("security.selinux={}", hex::encode(format!("system_u:object_r:{name}:s0\0")));
    assert_eq!(tree["/usr/bin/tool"], format!("755 {} tool", label("bin_t")));
    assert_eq!(tree["/usr/share"], format!("dir 755 {}", label("default_t")));
    run("ostree", &["fsck", "--repo", &scratch.path("repo").display().to_string()]);
    // The same labels in another repository.
    assert_eq!(Scratch::new().pull_layers(vec![policy(contexts)]).await.unwrap().commit, base.commit);
}

#[tokio::test]
async fn a_policy_that_leads_out_of_the_image_is_refused() {
    let config = |text: &str| Tar::new().file("etc/selinux/config", 0o644, text.as_bytes());
    let enforcing = "SELINUX=enforcing\nSELINUXTYPE=test\n";
    let large = "#".repeat(65 << 10);
    for (what, layer, text) in [
        (
            "the configuration",
            Tar::new().symlink("etc/selinux/config", "/dev/zero"),
            "/usr/etc/selinux/config is a link",
        ),
        (
            "the contexts",
            config(enforcing).symlink("etc/selinux/test/contexts/files/file_contexts", "/etc/passwd"),
            "/usr/etc/selinux/test/contexts/files/file_contexts is a link",
        ),
        (
            "the policy",
            config(enforcing).symlink("etc/selinux/test", "/etc"),
            "/usr/etc/selinux/test is a link",
        ),
        ("its name", config("SELINUXTYPE=../../../../etc\n"), "which is no name"),
        ("a large one", config(&large), "/usr/etc/selinux/config is too large"),
    ] {
        let error = Scratch::new().pull_layers(vec![layer]).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Unsupported, "{what}: {}", error.chain());
        assert!(error.chain().contains(text), "{what}: {}", error.chain());
    }
    // A directory that is a link is none to us, and nothing is labelled.
    Scratch::new().pull_layers(vec![Tar::new().symlink("etc/selinux", "/etc/selinux")]).await.unwrap();
}

#[tokio::test]
async fn what_was_pulled_is_what_the_file_system_keeps() {
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut value = vec![2, 0, 0, 0];
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    };
    const NONE: u32 = u32::MAX;
    let minimal = acl(&[(1, 6, NONE), (4, 4, NONE), (32, 4, NONE)]);
    let named = acl(&[(1, 6, 0), (2, 7, 1000), (4, 4, 0), (16, 7, 0), (32, 0, 0)]);
    let layer = Tar::new()
        .dir("usr/x", 0o755)
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &minimal)])
        .file("usr/x/minimal", 0o644, b"x")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &named)])
        .file("usr/x/named", 0o670, b"x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &minimal), ("SCHILY.xattr.user.a", b"1")])
        .dir("usr/x/dir", 0o755)
        .pax(&[("SCHILY.xattr.user.empty", b"")])
        .file("usr/x/empty", 0o644, b"x");
    let scratch = Scratch::new();
    let base = scratch.pull_layers(vec![layer]).await.unwrap();
    run("ostree", &["fsck", "--repo", &scratch.path("repo").display().to_string()]);
    let tree = scratch.tree(&base.commit);
    assert_eq!((tree["/usr/x/minimal"].as_str(), tree["/usr/x/empty"].as_str()), ("644 x", "644 x"));
    let kept = acl(&[(1, 6, NONE), (2, 7, 1000), (4, 4, NONE), (16, 7, NONE), (32, 0, NONE)]);
    assert_eq!(tree["/usr/x/named"], format!("670 system.posix_acl_access={} x", hex::encode(kept)));
}
