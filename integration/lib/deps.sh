#!/bin/bash
# deps.sh TARGET...: installs what `make TARGET` needs and is not there. Groups: build, image, demo, test, vm-test, bench, profile, lint.
# Debian: apt. Fedora: dnf. Anywhere else: prints what is missing and fails.
# Nothing is removed, unless DEPS_MAY_REMOVE=1, which is for machines that are thrown away.
# shellcheck disable=SC2034  # the NEED_ lists are read by name
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Each line: a command or file that proves the part is there | Debian package | Fedora package
NEED_build='
cc|gcc|gcc
make|make|make
pkg-config|pkg-config|pkgconf-pkg-config
/pc/ostree-1|libostree-dev|ostree-devel
/pc/openssl|libssl-dev|openssl-devel
/pc/libzstd|libzstd-dev|libzstd-devel
'
NEED_run='
ostree|ostree|ostree
skopeo|skopeo|skopeo
podman|podman|podman
dbus-daemon|dbus-daemon|dbus-daemon
busctl|systemd|systemd
curl|curl|curl
python3|python3|python3
docker-registry|docker-registry|docker-distribution
'
NEED_image="$NEED_run"'
mmdebstrap|mmdebstrap|-
busybox|busybox-static|busybox
systemd-nspawn|systemd-container|systemd-container
chattr|e2fsprogs|e2fsprogs
unshare|util-linux|util-linux
jq|jq|jq
'
NEED_demo="$NEED_build$NEED_image"
NEED_test="$NEED_build$NEED_run"'
/usr/lib/polkit-1/polkitd|polkitd|polkit
bwrap|bubblewrap|bubblewrap
jq|jq|jq
strace|strace|strace
gpg|gnupg|gnupg2
chattr|e2fsprogs|e2fsprogs
mkfs.ext4|e2fsprogs|e2fsprogs
mmdebstrap|mmdebstrap|-
dpkg-scanpackages|dpkg-dev|dpkg-dev
rpmbuild|rpm|rpm-build
rpmsign|rpm|rpm-sign
createrepo_c|createrepo-c|createrepo_c
unshare|util-linux|util-linux
'
NEED_vm_test="$NEED_demo"'
dpkg-scanpackages|dpkg-dev|dpkg-dev
qemu-system-x86_64|qemu-system-x86|qemu-system-x86-core
/usr/share/seabios/bios-256k.bin|seabios|seabios-bin
extlinux|extlinux|syslinux-extlinux
/usr/lib/EXTLINUX/mbr.bin|extlinux|syslinux-nonlinux
sfdisk|fdisk|util-linux
mkfs.ext4|e2fsprogs|e2fsprogs
mkfs.xfs|xfsprogs|xfsprogs
losetup|mount|util-linux
taskset|util-linux|util-linux
localedef|libc-bin|glibc-common
rpmbuild|rpm|rpm-build
rpmsign|rpm|rpm-sign
createrepo_c|createrepo-c|createrepo_c
gpg|gnupg|gnupg2
'
NEED_bench="$NEED_demo"'
mkfs.ext4|e2fsprogs|e2fsprogs
losetup|mount|util-linux
strace|strace|strace
igzip|isal|-
openssl|openssl|openssl
'
# make bench itself does without: only integration/bench/profile.sh needs it.
NEED_profile="$NEED_bench"'
perf|linux-perf|perf
'
NEED_lint="$NEED_build"'
shellcheck|shellcheck|ShellCheck
'

present() {
  case $1 in
    /pc/*) command -v pkg-config >/dev/null && pkg-config --exists "${1#/pc/}" ;;
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
  esac
}

# Prints the packages of column COLUMN (2 Debian, 3 Fedora) whose proof is missing.
missing() {
  local column=$1 proof deb rpm
  while IFS='|' read -r proof deb rpm; do
    [ -n "$proof" ] || continue
    if ! present "$proof"; then
      if [ "$column" = 2 ]; then echo "$deb"; else echo "$rpm"; fi
    fi
  done | sort -u
}

install_debian() {
  local before after
  # apt prints nothing useful without lists, and a fresh container has none.
  # shellcheck disable=SC2016  # apt's placeholder
  before=$(apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' | xargs -r ls -d 2>/dev/null || true)
  if [ -z "$before" ]; then
    note "apt has no package lists: apt-get update"
    apt-get update -q
  fi
  note "installing: $*"
  # A simulation first: apt would resolve a conflict by removing something of yours (seen with qemu-utils from backports).
  if ! before=$(apt-get install -s --no-install-recommends "$@" 2>/dev/null); then
    # Lists from before a point release name versions that no longer fit what is installed or on the mirror.
    note "apt finds no solution with the lists that it has: apt-get update"
    apt-get update -q
  fi
  before=$(apt-get install -s --no-install-recommends "$@") ||
    die "apt cannot install: $*. Its own words are above; try apt-get update, or install them by hand."
  after=$(printf '%s\n' "$before" | sed -n 's/^Remv \([^ ]*\).*/\1/p' | tr '\n' ' ')
  if [ -n "$after" ] && [ "${DEPS_MAY_REMOVE:-}" = 1 ]; then
    note "removing, as DEPS_MAY_REMOVE=1 allows: $after"
  elif [ -n "$after" ]; then
    die "installing ($*) would remove: $after. Nothing was changed. Install by hand in versions that agree (for qemu-utils: the version of qemu-system-x86), or, if you do not need them, allow it: DEPS_MAY_REMOVE=1."
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

rust_is_new_enough() {
  local have want
  command -v cargo >/dev/null || return 1
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml")
  have=$(cargo --version | cut -d' ' -f2)
  [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -1)" = "$want" ]
}

# Rust from the distribution when that is new enough; otherwise the reader decides where it comes from.
need_rust() {
  local want candidate
  if [ -x "$HOME/.cargo/bin/cargo" ]; then PATH=$HOME/.cargo/bin:$PATH; fi
  if rust_is_new_enough; then return 0; fi
  want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO_DIR/Cargo.toml")
  case $1 in
    debian)
      candidate=$(apt-cache policy cargo | sed -n 's/^ *Candidate: *//p')
      if [ "$(printf '%s\n%s\n' "$want" "$candidate" | sort -V | head -1)" = "$want" ]; then
        install_debian cargo rustc rustfmt rust-clippy
      fi
      ;;
    fedora) dnf install -y cargo rust rustfmt clippy ;;
  esac
  rust_is_new_enough ||
    die "Rust $want or newer is needed and this distribution has none that new. Install it with rustup (https://rustup.rs), then run make again."
}

main() {
  local list='' g id rust=0 packages
  for g in "$@"; do
    g=NEED_${g//-/_}
    [ -n "${!g:-}" ] || die "deps.sh knows no group ${g#NEED_}"
    list+=${!g}$'\n'
  done
  case $list in *"$NEED_build"*) rust=1 ;; esac
  # shellcheck source=/dev/null
  id=$(. /etc/os-release 2>/dev/null && echo " ${ID:-} ${ID_LIKE:-} ")
  case $id in
    *' debian '*)
      mapfile -t packages < <(missing 2 <<<"$list")
      if [ "${#packages[@]}" -gt 0 ]; then
        [ "$(id -u)" = 0 ] || die "missing Debian packages: ${packages[*]}. Run as root, or: sudo apt-get install ${packages[*]}"
        install_debian "${packages[@]}"
      fi
      [ "$rust" = 0 ] || need_rust debian
      ;;
    *' fedora '*)
      mapfile -t packages < <(missing 3 <<<"$list" | grep -vx -- -)
      if [ "${#packages[@]}" -gt 0 ]; then
        [ "$(id -u)" = 0 ] || die "missing Fedora packages: ${packages[*]}. Run as root, or: sudo dnf install ${packages[*]}"
        dnf install -y --setopt=install_weak_deps=False "${packages[@]}"
      fi
      [ "$rust" = 0 ] || need_rust fedora
      ;;
    *)
      mapfile -t packages < <(missing 2 <<<"$list")
      if [ "${#packages[@]}" -gt 0 ]; then
        die "this distribution is unknown here; please install what Debian calls: ${packages[*]}"
      fi
      [ "$rust" = 0 ] || need_rust unknown
      ;;
  esac
  if [ "${#packages[@]}" = 0 ]; then return 0; fi
  mapfile -t packages < <(missing 2 <<<"$list")
  [ "${#packages[@]}" = 0 ] || die "still missing after installation: ${packages[*]} (Debian's names)"
}

main "$@"
