#!/bin/bash
# make bench-derive: what does a derivation cost, against what nobody can do without? docs/performance.md has results.
#   files     a reconcile that changes one file, on a base of 30,000: against libostree deploying the same commit
#   package   a reconcile that adds one package of Debian: against apt installing it in a chroot of the same tree
#   RUNS=5    of each, the two in turn
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
need_root bench-derive
for part in rootfs debs loopfs; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

RUNS=${RUNS:-5}
D=$WORK/bench-derive
DISK=$D/disk
RESULTS=$D/results.jsonl
FILES=30000

# cost WHAT TOOL COMMAND...: appends what it cost to RESULTS
cost() {
  local what=$1 tool=$2
  shift 2
  sync -f "$D"
  python3 "$REPO_DIR/integration/bench/measure.py" "$RESULTS" "$what" "$tool" --disk "$DISK" --log "$D/last.log" -- "$@" >/dev/null ||
    { tail -20 "$D/last.log" >&2; die "$what: $tool failed; its log is $D/last.log"; }
}

# own COMMAND...: the CPU seconds of the process alone, without those that it starts, looked at every 5 ms
own() {
  python3 - "$@" <<'PYTHON'
import os, subprocess, sys, time
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
ticks = 0
while child.poll() is None:
    try:
        with open(f"/proc/{child.pid}/stat", encoding="ascii") as f:
            ticks = max(ticks, sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13])))
    except (FileNotFoundError, ProcessLookupError):
        break
    time.sleep(0.005)
print(ticks / os.sysconf("SC_CLK_TCK"))
sys.exit(child.wait())
PYTHON
}

# sysroot LAYOUT:TAG: a new one with this image, on a file system of its own; H is where it is.
sysroot() {
  new_loopfs "$D/disk.img" 6G "$DISK"
  H=$DISK/host
  mkdir -p "$H/root" "$H/config/etc/osctl/derive.d" "$H/config/etc/containers"
  echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$H/config/etc/containers/policy.json"
  ostree admin init-fs --modern "$H/root" 2>/dev/null || ostree admin init-fs "$H/root"
  "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" rebase "$1" >"$D/last.log" 2>&1 || { cat "$D/last.log" >&2; die "no base"; }
}

# finish TREE: what an image needs to be deployed
finish() {
  mkdir -p "$1/usr/lib/modules/6.1.0"
  echo kernel >"$1/usr/lib/modules/6.1.0/vmlinuz"
  echo initramfs >"$1/usr/lib/modules/6.1.0/initramfs.img"
  tar -C "$1" --sort=name --mtime=@1704067200 --numeric-owner --owner=0 --group=0 -cf "$D/$2.tar" .
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" "$2" "$D/$2.tar" >/dev/null
}

many_files() {
  local t=$D/tree
  rm -rf "$t"
  mkdir -p "$t"/usr/{bin,lib,lib64,sbin} "$t/etc"
  for name in bin lib lib64 sbin; do ln -s "usr/$name" "$t/$name"; done
  printf 'NAME=Test\nID=test\n' >"$t/usr/lib/os-release"
  python3 - "$t/usr/share" "$FILES" <<'PYTHON'
import os, sys
for i in range(int(sys.argv[2])):
    os.makedirs(f"{sys.argv[1]}/{i // 100}", exist_ok=True)
    with open(f"{sys.argv[1]}/{i // 100}/{i}", "w") as f:
        f.write(f"file {i}\n" * (i % 50 + 1))
PYTHON
  finish "$t" files
  rm -rf "$t"
}

bench_files() {
  local i deployment commit
  many_files
  sysroot "oci:$D/layout:files"
  mkdir "$H/floor"
  ostree admin init-fs --modern "$H/floor" 2>/dev/null || ostree admin init-fs "$H/floor"
  ostree admin --sysroot="$H/floor" stateroot-init floor 2>/dev/null || ostree admin --sysroot="$H/floor" os-init floor
  for ((i = 0; i <= RUNS; i++)); do
    printf 'files: [{path: /etc/x.conf, contents: {inline: "%s"}}]\n' "$i" >"$H/config/etc/osctl/derive.d/50-x.yaml"
    # The first one reads what the others have in the page cache.
    cost "$([ "$i" = 0 ] && echo warm || echo files)" ours "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" reconcile
    deployment=$(default_deployment "$H/root")
    commit=$(basename "${deployment%.*}")
    ostree --repo="$H/floor/ostree/repo" pull-local "$H/root/ostree/repo" "$commit" >"$D/last.log" 2>&1
    cost "$([ "$i" = 0 ] && echo warm || echo files)" floor ostree admin --sysroot="$H/floor" deploy --os=floor "$commit"
  done
  close_loopfs
}

bench_package() {
  local i t=$D/chroot
  bootstrap "$D" "${PACKAGE_BASE[@]}"
  rm -rf "$D/tree"
  mkdir "$D/tree"
  tar -xpf "$D/base.tar" -C "$D/tree" --exclude='./dev/*'
  (cd "$D" && apt-get download -qq tree)
  mkdir -p "$D/repo"
  mv "$D"/tree_*.deb "$D/repo/"
  packages_index "$D/repo"
  with_packages "$D/tree" "$D"/repo/*.deb
  chroot "$D/tree" dpkg --admindir=/usr/lib/sysimage/dpkg --purge tree >/dev/null
  for dir in home srv opt mnt; do rm -rf "${D:?}/tree/$dir" && ln -s "var/$dir" "$D/tree/$dir"; done
  rm -rf "$D/tree/root" && ln -s var/roothome "$D/tree/root"
  find "$D/tree/var" "$D/tree/run" "$D/tree/tmp" "$D/tree/boot" -mindepth 1 -delete
  finish "$D/tree" package
  sysroot "oci:$D/layout:package"
  mkdir -p "$H/config/etc/osctl/derive.d/packages"
  cp "$D"/repo/*.deb "$H/config/etc/osctl/derive.d/packages/tree.deb"
  for ((i = 0; i <= RUNS; i++)); do
    echo 'packages: [{local: packages/tree.deb}]' >"$H/config/etc/osctl/derive.d/50-tree.yaml"
    if [ "$i" = 0 ]; then
      note "of the package's reconcile, osctl itself (with solving, checking out, committing and deploying): CPU $(own "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" reconcile) s"
    else
      cost package ours "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" reconcile
    fi
    rm "$H/config/etc/osctl/derive.d/50-tree.yaml"
    "$OSCTL" --direct --sysroot "$H/root" --config-root "$H/config" reconcile >"$D/last.log" 2>&1
    # Neither the lock nor the tree is found again.
    ostree --repo="$H/root/ostree/repo" refs --delete osctl/layered
    ostree --repo="$H/root/ostree/repo" refs --delete osctl/derived
    rm -rf "$t"
    cp -a "$D/tree" "$t"
    mkdir -p "$t/var/lib" "$t/var/log/apt" "$t/var/cache/apt/archives/partial" "$t/var/lib/apt/lists/partial" "$t/tmp"
    ln -s ../../usr/lib/sysimage/dpkg "$t/var/lib/dpkg"
    cp "$D"/repo/*.deb "$t/tmp/tree.deb"
    cost "$([ "$i" = 0 ] && echo warm || echo package)" floor chroot "$t" apt-get -q -y install /tmp/tree.deb
    rm -rf "$t"
  done
  close_loopfs
}

profile=${PROFILE:-release}
(cd "$REPO_DIR" && "${CARGO:-cargo}" build --locked --quiet --profile "$profile" --bins)
OSCTL=${CARGO_TARGET_DIR:-$REPO_DIR/target}/${profile/#dev/debug}/osctl
mkdir -p "$D"
at_exit "rm -f '$D/disk.img'"
at_exit close_loopfs
rm -rf "$RESULTS" "$D/layout"
mkdir -p "$D/layout"
bench_files
bench_package
jq -rs '[.[] | select(.scenario != "warm")] | group_by(.scenario)[] | . as $all | ["ours", "floor"] | map(. as $tool |
  [$all[] | select(.tool == $tool)] | {tool: $tool, cpu: (map(.cpu) | sort | .[length / 2 | floor]), wall: (map(.wall) | sort | .[length / 2 | floor])})
  | "\($all[0].scenario): " + (map("\(.tool) CPU \(.cpu * 100 | round / 100) s, wall \(.wall * 100 | round / 100) s") | join("; "))
  + "; ratio of CPU \(.[0].cpu / .[1].cpu * 100 | round / 100)"' "$RESULTS"
