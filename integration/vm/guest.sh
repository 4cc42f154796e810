#!/bin/bash
# Runs inside the test OS, once per boot; /var/lib/rig/phase says where the scenario stands. Input: ./env.
set -u
# shellcheck source=/dev/null
. ./env
REPO_HOST=${REPO#http://} REPO_HOST=${REPO_HOST%%:*}
REPO_PORT=${REPO##*:} REPO_PORT=${REPO_PORT%/}
# shellcheck source=/dev/null
. ./scenario.sh
PHASE=$(phase missing_image)

unprivileged() { runuser -u nobody -- "$@"; }
os_version() { cat /usr/share/os-version; }
entries() { cat /boot/loader/entries/*.conf; }
# A package is there in this version, by its file and by the database.
has_tool() { dpkg-query -W rig-tool; [ "$(cat /usr/share/rig-tool/version) $(dpkg-query -W -f '${Version}' rig-tool)" = "$1 $1" ]; }
deployed() { ostree admin status | grep -c "^[* ] *osctl "; }

# --- the host as installed ------------------------------------------------------------------------------------------------
version_1_is_booted() { [ "$(os_version)" = 1 ]; }
the_host_reaches_state_running() { systemctl is-system-running --wait; }
the_system_bus_activates_osctld() { busctl --system introspect org.osctl1 /org/osctl1 | grep org.osctl1.Manager; }
an_unprivileged_user_can_read_status() { unprivileged osctl status; }
polkit_refuses_an_unprivileged_upgrade() {
  local rc=0
  unprivileged osctl upgrade || rc=$?
  echo "exit code $rc, 4 expected"
  [ "$rc" = 4 ]
}
a_refused_upgrade_leaves_no_staged_deployment() { [ ! -e /run/ostree/staged-deployment ]; }
podman_works_before_anything_is_bound() { podman images; }
the_guest_reaches_the_registry() {
  local i
  for i in $(seq 60); do
    skopeo inspect --raw "docker://$REGISTRY/os:v2" >/dev/null && return 0
    sleep 1
  done
  ip addr
  return 1
}

# --- a package that the image excludes ------------------------------------------------------------------------------------
a_package_that_conflicts_with_one_of_the_image_is_refused() {
  local rc=0
  printf 'packages: [rig-rival]\nrepos: [{id: rig, baseurl: "%s", gpgcheck: false}]\n' "$REPO" >/etc/osctl/derive.d/75-rival.yaml
  osctl reconcile >"$STATE/rival.out" 2>&1 || rc=$?
  rm /etc/osctl/derive.d/75-rival.yaml
  cat "$STATE/rival.out"
  echo "exit code $rc, 1 expected"
  [ "$rc" = 1 ]
}
the_error_names_both_packages() { cat "$STATE/rival.out"; grep rig-rival "$STATE/rival.out" | grep rig-base; }

# --- a bound image that the registry does not have ------------------------------------------------------------------------
a_missing_bound_image_fails_the_rebase() {
  local rc=0
  osctl rebase "$REGISTRY/os:v2" >"$STATE/missing.out" 2>&1 || rc=$?
  cat "$STATE/missing.out"
  echo "exit code $rc, 1 expected"
  [ "$rc" = 1 ]
}
the_error_names_the_missing_image() { cat "$STATE/missing.out"; grep -q "$REGISTRY/not-there:1" "$STATE/missing.out"; }
nothing_was_staged() { ostree admin status; [ ! -e /run/ostree/staged-deployment ] && [ "$(deployed)" = 1 ]; }

# --- an update that libostree cannot finalize at shutdown, which it does not say to anybody ------------------------------
the_old_version_still_boots_after_a_failed_finalization() { ostree admin status; [ "$(os_version)" = 1 ] && [ "$(deployed)" = 1 ]; }
the_failed_finalization_is_told() {
  osctl status --json
  osctl status | grep -i 'finaliz'
  osctl status --json | tr -d ' \n' | grep -o '"last-outcome":{"ok":false[^}]*}' | grep '"phase":"finalize"'
}

# --- the update -----------------------------------------------------------------------------------------------------------
rebase_to_version_2_succeeds() { osctl rebase "$REGISTRY/os:v2"; }
the_new_deployment_is_staged() { ostree admin status; [ -e /run/ostree/staged-deployment ]; }
the_staged_deployment_is_applied_at_shutdown() { systemctl is-active ostree-finalize-staged.service; }
status_names_the_new_digest() { osctl status --json | grep -q "$V2_DIGEST"; }

version_2_is_booted() { ostree admin status; [ "$(os_version)" = 2 ]; }
the_boot_was_noted_before_anything_else_asked() {
  systemctl show -p Result,ConditionResult,ExecMainExitTimestamp osctl-boot.service
  [ "$(systemctl show -p Result,ConditionResult,ExecMainStatus --value osctl-boot.service | tr '\n' ' ')" = "success 0 yes " ]
}
status_says_the_new_digest_is_booted() {
  osctl status --json
  osctl status --json | tr -d ' \n' | grep -q "\"digest\":\"$V2_DIGEST\"[^{]*\"booted\":true"
}
the_outcome_of_the_update_is_told() {
  osctl status --json | tr -d ' \n' | grep -o '"last-outcome":{"ok":true[^}]*}' | grep "$V2_DIGEST"
}
a_file_that_version_2_deletes_is_gone() { [ ! -e /usr/share/only-in-1 ]; }
an_untouched_etc_file_takes_the_new_default() { grep -x 'default of version 2' /etc/rig-default.conf; }
a_locally_changed_etc_file_is_kept() { grep -x 'changed by the admin' /etc/rig-local.conf; }
state_in_var_is_kept() { [ -e /var/lib/rig/kept ]; }
the_service_of_the_timer_looks_for_updates() {
  systemctl start osctl-upgrade.service
  [ "$(systemctl show -p Result --value osctl-upgrade.service)" = success ]
}
the_file_of_the_drop_in_is_there() { grep -x 'hello from a drop-in' /etc/agent.conf; }
the_unit_of_the_drop_in_runs() { systemctl is-active agent.service || { systemctl status --no-pager agent.service; false; }; }
the_package_of_the_drop_in_is_installed() { dpkg-query -W rig-agent; [ "$(dpkg-query -W -f '${Status}' rig-agent)" = 'install ok installed' ]; }
the_package_of_the_image_is_replaced() { has_tool 1.1; grep -q '"name": *"rig-tool"' /usr/lib/osctl/derive.lock; }
status_says_what_is_replaced() { osctl status -v; osctl status -v | grep 'rig-tool=1.1: applied.*(80-hotfix.yaml)'; }
the_package_has_its_user_and_its_state() {
  grep rig-agent /usr/lib/sysusers.d/00-osctl-packages.conf /usr/lib/tmpfiles.d/osctl-packages.conf
  getent passwd rig-agent
  [ "$(stat -c %U:%a /var/lib/rig-agent)" = rig-agent:750 ]
}
the_service_of_the_package_runs() { systemctl is-active rig-agent.service || { systemctl status --no-pager rig-agent.service; false; }; }
the_kernel_argument_is_in_the_boot_entry() { entries; entries | grep -q 'rig\.karg=1'; }
the_kernel_was_booted_with_the_argument() { cat /proc/cmdline; grep -q 'rig\.karg=1' /proc/cmdline; }
podman_lists_the_bound_image() { podman images; podman image exists "$REGISTRY/app:1"; }
podman_starts_the_bound_container_with_the_network_down() {
  local app=$REGISTRY/app:1 i out
  if [ "$TIER" = qemu ]; then
    ip -br link | awk '$1 != "lo" {print $1}' | while read -r i; do ip link set dev "$i" down; done
    if skopeo inspect --raw "docker://$REGISTRY/app:1"; then echo "the network is not down"; return 1; fi
    out=$(podman run --rm --network=none --pull=never "$app")
  else
    # The container tier shares the host's network, so podman gets an empty network namespace instead. No cgroups of its own:
    # crun's device filter needs rights that a nested container does not have everywhere. The qemu tier runs it in full.
    out=$(unshare -n podman run --rm --network=host --cgroups=disabled --pull=never "$app")
  fi
  echo "$out"
  [ "$out" = 'hello from the bound app' ]
}
the_repository_is_sound() { ostree fsck --quiet; }
rollback_succeeds() { osctl rollback; }

# --- back again -----------------------------------------------------------------------------------------------------------
version_1_is_back() { ostree admin status; [ "$(os_version)" = 1 ]; }
version_1_has_its_own_etc_again() {
  head /etc/rig-*.conf
  grep -x 'default of version 1' /etc/rig-default.conf
  grep -x 'changed by the admin' /etc/rig-local.conf # not what was written while version 2 ran
}
the_drop_ins_file_went_with_version_2() { [ ! -e /etc/agent.conf ]; }
the_package_went_with_version_2() { [ ! -e /usr/lib/systemd/system/rig-agent.service ] && ! dpkg-query -W rig-agent; }
the_drop_ins_unit_went_with_version_2() { ! systemctl is-active agent.service; }
version_1_was_booted_without_the_argument() { cat /proc/cmdline; ! grep -q 'rig\.karg=1' /proc/cmdline; }
status_still_lists_version_2_for_going_forward() { osctl status --json >"$STATE/status"; cat "$STATE/status"; grep -q "$V2_DIGEST" "$STATE/status"; }

# --- another update, when the package repository is gone ------------------------------------------------------------------
the_package_of_the_image_is_its_own_again() { has_tool 1.0; }
going_forward_again_succeeds() { osctl rollback; }
the_package_repository_goes_away() {
  local i
  for i in $(seq 60); do
    (exec 3<>"/dev/tcp/$REPO_HOST/$REPO_PORT") 2>/dev/null || return 0
    sleep 1
  done
  echo "$REPO still answers"
  return 1
}
rebase_to_version_3_succeeds_without_the_repository() {
  osctl rebase "$REGISTRY/os:v3" >"$STATE/v3.out" 2>&1 || { cat "$STATE/v3.out"; return 1; }
}
the_job_says_that_packages_are_those_of_before() {
  cat "$STATE/v3.out"
  grep 'packages are those of before' "$STATE/v3.out"
  ! grep 'nothing was staged' "$STATE/v3.out"
}
status_says_degraded_and_why_and_until_when() {
  osctl status
  osctl status | grep -x 'State: degraded'
  osctl status | grep 'packages cannot be had since .*, those of before are used; next attempt .*: .*'"$REPO_HOST:$REPO_PORT"
  ! osctl status | grep 'nothing was staged'
}

version_3_is_booted() { ostree admin status; [ "$(os_version)" = 3 ]; }
status_says_the_version_3_digest_is_booted() {
  osctl status --json | tr -d ' \n' | grep -q "\"digest\":\"$V3_DIGEST\"[^{]*\"booted\":true"
}
the_version_that_was_asked_for_is_the_images_own() { has_tool 1.1; ! grep -q rig-tool /usr/lib/osctl/derive.lock; }
status_says_that_the_hotfix_can_go() {
  osctl status -v
  osctl status -v | grep 'rig-tool=1.1: redundant: the image has this version now, the hotfix can go (80-hotfix.yaml)'
}
a_hotfix_is_removed_without_the_repository() { rm /etc/osctl/derive.d/80-hotfix.yaml; osctl reconcile; }
what_is_staged_has_the_same_version_without_it() {
  local staged
  ostree admin status
  staged=/ostree/deploy/osctl/deploy/$(ostree admin status | sed -n '/staged/{s/^ *osctl \([0-9a-f]*\.[0-9]*\).*/\1/p;q}')
  [ "$(cat "$staged/usr/share/rig-tool/version")" = 1.1 ]
  [ "$(dpkg-query --admindir "$staged/usr/lib/sysimage/dpkg" -W -f '${Version}' rig-tool)" = 1.1 ]
  [ "$(dpkg-query --admindir "$staged/usr/lib/sysimage/dpkg" -W -f '${Version}' rig-agent)" = 1.0 ]
  ! grep -q rig-tool "$staged/usr/lib/osctl/derived.json"
}

write_dropins() {
  mkdir -p /etc/osctl/derive.d /etc/osctl/bound-images.d
  cat >/etc/osctl/derive.d/50-agent.yaml <<'YAML'
files:
  - path: /etc/agent.conf
    contents: {inline: "hello from a drop-in\n"}
    mode: 0644
units:
  - name: agent.service
    enabled: true
    contents: |
      [Unit]
      Description=Agent that a drop-in added
      [Service]
      ExecStart=/bin/sleep infinity
      [Install]
      WantedBy=multi-user.target
YAML
  printf 'kernel-arguments: {append: [rig.karg=1]}\n' >/etc/osctl/derive.d/60-kargs.yaml
  printf 'packages: [rig-agent]\nrepos: [{id: rig, baseurl: "%s", gpgcheck: false}]\n' "$REPO" >/etc/osctl/derive.d/70-packages.yaml
  echo 'override-replace: [rig-tool=1.1]' >/etc/osctl/derive.d/80-hotfix.yaml
}
bind_image() {
  printf 'image = "%s"\nmode = "bind"\ntls-verify = false\n' "$1" >/etc/osctl/bound-images.d/app.toml
}

echo "# $TIER, phase $PHASE, up for $(cut -d' ' -f1 /proc/uptime) s"
case $PHASE in
  missing_image)
    mkdir -p /etc/containers/registries.conf.d
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$REGISTRY" >/etc/containers/registries.conf.d/50-rig.conf
    check version_1_is_booted
    check the_host_reaches_state_running
    check podman_works_before_anything_is_bound
    check the_system_bus_activates_osctld
    check an_unprivileged_user_can_read_status
    check polkit_refuses_an_unprivileged_upgrade
    check a_refused_upgrade_leaves_no_staged_deployment
    check the_guest_reaches_the_registry
    check a_package_that_conflicts_with_one_of_the_image_is_refused
    check the_error_names_both_packages
    check nothing_was_staged
    write_dropins
    bind_image "$REGISTRY/not-there:1"
    check a_missing_bound_image_fails_the_rebase
    check the_error_names_the_missing_image
    check nothing_was_staged
    bind_image "$REGISTRY/app:1"
    check rebase_to_version_2_succeeds
    check the_staged_deployment_is_applied_at_shutdown
    # Version 2 has a directory of this name. The preflight saw no conflict, because this comes after it.
    echo 'in the way' >/etc/rig-new.d
    next update
    ;;
  update)
    check the_old_version_still_boots_after_a_failed_finalization
    check the_failed_finalization_is_told
    rm /etc/rig-new.d
    check the_guest_reaches_the_registry
    echo 'changed by the admin' >/etc/rig-local.conf
    touch /var/lib/rig/kept
    check rebase_to_version_2_succeeds
    check the_new_deployment_is_staged
    check the_staged_deployment_is_applied_at_shutdown
    check status_names_the_new_digest
    next updated
    ;;
  updated)
    check version_2_is_booted
    check podman_lists_the_bound_image
    check the_boot_was_noted_before_anything_else_asked
    check the_host_reaches_state_running
    check status_says_the_new_digest_is_booted
    check the_outcome_of_the_update_is_told
    check a_file_that_version_2_deletes_is_gone
    check an_untouched_etc_file_takes_the_new_default
    check a_locally_changed_etc_file_is_kept
    check state_in_var_is_kept
    check the_service_of_the_timer_looks_for_updates
    check the_file_of_the_drop_in_is_there
    check the_unit_of_the_drop_in_runs
    check the_package_of_the_drop_in_is_installed
    check the_package_of_the_image_is_replaced
    check status_says_what_is_replaced
    check the_package_has_its_user_and_its_state
    check the_service_of_the_package_runs
    check the_kernel_argument_is_in_the_boot_entry
    [ "$TIER" != qemu ] || check the_kernel_was_booted_with_the_argument
    check podman_starts_the_bound_container_with_the_network_down
    check the_repository_is_sound
    echo 'changed while version 2 ran' >/etc/rig-local.conf
    check rollback_succeeds
    next rolled_back
    ;;
  rolled_back)
    check version_1_is_back
    check version_1_has_its_own_etc_again
    check the_drop_ins_file_went_with_version_2
    check the_drop_ins_unit_went_with_version_2
    check the_package_went_with_version_2
    [ "$TIER" != qemu ] || check version_1_was_booted_without_the_argument
    check status_still_lists_version_2_for_going_forward
    check the_package_of_the_image_is_its_own_again
    # From version 2, whose packages are kept, to version 3.
    check going_forward_again_succeeds
    echo "# the repository may go"
    check the_package_repository_goes_away
    check rebase_to_version_3_succeeds_without_the_repository
    check the_job_says_that_packages_are_those_of_before
    check status_says_degraded_and_why_and_until_when
    check the_staged_deployment_is_applied_at_shutdown
    next rebuilt
    ;;
  rebuilt)
    check version_3_is_booted
    check status_says_the_version_3_digest_is_booted
    check the_host_reaches_state_running
    check the_package_of_the_drop_in_is_installed
    check the_package_has_its_user_and_its_state
    check the_service_of_the_package_runs
    check the_version_that_was_asked_for_is_the_images_own
    check status_says_that_the_hotfix_can_go
    check status_says_degraded_and_why_and_until_when
    check a_hotfix_is_removed_without_the_repository
    check what_is_staged_has_the_same_version_without_it
    finish
    ;;
esac
