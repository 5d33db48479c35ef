#!/bin/sh
# Boots this machine's own systemd as process 1 of new namespaces, on an overlay of this machine's files: a machine to install packages on.
#
#   unshare --pid --mount --uts --ipc --net --cgroup --fork --kill-child tests/packages/boot.sh DIRECTORY SHOWN...
#
# DIRECTORY is new, and on a disk. SHOWN are directories, perhaps of other filesystems, that are seen there at the same paths. Nothing of the machine outside is changed. Enter: nsenter -t PID -m -u -i -n -p -C -r -w
set -eu

work=$1
shift
mkdir -p "$work/upper" "$work/work" "$work/root" "$work/containerd"
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs dev
for device in null zero full random urandom tty fuse; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mkdir dev/pts dev/shm
mount -t devpts devpts dev/pts
for memory in dev/shm run tmp; do mount -t tmpfs tmpfs "$memory"; done
mount -t cgroup2 cgroup2 sys/fs/cgroup
# Overlays and file-backed mounts cannot stand on an overlay.
mkdir -p var/lib/containerd
mount --bind "$work/containerd" var/lib/containerd
for shown in "$@"; do
    mkdir -p "$work/root$shown"
    mount --bind "$shown" "$work/root$shown"
done
# Only what the test starts.
rm -rf etc/systemd/system/*.wants usr/sbin/policy-rc.d etc/containerd etc/lapwing
echo lapwing-test >etc/hostname
ip link set lo up
mkdir -p old
pivot_root . old
cd /
umount -l old
rmdir old
mount --make-rshared /
exec env -i container=lapwing-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal --show-status=0 --unit=multi-user.target
