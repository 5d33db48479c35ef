#!/bin/sh
# Builds the programs of one of the Go modules in tests/tools, as pinned in its go.mod, into a cache outside the tree.
#
#   contrib/setup/module.sh containerd17   containerd 1.7, its runc shim and ctr
#   contrib/setup/module.sh dockerd        a dockerd that keeps images in containerd
#   contrib/setup/module.sh soci           soci-ztoc, which writes SOCI's tables by soci-snapshotter's library (C compiler, zlib's headers)
#   contrib/setup/module.sh kubernetes     helm, and kubecheck, which validates objects by the API server's own code
#   contrib/setup/module.sh prometheus     rulecheck, which reads alert rules and boards by Prometheus' own parsers
#
# Builds what is missing, and prints the directory of the programs. The directory's name holds a hash of the pins and of Go's version.
# Exit 3: no Go here. Tests that need the programs then skip by name.
set -eu

name=${1:-}
cgo=0
what=tool
case $name in
containerd17)
    path=github.com/containerd/containerd
    variable=$path/version.Version
    tags=urfave_cli_no_docs,osusergo,netgo,no_btrfs,no_devmapper,no_zfs,no_aufs
    ;;
dockerd)
    path=github.com/moby/moby/v2
    variable=$path/dockerversion.Version
    tags=osusergo,netgo
    ;;
soci)
    path=github.com/awslabs/soci-snapshotter
    variable=main.version
    tags=osusergo,netgo
    cgo=1
    what=.
    if ! command -v cc >/dev/null 2>&1 || ! [ -e /usr/include/zlib.h ]; then
        echo "module.sh: soci needs a C compiler and zlib's headers; install gcc and zlib1g-dev" >&2
        exit 3
    fi
    ;;
kubernetes)
    path=helm.sh/helm/v3
    variable=$path/internal/version.version
    tags=osusergo,netgo
    what="tool ./kubecheck"
    ;;
prometheus)
    path=github.com/prometheus/prometheus
    variable=main.version
    tags=osusergo,netgo
    what=./rulecheck
    ;;
*)
    echo "usage: module.sh containerd17 | dockerd | soci | kubernetes | prometheus" >&2
    exit 2
    ;;
esac
module=$(cd "$(dirname "$0")/../../tests/tools/$name" && pwd)
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}

if ! command -v go >/dev/null 2>&1; then
    echo "module.sh: no 'go' on the PATH: $name cannot be built; install Go 1.26 or newer" >&2
    exit 3
fi

key=$( (cat "$module/go.mod" "$module/go.sum" "$module"/*.go "$module"/*/*.go 2>/dev/null || true; go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/tools/$name-$key
bin=$dir/bin

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ ! -e "$dir/complete" ]; then
    version=$(cd "$module" && go list -mod=readonly -m -f '{{.Version}}' "$path")
    echo "module.sh: building $name $version into $bin (minutes, once)" >&2
    # shellcheck disable=SC2086 # several packages
    (cd "$module" && CGO_ENABLED=$cgo nice go build -mod=readonly -trimpath -p "${LAPWING_BUILD_JOBS:-$(nproc)}" \
        -ldflags "-s -w -X $variable=$version" -tags "$tags" -o "$bin.part/" $what) >&2
    rm -rf "$bin"
    mv "$bin.part" "$bin"
    touch "$dir/complete"
fi
echo "$bin"
