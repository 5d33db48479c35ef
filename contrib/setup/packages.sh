#!/bin/sh
# Installs what the whole-system tests and the demo use of the distribution's packages: only what is missing, without questions.
# Needs root and apt (Debian, Ubuntu); elsewhere it names what to install. Further packages can be named.
set -eu

packages="
runc containerd docker.io containernetworking-plugins docker-registry skopeo umoci
redis-server mariadb-server
mmdebstrap python3 python3-pip busybox-static
fuse3 erofs-utils attr libcap2-bin openssl
iproute2 iptables util-linux procps
pigz gzip zstd tar xz-utils jq bc curl ca-certificates
gcc libc6-dev make pkg-config git shellcheck
rpm systemd dbus man-db
chromium fonts-dejavu-core
$*
"

if ! command -v cargo >/dev/null 2>&1; then
    echo "packages.sh: no 'cargo' on the PATH: install Rust 1.95 or newer first (the distribution's is too old)" >&2
    exit 1
fi

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086 # on one line
    echo "packages.sh: this is no Debian; install the counterparts of these packages yourself:" $packages >&2
    exit 0
fi

missing=""
for package in $packages; do
    # shellcheck disable=SC2016 # ${Status} is dpkg's, not the shell's
    if [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" != "install ok installed" ]; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "packages.sh: run this as root, or install these packages:$missing" >&2
    exit 1
fi

echo "packages.sh: installing$missing" >&2
# Nothing that is installed may start by itself: containerd and the registry are started by the tests, with their own files.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $missing >&2
