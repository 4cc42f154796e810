//! One table for all kinds of bound files: what is in the file, and the images or the exact message.

use super::*;
use crate::model::bound::{Mode, Policy};

/// What a file asks for, in one line; or the error's text. An error has the place in its details that its text begins with.
fn read(name: &str, text: &str) -> String {
    let all = |wants: Wants| {
        let mut lines: Vec<_> = wants.list.into_iter().map(shown).collect();
        lines.extend(wants.warnings.iter().map(|w| format!("warning: {w}")));
        lines.join("; ")
    };
    let found = match name.rsplit_once('.') {
        Some((_, "toml")) => BoundSpec::from_toml(text, name).map(|spec| shown(Want::Image(Box::new(spec)))),
        Some((_, "volume")) => Unit::parse(text, name).and_then(|u| u.wants(Type::Volume, name)).map(all),
        Some((_, "yaml")) => Kubernetes::parse(text, name).map(|found| {
            let image = |i: &KubeImage| format!("{} line {}", i.reference.name, i.line);
            let mut lines: Vec<_> = found.images.iter().map(image).collect();
            lines.extend(found.warnings.iter().map(|w| format!("warning: {w}")));
            lines.join("; ")
        }),
        _ => Type::of_name(name)
            .map_err(|why| refused(name, None, why))
            .and_then(|kind| Unit::parse(text, name)?.wants(kind, name))
            .map(all),
    };
    found.unwrap_or_else(|e| {
        let detail = |key: &str| e.details.get(key).cloned().unwrap_or_default();
        let place: Vec<_> =
            ["file", "line", "column"].iter().map(|k| detail(k)).filter(|d| !d.is_empty()).collect();
        let place =
            if name.ends_with(".toml") && place.len() == 3 { place[..2].join(":") } else { place.join(":") };
        assert!(e.to_string().starts_with(&format!("{place}: ")), "{place:?} {e}");
        format!("error: {e}")
    })
}

fn shown(want: Want) -> String {
    let spec = match want {
        Want::Image(spec) => spec,
        Want::Unit(p) => return format!("unit {} line {}", p.name, p.line),
        Want::Yaml(p, directory) => return format!("yaml {} line {} in {directory:?}", p.name, p.line),
    };
    let mut line = spec.reference.name.clone();
    if spec.mode == Mode::Prefetch {
        line.push_str(" prefetch");
    }
    if spec.policy == Policy::Missing {
        line.push_str(" missing");
    }
    if let Some(file) = &spec.auth_file {
        line.push_str(&format!(" auth={file}"));
    }
    if let Some(tls) = spec.tls_verify {
        line.push_str(&format!(" tls={tls}"));
    }
    if let Some(dir) = &spec.cert_dir {
        line.push_str(&format!(" certs={dir}"));
    }
    for (key, value) in spec.platform() {
        line.push_str(&format!(" {key}={value}"));
    }
    line
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
            "error: a.container:3: Image= is empty, which takes back what was before",
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
        (
            "a.container",
            "[Container]\nRootfs=/srv\n",
            "error: a.container:2: Rootfs= runs a directory, so there is no image to bind",
        ),
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
        ("a.container", "[Container]\nImage=b.image\n", "unit b.image line 2"),
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
        ("a.kube", "[Kube]\nYaml=a.yaml\n", "yaml a.yaml line 2 in Path(\"/\")"),
        ("a.pod", "[Pod]\n", "error: a.pod: does not end in .container, .image or .kube"),
        (
            ".image",
            "[Image]\nImage=quay.io/x/a:1",
            "error: .image: does not end in .container, .image or .kube",
        ),
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
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nArch=arm64\n", "quay.io/x/a:1 arch=arm64"),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nOS=linux\n", "quay.io/x/a:1 os=linux"),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nVariant=v7\n", "quay.io/x/a:1 variant=v7"),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nCertDir=/etc/c\n", "quay.io/x/a:1 certs=/etc/c"),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nCreds=a:b\n",
            "error: a.image:3: Creds= cannot be bound: anybody can read the file",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nImageTag=x\n",
            "error: a.image:3: ImageTag= cannot be bound: an image is found by the name it has in the registry",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nDecryptionKey=/k\n",
            "error: a.image:3: DecryptionKey= cannot be bound: images are stored as they are in the registry",
        ),
        (
            "a.image",
            "[Image]\nAllTags=yes\nImage=quay.io/x/a\n",
            "error: a.image:2: AllTags= cannot be bound: which tags there are changes",
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
            "error: a.container:3: GlobalArgs=--root changes which image is found or how it is pulled",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nGlobalArgs=--storage-opt=x=y\n",
            "error: a.container:3: GlobalArgs=--storage-opt=x=y changes which image is found or how it is pulled",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--cpus 2 --authfile /a\n",
            "error: a.container:3: PodmanArgs=--authfile changes which image is found or how it is pulled",
        ),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--cpus=2 -c 512\n", "quay.io/x/a:1"),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nPodmanArgs=--platform=linux/arm64\n",
            "error: a.image:3: PodmanArgs=--platform changes which image is found or how it is pulled",
        ),
        // What podman's parser does and systemd's does not.
        ("a.container", "[Container]\nImage=quay.io/\\\n   x/a:1\n", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=\\\n\n  # why\n\nquay.io/x/a:1\n", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\\", "quay.io/x/a:1"),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\\\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\\\n# lost with the file's end\n",
            "error: a.container: has no Image= in [Container]",
        ),
        ("a.container", "[Container]  \n\\\nImage=quay.io/x/a:1\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Container] x\nImage=quay.io/x/a:1\n",
            "error: a.container:1: the line is not a [Section]",
        ),
        ("a.container", "[]\nImage=quay.io/x/a:1\n", "error: a.container:1: the line is not a [Section]"),
        (
            "a.container",
            "[Container]\n=x\n",
            "error: a.container:2: \"=x\" is neither [Section] nor Key=value",
        ),
        (
            "a.container",
            "[Container]\nExec=a\\\n  b\nImage=\\\nbusybox\n",
            "error: a.container:4: image \"busybox\" names no registry; write it in full, for example quay.io/example/busybox",
        ),
        (
            "a.container",
            "[Container]\nImage=\"quay.io/x/a:1\n",
            "error: a.container:2: image \"\\\"quay.io/x/a:1\" has the character '\"' in its registry",
        ),
        // Keys of newer versions of podman.
        ("a.container", "[Container]\nImage=quay.io/x/a:1\nHttpProxy=false\nNewKey=1\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Quadlet]\nDefaultDependencies=no\n[Container]\nImage=quay.io/x/a:1\n",
            "quay.io/x/a:1",
        ),
        ("a.container", "[Container]\nImage=quay.io/x/a:1\nPull=never\n", "quay.io/x/a:1"),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPull=always\n",
            "quay.io/x/a:1; warning: a.container:3: Pull=always: podman asks the registry at each start",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPull=sometimes\n",
            "error: a.container:3: Pull=sometimes is no policy of podman",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nArch=arm64\n",
            "error: a.container:3: Arch= is not a key of [Container]",
        ),
        // Further images of a container.
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nMount=type=image,source=quay.io/x/data:1,destination=/d\n",
            "quay.io/x/a:1; quay.io/x/data:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nMount=type=image,src=b.image,dst=/d type=tmpfs,dst=/t\n",
            "quay.io/x/a:1; unit b.image line 3",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nMount=type=image,destination=/d\n",
            "error: a.container:3: image \"\" has no name",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--mount \"type=image,src=quay.io/x/b:1,dst=/b\"\n",
            "quay.io/x/a:1; quay.io/x/b:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nVolume=/srv:/srv\nVolume=data.volume:/data:Z\nVolume=/anonymous\n",
            "quay.io/x/a:1; unit data.volume line 4",
        ),
        ("a.volume", "[Volume]\nDriver=image\nImage=quay.io/x/v:1\n", "quay.io/x/v:1"),
        ("a.volume", "[Volume]\nDevice=tmpfs\n", ""),
        ("a.container", "[Container]\nImage=quay.io/x/b.image\n", "unit quay.io/x/b.image line 2"),
        // Keys that were taken back.
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--arch=arm64\nPodmanArgs=\n",
            "quay.io/x/a:1",
        ),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nCreds=a:b\nCreds=\n", "quay.io/x/a:1"),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nAllTags=false\n", "quay.io/x/a:1"),
        // The platform, certificates, the policy.
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nArch=aarch64\nOS=linux\nVariant=v8\nCertDir=/etc/c\nPolicy=missing\nRetry=3\nRetryDelay=5s\n",
            "quay.io/x/a:1 missing certs=/etc/c arch=arm64 os=linux variant=v8",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nArch=--all\n",
            "error: a.image:3: Arch=\"--all\" is not a word of letters and digits, like arm64 or v8",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nVariant=$(id)\n",
            "error: a.image:3: Variant=\"$(id)\" is not a word of letters and digits, like arm64 or v8",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nOS=%a\n",
            "error: a.image:3: OS= uses the specifier %a, whose value is not known before boot",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nCertDir=certs\n",
            "error: a.image:3: CertDir=certs is not an absolute path",
        ),
        ("a.image", "[Image]\nImage=quay.io/x/a:1\nPolicy=newer\n", "quay.io/x/a:1"),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nPolicy=never\n",
            "error: a.image:3: Policy=never cannot be bound: nobody would pull the image",
        ),
        (
            "a.image",
            "[Image]\nImage=quay.io/x/a:1\nPolicy=weekly\n",
            "error: a.image:3: Policy=weekly is no policy",
        ),
        // More arguments.
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--label \"a --arch b\" '--cpus=2'\n",
            "quay.io/x/a:1",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=\"--tls-verify=false\"\n",
            "error: a.container:3: PodmanArgs=--tls-verify changes which image is found or how it is pulled",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nGlobalArgs=-r\n",
            "error: a.container:3: GlobalArgs=-r changes which image is found or how it is pulled",
        ),
        (
            "a.container",
            "[Container]\nImage=quay.io/x/a:1\nPodmanArgs=--imagestore=/x\n",
            "error: a.container:3: PodmanArgs=--imagestore changes which image is found or how it is pulled",
        ),
        // Kubernetes units.
        ("a.kube", "[Kube]\nYaml=/etc/a.yaml\nSetWorkingDirectory=yaml\n", "yaml /etc/a.yaml line 2 in Yaml"),
        ("a.kube", "[Kube]\nYaml=a%%b.yaml\nSetWorkingDirectory=unit\n", "yaml a%b.yaml line 2 in Unit"),
        (
            "a.kube",
            "[Kube]\nYaml=a.yaml\nYaml=b.yaml\n[Service]\nWorkingDirectory=/srv\n",
            "yaml a.yaml line 2 in Path(\"/srv\"); yaml b.yaml line 3 in Path(\"/srv\")",
        ),
        ("a.kube", "[Kube]\nYaml=a.yaml\nYaml=\nYaml=b.yaml\n", "yaml b.yaml line 4 in Path(\"/\")"),
        ("a.kube", "[Kube]\n", "error: a.kube: has no Yaml= in [Kube]"),
        (
            "a.kube",
            "[Kube]\nYaml=%h/a.yaml\n",
            "error: a.kube:2: Yaml= uses the specifier %h, whose value is not known before boot",
        ),
        (
            "a.kube",
            "[Kube]\nYaml=https://example.com/a.yaml\n",
            "error: a.kube:2: Yaml=https://example.com/a.yaml is not a file of the image, so its images are not known",
        ),
        (
            "a.kube",
            "[Kube]\nYaml=a.yaml\nPodmanArgs=--build\n",
            "error: a.kube:3: PodmanArgs=--build changes which image is found or how it is pulled",
        ),
        (
            "a.kube",
            "[Kube]\nYaml=a.yaml\nSetWorkingDirectory=/srv\n",
            "error: a.kube:3: SetWorkingDirectory=/srv is neither yaml nor unit",
        ),
        // Kubernetes YAML.
        (
            "a.yaml",
            "kind: Pod\nspec:\n  initContainers: [{image: quay.io/x/i:1}]\n  containers:\n  - name: a\n    image: quay.io/x/a:1\n",
            "quay.io/x/i:1 line 3; quay.io/x/a:1 line 6",
        ),
        (
            "a.yaml",
            "---\n# nothing\n---\nkind: ConfigMap\n---\nkind: Deployment\nspec: {template: {spec: {containers: [{image: \"quay.io/x/a:1\"}]}}}\n---\nkind: Job\nspec: {template: {spec: {containers: [{image: quay.io/x/b:1}]}}}\n",
            "quay.io/x/a:1 line 7; quay.io/x/b:1 line 10",
        ),
        (
            "a.yaml",
            "kind: CronJob\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{image: quay.io/x/a:1}]}}}}}\n",
            "quay.io/x/a:1 line 2",
        ),
        (
            "a.yaml",
            "kind: List\nitems:\n- kind: DaemonSet\n  spec: {template: {spec: {containers: [{image: quay.io/x/a:1}]}}}\n- kind: Service\n",
            "quay.io/x/a:1 line 4; warning: a.yaml:5:9: items[1].kind: podman does not play kind Service, so nothing of it is bound",
        ),
        (
            "a.yaml",
            "kind: Pod\nx: &c {image: quay.io/x/a:1}\nspec: {containers: [*c, {<<: *c, name: b}]}\n",
            "quay.io/x/a:1 line 2; quay.io/x/a:1 line 2",
        ),
        (
            "a.yaml",
            "kind: Pod\nmetadata: {annotations: {io.podman.annotations.kube.image.volumes.mount/a: quay.io/x/m:1;quay.io/x/n:1}}\nspec:\n  containers: [{name: a, image: quay.io/x/a:1, imagePullPolicy: Always}]\n  volumes: [{name: v, image: {reference: quay.io/x/v:1}}, {name: w, emptyDir: {}}]\n",
            "quay.io/x/a:1 line 4; quay.io/x/v:1 line 5; quay.io/x/m:1 line 2; quay.io/x/n:1 line 2; warning: a.yaml:4:65: spec.containers[0].imagePullPolicy: podman asks the registry at each start",
        ),
        (
            "a.yaml",
            "kind: PersistentVolumeClaim\nmetadata: {annotations: {volume.podman.io/driver: image, volume.podman.io/image: quay.io/x/v:1}}\n",
            "quay.io/x/v:1 line 2",
        ),
        ("a.yaml", "kind: Secret\n", ""),
        ("a.yaml", "", "error: a.yaml:1:1: there is no resource that podman can play"),
        ("a.yaml", "kind: StatefulSet\n", "error: a.yaml:1:1: there is no resource that podman can play"),
        ("a.yaml", "- a\n", "error: a.yaml:1:1: expected a Kubernetes resource, which is a map"),
        ("a.yaml", "spec: {}\n", "error: a.yaml:1:1: kind: a resource has no kind"),
        ("a.yaml", "kind: Pod\n", "error: a.yaml:1:1: a pod has no spec"),
        ("a.yaml", "kind: Job\nspec: {}\n", "error: a.yaml:1:1: this Job has no pod template"),
        (
            "a.yaml",
            "kind: Pod\nspec:\n  containers:\n  - name: a\n",
            "error: a.yaml:4:5: spec.containers[0].image: a container has no image",
        ),
        (
            "a.yaml",
            "kind: Pod\nspec:\n  containers:\n  - image: nginx\n",
            "error: a.yaml:4:12: spec.containers[0].image: image \"nginx\" names no registry; write it in full, for example quay.io/example/nginx",
        ),
        (
            "a.yaml",
            "kind: Pod\nspec: {containers: [{image: [a]}]}\n",
            "error: a.yaml:2:29: spec.containers[0].image: expected text",
        ),
        ("a.yaml", "kind: Pod\nkind: Job\n", "error: a.yaml:2:1: key `kind` is given twice, first on line 1"),
        ("a.yaml", "a: &a [*a]\n", "error: a.yaml:1:8: an alias inside of what it names"),
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
            "error: a.toml:2: all-tags cannot be bound: which tags there are changes",
        ),
        ("a.toml", "image = \"quay.io/x/a:1\"\narch = \"arm64\"\n", "quay.io/x/a:1 arch=arm64"),
        (
            "a.toml",
            "policy = \"missing\"\nos = \"linux\"\nvariant = \"v8\"\ncert-dir = \"/etc/c\"\narch = \"arm64\"\nimage = \"quay.io/x/a:1\"\n",
            "quay.io/x/a:1 missing certs=/etc/c arch=arm64 os=linux variant=v8",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\npolicy = \"never\"\n",
            "error: a.toml:2: policy \"never\" cannot be bound: nobody would pull the image",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\narch = \"-x\"\n",
            "error: a.toml:2: arch \"-x\" is not a word of letters and digits, like arm64 or v8",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\ncert-dir = \"certs\"\n",
            "error: a.toml:2: cert-dir \"certs\" is not an absolute path",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\ncreds = \"a:b\"\n",
            "error: a.toml:2: creds cannot be bound: anybody can read the file",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\ndecryption-key = \"/k\"\n",
            "error: a.toml:2: decryption-key cannot be bound: images are stored as they are in the registry",
        ),
        (
            "a.toml",
            "image = \"quay.io/x/a:1\"\nimage-tag = \"b\"\n",
            "error: a.toml:2: image-tag cannot be bound: an image is found by the name it has in the registry",
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
    assert!(table.len() >= 150, "{}", table.len());
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
    let wants = unit.wants(Type::Container, "link").unwrap().list;
    let [Want::Image(spec)] = &wants[..] else { panic!("{wants:?}") };
    assert_eq!((spec.reference.name.as_str(), spec.source.as_str()), ("quay.io/x/b:2", "link"));
}

#[test]
fn what_is_refused_by_name_has_a_hint_and_secrets_are_not_repeated() {
    for key in ["AllTags=yes", "Creds=user:hunter2", "DecryptionKey=/hunter2", "ImageTag=hunter2"] {
        let unit = Unit::parse(&format!("[Image]\nImage=quay.io/x/a:1\n{key}\n"), "a.image").unwrap();
        let error = unit.wants(Type::Image, "a.image").unwrap_err();
        assert_eq!(error.details["key"], key.split('=').next().unwrap());
        assert!(error.hint.is_some(), "{key}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    for key in ["all-tags = true", "creds = \"user:hunter2\"", "decryption-key = \"/k\"", "image-tag = \"a\""]
    {
        let error =
            BoundSpec::from_toml(&format!("image = \"quay.io/x/a:1\"\n{key}\n"), "a.toml").unwrap_err();
        assert!(error.hint.is_some() && !format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn an_image_is_built_from_the_directory_of_its_name() {
    for (image, directory) in [
        ("quay.io/x/app:1", "app"),
        ("localhost/app", "app"),
        ("localhost:5000/app:1", "localhost"),
        ("quay.io/x/app@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "app"),
    ] {
        let text = format!("kind: Pod\nspec: {{containers: [{{image: \"{image}\"}}]}}\n");
        let found = Kubernetes::parse(&text, "a.yaml").unwrap();
        assert_eq!(found.images[0].build_directory, directory, "{image}");
    }
}

#[test]
fn aliases_stay_small() {
    let mut bomb = String::from("kind: Pod\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..10 {
        let previous = format!("*a{}", i - 1);
        bomb.push_str(&format!("a{i}: &a{i} [{}]\n", [previous.as_str(); 10].join(", ")));
    }
    let error = Kubernetes::parse(&bomb, "a.yaml").unwrap_err();
    assert!(error.to_string().contains("make the document too large"), "{error}");
    let deep: String = (1..200).map(|i| format!("a{i}: &a{i} [*a{}]\n", i - 1)).collect();
    let error = Kubernetes::parse(&format!("kind: Pod\na0: &a0 x\n{deep}"), "a.yaml").unwrap_err();
    assert!(error.to_string().contains("make the document too large"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_parser_panic_and_every_refusal_names_the_file(
        text in "\\PC{0,200}",
        tail in "(\\[(Container|Image|Kube)\\]\n((Image|Yaml|Arch|Mount|PodmanArgs|Pull)=[a-z%\\\\./:@\"' ,=-]{0,40}\n?){0,3})?",
    ) {
        for (kind, file) in [(Type::Container, "a.container"), (Type::Image, "a.image"), (Type::Kube, "a.kube"), (Type::Volume, "a.volume")] {
            for text in [&text, &tail, &format!("{text}\n{tail}")] {
                if let Err(error) = Unit::parse(text, file).and_then(|unit| unit.wants(kind, file)) {
                    proptest::prop_assert_eq!(error.details["file"].as_str(), file);
                }
            }
        }
    }

    #[test]
    fn no_yaml_makes_the_reader_panic_and_every_refusal_has_a_place(
        text in "\\PC{0,100}|(kind: (Pod|Job|List)|spec:|containers:|template:|image: [a-z./:]{0,9}|items:|- |  |\n|&a |\\*a|<<: |---\n|\\[|\\]|\\{|\\}|, ){0,30}"
    ) {
        if let Err(error) = Kubernetes::parse(&text, "a.yaml") {
            proptest::prop_assert!(["file", "line", "column"].iter().all(|k| error.details.contains_key(*k)), "{}", error);
        }
    }
}
