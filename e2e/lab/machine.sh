#!/bin/bash
# Boots systemd in namespaces of its own, on an overlay of this host's files.
#   machine.sh DIR REPOSITORY CGROUP
# The repository is in /mnt there. Nothing that is done there is seen outside, and all of it
# goes with the first process.
set -euo pipefail
dir=$1 repository=$2 cgroup=$3 root=$1/root
if [ "$$" != 1 ]; then
	# In cgroups of its own, the roots of those that systemd makes.
	for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
		[ -e $hierarchy/cgroup.procs ] || continue
		mkdir "$hierarchy/$cgroup"
		echo $$ >"$hierarchy/$cgroup/cgroup.procs"
	done
	exec unshare --mount --pid --fork --uts --ipc --net --cgroup --kill-child "$0" "$@"
fi
mount --make-rprivate /
mkdir -p "$dir/rw" "$root"
mount -t tmpfs tmpfs "$dir/rw"
mkdir "$dir/rw/upper" "$dir/rw/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/rw/upper,workdir=$dir/rw/work" "$root"
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount --bind "$repository" mnt
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=1777 tmpfs var/tmp
# As on a machine on which none of it was ever installed; and overlayfs does not stand on itself.
rm -rf var/cache/buildkit-cache etc/kiln etc/buildkit
for name in buildkit registry kiln; do
	mkdir -p "var/lib/$name"
	mount -t tmpfs -o mode=755 tmpfs "var/lib/$name"
done
ip link set lo up
units=etc/systemd/system
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >$units/lab.target
# What belongs to the host, or would start a second one of what it runs.
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-modules-load.service systemd-sysctl.service \
	systemd-remount-fs.service systemd-random-seed.service systemd-update-utmp.service systemd-timesyncd.service systemd-logind.service \
	proc-sys-fs-binfmt_misc.automount systemd-binfmt.service systemd-firstboot.service systemd-hwdb-update.service \
	dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
	sys-fs-fuse-connections.mount kmod-static-nodes.service docker.service docker.socket containerd.service; do
	ln -sf /dev/null "$units/$unit"
done
: >etc/fstab
od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >etc/machine-id
mkdir run/outside
pivot_root . run/outside
umount -l run/outside
exec /usr/bin/env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
