# shellcheck shell=bash
# Images that neither osctl nor our own oci.py laid out. Source after common.sh, registry.sh and image.sh.
#   WORK/oci/derived:1  `podman build` on top of os:v2 (integration/images/Containerfile)
#   WORK/oci/other:1    another Debian release in one layer, as mmdebstrap writes it
# Both are kept until what they are made of changes. A new build of osctl alone does not change the derived image.

# store_podman STORE ARGS...: podman with a store of its own below WORK.
store_podman() {
  local store=$1
  shift
  TMPDIR=$WORK/images podman --root "$store" --runroot "$store.run" --storage-driver overlay --events-backend none "$@"
}

# remove_store STORE
remove_store() {
  umount_below "$1"
  rm -rf --one-file-system "$1" "$1.run"
}

# kept STAMP_FILE STAMP LAYOUT: true if this layout is complete and was made of the same things.
kept() { [ -s "$3/index.json" ] && [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

# Needs os:v2 in the registry, and CONTAINERS_REGISTRIES_CONF.
build_derived_image() {
  local layout=$WORK/oci/derived store=$WORK/images/build context=$WORK/images/context stamp blob names whiteouts=0 opaque=0
  stamp="$(cat "$WORK/layers/base.stamp") $(sha256sum "$REPO_DIR/integration/images/Containerfile" "$REPO_DIR/integration/lib/foreign.sh" | sha256sum)"
  if kept "$WORK/images/derived.stamp" "$stamp" "$layout"; then
    note "derived image: kept from an earlier run"
    return 0
  fi
  say "Building an image on top of it with podman"
  rm -rf "$layout" "$context" "$WORK/images/derived.stamp"
  mkdir -p "$context"
  apt_sources "$(image_codename)" >"$context/sources.list"
  at_exit "remove_store '$store'"
  store_podman "$store" build --quiet --isolation=chroot --network=host --build-arg "BASE=$REGISTRY/os:v2" \
    --tag derived:1 --file "$REPO_DIR/integration/images/Containerfile" "$context" >"$WORK/images/build.log" 2>&1 ||
    { tail -20 "$WORK/images/build.log" >&2; die "podman build failed; its log is $WORK/images/build.log"; }
  store_podman "$store" push --quiet derived:1 "oci:$layout:1"
  remove_store "$store"
  # The point of this image: podman wrote what the layers say about removed and replaced things.
  for blob in $(jq -r '.manifests[0].digest | ltrimstr("sha256:")' "$layout/index.json" | xargs -I{} jq -r '.layers[4:][].digest | ltrimstr("sha256:")' "$layout/blobs/sha256/{}"); do
    names=$(tar -tzf "$layout/blobs/sha256/$blob")
    whiteouts=$((whiteouts + $(grep -c '/\.wh\.[^/]*$' <<<"$names" || true)))
    opaque=$((opaque + $(grep -c '/\.wh\.\.wh\.\.opq$' <<<"$names" || true)))
  done
  note "its layers have $((whiteouts - opaque)) whiteouts and $opaque opaque directories"
  [ "$whiteouts" -gt 0 ] || die "podman wrote no whiteouts, so this image tests nothing"
  printf '%s\n' "$stamp" >"$WORK/images/derived.stamp"
}

# The release that the OS images are made of.
image_codename() { cut -d' ' -f1 "$WORK/rootfs/stamp"; }

build_other_image() {
  local layout=$WORK/oci/other tar=$WORK/images/other.tar release=trixie stamp
  [ "$(image_codename)" != trixie ] || release=bookworm
  stamp="$release $(dpkg --print-architecture) $(sha256sum "$REPO_DIR/integration/lib/foreign.sh")"
  if kept "$WORK/images/other.stamp" "$stamp" "$layout"; then
    note "Debian $release image: kept from an earlier run"
    return 0
  fi
  say "Building a Debian $release root file system (about a minute, once)"
  rm -rf "$layout" "$WORK/images/other.stamp"
  apt_keys "$WORK/images/keys"
  # The kernel goes where a plain image has it, and the links to it at the top have no place; the rest is as Debian made it.
  # shellcheck disable=SC2016  # expanded by the hook's shell
  apt_sources "$(image_codename)" | sed -n "s/^\(deb [^ ]*\) $(image_codename) /\1 $release /p" |
    TMPDIR=$WORK/images mmdebstrap --quiet --variant=minbase --include="linux-image-cloud-$(dpkg --print-architecture)" \
      --keyring="$WORK/images/keys" --format=tar --customize-hook='set -eu; cd "$1"; k=$(cd usr/lib/modules && echo *)
        mv "boot/vmlinuz-$k" "usr/lib/modules/$k/vmlinuz"; mv "boot/initrd.img-$k" "usr/lib/modules/$k/initramfs.img"
        rm -f vmlinuz* initrd.img*' "$release" "$tar" -
  python3 "$REPO_DIR/integration/lib/oci.py" "$layout" 1 "$tar" >/dev/null
  rm "$tar" "$tar.oci"
  printf '%s\n' "$stamp" >"$WORK/images/other.stamp"
}
