# shellcheck shell=bash
# Runs osctl and osctld as image.sh installed them below WORK/destdir. Source after common.sh and registry.sh.

OSCTL=$WORK/destdir/usr/bin/osctl
OSCTLD=$WORK/destdir/usr/libexec/osctld

# new_sysroot DIR: an empty ostree sysroot with our stateroot.
new_sysroot() {
  remove_tree "$1"
  mkdir -p "$1"
  ostree admin init-fs "$1"
  ostree admin os-init "$STATEROOT" --sysroot="$1" >/dev/null
}

# first_deployment SYSROOT CONFIG_ROOT IMAGE [OSCTL ARGS...]: what an installer does.
first_deployment() {
  local sysroot=$1 config=$2 image=$3
  shift 3
  "$OSCTL" --direct --sysroot "$sysroot" --config-root "$config" rebase "$image" --stateroot "$STATEROOT" \
    --karg=root=LABEL=root --karg=rw "$@"
}

# start_bus DIR: a private message bus; sets BUS. The socket goes to a short path, as sockets must.
start_bus() {
  local dir=$1 socket
  socket=$(mktemp -d)
  at_exit "rm -rf '$socket'"
  cat >"$dir/bus.conf" <<CONF
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=$socket/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
CONF
  dbus-daemon --config-file="$dir/bus.conf" --nofork --nopidfile >"$dir/bus.log" 2>&1 &
  at_exit "stop_pid $!"
  BUS=unix:path=$socket/bus
  export BUS
  wait_until 5 test -S "$socket/bus" || die "the private bus did not start: $(cat "$dir/bus.log")"
}

# start_daemon SYSROOT CONFIG_ROOT LOG: osctld on the private bus. Needs start_bus.
start_daemon() {
  "$OSCTLD" --sysroot "$1" --config-root "$2" --bus "$BUS" >"$3" 2>&1 &
  OSCTLD_PID=$!
  at_exit "stop_pid $OSCTLD_PID"
  wait_until 10 busctl --address="$BUS" status org.osctl1 || {
    tail -20 "$3" >&2
    die "osctld did not appear on the bus; its log is $3"
  }
}

# podman with the bound images of what a sysroot will boot, from outside.
bound_podman() {
  local sysroot=$1 key
  shift
  key=$(sed -n 's/^bound-set=//p' "$(default_deployment "$sysroot").origin")
  podman --root "$WORK/podman-own" --runroot "$WORK/podman-run" --storage-driver overlay \
    --storage-opt "additionalimagestore=$sysroot/ostree/osctl/views/$key" "$@"
}
