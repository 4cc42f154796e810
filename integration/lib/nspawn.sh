#!/bin/bash
# nspawn.sh SYSROOT PAYLOAD_DIR OUT_DIR [MAX_BOOTS]
# Boots the default deployment of an ostree sysroot directory as a container, follows its reboots, and lets the image's
# rig.service run PAYLOAD_DIR/run.sh inside; the script's output is OUT_DIR/output, the consoles OUT_DIR/console.N.
#
# libostree inside takes the tree for a booted deployment, so staging, finalizing and /etc merging are real. Not proved by
# this tier: boot loader, initramfs and kernel command line; that is what qemu.sh is for.
# The container shares the host's network, so that it reaches a registry on loopback.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

BOOT_TIMEOUT=${BOOT_TIMEOUT:-180}

boot_once() {
  local sysroot=$1 payload=$2 out=$3 console=$4 d stateroot
  d=$(default_deployment "$sysroot")
  stateroot=${d%/deploy/*}
  note "booting ${d##*/} of stateroot ${stateroot##*/} in a container"
  timeout -k 5 "$BOOT_TIMEOUT" systemd-nspawn -q --register=no --keep-unit -M osctl-test --link-journal=no \
    -D "$d" --bind-ro="$d/usr:/usr" --bind="$sysroot:/sysroot" --bind="$sysroot/boot:/boot" --bind="$stateroot/var:/var" \
    --bind-ro=/dev/null:/run/ostree-booted --bind-ro="$payload:/run/rig" --bind="$out:/run/rig-out" \
    --system-call-filter='add_key keyctl bpf' --console=pipe --boot systemd.log_level=warning \
    </dev/null >"$console" 2>&1
}

main() {
  local sysroot payload out max=${4:-6} n rc
  sysroot=$(readlink -f "$1") payload=$(readlink -f "$2")
  mkdir -p "$3"
  out=$(readlink -f "$3")
  # nspawn needs a tmpfs on /run; this one is private to us and leaves with us.
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/systemd
  export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
  : >"$out/output"
  for ((n = 1; n <= max; n++)); do
    rc=0
    boot_once "$sysroot" "$payload" "$out" "$out/console.$n" || rc=$?
    case $rc in
      133) continue ;; # the container asked for a reboot
      0) return 0 ;;
      124 | 137) die "the container was still running after $BOOT_TIMEOUT s; its console is $out/console.$n" ;;
      *) die "the container ended with $rc; its console is $out/console.$n" ;;
    esac
  done
  die "the container asked for more than $max boots"
}

if [ "${OSCTL_NSPAWN_INNER:-}" != 1 ]; then
  need_root vm-test
  OSCTL_NSPAWN_INNER=1 exec unshare -m --propagation private "$0" "$@"
fi
main "$@"
