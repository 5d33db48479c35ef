#!/bin/sh
# Builds target/package/lapwing-VERSION-1.ARCH.rpm of a release binary, and prints its path. Needs rpmbuild (Debian's package "rpm"); no network,
# no root.
#
#   contrib/package/rpm.sh [BINARY]      default: target/release/lapwing
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
binary=$(realpath "${1:-$tree/target/release/lapwing}")
out=${LAPWING_PACKAGE_DIR:-$tree/target/package}
version=${LAPWING_VERSION:-$("$here/version.sh")}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$tree" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$here/stage.sh" "$binary" "$work/stage"
install -D -m 644 "$tree/LICENSE" "$work/stage/usr/share/licenses/lapwing/LICENSE"
# Where zsh looks elsewhere than on Debian.
mv "$work/stage/usr/share/zsh/vendor-completions" "$work/stage/usr/share/zsh/site-functions"

rpmbuild -bb --quiet \
    --define "_topdir $work/top" --define "_rpmdir $work/rpms" --define "_buildhost localhost" \
    --define "_binary_payload w${LAPWING_PACKAGE_LEVEL:-6}.xzdio" --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" \
    --define "lapwing_version $version" --define "stage $work/stage" --define "scripts $here/scripts/common.sh" \
    "$here/lapwing.spec" >&2
mkdir -p "$out"
for package in "$work"/rpms/*/*.rpm; do
    mv "$package" "$out/"
    echo "$out/$(basename "$package")"
done
