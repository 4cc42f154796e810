# shellcheck shell=bash
# Adds up what guests report: PASSED and FAILED. Source after common.sh.
PASSED=0 FAILED=0

# Adds up what a guest reported. A guest that stopped half-way is a failure, however many checks passed before.
judge() {
  local tier=$1 output=$2 ok bad
  tr -d '\r' <"$output"
  ok=$(tr -d '\r' <"$output" | grep -c '^ok - ' || true)
  bad=$(tr -d '\r' <"$output" | grep -c '^not ok - ' || true)
  if tr -d '\r' <"$output" | grep -qx 'scenario complete'; then
    ok=$((ok + 1))
    echo "ok - the $tier guest went through the whole scenario"
  else
    bad=$((bad + 1))
    echo "not ok - the $tier guest went through the whole scenario"
  fi
  PASSED=$((PASSED + ok)) FAILED=$((FAILED + bad))
}
