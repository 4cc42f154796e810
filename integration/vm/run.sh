#!/bin/bash
# Part of make vm-test: an OS with osctl installed updates itself, with drop-ins and a bound image, rolls back, and updates once more
# when its package repository is gone.
# run.sh [nspawn] [qemu] [module]: tier 1 boots a sysroot directory in a container (seconds), tier 2 a disk in qemu, with boot loader,
# initramfs and kernel command line, tier 3 one with a kernel module of a package, so with an initramfs that osctl made. Without
# arguments: all.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
need_root vm-test
for part in registry product image disk qemu debs judge; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

VM=$WORK/vm
TIERS=("$@")
[ "${#TIERS[@]}" -gt 0 ] || TIERS=(nspawn qemu module)

# For the drop-ins of the guests: a package with a service and a user, one that a package of the image excludes, and a newer version of one.
make_packages() {
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
  rig_package "$r" rig-rival 1.0 conflicts rig-base
  rig_package "$r" rig-tool 1.1
  packages_index "$r"
}

# serve_packages OUTPUT: a repository of them on loopback; sets REPO_PORT. It is there until a guest says in OUTPUT that it may go.
serve_packages() {
  local server
  REPO_PORT=$(free_port)
  (cd "$VM/repo" && exec python3 -m http.server --bind 127.0.0.1 "$REPO_PORT") >"$VM/repo.log" 2>&1 &
  server=$!
  at_exit "stop_pid $server"
  wait_until 5 curl -fsS -o /dev/null "http://127.0.0.1:$REPO_PORT/" || die "the package repository does not answer"
  (trap - EXIT; until grep -qs '^# the repository may go' "$1"; do sleep 0.5; done; kill "$server") &
  at_exit "stop_pid $!"
}

# write_payload DIR TIER REGISTRY_AS_THE_GUEST_SEES_IT
write_payload() {
  rm -rf "$1"
  mkdir -p "$1"
  cp "$REPO_DIR/integration/vm/guest.sh" "$1/run.sh"
  cp "$REPO_DIR/integration/vm/scenario.sh" "$1/"
  printf 'TIER=%s\nREPO=%s\nREGISTRY=%s\nV1_DIGEST=%s\nV2_DIGEST=%s\nV3_DIGEST=%s\nAPP_DIGEST=%s\n' "$2" "http://${3%:*}:$REPO_PORT/" "$3" "$V1_DIGEST" "$V2_DIGEST" "$V3_DIGEST" "$APP_DIGEST" >"$1/env"
}

tier_nspawn() {
  say "Tier 1: systemd-nspawn"
  local d=$VM/nspawn
  mkdir -p "$d/config/etc/osctl"
  new_sysroot "$d/sysroot"
  first_deployment "$d/sysroot" "$d/config" "$REGISTRY/os:v1"
  rm -rf "$d/out"
  serve_packages "$d/out/output"
  write_payload "$d/payload" nspawn "$REGISTRY"
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
  rm -rf "$d/out"
  serve_packages "$d/out/output"
  write_payload "$d/payload" qemu "10.0.2.2:${REGISTRY#*:}"
  (trap - EXIT; boot_qemu "$d/disk.img" "$d/payload" "$d/out" "${VM_TIMEOUT:-1200}") || note "(boot failed)"
  judge qemu "$d/out/output"
}

# A module that the image has, under another name: a package that brings it makes modules.dep and the initramfs anew.
serve_module() {
  local r=$VM/module k module=kernel/drivers/net/dummy.ko
  rm -rf "$r"
  mkdir -p "$r/of-image" "$r/files/etc/dracut.conf.d"
  tar -C "$r/of-image" -xf "$WORK/layers/base.tar" --wildcards "usr/lib/modules/*/$module"
  k=$(cd "$r/of-image/usr/lib/modules" && echo *)
  mkdir -p "$r/files/lib/modules/$k/extra"
  mv "$r/of-image/usr/lib/modules/$k/$module" "$r/files/lib/modules/$k/extra/rig_module.ko"
  echo 'add_drivers+=" rig_module "' >"$r/files/etc/dracut.conf.d/rig-module.conf"
  package "$r" rig-module 1.0
  packages_index "$r"
  MODULE_PORT=$(free_port)
  (cd "$r" && exec python3 -m http.server --bind 127.0.0.1 "$MODULE_PORT") >"$VM/module.log" 2>&1 &
  at_exit "stop_pid $!"
  wait_until 5 curl -fsS -o /dev/null "http://127.0.0.1:$MODULE_PORT/" || die "the repository with the module does not answer"
}

tier_module() {
  say "Tier 3: qemu, with a kernel module of a package (two minutes)"
  local d=$VM/with-module deployment
  serve_module
  mkdir -p "$d/config/etc/osctl/derive.d"
  printf "repos: [{id: rig, baseurl: 'http://127.0.0.1:%s/', gpgcheck: false}]\npackages: [rig-module]\n" "$MODULE_PORT" \
    >"$d/config/etc/osctl/derive.d/50-module.yaml"
  make_disk "$d/disk.img" "$d/mnt"
  first_deployment "$d/mnt" "$d/config" "$REGISTRY/os:v1" --karg=console=ttyS0
  deployment=$(default_deployment "$d/mnt")
  echo 'LABEL=boot /boot ext4 defaults 0 0' >>"$deployment/etc/fstab"
  close_disk "$d/mnt"
  rm -rf "$d/payload" "$d/out"
  mkdir -p "$d/payload"
  cp "$REPO_DIR/integration/vm/module.sh" "$d/payload/run.sh"
  (trap - EXIT; boot_qemu "$d/disk.img" "$d/payload" "$d/out" "${VM_TIMEOUT:-900}") || note "(boot failed)"
  judge module "$d/out/output"
}

mkdir -p "$VM"
say "Building the OS images (v1 to v3) and an app image"
build_images
start_registry "$VM/registry"
write_registries_conf "$VM/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$VM/registries.conf
push "$WORK/oci/os:v1" os:v1
push "$WORK/oci/os:v2" os:v2
push "$WORK/oci/os:v3" os:v3
push "$WORK/oci/app:1" app:1
make_packages

for tier in "${TIERS[@]}"; do
  case $tier in
    nspawn) tier_nspawn ;;
    qemu) tier_qemu ;;
    module) tier_module ;;
    *) die "unknown tier $tier: nspawn, qemu or module" ;;
  esac
done

echo
echo "$PASSED passed, $FAILED failed"
[ "$FAILED" = 0 ]
