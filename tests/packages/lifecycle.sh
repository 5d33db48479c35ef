#!/bin/bash
# The life of the Debian package on a machine that boot.sh booted: installed, used, upgraded under a live lazy mount, refused to go while that
# is there, removed, purged. Ends with "lifecycle complete", or with the step that failed.
#
#   lifecycle.sh FIRST.deb SECOND.deb TOOLS IMAGE      TOOLS: directory of containerd 2.x and ctr; IMAGE: of one layer, as
# skopeo calls it
set -euo pipefail

first=$1 second=$2 tools=$3 image=$4
reference=127.0.0.1:5000/lab/noise:1
root=/var/lib/containerd/io.containerd.snapshotter.v1.lapwing
export PATH=$tools:$PATH
step() { echo "== $*"; }
fail() {
    echo "FAILED: $*"
    journalctl --no-pager -o cat -n 40 -u 'lapwing-*' -u containerd || true
    exit 1
}
until_true() { # WHAT COMMAND...
    local what=$1 n=0
    shift
    until "$@" >/dev/null 2>&1; do
        n=$((n + 1))
        [ "$n" -lt 300 ] || fail "$what did not come"
        sleep 0.2
    done
}
ready() { [ "$(curl -s "127.0.0.1:$1/readyz")" = ready ]; }
main_pid() { systemctl show -P MainPID "$1"; }
holder() { pgrep -x lapwing-holder; }

until_true "systemd" systemctl is-system-running --wait
step install
dpkg -i "$first" >/dev/null
for unit in node seed tracker; do
    ! systemctl --quiet is-active "lapwing-$unit" || fail "lapwing-$unit was started by the installation"
    systemd-analyze verify "lapwing-$unit.service" 2>&1 | grep -vE "Unknown key '(RestartSteps|RestartMaxDelaySec|FileDescriptorStorePreserve)'" && fail "lapwing-$unit.service"
done
lapwing config --check /etc/lapwing/lapwing.toml
lapwing config --check /etc/lapwing/tracker.toml
lapwing config --check /etc/lapwing/seed.toml
man -w lapwing-ca-token >/dev/null
getent passwd lapwing-tracker >/dev/null || fail "the tracker has no user"

step start
# The system's own congestion control: where cubic is not for everybody it takes a capability.
cat >>/etc/lapwing/lapwing.toml <<'TOML'
[peer]
congestion_control = ""
[tracker]
addresses = ["127.0.0.1:7070"]
[registries.hosts."127.0.0.1:5000"]
plain_http = true
TOML
systemctl enable --now --quiet lapwing-tracker lapwing-node lapwing-seed
for port in 7082 7086 7087; do until_true "the daemon at $port" ready "$port"; done
until_true "the seed at the tracker" sh -c 'lapwing nodes --admin 127.0.0.1:7086 | grep -q live'
for unit in node seed tracker; do
    grep -q '^CapEff:.0*$' "/proc/$(main_pid lapwing-$unit)/status" || fail "lapwing-$unit has capabilities"
    journalctl -u "lapwing-$unit" --no-pager -o cat >/tmp/confined
    grep -q 'confined to what its work needs' /tmp/confined || fail "lapwing-$unit is not confined: $(head -20 /tmp/confined)"
    ! grep -E 'could not be (used|filtered)' /tmp/confined || fail "lapwing-$unit is not confined as it should be"
done
pgrep -x lapwing-mounter >/dev/null || fail "nobody keeps what mounting needs"
for unit in seed tracker; do
    [ "$(stat -c %u "/proc/$(main_pid lapwing-$unit)")" != 0 ] || fail "lapwing-$unit runs as root"
done

step "pull, index, pull lazily"
cat >/tmp/registry.yml <<'YAML'
version: 0.1
storage: {filesystem: {rootdirectory: /tmp/registry}, delete: {enabled: true}}
http: {addr: "127.0.0.1:5000"}
YAML
systemd-run --quiet --unit registry docker-registry serve /tmp/registry.yml
until_true "the registry" curl -sf http://127.0.0.1:5000/v2/
skopeo copy --quiet --dest-tls-verify=false "$image" "docker://$reference"
# This machine's cgroups are not for CRI, and containers are not started here.
mkdir -p /etc/containerd
cat >/etc/containerd/config.toml <<'TOML'
version = 3
disabled_plugins = ["io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"]
TOML
cp /etc/containerd/config.toml /tmp/config.toml
lapwing setup containerd --containerd-version 2.3 >/dev/null
mkdir -p /etc/systemd/system/containerd.service.d
printf '[Service]\nExecStartPre=\nExecStart=\nExecStart=%s\n' "$tools/containerd" >/etc/systemd/system/containerd.service.d/newest.conf
systemctl daemon-reload
systemctl start containerd
until_true containerd ctr version
pull() { ctr image pull --snapshotter lapwing --hosts-dir /etc/containerd/certs.d "$reference" >/dev/null || fail "the pull"; }
pull
until_true "the index of the layer" sh -c 'journalctl -u lapwing-node | grep -q "built the index of a layer"'
ctr image rm --sync "$reference" >/dev/null
pull
claimed() { [ "$(curl -s 127.0.0.1:7082/metrics | sed -n 's/^lapwing_snapshot_layers_claimed_total //p')" -ge 1 ]; }
claimed || fail "the second pull is not lazy: $(lapwing ls)"

step "upgrade under a live mount"
mkdir -p /tmp/mounted
ctr image mount --snapshotter lapwing "$reference" /tmp/mounted >/dev/null
files=$(find /tmp/mounted -type f | sort)
[ -n "$files" ] || fail "nothing is mounted"
sum() { for file in $files; do dd if="$file" iflag=nocache bs=64k status=none || return 1; done | sha256sum; }
expected=$(sum)
(while [ ! -e /tmp/stop ]; do [ "$(sum)" = "$expected" ] && echo good || echo bad; done) >/tmp/reads &
reader=$!
before=$(main_pid lapwing-node) held=$(holder)
dpkg -i "$second" >/dev/null
until_true "the upgraded node" ready 7082
[ "$(main_pid lapwing-node)" != "$before" ] || fail "the upgrade did not restart the node"
[ "$(holder)" = "$held" ] || fail "the holder was not left alone"
systemctl kill --signal=KILL --kill-whom=main lapwing-node
until_true "the killed node" ready 7082
sleep 1
after=$(sum)
touch /tmp/stop
wait $reader
grep -q good /tmp/reads || fail "nothing was read meanwhile"
! grep -q bad /tmp/reads || fail "a read failed or differed while the node was upgraded"
[ "$after" = "$expected" ] || fail "the files differ after the upgrade"
grep -q '5000' /etc/lapwing/lapwing.toml || fail "the upgrade lost the configuration"

step "removal waits for those who use it"
! dpkg -r lapwing >/tmp/refused 2>&1 || fail "the package went from under a mount"
grep -q 'stand on Lapwing' /tmp/refused || fail "no word why: $(cat /tmp/refused)"
ready 7082 || fail "the refused removal stopped the node"
[ "$(sum)" = "$expected" ] || fail "the files differ after the refused removal"

step remove
ctr image unmount --snapshotter lapwing --rm /tmp/mounted >/dev/null
ctr image rm --sync "$reference" >/dev/null
until_true "the end of containerd's mount" sh -c '! grep -q mount-manager /proc/self/mountinfo'
lapwing setup containerd --undo >/dev/null
cmp /etc/containerd/config.toml /tmp/config.toml || fail "containerd's configuration is another after --undo"
systemctl stop containerd
dpkg -r lapwing >/dev/null || fail "the removal"
for gone in lapwing lapwing-holder; do ! pgrep -x "$gone" >/dev/null || fail "$gone still runs"; done
! grep -q "$root" /proc/self/mountinfo || fail "still mounted: $(grep "$root" /proc/self/mountinfo)"
[ -e /etc/lapwing/lapwing.toml ] || fail "the removal took the configuration"
[ -d "$root" ] || fail "the removal took the data"

step purge
mkdir -p /var/lib/lapwing-tracker/authority
dpkg -P lapwing >/dev/null
for gone in /etc/lapwing "$root" /var/lib/lapwing-seed /var/lib/private/lapwing-seed /usr/bin/lapwing /usr/share/doc/lapwing; do
    [ ! -e "$gone" ] || fail "$gone is left"
done
[ -d /var/lib/lapwing-tracker/authority ] || fail "the cluster's authority was taken"
! systemctl list-unit-files --no-pager | grep lapwing || fail "units are left"
echo "$(grep -c good /tmp/reads) rounds of reads, none failed"
echo "lifecycle complete"
