#!/usr/bin/env python3
"""Decide which file of a commit goes into which layer of its image, package by package.

usage: chunks.py plan LISTING DPKG N        packages of a tree in N groups of about equal size: {path: group}
       chunks.py deal LISTING N             its files in N groups, like cards
       chunks.py meta LISTING PLAN          the content-meta file for `container encapsulate --contentmeta`
       chunks.py change LISTING PLAN N PERCENT   paths of PERCENT of all files, all of them from N groups
       chunks.py sample LISTING N           paths of about N small files from everywhere

LISTING is the output of `ostree ls -R -C`, DPKG the directory of dpkg's database. The result is on
standard output and the same for the same input.
"""
import collections
import glob
import json
import os
import re
import sys

# mode, uid, gid, size, content checksum (of a directory also that of its metadata), path, target of a link
LINE = re.compile(r"^([-dlcbps])\S+ +\d+ +\d+ +(\d+) +([0-9a-f]{64})(?: +[0-9a-f]{64})? +(/.*?)(?: -> .*)?$")
REST = "unpackaged"
SMALL = 32 * 1024
MODULES = "/usr/lib/modules/"


def listing(path):
    """Yields (kind, size, checksum, path) of everything but directories, sorted by path."""
    with open(path, encoding="utf-8", errors="surrogateescape") as f:
        rows = [m.groups() for m in map(LINE.match, f) if m]
    for kind, size, checksum, name in sorted(rows, key=lambda r: r[3]):
        if kind != "d":
            yield kind, int(size), checksum, name


def owners(dpkg):
    """Path to package, with paths where this tree has them: everything below /usr, /etc in /usr/etc."""
    owner = {}
    for file in sorted(glob.glob(os.path.join(dpkg, "info", "*.list"))):
        package = os.path.basename(file)[: -len(".list")].split(":")[0]
        with open(file, encoding="utf-8") as f:
            for line in f:
                path = line.rstrip("\n")
                if path.startswith("/boot/vmlinuz-"):
                    path = "/usr/lib/modules/" + path[len("/boot/vmlinuz-") :] + "/vmlinuz"
                elif not path.startswith("/usr/"):
                    path = "/usr" + path
                owner.setdefault(path, package)
    return owner


def plan(listing_path, dpkg, groups):
    owner, size, members = owners(dpkg), {}, {}
    for _, bytes_, _, path in listing(listing_path):
        package = owner.get(path, REST)
        members.setdefault(package, []).append(path)
        # A small file is not free: some hundred bytes of tar header, some of metadata.
        size[package] = size.get(package, 0) + bytes_ + 1024
    # The largest first, each into the group that has least: no layer is much longer than the others.
    load = [0] * groups
    result = {}
    for package in sorted(size, key=lambda p: (-size[p], p)):
        group = load.index(min(load))
        load[group] += size[package]
        result.update((path, f"group{group:02}") for path in members[package])
    return result


def meta(listing_path, groups):
    mapping = {}
    for _, _, checksum, path in listing(listing_path):
        # Files with one content are one object: the first path decides.
        mapping.setdefault(checksum, groups[path])
    return {
        "version": 1,
        "layers": {g: g for g in sorted(set(mapping.values()))},
        "mapping": mapping,
    }


def change(listing_path, groups, count, percent):
    rows = list(listing(listing_path))
    uses = collections.Counter(checksum for _, _, checksum, _ in rows)
    wanted = len(rows) * percent / 100
    members = {}
    for kind, size, checksum, path in rows:
        # The other files of a shared object would carry it into another layer.
        if kind == "-" and size and uses[checksum] == 1:
            members.setdefault(groups[path], []).append(path)
    # Groups with many files: so few can hold that many.
    chosen = sorted(members, key=lambda g: (-len(members[g]), g))[:count]
    for g in chosen:
        paths = members[g]
        n = min(len(paths), round(wanted / count))
        yield from (paths[i * len(paths) // n] for i in range(n))


def deal(listing_path, groups):
    return {path: f"group{i % groups:02}" for i, (_, _, _, path) in enumerate(listing(listing_path))}


def sample(listing_path, count):
    paths = [
        path
        for kind, size, _, path in listing(listing_path)
        if kind == "-" and 0 < size < SMALL and not path.startswith(MODULES)
    ]
    return paths[:: max(1, len(paths) // count)]


def main():
    verb, listing_path, *rest = sys.argv[1:]
    if verb == "plan":
        json.dump(plan(listing_path, rest[0], int(rest[1])), sys.stdout)
    elif verb == "deal":
        json.dump(deal(listing_path, int(rest[0])), sys.stdout)
    elif verb == "sample":
        print("\n".join(sample(listing_path, int(rest[0]))))
    elif verb in ("meta", "change"):
        with open(rest[0], encoding="utf-8") as f:
            groups = json.load(f)
        if verb == "meta":
            json.dump(meta(listing_path, groups), sys.stdout)
        else:
            print("\n".join(change(listing_path, groups, int(rest[1]), float(rest[2]))))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
