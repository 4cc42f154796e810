# shellcheck shell=bash
# Images that neither osctl nor our own layer scripts laid out. Source after common.sh, registry.sh and image.sh.
#   WORK/oci/derived:1  `podman build` on top of os:v2, by integration/images/Containerfile
#   WORK/oci/other:1    another Debian release in one layer, as mmdebstrap writes it
# Both are kept until what they are made of changes. A new build of osctl alone does not count as a change of os:v2.

# Where podman and mmdebstrap put what they need only once; the caller removes it at exit.
FOREIGN_TMP=$WORK/images/tmp

# store_podman STORE ARGS...: podman with a store of its own.
store_podman() {
  local store=$1
  shift
  TMPDIR=$FOREIGN_TMP podman --root "$store" --runroot "$store.run" --storage-driver overlay --events-backend none "$@"
}

remove_store() {
  umount_below "$1"
  rm -rf --one-file-system "$1" "$1.run"
}

# kept_layout LAYOUT STAMP_FILE STAMP: the layout is complete, and made of what it would be made of now.
kept_layout() { [ -s "$1/index.json" ] && [ "$(cat "$2" 2>/dev/null)" = "$3" ]; }

# The Debian release that the OS images are made of.
image_codename() { cut -d' ' -f1 "$WORK/rootfs/stamp"; }

layer_digests() { skopeo inspect --raw "oci:$1" | jq -r '.layers[].digest'; }

# Needs os:v2 in the registry, and CONTAINERS_REGISTRIES_CONF.
build_derived_image() {
  local layout=$WORK/oci/derived dir=$WORK/images containerfile=$REPO_DIR/integration/images/Containerfile
  local stamp base digest whiteouts
  stamp="$(cat "$WORK/layers/base.stamp") $(sha256sum "$containerfile")"
  if kept_layout "$layout" "$dir/derived.stamp" "$stamp"; then
    note "derived image: kept from an earlier run"
    return 0
  fi
  say "Building an image on top of it with podman"
  rm -rf "$layout" "$dir/derived.stamp" "$dir/context"
  mkdir -p "$dir/context"
  apt_sources "$(image_codename)" >"$dir/context/sources.list"
  remove_store "$dir/build"
  at_exit "remove_store '$dir/build'"
  store_podman "$dir/build" build --quiet --isolation=chroot --network=host --build-arg "BASE=$REGISTRY/os:v2" --tag derived:1 \
    --file "$containerfile" "$dir/context" >"$dir/build.log" 2>&1 || {
    tail -20 "$dir/build.log" >&2
    die "podman build failed; its log is $dir/build.log"
  }
  store_podman "$dir/build" push --quiet derived:1 "oci:$layout:1"
  remove_store "$dir/build"

  # The point of this image: it is podman that wrote down what its layers remove.
  base=$(layer_digests "$WORK/oci/os:v2" | wc -l)
  whiteouts=$(layer_digests "$layout:1" | tail -n "+$((base + 1))" | while read -r digest; do
    tar -tzf "$layout/blobs/sha256/${digest#sha256:}" | grep '/\.wh\.[^/]*$' || true
  done)
  [ -n "$whiteouts" ] || die "the layers that podman wrote remove nothing, so they test little; podman's log is $dir/build.log"
  note "its layers have $(grep -vc '/\.wh\.\.wh\.' <<<"$whiteouts" || true) whiteouts and" \
    "$(grep -c '/\.wh\.\.wh\.\.opq$' <<<"$whiteouts" || true) opaque directories"
  printf '%s\n' "$stamp" >"$dir/derived.stamp"
}

build_other_image() {
  local layout=$WORK/oci/other dir=$WORK/images codename release=trixie packages stamp
  codename=$(image_codename)
  [ "$codename" != trixie ] || release=bookworm
  packages=linux-image-cloud-$(dpkg --print-architecture)
  stamp="$release $packages"
  if kept_layout "$layout" "$dir/other.stamp" "$stamp"; then
    note "Debian $release image: kept from an earlier run"
    return 0
  fi
  say "Building a Debian $release root file system (about a minute, once)"
  rm -rf "$layout" "$dir/other.stamp"
  apt_keys "$dir/keys"
  # The kernel goes where a plain image has it, and the links to it have no place at the top. The rest is as Debian made it.
  # shellcheck disable=SC2016  # expanded by the hook's shell
  apt_sources "$codename" | sed -n "s/^\(deb [^ ]*\) $codename /\1 $release /p" |
    TMPDIR=$FOREIGN_TMP mmdebstrap --quiet --variant=minbase --include="$packages" --keyring="$dir/keys" --format=tar \
      --customize-hook='set -eu; cd "$1"; k=$(cd usr/lib/modules && echo *)
        mv "boot/vmlinuz-$k" "usr/lib/modules/$k/vmlinuz"; mv "boot/initrd.img-$k" "usr/lib/modules/$k/initramfs.img"
        rm -f vmlinuz* initrd.img*' "$release" "$dir/other.tar" -
  python3 "$REPO_DIR/integration/lib/oci.py" "$layout" 1 "$dir/other.tar" >/dev/null
  rm "$dir/other.tar" "$dir/other.tar.oci"
  printf '%s\n' "$stamp" >"$dir/other.stamp"
}
