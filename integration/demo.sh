#!/bin/bash
# make demo: the main job of osctl, end to end, on a scratch sysroot. Everything it writes stays below WORK.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root demo
for part in registry product image; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

DEMO=$WORK/demo
SYSROOT=$DEMO/sysroot
CONFIG=$DEMO/config

status() { "$OSCTL" --bus "$BUS" status; }
deployments() { ostree admin status --sysroot="$SYSROOT" | sed 's/^[* ]*//' | grep "^$STATEROOT " || true; }

write_changes() {
  mkdir -p "$CONFIG/etc/osctl/derive.d" "$CONFIG/etc/osctl/bound-images.d"
  cat >"$CONFIG/etc/osctl/derive.d/50-agent.yaml" <<'YAML'
files:
  - path: /etc/demo-agent.conf
    contents: {inline: "greeting=hello from a drop-in\n"}
    mode: 0644
units:
  - name: demo-agent.service
    enabled: true
    contents: |
      [Unit]
      Description=Agent that a drop-in added
      [Service]
      ExecStart=/bin/sh -c 'cat /etc/demo-agent.conf; exec sleep infinity'
      [Install]
      WantedBy=multi-user.target
YAML
  cat >"$CONFIG/etc/osctl/derive.d/60-kargs.yaml" <<'YAML'
kernel-arguments: {append: [demo.karg=1]}
YAML
  cat >"$CONFIG/etc/osctl/bound-images.d/app.toml" <<TOML
image = "$REGISTRY/app:1"
mode = "bind"
tls-verify = false
TOML
}

# What the booted deployment is asked to show.
write_payload() {
  mkdir -p "$DEMO/payload"
  cat >"$DEMO/payload/run.sh" <<'SH'
systemctl is-system-running --wait >/dev/null
echo "OS version: $(cat /usr/share/os-version)"
systemctl --no-pager --lines=3 status demo-agent.service
podman images
systemctl poweroff
SH
}

say "Building the OS images (v1 and v2) and an app image"
build_images
mkdir -p "$DEMO"

say "Serving them from a real registry on loopback"
start_registry "$DEMO/registry"
IMAGE=$REGISTRY/os:stable
write_registries_conf "$DEMO/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$DEMO/registries.conf
push "$WORK/oci/app:1" app:1
note "registry: $REGISTRY"

# A half-made first run starts again; a complete one is continued.
if [ -e "$DEMO/complete" ] && [ "$(cat "$DEMO/complete")" = "$IMAGE" ]; then
  FIRST=0
else
  FIRST=1
  rm -f "$DEMO/complete"
  remove_tree "$CONFIG"
  mkdir -p "$CONFIG/etc/osctl"
  say "Deploying v1 into the scratch sysroot ${SYSROOT#"$REPO_DIR"/}"
  push "$WORK/oci/os:v1" os:stable
  new_sysroot "$SYSROOT"
  first_deployment "$SYSROOT" "$CONFIG" "$IMAGE"
fi

say "Starting osctld on a private bus"
start_bus "$DEMO"
start_daemon "$SYSROOT" "$CONFIG" "$DEMO/osctld.log"

say "osctl status, before"
status
BEFORE=$(deployments)

say "Two drop-ins, one bound image, and the tag now names v2: osctl upgrade"
write_changes
push "$WORK/oci/os:v2" os:stable
"$OSCTL" --bus "$BUS" upgrade

say "osctl status, after"
status
AFTER=$(deployments)

say "The boot loader entry that boots next"
cat "$(default_entry "$SYSROOT")"
grep -q 'demo\.karg=1' "$(default_entry "$SYSROOT")" || die "the drop-in's kernel argument is not in the boot loader entry"

say "The bound image, as podman lists it"
bound_podman "$SYSROOT" images
bound_podman "$SYSROOT" image exists "$REGISTRY/app:1" || die "podman does not find $REGISTRY/app:1 in the bound store"
umount_below "$SYSROOT" # podman leaves its overlay bind mount behind

say "Foreign readers: ostree admin status, ostree fsck"
ostree admin status --sysroot="$SYSROOT"
ostree fsck --repo="$SYSROOT/ostree/repo" --quiet && note "fsck: clean"

say "Booting the deployment in a container"
write_payload
rm -rf "$DEMO/out"
"$REPO_DIR/integration/lib/nspawn.sh" "$SYSROOT" "$DEMO/payload" "$DEMO/out"
cat "$DEMO/out/output"
grep -q '^OS version: 2$' "$DEMO/out/output" || die "version 2 did not boot; the console is $DEMO/out/console.1"
grep -q 'Active: active (running)' "$DEMO/out/output" || die "the drop-in's unit is not running; see $DEMO/out/output"
echo "$IMAGE" >"$DEMO/complete"

if [ "$FIRST" = 0 ] && [ "$BEFORE" = "$AFTER" ]; then
  say "Nothing changed: the image, the drop-ins and the bound image were already in place, so osctl had nothing to do."
else
  say "You have just seen one command move a host from OS version 1 to 2 together with its own files, a service, a kernel argument and an app image, as one unit that is deployed whole or not at all."
fi
