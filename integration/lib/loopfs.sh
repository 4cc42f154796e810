# shellcheck shell=bash
# A file system of its own in a file. Source after common.sh. One at a time: LOOP_FILE, mounted on LOOP_DIR.

# new_loopfs FILE SIZE DIR [MKFS ARGS...]: ext4, unless MKFS makes another. Always a new file system: on ext4, what was deleted shortly before slows every new inode.
new_loopfs() {
  close_loopfs
  # The blocks of FILE stay allocated between runs, so that the file system below has nothing to find.
  if [ "$(stat -c %s "$1" 2>/dev/null)" != "$(numfmt --from=iec "$2")" ]; then
    rm -f "$1"
    fallocate -l "$2" "$1"
  fi
  if [ $# -gt 3 ]; then
    "${@:4}" "$1"
  else
    # Nothing is left for a kernel thread to initialise during a measurement.
    mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$1"
  fi
  open_loopfs "$1" "$3"
}

open_loopfs() {
  LOOP_FILE=$1 LOOP_DIR=$2
  mkdir -p "$LOOP_DIR"
  mount -o loop "$LOOP_FILE" "$LOOP_DIR"
}

close_loopfs() {
  if [ -n "${LOOP_DIR:-}" ] && mountpoint -q "$LOOP_DIR"; then umount "$LOOP_DIR"; fi
}
at_exit close_loopfs

# cut_power: nothing more reaches the disk, neither data nor journal; then the machine comes back.
# That is ext4's own shutdown call, as xfstests uses it.
cut_power() {
  python3 - "$LOOP_DIR" <<'PY'
import fcntl, os, struct, sys
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NOLOGFLUSH = 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
PY
  umount "$LOOP_DIR"
  open_loopfs "$LOOP_FILE" "$LOOP_DIR"
}
