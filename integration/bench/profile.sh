#!/bin/bash
# profile.sh TOOL OUT.svg [IMAGE]: where the CPU time of one fresh pull goes, as a flame graph.
# TOOL is ours or reference, IMAGE a tag that make bench makes (default v1). Needs what `deps.sh profile` installs, and
# `make bench` to have made the images.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
need_root bench
[ $# -ge 2 ] || die "usage: profile.sh ours|reference OUT.svg [v1|v2|derived|layers64|small64]"
. "$REPO_DIR/integration/bench/images.sh"
for part in registry loopfs; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done
TOOL=$1 OUT=$2 TAG=${3:-v1}
# Samples a second and CPU; the clock of the kernel, because virtual machines often count no cycles.
RATE=${RATE:-199}
DATA=$BENCH/perf.data
# Frames narrower than this share of the picture are left out, so that it stays small, in percent.
MIN_WIDTH=0.25

export PATH=$WORK/tools/bin:$PATH
command -v inferno-flamegraph >/dev/null || CARGO_TARGET_DIR=$WORK/tools/build "${CARGO:-cargo}" install --locked --quiet --root "$WORK/tools" inferno
build_pullers "${PROFILE:-release}"
build_bench_images
start_registry "$BENCH/registry"
export CONTAINERS_REGISTRIES_CONF=$BENCH/registries.conf
write_registries_conf "$CONTAINERS_REGISTRIES_CONF"
case $TAG in derived) LAYOUT=v1:derived ;; *) LAYOUT=$TAG:1 ;; esac
push "$BENCH/oci/$LAYOUT" "os:$TAG"

at_exit "rm -f '$BENCH/profile.img' '$DATA' '$DATA.old'"
at_exit close_loopfs
new_loopfs "$BENCH/profile.img" 5G "$BENCH/disk"
ostree --repo="$BENCH/disk/repo" init --mode=bare
say "Recording a pull of $TAG by $TOOL"
# Stacks are copied and unwound later: neither we nor the system's libraries keep frame pointers.
pull_with "$TOOL" "$BENCH/disk/repo" "os:$TAG" \
  perf record --quiet -e cpu-clock -F "$RATE" --call-graph dwarf,16384 -o "$DATA" -- >/dev/null
say "Drawing $OUT"
perf script --no-inline -i "$DATA" 2>/dev/null | inferno-collapse-perf >"$BENCH/stacks"
inferno-flamegraph --minwidth "$MIN_WIDTH" --title "Fresh pull of $TAG by $TOOL" \
  --subtitle "CPU time of all its processes, kernel included; $RATE samples a second and CPU" <"$BENCH/stacks" >"$OUT.new"
mv "$OUT.new" "$OUT"
note "$(du -h "$OUT" | cut -f1), $(awk '{s += $NF} END {printf "%.1f", s / 1e9}' "$BENCH/stacks") CPU seconds"
