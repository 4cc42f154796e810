#!/bin/bash
# Part of make vm-test: bound images on a host with the userland of Debian 13, whose podman (5) knows quadlet files.
# bound-test.sh [nspawn] [qemu]: where it boots, as for vm/run.sh; without arguments in a container.
#   version 2 binds three images: a .container, an .image of a registry with a password, and a TOML file
#   version 3 is version 2 after the tag of the first has moved; version 4 binds the last only, and comes from a bundle
OSCTL_WORK=${OSCTL_WORK:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.work}/trixie
export OSCTL_WORK SUITE=trixie
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root vm-test
for part in registry product image disk qemu judge; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

D=$WORK/bound
TIERS=("$@")
[ "${#TIERS[@]}" -gt 0 ] || TIERS=(nspawn)
# user:secret
CREDENTIALS=dXNlcjpzZWNyZXQ=
# In a container there are no cgroups to give away, and the network is the host's.
declare -A QUADLET=([qemu]='Network=none' [nspawn]=$'Network=host\nPodmanArgs=--cgroups=disabled')

# quadlet TIER NAME IMAGE: a unit that runs for ever.
quadlet() {
  printf '[Container]\nImage=%s\n%s\nExec=sleep infinity\n[Install]\nWantedBy=multi-user.target\n' "$3" "${QUADLET[$1]}" \
    >"$4/usr/share/containers/systemd/$2.container"
}

# build_versions TIER: WORK/oci/os with the tags v1 to v4.
build_versions() {
  local tier=$1 v t l=$WORK/layers o=$WORK/oci/os oci=$REPO_DIR/integration/lib/oci.py layers
  rm -rf "$D/versions"
  for v in 1 2 3 4; do
    t=$D/versions/$v
    mkdir -p "$t/usr/share"
    echo "$v" >"$t/usr/share/os-version"
  done
  t=$D/versions/1
  mkdir -p "$t/usr/lib/sysusers.d"
  # A user with room for names of its own.
  printf 'u rig-user 7000 "tries podman" /var/home/rig-user /bin/sh\n' >"$t/usr/lib/sysusers.d/rig.conf"
  mkdir -p "$t/usr/lib/tmpfiles.d"
  printf 'd /var/home/rig-user 0700 rig-user rig-user\n' >"$t/usr/lib/tmpfiles.d/rig.conf"
  t=$D/versions/2
  mkdir -p "$t/usr/share/containers/systemd" "$t/usr/lib/osctl/bound-images.d" "$t/usr/lib/bootc/bound-images.d"
  quadlet "$tier" app registry.test/app:1 "$t"
  quadlet "$tier" private private.test/private:1 "$t"
  printf '[Image]\nImage=private.test/private:1\nAuthFile=/etc/app-auth.json\n' >"$t/usr/share/containers/systemd/private.image"
  ln -s /usr/share/containers/systemd/app.container "$t/usr/lib/bootc/bound-images.d/app.container"
  ln -s ../../../share/containers/systemd/private.image "$t/usr/lib/osctl/bound-images.d/private.image"
  printf 'image = "registry.test/tool:1"\n' >"$t/usr/lib/osctl/bound-images.d/tool.toml"
  t=$D/versions/4
  mkdir -p "$t/usr/share/containers" "$t/usr/lib/osctl/bound-images.d" "$t/usr/lib/bootc"
  : >"$t/usr/share/containers/.wh.systemd"
  : >"$t/usr/lib/osctl/bound-images.d/.wh.private.image"
  : >"$t/usr/lib/bootc/.wh.bound-images.d"
  layers=("$l/base.tar" "$l/osctl.tar")
  mkdir -p "$o"
  for v in 1 2 3 4; do
    pack "$D/versions/$v" "$l/v$v.tar"
    layers+=("$l/v$v.tar")
    note "OS image v$v $(python3 "$oci" "$o" "v$v" --label "org.opencontainers.image.version=$v" "${layers[@]}")"
  done
}

# app TAG TEXT: an image of the layout WORK/oci/app that prints the text; its digest.
app() {
  mkdir -p "$D/app-$1/etc"
  echo "$2" >"$D/app-$1/etc/greeting"
  pack "$D/app-$1" "$WORK/layers/app-$1.tar"
  python3 "$REPO_DIR/integration/lib/oci.py" "$WORK/oci/app" "$1" --cmd /bin/cat --cmd /etc/greeting "$WORK/layers/app.tar" "$WORK/layers/app-$1.tar"
}

# The file of the registry with the topmost layer of an image of the layout.
top_layer() {
  local digest
  digest=$(skopeo inspect "oci:$WORK/oci/app:$1" --raw | python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"][-1]["digest"].split(":")[1])')
  echo "$OPEN/data/docker/registry/v2/blobs/sha256/${digest:0:2}/$digest/data"
}

# What the guest asks for, one after the other. FETCHED gets the lines of the registry's log between the first attempt and the move of
# the tag.
serve() {
  local output=$1 lost=$2 wish
  trap - EXIT
  for wish in "${@:3}"; do
    until grep -qs "^# please: $wish" "$output"; do sleep 0.3; done
    case $wish in
      back)
        mv "$lost.away" "$lost"
        wc -l <"$OPEN/access.log" >"$D/before-retry"
        ;;
      move)
        sed -n "$(($(cat "$D/before-retry") + 1)),\$p" "$OPEN/access.log" >"$D/retry.log"
        push "$WORK/oci/app:two" app:1
        ;;
    esac
    push "$WORK/oci/app:one" "signal:$wish"
  done
}

run_tier() {
  local tier=$1 address=$2 d=$D/$1 lost
  build_versions "$tier"
  OPEN=$D/open
  remove_tree "$d/sysroot"
  rm -rf "$OPEN" "$D/closed" "$d"
  mkdir -p "$d/config/etc/osctl"
  mkdir -p "$D/closed"
  # htpasswd(1) of user:secret
  # shellcheck disable=SC2016  # no expansion wanted
  echo 'user:$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW' >"$D/closed/htpasswd"
  HTPASSWD_FILE=$D/closed/htpasswd start_registry "$D/closed"
  PRIVATE_REGISTRY=$REGISTRY
  skopeo copy --quiet --insecure-policy --dest-tls-verify=false --dest-creds user:secret "oci:$WORK/oci/app:private" "docker://$REGISTRY/private:1"
  start_registry "$OPEN"
  write_registries_conf "$d/registries.conf"
  for v in 1 2 3 4; do push "$WORK/oci/os:v$v" "os:v$v"; done
  push "$WORK/oci/app:one" app:1
  push "$WORK/oci/app:tool" tool:1
  lost=$(top_layer tool)
  mv "$lost" "$lost.away"
  rm -rf "$d/payload" "$d/out"
  mkdir -p "$d/payload" "$d/out"
  cp "$REPO_DIR/integration/vm/bound.sh" "$d/payload/run.sh"
  cp "$REPO_DIR/integration/vm/scenario.sh" "$d/payload/"
  cat >"$d/payload/env" <<ENV
TIER=$tier REGISTRY=$address:${REGISTRY#*:} PRIVATE_REGISTRY=$address:${PRIVATE_REGISTRY#*:} CREDENTIALS=$CREDENTIALS
APP_ONE=$APP_ONE APP_TWO=$APP_TWO PRIVATE=$PRIVATE TOOL=$TOOL
ENV
  export CONTAINERS_REGISTRIES_CONF=$d/registries.conf
  "boot_in_$tier" "$d" "$lost"
  judge "$tier" "$d/out/output"
  say "What the retry fetched of images that were there already"
  if grep -E 'GET /v2/(app|os)/blobs/' "$D/retry.log"; then
    echo "not ok - the retry fetches only the rest"
    FAILED=$((FAILED + 1))
  else
    echo "ok - the retry fetches only the rest"
    PASSED=$((PASSED + 1))
  fi
}

boot_in_nspawn() {
  local d=$1
  new_sysroot "$d/sysroot"
  first_deployment "$d/sysroot" "$d/config" "$REGISTRY/os:v1"
  serve "$d/out/output" "$2" back move &
  at_exit "stop_pid $!"
  "$REPO_DIR/integration/lib/nspawn.sh" "$d/sysroot" "$d/payload" "$d/out" || note "(boot failed)"
}

boot_in_qemu() {
  local d=$1 deployment
  make_disk "$d/disk.img" "$d/mnt"
  first_deployment "$d/mnt" "$d/config" "$REGISTRY/os:v1" --karg=console=ttyS0
  deployment=$(default_deployment "$d/mnt")
  echo 'LABEL=boot /boot ext4 defaults 0 0' >>"$deployment/etc/fstab"
  close_disk "$d/mnt"
  serve "$d/out/output" "$2" back move &
  at_exit "stop_pid $!"
  (trap - EXIT; boot_qemu "$d/disk.img" "$d/payload" "$d/out" "${VM_TIMEOUT:-1800}") || note "(boot failed)"
}

mkdir -p "$D" "$WORK/layers" "$WORK/oci/app"
say "Building the OS images of Debian 13, and the images of apps"
build_rootfs
build_base_layer
build_osctl_layer
build_app_image
APP_ONE=$(app one 'app one')
APP_TWO=$(app two 'app two')
PRIVATE=$(app private private)
TOOL=$(app tool tool)
for tier in "${TIERS[@]}"; do
  case $tier in
    nspawn) run_tier nspawn 127.0.0.1 ;;
    qemu) run_tier qemu 10.0.2.2 ;;
    *) die "unknown tier $tier: nspawn or qemu" ;;
  esac
done

echo
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
