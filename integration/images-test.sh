#!/bin/bash
# Part of make test: the tree that osctl deploys is the one that podman mounts, for three Debian images:
#   1. the OS image of the demo    2. an image that podman built on top of it    3. another Debian release, in one layer
# osctl pulls each from a registry into a fresh sysroot, podman pulls the same digest into a store of its own, and
# lib/tree_equal.py compares every path after the mapping of docs/plain-images.md.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root test
for part in registry product image foreign check; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

IMAGES=$WORK/images
SYSROOT=$IMAGES/sysroot
STORE=$IMAGES/store
EQUAL=$REPO_DIR/integration/lib/tree_equal.py

fsck_is_clean() { ostree fsck --quiet --repo="$SYSROOT/ostree/repo" >/dev/null; }
status_lists_it() { ostree admin status --sysroot="$SYSROOT" | grep -F " $STATEROOT $(basename "$DEPLOYMENT")" >/dev/null; }

# What the deployment's tmpfiles.d lines make of an empty /var.
make_state() {
  local lines=$DEPLOYMENT/usr/lib/tmpfiles.d/osctl-var.conf
  rm -rf "$IMAGES/state"
  mkdir "$IMAGES/state"
  if [ -e "$lines" ]; then systemd-tmpfiles --create --root="$IMAGES/state" - <"$lines"; fi
}

# compare NUMBER NAME LAYOUT:TAG [--drop-var]: leaves the image mounted at MOUNT and deployed at DEPLOYMENT.
compare() {
  local name=image$1 digest id
  say "Image $1: $2"
  push "$3" "$name:1"
  digest=$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$REGISTRY/$name:1")
  new_sysroot "$SYSROOT" >/dev/null
  first_deployment "$SYSROOT" "$IMAGES/config" "$REGISTRY/$name:1" --require-digest "$digest" --quiet "${@:4}"
  DEPLOYMENT=$(default_deployment "$SYSROOT")
  make_state
  id=$(store_podman "$STORE" pull --quiet "$REGISTRY/$name@$digest")
  PULLED+=("$id")
  MOUNT=$(store_podman "$STORE" image mount "$id")
  verdict "image $1" python3 "$EQUAL" "${@:4}" "$MOUNT" "$DEPLOYMENT" "$IMAGES/state"
  verdict "image $1: ostree fsck finds nothing" fsck_is_clean
  verdict "image $1: ostree admin status lists the deployment" status_lists_it
}

# One mode in the deployment of the last image; the file in the repository stays as it is.
altered_mode_is_seen() {
  local file=$DEPLOYMENT/usr/bin/dpkg out
  cp -a "$file" "$file.new"
  chmod 700 "$file.new"
  mv "$file.new" "$file"
  if out=$(python3 "$EQUAL" "$@" "$MOUNT" "$DEPLOYMENT" "$IMAGES/state"); then return 1; fi
  echo "$out"
  [ "$(wc -l <<<"$out")" = 1 ] && [[ $out = "/usr/bin/dpkg: podman's is file 0755 "* ]]
}

# The store is kept for the next run if this one came to its end, without images that are no longer tested.
close_store() {
  local id
  store_podman "$STORE" image umount --all >/dev/null
  for id in $(store_podman "$STORE" images --all --quiet --no-trunc | sort -u); do
    case " ${PULLED[*]} " in
      *" ${id#sha256:} "*) ;;
      *) store_podman "$STORE" rmi --force "$id" >/dev/null ;;
    esac
  done
  touch "$IMAGES/store.complete"
}

# shellcheck source=/dev/null
if [ "$(. /etc/os-release && echo "${ID:-}")" != debian ]; then
  note "skipped: integration/images-test.sh makes its images of the packages of Debian, and this is not Debian"
  exit 0
fi
say "Building three images"
mkdir -p "$IMAGES/config/etc/osctl" "$FOREIGN_TMP"
at_exit "umount_below '$IMAGES'; remove_tree '$SYSROOT'; rm -rf --one-file-system '$STORE.run' '$FOREIGN_TMP' '$IMAGES'/{state,registry/data}"
build_layers
build_os_images
start_registry "$IMAGES/registry"
write_registries_conf "$IMAGES/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$IMAGES/registries.conf
push "$WORK/oci/os:v2" os:v2
build_derived_image
build_other_image

say "Comparing what osctl deploys with what podman mounts"
[ -e "$IMAGES/store.complete" ] || remove_store "$STORE"
rm -f "$IMAGES/store.complete"
PULLED=()
verdict "self-check" python3 "$EQUAL" --self-check "$IMAGES/self-check"
compare 1 "the OS image of the demo" "$WORK/oci/os:v2"
compare 2 "podman built it on top of the first" "$WORK/oci/derived:1"
compare 3 "another Debian release, in one layer" "$WORK/oci/other:1" --drop-var
verdict "a mode that is altered in the deployment is seen" altered_mode_is_seen --drop-var
close_store
checked
