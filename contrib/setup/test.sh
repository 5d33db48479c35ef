#!/usr/bin/env bash
# Runs every test and tells what was skipped. Exits with the tests' own status.
set -euo pipefail
cd "$(dirname "$0")/../.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo build --workspace --all-targets
status=0
cargo test --workspace --no-fail-fast 2>&1 | tee "$log" || status=$?
skipped=$(grep -c '^SKIPPED: ' "$log" || true)
passed=$(grep -oE 'test result: [a-zA-Z]+\. [0-9]+ passed' "$log" | grep -oE '[0-9]+' | paste -sd+ | bc || echo 0)
failed=$(grep -oE '[0-9]+ failed' "$log" | grep -oE '[0-9]+' | paste -sd+ | bc || echo 0)
grep '^SKIPPED: ' "$log" || true
echo "${passed:-0} passed, ${failed:-0} failed, $skipped skipped"
exit "$status"
