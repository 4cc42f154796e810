# shellcheck shell=bash
# Claims of a test, each a line. Source after common.sh.
PASSED=0 FAILED=0

# check SENTENCE COMMAND...: the sentence is true if the command succeeds; otherwise what it printed is shown.
check() {
  local sentence=$1 out
  shift
  if out=$("$@" 2>&1); then
    PASSED=$((PASSED + 1))
    echo "ok - $sentence"
  else
    FAILED=$((FAILED + 1))
    echo "not ok - $sentence"
    tail -20 <<<"$out" | sed 's/^/# /'
  fi
}

# checked: the end of a test.
checked() {
  printf '\n%s passed, %s failed\n' "$PASSED" "$FAILED"
  [ "$FAILED" = 0 ]
}
