#!/bin/bash
# What the guest of bound-test.sh does: its podman knows quadlet files, and version 2 of its OS binds three images. Once per boot.
# Input: ./env.
set -u
# shellcheck source=/dev/null
. ./env
# shellcheck source=/dev/null
. ./scenario.sh
PHASE=$(phase missing_layer)
STORE=/sysroot/ostree/osctl
BUNDLE=/var/tmp/version-4.tar

os_version() { cat /usr/share/os-version; }
# In a container there are no cgroups to give away, and the network is the host's.
if [ "$TIER" = qemu ]; then RUN=(--network=none); else RUN=(--network=host --cgroups=disabled); fi
run() { podman run --rm --pull=never "${RUN[@]}" "$@"; }
says() { # IMAGE TEXT
  local out
  out=$(run "$1")
  echo "$1 says $out, $2 is expected"
  [ "$out" = "$2" ]
}
# The host does something for us, and says by an image of this name that it is done.
ask_for() {
  local _
  echo "# please: $1"
  for _ in $(seq 120); do
    skopeo inspect --raw "docker://registry.test/signal:$1" >/dev/null 2>&1 && return 0
    sleep 0.5
  done
  echo "not ok - the host did its part: $1"
}
# A container has the network of its host: the registries are where nobody listens.
network_down() {
  if [ "$TIER" = qemu ]; then systemctl mask --now systemd-networkd.service; else registries 127.0.0.1:1 127.0.0.1:1; fi
}
network_up() {
  if [ "$TIER" = qemu ]; then
    systemctl unmask systemd-networkd.service
    systemctl start systemd-networkd.service
  else
    registries "$REGISTRY" "$PRIVATE_REGISTRY"
  fi
}
registries() {
  mkdir -p /etc/containers/registries.conf.d
  printf '[[registry]]\nprefix = "%s"\nlocation = "%s"\ninsecure = true\n' registry.test "$1" private.test "$2" >/etc/containers/registries.conf.d/50-rig.conf
}
# The digests of what is whole in the store, a name to each.
stored() { sed -n 's/.*"repository":"\([^"]*\)","digest":"\([^"]*\)","complete":true.*/\1@\2\n/p' "$STORE"/storage-index/*.json | sed '/^$/d' | sort; }
expect_stored() { # NAME@DIGEST...
  stored >"$STATE/stored"
  printf '%s\n' "$@" | sort >"$STATE/expected"
  diff "$STATE/expected" "$STATE/stored"
}

the_host_reaches_state_running() { systemctl is-system-running --wait || { systemctl --failed --no-pager; false; }; }
podman_works_before_anything_is_bound() { podman images; }
podman_of_a_user_works() { runuser -u rig-user -- podman --cgroup-manager=cgroupfs images; }
the_registry_is_reached() {
  local _
  for _ in $(seq 60); do
    skopeo inspect --raw docker://registry.test/os:v2 >/dev/null && return 0
    sleep 1
  done
  return 1
}
a_lost_layer_fails_the_rebase() {
  local rc=0
  osctl rebase registry.test/os:v2 >"$STATE/lost.out" 2>&1 || rc=$?
  cat "$STATE/lost.out"
  [ "$rc" = 1 ]
}
the_error_names_image_and_file() {
  cat "$STATE/lost.out"
  grep 'registry.test/tool:1' "$STATE/lost.out" | grep '/usr/lib/osctl/bound-images.d/tool.toml'
}
nothing_was_staged() { ostree admin status; [ ! -e /run/ostree/staged-deployment ]; }
what_was_finished_is_kept() { expect_stored "registry.test/app@$APP_ONE" "private.test/private@$PRIVATE"; }
the_retry_succeeds() { osctl rebase registry.test/os:v2; }
all_three_are_stored() { expect_stored "registry.test/app@$APP_ONE" "private.test/private@$PRIVATE" "registry.test/tool@$TOOL"; }
nothing_is_shown_before_the_boot() { podman images; ! podman image exists registry.test/app:1; }

version_2_is_booted() { ostree admin status; [ "$(os_version)" = 2 ]; }
podman_has_the_entry_from_the_derivation() {
  cat /usr/share/containers/storage.conf
  osctl why /usr/share/containers/storage.conf | grep bound-images.d
}
the_network_goes_away() { network_down; }
the_network_comes_back() { network_up; }
the_network_is_down() { ! skopeo inspect --raw docker://registry.test/app:1; }
the_unit_of_the_quadlet_runs() { systemctl is-active app.service || { systemctl status --no-pager app.service; journalctl --no-pager -u app.service | tail -20; false; }; }
the_unit_with_credentials_runs() { systemctl is-active private.service || { systemctl status --no-pager private.service; false; }; }
the_app_is_version_one() { says registry.test/app:1 'app one'; }
the_private_image_runs() { says private.test/private:1 private; }
the_tool_runs() { says registry.test/tool:1 tool; }
an_image_is_found_where_bootc_has_its_store() {
  podman --storage-opt=additionalimagestore=/usr/lib/bootc/storage run --rm --pull=never "${RUN[@]}" registry.test/app:1
}
pruning_leaves_what_is_bound() {
  podman image prune -af
  podman system prune -af
  ! podman rmi -f registry.test/tool:1
  says registry.test/tool:1 tool
  says private.test/private:1 private
}
podman_starts_while_an_image_is_stored() { # A lock of the store that is being written is nobody else's to wait for.
  flock "$STORE/storage/overlay-layers/layers.lock" timeout 20 podman run --rm --pull=never "${RUN[@]}" registry.test/app:1
}
the_admins_image_shares_layers_with_ours() {
  printf 'FROM registry.test/app:1\nLABEL own=1\n' >"$STATE/Containerfile"
  podman build --pull=never --isolation=chroot --network=host -q -t localhost/own:1 -f "$STATE/Containerfile" "$STATE"
  says localhost/own:1 'app one'
}
the_update_to_version_3_succeeds() { osctl rebase registry.test/os:v3; }
the_tag_means_what_it_meant_as_long_as_version_2_runs() { says registry.test/app:1 'app one'; }

version_3_is_booted() { ostree admin status; [ "$(os_version)" = 3 ]; }
the_app_is_version_two() { says registry.test/app:1 'app two'; }
both_digests_are_stored() {
  expect_stored "registry.test/app@$APP_ONE" "registry.test/app@$APP_TWO" "private.test/private@$PRIVATE" "registry.test/tool@$TOOL"
}
the_rollback_succeeds() { osctl rollback; }
version_2_is_back() { ostree admin status; [ "$(os_version)" = 2 ]; }
a_bundle_of_version_4_is_made() { osctl bundle create registry.test/os:v4 -o "oci-archive:$BUNDLE" && osctl bundle list "$BUNDLE"; }
the_bundle_has_what_version_4_binds() { osctl bundle list "$BUNDLE" | grep "^registry.test/tool:1 .* bound$"; }
without_the_bundle_there_is_no_version_4() { ! osctl rebase registry.test/os:v4; }
the_rebase_to_version_4_takes_the_bundle() { osctl rebase registry.test/os:v4 --from-bundle "$BUNDLE"; }
the_host_follows_the_registry_and_not_the_bundle() { osctl status --json | grep -o '"image":"[^"]*"' | head -1 | grep registry.test/os:v4; }

version_4_is_booted() { ostree admin status; [ "$(os_version)" = 4 ]; }
only_the_tool_is_bound_now() { podman images; ! podman image exists registry.test/app:1; says registry.test/tool:1 tool; }
what_the_rollback_needs_is_left_and_nothing_else() {
  osctl status
  expect_stored "registry.test/app@$APP_ONE" "private.test/private@$PRIVATE" "registry.test/tool@$TOOL"
}
the_admins_image_survives() { says localhost/own:1 'app one'; }
podman_images_of_each_deployment_run() {
  local view name
  for view in "$STORE"/views/*; do
    for name in $(podman --root "$STATE/empty" --storage-opt="additionalimagestore=$view" images --format '{{.Repository}}:{{.Tag}}' | grep -v '<none>'); do
      echo "$view $name"
      podman --root "$STATE/empty" --storage-opt="additionalimagestore=$view" run --rm --pull=never "${RUN[@]}" "$name"
    done
  done
}

echo "# $TIER, phase $PHASE, up for $(cut -d' ' -f1 /proc/uptime) s"
case $PHASE in
  missing_layer)
    registries "$REGISTRY" "$PRIVATE_REGISTRY"
    printf '{"auths": {"%s": {"auth": "%s"}}}' "$PRIVATE_REGISTRY" "$CREDENTIALS" >/etc/app-auth.json
    chmod 600 /etc/app-auth.json
    check the_host_reaches_state_running
    check podman_works_before_anything_is_bound
    check podman_of_a_user_works
    check the_registry_is_reached
    check a_lost_layer_fails_the_rebase
    check the_error_names_image_and_file
    check nothing_was_staged
    check what_was_finished_is_kept
    ask_for back
    check the_retry_succeeds
    check all_three_are_stored
    check nothing_is_shown_before_the_boot
    check the_network_goes_away
    next bound
    ;;
  bound)
    check version_2_is_booted
    check the_network_is_down
    check the_host_reaches_state_running
    check podman_has_the_entry_from_the_derivation
    check the_unit_of_the_quadlet_runs
    check the_unit_with_credentials_runs
    check the_app_is_version_one
    check the_private_image_runs
    check the_tool_runs
    check an_image_is_found_where_bootc_has_its_store
    check podman_of_a_user_works
    check pruning_leaves_what_is_bound
    check podman_starts_while_an_image_is_stored
    check the_admins_image_shares_layers_with_ours
    check the_network_comes_back
    check the_registry_is_reached
    ask_for move
    check the_update_to_version_3_succeeds
    check the_tag_means_what_it_meant_as_long_as_version_2_runs
    next moved
    ;;
  moved)
    check version_3_is_booted
    check the_app_is_version_two
    check the_unit_of_the_quadlet_runs
    check both_digests_are_stored
    check the_rollback_succeeds
    next back
    ;;
  back)
    check version_2_is_back
    check the_app_is_version_one
    check the_unit_of_the_quadlet_runs
    check podman_images_of_each_deployment_run
    check the_registry_is_reached
    check a_bundle_of_version_4_is_made
    check the_bundle_has_what_version_4_binds
    check the_network_goes_away
    check the_network_is_down
    check without_the_bundle_there_is_no_version_4
    check the_rebase_to_version_4_takes_the_bundle
    check the_host_follows_the_registry_and_not_the_bundle
    rm "$BUNDLE"
    next unbound
    ;;
  unbound)
    check version_4_is_booted
    check the_host_reaches_state_running
    check only_the_tool_is_bound_now
    check what_the_rollback_needs_is_left_and_nothing_else
    check the_admins_image_survives
    check podman_images_of_each_deployment_run
    check podman_of_a_user_works
    finish
    ;;
esac
