# shellcheck shell=bash
# The few files in which the versions of the OS differ: WORK/layers/v1.tar, v2.tar, v3.tar. Source after tree.sh has `pack`.

# Where an image has its package database.
DPKG=usr/lib/sysimage/dpkg

build_version_layers() {
  local v d=$WORK/versions
  rm -rf "$d"
  for v in 1 2 3; do
    mkdir -p "$d/$v/usr/share" "$d/$v/etc"
    echo "$v" >"$d/$v/usr/share/os-version"
  done
  for v in 1 2; do
    echo "default of version $v" >"$d/$v/etc/rig-default.conf"
    echo "default of version $v" >"$d/$v/etc/rig-local.conf"
  done
  echo "only version 1 has this file" >"$d/1/usr/share/only-in-1"
  mkdir "$d/2/etc/rig-new.d" # where version 1's admin may have a file: libostree cannot merge that
  echo "new in version 2" >"$d/2/etc/rig-new.d/default.conf"
  : >"$d/2/usr/share/.wh.only-in-1" # an OCI whiteout: version 2 deletes it
  add_packages "$d"
  for v in 1 2 3; do pack "$d/$v" "$WORK/layers/v$v.tar"; done
}

# rig_package DIR NAME VERSION [debs.sh's package ARGS...]: a package of one file that says its version.
rig_package() {
  mkdir -p "$1/files/usr/share/$2"
  echo "$3" >"$1/files/usr/share/$2/version"
  package "$@"
}

# Packages of the OS that drop-ins have something to do with: version 1 has rig-base and rig-tool 1.0, version 3 rig-tool 1.1.
add_packages() (
  d=$1
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/debs.sh"
  mkdir -p "$d/debs"
  rig_package "$d/debs" rig-base 1.0
  for v in 1.0 1.1; do rig_package "$d/debs" rig-tool "$v"; done
  tar -C "$d" --transform "s,^\(\./\)\?$DPKG,database," -xf "$WORK/layers/base.tar" --wildcards "*$DPKG"
  in_layer "$d" 1 rig-base_1.0.deb rig-tool_1.0.deb
  in_layer "$d" 3 rig-tool_1.1.deb
)

# in_layer DIR VERSION PACKAGE...: installs what has no scripts into the layer, with what dpkg notes of it.
in_layer() {
  local d=$1 v=$2
  shift 2
  dpkg --root="$d/$v" --admindir="$d/database" --log=/dev/null --force-script-chrootless --install "${@/#/$d/debs/}" >/dev/null
  mkdir -p "$d/$v/$DPKG/info"
  cp "$d/database/status" "$d/$v/$DPKG/"
  cp "$d/database/info"/rig-* "$d/$v/$DPKG/info/"
}
