#!/bin/sh
# Shared by the maintainer scripts of .deb and .rpm, which have it at their beginning. POSIX shell.
set -e

units="lapwing-node.service lapwing-seed.service lapwing-tracker.service"

under_systemd() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1; }

node_root() {
    root=$(sed -n '/^ *\[/q; s/^ *root *= *"\(.*\)".*/\1/p' /etc/lapwing/lapwing.toml 2>/dev/null)
    echo "${root:-/var/lib/containerd/io.containerd.snapshotter.v1.lapwing}"
}

# Root filesystems of containers, and other mounts elsewhere, that stand on something below the node's root.
mounts_on_lapwing() { awk -v root="$(node_root)/" 'index($5, root) != 1 && index($0, root) { n++ } END { print n + 0 }' /proc/self/mountinfo; }

make_user() {
    if command -v systemd-sysusers >/dev/null 2>&1; then
        systemd-sysusers lapwing.conf
    elif command -v adduser >/dev/null 2>&1 && ! getent passwd lapwing-tracker >/dev/null; then
        adduser --system --group --home /var/lib/lapwing-tracker --no-create-home --quiet lapwing-tracker
    fi
}

# What runs goes on with the new program. Lazy mounts outlive the node's restart: their holder and systemd keep them meanwhile.
restart_what_runs() {
    under_systemd || return 0
    systemctl daemon-reload
    for unit in $units; do
        ! systemctl --quiet is-active "$unit" || systemctl restart "$unit" || echo "lapwing: $unit did not restart: systemctl status $unit" >&2
    done
}

# Before the program goes: nothing may be left that waits for it.
refuse_while_used() {
    used=$(mounts_on_lapwing)
    if [ "${used:-0}" != 0 ]; then
        echo "lapwing: $used mounts (containers?) stand on Lapwing's layers, and would wait forever for a node that is gone." >&2
        echo "lapwing: remove these containers first (crictl ps, nerdctl ps, ctr -n NAMESPACE containers ls), then the package." >&2
        return 1
    fi
}

stop_for_good() {
    if under_systemd; then
        for unit in $units; do
            systemctl --quiet --no-reload disable --now "$unit" 2>/dev/null || true
        done
    fi
    if [ -d "$(node_root)" ]; then
        lapwing detach --config /etc/lapwing/lapwing.toml >&2 || return 1
    fi
    if under_systemd; then
        systemctl clean --what=fdstore lapwing-node.service 2>/dev/null || true
    fi
    if [ -e /etc/containerd/config.toml.lapwing ] || [ -e /etc/docker/daemon.json.lapwing ]; then
        echo "lapwing: containerd or dockerd still names Lapwing: \`lapwing setup containerd --undo\` (docker) would have taken that back;" >&2
        echo "lapwing: the files as they were lie in /etc/containerd/config.toml.lapwing/ (/etc/docker/daemon.json.lapwing/)." >&2
    fi
}

# All that daemons kept at the places where packages put it, but for a cluster's authority: without it nobody could be let into the cluster again.
remove_state() {
    root=/var/lib/containerd/io.containerd.snapshotter.v1.lapwing
    if grep -qF " $root/" /proc/self/mountinfo; then
        echo "lapwing: something is still mounted below $root, which is left as it is" >&2
    else
        rm -rf "$root"
    fi
    rm -rf /var/lib/lapwing-seed /var/lib/private/lapwing-seed
    if [ -d /var/lib/lapwing-tracker ]; then
        rm -rf /var/lib/lapwing-tracker/tracker /var/lib/lapwing-tracker/node.key
        rmdir /var/lib/lapwing-tracker 2>/dev/null ||
            echo "lapwing: /var/lib/lapwing-tracker is left: it may hold the cluster's authority" >&2
    fi
}
