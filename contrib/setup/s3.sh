#!/bin/sh
# Builds versitygw, the S3-compatible server of the tests, as pinned in tests/tools/s3/go.mod, into a cache outside the tree.
#
#   contrib/setup/s3.sh             builds it if it is missing; prints the directory of the program
#
# Exit 3: no Go here. Tests that need the server then skip by name.
set -eu

module=$(cd "$(dirname "$0")/../../tests/tools/s3" && pwd)
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}

if ! command -v go >/dev/null 2>&1; then
    echo "s3.sh: no 'go' on the PATH: the S3-compatible server cannot be built; install Go 1.26 or newer" >&2
    exit 3
fi

key=$( (cat "$module/go.mod" "$module/go.sum" && go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/tools/s3-$key
bin=$dir/bin

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ ! -e "$dir/complete" ]; then
    echo "s3.sh: building versitygw into $bin (minutes, once)" >&2
    (cd "$module" && CGO_ENABLED=0 nice go build -mod=readonly -trimpath -p "${LAPWING_BUILD_JOBS:-$(nproc)}" \
        -ldflags "-s -w" -o "$bin.part/" tool) >&2
    rm -rf "$bin"
    mv "$bin.part" "$bin"
    touch "$dir/complete"
fi
echo "$bin"
