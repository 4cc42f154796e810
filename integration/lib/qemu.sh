# shellcheck shell=bash
# Boots a disk image in qemu. Source after common.sh.
# Always in software emulation: it works everywhere, also where /dev/kvm exists but guests hang in it.

# boot_qemu DISK PAYLOAD_DIR OUT_DIR TIMEOUT [QEMU ARGS...]: the guest's rig.service runs PAYLOAD_DIR/run.sh, whose output is OUT_DIR/output; the
# console is OUT_DIR/console. Follows reboots inside one qemu and ends when the guest powers off.
# The guest reaches this host's loopback as 10.0.2.2.
boot_qemu() {
  local disk=$1 payload=$2 out=$3 limit=$4 rc=0
  shift 4
  mkdir -p "$out"
  tar -C "$payload" -cf "$out/payload.tar" .
  truncate -s %1M "$out/payload.tar"
  : >"$out/output"
  timeout -k 5 "$limit" qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults -display none \
    -drive "file=$disk,format=raw,if=none,id=d0,cache=unsafe" -device virtio-blk-pci,drive=d0,bootindex=0 \
    -drive "file=$out/payload.tar,format=raw,if=none,id=d1,readonly=on" -device virtio-blk-pci,drive=d1,serial=payload \
    -netdev user,id=n0,ipv6=off -device virtio-net-pci,netdev=n0,romfile= \
    -device virtio-rng-pci -serial "file:$out/console" -serial "file:$out/output" "$@" </dev/null >"$out/qemu.log" 2>&1 || rc=$?
  case $rc in
    0) ;;
    124 | 137) die "the VM was still running after $limit s; its console is $out/console" ;;
    *) die "qemu ended with $rc; its words are in $out/qemu.log" ;;
  esac
}
