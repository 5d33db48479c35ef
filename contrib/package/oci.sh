#!/bin/sh
# Builds target/package/lapwing-VERSION-oci.tar, a container image in the OCI layout, of a release binary, and prints its path: the program, the
# libraries that it is linked to, certificates, and nothing that a shell could be started from. Needs no daemon, network or root.
#
#   contrib/package/oci.sh [BINARY]      default: target/release/lapwing
#
#   skopeo copy oci-archive:target/package/lapwing-VERSION-oci.tar docker://registry.example/lapwing:VERSION
#   ctr image import --base-name lapwing target/package/lapwing-VERSION-oci.tar
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../.." && pwd)
binary=$(realpath "${1:-$tree/target/release/lapwing}")
out=${LAPWING_PACKAGE_DIR:-$tree/target/package}
version=${LAPWING_VERSION:-$("$here/version.sh")}
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$tree" log -1 --format=%ct 2>/dev/null || date +%s)}
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
blobs=$work/image/blobs/sha256
mkdir -p "$blobs"

install -D -m 755 "$binary" "$root/usr/bin/lapwing"
# Each library to where the program's loader looks for it.
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$(realpath "$library")" "$root$library"
done
certificates=/etc/ssl/certs/ca-certificates.crt
if [ -r "$certificates" ]; then
    install -D -m 644 "$certificates" "$root$certificates"
else
    echo "oci.sh: no $certificates here: the image trusts no public registry; install ca-certificates" >&2
    exit 1
fi
install -d -m 755 "$root/etc/lapwing" "$root/var/lib" "$root/run"
install -d -m 1777 "$root/tmp"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
printf 'root:x:0:0::/:/sbin/nologin\nlapwing:x:65532:65532::/:/sbin/nologin\n' >"$root/etc/passwd"
printf 'root:x:0:\nlapwing:x:65532:\n' >"$root/etc/group"
chmod 755 "$root"
install -D -m 644 "$tree/LICENSE" "$root/usr/share/doc/lapwing/copyright"

# FILE -> puts it among the blobs and prints its descriptor's digest and size.
add() {
    digest=$(sha256sum "$1" | cut -c1-64)
    size=$(stat -c %s "$1")
    mv "$1" "$blobs/$digest"
    printf '"digest": "sha256:%s", "size": %s' "$digest" "$size"
}
pack() { tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --format=posix --pax-option=delete=atime,delete=ctime "$@"; }

pack -C "$root" -cf "$work/layer.tar" .
diff_id=$(sha256sum "$work/layer.tar" | cut -c1-64)
gzip -9n "$work/layer.tar"
layer=$(add "$work/layer.tar.gz")

labels="\"org.opencontainers.image.title\": \"lapwing\", \"org.opencontainers.image.version\": \"$version\", \"org.opencontainers.image.licenses\": \"Apache-2.0\""
cat >"$work/config.json" <<JSON
{
  "created": "$created", "architecture": "$architecture", "os": "linux",
  "config": {"Entrypoint": ["/usr/bin/lapwing"], "Cmd": ["--help"], "Env": ["PATH=/usr/bin"], "WorkingDir": "/", "Labels": {$labels}},
  "rootfs": {"type": "layers", "diff_ids": ["sha256:$diff_id"]},
  "history": [{"created": "$created", "created_by": "contrib/package/oci.sh"}]
}
JSON
config=$(add "$work/config.json")
cat >"$work/manifest.json" <<JSON
{
  "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {"mediaType": "application/vnd.oci.image.config.v1+json", $config},
  "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", $layer}],
  "annotations": {$labels}
}
JSON
manifest=$(add "$work/manifest.json")
cat >"$work/image/index.json" <<JSON
{
  "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
  "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", $manifest,
    "platform": {"architecture": "$architecture", "os": "linux"}, "annotations": {"org.opencontainers.image.ref.name": "$version"}}]
}
JSON
printf '{"imageLayoutVersion": "1.0.0"}' >"$work/image/oci-layout"
mkdir -p "$out"
image=$out/lapwing-$version-oci.tar
pack -C "$work/image" -cf "$image" oci-layout index.json blobs
echo "$image"
