#!/bin/bash
# Runs inside a host of two-hosts-test.sh: it derives, and says what came of it and how this host differs. Input: ./env, ./drop-ins.
set -eEu
# bash itself cannot use the language that it hands on.
# shellcheck source=/dev/null
. ./env 2>/dev/null
STATE=/var/lib/rig
DROP_INS=/etc/osctl/derive.d
mkdir -p "$STATE"
# A host that fails shall not be waited for.
trap 'echo "failed: line $LINENO"; systemctl poweroff' ERR

# fact NAME VALUE: on the other host it is another one.
fact() { printf 'fact %s: %s\n' "$1" "$2"; }
reachable() { (exec 3<>"/dev/tcp/${REPO_HOST%:*}/${REPO_HOST#*:}") 2>/dev/null; }

# job NAME: applies the drop-ins, and says which commit boots next.
job() {
  echo "# $1, up for $(cut -d' ' -f1 /proc/uptime) s"
  osctl reconcile >"$STATE/out" 2>&1 || { sed 's/^/# /' "$STATE/out"; return 1; }
  printf 'commit %s: %s\n' "$1" "$(ostree admin status | sed -n '/staged/{s/^ *osctl \([0-9a-f]*\)\..*/\1/p;q}')"
}

# declare_only NAME...: these drop-ins, made in this order, and no others.
declare_only() {
  local name
  rm -f "$DROP_INS"/*
  for name; do
    cp "drop-ins/$name" "$DROP_INS/"
    chmod 644 "$DROP_INS/$name"
  done
}

for _ in $(seq 120); do
  if reachable; then break; fi
  sleep 0.5
done
if [ -n "${LOCPATH:-}" ]; then umask 077; fi

declare_only 10-repository.yaml 90-clock.yaml
job planted
# The staged deployment is the other's base, too: only what is declared counts.
if [ "$HOST" = one ]; then
  # Most of what is asked for is in the cache then, and a package goes again.
  declare_only 10-repository.yaml 80-extra.yaml 21-request.yaml 22-request.yaml 23-request.yaml
  job history
  mapfile -t order < <(cd drop-ins && ls -- *-request.yaml 70-files.yaml 10-repository.yaml)
else
  mapfile -t order < <(cd drop-ins && ls -r -- *-request.yaml 70-files.yaml 10-repository.yaml)
fi
echo "cached $(find /sysroot/ostree/osctl/packages -type f | wc -l)"
declare_only "${order[@]}"
job five

fact "file system" "$(findmnt -no FSTYPE -T /sysroot/ostree/repo)"
fact "order of files" "$(find /usr/lib/systemd/system -mindepth 1 -maxdepth 1 -printf '%f\n' | cksum)"
fact "order of drop-ins" "${order[0]}"
fact "host name" "$(cat /proc/sys/kernel/hostname)"
fact "machine id" "$(cat /etc/machine-id)"
fact "kernel" "$(uname -r)"
fact "kernel command line" "$(cut -c1-60 /proc/cmdline)"
fact "CPUs" "$(nproc)"
fact "clock" "$(date +%s)"
fact "umask" "$(umask)"
fact "time zone" "$(date +%z)"
fact "language" "$(printf 'i\nJ\n' | sort | head -1)"
daemon=$(systemctl show -p MainPID --value osctld.service)
fact "umask of the daemon" "$(sed -n 's/^Umask:\s*//p' "/proc/$daemon/status")"
fact "environment of the daemon" "$(tr '\0' '\n' <"/proc/$daemon/environ" | grep -E '^(TZ|LANG|LC_ALL|LOCPATH)=' | sort | tr '\n' ' ')"
echo "same drop-ins: $(cd "$DROP_INS" && sha256sum -- * | sha256sum)"
echo "complete"
systemctl poweroff
