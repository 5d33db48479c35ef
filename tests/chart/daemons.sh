#!/bin/bash
# Runs tracker, seed and node by the configurations in rendered manifests, with the rights that the pods have and with certificates as cert-manager
# makes them, in a network namespace of its own. Ends with "all are members", or says what failed.
#
#   unshare --net daemons.sh MANIFESTS PROGRAM DIRECTORY      DIRECTORY: empty, to be entered by all
set -euo pipefail

manifests=$1 program=$2 work=$3
ip link set lo up
mkdir "$work/identity"
cp "$program" "$work/lapwing"
chmod 755 "$work/lapwing"

(
    cd "$work/identity"
    key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
    key ca.key
    key tls.key
    openssl req -x509 -new -key ca.key -subj /CN=ca -days 2 -out ca.crt -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
    openssl req -new -key tls.key -subj /CN=lapwing -out request
    printf 'subjectAltName=URI:spiffe://prod.example/lapwing\nextendedKeyUsage=clientAuth,serverAuth\nkeyUsage=digitalSignature\n' >extensions
    openssl x509 -req -in request -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -extfile extensions -out tls.crt 2>/dev/null
    # As a mounted secret with fsGroup is.
    chown 0:65532 ./*
    chmod 440 ./*
)

for role in tracker seed node; do
    awk -v name="  name: lapwing-$role" '/^---/ { inside = 0; if (body) exit } /^kind: ConfigMap/ { inside = 1 } inside && $0 == name { mine = 1 }
        inside && mine && /lapwing.toml: \|/ { body = 1; next } body { sub(/^    /, ""); print }' "$manifests" >"$work/$role.toml"
    # One machine, and no cluster's names.
    sed -i "s|\"/var/lib/lapwing|\"$work/root-$role|; s|^addresses = .*|addresses = [\"127.0.0.1:7070\"]|; s|/etc/lapwing/identity|$work/identity|" "$work/$role.toml"
    mkdir "$work/root-$role"
done
sed -i 's/0.0.0.0:7082/127.0.0.1:7086/' "$work/tracker.toml"
sed -i 's/0.0.0.0:7082/127.0.0.1:7087/; s/0.0.0.0:7081/0.0.0.0:7085/' "$work/seed.toml"
# As the root of a volume with fsGroup is.
chgrp 65532 "$work/root-tracker" "$work/root-seed"
chmod 2775 "$work/root-tracker" "$work/root-seed"

none=(--bounding-set=-all --inh-caps=-all --no-new-privs)
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for role in tracker seed; do
    setpriv --reuid 65532 --regid 65532 --clear-groups "${none[@]}" "$work/lapwing" $role --config "$work/$role.toml" >"$work/$role.log" 2>&1 &
done
setpriv "${none[@]}" "$work/lapwing" node --config "$work/node.toml" >"$work/node.log" 2>&1 &

for ((try = 0; try < 300; try++)); do
    ready=$(for port in 7082 7086 7087; do curl -s "127.0.0.1:$port/readyz" || true; done | grep -c ready || true)
    live=$("$work/lapwing" nodes --admin 127.0.0.1:7086 2>/dev/null | grep -c ' live ' || true)
    if [ "$ready" = 3 ] && [ "$live" = 2 ]; then
        for pid in $(jobs -p); do
            grep -q '^CapEff:.0*$' "/proc/$pid/status" || { echo "$pid has capabilities"; exit 1; }
        done
        echo "all are members"
        exit
    fi
    sleep 0.2
done
echo "$ready of 3 are ready, $live of 2 are known to the tracker"
tail -n 20 "$work"/*.log
exit 1
