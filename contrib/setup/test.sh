#!/usr/bin/env bash
# Runs every test of the workspace and tells how long each test program took and what was skipped.
# The last line is "N passed, N failed, N skipped"; the exit status is 0 only if everything built and nothing failed.
#
# Programs run one after the other. RUST_TEST_THREADS is how many tests of one program run at the same time: whole-system tests bring
# several daemons each, so it is 2 unless it is set.
set -euo pipefail
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$scratch/log
export LAPWING_SKIP_LOG=$scratch/skipped
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-2}
: >"$LAPWING_SKIP_LOG"

# A full disk shows as a linker that dies of a bus error, and as tests that fail for no visible reason.
free=$(df --output=avail -BG . /var/tmp | awk 'NR > 1 { print $1 + 0 }' | sort -n | head -n 1)
[ "$free" -ge 10 ] || echo "test.sh: only $free GB are free here or in /var/tmp; building takes 4, and tests fill disks, too: make room if something fails" >&2

# All of it first: the tests start the binary beside them.
cargo build --workspace --all-targets || {
  status=$?
  echo "0 passed, 1 failed, 0 skipped"
  exit "$status"
}

status=0
cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?

# Sums the number before a word over the lines "test result: ok. 3 passed; 0 failed; 1 ignored; ...".
sum() {
  awk -v word="$1;" '/^test result: / { for (i = 2; i <= NF; i++) if ($i == word) total += $(i - 1) } END { print total + 0 }' "$log"
}
passed=$(sum passed)
failed=$(sum failed)
# A test that lacks something says so and returns: for the test runner it has passed. Parts of other tests are "ignored" by design.
skipped=$(sort -u "$LAPWING_SKIP_LOG" | wc -l)
ignored=$(sum ignored)
# A program that dies prints no result: cargo's status and its last words are all there is.
[ "$status" = 0 ] || [ "$failed" != 0 ] || failed=1

echo
echo "seconds  test program"
awk '/^ *(Running|Doc-tests) / { name = $0; sub(/^ *(Running )?(unittests )?/, "", name); sub(/ \(.*/, "", name)
       if (match($0, /deps\/[A-Za-z0-9_-]+-[0-9a-f]+\)/)) { crate = substr($0, RSTART + 5, RLENGTH - 6); sub(/-[0-9a-f]+$/, "", crate); name = crate " (" name ")" } }
     /^test result: / && match($0, /finished in [0-9.]+s/) { printf "%7.1f  %s\n", substr($0, RSTART + 12, RLENGTH - 13), name }' "$log" |
  sort -rn
if [ "$skipped" != 0 ] || [ "$ignored" != 0 ]; then
  echo
  sort -u "$LAPWING_SKIP_LOG"
  sed -nE 's/^test ([^ ]+) \.\.\. ignored(, (.*))?$/IGNORED: \1: \3/p' "$log"
fi
if [ "$failed" != 0 ]; then
  echo
  # What each says of itself first, at the end of all output: whoever sees only the last lines of a run still sees the causes.
  sed -nE 's/^test ([^ ]+) \.\.\. FAILED$/\1/p' "$log" | while read -r name; do
    echo "FAILED: $name"
    grep -F -A12 "thread '$name' " "$log" | grep -vE '^( +[0-9]+:| +at |stack backtrace:|note:)' | cut -c1-1500 | head -n 13 || true
  done
  grep -E '^error: (test failed|could not|[0-9]+ target)|process didn.t exit successfully' "$log" || true
fi
echo
echo "$((passed - skipped)) passed, $failed failed, $((skipped + ignored)) skipped"
exit "$status"
