# shellcheck shell=bash
# Shared by every script under integration/: paths, messages, cleanup. Source it first.
set -euo pipefail

REPO_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Everything these scripts write stays below WORK; `make clean-demo` removes it.
WORK=${OSCTL_WORK:-$REPO_DIR/.work}
# The stateroot and the name that the test image uses for itself.
STATEROOT=osctl
export REPO_DIR WORK STATEROOT
umask 022

say() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() {
  [ "$(id -u)" = 0 ] || die "$1 needs root (mounts, chroot, systemd-nspawn, loop devices). Try: sudo make $1"
}

# Cleanup actions run last-in first-out at exit, whatever the reason of the exit. Quote them like eval input.
CLEANUP=()
at_exit() { CLEANUP+=("$1"); }
run_cleanup() {
  local rc=$? i
  trap - EXIT
  set +e
  for ((i = ${#CLEANUP[@]} - 1; i >= 0; i--)); do eval "${CLEANUP[i]}"; done
  exit "$rc"
}
trap run_cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Stop one process that we started ourselves, by its id; kill it if it does not leave within five seconds.
stop_pid() {
  local pid=$1 i
  kill "$pid" 2>/dev/null || return 0
  for ((i = 0; i < 50; i++)); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
}

# wait_until SECONDS COMMAND...: poll five times a second
wait_until() {
  local n=$(($1 * 5))
  shift
  until "$@" >/dev/null 2>&1; do
    n=$((n - 1))
    [ "$n" -gt 0 ] || return 1
    sleep 0.2
  done
}

# A port on loopback that was free a moment ago.
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Unmount whatever is still mounted at or below DIR, deepest first.
umount_below() {
  local dir m
  dir=$(readlink -m "$1")
  awk -v d="$dir" '$5 == d || index($5, d "/") == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r m; do
    umount -l "$(printf '%b' "$m")" || true
  done
}

# Remove a tree that may hold ostree deployments (their roots carry the immutable bit) and leftover mounts.
remove_tree() {
  [ -e "$1" ] || return 0
  umount_below "$1"
  local d
  for d in "$1"/ostree/deploy/*/deploy/* "$1"/*/ostree/deploy/*/deploy/*; do
    if [ -d "$d" ]; then chattr -i "$d" 2>/dev/null || true; fi
  done
  rm -rf --one-file-system "$1"
}

# The boot loader entry that boots next: libostree gives the default deployment the highest number.
default_entry() {
  local e
  e=$(find "$1/boot/loader/entries/" -name 'ostree-*.conf' | sort -V | tail -1)
  [ -n "$e" ] || die "no boot loader entry below $1/boot/loader/entries"
  printf '%s\n' "$e"
}

# The directory of the deployment that boots next.
default_deployment() {
  local e o
  e=$(default_entry "$1")
  o=$(sed -n 's/^options .*ostree=\([^ ]*\).*/\1/p' "$e")
  [ -n "$o" ] || die "no ostree= in $e"
  readlink -f "$1$o"
}
