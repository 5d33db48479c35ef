#!/bin/sh
# Builds another system, for `make bench-peers`, from the sources that its authors published, at a pinned version, into a cache outside the tree.
#
#   contrib/bench/peers/build.sh spegel | dragonfly | kraken | piccolo | stargz | soci
#
# The commands of stargz-snapshotter and soci-snapshotter are in modules that only their repositories have: what is built for them are the few lines
# beside this script that serve their libraries. Builds what is missing, and prints the directory of the programs. Exit 3: it cannot be built here, and why is said.
set -eu

# module: of Go; packages: its programs; cgo: whether C is among its sources; crate: of crates.io, with its programs.
name=${1:-}
module='' packages='' cgo=0 crate='' bins='' needs='go'
case $name in
spegel) module=github.com/spegel-org/spegel@v0.7.3 packages=. ;;
dragonfly)
    module=d7y.io/dragonfly/v2@v2.5.1 packages=./cmd/scheduler
    crate=dragonfly-client@1.5.10 bins='dfdaemon dfget' needs='go cargo c++ cmake protoc'
    ;;
kraken)
    module=github.com/uber/kraken@v0.1.27 packages='./agent ./origin ./tracker ./build-index' cgo=1
    needs='go gcc'
    ;;
piccolo) module=github.com/laixintao/piccolo@v0.0.36 packages='./cmd/pi ./cmd/piccolo' ;;
stargz) packages=. ;;
soci) packages=. cgo=1 needs='go gcc' ;; # zlib's headers as well
*)
    echo "usage: build.sh spegel | dragonfly | kraken | piccolo | stargz | soci" >&2
    exit 2
    ;;
esac
for program in $needs; do
    if ! command -v "$program" >/dev/null 2>&1; then
        echo "build.sh: no '$program' on the PATH: $name cannot be built" >&2
        exit 3
    fi
done
cache=${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}
ours=$(cd "$(dirname "$0")" && pwd)/$name
key=$( (echo "$module $packages $cgo $crate $bins"; cat "$ours/go.mod" "$ours/go.sum" "$ours/main.go" 2>/dev/null || true; go env GOVERSION GOARCH) | sha256sum | cut -c1-16)
dir=$cache/peers/$name-$key
mkdir -p "$dir"
exec 9>"$dir/lock"
flock 9
if [ ! -e "$dir/complete" ]; then
    echo "build.sh: building $name into $dir/bin (minutes, once)" >&2
    # As its own main module, so that what it replaces and pins counts.
    if [ -z "$module" ]; then
        sources=$ours
    elif ! sources=$(cd "$dir" && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p') || [ -z "$sources" ]; then
        echo "build.sh: $module cannot be fetched here: the lines above say why" >&2
        exit 3
    fi
    # shellcheck disable=SC2086 # several packages
    if ! (cd "$sources" && CGO_ENABLED=$cgo GOFLAGS=-mod=readonly nice go build -trimpath -ldflags "-s -w" -o "$dir/bin.part/" $packages) >&2; then
        echo "build.sh: $name cannot be built here: the lines above say why" >&2
        exit 3
    fi
    if [ -n "$crate" ]; then
        echo "build.sh: building $bins of $crate (half an hour, once)" >&2
        # shellcheck disable=SC2046,SC2086 # several programs
        if ! RUSTFLAGS='--cfg tokio_unstable' CARGO_TARGET_DIR="$dir/target" nice cargo install --quiet --locked --root "$dir/crate" \
            $(printf -- '--bin %s ' $bins) "$crate" >&2; then
            echo "build.sh: $crate cannot be built here: the lines above say why" >&2
            exit 3
        fi
        mv "$dir"/crate/bin/* "$dir/bin.part/"
        rm -rf "$dir/crate" "$dir/target"
    fi
    if [ "$name" = kraken ]; then
        cp -r --no-preserve=mode "$sources/config" "$dir/bin.part/config" # which an operator's files extend
    fi
    mv "$dir/bin.part" "$dir/bin"
    touch "$dir/complete"
fi
echo "$dir/bin"
