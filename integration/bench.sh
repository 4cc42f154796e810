#!/bin/bash
# make bench: what does a first pull of the demo's OS image cost, against the network floor?
# Alternates, RUNS times: `osctl --direct rebase` into a fresh sysroot (pull, import, deploy) and `skopeo copy` of the same image to a
# directory (download and nothing else). Prints seconds and ratios within this run; seconds of different machines do not compare.
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
need_root bench
for part in registry product image; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

B=$WORK/bench
RUNS=${RUNS:-3}
mkdir -p "$B/config/etc/osctl"
build_images
start_registry "$B/registry"
write_registries_conf "$B/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$B/registries.conf
push "$WORK/oci/os:v1" os:v1

seconds() {
  local t0
  t0=$(date +%s.%N)
  "$@" >"$B/last.log" 2>&1 || { cat "$B/last.log" >&2; die "failed: $*"; }
  sync -f "$B"
  awk -v a="$t0" -v b="$(date +%s.%N)" 'BEGIN {printf "%.2f", b - a}'
}
median() { sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

say "Pull of one OS image ($(du -sh --apparent-size "$WORK/layers/base.tar" | cut -f1) unpacked) from loopback, $RUNS runs each, alternating; PROFILE=${PROFILE:-dev}"
: >"$B/osctl"
: >"$B/skopeo"
for ((i = 1; i <= RUNS; i++)); do
  new_sysroot "$B/sysroot"
  o=$(seconds first_deployment "$B/sysroot" "$B/config" "$REGISTRY/os:v1")
  rm -rf "$B/dir"
  s=$(seconds skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://$REGISTRY/os:v1" "dir:$B/dir")
  echo "$o" >>"$B/osctl"
  echo "$s" >>"$B/skopeo"
  note "run $i: osctl rebase $o s, skopeo copy $s s, ratio $(awk -v a="$o" -v b="$s" 'BEGIN {printf "%.1f", a / b}')"
done
o=$(median <"$B/osctl") s=$(median <"$B/skopeo")
echo "median: osctl rebase $o s, skopeo copy $s s, ratio $(awk -v a="$o" -v b="$s" 'BEGIN {printf "%.1f", a / b}')"
remove_tree "$B/sysroot"
rm -rf "$B/dir"
