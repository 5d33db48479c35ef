#!/bin/sh
# Unpacks Debian's nginx into the cache, for `make bench-wire`. It is not installed: installing it would start a web server.
set -eu

cache="${LAPWING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lapwing}/nginx"
[ -x "$cache/usr/sbin/nginx" ] && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "nginx.sh: this is no Debian; put an nginx with TLS at $cache/usr/sbin/nginx yourself" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt's own user must be able to write there.
chmod 0755 "$work"
# Since Debian 12 the program is in the package nginx itself.
(cd "$work" && apt-get download nginx >/dev/null 2>&1) || (apt-get update -qq && cd "$work" && apt-get download nginx)
mkdir -p "$cache"
dpkg-deb -x "$work"/nginx_*.deb "$cache"
"$cache/usr/sbin/nginx" -v
