# shellcheck shell=bash
# shellcheck disable=SC2154  # KIND and D are the caller's
# What two-hosts-test.sh derives: for each kind an OS image and a repository of five packages with scripts, and one that must not be
# reproducible. Source after common.sh, image.sh, check.sh and debs.sh or rpms.sh.

# What a host of each kind asks for, and a file that is there then, made by the package's script where it makes one: PACKAGE|FILE.
# The last one is the kernel module.
requests() {
  local wants=usr/etc/systemd/system/multi-user.target.wants alternatives=usr/etc/alternatives
  case $KIND in
    deb) printf '%s\n' 'chrony|usr/etc/chrony/chrony.conf' "cron|$wants/cron.service" "nano|$alternatives/editor" 'logrotate|usr/etc/logrotate.conf' ;;
    rpm) printf '%s\n' 'rig-user|usr/libexec/rig-user' "rig-unit|$wants/rig-unit.service" "rig-alternative|$alternatives/rig" 'rig-conf|usr/etc/rig-conf/made.conf' ;;
  esac
  echo 'rig-module|usr/share/rig-seen/all'
}

# from_mirror STATUS DIR PACKAGE...: what this machine's apt would install where dpkg has the status file STATUS, into DIR.
from_mirror() {
  local status=$1 dir=$2
  shift 2
  mkdir -p "$dir/partial"
  apt-get -qq -y -o "Dir::State::status=$status" -o "Dir::Cache::archives=$dir" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o Debug::NoLocking=true -o APT::Sandbox::User=root -o APT::Install-Recommends=false install --download-only "$@" >/dev/null
  rm -rf "$dir/partial" "$dir/lock"
}

status_of_base() { tar -xOf "$WORK/layers/base.tar" --wildcards '*usr/lib/sysimage/dpkg/status'; }

# kept DIR NAME: DIR/NAME is there, and made for this base by this script.
stamp() { cat "$WORK/layers/base.stamp" "$REPO_DIR/integration/lib/twohosts.sh" | sha256sum; }
kept() { [ -e "$1/$2" ] && [ "$(cat "$1/$2.stamp" 2>/dev/null)" = "$(stamp)" ]; }

# fetch DIR NAME PACKAGE...: the directory DIR/NAME of packages from the mirror.
fetch() {
  local dir=$1 name=$2
  shift 2
  if kept "$dir" "$name"; then return 0; fi
  rm -rf "${dir:?}/$name"
  status_of_base >"$dir/status"
  from_mirror "$dir/status" "$dir/$name" "$@"
  stamp >"$dir/$name.stamp"
}

# A package of a real module of the image's own kernel under another name, which depmod has to find. Its script notes what it sees.
module_package() {
  local r=$1 module kernel
  module=$(tar -tf "$WORK/layers/base.tar" --wildcards '*/kernel/drivers/net/dummy.ko*' | head -1)
  kernel=${module#*lib/modules/} kernel=${kernel%%/*}
  mkdir -p "$r/files/usr/lib/modules/$kernel/updates" "$r/scripts"
  tar -xOf "$WORK/layers/base.tar" "$module" >"$r/files/usr/lib/modules/$kernel/updates/rig_module.ko"
  printf '#!/bin/sh\nset -e\ndepmod -a %s\nmkdir /usr/share/rig-seen\n{ uname -n; umask; date +%%Z; id; env | LC_ALL=C sort; } >/usr/share/rig-seen/all\n' "$kernel" >"$r/scripts/after"
  package "$r" rig-module 1.0
}

# What the packages of the mirror are on the other kind: a user, a unit, an alternative, a configuration file.
made_packages() {
  local r=$1 f=$1/files s=$1/scripts
  mkdir -p "$f/usr/lib/rig-user" "$s"
  echo data >"$f/usr/lib/rig-user/data"
  printf '#!/bin/sh\nset -e\n%s\ninstall -d -o rig-user -g rig-user -m 750 /var/lib/rig-user\ninstall -o root -g rig-user -m 2755 /usr/bin/true /usr/libexec/rig-user\n' \
    "$(adds_user rig-user)" >"$s/after"
  package "$r" rig-user 1.0
  mkdir -p "$f/usr/lib/systemd/system" "$s"
  printf '[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n' >"$f/usr/lib/systemd/system/rig-unit.service"
  printf '#!/bin/sh\nset -e\nsystemctl enable rig-unit.service\n' >"$s/after"
  package "$r" rig-unit 1.0
  mkdir -p "$f/usr/libexec" "$s"
  printf '#!/bin/sh\n' >"$f/usr/libexec/rig-alternative"
  printf '#!/bin/sh\nset -e\n%s\n' "$(adds_alternative rig /usr/libexec/rig-alternative)" >"$s/after"
  package "$r" rig-alternative 1.0
  mkdir -p "$f/etc/rig-conf" "$s"
  echo 'colour=red' >"$f/etc/rig-conf/rig.conf"
  printf '#!/bin/sh\nset -e\ncp /etc/rig-conf/rig.conf /etc/rig-conf/made.conf\n' >"$s/after"
  package "$r" rig-conf 1.0
}

# make_repository DIR
make_repository() {
  local r=$1
  rm -rf "$r"
  mkdir -p "$r"
  packages_key "$D"
  case $KIND in
    deb)
      fetch "$D" mirror chrony cron nano logrotate
      cp "$D"/mirror/*.deb "$r/"
      ;;
    rpm) made_packages "$r" ;;
  esac
  module_package "$r"
  mkdir -p "$r/scripts"
  printf '#!/bin/sh\ndate +%%s >/usr/share/planted\n' >"$r/scripts/after"
  package "$r" rig-clock 1.0
  mkdir -p "$r/files/usr/share/rig-extra"
  echo 1 >"$r/files/usr/share/rig-extra/data"
  package "$r" rig-extra 1.0
  packages_index "$r"
}

# The OS image of the kind, as OCI_LAYOUT:TAG. That of rpm has the programs of the other one, and rpm and dnf, which know of one package only.
os_image() {
  local l=$WORK/layers base=$WORK/layers/base.tar
  if [ "$KIND" = rpm ]; then
    rpm_layer >&2
    base=$l/rpm.tar
  fi
  small_initramfs
  python3 "$REPO_DIR/integration/lib/oci.py" "$WORK/oci/os" "two-hosts-$KIND" "$base" "$l/osctl.tar" "$l/dracut.tar" >/dev/null
  echo "$WORK/oci/os:two-hosts-$KIND"
}

# What is derived is not booted, and dracut in a VM without hardware for it takes minutes: what it makes for the kernel module is small.
small_initramfs() {
  local d=$D/dracut
  rm -rf "$d"
  mkdir -p "$d/etc/dracut.conf.d"
  printf 'dracutmodules="base ostree"\nadd_drivers+=" rig_module "\ncompress="cat"\n' >"$d/etc/dracut.conf.d/rig.conf"
  pack "$d" "$WORK/layers/dracut.tar"
}

rpm_layer() {
  local t=$D/tree
  if kept "$WORK/layers" rpm.tar; then return 0; fi
  fetch "$D" programs dnf rpm
  remove_tree "$t"
  mkdir -p "$t"
  tar -C "$t" --numeric-owner --xattrs --xattrs-include='*' -xpf "$WORK/layers/base.tar"
  mkdir -p "$t/var/lib/apt/lists/partial" "$t/var/cache/apt/archives/partial" "$t/var/log/apt"
  ln -s ../../usr/lib/sysimage/dpkg "$t/var/lib/dpkg"
  cp "$D"/programs/*.deb "$t/tmp/"
  # In a mount namespace of its own: nothing to unmount afterwards.
  # shellcheck disable=SC2016  # expanded by the inner shell
  unshare -m --propagation private bash -euc '
    mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"
    DEBIAN_FRONTEND=noninteractive chroot "$1" sh -c "apt-get -qq -y --no-install-recommends install /tmp/*.deb"
  ' bash "$t" >"$D/programs.log" 2>&1 || die "$(tail -5 "$D/programs.log")"
  rm -f "$t"/tmp/*
  rig_package "$D" rig-base 1.0 provides /bin/sh
  with_packages "$t" "$D/$(package_file rig-base 1.0)"
  rm -r "$t/usr/lib/sysimage/dpkg" "$t/usr/lib/tmpfiles.d/image-layout.conf"
  sed '/dpkg/d' "$REPO_DIR/integration/image/tmpfiles.conf" >"$t/usr/lib/tmpfiles.d/image-layout.conf"
  find "$t/var" "$t/run" "$t/tmp" "$t/dev" -mindepth 1 -delete
  pack_base "$t" "$WORK/layers/rpm.tar"
  stamp >"$WORK/layers/rpm.tar.stamp"
  remove_tree "$t"
}

# A language that sorts in another way than C does, as directory DIR for LOCPATH.
make_language() {
  local dir=$1
  if kept "$(dirname "$dir")" "$(basename "$dir")"; then return 0; fi
  rm -rf "$dir" "$dir.source"
  mkdir -p "$dir"
  (cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download locales && dpkg-deb -x locales_*.deb "$dir.source" && rm locales_*.deb)
  I18NPATH=$dir.source/usr/share/i18n localedef -i tr_TR -f UTF-8 "$dir/tr_TR.UTF-8"
  rm -rf "$dir.source"
  stamp >"$dir.stamp"
}

# prepare: image and repository of the kind, and the drop-ins in D/drop-ins.
prepare() {
  local name n=20
  make_repository "$D/repo"
  os_image >"$D/image"
  rm -rf "$D/drop-ins"
  mkdir -p "$D/drop-ins"
  while IFS='|' read -r name _; do
    n=$((n + 1))
    echo "packages: [$name]" >"$D/drop-ins/$n-request.yaml"
  done < <(requests)
  echo 'packages: [rig-extra]' >"$D/drop-ins/80-extra.yaml"
  echo 'packages: [rig-clock]' >"$D/drop-ins/90-clock.yaml"
  cat >"$D/drop-ins/70-files.yaml" <<'YAML'
files: [{path: /etc/rig.conf, contents: {inline: "hello\n"}}]
units: [{name: rig-file.service, enabled: true, contents: "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"}]
kernel-arguments: {append: [rig.karg=1]}
YAML
  repository_key >"$D/key"
}
