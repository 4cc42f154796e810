#!/bin/bash
# make vm-test: an OS with osctl installed updates itself, with drop-ins and a bound image, and rolls back.
# run.sh [nspawn] [qemu]: tier 1 boots a sysroot directory in a container (seconds), tier 2 a disk in qemu, with boot loader,
# initramfs and kernel command line. Without arguments: both.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
need_root vm-test
for part in registry product image disk qemu debs; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

VM=$WORK/vm
PASSED=0 FAILED=0
TIERS=("$@")
[ "${#TIERS[@]}" -gt 0 ] || TIERS=(nspawn qemu)

# A package with a service and a user, in a repository on loopback; sets REPO_PORT.
serve_packages() {
  local r=$VM/repo
  rm -rf "$r"
  mkdir -p "$r/files/usr/lib/systemd/system" "$r/scripts"
  printf '[Service]\nUser=rig-agent\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n' >"$r/files/usr/lib/systemd/system/rig-agent.service"
  cat >"$r/scripts/after" <<'SCRIPT'
#!/bin/sh
set -e
adduser --system --group --home /var/lib/rig-agent --no-create-home --quiet rig-agent
install -d -o rig-agent -g rig-agent -m 750 /var/lib/rig-agent
systemctl enable rig-agent.service
SCRIPT
  package "$r" rig-agent 1.0 requires adduser
  packages_index "$r"
  REPO_PORT=$(free_port)
  (cd "$r" && exec python3 -m http.server --bind 127.0.0.1 "$REPO_PORT") >"$VM/repo.log" 2>&1 &
  at_exit "stop_pid $!"
  wait_until 5 curl -fsS -o /dev/null "http://127.0.0.1:$REPO_PORT/" || die "the package repository does not answer"
}

# write_payload DIR TIER REGISTRY_AS_THE_GUEST_SEES_IT
write_payload() {
  rm -rf "$1"
  mkdir -p "$1"
  cp "$REPO_DIR/integration/vm/guest.sh" "$1/run.sh"
  printf 'TIER=%s\nREPO=%s\nREGISTRY=%s\nV1_DIGEST=%s\nV2_DIGEST=%s\nAPP_DIGEST=%s\n' "$2" "http://${3%:*}:$REPO_PORT/" "$3" "$V1_DIGEST" "$V2_DIGEST" "$APP_DIGEST" >"$1/env"
}

# Adds up what a guest reported. A guest that stopped half-way is a failure, however many checks passed before.
judge() {
  local tier=$1 output=$2 ok bad
  tr -d '\r' <"$output"
  ok=$(tr -d '\r' <"$output" | grep -c '^ok - ' || true)
  bad=$(tr -d '\r' <"$output" | grep -c '^not ok - ' || true)
  if tr -d '\r' <"$output" | grep -qx 'scenario complete'; then
    ok=$((ok + 1))
    echo "ok - the $tier guest went through the whole scenario"
  else
    bad=$((bad + 1))
    echo "not ok - the $tier guest went through the whole scenario"
  fi
  PASSED=$((PASSED + ok)) FAILED=$((FAILED + bad))
}

tier_nspawn() {
  say "Tier 1: systemd-nspawn"
  local d=$VM/nspawn
  mkdir -p "$d/config/etc/osctl"
  new_sysroot "$d/sysroot"
  first_deployment "$d/sysroot" "$d/config" "$REGISTRY/os:v1"
  write_payload "$d/payload" nspawn "$REGISTRY"
  rm -rf "$d/out"
  "$REPO_DIR/integration/lib/nspawn.sh" "$d/sysroot" "$d/payload" "$d/out" || note "(boot failed)"
  judge nspawn "$d/out/output"
}

tier_qemu() {
  say "Tier 2: qemu, with a real boot loader, initramfs and kernel (a few minutes)"
  local d=$VM/qemu deployment
  mkdir -p "$d/config/etc/osctl"
  make_disk "$d/disk.img" "$d/mnt"
  first_deployment "$d/mnt" "$d/config" "$REGISTRY/os:v1" --karg=console=ttyS0
  deployment=$(default_deployment "$d/mnt")
  echo 'LABEL=boot /boot ext4 defaults 0 0' >>"$deployment/etc/fstab"
  close_disk "$d/mnt"
  write_payload "$d/payload" qemu "10.0.2.2:${REGISTRY#*:}"
  rm -rf "$d/out"
  (trap - EXIT; boot_qemu "$d/disk.img" "$d/payload" "$d/out" "${VM_TIMEOUT:-900}") || note "(boot failed)"
  judge qemu "$d/out/output"
}

mkdir -p "$VM"
say "Building the OS images (v1 and v2) and an app image"
build_images
start_registry "$VM/registry"
write_registries_conf "$VM/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$VM/registries.conf
push "$WORK/oci/os:v1" os:v1
push "$WORK/oci/os:v2" os:v2
push "$WORK/oci/app:1" app:1
serve_packages

for tier in "${TIERS[@]}"; do
  case $tier in
    nspawn) tier_nspawn ;;
    qemu) tier_qemu ;;
    *) die "unknown tier $tier: nspawn or qemu" ;;
  esac
done

echo
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
