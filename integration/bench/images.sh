#!/bin/bash
# Builds the images of the benchmark: chunked ones, as `rpm-ostree compose` would make them of packages.
#   WORK/bench/oci/v1        about 1.1 GB in 30,000 files, 28 layers; tag derived: one small layer on top
#   WORK/bench/oci/v2        5 % of the files changed, all of them in four layers
#   WORK/bench/oci/layers64  v1 in 64 layers
#   WORK/bench/oci/small64   2,000 small files in 64 layers
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
for part in tree pullers; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

BENCH=$WORK/bench
CHUNKS="$REPO_DIR/integration/bench/chunks.py"
# On top of the packages of the demo: compilers, interpreters, headers. Large files and many small ones.
BENCH_PACKAGES=(
  gcc g++ clang nodejs ruby python3 git vim-nox fonts-dejavu
  "linux-headers-cloud-$(dpkg --print-architecture 2>/dev/null || echo amd64)"
)

ostree_bench() { ostree --repo="$BENCH/build/repo" "$@"; }

# encapsulate REF NAME PLAN: the commit as the image BENCH/oci/NAME, in the groups of PLAN
encapsulate() {
  local b=$BENCH/build
  ostree_bench ls -R -C "$1" >"$b/$1.list"
  python3 "$CHUNKS" meta "$b/$1.list" "$3" >"$b/$2.meta"
  mkdir -p "$BENCH/oci"
  rm -rf "$BENCH/oci/$2"
  "$REFERENCE" container encapsulate --repo="$b/repo" --contentmeta="$b/$2.meta" -l containers.bootc=1 "$1" "oci:$BENCH/oci/$2:1" >"$b/$2.log" 2>&1 ||
    { tail -5 "$b/$2.log" >&2; die "container encapsulate failed; its log is $b/$2.log"; }
  note "$2: $(skopeo inspect --raw "oci:$BENCH/oci/$2:1" | jq -r '.layers | "\(length) layers, \(map(.size) | add / 1e6 | floor) MB compressed"')"
}

# Copies paths from standard input, as they are in the tree, below DIR.
from_tree() {
  mkdir "$1"
  sed 's,^/,,' | tar -C "$BENCH/build/tree" --xattrs --no-recursion --verbatim-files-from -T - -cf - | tar -C "$1" --xattrs -xpf -
}

build_tree() {
  local t=$1
  mkdir "$t"
  tar -C "$t" --numeric-owner --xattrs --xattrs-include='*' -xpf "$BENCH/rootfs/base.tar"
  lay_out "$t"
  : >"$t/etc/machine-id"
  rm -f "$t/etc/resolv.conf"
  mv "$t/etc" "$t/usr/etc"
  mkdir "$t/sysroot"
  ln -s sysroot/ostree "$t/ostree"
}

build_bench_images() {
  local b=$BENCH/build stamp
  bootstrap "$BENCH/rootfs" "${PACKAGES[@]}" "${BENCH_PACKAGES[@]}"
  stamp="$(stat -c '%s %Y' "$BENCH/rootfs/base.tar") $(sha256sum "$REPO_DIR/integration/bench/images.sh" "$CHUNKS" | sha256sum)"
  if [ "$(cat "$BENCH/oci.stamp" 2>/dev/null)" = "$stamp" ]; then
    note "images: kept from an earlier run"
    return 0
  fi
  say "Building the images of the benchmark (a few minutes, once)"
  rm -rf "$BENCH/oci" "$BENCH/oci.stamp" "$b"
  mkdir -p "$b"
  build_tree "$b/tree"
  ostree --repo="$b/repo" init --mode=bare
  ostree_bench commit -b v1 --tree=dir="$b/tree" --bootable --add-metadata-string=version=1 >/dev/null
  ostree_bench ls -R -C v1 >"$b/v1.list"
  note "v1: $(grep -c '^-' "$b/v1.list") files, $(awk '/^-/ {s += $4} END {printf "%.0f MB", s / 1e6}' "$b/v1.list")"
  # The importer adds the layer of the commit itself and an empty one: 28 and 64 layers.
  python3 "$CHUNKS" plan "$b/v1.list" "$b/tree/usr/lib/sysimage/dpkg" 26 >"$b/plan26"
  python3 "$CHUNKS" plan "$b/v1.list" "$b/tree/usr/lib/sysimage/dpkg" 62 >"$b/plan62"
  encapsulate v1 v1 "$b/plan26"
  encapsulate v1 layers64 "$b/plan62"

  python3 "$CHUNKS" change "$b/v1.list" "$b/plan26" 4 5 >"$b/changed"
  from_tree "$b/changes" <"$b/changed"
  find "$b/changes" -type f -exec sh -c 'for f; do echo "changed in version 2" >>"$f"; done' sh {} +
  ostree_bench commit -b v2 --tree=ref=v1 --tree=dir="$b/changes" --bootable --add-metadata-string=version=2 >/dev/null
  note "v2: $(wc -l <"$b/changed") files changed"
  encapsulate v2 v2 "$b/plan26"

  python3 "$CHUNKS" sample "$b/v1.list" 2000 | from_tree "$b/small"
  # A kernel has to be there, but it need not be 40 MB.
  mkdir -p "$b/small/usr/lib/modules/0"
  echo kernel >"$b/small/usr/lib/modules/0/vmlinuz"
  echo initramfs >"$b/small/usr/lib/modules/0/initramfs.img"
  ostree_bench commit -b small --tree=dir="$b/small" --bootable --add-metadata-string=version=1 >/dev/null
  ostree_bench ls -R -C small >"$b/small.list"
  python3 "$CHUNKS" deal "$b/small.list" 62 >"$b/deal62"
  encapsulate small small64 "$b/deal62"

  mkdir -p "$b/derived/usr/share/derived" "$b/derived/etc"
  seq 1000 >"$b/derived/usr/share/derived/numbers"
  echo yes >"$b/derived/etc/derived.conf"
  pack "$b/derived" "$b/derived.tar"
  python3 "$REPO_DIR/integration/lib/oci.py" "$BENCH/oci/v1" derived --base 1 "$b/derived.tar" >/dev/null
  # The tree stays for the write floor; the rest has done its work.
  rm -rf "$b/repo" "$b/changes" "$b/small"
  printf '%s\n' "$stamp" >"$BENCH/oci.stamp"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  need_root bench
  build_pullers "${PROFILE:-release}"
  build_bench_images
fi
