#!/bin/sh
# Builds another system, for `make bench-peers`, from the sources that its authors published, at a pinned version, into a cache outside the tree.
#
#   contrib/bench/peers/build.sh spegel | dragonfly | stargz
#
# Builds what is missing, and prints the directory of the programs. Exit 3: it cannot be built here, and why is said.
set -eu

name=${1:-}
case $name in
spegel) module=github.com/spegel-org/spegel@v0.7.3 packages=. ;;
dragonfly) module=d7y.io/dragonfly/v2@v2.5.1 packages=./cmd/scheduler ;;
stargz) module=github.com/containerd/stargz-snapshotter@v0.18.2 packages=./cmd/containerd-stargz-grpc ;;
*)
    echo "usage: build.sh spegel | dragonfly | stargz" >&2
    exit 2
    ;;
esac
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}
if ! command -v go >/dev/null 2>&1; then
    echo "build.sh: no 'go' on the PATH: $name cannot be built; install Go 1.26 or newer" >&2
    exit 3
fi
key=$( (echo "$module $packages"; go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/peers/$name-$key
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ ! -e "$dir/complete" ]; then
    echo "build.sh: building $packages of $module into $dir/bin (minutes, once)" >&2
    # As its own main module, so that what it replaces and pins counts.
    if ! sources=$(cd "$dir" && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p') || [ -z "$sources" ]; then
        echo "build.sh: $module cannot be fetched here: the lines above say why" >&2
        exit 3
    fi
    # shellcheck disable=SC2086 # several packages
    if ! (cd "$sources" && CGO_ENABLED=0 GOFLAGS=-mod=readonly nice go build -trimpath -ldflags "-s -w" -o "$dir/bin.part/" $packages) >&2; then
        echo "build.sh: $module cannot be built here: the lines above say why" >&2
        exit 3
    fi
    mv "$dir/bin.part" "$dir/bin"
    touch "$dir/complete"
fi
echo "$dir/bin"
