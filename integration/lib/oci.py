#!/usr/bin/env python3
"""Write an OCI image layout from layer tars, in constant memory and with the same digests every time.

usage: oci.py LAYOUT TAG [--base TAG] [--label K=V]... [--cmd ARG]... LAYER.tar...

Images of one LAYOUT share blobs, so a second tag costs only its own layers. No ostree data is
added: these are the plain images that `podman build` would make. --base is its FROM: an image of
this LAYOUT. What a tar compressed to is remembered beside it (LAYER.tar.oci), so an unchanged
layer is not compressed again.
"""
import argparse
import gzip
import hashlib
import json
import os
import platform
import sys
import tempfile

CHUNK = 1 << 20
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
# A fixed date: the same input gives the same image digest on every machine.
CREATED = "2024-01-01T00:00:00Z"


class Hashing:
    """A writer that counts and hashes what passes through."""

    def __init__(self, out):
        self.out, self.hash, self.size = out, hashlib.sha256(), 0

    def write(self, data):
        self.hash.update(data)
        self.size += len(data)
        return self.out.write(data)

    def flush(self):
        self.out.flush()


def put_json(blobs, value):
    data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    with open(os.path.join(blobs, digest), "wb") as f:
        f.write(data)
    return {"digest": "sha256:" + digest, "size": len(data)}


def put_layer(blobs, tar):
    """Compress one tar into the layout; returns (descriptor, diff_id)."""
    memo, st = tar + ".oci", os.stat(tar)
    key = [st.st_size, st.st_mtime_ns]
    try:
        with open(memo, encoding="utf-8") as f:
            known = json.load(f)
        blob = os.path.join(blobs, known["layer"]["digest"].split(":")[1])
        if known["key"] == key and os.path.getsize(blob) == known["layer"]["size"]:
            return known["layer"], known["diff_id"]
    except (OSError, ValueError, KeyError):
        pass
    diff = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=blobs, delete=False) as tmp:
        out = Hashing(tmp)
        with open(tar, "rb") as src, gzip.GzipFile("", "wb", 1, out, mtime=0) as gz:
            while data := src.read(CHUNK):
                diff.update(data)
                gz.write(data)
    digest = out.hash.hexdigest()
    os.chmod(tmp.name, 0o644)
    os.rename(tmp.name, os.path.join(blobs, digest))
    layer = {
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": "sha256:" + digest,
        "size": out.size,
    }
    diff_id = "sha256:" + diff.hexdigest()
    with open(memo, "w", encoding="utf-8") as f:
        json.dump({"key": key, "layer": layer, "diff_id": diff_id}, f)
    return layer, diff_id


def get_json(blobs, descriptor):
    with open(os.path.join(blobs, descriptor["digest"].split(":")[1]), encoding="utf-8") as f:
        return json.load(f)


def put_on_top(layout, blobs, tag, manifest, config):
    """Makes an image one of its own layers only into one of a base's and its own."""
    with open(os.path.join(layout, "index.json"), encoding="utf-8") as f:
        entries = {m["annotations"]["org.opencontainers.image.ref.name"]: m for m in json.load(f)["manifests"]}
    base = get_json(blobs, entries[tag])
    base_config = get_json(blobs, base["config"])
    manifest["layers"][:0] = base["layers"]
    config["rootfs"]["diff_ids"][:0] = base_config["rootfs"]["diff_ids"]
    config["history"][:0] = base_config.get("history", [])
    config["config"] = base_config.get("config", {}) | config["config"]
    config["config"]["Labels"] = base_config.get("config", {}).get("Labels", {}) | config["config"]["Labels"]


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("layout")
    p.add_argument("tag")
    p.add_argument("layers", nargs="+")
    p.add_argument("--base")
    p.add_argument("--label", action="append", default=[])
    p.add_argument("--cmd", action="append", default=[])
    a = p.parse_intermixed_args()
    blobs = os.path.join(a.layout, "blobs", "sha256")
    os.makedirs(blobs, exist_ok=True)
    done = [put_layer(blobs, t) for t in a.layers]
    config = {
        "created": CREATED,
        "architecture": ARCH,
        "os": "linux",
        "config": {"Labels": dict(x.split("=", 1) for x in a.label)},
        "rootfs": {"type": "layers", "diff_ids": [d for _, d in done]},
        "history": [{"created": CREATED, "created_by": os.path.basename(t)} for t in a.layers],
    }
    if a.cmd:
        config["config"]["Cmd"] = a.cmd
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "layers": [l for l, _ in done],
    }
    if a.base:
        put_on_top(a.layout, blobs, a.base, manifest, config)
    manifest["config"] = {"mediaType": "application/vnd.oci.image.config.v1+json", **put_json(blobs, config)}
    entry = {
        "mediaType": manifest["mediaType"],
        "annotations": {"org.opencontainers.image.ref.name": a.tag},
        **put_json(blobs, manifest),
    }
    index_path = os.path.join(a.layout, "index.json")
    try:
        with open(index_path, encoding="utf-8") as f:
            index = json.load(f)
    except FileNotFoundError:
        index = {"schemaVersion": 2, "manifests": []}
    index["manifests"] = [
        m for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] != a.tag
    ] + [entry]
    with open(index_path + ".new", "w", encoding="utf-8") as f:
        json.dump(index, f)
    os.rename(index_path + ".new", index_path)
    with open(os.path.join(a.layout, "oci-layout"), "w", encoding="utf-8") as f:
        json.dump({"imageLayoutVersion": "1.0.0"}, f)
    print(entry["digest"])


if __name__ == "__main__":
    sys.exit(main())
