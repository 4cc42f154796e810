#!/bin/bash
# Builds the images of the demo and of the VM tests in the OCI layouts WORK/oci/os (tags v1, v2, v3) and WORK/oci/app (tag 1).
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$REPO_DIR/integration/lib/tree.sh"

build_os_images() {
  local l=$WORK/layers oci="$REPO_DIR/integration/lib/oci.py" o=$WORK/oci/os
  mkdir -p "$o"
  V1_DIGEST=$(python3 "$oci" "$o" v1 --label org.opencontainers.image.version=1 "$l/base.tar" "$l/osctl.tar" "$l/v1.tar")
  V2_DIGEST=$(python3 "$oci" "$o" v2 --label org.opencontainers.image.version=2 "$l/base.tar" "$l/osctl.tar" "$l/v1.tar" "$l/v2.tar")
  V3_DIGEST=$(python3 "$oci" "$o" v3 --label org.opencontainers.image.version=3 "$l/base.tar" "$l/osctl.tar" "$l/v1.tar" "$l/v2.tar" "$l/v3.tar")
  export V1_DIGEST V2_DIGEST V3_DIGEST
  note "OS image v1 $V1_DIGEST"
  note "OS image v2 $V2_DIGEST (v1 and one small layer)"
  note "OS image v3 $V3_DIGEST (v2 and one small layer)"
}

# A container that needs nothing: one static binary.
build_app_image() {
  local d=$WORK/app busybox
  busybox=$(command -v busybox) || die "busybox is missing; run: integration/lib/deps.sh image"
  rm -rf "$d"
  mkdir -p "$d/bin" "$d/etc" "$d/proc" "$d/sys" "$d/dev" "$d/tmp"
  cp "$busybox" "$d/bin/busybox"
  chmod 755 "$d/bin/busybox"
  for l in sh echo cat sleep ip; do ln -s busybox "$d/bin/$l"; done
  echo 'hello from the bound app' >"$d/etc/greeting"
  mkdir -p "$WORK/layers" "$WORK/oci/app"
  pack "$d" "$WORK/layers/app.tar"
  APP_DIGEST=$(python3 "$REPO_DIR/integration/lib/oci.py" "$WORK/oci/app" 1 --cmd /bin/cat --cmd /etc/greeting "$WORK/layers/app.tar")
  export APP_DIGEST
  note "app image   $APP_DIGEST"
}

build_images() {
  build_layers
  build_app_image
  build_os_images
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  need_root demo
  build_images
fi
