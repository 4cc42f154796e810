# shellcheck shell=bash
# shellcheck disable=SC2034  # read by who sources this
# Debian packages for tests, a repository of them, and a tree with apt. Source after common.sh and rootfs.sh.

PACKAGE_BASE=(systemd systemd-sysv dbus kmod dracut ostree-boot bubblewrap)
DATABASE=usr/lib/sysimage/dpkg

# package DIR NAME VERSION [requires TEXT|conflicts TEXT|provides TEXT]...: DIR/$(package_file NAME VERSION) of the files below DIR/files and the
# script DIR/scripts/after, both of which are used up. What it provides matters to rpm only.
package() {
  local dir=$1 name=$2 version=$3
  shift 3
  mkdir -p "$dir/files/DEBIAN" "$dir/scripts"
  {
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n' "$name" "$version"
    while [ $# -gt 0 ]; do
      case $1 in requires) printf 'Depends: %s\n' "$2" ;; conflicts) printf 'Conflicts: %s\n' "$2" ;; esac
      shift 2
    done
    printf 'Description: test\n'
  } >"$dir/files/DEBIAN/control"
  if [ -e "$dir/scripts/after" ]; then install -m 755 "$dir/scripts/after" "$dir/files/DEBIAN/postinst"; fi
  [ -d "$dir/files/etc" ] && (cd "$dir/files" && find etc -type f -printf '/%p\n' >DEBIAN/conffiles)
  dpkg-deb --root-owner-group -Zgzip --build "$dir/files" "$dir/$(package_file "$name" "$version")" >/dev/null
  rm -rf "$dir/files" "$dir/scripts"
}

package_file() { echo "$1_$2.deb"; }

# pinned NAME VERSION: as override-replace has it.
pinned() { echo "$1=$2"; }

# at_least NAME VERSION: as a package requires it.
at_least() { echo "$1 (>= $2)"; }

# packages_index DIR: makes DIR a flat repository of the packages in it.
packages_index() {
  (cd "$1" && dpkg-scanpackages --multiversion . >Packages 2>/dev/null && gzip -kf Packages)
}

# with_packages TREE FILE...: installs files into a tree as its builder would, and moves the database below /usr.
with_packages() {
  local t=$1
  shift
  cp "$@" "$t/tmp/"
  chroot "$t" sh -c 'dpkg -i /tmp/*.deb' >/dev/null
  rm -f "$t"/etc/apt/sources.list.d/* "$t"/etc/apt/sources.list
  mkdir -p "$t/usr/lib/sysimage"
  mv "$t/var/lib/dpkg" "$t/$DATABASE"
  echo 'L /var/lib/dpkg - - - - ../../usr/lib/sysimage/dpkg' >"$t/usr/lib/tmpfiles.d/dpkg.conf"
  rm -f "$t/$DATABASE"/*-old "$t/$DATABASE"/lock*
}

# database_has ROOT NAME VERSION
database_has() {
  dpkg-query --admindir="$1/$DATABASE" -W -f '${Status} ${Version}' "$2" | grep -qx "install ok installed $3"
}

# adds_user NAME: the command with which a script of a package makes a system user.
adds_user() { echo "adduser --system --group --home /var/lib/$1 --no-create-home --quiet $1"; }

# adds_alternative NAME PATH: the same for an alternative.
adds_alternative() { echo "update-alternatives --quiet --install /usr/bin/$1 $1 $2 10"; }

# version VERSION: as the lock has it.
version() { echo "$1"; }

# no_version NAME VERSION: what is said of a version that nobody has.
no_version() { echo "no repository has the version"; }

# packages_key DIR: makes a key to sign with, where packages are signed; repository_key: what a drop-in says of it.
packages_key() { :; }
repository_key() { echo "gpgcheck: false"; }

# no_traces ROOT: nothing of installing is left beside the database.
no_traces() { [ ! -e "$1/$DATABASE/status-old" ] && [ ! -e "$1/$DATABASE/lock" ]; }
