#!/bin/sh
# Builds containerd 1.7 with its runc shim and ctr, as pinned in tests/tools/containerd17/go.mod, into a cache outside the tree.
#
#   contrib/setup/containerd17.sh   builds it if it is missing; prints the directory of the programs
#
# Exit 3: no Go here. Tests that need it then skip by name.
set -eu

module=$(cd "$(dirname "$0")/../../tests/tools/containerd17" && pwd)
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}

if ! command -v go >/dev/null 2>&1; then
    echo "containerd17.sh: no 'go' on the PATH: containerd 1.7 cannot be built; install Go 1.26 or newer" >&2
    exit 3
fi

key=$( (cat "$module/go.mod" "$module/go.sum" && go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/tools/containerd17-$key
bin=$dir/bin

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ ! -e "$dir/complete" ]; then
    version=$(cd "$module" && go list -mod=readonly -m -f '{{.Version}}' github.com/containerd/containerd)
    echo "containerd17.sh: building containerd $version into $bin (minutes, once)" >&2
    (cd "$module" && CGO_ENABLED=0 nice go build -mod=readonly -trimpath -p "${LAPWING_BUILD_JOBS:-$(nproc)}" \
        -ldflags "-s -w -X github.com/containerd/containerd/version.Version=$version" \
        -tags urfave_cli_no_docs,osusergo,netgo,no_btrfs,no_devmapper,no_zfs,no_aufs -o "$bin.part/" tool) >&2
    rm -rf "$bin"
    mv "$bin.part" "$bin"
    touch "$dir/complete"
fi
echo "$bin"
