#!/bin/sh
# Lays out in DIRECTORY what a package installs: the same files for .deb, .rpm and the container image.
#
#   contrib/package/stage.sh BINARY DIRECTORY
set -eu

binary=$1
root=$2
tree=$(cd "$(dirname "$0")/../.." && pwd)
doc=$root/usr/share/doc/lapwing

install -D -m 755 "$binary" "$root/usr/bin/lapwing"

for unit in node seed tracker; do
    install -D -m 644 "$tree/contrib/systemd/lapwing-$unit.service" "$root/usr/lib/systemd/system/lapwing-$unit.service"
done
install -D -m 644 "$tree/contrib/systemd/lapwing.sysusers" "$root/usr/lib/sysusers.d/lapwing.conf"

# To be read by the users of seed and tracker; what is secret there is so by its own mode.
install -d -m 755 "$root/etc"
install -d -m 755 "$root/etc/lapwing"
for role in lapwing seed tracker; do
    install -m 644 "$tree/contrib/package/etc/$role.toml" "$root/etc/lapwing/$role.toml"
done

"$binary" generate man "$root/usr/share/man/man1"
gzip -9n "$root"/usr/share/man/man1/*.1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$binary" generate completions "$scratch"
install -D -m 644 "$scratch/lapwing.bash" "$root/usr/share/bash-completion/completions/lapwing"
install -D -m 644 "$scratch/_lapwing" "$root/usr/share/zsh/vendor-completions/_lapwing"
install -D -m 644 "$scratch/lapwing.fish" "$root/usr/share/fish/vendor_completions.d/lapwing.fish"

install -d "$doc"
cp -r "$tree/README.md" "$tree/ARCHITECTURE.md" "$tree/docs" "$doc/"
install -d "$doc/contrib"
for examples in lapwing.toml containerd crictl docker kubernetes monitoring nerdctl; do
    cp -r "$tree/contrib/$examples" "$doc/contrib/"
done
find "$doc" -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} +
