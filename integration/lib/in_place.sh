# shellcheck shell=bash
# shellcheck disable=SC2016  # commands of claims are evaluated when they are checked
# The drop-ins of a host in a container build. Part of packages-test.sh: its functions are used here.

build_podman() {
  TMPDIR=$D/podman podman --root "$D/podman/store" --runroot "$D/podman/run" --storage-driver overlay --events-backend none "$@"
}

# build_in_place [OPTION]...: a build on the host's image that derives itself, twice.
build_in_place() {
  build_podman build --isolation=chroot --network=host --no-cache --tag in-place:1 "$@" "$D/podman/context" >"$D/out" 2>&1 && return 0
  cat "$D/out"
  return 1
}

# tree_in USR ETC: kind, mode, owner, content of all that an image and a host have in common. Not: what names the base, what a
# host makes of an image's /var, what podman mounts, and osctl itself, which is copied into the build.
tree_in() {
  local list='%y %m %U:%G %p %l ' skip
  {
    (cd "$1" && find . -path ./etc -prune -o -printf "usr $list" \( -type f -exec sha256sum {} \; -o -printf '\n' \))
    (cd "$2" && find . -printf "etc $list" \( -type f -exec sha256sum {} \; -o -printf '\n' \))
  } >"$D/tree"
  skip='./lib/osctl/derived.json|./lib/osctl/derive.lock|./lib/tmpfiles.d/osctl-var.conf|./bin/osctl|./hosts|./hostname|./resolv.conf|./mtab'
  awk -v skip="^($skip)\$" '$5 !~ skip' "$D/tree" | LC_ALL=C sort
}

derives_once() { [ "$(grep -c '^Derived /\.$' "$D/out") $(grep -cF 'No changes in input.' "$D/out")" = '1 1' ]; }

in_place_cases() {
  local mount context=$D/podman/context
  say "The same in a container build"
  umount_below "$D/podman"
  rm -rf "$D/podman"
  mkdir -p "$context"
  at_exit "umount_below '$D/podman'"
  cp -a "$H/config/etc/osctl/derive.d" "$context/derive.d"
  install -s "$OSCTL" "$context/osctl"
  cat >"$context/Containerfile" <<'CONTAINERFILE'
FROM localhost/base:1
COPY osctl /usr/bin/osctl
RUN --mount=type=bind,source=derive.d,target=/derive.d --mount=type=tmpfs,target=/var/tmp SOURCE_DATE_EPOCH=1704067200 osctl derive --in-place -i /derive.d
RUN --mount=type=bind,source=derive.d,target=/derive.d --mount=type=tmpfs,target=/var/tmp SOURCE_DATE_EPOCH=1704067200 osctl derive --in-place -i /derive.d
CONTAINERFILE
  mkdir "$context/no-packages"
  printf 'files: [{path: /etc/motd.d/x, contents: {inline: hello}}]\nusers: [{name: motd, system: true}]\n' >"$context/no-packages/50-motd.yaml"
  sed 's/source=derive.d/source=no-packages/; s/--mount=type=tmpfs[^ ]* //' "$context/Containerfile" >"$context/Containerfile.no-packages"
  skopeo copy --quiet "oci:$D/layout:v1" "containers-storage:[overlay@$D/podman/store+$D/podman/run]localhost/base:1"
  check "a step derives the image that it builds" build_in_place --file "$context/Containerfile.no-packages"
  check "once: a second time there is nothing to do" derives_once
  check "a step that may not mount gets no packages, and hears what to do" eval '! build_in_place && grep -F "packages need mounts" "$D/out" && grep -F "osctl derive --base" "$D/out"'
  check "one that may mount does" build_in_place --cap-add=CAP_SYS_ADMIN --security-opt=seccomp=unconfined
  check "and has nothing to do a second time either" derives_once
  mount=$(build_podman image mount in-place:1)
  tree_in "$mount/usr" "$mount/etc" >"$D/of-image"
  tree_in "$(next)/usr" "$(next)/usr/etc" >"$D/of-host"
  check "the image has the files of the host" diff "$D/of-host" "$D/of-image"
  check "with their packages in the database" eval 'grep -q "agent-helper" "$D/of-image" && [ "$(jq -r ".packages[0].name" "'"$mount"'/usr/lib/osctl/derive.lock")" = agent ]'
  build_podman image umount in-place:1 >/dev/null
  rm -rf "$D/of-image" "$D/of-host"
}
