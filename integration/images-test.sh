#!/bin/bash
# Part of make test: for three Debian images, the tree that osctl deploys is the one that podman mounts.
#   1. the OS image of the demo    2. an image that podman built on top of it    3. another Debian release in one layer
# Each goes through a real registry: osctl pulls it into a fresh sysroot, podman into a store of its own, and
# lib/tree_equal.py compares every path after the mapping of docs/plain-images.md.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root test
for part in registry product image foreign; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

IMAGES=$WORK/images
SYSROOT=$IMAGES/sysroot
STORE=$IMAGES/store
EQUAL=$REPO_DIR/integration/lib/tree_equal.py
PASSED=0 FAILED=0

# verdict NAME COMMAND...: the command's output is what there is to say.
verdict() {
  local name=$1 out
  shift
  if out=$("$@" 2>&1); then
    PASSED=$((PASSED + 1))
    echo "ok - $name${out:+: $out}"
  else
    FAILED=$((FAILED + 1))
    echo "not ok - $name"
    printf '# %s\n' "${out//$'\n'/$'\n'# }"
  fi
}

fsck_is_clean() { ostree fsck --repo="$SYSROOT/ostree/repo" --quiet >/dev/null; }
one_deployment() { ostree admin status --sysroot="$SYSROOT" | sed 's/^[* ]*//' | grep -c "^$STATEROOT " | grep -qx 1; }

# The state that the deployment's own lines make on a first boot.
make_state() {
  local conf=$1/usr/lib/tmpfiles.d/osctl-var.conf
  rm -rf "$IMAGES/state"
  mkdir -p "$IMAGES/state"
  [ ! -e "$conf" ] || systemd-tmpfiles --create --root="$IMAGES/state" - <"$conf"
}

# compare NUMBER NAME LAYOUT:TAG [tree_equal.py OPTIONS...]
compare() {
  local number=$1 name=$2 digest id mount deployment drop_var=()
  say "Image $number: $name"
  case " ${*:4} " in *' --drop-var '*) drop_var=(--drop-var) ;; esac
  push "$3" "image$number:1"
  digest=$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$REGISTRY/image$number:1")
  new_sysroot "$SYSROOT" >/dev/null
  first_deployment "$SYSROOT" "$IMAGES/config" "$REGISTRY/image$number:1" --require-digest "$digest" --quiet "${drop_var[@]}"
  deployment=$(default_deployment "$SYSROOT")
  make_state "$deployment"
  id=$(store_podman "$STORE" pull --quiet "$REGISTRY/image$number@$digest")
  mount=$(store_podman "$STORE" image mount "$id")
  verdict "image $number" python3 "$EQUAL" "${@:4}" "$mount" "$deployment" "$IMAGES/state"
  store_podman "$STORE" image umount "$id" >/dev/null
  verdict "image $number: ostree fsck" fsck_is_clean
  verdict "image $number: ostree admin status has one deployment" one_deployment
}

if [ "$(. /etc/os-release && echo "${ID:-}")" != debian ]; then
  note "skipped: integration/images-test.sh makes its images from the repositories of Debian, and this is not Debian"
  exit 0
fi
say "Building three images"
mkdir -p "$IMAGES/config/etc/osctl"
at_exit "remove_tree '$SYSROOT'; remove_store '$STORE'; rm -rf '$IMAGES/state' '$IMAGES/registry/data'"
build_layers
build_os_images
start_registry "$IMAGES/registry"
write_registries_conf "$IMAGES/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$IMAGES/registries.conf
push "$WORK/oci/os:v2" os:v2
build_derived_image
build_other_image

say "The comparison itself"
verdict "self-check" python3 "$EQUAL" --self-check "$IMAGES/self-check"
compare 1 "the OS image of the demo" "$WORK/oci/os:v2"
compare 2 "derived from it by podman build" "$WORK/oci/derived:1"
compare 3 "another Debian release, one layer" "$WORK/oci/other:1" --drop-var

echo
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
