# shellcheck shell=bash
# The two programs of integration/bench, built by cargo: REFERENCE (the importer of ostree-ext) and OURS.
# Source after common.sh.

build_pullers() {
  local profile=$1 dir=$1
  if [ "$profile" = dev ]; then dir=debug; fi
  (cd "$REPO_DIR" && "${CARGO:-cargo}" build --locked --quiet --profile "$profile" --examples)
  dir=${CARGO_TARGET_DIR:-$REPO_DIR/target}/$dir/examples
  REFERENCE=$dir/reference
  OURS=$dir/pull
  export REFERENCE OURS
}

# The reference cannot hand a registries.conf to skopeo, and older skopeos do not look for CONTAINERS_REGISTRIES_CONF:
# it is told by an option that the registry has no certificate. Both then do the same: try TLS, take plain http.
# pull_with TOOL REPO NAME:TAG COMMAND...: the command line of a pull from REGISTRY, behind COMMAND.
pull_with() {
  local tool=$1 repo=$2 image=$3 tls=(--insecure-skip-tls-verification)
  shift 3
  if [ "${REGISTRY_TLS:-}" = 1 ]; then tls=(); fi
  case $tool in
    reference) "$@" "$REFERENCE" container image pull --quiet "${tls[@]}" "$repo" "ostree-unverified-registry:$REGISTRY/$image" ;;
    ours) "$@" "$OURS" "$repo" "$REGISTRY/$image" ;;
    *) die "no tool $tool" ;;
  esac
}
