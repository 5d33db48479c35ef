#!/bin/sh
# Builds containerd, its runc shim, ctr, nerdctl and crictl, as pinned in tests/tools/go.mod, into a cache outside the tree.
#
#   contrib/setup/tools.sh          builds what is missing; prints the directory of the programs
#   contrib/setup/tools.sh --path   prints that directory and builds nothing
#
# The directory's name holds a hash of the pins and of Go's version, so another pin is another directory and a second run does nothing.
# Exit 3: no Go here. Tests and demo then use the distribution's containerd, and skip by name what it cannot do.
set -eu

tools=$(cd "$(dirname "$0")/../../tests/tools" && pwd)
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}

if ! command -v go >/dev/null 2>&1; then
    echo "tools.sh: no 'go' on the PATH: containerd 2.x, nerdctl and crictl cannot be built." >&2
    echo "tools.sh: install Go 1.26 or newer for them; until then the distribution's containerd is used." >&2
    exit 3
fi

key=$( (cat "$tools/go.mod" "$tools/go.sum" "$tools/tigron/go.mod" "$tools/tigron/tig/tig.go" && go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/tools/$key
bin=$dir/bin

if [ "${1:-}" = "--path" ] || [ -e "$dir/complete" ]; then
    echo "$bin"
    exit 0
fi

mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ -e "$dir/complete" ]; then # another run was building it
    echo "$bin"
    exit 0
fi

containerd=$(cd "$tools" && go list -mod=readonly -m -f '{{.Version}}' github.com/containerd/containerd/v2)
nerdctl=$(cd "$tools" && go list -mod=readonly -m -f '{{.Version}}' github.com/containerd/nerdctl/v2)
crictl=$(cd "$tools" && go list -mod=readonly -m -f '{{.Version}}' sigs.k8s.io/cri-tools)
versions="-X github.com/containerd/containerd/v2/version.Version=$containerd"
versions="$versions -X github.com/containerd/nerdctl/v2/pkg/version.Version=$nerdctl"
versions="$versions -X sigs.k8s.io/cri-tools/pkg/version.Version=$crictl"

echo "tools.sh: building containerd $containerd, nerdctl $nerdctl and crictl $crictl into $bin (minutes, once)" >&2
mkdir -p "$bin.part"
# Static binaries: the same cache serves any distribution. One package at a time leaves the machine usable.
(cd "$tools" && CGO_ENABLED=0 nice go build -mod=readonly -trimpath -p "${LAPWING_BUILD_JOBS:-$(nproc)}" \
    -ldflags "-s -w $versions" -tags urfave_cli_no_docs,osusergo,netgo -o "$bin.part/" tool) >&2
rm -rf "$bin"
mv "$bin.part" "$bin"
touch "$dir/complete"
echo "$bin"
