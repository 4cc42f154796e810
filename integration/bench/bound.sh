#!/bin/bash
# make bench-bound: five bound images against `podman pull` of one after the other, on the same disk, each with what it takes until
# everything is on the disk. docs/performance.md has results.
#   fresh     nothing is there; the five share a layer
#   changed   one of them has another layer on top
#   RUNS=5    of each, the two in turn
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
need_root bench-bound
for part in registry loopfs; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

RUNS=${RUNS:-5}
D=$WORK/bench-bound
DISK=$D/disk
RESULTS=$D/results.jsonl
APPS=5

# cost WHAT TOOL SCRIPT: appends what it cost to RESULTS
cost() {
  sync -f "$D"
  python3 "$REPO_DIR/integration/bench/measure.py" "$RESULTS" "$1" "$2" --disk "$DISK" --log "$D/last.log" -- bash -euc "$3" >/dev/null ||
    { tail -20 "$D/last.log" >&2; die "$1: $2 failed; its log is $D/last.log"; }
}

# layer NAME MEGABYTES: files that compress about as well as programs do, other ones for each name.
layer() {
  python3 - "$D/$1.tar" "$1" "$2" <<'PYTHON'
import io, random, sys, tarfile
name, rng = sys.argv[2], random.Random(sys.argv[2])
words = [rng.randbytes(rng.randint(3, 12)) for _ in range(4096)]
with tarfile.open(sys.argv[1], "w") as tar:
    for i in range(int(sys.argv[3]) * 8):
        data = b"".join(rng.choices(words, k=17500))[:131072]
        info = tarfile.TarInfo(f"srv/{name}/{i}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
PYTHON
}

# images TAG: the apps, the first of which has a layer that is named for the tag.
images() {
  local i top
  for ((i = 1; i <= APPS; i++)); do
    top=app$i
    [ "$i" != 1 ] || top=app1-$1
    [ -e "$D/$top.tar" ] || layer "$top" 40
    python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" "app$i" "$D/shared.tar" "$D/$top.tar" >/dev/null
    push "$D/layout:app$i" "app$i:1"
  done
}

host() {
  local t=$D/tree i
  rm -rf "$t"
  mkdir -p "$t"/usr/{bin,lib/modules/6.1.0,lib64,sbin} "$t/etc"
  for i in bin lib lib64 sbin; do ln -s "usr/$i" "$t/$i"; done
  printf 'NAME=Test\nID=test\n' >"$t/usr/lib/os-release"
  echo kernel >"$t/usr/lib/modules/6.1.0/vmlinuz"
  echo initramfs >"$t/usr/lib/modules/6.1.0/initramfs.img"
  tar -C "$t" --sort=name --mtime=@1704067200 --numeric-owner --owner=0 --group=0 -cf "$D/os.tar" .
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" os "$D/os.tar" >/dev/null
}

# empty_host: an OS without images, on a file system of its own; H is where it is.
empty_host() {
  local i
  new_loopfs "$D/disk.img" 8G "$DISK"
  H=$DISK/host
  mkdir -p "$H/root" "$H/config/etc/osctl/bound-images.d" "$H/config/etc/containers"
  echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$H/config/etc/containers/policy.json"
  ostree admin init-fs --modern "$H/root" 2>/dev/null || ostree admin init-fs "$H/root"
  ours rebase "oci:$D/layout:os"
  for ((i = 1; i <= APPS; i++)); do
    printf 'image = "%s/app%s:1"\ntls-verify = false\n' "$REGISTRY" "$i" >"$H/config/etc/osctl/bound-images.d/app$i.toml"
  done
}

OURS=('--direct' '--sysroot' "$DISK/host/root" '--config-root' "$DISK/host/config")
ours() { "$OSCTL" "${OURS[@]}" "$@" >"$D/last.log" 2>&1 || { cat "$D/last.log" >&2; die "osctl $1 failed"; }; }
PODMAN="podman --root $DISK/podman --runroot $D/podman-run --storage-driver overlay"

profile=${PROFILE:-release}
(cd "$REPO_DIR" && "${CARGO:-cargo}" build --locked --quiet --profile "$profile" --bins)
OSCTL=${CARGO_TARGET_DIR:-$REPO_DIR/target}/${profile/#dev/debug}/osctl
mkdir -p "$D"
at_exit "rm -f '$D/disk.img'"
at_exit close_loopfs
rm -rf "$RESULTS" "$D/layout"
mkdir -p "$D/layout"
start_registry "$D/registry"
say "Making $APPS images that share a layer (a minute, once)"
[ -e "$D/shared.tar" ] || layer shared 80
host
for ((run = 0; run <= RUNS; run++)); do
  what=fresh next=changed
  # The first one reads what the others have in the page cache.
  [ "$run" != 0 ] || what=warm next=warm
  rm -f "$D"/app1-*.tar
  images old
  empty_host
  cost "$what" ours "'$OSCTL' ${OURS[*]@Q} upgrade"
  cost "$what" podman "for i in $(seq -s ' ' $APPS); do $PODMAN pull -q --tls-verify=false $REGISTRY/app\$i:1; done"
  images "new$run"
  cost "$next" ours "'$OSCTL' ${OURS[*]@Q} upgrade"
  cost "$next" podman "for i in $(seq -s ' ' $APPS); do $PODMAN pull -q --tls-verify=false $REGISTRY/app\$i:1; done"
  umount_below "$DISK/podman"
  close_loopfs
done
python3 - "$RESULTS" <<'PYTHON'
import json, statistics, sys
runs = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
for what in ("fresh", "changed"):
    of = {t: [r for r in runs if r["scenario"] == what and r["tool"] == t] for t in ("ours", "podman")}
    median = {t: {k: statistics.median(r[k] for r in rs) for k in ("wall", "cpu")} for t, rs in of.items()}
    o, p = median["ours"], median["podman"]
    print(f"{what}: ours wall {o['wall']:.2f} s, CPU {o['cpu']:.2f} s; podman pull wall {p['wall']:.2f} s, CPU {p['cpu']:.2f} s; "
          f"ratio of wall {o['wall'] / p['wall']:.2f}, of CPU {o['cpu'] / p['cpu']:.2f}")
PYTHON
