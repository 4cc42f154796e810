# shellcheck shell=bash
# A disk image with a real boot loader (extlinux, BIOS), /boot on p1 and the sysroot on p2. Source after common.sh.
# Loop devices by offset: partition nodes are not available everywhere.

BOOT_START=$((2048 * 512)) BOOT_SIZE=$((256 << 20))
ROOT_START=$((BOOT_START + BOOT_SIZE))

# make_disk IMAGE MOUNTPOINT: creates it and leaves its file systems mounted, as an empty ostree sysroot.
make_disk() {
  local disk=$1 m=$2
  rm -f "$disk"
  truncate -s 6G "$disk"
  sfdisk -q "$disk" <<TABLE
label: dos
start=$((BOOT_START / 512)), size=$((BOOT_SIZE / 512)), type=83, bootable
start=$((ROOT_START / 512)), type=83
TABLE
  dd if=/usr/lib/EXTLINUX/mbr.bin of="$disk" bs=440 count=1 conv=notrunc status=none
  open_disk "$disk"
  # extlinux reads only plain ext4.
  mkfs.ext4 -q -L boot -O '^64bit,^metadata_csum' "$BOOT_LOOP"
  mkfs.ext4 -q -L root -E lazy_itable_init=1,lazy_journal_init=1 "$ROOT_LOOP"
  mount_disk "$m"
  ostree admin init-fs "$m"
  ostree admin os-init "$STATEROOT" --sysroot="$m"
  # The template must have no DEFAULT line: libostree would drop it and never write another.
  mkdir -p "$m/boot/syslinux" "$m/boot/loader.0"
  ln -sfn loader.0 "$m/boot/loader"
  printf 'TIMEOUT 1\nPROMPT 0\nSERIAL 0 115200\n' >"$m/boot/loader/syslinux.cfg"
  ln -sfn ../loader/syslinux.cfg "$m/boot/syslinux/syslinux.cfg"
  extlinux --install "$m/boot/syslinux" 2>/dev/null
}

open_disk() {
  BOOT_LOOP=$(losetup --show -f -o "$BOOT_START" --sizelimit "$BOOT_SIZE" "$1")
  at_exit "losetup -d $BOOT_LOOP 2>/dev/null"
  ROOT_LOOP=$(losetup --show -f -o "$ROOT_START" "$1")
  at_exit "losetup -d $ROOT_LOOP 2>/dev/null"
}

mount_disk() {
  mkdir -p "$1"
  at_exit "umount_below '$1'"
  mount "$ROOT_LOOP" "$1"
  mkdir -p "$1/boot"
  mount "$BOOT_LOOP" "$1/boot"
}

# close_disk MOUNTPOINT
close_disk() {
  umount "$1/boot" "$1"
  losetup -d "$BOOT_LOOP"
  losetup -d "$ROOT_LOOP"
}
