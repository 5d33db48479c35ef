#!/usr/bin/env bash
# Writes which crates, of which versions and licences, the binary is made of: a CycloneDX document.
# The tool that writes it is built at the given version into the cache, once.
set -euo pipefail
version=${1:?usage: sbom.sh VERSION}
cd "$(dirname "$0")/../.."
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}/cyclonedx/$version
if [ ! -x "$cache/bin/cargo-cyclonedx" ]; then
  echo "building cargo-cyclonedx $version into $cache (once; some minutes)" >&2
  env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install --quiet --locked --root "$cache" --version "$version" cargo-cyclonedx
fi
mkdir -p target/package
# It writes one beside each manifest of the workspace, below a name that nothing else has.
name=lapwing-sbom-$$
trap 'git ls-files -z --others "*$name.json" | xargs -0 rm -f' EXIT
"$cache/bin/cargo-cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps --override-filename "$name"
mv "$name.json" target/package/lapwing.cdx.json
components=$(grep -c '"bom-ref": "registry+' target/package/lapwing.cdx.json)
echo "target/package/lapwing.cdx.json: $components crates"
