#!/usr/bin/env python3
"""Compare what osctl deployed with what podman mounts, path by path, after the mapping of docs/plain-images.md.

usage: tree_equal.py [--drop-var] IMAGE DEPLOYMENT STATE
       tree_equal.py --self-check SCRATCH

IMAGE is the directory of `podman image mount`, DEPLOYMENT the directory that boots, STATE a directory in which
systemd-tmpfiles carried out the deployment's osctl-var.conf. Compared are type, mode, owner, extended attributes,
content by SHA-256, targets of links and numbers of devices of every path, and which paths are hard links of one file.
Prints the number of paths, or each difference and exits with 1. --self-check alters small trees in every way that is
compared, and demands that each alteration is seen.
"""
import argparse
import hashlib
import os
import shutil
import stat
import sys
from typing import NamedTuple

SHOWN = 40
CHUNK = 1 << 20


class Entry(NamedTuple):
    """All that is compared of a path."""

    kind: str
    mode: int
    uid: int
    gid: int
    xattrs: tuple
    content: str

    def __str__(self):
        xattrs = "".join(f" {name}={value.hex()}" for name, value in self.xattrs)
        return f"{self.kind} {self.mode:04o} {self.uid}:{self.gid}{xattrs} {self.content}".rstrip()


class Tree(NamedTuple):
    """Entries by path, the root as ""; and the paths of each file that has more than one."""

    entries: dict
    links: list


# Rule: "Left out: `security.selinux`, `security.ima`, `trusted.overlay.*`, `user.overlay.*`." Labels are out on both sides:
# on a host with SELinux podman and the kernel put their own on, and none of the three images has a policy of its own.
def kept(name):
    return name not in ("security.selinux", "security.ima") and not name.startswith(("trusted.overlay.", "user.overlay."))


def digest(path):
    found = hashlib.sha256()
    with open(path, "rb") as f:
        while data := f.read(CHUNK):
            found.update(data)
    return found.hexdigest()


def look(path):
    """Rule: "Times are ignored, as ostree does." Everything else that a path has is in its entry."""
    st = os.lstat(path)
    names = sorted(n for n in os.listxattr(path, follow_symlinks=False) if kept(n))
    xattrs = tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in names)
    content = ""
    if stat.S_ISREG(st.st_mode):
        kind, content = "file", digest(path)
    elif stat.S_ISLNK(st.st_mode):
        kind, content = "link", os.readlink(path)
    elif stat.S_ISDIR(st.st_mode):
        kind = "directory"
    else:
        kind, content = f"special {stat.S_IFMT(st.st_mode):o}", f"{os.major(st.st_rdev)}:{os.minor(st.st_rdev)}"
    return st, Entry(kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, xattrs, content)


def walk(root):
    """Reads a tree; never follows a link."""
    entries, inodes, todo = {}, {}, [""]
    while todo:
        path = todo.pop()
        full = os.path.join(root, path) if path else root
        st, entries[path] = look(full)
        if stat.S_ISDIR(st.st_mode):
            todo += [f"{path}/{name}" if path else name for name in os.listdir(full)]
        elif st.st_nlink > 1:
            inodes.setdefault((st.st_dev, st.st_ino), []).append(path)
    return Tree(entries, [sorted(paths) for paths in inodes.values() if len(paths) > 1])


def directory(mode=0o755):
    return Entry("directory", mode, 0, 0, (), "")


def link(target):
    return Entry("link", 0o777, 0, 0, (), target)


MERGED = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")
EMPTIED = ("boot", "dev", "proc", "run", "sys", "tmp")
STATE = {"home": "home", "mnt": "mnt", "opt": "opt", "root": "roothome", "srv": "srv"}
DROPPINGS = (".dockerenv", ".dockerinit", ".containerenv", "lost+found")
CONF = "usr/lib/tmpfiles.d/osctl-var.conf"


class Mapping:
    """docs/plain-images.md as code: from the paths of an image to those of the host, and of its /var at the first boot."""

    def __init__(self, image, drop_var):
        self.host, self.state, self.wrong, self.left_out = {}, {}, [], 0
        self.drop_var = drop_var
        for path, entry in image.items():
            self.add(path, entry)
        # Rule: "A parent that no entry describes is root's, 0755 ...; so is the root (podman's is 0555 then)". No layer of
        # the three images describes the root.
        self.host[""] = directory()
        # Rule: "empty directories, made if missing (root's, 0755; `/tmp` 1777)".
        for top in EMPTIED:
            self.host.setdefault(top, directory(0o1777 if top == "tmp" else 0o755))
        # Rule: "links to `var/home`, ... made if missing; the directory ... as in `/var` (a missing one is root's, 0755;
        # `/root` 0700)".
        for top, home in STATE.items():
            if top not in self.host:
                self.host[top] = link(f"var/{home}")
                self.state[f"var/{home}"] = directory(0o700 if top == "root" else 0o755)
        # Rule: "`/sysroot`, `/ostree` | an empty directory, and a link to `sysroot/ostree`".
        self.host.setdefault("sysroot", directory())
        self.host["ostree"] = link("sysroot/ostree")

    def add(self, path, entry):
        top, _, below = path.partition("/")
        kind = entry.kind
        # Rule: "`/usr` | as it is".
        if top in ("", "usr"):
            self.host[path] = entry
        # Rule: "`/etc` | `/usr/etc`; libostree merges it into `/etc` when deploying": a copy, in a first deployment.
        elif top == "etc":
            self.host[path] = self.host["usr/" + path] = entry
        # Rule: "`/bin`, `/sbin`, `/lib` | must be links to `usr/bin`, ...; so must `/lib64`, ...".
        elif top in MERGED:
            self.host[path] = entry
            if (kind, entry.content.strip("/")) != ("link", "usr/" + top):
                self.refused(path, "/usr is not merged")
        # Rule: "`/boot`, ... | empty directories, ... A `/tmp` that is a link is kept".
        elif top in EMPTIED:
            if not below and (kind == "directory" or (top, kind) == ("tmp", "link")):
                self.host[path] = entry
            else:
                self.left_out += 1
        # Rule: "`/home`, ... | links to `var/home`, ...; the directory and its content as in `/var` ... Links are kept".
        # Rule: "`/opt` with content | refused".
        elif top in STATE:
            if kind == "link" and not below:
                self.host[path] = entry
            elif top == "opt" and below:
                self.refused(path, "/opt has content")
            else:
                self.host[top] = link(f"var/{STATE[top]}")
                self.add_state(f"var/{STATE[top]}" + (f"/{below}" if below else ""), path, entry)
        # Rule: "`/media` | a directory becomes a link to `run/media`; files in it are refused".
        elif top == "media":
            if not below:
                self.host[path] = entry if kind == "link" else link("run/media")
            elif kind == "directory":
                self.left_out += 1
            else:
                self.refused(path, "/media has files")
        # Rule: "`/var` | empty".
        elif path == "var":
            self.host[path] = entry
        elif top == "var":
            self.add_state(path, path, entry)
        # Rule: "`/sysroot`, `/ostree` | an empty directory, and a link ... `/ostree` with content is refused".
        elif top == "sysroot" and not below and kind == "directory":
            self.host[path] = entry
        elif top == "ostree" and below:
            self.refused(path, "/ostree has content")
        # Rule: "`/.dockerenv`, ... | left out".
        elif top in DROPPINGS or top in ("sysroot", "ostree"):
            self.left_out += 1
        # Rule: "anything else at the top | refused by name".
        else:
            self.refused(path, "no place at the top")

    # Rule: "Directories become `d` lines with mode and owner, links `L` lines (root's), ...; their extended attributes are
    # not kept. Files are listed and refused, or left out with `--drop-var`".
    def add_state(self, at, path, entry):
        if entry.kind == "directory":
            self.state[at] = entry._replace(xattrs=())
        elif entry.kind == "link":
            self.state[at] = link(entry.content)
        elif self.drop_var:
            self.left_out += 1
        else:
            self.refused(path, "a file in /var")

    def refused(self, path, why):
        self.wrong.append(f"{shown(path)}: deployed, but the rules refuse it: {why}")


def shown(path):
    return repr("/" + path)[1:-1]


def differences(what, expected, found):
    for path in sorted(expected.keys() | found.keys()):
        want, have = expected.get(path), found.get(path)
        if want != have:
            yield f"{what}{shown(path)}: podman's is {want or 'not there'}; ours is {have or 'not there'}"


# Rule: "A hard link to a file of the same layer is the same object, and so one file again where it is deployed, unless it is
# empty". The reverse is not promised: equal files share an object. /etc is a copy of /usr/etc.
def split_links(image, deployment, root):
    for paths in image.links:
        at = [f"usr/{p}" if p.startswith("etc/") else p for p in paths]
        at = [p for p in at if p.startswith("usr/") and p in deployment.entries]
        if at and os.lstat(os.path.join(root, at[0])).st_size == 0:
            continue
        inodes = {os.lstat(os.path.join(root, p)).st_ino for p in at}
        if len(inodes) > 1:
            yield f"{', '.join(map(shown, at))}: podman's are hard links of one file; ours are {len(inodes)} files"


def compare(image_root, deployment_root, state_root, drop_var):
    """The differences, and a sentence about what was compared."""
    image, deployment, state = walk(image_root), walk(deployment_root), walk(state_root)
    mapping = Mapping(image.entries, drop_var)
    expected = dict(mapping.host)
    # The lines are judged by what systemd-tmpfiles made of them, so any text will do here.
    if mapping.state:
        text = deployment.entries[CONF].content if CONF in deployment.entries else ""
        expected[CONF] = Entry("file", 0o644, 0, 0, (), text)
        for parent in ("usr/lib/tmpfiles.d", "usr/lib"):
            expected.setdefault(parent, directory())
    # systemd-tmpfiles makes the parents of what it is told.
    found = {p: e for p, e in state.entries.items() if p not in ("", "var")}
    wrong = mapping.wrong + list(differences("", expected, deployment.entries))
    wrong += differences("state ", mapping.state, found)
    wrong += split_links(image, deployment, deployment_root)
    files = [e for e in image.entries.values() if e.kind == "file"]
    names = [name for e in image.entries.values() for name, _ in e.xattrs]
    facts = {
        "with setuid or setgid": sum(e.mode & 0o6000 != 0 for e in files),
        "with a file capability": names.count("security.capability"),
        "with another attribute": len(names) - names.count("security.capability"),
        "with another name": sum(len(p) for p in image.links),
        "as lines for /var": len(mapping.state),
    }
    counts = ", ".join(f"{n} {what}" for what, n in facts.items())
    return wrong, f"{len(image.entries) - mapping.left_out} paths equal, {mapping.left_out} left out by the rules ({counts})"


def plant(root, rows):
    """Makes a small tree of rows: path, kind, mode, owner, and a text, a target, a device or the other name of a link."""
    for path, kind, mode, owner, content in rows:
        full = os.path.join(root, path)
        if kind == "hard":
            os.link(os.path.join(root, content), full)
            continue
        if kind == "link":
            os.symlink(content, full)
        elif kind == "directory":
            os.makedirs(full)
        elif kind == "device":
            os.mknod(full, stat.S_IFCHR, os.makedev(*content))
        else:
            with open(full, "w", encoding="utf-8") as f:
                f.write(content)
        os.chown(full, owner, owner * 2, follow_symlinks=False)
        if kind != "link":
            os.chmod(full, mode)


USR = [
    ("", "directory", 0o755, 0, ""),
    ("usr", "directory", 0o755, 0, ""),
    ("usr/lib", "directory", 0o755, 0, ""),
    ("usr/d", "directory", 0o2750, 7, ""),
    ("usr/d/file", "file", 0o4755, 3, "text"),
    ("usr/d/link", "link", 0, 5, "file"),
    ("usr/d/device", "device", 0o600, 0, (0, 0)),
    ("usr/d/one", "file", 0o644, 0, "two names"),
    ("usr/d/two", "hard", 0, 0, "usr/d/one"),
    ("bin", "link", 0, 0, "usr/bin"),
    ("sbin", "link", 0, 0, "/usr/sbin/"),
    ("lib", "link", 0, 0, "usr/lib"),
    ("mnt", "link", 0, 0, "elsewhere"),
    ("var", "directory", 0o755, 0, ""),
    ("etc", "directory", 0o755, 0, ""),
    ("etc/conf", "file", 0o640, 2, "conf"),
]
SAMPLE = {
    "image": USR
    + [
        ("var/lib", "directory", 0o700, 4, ""),
        ("var/lib/dropped", "file", 0o644, 0, ""),
        ("var/run", "link", 0, 0, "/run"),
        ("dev", "directory", 0o755, 0, ""),
        ("dev/null", "device", 0o666, 0, (1, 3)),
        ("home", "directory", 0o711, 0, ""),
        ("media", "directory", 0o755, 0, ""),
        (".dockerenv", "file", 0o755, 0, ""),
    ],
    "deployment": USR
    + [("usr/etc", "directory", 0o755, 0, ""), ("usr/etc/conf", "file", 0o640, 2, "conf")]
    + [("usr/lib/tmpfiles.d", "directory", 0o755, 0, ""), (CONF, "file", 0o644, 0, "lines")]
    + [(top, "directory", 0o755, 0, "") for top in ("boot", "dev", "proc", "run", "sys", "sysroot")]
    + [("tmp", "directory", 0o1777, 0, ""), ("media", "link", 0, 0, "run/media"), ("home", "link", 0, 0, "var/home")]
    + [("opt", "link", 0, 0, "var/opt"), ("root", "link", 0, 0, "var/roothome"), ("srv", "link", 0, 0, "var/srv")]
    + [("ostree", "link", 0, 0, "sysroot/ostree")],
    "state": [
        ("var", "directory", 0o755, 0, ""),
        ("var/lib", "directory", 0o700, 4, ""),
        ("var/run", "link", 0, 0, "/run"),
        ("var/home", "directory", 0o711, 0, ""),
        ("var/opt", "directory", 0o755, 0, ""),
        ("var/roothome", "directory", 0o700, 0, ""),
        ("var/srv", "directory", 0o755, 0, ""),
    ],
}


def rewrite(path):
    """Other bytes, of the same number and with the same time."""
    st = os.stat(path)
    with open(path, "r+b") as f:
        f.write(b"XXXX")
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def replace(path, make):
    os.unlink(path)
    make(path)


def unshare(path):
    """The same file, but no longer a hard link."""
    shutil.copy2(path, path + ".new")
    os.chown(path + ".new", 0, 0)
    os.rename(path + ".new", path)


NOTE, CAPABILITY = "user.note", "security.capability"
# A tree of the sample, the path that must be named, and what happens to it.
ALTERATIONS = [
    ("deployment", "", lambda p: os.chmod(p, 0o700)),
    ("deployment", "usr/d", lambda p: os.chmod(p, 0o750)),
    ("deployment", "usr/d", lambda p: os.chown(p, 7, 0)),
    ("deployment", "usr/d", lambda p: os.setxattr(p, NOTE, b"")),
    ("deployment", "usr/d/file", lambda p: os.chmod(p, 0o755)),
    ("deployment", "usr/d/file", lambda p: os.removexattr(p, NOTE)),
    ("deployment", "usr/d/file", lambda p: os.setxattr(p, NOTE, b"other")),
    ("deployment", "usr/d/file", lambda p: os.removexattr(p, CAPABILITY)),
    ("deployment", "usr/d/file", lambda p: replace(p, os.mkdir)),
    ("deployment", "usr/d/file", os.unlink),
    ("deployment", "usr/d/link", lambda p: os.chown(p, 0, 10, follow_symlinks=False)),
    ("deployment", "usr/d/link", lambda p: replace(p, lambda q: os.symlink("File", q))),
    ("deployment", "usr/d/device", lambda p: replace(p, lambda q: os.mknod(q, stat.S_IFCHR | 0o600, os.makedev(0, 1)))),
    ("deployment", "usr/d/two", unshare),
    ("deployment", "usr/d/new", os.mkdir),
    ("deployment", "usr/etc/conf", rewrite),
    ("deployment", "usr/etc/conf", lambda p: os.chown(p, 0, 4)),
    ("deployment", "etc/conf", rewrite),
    ("deployment", "dev/null", os.mkdir),
    ("deployment", "var/lib", os.mkdir),
    ("deployment", "home", lambda p: replace(p, os.mkdir)),
    ("deployment", CONF, os.unlink),
    ("state", "var/home", lambda p: os.chmod(p, 0o755)),
    ("state", "var/lib", lambda p: os.chown(p, 4, 0)),
    ("state", "var/run", os.unlink),
    ("state", "var/new", os.mkdir),
    ("image", "usr/d/new", os.mkdir),
    ("image", "nix", os.mkdir),
    ("image", "opt/new", os.makedirs),
    ("image", "media/new", lambda p: os.symlink("x", p)),
]


def self_check(scratch):
    """Compares the sample with itself, and then once for each alteration. Returns what went wrong."""
    roots = [os.path.join(scratch, name) for name in SAMPLE]
    wrong = []
    for altered, path, alter in [("", "", None), *ALTERATIONS]:
        shutil.rmtree(scratch, ignore_errors=True)
        for name, rows in SAMPLE.items():
            plant(os.path.join(scratch, name), rows)
        for root in roots[:2]:
            os.setxattr(root + "/usr/d", NOTE, b"directory")
            os.setxattr(root + "/usr/d/file", NOTE, b"file")
            os.setxattr(root + "/usr/d/file", CAPABILITY, bytes.fromhex("01000002" + "00200000" + "00" * 12))
        if alter:
            alter(os.path.join(scratch, altered, path))
        found, _ = compare(*roots, drop_var=True)
        if alter and not (len(found) == 1 and f"{shown(path)}: " in found[0]):
            wrong.append(f"altered {shown(path)} in the {altered}, and saw {found}")
        elif not alter and found:
            wrong += found
    refused = compare(*roots, drop_var=False)[0]
    if not any("/var/lib/dropped" in line for line in refused):
        wrong.append(f"a file in /var without --drop-var, and saw {refused}")
    shutil.rmtree(scratch)
    return wrong, f"{len(ALTERATIONS) + 1} alterations of a tree are seen"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("roots", nargs="+", metavar="DIR")
    p.add_argument("--drop-var", action="store_true", help="osctl was told --drop-var")
    p.add_argument("--self-check", action="store_true")
    a = p.parse_args()
    if len(a.roots) != (1 if a.self_check else 3):
        p.error("expected IMAGE DEPLOYMENT STATE, or --self-check SCRATCH")
    wrong, sentence = self_check(*a.roots) if a.self_check else compare(*a.roots, a.drop_var)
    for line in wrong[:SHOWN]:
        print(line)
    if len(wrong) > SHOWN:
        print(f"and {len(wrong) - SHOWN} more differences")
    if not wrong:
        print(sentence)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
