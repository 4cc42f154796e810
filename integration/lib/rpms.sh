# shellcheck shell=bash
# shellcheck disable=SC2034  # read by who sources this
# The same as debs.sh, for rpm: packages, a repository of them that is signed, and a tree with dnf 4, or with DNF=5 that. The programs
# of the tree are Debian's, which rpm's database does not know: to packages it has what `with_packages` installs.

PACKAGE_BASE=(systemd systemd-sysv dbus "dnf${DNF:-}" rpm passwd ca-certificates kmod dracut ostree-boot bubblewrap)
DATABASE=usr/lib/sysimage/rpm

# With UNSIGNED set, nobody signs it.
# package DIR NAME VERSION [requires TEXT|conflicts TEXT|provides TEXT]...
package() {
  local dir=$1 name=$2 version=$3
  shift 3
  mkdir -p "$dir/files" "$dir/scripts"
  {
    printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: test\nLicense: MIT\nBuildArch: noarch\n' "$name" "$version"
    while [ $# -gt 0 ]; do
      case $1 in requires) printf 'Requires: %s\n' "$2" ;; conflicts) printf 'Conflicts: %s\n' "$2" ;; provides) printf 'Provides: %s\n' "$2" ;; esac
      shift 2
    done
    printf '%%description\ntest\n'
    if [ -e "$dir/scripts/after" ]; then echo %post; sed 's/%/%%/g' "$dir/scripts/after"; fi
    printf '%%install\ncp -a %s/. %%{buildroot}\n%%files\n' "$dir/files"
    (cd "$dir/files" && find . -mindepth 1 -type d -not -path ./etc -not -path ./usr -not -path './usr/*' -not -path ./var -not -path ./var/lib -not -path ./opt -printf '%%dir /%P\n')
    (cd "$dir/files" && find . -path './etc/*' -type f -printf '%%config(noreplace) /%P\n' -o -type f -printf '/%P\n' -o -type l -printf '/%P\n')
    if [ -d "$dir/files/usr/share" ]; then (cd "$dir/files" && find usr/share -mindepth 1 -maxdepth 1 -type d -printf '%%dir /%p\n'); fi
  } >"$dir/spec"
  rpmbuild -bb --define "_topdir $dir/top" --define "_rpmdir $dir" --define '_build_name_fmt %{NAME}-%{VERSION}.rpm' \
    --define '_binary_payload w2.gzdio' --define '__os_install_post %{nil}' --define 'debug_package %{nil}' --buildroot "$dir/buildroot" "$dir/spec" >"$dir/log" 2>&1 || die "$(tail -5 "$dir/log")"
  [ -n "${UNSIGNED:-}" ] || rpmsign --define "_gpg_path $KEYS" --define "_gpg_name test" --define "__gpg $(command -v gpg)" --addsign "$dir/$(package_file "$name" "$version")" >/dev/null 2>&1 || die "$name cannot be signed"
  rm -rf "$dir/files" "$dir/scripts" "$dir/top" "$dir/spec" "$dir/log" "$dir/buildroot"
}

package_file() { echo "$1-$2.rpm"; }
pinned() { echo "$1-$2"; }
at_least() { echo "$1 >= $2"; }

packages_index() { createrepo_c --quiet "$1"; }

with_packages() {
  local t=$1
  shift
  mkdir -p "$t/$DATABASE" "$t/usr/lib/rpm/macros.d"
  echo "%_dbpath /$DATABASE" >"$t/usr/lib/rpm/macros.d/macros.database"
  cp "$@" "$t/tmp/"
  chroot "$t" sh -c 'rpm --install --nodeps --nosignature /tmp/*.rpm' >/dev/null 2>&1
  # So that it can be read where it cannot be written to.
  python3 -c 'import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("PRAGMA journal_mode = DELETE")' "$t/$DATABASE/rpmdb.sqlite"
  rm -rf "$t/$DATABASE"/rpmdb.sqlite-* "$t/$DATABASE"/.*.lock "$t/usr/bin/apt-get"
}

database_has() {
  rm -rf "$WORK/rpmdb"
  # rpm of this machine writes beside it.
  cp -a "$1/$DATABASE" "$WORK/rpmdb"
  rpm --dbpath "$WORK/rpmdb" -q "$2-$3" >/dev/null
}

adds_user() { echo "useradd --system --user-group --home-dir /var/lib/$1 --no-create-home --shell /usr/sbin/nologin $1"; }
adds_alternative() { echo "mkdir -p /var/lib/alternatives; update-alternatives --quiet --admindir /var/lib/alternatives --install /usr/bin/$1 $1 $2 10"; }
version() { echo "$1-1"; }
no_version() { echo "no repository has $1-$2"; }

packages_key() {
  KEYS=$1/keys
  rm -rf "$KEYS"
  mkdir -m 700 "$KEYS"
  GNUPGHOME=$KEYS gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-gen-key test rsa3072 sign never
  GNUPGHOME=$KEYS gpg --armor --export test >"$KEYS/public"
  at_exit "GNUPGHOME=$KEYS gpgconf --kill gpg-agent"
}

repository_key() { printf 'gpgkey: {inline: "%s"}' "$(sed ':a;N;$!ba;s/\n/\\n/g' "$KEYS/public")"; }

no_traces() { [ "$(find "$1/$DATABASE" -mindepth 1 -printf '%f')" = rpmdb.sqlite ]; }
