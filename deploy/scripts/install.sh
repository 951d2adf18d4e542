#!/usr/bin/env bash
# Installs Kiln, BuildKit and the registry, as built in bin/, or removes them again: what
# `make install` and `make uninstall` run.
#
#   DESTDIR=/tmp/package PREFIX=/usr deploy/scripts/install.sh install
#
# Nothing is started. Files of /etc that are there already are left alone, and so is all state.
set -euo pipefail
cd "$(dirname "$0")/../.."

dest=${DESTDIR-} prefix=${PREFIX:-/usr/local}
commands=(kiln kiln-builder kiln-cachemanager kiln-janitor buildkitd buildctl registry)
lib=$dest$prefix/lib
if [ "$prefix" = /usr/local ]; then # where all versions of systemd look for these two
	shared=$dest/etc
else
	shared=$lib
fi

units() { (cd deploy/systemd && ls -- *.service *.timer); }

install_all() {
	local name
	install -d "$dest$prefix/bin" "$lib/systemd/system" "$shared/sysusers.d" "$shared/tmpfiles.d" "$dest/etc/kiln" "$dest/etc/buildkit"
	for name in "${commands[@]}"; do
		[ -x "bin/$name" ] || { echo "bin/$name is not there: run 'make tools build'" >&2; exit 1; }
		install -m 755 "bin/$name" "$dest$prefix/bin/$name.new"
		mv "$dest$prefix/bin/$name.new" "$dest$prefix/bin/$name" # also while it runs
	done
	install -m 755 deploy/scripts/buildkit-wrapper-cached.sh "$dest$prefix/bin/"
	for name in $(units); do
		sed "s|/usr/local/bin/|$prefix/bin/|" "deploy/systemd/$name" | put "$lib/systemd/system/$name" 644
	done
	put "$shared/sysusers.d/kiln.conf" 644 <deploy/systemd/kiln.sysusers
	put "$shared/tmpfiles.d/kiln.conf" 644 <deploy/systemd/kiln.tmpfiles
	for name in builder cachemanager janitor; do
		keep "$dest/etc/kiln/$name.yaml" 644 <"deploy/config/$name.yaml"
	done
	keep "$dest/etc/kiln/registry.yml" 644 <deploy/registry/config.yml
	sed "s|\"/usr/lib/cni\"|\"$(cni_plugins)\"|" deploy/buildkit/buildkitd.toml | keep "$dest/etc/buildkit/buildkitd.toml" 644
	keep "$dest/etc/buildkit/cni.conflist" 644 <deploy/buildkit/cni.conflist
	[ -n "$dest" ] || on_this_host
	echo "installed in $dest$prefix/bin, $lib/systemd/system and $dest/etc/kiln"
	[ -n "$dest" ] || echo "start it with: systemctl enable --now buildkit kiln-registry kiln-builder kiln-cachemanager kiln-janitor"
}

# cni_plugins says where this host has the CNI plugins, else where Debian has them.
cni_plugins() {
	local dir
	for dir in /usr/lib/cni /usr/libexec/cni /opt/cni/bin; do
		if [ -x "$dir/bridge" ]; then
			echo "$dir"
			return
		fi
	done
	echo /usr/lib/cni
}

# put FILE MODE: writes standard input there, whole or not at all.
put() {
	cat >"$1.new"
	chmod "$2" "$1.new"
	mv "$1.new" "$1"
}

# keep is put, unless the file is there.
keep() {
	if [ -e "$1" ]; then
		echo "left as it is: $1"
		cat >/dev/null
	else
		put "$1" "$2"
	fi
}

# on_this_host makes users, directories and the secret of the registry's notifications. A
# package does the first two by its own means.
on_this_host() {
	command -v systemd-sysusers >/dev/null || { echo "no systemd here: make the users of deploy/systemd/kiln.sysusers and the directories of kiln.tmpfiles yourself"; return; }
	systemd-sysusers "$shared/sysusers.d/kiln.conf"
	systemd-tmpfiles --create "$shared/tmpfiles.d/kiln.conf"
	if [ ! -e /etc/kiln/registry.env ]; then
		deploy/scripts/notifications-env.sh /etc/kiln/notifications.secret | put /etc/kiln/registry.env 600
		chown kiln-registry /etc/kiln/notifications.secret
		chmod 400 /etc/kiln/notifications.secret
	fi
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
}

uninstall_all() {
	local name
	if [ -z "$dest" ] && [ -d /run/systemd/system ]; then
		# shellcheck disable=SC2046 # names of units have no spaces
		systemctl disable --now $(units) || true
	fi
	for name in "${commands[@]}" buildkit-wrapper-cached.sh; do rm -f "$dest$prefix/bin/$name"; done
	for name in $(units); do rm -f "$lib/systemd/system/$name"; done
	rm -f "$shared/sysusers.d/kiln.conf" "$shared/tmpfiles.d/kiln.conf"
	if [ -z "$dest" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	echo "removed; configuration ($dest/etc/kiln, $dest/etc/buildkit), state ($dest/var/lib/kiln, /var/lib/buildkit, /var/lib/registry) and users stay"
}

case "${1-}" in
install) install_all ;;
uninstall) uninstall_all ;;
*)
	sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
