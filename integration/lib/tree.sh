#!/bin/bash
# Turns the Debian root file system into the tree of a bootable image, and cuts it into layers:
#   WORK/layers/base.tar    Debian, kernel and initramfs in /usr/lib/modules, empty /var (kept between runs)
#   WORK/layers/osctl.tar   what `make install DESTDIR=` installs
#   WORK/layers/v1.tar, v2.tar, v3.tar  the few files in which the versions of the OS differ (versions.sh)
# The layout is that of a plain image: /etc stays /etc, there is no /sysroot and nothing of ostree.
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
. "$REPO_DIR/integration/lib/rootfs.sh"
. "$REPO_DIR/integration/lib/versions.sh"

# Reproducible: two runs on the same tree give the same bytes, so the image digest changes only when content does.
pack() {
  local dir=$1 out=$2 names
  mapfile -t names < <(cd "$dir" && find . -mindepth 1 -maxdepth 1 -printf '%P\n' | LC_ALL=C sort)
  tar -C "$dir" --sort=name --numeric-owner --owner=+0 --group=+0 --mtime=@1704067200 --format=posix \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --xattrs --xattrs-include='*' \
    "${@:3}" -cf "$out.new" "${names[@]}"
  if [ -f "$out" ] && cmp -s "$out" "$out.new"; then
    rm "$out.new" # same bytes: keep the old file, whose compressed form is remembered
  else
    mv "$out.new" "$out"
  fi
}

# The unit that lets the outside run a script inside: integration/lib/{nspawn,qemu}.sh hand the script in.
install_rig() {
  local t=$1
  install -D -m 755 "$REPO_DIR/integration/image/rig" "$t/usr/libexec/rig"
  install -D -m 644 "$REPO_DIR/integration/image/rig.service" "$t/usr/lib/systemd/system/rig.service"
  mkdir -p "$t/usr/lib/systemd/system/multi-user.target.wants"
  ln -sfn ../rig.service "$t/usr/lib/systemd/system/multi-user.target.wants/rig.service"
}

make_initramfs() {
  local t=$1 k=$2
  # In a mount namespace of its own: nothing to unmount afterwards, whatever happens.
  # shellcheck disable=SC2016  # expanded by the inner shell
  unshare -m --propagation private bash -euc '
    t=$1 k=$2
    mount --bind "$t" "$t"; mount -t proc proc "$t/proc"; mount --bind /sys "$t/sys"; mount --bind /dev "$t/dev"; mount -t tmpfs tmpfs "$t/tmp"
    chroot "$t" dracut -q --force --no-hostonly --reproducible --no-early-microcode \
      --modules "bash systemd systemd-initrd ostree base fs-lib kernel-modules rootfs-block udev-rules usrmount shutdown" \
      --drivers "virtio_blk virtio_pci virtio_scsi ext4 overlay crc32c_generic" \
      --compress "zstd -3" /tmp/initramfs.img "$k"
    cp "$t/tmp/initramfs.img" "$t/usr/lib/modules/$k/initramfs.img"
  ' bash "$t" "$k"
}

# What a root file system of packages needs to be one of an image: the kernel below /usr, state in /var, nothing in the way.
lay_out() {
  local t=$1 k d
  k=$(cd "$t/usr/lib/modules" && echo *)
  case $k in *' '* | '*') die "expected exactly one kernel in the tree, found: $k" ;; esac

  make_initramfs "$t" "$k"
  mv "$t/boot/vmlinuz-$k" "$t/usr/lib/modules/$k/vmlinuz"
  find "$t/boot" "$t/dev" "$t/run" "$t/tmp" "$t/proc" "$t/sys" -mindepth 1 -delete
  rm -f "$t"/vmlinuz* "$t"/initrd.img*

  # What is state on an image-based host lives in /var; tmpfiles.d makes it at boot. The package database belongs to the OS.
  for d in home srv opt mnt; do rm -rf "${t:?}/$d"; ln -s "var/$d" "$t/$d"; done
  rm -rf "${t:?}/root" "${t:?}/media"
  ln -s var/roothome "$t/root"
  ln -s run/media "$t/media"
  mkdir -p "$t/usr/lib/sysimage"
  cp -a "$t/var/lib/dpkg" "$t/usr/lib/sysimage/dpkg"
  # The guests reach this machine only: their packages come from a repository on it.
  rm -f "$t"/etc/apt/sources.list "$t"/etc/apt/sources.list.d/*
  find "$t/var" -mindepth 1 -delete
  install -m 644 "$REPO_DIR/integration/image/tmpfiles.conf" "$t/usr/lib/tmpfiles.d/image-layout.conf"
}

build_base_layer() {
  local t=$WORK/tree stamp u
  mkdir -p "$WORK/layers"
  stamp="$(stat -c '%s %Y' "$WORK/rootfs/base.tar") $(sha256sum "$REPO_DIR/integration/lib/tree.sh" "$REPO_DIR"/integration/image/* | sha256sum)"
  if [ -s "$WORK/layers/base.tar" ] && [ "$(cat "$WORK/layers/base.stamp" 2>/dev/null)" = "$stamp" ]; then
    note "OS tree: kept from an earlier run"
    return 0
  fi
  say "Laying out the OS tree, with its initramfs"
  remove_tree "$t"
  mkdir "$t"
  tar -C "$t" --numeric-owner --xattrs --xattrs-include='*' -xpf "$WORK/rootfs/base.tar"
  lay_out "$t"
  rm -rf "$t/etc/cni" # the default network of plugins that were left out
  : >"$t/etc/machine-id"
  echo testhost >"$t/etc/hostname"
  rm -f "$t/etc/resolv.conf" "$t/etc/apt/sources.list" "$t"/etc/apt/sources.list.d/*
  : >"$t/etc/fstab"
  # Network in a VM only: in a container the interfaces are not ours.
  install -D -m 644 "$REPO_DIR/integration/image/10-vm.network" "$t/usr/lib/systemd/network/10-vm.network"
  install -D -m 644 "$REPO_DIR/integration/image/vm-only.conf" "$t/usr/lib/systemd/system/systemd-networkd.service.d/vm-only.conf"
  mkdir -p "$t/etc/systemd/system/multi-user.target.wants"
  ln -sfn /lib/systemd/system/systemd-networkd.service "$t/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
  # Timers that a test host does not need, and jobs that only cost time in a first boot under software emulation.
  for u in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
    systemd-timesyncd.service getty@tty1.service podman.service podman-restart.service podman-auto-update.service podman-auto-update.timer; do
    rm -f "$t"/etc/systemd/system/*.wants/"$u"
  done
  for u in systemd-hwdb-update systemd-journal-catalog-update ldconfig; do ln -sfn /dev/null "$t/etc/systemd/system/$u.service"; done
  install_rig "$t"
  rm -f "$WORK/layers/base.stamp"
  pack_base "$t" "$WORK/layers/base.tar"
  printf '%s\n' "$stamp" >"$WORK/layers/base.stamp"
}

# The base keeps its owners; everything else is root's.
pack_base() {
  local names
  mapfile -t names < <(cd "$1" && find . -mindepth 1 -maxdepth 1 -printf '%P\n' | LC_ALL=C sort)
  tar -C "$1" --sort=name --numeric-owner --mtime=@1704067200 --format=posix \
    --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --xattrs --xattrs-include='*' -cf "$2" "${names[@]}"
}

# osctl as an administrator or a packager would install it.
build_osctl_layer() {
  local d=$WORK/destdir
  rm -rf "$d"
  mkdir -p "$d"
  if [ -n "${OSCTL_DESTDIR:-}" ]; then
    cp -a "$OSCTL_DESTDIR/." "$d/" # an installation made elsewhere, for example from a package
  else
    make -s -C "$REPO_DIR" install "DESTDIR=$d" PREFIX=/usr "PROFILE=${PROFILE:-dev}" STRIP=1
  fi
  pack "$d" "$WORK/layers/osctl.tar"
}

build_layers() {
  build_rootfs
  build_base_layer
  build_osctl_layer
  build_version_layers
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  need_root demo
  build_layers
fi
