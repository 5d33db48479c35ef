#!/usr/bin/env bash
# Holds the crates of Cargo.lock against the RustSec advisories, if their database can be reached; says so if it cannot.
set -euo pipefail
version=${1:?usage: advisories.sh VERSION-OF-CARGO-DENY}
cd "$(dirname "$0")/../.."
deny=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}/deny/$version/bin/cargo-deny
if ! timeout 120 "$deny" --log-level off fetch db; then
  echo "ADVISORIES ARE NOT CHECKED: the database, https://github.com/RustSec/advisory-db, cannot be reached" >&2
  exit 0
fi
"$deny" --offline --workspace check advisories
