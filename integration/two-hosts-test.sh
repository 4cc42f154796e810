#!/bin/bash
# shellcheck disable=SC2016  # commands of claims are evaluated when they are checked
# Part of make vm-test: two-hosts-test.sh [deb] [rpm]: two booted hosts have the same image by digest and the same drop-ins, which ask for
# five packages with scripts. What they derive must be the same commit, although they differ in all that must not matter:
#
#                          one                                    other
#   is booted in           systemd-nspawn                         qemu, by its boot loader
#   root file system       xfs, where files were removed before   ext4, new
#   clock                  this machine's                         400 days later: a container has none of its own, so this one is a VM
#   CPUs                   1                                      3
#   umask, zone, language  077, JST, tr_TR, of daemon and client  022, UTC, C
#   package cache          warm, with another package before      cold
#   drop-ins               made in one order                      made in the other one
#
# and in kernel, kernel command line, host name and machine id. A package that writes down the time must make them differ.
# deb: packages of Debian, but for the kernel module. rpm: such as rpmbuild makes, installed by dnf and rpm of Debian.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root vm-test
for part in registry product image disk qemu loopfs check; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done
T=$WORK/two-hosts
KINDS=("$@")
[ "${#KINDS[@]}" -gt 0 ] || KINDS=(deb rpm)
for kind in "${KINDS[@]}"; do
  case $kind in deb | rpm) ;; *) die "usage: two-hosts-test.sh [deb] [rpm]" ;; esac
done
LATER=$((400 * 86400))

# with KIND COMMAND...: what both kinds have under the same names.
with() (
  # shellcheck disable=SC2034  # read by twohosts.sh
  KIND=$1 D=$T/$1
  CLEANUP=()
  trap run_cleanup EXIT
  for part in "${KIND}s" twohosts; do
    # shellcheck source=/dev/null
    . "$REPO_DIR/integration/lib/$part.sh"
  done
  "${@:2}"
)

# serve DIR: sets PORT.
serve() {
  PORT=$(free_port)
  (cd "$1" && exec python3 -m http.server --bind 127.0.0.1 "$PORT") >"$1.log" 2>&1 &
  at_exit "stop_pid $!"
  wait_until 5 curl -fsS -o /dev/null "http://127.0.0.1:$PORT/" || die "the package repository does not answer"
}

# payload KIND HOST: what the host is handed in.
payload() {
  local kind=$1 host=$2 p=$T/$1/$2/payload
  rm -rf "$p"
  mkdir -p "$p"
  cp "$REPO_DIR/integration/vm/derive.sh" "$p/run.sh"
  cp -r "$T/$kind/drop-ins" "$p/"
  printf "repos: [{id: rig, baseurl: 'http://rig.test:%s/', %s}]\n" "$PORT" "$(cat "$T/$kind/key")" >"$p/drop-ins/10-repository.yaml"
  printf 'HOST=%s\nREPO_HOST=rig.test:%s\n' "$host" "$PORT" >"$p/env"
  if [ "$host" = one ]; then
    cp -r "$T/language" "$p/"
    environment | sed 's/^/export /' >>"$p/env"
  fi
}

environment() { printf '%s\n' LOCPATH=/run/rig/language LANG=tr_TR.UTF-8 LC_ALL=tr_TR.UTF-8 TZ=JST-9; }

# host_of SYSROOT HOST ADDRESS: its name, where it finds this machine, and what its daemon has.
host_of() {
  local etc
  etc=$(default_deployment "$1")/etc
  echo "host-$2" >"$etc/hostname"
  printf '127.0.0.1 localhost\n%s rig.test\n' "$3" >"$etc/hosts"
  if [ "$2" = one ]; then
    mkdir -p "$etc/systemd/system/osctld.service.d"
    { echo '[Service]'; echo UMask=0077; environment | sed 's/^/Environment=/'; } >"$etc/systemd/system/osctld.service.d/rig.conf"
  fi
}

# deploy SYSROOT CONFIG KIND [OSCTL ARGS...]
deploy() {
  local kind=$3
  mkdir -p "$2/etc/osctl"
  first_deployment "$1" "$2" "$REGISTRY/two-hosts:$kind" "${@:4}" >"$T/$kind/deploy.log" 2>&1 || die "$(tail -5 "$T/$kind/deploy.log")"
}

# start_other KIND: in the background; sets OTHER_PID.
start_other() {
  local kind=$1 d=$T/$1/other later
  rm -rf "$d/out"
  mkdir -p "$d/out"
  make_disk "$d/disk.img" "$d/mnt"
  deploy "$d/mnt" "$d/config" "$kind" --karg=console=ttyS0 --karg=rig.host=other
  echo 'LABEL=boot /boot ext4 defaults 0 0' >>"$(default_deployment "$d/mnt")/etc/fstab"
  host_of "$d/mnt" other 10.0.2.2
  close_disk "$d/mnt"
  payload "$kind" other
  later=$(date -u -d "@$(($(date +%s) + LATER))" +%Y-%m-%dT%H:%M:%S)
  (trap - EXIT; boot_qemu "$d/disk.img" "$d/payload" "$d/out" "${VM_TIMEOUT:-1200}" -smp 3 -rtc "base=$later") &
  OTHER_PID=$!
  at_exit "if jobs -p | grep -qx $OTHER_PID; then pkill -P $OTHER_PID; fi"
}

# run_one KIND
run_one() {
  local kind=$1 d=$T/$1/one i
  rm -rf "$d/out"
  mkdir -p "$d"
  new_loopfs "$T/one.img" 2G "$d/mnt" mkfs.xfs -q -f
  # Inodes and directories are not handed out in order any more.
  mkdir -p "$d/mnt/before"
  (cd "$d/mnt/before" && seq -f 'file-%g' 20000 | xargs touch && find . -name '*[13579]' -delete)
  new_sysroot "$d/mnt/sysroot"
  deploy "$d/mnt/sysroot" "$d/config" "$kind"
  rm -rf "$d/mnt/before"
  host_of "$d/mnt/sysroot" one 127.0.0.1
  payload "$kind" one
  taskset -c "$(taskset -cp $$ | sed 's/.*: \([0-9]*\).*/\1/')" \
    "$REPO_DIR/integration/lib/nspawn.sh" "$d/mnt/sysroot" "$d/payload" "$d/out" || note "(boot failed)"
  look "$d/mnt/sysroot" "$d" "$kind"
  close_loopfs
}

# look SYSROOT DIR KIND: what is to be compared of a host that is down goes to DIR.
look() {
  local checksum
  default_deployment "$1" >"$2/deployment"
  checksum=$(basename "$(cat "$2/deployment")")
  echo "${checksum%.*}" >"$2/checksum"
  ostree --repo="$1/ostree/repo" ls -R -C "${checksum%.*}" / >"$2/files"
  ostree --repo="$1/ostree/repo" show --raw "${checksum%.*}" >"$2/metadata"
  # A host that failed may have none.
  cp "$(cat "$2/deployment")/usr/lib/osctl/derive.lock" "$2/lock" 2>/dev/null || echo "none in $2" >"$2/lock"
  with "$3" installed "$(cat "$2/deployment")" >"$2/installed" 2>/dev/null || true
}

# installed ROOT: what is there of what was asked for.
installed() {
  local name file
  while IFS='|' read -r name file; do
    # A link may lead to something that is of the host only while it runs.
    if { [ -e "$1/$file" ] || [ -L "$1/$file" ]; } && grep -qF "\"name\": \"$name\"" "$1/usr/lib/osctl/derive.lock"; then echo "$name"; fi
  done < <(requests)
  if grep -q '^u ' "$1/usr/lib/sysusers.d/00-osctl-packages.conf"; then echo "a user"; fi
  if grep -q '^updates/rig_module.ko:' "$1"/usr/lib/modules/*/modules.dep; then echo "a module"; fi
}

out() { tr -d '\r' <"$T/$1/$2/out/output"; }
fact() { out "$1" "$2" | sed -n "s/^fact $3: //p"; }
commit() { out "$1" "$2" | sed -n "s/^commit $3: //p"; }

# differ KIND FACT: says how.
differ() {
  local a b
  a=$(fact "$1" one "$2") b=$(fact "$1" other "$2")
  echo "$a and $b"
  [ -n "$a" ] && [ -n "$b" ] && [ "$a" != "$b" ]
}

days_between() {
  local days=$((($(fact "$1" other clock) - $(fact "$1" one clock)) / 86400))
  echo "$days"
  [ "$days" -ge 399 ]
}

same() { diff -u "$T/$1/one/$2" "$T/$1/other/$2"; }
all_of() { { with "$1" requests | cut -d'|' -f1; echo "a user"; echo "a module"; } | diff - "$T/$1/$2/installed"; }
# finalized KIND HOST: what was staged is what the boot loader has after shutting down.
finalized() { [ "$(commit "$1" "$2" five)" = "$(cat "$T/$1/$2/checksum")" ]; }

# judge KIND
judge() {
  local kind=$1 host facts name
  for host in one other; do
    check "$kind: $host went through everything" eval 'out "$kind" "$host" | grep -qx complete || { out "$kind" "$host"; false; }'
  done
  mapfile -t facts < <(out "$kind" one | sed -n 's/^fact \([^:]*\): .*/\1/p')
  for name in "${facts[@]}"; do verdict "$kind: they differ in $name" differ "$kind" "$name"; done
  verdict "$kind: so many days are between their clocks" days_between "$kind"
  check "$kind: one has the packages in its cache, and the other has not" eval '[ "$(out "$kind" one | sed -n "s/^cached //p")" -ge 4 ] && [ "$(out "$kind" other | sed -n "s/^cached //p")" -le 1 ]'
  check "$kind: they have the same drop-ins" eval '[ -n "$(out "$kind" one | grep "^same drop-ins: ")" ] && diff <(out "$kind" one | grep "^same drop-ins: ") <(out "$kind" other | grep "^same drop-ins: ")'
  for host in one other; do
    check "$kind: $host has all five packages, the user that they make, and depmod knows the module" all_of "$kind" "$host"
    check "$kind: what $host staged is what boots next" finalized "$kind" "$host"
  done
  check "$kind: they have the same lock" same "$kind" lock
  check "$kind: they have the same files" same "$kind" files
  check "$kind: they have the same metadata" same "$kind" metadata
  verdict "$kind: they have the same commit" eval 'cat "$T/$kind/one/checksum" && cmp "$T/$kind/one/checksum" "$T/$kind/other/checksum"'
  check "$kind: a planted time makes them differ" eval '[ -n "$(commit "$kind" one planted)" ] && [ -n "$(commit "$kind" other planted)" ] && [ "$(commit "$kind" one planted)" != "$(commit "$kind" other planted)" ]'
}

mkdir -p "$T"
say "Two hosts: images and repositories (${KINDS[*]})"
build_images
start_registry "$WORK/vm/registry"
write_registries_conf "$T/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$T/registries.conf
with deb make_language "$T/language"
OTHERS=()
for kind in "${KINDS[@]}"; do
  mkdir -p "$T/$kind/one" "$T/$kind/other"
  with "$kind" prepare
  push "$(cat "$T/$kind/image")" "two-hosts:$kind"
  serve "$T/$kind/repo"
  echo "$PORT" >"$T/$kind/port"
  say "Booting the other host ($kind) in qemu, 400 days later"
  start_other "$kind"
  OTHERS+=("$OTHER_PID")
done
for kind in "${KINDS[@]}"; do
  say "Booting one host ($kind) in a container"
  PORT=$(cat "$T/$kind/port")
  run_one "$kind"
done
for i in "${!KINDS[@]}"; do
  kind=${KINDS[i]} d=$T/$kind/other
  say "Waiting for the other host ($kind)"
  wait "${OTHERS[i]}" || note "(boot failed)"
  open_disk "$d/disk.img"
  mount_disk "$d/mnt"
  look "$d/mnt" "$d" "$kind"
  close_disk "$d/mnt"
  judge "$kind"
done
checked
