#!/bin/sh
# Builds target/package/lapwing_VERSION_ARCH.deb of a release binary, and prints its path. Needs dpkg-deb and objdump; no network, no root.
#
#   contrib/package/deb.sh [BINARY]      default: target/release/lapwing
#
# LAPWING_VERSION: the version, if it is not to be the workspace's (an upgrade in a test). LAPWING_PACKAGE_LEVEL: of the compression, 0 to 9.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
binary=$(realpath "${1:-$tree/target/release/lapwing}")
out=${LAPWING_PACKAGE_DIR:-$tree/target/package}
version=${LAPWING_VERSION:-$("$here/version.sh")}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$tree" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
architecture=$(dpkg --print-architecture)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

"$here/stage.sh" "$binary" "$root"
install -D -m 644 "$tree/LICENSE" "$root/usr/share/doc/lapwing/copyright"
gzip -9nc "$tree/CHANGELOG.md" >"$root/usr/share/doc/lapwing/changelog.gz"

mkdir "$root/DEBIAN"
(cd "$root" && find etc -type f | sort | sed 's|^|/|') >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    cat "$here/scripts/common.sh" "$here/deb/$script" >"$root/DEBIAN/$script"
    chmod 755 "$root/DEBIAN/$script"
done
# The newest symbols of glibc that the program asks for.
glibc=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9][0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
cat >"$root/DEBIAN/control" <<CONTROL
Package: lapwing
Version: $version
Architecture: $architecture
Maintainer: The Lapwing authors <lapwing@localhost>
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: libc6 (>= $glibc), libgcc-s1, systemd | adduser
Recommends: ca-certificates, containerd (>= 1.6) | containerd.io
Section: admin
Priority: optional
Description: peer-to-peer image distribution and lazy start for containerd
 A proxy snapshotter and registry mirror for containerd, behind which image
 layers travel between machines piece by piece, and are mounted before they
 have arrived. The package has the daemons of worker (lapwing-node), tracker
 and seed; none of them starts by itself when it is installed.
CONTROL
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
deb=$out/lapwing_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz -z"${LAPWING_PACKAGE_LEVEL:-6}" --build "$root" "$deb" >&2
echo "$deb"
