#!/usr/bin/env bash
# Installs what BuildKit and the samples need from the distribution, when it is
# missing: runc (runs the steps of a build), the CNI plugins (connect the steps to a
# network of their own) and a static busybox (the base image of the demo and the tests). With "test" also what only the tests start: systemd, the Docker
# Engine and containerd, Prometheus, an emulator of arm64. Prints nothing when all is there.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

static_busybox() {
	local file
	for file in $(type -ap busybox.static busybox); do
		# ldd fails on a static binary; musl's says so of itself.
		if ! ldd "$file" >/dev/null 2>&1; then return 0; fi
	done
	return 1
}

packages=()
command -v runc >/dev/null || packages+=(runc)
if command -v apt-get >/dev/null; then
	busybox=busybox-static
	install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends)
	update=(apt-get update)
elif command -v dnf >/dev/null; then
	busybox=busybox
	install=(dnf install -y)
	update=(true)
elif command -v apk >/dev/null; then
	busybox=busybox-static
	install=(apk add)
	update=(apk update)
else
	busybox=busybox-static
	install=()
fi
cni_plugins() {
	local dir
	for dir in /usr/lib/cni /usr/libexec/cni /opt/cni/bin; do
		if [ -x "$dir/bridge" ] && [ -x "$dir/host-local" ] && [ -x "$dir/loopback" ]; then return 0; fi
	done
	return 1
}
plugins=containernetworking-plugins
if command -v apk >/dev/null; then plugins=cni-plugins; fi
cni_plugins || packages+=("$plugins")
static_busybox || packages+=("$busybox")
# need COMMAND PACKAGE, of Debian.
need() { command -v "$1" >/dev/null || packages+=("$2"); }
if [ "${1-}" = test ]; then
	need systemd-analyze systemd
	need ip iproute2
	need nft nftables
	need curl curl
	need dockerd docker.io
	need containerd containerd
	need promtool prometheus
	need qemu-aarch64-static qemu-user-static
fi
[ ${#packages[@]} -gt 0 ] || exit 0

refuse() {
	echo "missing: ${packages[*]}; install with your package manager${install:+, for example: sudo ${install[*]} ${packages[*]}}" >&2
	exit 1
}

sudo=()
[ ${#install[@]} -gt 0 ] || refuse
if [ "$(id -u)" != 0 ]; then
	sudo -n true 2>/dev/null || refuse
	sudo=(sudo -n)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing ${packages[*]}"
# The package lists are fetched only if what there is does not do.
if ! "${sudo[@]}" "${install[@]}" "${packages[@]}" >"$log" 2>&1; then
	if ! { "${sudo[@]}" "${update[@]}" && "${sudo[@]}" "${install[@]}" "${packages[@]}"; } >"$log" 2>&1; then
		tail -n 5 "$log" >&2
		refuse
	fi
fi
