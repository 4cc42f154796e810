#!/bin/bash
# durability-test.sh [LAYOUT:TAG...]: what a pull has promised survives a power cut right after its exit.
# Each image in turn is pulled into one repository on a file system of its own; then nothing more reaches the disk, and
# the machine comes back. Part of make test with two small images; make bench's large ones may be given instead.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root test
for part in registry pullers tree loopfs check; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

D=$WORK/durability
DISK=$D/disk
R=$DISK/repo

# Some thousand small files, one large, and a second version with some of them changed.
small_images() {
  local t=$D/tree k=usr/lib/modules/6.1.0
  rm -rf "$t" "$D/layout"
  mkdir -p "$t/1/$k" "$t/1/etc" "$t/1/usr/share/many" "$t/2/usr/share/many" "$D/layout"
  for l in bin sbin lib; do
    mkdir -p "$t/1/usr/$l"
    ln -s "usr/$l" "$t/1/$l"
  done
  echo kernel >"$t/1/$k/vmlinuz"
  echo initramfs >"$t/1/$k/initramfs.img"
  echo 'ID=small' >"$t/1/etc/os-release"
  (cd "$t/1/usr/share/many" && seq 200000 | split -a 4 -l 100 -)
  (cd "$t/2/usr/share/many" && seq 200001 250000 | split -a 4 -l 100 -)
  # Does not compress, and is larger than what an importer keeps in memory.
  python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(1).randbytes(20000000))' >"$t/1/usr/share/large"
  pack "$t/1" "$D/1.tar"
  pack "$t/2" "$D/2.tar"
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" 1 "$D/1.tar" >/dev/null
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" 2 "$D/1.tar" "$D/2.tar" >/dev/null
  set -- "$D/layout:1" "$D/layout:2"
  IMAGES=("$@")
}

pull() { pull_with ours "$R" "$1" env; }
image_refs() { ostree --repo="$R" refs --list ostree/container/image | wc -l; }
fsck() { ostree fsck --repo="$R"; }
fetched() { grep -c 'GET /v2/.*/blobs/' "$D/registry/access.log" || true; }

# nothing_to_do IMAGE COMMIT: a pull finds the commit, and transfers the configuration at most.
nothing_to_do() {
  local before
  before=$(fetched)
  [ "$(pull "$1")" = "$2" ] && [ "$(fetched)" -le $((before + 1)) ]
}

mkdir -p "$D"
at_exit "rm -rf --one-file-system '$D'"
at_exit close_loopfs
IMAGES=("$@")
SIZE=5G
if [ $# = 0 ]; then
  small_images
  SIZE=1G
fi
build_pullers "${PROFILE:-dev}"
start_registry "$D/registry"
export CONTAINERS_REGISTRIES_CONF=$D/registries.conf
write_registries_conf "$CONTAINERS_REGISTRIES_CONF"

say "A power cut right after the exit of a pull"
new_loopfs "$D/disk.img" "$SIZE" "$DISK"
ostree --repo="$R" init --mode=bare
sync -f "$DISK"
n=0
for image in "${IMAGES[@]}"; do
  n=$((n + 1))
  push "$image" "os:$n"
  commit=$(pull "os:$n") || die "image $n cannot be pulled"
  echo unsynced >"$DISK/canary-$n"
  cut_power
  # Otherwise nothing was cut, and this test says nothing.
  check "image $n: what nobody synced is gone" test ! -s "$DISK/canary-$n"
  check "image $n: ostree fsck finds nothing" fsck
  check "image $n: the references to $n images are there" test "$(image_refs)" = "$n"
  check "image $n: a second pull finds nothing to do" nothing_to_do "os:$n" "$commit"
done
checked
