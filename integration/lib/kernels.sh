# shellcheck shell=bash
# Kernels and modules for them as packages, and what becomes of them in a tree. Part of packages-test.sh: its functions are used here.
# shellcheck disable=SC2016  # commands of claims are evaluated when they are checked
# Modules are empty ELF files with a .modinfo: depmod and dracut are real, and nothing boots.

# module NAME: on stdout, a module that says its name and an alias.
module() {
  printf '.section .modinfo,"a"\n.asciz "license=GPL"\n.asciz "alias=test:%s"\n.asciz "name=%s"\n.asciz "vermagic=test"\n' "$1" "$1" |
    as -o "$D/module.o" - && xz -c "$D/module.o"
}

# kernel_files FILES VERSION TEXT: what a package with a kernel brings. Debian's have it in /boot.
kernel_files() {
  local f=$1 v=$2 m
  case $KIND in
    deb)
      m=$f/lib/modules/$v
      mkdir -p "$m" "$f/boot"
      echo "kernel $3" >"$f/boot/vmlinuz-$v"
      echo "config $3" >"$f/boot/config-$v"
      echo "map $3" >"$f/boot/System.map-$v"
      ;;
    rpm)
      m=$f/usr/lib/modules/$v
      mkdir -p "$m"
      echo "kernel $3" >"$m/vmlinuz"
      ;;
  esac
  mkdir -p "$m/kernel/drivers"
  module "of_$3" >"$m/kernel/drivers/of_$3.ko.xz"
  echo "kernel/drivers/of_$3.ko" >"$m/modules.order"
  : >"$m/modules.builtin"
}

# kernel_script VERSION: what it runs when it is installed.
kernel_script() {
  printf '#!/bin/sh\nset -e\ndepmod %s\n' "$1"
  case $KIND in
    deb)
      printf 'ln -sf boot/vmlinuz-%s /vmlinuz\n' "$1"
      printf 'DEB_MAINT_PARAMS="$*" run-parts --report --exit-on-error --arg=%s --arg=/boot/vmlinuz-%s /etc/kernel/postinst.d\n' "$1" "$1"
      ;;
    rpm) printf 'kernel-install add %s /usr/lib/modules/%s/vmlinuz\n' "$1" "$1" ;;
  esac
}

make_kernels() {
  local s=$R/scripts f=$R/files v
  # linux-image-6.1.0: of the image; 1.1 is the same kernel, built again, and 1.2 another one.
  while read -r name version kernel text; do
    mkdir -p "$s"
    kernel_files "$f" "$kernel" "$text"
    kernel_script "$kernel" >"$s/after"
    package "$R" "$name" "$version"
  done <<'KERNELS'
linux-image-6.1.0 1.0 6.1.0 a
linux-image-6.1.0 1.1 6.1.0 b
linux-image-6.1.0 1.2 6.1.1 c
linux-image-6.2.0 1.0 6.2.0 d
KERNELS
  mkdir -p "$R/kernels"
  mv "$R/$(package_file linux-image-6.1.0 1.0)" "$R/kernels/"
  for v in 6.1.0 6.2.0; do
    mkdir -p "$f/usr/lib/modules/$v/extra" "$f/etc/dracut.conf.d"
    for name in agent_net agent_disk; do module "$name" >"$f/usr/lib/modules/$v/extra/$name.ko.xz"; done
    echo 'add_drivers+=" agent_net "' >"$f/etc/dracut.conf.d/agent.conf"
    package "$R" "agent-modules-$v" 1.0
  done
  mkdir -p "$f/usr/lib/modules/6.1.0" "$f/usr/src/headers"
  echo 1 >"$f/usr/src/headers/Makefile"
  ln -s /usr/src/headers "$f/usr/lib/modules/6.1.0/build"
  package "$R" headers 1.0
  mkdir -p "$f/boot/grub"
  echo menu >"$f/boot/grub/grub.cfg"
  package "$R" boot-menu 1.0
  mkdir -p "$f/etc/dracut.conf.d" "$f/usr/lib/modules/6.1.0/extra"
  echo 'echo "no space for the images"; exit 3' >"$f/etc/dracut.conf.d/broken.conf"
  module broken >"$f/usr/lib/modules/6.1.0/extra/broken.ko.xz"
  package "$R" broken-initramfs 1.0
  packages_index "$R"
}

# kernel_of_image TREE: as its builder leaves the kernel that packages brought, or one of nobody's.
kernel_of_image() {
  local t=$1 v
  for v in "$t"/usr/lib/modules/*; do
    [ -d "$v" ] || v=$t/usr/lib/modules/6.1.0
    mkdir -p "$v"
    if [ -e "$t/boot/vmlinuz-${v##*/}" ]; then mv "$t/boot/vmlinuz-${v##*/}" "$v/vmlinuz"; fi
    [ -e "$v/vmlinuz" ] || echo kernel >"$v/vmlinuz"
    echo initramfs >"$v/initramfs.img"
  done
  rm -f "$t/vmlinuz"
  # What a boot loader does when there is a new kernel; and how this image's initramfs is compressed.
  mkdir -p "$t/etc/kernel/postinst.d" "$t/usr/lib/kernel/install.d"
  printf '#!/bin/sh\necho "no boot loader is here"\nexit 1\n' |
    tee "$t/etc/kernel/postinst.d/zz-boot-loader" "$t/usr/lib/kernel/install.d/99-boot-loader.install" >/dev/null
  chmod 755 "$t/etc/kernel/postinst.d/zz-boot-loader" "$t/usr/lib/kernel/install.d/99-boot-loader.install"
  echo 'compress="gzip"' >"$t/etc/dracut.conf.d/compress.conf"
}

modules_of() { echo "$(next)/usr/lib/modules/$1"; }
in_initramfs() { zcat "$(modules_of "$1")/initramfs.img" | grep -aF "$2" >/dev/null; }
booted_kernel() { cat "$H"/root/boot/ostree/*/vmlinuz-"$1"; }
says_kernel() { [ "$(ostree --repo="$H/root/ostree/repo" show --print-metadata-key=ostree.linux "$(checksum | cut -d. -f1)")" = "'$1'" ]; }

kernel_cases() {
  local one
  say "Kernels and modules of packages"
  INITRD=No KERNEL_INSTALL_BYPASS=1 image k1 "$R"/base/* "$R"/kernels/*
  host host-k k1

  dropin 50-headers 'packages: [headers]'
  check "headers are no modules: the initramfs stays" eval 'osctl reconcile && [ -L "$(modules_of 6.1.0)/build" ] && has usr/lib/modules/6.1.0/initramfs.img initramfs'
  forget 50-headers
  dropin 50-modules 'packages: [agent-modules-6.1.0]'
  check "a module of a package is installed" osctl reconcile
  check "modules.dep has it" grep -q '^extra/agent_net.ko.xz:' "$(modules_of 6.1.0)/modules.dep"
  check "and the kernel's own" grep -q '^kernel/drivers/of_a.ko.xz:' "$(modules_of 6.1.0)/modules.dep"
  check "it is found by its alias" grep -q '^alias test:agent_net agent_net$' "$(modules_of 6.1.0)/modules.alias"
  check "the initramfs is made anew, as the image's configuration says, with the module that a package wants there" in_initramfs 6.1.0 extra/agent_net.ko
  check "and what finds deployments" in_initramfs 6.1.0 ostree-prepare-root
  check "the kernel is that of the image" eval 'has usr/lib/modules/6.1.0/vmlinuz "kernel a" && says_kernel 6.1.0'
  one=$(checksum)

  dropin 70-bad "override-remove: [linux-image-6.1.0]
packages: [linux-image-6.2.0]"
  check "modules for a kernel that goes are named" refused '/usr/lib/modules/6.1.0/extra/agent_net.ko.xz' reconcile
  forget 50-modules
  dropin 70-bad 'packages: [linux-image-6.2.0]'
  check "two kernels are refused" refused 'libostree boots one: 6.1.0, 6.2.0' reconcile
  check "with what to write" refused 'override-remove: [linux-image-6.1.0]' reconcile
  dropin 70-bad 'override-remove: [linux-image-6.1.0]'
  check "so is none" refused 'the kernel is removed, and no package brings another' reconcile
  dropin 70-bad 'packages: [boot-menu]'
  check "a file in /boot is refused by its name" refused '/boot/grub/grub.cfg' reconcile
  dropin 70-bad 'packages: [broken-initramfs]'
  check "dracut that fails ends the job with what it said" refused 'no space for the images' reconcile
  if [ "$KIND" = deb ]; then
    dropin 70-bad 'packages: [agent-modules-6.1.0]
override-remove: [dracut, dracut-core, ostree-boot]'
    check "an image that cannot make an initramfs gets no modules" refused 'the image has no dracut' reconcile
  fi
  forget 70-bad
  check "nothing of what was refused is left" no_leftovers

  dropin 50-kernel "override-replace: [$(pinned linux-image-6.1.0 1.1)]"
  check "a kernel is replaced by the same one, built again" osctl reconcile
  check "it is the new one" eval 'has usr/lib/modules/6.1.0/vmlinuz "kernel b" && says_kernel 6.1.0'
  check "with its initramfs" in_initramfs 6.1.0 ostree-prepare-root
  check "and its modules, and none of before" eval 'grep -q of_b "$(modules_of 6.1.0)/modules.dep" && ! grep -q of_a "$(modules_of 6.1.0)/modules.dep"'
  dropin 50-kernel "override-replace: [$(pinned linux-image-6.1.0 1.2)]"
  check "the package of a kernel brings another version" osctl reconcile
  check "the old version is gone" lacks usr/lib/modules/6.1.0
  check "the new one is there" eval 'has usr/lib/modules/6.1.1/vmlinuz "kernel c" && says_kernel 6.1.1'

  dropin 50-kernel 'override-remove: [linux-image-6.1.0]
packages: [linux-image-6.2.0, agent-modules-6.2.0]'
  check "a kernel is replaced by another, with modules for it" osctl reconcile
  check "the old one is gone" lacks usr/lib/modules/6.1.0
  check "the new one has its modules and an initramfs" eval 'grep -q "^extra/agent_disk.ko.xz:" "$(modules_of 6.2.0)/modules.dep" && in_initramfs 6.2.0 extra/agent_net.ko'
  check "nothing is left of it in /boot or the root of the tree" eval 'lacks vmlinuz && [ -z "$(ls -A "$(next)/boot")" ]'
  if [ "$KIND" = deb ]; then
    check "its configuration is beside it" eval 'has usr/lib/modules/6.2.0/config "config d" && has usr/lib/modules/6.2.0/System.map "map d"'
  fi
  check "the host boots it" eval '[ "$(booted_kernel 6.2.0)" = "kernel d" ] && says_kernel 6.2.0'
  check "without the drop-in the image's kernel is back" eval 'forget 50-kernel && osctl reconcile && has usr/lib/modules/6.1.0/initramfs.img initramfs'

  host host-l k1
  dropin 50-modules 'packages: [agent-modules-6.1.0]'
  check "another host, with another umask, zone and language" bash -c '
    umask 077; export TZ=Asia/Tokyo LANG=de_DE.UTF-8
    exec "$0" --direct --sysroot "$1/root" --config-root "$1/config" reconcile' "$OSCTL" "$H"
  check "has the same commit" test "$(checksum)" = "$one"
  check "the repository of the host is sound" fsck
}
