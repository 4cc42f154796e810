# shellcheck shell=bash
# What the scripts that run inside the test OS share: checks, and phases across reboots. Source it first.
# Every check is a function whose name is the sentence it prints.
STATE=/var/lib/rig
mkdir -p "$STATE"

check() {
  local sentence=${1//_/ } log=$STATE/check.log rc
  # Not inside `if`: there, bash would ignore set -e and only the last line of a check would count.
  (set -e; "$@") >"$log" 2>&1
  rc=$?
  if [ "$rc" = 0 ]; then
    echo "ok - $sentence"
  else
    echo "not ok - $sentence"
    sed 's/^/# /' "$log" | tail -30
  fi
}

# The phase to go on with; $1 is the first one.
phase() { cat "$STATE/phase" 2>/dev/null || echo "$1"; }

next() { # PHASE: reboot into it
  echo "$1" >"$STATE/phase"
  sync
  systemctl reboot
  exit 0
}

finish() {
  echo "scenario complete"
  sync
  systemctl poweroff
  exit 0
}
