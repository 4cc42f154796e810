#!/bin/bash
# make bench: what does a pull cost, against the reference importer and against the machine? docs/performance.md tells how to read it.
#   SCENARIOS="fresh noop"  only these; default: fresh incremental noop cold latency merge fsyncs floor
#   RUNS=5                  of each, alternating between the two
#   REGISTRY_TLS=1          the registry speaks TLS; otherwise plain http
# Results: the tables on standard output, and WORK/bench/results.json.
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
need_root bench
. "$REPO_DIR/integration/bench/images.sh"
for part in registry loopfs; do
  # shellcheck source=/dev/null
  . "$REPO_DIR/integration/lib/$part.sh"
done

RUNS=${RUNS:-5}
SCENARIOS=${SCENARIOS:-fresh incremental noop cold latency merge fsyncs floor}
DISK_SIZE=5G
LATENCY=0.05
TOOLS=(reference ours)
RESULTS=$BENCH/results.jsonl
DISK=$BENCH/disk
R=$DISK/repo
KNOWN=()

machine() {
  # shellcheck disable=SC2016  # awk's
  printf '%s=%s\n' \
    CPUs "$(nproc) x $(awk -F': ' '/^model name/ {print $2; exit}' /proc/cpuinfo)" \
    memory "$(awk '/^MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo)" \
    kernel "$(uname -r)" \
    libostree "$(ostree --version | awk -F"'" '/Version/ {print $2}')" \
    skopeo "$(skopeo --version | awk '{print $3}')" \
    registry "$(docker-registry --version | awk '{print $3}'), $(registry_scheme)" \
    ostree-ext "$(awk '/^name = "ostree-ext"/ {getline; gsub(/"/, ""); print $3}' "$REPO_DIR/Cargo.lock")" \
    osctl "$(git -C "$REPO_DIR" describe --always --dirty 2>/dev/null || echo unknown), profile ${PROFILE:-release}"
}

# measured SCENARIO TOOL COMMAND...: the run's line in RESULTS
measured() {
  local scenario=$1 tool=$2 line known=() pid
  shift 2
  for pid in "${KNOWN[@]}"; do known+=(--known "$pid"); done
  sync -f "$BENCH"
  line=$(python3 "$REPO_DIR/integration/bench/measure.py" "$RESULTS" "$scenario" "$tool" --disk "$DISK" "${known[@]}" --log "$BENCH/last.log" -- "$@") ||
    { tail -20 "$BENCH/last.log" >&2; die "$scenario: $tool failed; its log is $BENCH/last.log"; }
  note "$scenario, $tool: $line"
}

# pulled TOOL IMAGE: a pull that is not measured
pulled() {
  pull_with "$1" "$R" "$2" env >"$BENCH/last.log" 2>&1 || { tail -20 "$BENCH/last.log" >&2; die "$1 cannot pull $2; its log is $BENCH/last.log"; }
}

new_repo() {
  new_loopfs "$BENCH/disk.img" "$DISK_SIZE" "$DISK"
  ostree --repo="$R" init --mode=bare
}

# The disk of TOOL with v1 on it, made once in each run of this script.
declare -A BASED
need_base() {
  [ -z "${BASED[$1]:-}" ] || return 0
  new_loopfs "$BENCH/base-$1.img" "$DISK_SIZE" "$DISK"
  ostree --repo="$R" init --mode=bare
  pulled "$1" os:v1
  close_loopfs
  sync -f "$BENCH"
  BASED[$1]=1
}

# A copy of it: what is new there costs nobody anything.
repo_with_v1() {
  need_base "$1"
  close_loopfs
  rm -f "$BENCH/copy.img"
  cp "$BENCH/base-$1.img" "$BENCH/copy.img"
  fallocate -l "$DISK_SIZE" "$BENCH/copy.img"
  open_loopfs "$BENCH/copy.img" "$DISK"
}

# Nothing stays in the page cache: not of the repository, not of the registry, not of the programs.
drop_caches() {
  sync
  echo 3 >/proc/sys/vm/drop_caches
}

# each FUNCTION ARGS...: RUNS times, for both tools in turn
each() {
  local i tool
  for ((i = 1; i <= RUNS; i++)); do
    for tool in "${TOOLS[@]}"; do "$1" "$tool" "${@:2}"; done
  done
}

one_fresh() {
  local tool=$1 scenario=$2 image=$3 cold=${4:-}
  new_repo
  [ -z "$cold" ] || drop_caches
  pull_with "$tool" "$R" "$image" measured "$scenario" "$tool"
}

one_incremental() {
  local tool=$1 scenario=$2 cold=${3:-}
  repo_with_v1 "$tool"
  [ -z "$cold" ] || drop_caches
  pull_with "$tool" "$R" os:v2 measured "$scenario" "$tool"
}

one_noop() {
  need_base "$1"
  close_loopfs
  open_loopfs "$BENCH/base-$1.img" "$DISK"
  pulled "$1" os:v1
  # It takes a tenth of a second: more of them cost little, and say more.
  local i
  for i in 1 2 3; do pull_with "$1" "$R" os:v1 measured noop "$1"; done
}

images_of() { ostree --repo="$R" refs --list ostree/container/image | sort; }

# All layers are there, the result is not.
one_merge() {
  local tool=$1 before
  repo_with_v1 "$tool"
  before=$(images_of)
  pulled "$tool" os:derived
  comm -13 <(echo "$before") <(images_of) | while read -r ref; do ostree --repo="$R" refs --delete "$ref"; done
  [ "$(images_of)" = "$before" ] || die "the merged image of $tool is not to be forgotten"
  ostree --repo="$R" prune --refs-only >/dev/null
  pull_with "$tool" "$R" os:derived measured merge "$tool"
  pull_with "$tool" "$R" os:derived measured merge-noop "$tool"
}

# traced SCENARIO TOOL COMMAND...
traced() {
  local scenario=$1 tool=$2
  shift 2
  strace -f --seccomp-bpf -c -o "$BENCH/strace" -e trace=fsync,fdatasync,syncfs,sync "$@" >"$BENCH/last.log" 2>&1 ||
    { tail -20 "$BENCH/last.log" >&2; die "$scenario: $tool failed under strace"; }
  awk '$NF ~ /sync/ {print $NF, $4}' "$BENCH/strace" | jq -Rsc --arg scenario "fsyncs, $scenario" --arg tool "$tool" \
    '{$scenario, $tool, calls: (split("\n") | map(select(. != "") | split(" ") | {(.[0]): (.[1] | tonumber)}) | add // {})}' >>"$RESULTS"
}

scenario_fresh() { each one_fresh fresh os:v1; }
scenario_incremental() { each one_incremental incremental; }
scenario_noop() { each one_noop; }
scenario_merge() { each one_merge; }
scenario_cold() {
  each one_fresh cold os:v1 cold
  each one_incremental cold-incremental cold
}

scenario_latency() {
  local port near=$REGISTRY
  port=$(free_port)
  python3 "$REPO_DIR/integration/bench/latency.py" "$port" "${near##*:}" "$LATENCY" &
  local proxy=$!
  at_exit "stop_pid $proxy"
  REGISTRY=127.0.0.1:$port
  wait_until 5 curl -fsSk -o /dev/null "$(registry_scheme)://$REGISTRY/v2/" || die "the proxy did not start"
  no_certificate "$REGISTRY"
  KNOWN+=("$proxy")
  each one_fresh latency os:layers64
  each one_fresh latency-small os:small64
  KNOWN=("${KNOWN[0]}")
  stop_pid "$proxy"
  REGISTRY=$near
}

scenario_fsyncs() {
  local tool
  for tool in "${TOOLS[@]}"; do
    new_repo
    pull_with "$tool" "$R" os:v1 traced fresh "$tool"
    repo_with_v1 "$tool"
    pull_with "$tool" "$R" os:v2 traced incremental "$tool"
  done
}

# What cannot be had for less on this machine: each part of the work by the quickest program at hand, on all CPUs.
scenario_floor() {
  local i layers=$BENCH/layers tree=$BENCH/build/tree gunzip=gzip
  if command -v igzip >/dev/null; then gunzip=igzip; fi
  skopeo inspect --raw "oci:$BENCH/oci/v1:1" | jq -r '.layers[].digest' | sed "s,^sha256:,$BENCH/oci/v1/blobs/sha256/," >"$layers"
  for ((i = 1; i <= RUNS; i++)); do
    new_loopfs "$BENCH/disk.img" "$DISK_SIZE" "$DISK"
    # shellcheck disable=SC2016  # the inner shell's
    {
      measured floor download sh -c 'exec skopeo copy --quiet --insecure-policy --src-tls-verify=false "docker://$0" "dir:$1"' "$REGISTRY/os:v1" "$DISK/dir"
      measured floor decompress sh -c 'xargs -n 1 -P "$(nproc)" "$0" -dc <"$1" >/dev/null' "$gunzip" "$layers"
      measured floor hash sh -c 'find "$0" -type f -print0 | xargs -0 -n 2000 -P "$(nproc)" openssl dgst -sha256 >/dev/null' "$tree"
      new_loopfs "$BENCH/disk.img" "$DISK_SIZE" "$DISK"
      measured floor write sh -c 'cp -a "$0" "$1/tree" && sync -f "$1"' "$tree" "$DISK"
    }
  done
}

# no_certificate ADDRESS: what our side has to be told about plain http
no_certificate() {
  [ "${REGISTRY_TLS:-}" = 1 ] || printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$1" >>"$CONTAINERS_REGISTRIES_CONF"
}

report() { python3 "$REPO_DIR/integration/bench/report.py" "$RESULTS" "$@"; }

for s in $SCENARIOS; do
  declare -F "scenario_$s" >/dev/null || die "no scenario $s; there are: $(declare -F | sed -n 's/^declare -f scenario_//p' | tr '\n' ' ')"
done
mkdir -p "$BENCH"
at_exit "rm -f '$BENCH'/{disk,copy,base-*}.img"
at_exit close_loopfs
say "Building both importers"
build_pullers "${PROFILE:-release}"
build_bench_images
start_registry "$BENCH/registry"
KNOWN=("$REGISTRY_PID")
export CONTAINERS_REGISTRIES_CONF=$BENCH/registries.conf
: >"$CONTAINERS_REGISTRIES_CONF"
if [ "${REGISTRY_TLS:-}" = 1 ]; then export SSL_CERT_FILE=$BENCH/registry/cert.pem; fi
no_certificate "$REGISTRY"
for image in v1:1=v1 v2:1=v2 v1:derived=derived layers64:1=layers64 small64:1=small64; do
  push "$BENCH/oci/${image%=*}" "os:${image#*=}"
done

rm -f "$RESULTS"
machine >"$BENCH/machine"
for s in $SCENARIOS; do
  say "Scenario $s, $RUNS runs of each"
  "scenario_$s"
done
close_loopfs
say "Results (medians, [smallest..largest]; seconds of different machines do not compare, ratios do)"
report --machine "$BENCH/machine" --json "$BENCH/results.json"
note "every run: $BENCH/results.json"
