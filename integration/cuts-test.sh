#!/bin/bash
# cuts-test.sh [FAILPOINT...]: whatever is cut off while images are bound, no deployment misses one. Part of make vm-test.
# At each point of binding, staging and collecting an update is killed, and nothing more reaches the disk. Then every image of every
# deployment can be used without a registry, and so can an image of the administrator that shares layers with them; and a second
# attempt ends as it should.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root vm-test
for part in registry tree loopfs check; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

D=$WORK/cuts
DISK=$D/disk
profile=${PROFILE:-dev}

os_image() { # VERSION
  local t=$D/tree-$1 k=usr/lib/modules/6.1.0
  rm -rf "$t"
  mkdir -p "$t/$k" "$t"/usr/{bin,lib64,sbin} "$t/etc"
  for l in bin lib lib64 sbin; do ln -s "usr/$l" "$t/$l"; done
  printf 'NAME=Test\nID=test\nVERSION_ID=%s\n' "$1" >"$t/usr/lib/os-release"
  echo kernel >"$t/$k/vmlinuz"
  echo initramfs >"$t/$k/initramfs.img"
  pack "$t" "$D/os-$1.tar"
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" "os-$1" --label "org.opencontainers.image.version=$1" "$D/os-$1.tar" >/dev/null
}

app() { # NAME: says its name; all share a layer
  mkdir -p "$D/app-$1"
  echo "$1" >"$D/app-$1/greeting"
  pack "$D/app-$1" "$D/app-$1.tar"
  python3 "$REPO_DIR/integration/lib/oci.py" "$D/layout" "$1" "$D/shared.tar" "$D/app-$1.tar" >/dev/null
}

bind() { printf 'image = "%s/%s:1"\ntls-verify = false\n' "$REGISTRY" "$1" >"$DISK/config/etc/osctl/bound-images.d/$1.toml"; }
osctl() { "$OSCTL" --direct --sysroot "$DISK/root" --config-root "$DISK/config" "$@"; }

# store VIEW PODMAN ARGS...: podman of the administrator on a host that shows this view.
store() {
  local view=$1
  shift
  podman --root "$DISK/own" --runroot "$D/run" --storage-driver overlay --events-backend none --storage-opt "additionalimagestore=$view" "$@"
}

# says VIEW IMAGE TEXT: what a container of it finds, which nobody has to start for that.
says() {
  local id said
  id=$(store "$1" create --pull=never --network=none "$2" /none)
  said=$(cat "$(store "$1" mount "$id")/greeting")
  store "$1" umount "$id" >/dev/null
  store "$1" rm "$id" >/dev/null
  echo "$2 of $1 says $said, $3 is expected"
  [ "$said" = "$3" ]
}

# Each deployment says in its origin which set it was staged with; version 1 was with the old app, version 2 with the new one and another.
all_are_there() {
  local origin version view
  for origin in "$DISK"/root/ostree/deploy/*/deploy/*.origin; do
    version=$(sed -n 's/^VERSION_ID=//p' "${origin%.origin}/usr/lib/os-release")
    view=$DISK/root/ostree/osctl/views/$(sed -n 's/^bound-set=//p' "$origin")
    case $version in
      1) says "$view" "$REGISTRY/app:1" old ;;
      2) says "$view" "$REGISTRY/app:1" new && says "$view" "$REGISTRY/more:1" more ;;
    esac || return 1
    says "$view" "$REGISTRY/own:1" own || return 1
  done
}
deployments() { find "$DISK/root/ostree/deploy" -maxdepth 3 -name '*.origin' | wc -l; }
a_second_attempt_succeeds() { osctl upgrade && [ "$(deployments)" = 2 ]; }

cut_at() { # POINT
  local rc=0
  cp --sparse=always "$D/template.img" "$D/disk.img"
  open_loopfs "$D/disk.img" "$DISK"
  # A group of its own: it is killed as one.
  OSCTL_FAILPOINTS="$1=kill" setsid "$OSCTL" --direct --sysroot "$DISK/root" --config-root "$DISK/config" upgrade >"$D/last.log" 2>&1 || rc=$?
  # Written by nobody who waits for it: otherwise nothing was cut, and this test says nothing.
  echo unsynced >"$DISK/canary"
  cut_power
  check "$1: it was passed, and what nobody synced is gone" test "$rc" = 137 -a ! -s "$DISK/canary"
  check "$1: every image of every deployment is there, and the administrator's" all_are_there
  check "$1: a second attempt succeeds" a_second_attempt_succeeds
  check "$1: then, too, every image is there" all_are_there
  umount_below "$DISK/own"
  close_loopfs
}

(cd "$REPO_DIR" && "${CARGO:-cargo}" build --locked --quiet --profile "$profile" --bins)
OSCTL=${CARGO_TARGET_DIR:-$REPO_DIR/target}/${profile/#dev/debug}/osctl
OSCTLD=${OSCTL}d
mkdir -p "$D/layout"
at_exit "rm -rf --one-file-system '$D'"
at_exit close_loopfs
at_exit "umount_below '$DISK/own'"
mkdir -p "$D/shared"
seq 200000 >"$D/shared/numbers"
pack "$D/shared" "$D/shared.tar"
for v in 1 2; do os_image "$v"; done
for name in old new more own; do app "$name"; done
start_registry "$D/registry"
export CONTAINERS_REGISTRIES_CONF=$D/registries.conf OSTREE_SYSROOT_DEBUG=mutable-deployments
write_registries_conf "$CONTAINERS_REGISTRIES_CONF"

say "A host with version 1, which binds an image"
push "$D/layout:os-1" os:1
push "$D/layout:old" app:1
push "$D/layout:more" more:1
push "$D/layout:own" own:1
new_loopfs "$D/disk.img" 1G "$DISK"
mkdir -p "$DISK/root" "$DISK/config/etc/osctl/bound-images.d" "$DISK/config/etc/containers"
echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$DISK/config/etc/containers/policy.json"
printf '[storage]\ndriver = "overlay"\ngraphroot = "/own"\n' >"$DISK/config/etc/containers/storage.conf"
ln -s ../own "$DISK/config/own"
ostree admin init-fs "$DISK/root"
bind app
osctl rebase "$REGISTRY/os:1" --stateroot test
store "$(echo "$DISK"/root/ostree/osctl/views/*)" pull --quiet --tls-verify=false "$REGISTRY/own:1" >/dev/null
umount_below "$DISK/own"
bind more
sync -f "$DISK"
close_loopfs
mv "$D/disk.img" "$D/template.img"
push "$D/layout:os-2" os:1
push "$D/layout:new" app:1

POINTS=("$@")
[ $# -gt 0 ] || mapfile -t POINTS < <("$OSCTLD" --list-failpoints | grep -E '^(bind|verify\.set|preflight|stage|cleanup)')
for point in "${POINTS[@]}"; do cut_at "$point"; done
checked
