# shellcheck shell=bash
# Claims of a test, each a line. Source after common.sh.
PASSED=0 FAILED=0

# check SENTENCE COMMAND...: the sentence is true if the command succeeds; otherwise the end of what it printed is shown.
check() {
  local sentence=$1 out rc=0
  shift
  out=$("$@" 2>&1) || rc=$?
  claim "$rc" "$sentence" "$sentence" "$(tail -20 <<<"$out")"
}

# verdict SENTENCE COMMAND...: what the command prints is added to the sentence, and shown in full if it fails.
verdict() {
  local sentence=$1 out rc=0
  shift
  out=$("$@" 2>&1) || rc=$?
  claim "$rc" "$sentence${out:+: $out}" "$sentence" "$out"
}

# claim STATUS SENTENCE_IF_TRUE SENTENCE_IF_NOT OUTPUT
claim() {
  if [ "$1" = 0 ]; then
    PASSED=$((PASSED + 1))
    echo "ok - $2"
  else
    FAILED=$((FAILED + 1))
    echo "not ok - $3"
    printf '# %s\n' "${4//$'\n'/$'\n# '}"
  fi
}

# checked: the end of a test.
checked() {
  printf '\n%s passed, %s failed\n' "$PASSED" "$FAILED"
  [ "$FAILED" = 0 ]
}
