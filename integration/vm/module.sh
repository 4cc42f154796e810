#!/bin/bash
# What the guest of tier 3 of run.sh does: it has a kernel module of a package, and was started by the initramfs that was made for it.
check() {
  local sentence=$1 out
  shift
  if out=$("$@" 2>&1); then echo "ok - $sentence"; else printf 'not ok - %s\n# %s\n' "$sentence" "${out//$'\n'/$'\n# '}"; fi
}
runs() { [ "$(systemctl is-system-running --wait)" = running ]; }
in_initramfs() { lsinitrd "/usr/lib/modules/$(uname -r)/initramfs.img" | grep "extra/rig_module.ko" >/dev/null; }
booted_it() { cmp /boot/ostree/*/initramfs-"$(uname -r)".img "/usr/lib/modules/$(uname -r)/initramfs.img"; }
loads() { modprobe -v rig_module && grep -q '^dummy ' /proc/modules; }

check "the host comes up" runs
check "the package is in the image that runs" grep -q '"rig-module"' /usr/lib/osctl/derive.lock
check "the initramfs has its module" in_initramfs
check "and is the one that was booted" booted_it
check "the module is found by its name, and loads" loads
check "status knows it" eval 'osctl why rig-module | grep -F "package rig-module: applied"'
echo "scenario complete"
systemctl poweroff
