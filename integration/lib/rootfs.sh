#!/bin/bash
# Builds the Debian root file system that the test OS images are made of: WORK/rootfs/base.tar.
# About two minutes, once: the tar is kept until the package list below or the Debian release changes.
# Packages come from wherever this machine's own apt gets them; no host name is written here.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# A host: init, bus, polkit, kernel, initramfs generator with the ostree module, and what osctl runs or links.
PACKAGES=(
  systemd systemd-sysv udev dbus polkitd pkexec libnss-systemd kmod procps less iproute2 e2fsprogs zstd ca-certificates
  "linux-image-cloud-$(dpkg --print-architecture 2>/dev/null || echo amd64)" dracut
  ostree ostree-boot skopeo podman crun conmon bubblewrap adduser
)
# What no test looks at: half of the size.
EXCLUDE=('/usr/share/man/*' '/usr/share/doc/*' '/usr/share/locale/*' '/usr/share/info/*' '/usr/lib/cni/*')

# The repositories of this machine's release, one sources.list line each, from apt's own answer.
apt_sources() {
  local codename=$1 site release component
  # shellcheck disable=SC2016  # the $(..) below are apt's placeholders
  apt-get indextargets --format '$(SITE)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' | sort -u |
    while IFS='|' read -r site release component; do
      case $release in "$codename" | "$codename-updates" | "$codename-security") ;; *) continue ;; esac
      [ "$component" = main ] || continue
      printf 'deb %s %s %s\n' "$site" "$release" "$component"
    done
}

# The keys this machine trusts for them: apt's own directory and whatever a source names with Signed-By.
apt_keys() {
  local dir=$1 k
  rm -rf "$dir"
  mkdir -p "$dir"
  {
    find /etc/apt/trusted.gpg.d -type f 2>/dev/null || true
    sed -n 's/^Signed-By: *//Ip; s/.*signed-by=\([^] ]*\).*/\1/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true
  } | sort -u | while read -r k; do
    if [ -f "$k" ]; then cp "$k" "$dir/"; fi
  done
}

# bootstrap DIR PACKAGE...: DIR/base.tar, kept as long as the packages and the release stay the same. With SUITE set, of another
# release of the same archive.
bootstrap() {
  command -v mmdebstrap >/dev/null || die "mmdebstrap is missing; run: integration/lib/deps.sh image"
  # shellcheck source=/dev/null
  . /etc/os-release
  local codename=${VERSION_CODENAME:-} dir=$1 stamp sources excludes=() e
  shift
  if [ "${ID:-}" != debian ] || [ -z "$codename" ]; then
    die "the test OS image is built from the Debian release of this machine, and this is not Debian (${ID:-unknown})"
  fi
  mkdir -p "$dir"
  local suite=${SUITE:-$codename} options=()
  stamp="$suite $(dpkg --print-architecture) $* ${EXCLUDE[*]}"
  if [ -s "$dir/base.tar" ] && [ "$(cat "$dir/stamp" 2>/dev/null)" = "$stamp" ]; then
    note "root file system: kept from an earlier run ($dir/base.tar)"
    return 0
  fi
  sources=$dir/sources.list
  apt_sources "$codename" >"$sources"
  if [ "$suite" != "$codename" ]; then
    sed -n "s/ $codename main$/ $suite main/p" -i "$sources"
    # Mirrors of what is not released may be behind.
    options=('--aptopt=Acquire::Check-Valid-Until "false"')
  fi
  [ -s "$sources" ] || die "apt knows no repository for $codename here; run apt-get update and look at /etc/apt"
  apt_keys "$dir/keys"
  for e in "${EXCLUDE[@]}"; do excludes+=("--dpkgopt=path-exclude=$e"); done
  say "Building a Debian $suite root file system of $# packages and what they need (a few minutes, once)"
  local IFS=,
  mmdebstrap --quiet --variant=minbase --include="$*" "${excludes[@]}" "${options[@]}" --keyring="$dir/keys" --format=tar "$suite" "$dir/base.tar.new" "$sources"
  mv "$dir/base.tar.new" "$dir/base.tar"
  printf '%s\n' "$stamp" >"$dir/stamp"
}

build_rootfs() { bootstrap "$WORK/rootfs" "${PACKAGES[@]}"; }

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  need_root demo
  build_rootfs
fi
