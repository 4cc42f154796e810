//! One table for both kinds of bound files: what is in the file, and the image or the exact message.

use super::*;
use crate::model::bound::Mode;

/// What a file asks for, in one line; or the error's text.
fn read(name: &str, text: &str) -> String {
    let shown = |s: BoundSpec| {
        let mut line = s.reference.name;
        if s.mode == Mode::Prefetch {
            line.push_str(" prefetch");
        }
        if let Some(file) = s.auth_file {
            line.push_str(&format!(" auth={file}"));
        }
        if let Some(tls) = s.tls_verify {
            line.push_str(&format!(" tls={tls}"));
        }
        line
    };
    if name.ends_with(".toml") {
        return BoundSpec::from_toml(text, name).map_or_else(|e| format!("error: {e}"), shown);
    }
    let kind = match Type::of_name(name) {
        Ok(kind) => kind,
        Err(why) => return format!("error: {name}: {why}"),
    };
    match Unit::parse(text, name).and_then(|u| u.wants(kind, name)) {
        Ok(Wants::Image(spec)) => shown(spec),
        Ok(Wants::File(file, line)) => format!("file {file} line {line}"),
        Err(e) => format!("error: {e}"),
    }
}

const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn files_give_their_image_or_say_what_is_wrong() {
    let pinned = format!("[Container]\nImage=quay.io/x/a@{D}");
    let pinned_image = format!("quay.io/x/a@{D}");
    let table: &[(&str, &str, &str)] = &[
        // Containers.
        ("a.container", "[Container]\nImage=quay.io/x/a:1\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Unit]\nDescription=x\n\n[Container]\nImage = quay.io/x/a:1 \nExec=/a\n",
            "quay.io/x/a:1",
        ),
        ("a.container", "[Container]\r\nImage=quay.io/x/a:1\r\n", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=quay.io/x/a\n", "quay.io/x/a"),
        ("a.container", "[Container]\nImage=docker://quay.io/x/a:1\n", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=localhost:5000/a:1\n", "localhost:5000/a:1"),
        ("a.container", "[Container]\nImage=localhost/a:1\n", "localhost/a:1"),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/A:1\n",
            "error: a.container:2: image \"quay.io/x/A:1\" has the character 'A' in its repository",
        ),
        ("a.container", "[Container]\nImage=quay.io/x/a:Tag_1.2-x\n", "quay.io/x/a:Tag_1.2-x"),
        ("a.container", &pinned, &pinned_image),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a@sha256:12\n",
            "error: a.container:2: image \"quay.io/x/a@sha256:12\" is not a digest",
        ),
        // systemd.syntax(7).
        ("a.container", "# c\n; c\n[Container]\n  # c\nImage=quay.io/x/a:1", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=\\\nquay.io/x/a:1\n", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=\\\n# why\n; why\n  quay.io/x/a:1\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Container]\nExec=a \\\nImage=quay.io/x/evil:1 \\\n b\nImage=quay.io/x/a:1\n",
            "quay.io/x/a:1",
        ),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\nImage=quay.io/x/b:1\n", "quay.io/x/b:1"),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\n[Install]\nImage=quay.io/x/b:1\n",
            "quay.io/x/a:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\n[Unit]\n[Container]\nImage=quay.io/x/b:1\n",
            "quay.io/x/b:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nImage=\n",
            "error: a.container: has no Image= in [Container]",
        ),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\nImage=\nImage=quay.io/x/b:2\n", "quay.io/x/b:2"),
        ("a.container", "[Container]\nImage=\"quay.io/x/a:1\"\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Container]\n#Image=quay.io/x/a:1\n",
            "error: a.container: has no Image= in [Container]",
        ),
        (
            "a.container",
            "[Container]\nimage=quay.io/x/a:1\n",
            "error: a.container: has no Image= in [Container]",
        ),
        ("a.container", "[Image]\nImage=quay.io/x/a:1\n", "error: a.container: has no Image= in [Container]"),
        ("a.container", "", "error: a.container: has no Image= in [Container]"),
        ("a.container", "[Container]\nRootfs=/srv\n", "error: a.container: has no Image= in [Container]"),
        (
            "a.container",
            "Image=quay.io/x/a:1\n",
            "error: a.container:1: there is a key before the first [Section]",
        ),
        (
            "a.container",
            "[Container\nImage=quay.io/x/a:1\n",
            "error: a.container:1: the section has no closing ]",
        ),
        (
            "a.container",
            "[Container]\nImage quay.io/x/a:1\n",
            "error: a.container:2: \"Image quay.io/x/a:1\" is neither [Section] nor Key=value",
        ),
        // Specifiers.
        (
            "a.container",
            "[Container]\nImage=quay.io/x/%p:1\n",
            "error: a.container:2: Image= uses the specifier %p, whose value is not known before boot",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:%\n",
            "error: a.container:2: Image= uses the specifier %, whose value is not known before boot",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:%%1\n",
            "error: a.container:2: image \"quay.io/x/a:%1\" has the character '%' in its tag",
        ),
        ("a.container", "[Container]\nEnvironment=H=%H\nImage=quay.io/x/a:1\n", "quay.io/x/a:1"),
        // Names that are not full.
        (
            "a.container",
            "[Container]\nImage=busybox\n",
            "error: a.container:2: image \"busybox\" names no registry; write it in full, for example quay.io/example/busybox",
        ),
        (
            "a.container",
            "[Container]\nImage=library/busybox:1\n",
            "error: a.container:2: image \"library/busybox:1\" names no registry; write it in full, for example quay.io/example/library/busybox:1",
        ),
        (
            "a.container",
            "[Container]\nImage=oci:/srv/a\n",
            "error: a.container:2: image \"oci:/srv/a\" is not in a registry; only docker:// can be bound",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1 b\n",
            "error: a.container:2: image \"quay.io/x/a:1 b\" contains the character ' '",
        ),
        // References to other files.
        ("a.container", "[Container]\nImage=b.image\n", "file b.image line 2"),
        (
            "a.container",
            "[Container]\nImage=b.build\n",
            "error: a.container:2: Image=b.build: a .build file is built on the host, so there is no image to bind",
        ),
        (
            "a.image",
            "[Image]\nImage=b.image\n",
            "error: a.image:2: image \"b.image\" names no registry; write it in full, for example quay.io/example/b.image",
        ),
        (
            "a.build",
            "[Build]\nImageTag=localhost/a\n",
            "error: a.build: a .build file is built on the host, so there is no image to bind",
        ),
        (
            "a.kube",
            "[Kube]\nYaml=a.yaml\n",
            "error: a.kube: binding a .kube file is not supported by this version",
        ),
        ("a.volume", "[Volume]\n", "error: a.volume: does not end in .container or .image"),
        (".image", "[Image]\nImage=quay.io/x/a:1", "error: .image: does not end in .container or .image"),
        // Images.
        ("a.image", "[Image]\nImage=quay.io/x/a:1\n", "quay.io/x/a:1"),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nAuthFile=/etc/a.json\nTLSVerify=no\n",
            "quay.io/x/a:1 auth=/etc/a.json tls=false",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nAuthFile=/etc/a%%b.json\n",
            "quay.io/x/a:1 auth=/etc/a%b.json",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nAuthFile=%h/a.json\n",
            "error: a.image:3: AuthFile= uses the specifier %h, whose value is not known before boot",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nAuthFile=a.json\n",
            "error: a.image:3: AuthFile=a.json is not an absolute path",
        ),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nAuthFile=/a.json\nAuthFile=\n", "quay.io/x/a:1"),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nTLSVerify=On\n", "quay.io/x/a:1 tls=true"),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nTLSVerify=maybe\n",
            "error: a.image:3: TLSVerify=maybe is neither true nor false",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nArch=arm64\n",
            "error: a.image:3: Arch= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nOS=linux\n",
            "error: a.image:3: OS= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nVariant=v7\n",
            "error: a.image:3: Variant= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nCertDir=/etc/c\n",
            "error: a.image:3: CertDir= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nCreds=a:b\n",
            "error: a.image:3: Creds= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nImageTag=x\n",
            "error: a.image:3: ImageTag= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nDecryptionKey=/k\n",
            "error: a.image:3: DecryptionKey= is not supported by this version",
        ),
        (
            "a.image",
            "[Image]\nAllTags=yes\nImage=quay.io/x/a\n",
            "error: a.image:2: AllTags= is not supported by this version",
        ),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nImagge=x\n", "error: a.image:3: unknown key Imagge="),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nAuthFile=/a\n",
            "error: a.container:3: AuthFile= is not a key of [Container]",
        ),
        // Arguments for podman.
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nGlobalArgs=--storage-opt=additionalimagestore=/usr/lib/bootc/storage\n",
            "quay.io/x/a:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nGlobalArgs=--storage-opt additionalimagestore=/x --log-level=debug\n",
            "quay.io/x/a:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nGlobalArgs=--root=/srv\n",
            "error: a.container:3: GlobalArgs=--root changes the pull, which is not supported by this version",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nGlobalArgs=--storage-opt=x=y\n",
            "error: a.container:3: GlobalArgs=--storage-opt=x=y changes the pull, which is not supported by this version",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--cpus 2 --authfile /a\n",
            "error: a.container:3: PodmanArgs=--authfile changes the pull, which is not supported by this version",
        ),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--cpus=2 -c 512\n", "quay.io/x/a:1"),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nPodmanArgs=--platform=linux/arm64\n",
            "error: a.image:3: PodmanArgs=--platform changes the pull, which is not supported by this version",
        ),
        // TOML.
        ("a.toml", "image = \"quay.io/x/a:1\"\n", "quay.io/x/a:1"),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\nmode = \"prefetch\"\nauth-file = \"/etc/a.json\"\ntls-verify = false\n",
            "quay.io/x/a:1 prefetch auth=/etc/a.json tls=false",
        ),
        ("a.toml", "image = \"quay.io/x/a:1\"\nmode = \"bind\"\n", "quay.io/x/a:1"),
        ("a.toml", "", "error: a.toml: has no image"),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\nmode = \"later\"\n",
            "error: a.toml:2: mode \"later\" is neither \"bind\" nor \"prefetch\"",
        ),
        ("a.toml", "image = \"quay.io/x/a:1\"\n\nimgae = 1\n", "error: a.toml:3: unknown key \"imgae\""),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\nall-tags = true\n",
            "error: a.toml:2: all-tags is not supported by this version",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\narch = \"arm64\"\n",
            "error: a.toml:2: arch is not supported by this version",
        ),
        ("a.toml", "image = 1\n", "error: a.toml:1: image must be a string"),
        (
            "a.toml",
            "image = \"app\"\n",
            "error: a.toml:1: image \"app\" names no registry; write it in full, for example quay.io/example/app",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\ntls-verify = \"no\"\n",
            "error: a.toml:2: tls-verify must be true or false",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\nauth-file = \"a.json\"\n",
            "error: a.toml:2: auth-file \"a.json\" is not an absolute path",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\nimage = \"quay.io/x/b:1\"\n",
            "error: a.toml:2: is not valid TOML: duplicate key",
        ),
        (
            "a.toml",
            "# one\nimage = quay.io\n",
            "error: a.toml:2: is not valid TOML: string values must be quoted, expected literal string",
        ),
    ];
    assert!(table.len() >= 60);
    let wrong: Vec<_> = table
        .iter()
        .map(|(name, text, expected)| (name, text, *expected, read(name, text)))
        .filter(|(_, _, expected, got)| expected != got)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_specifier_has_its_own_kind() {
    let unit = Unit::parse("[Container]\nImage=quay.io/x/%i", "a@.container").unwrap();
    let error = unit.wants(Type::Container, "link").unwrap_err();
    assert_eq!(
        (error.kind, error.details["file"].as_str(), error.details["line"].as_str()),
        (ErrorKind::Specifier, "a@.container", "2")
    );
}

#[test]
fn drop_ins_come_after_the_unit() {
    let mut unit = Unit::parse("[Container]\nImage=quay.io/x/a:1", "a.container").unwrap();
    unit.merge("[Container]\nImage=quay.io/x/b:2", "a.container.d/1.conf").unwrap();
    let Ok(Wants::Image(spec)) = unit.wants(Type::Container, "link") else { panic!("no image") };
    assert_eq!((spec.reference.name.as_str(), spec.source.as_str()), ("quay.io/x/b:2", "link"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}", tail in "(\\[Container\\]\nImage=[a-z%\\\\./:@]{0,40}\n?)?") {
        if let Ok(unit) = Unit::parse(&format!("{text}\n{tail}"), "a.container") {
            let _ = unit.wants(Type::Container, "a.container");
        }
        let _ = BoundSpec::from_toml(&text, "a.toml");
    }
}
