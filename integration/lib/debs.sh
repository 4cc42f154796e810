# shellcheck shell=bash
# Debian packages for tests, and a repository of them. Source after common.sh.

# deb DIR NAME VERSION [FIELD: VALUE]...: DIR/NAME_VERSION.deb of the files below DIR/files and the scripts DIR/scripts/*,
# both of which are used up.
deb() {
  local dir=$1 name=$2 version=$3 field
  shift 3
  mkdir -p "$dir/files/DEBIAN" "$dir/scripts"
  {
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n' "$name" "$version"
    for field in "$@"; do printf '%s\n' "$field"; done
    printf 'Description: test\n'
  } >"$dir/files/DEBIAN/control"
  find "$dir/scripts" -type f -exec install -m 755 -t "$dir/files/DEBIAN" {} +
  [ -d "$dir/files/etc" ] && (cd "$dir/files" && find etc -type f -printf '/%p\n' >DEBIAN/conffiles)
  dpkg-deb --root-owner-group -Zgzip --build "$dir/files" "$dir/${name}_$version.deb" >/dev/null
  rm -rf "$dir/files" "$dir/scripts"
}

# debs_index DIR: makes DIR a flat repository of the packages in it.
debs_index() {
  (cd "$1" && dpkg-scanpackages --multiversion . >Packages 2>/dev/null && gzip -kf Packages)
}
