#!/usr/bin/env bash
# Builds cargo-deny at the given version into the cache, once.
set -euo pipefail
version=${1:?usage: deny.sh VERSION}
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}/deny/$version
if [ ! -x "$cache/bin/cargo-deny" ]; then
  echo "building cargo-deny $version into $cache (once; some minutes)" >&2
  env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install --quiet --locked --root "$cache" --version "$version" cargo-deny
fi
