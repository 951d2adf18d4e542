#!/usr/bin/env bash
# The build wrapper of old, over kiln: the same commands with the same arguments.
#
#   buildkit-wrapper-cached.sh build          CONTEXT_DIR DOCKERFILE_DIR IMAGE[:TAG]
#   buildkit-wrapper-cached.sh build-registry CONTEXT_DIR DOCKERFILE_DIR IMAGE[:TAG]
#   buildkit-wrapper-cached.sh clean-cache
#   buildkit-wrapper-cached.sh debug
#   buildkit-wrapper-cached.sh workers
#
# build keeps its steps in a directory (KILN_CACHE_DIR, by default /var/cache/buildkit-cache when
# you can write there) and loads the image into the Docker Engine, if one answers.
# build-registry shares its steps through the registry (KILN_CACHE_REPOSITORY, by default
# localhost:5000/cache), and pushes an image whose name has a registry.
#
# All else that follows goes to kiln as it is: --build-arg, --platform, --secret, --push and the
# rest of `kiln build --help`. KILN_BUILDER says where the builder is.
set -euo pipefail

self=${0##*/}
usage() { sed -n '2,18s/^# \{0,1\}//p' "$0"; }
kiln=${KILN:-kiln}

need_kiln() {
	command -v "$kiln" >/dev/null || {
		echo "$self: kiln is not in PATH: run 'make install', or set KILN to its path" >&2
		exit 127
	}
}

# has FLAG ARGS...: is it among them?
has() {
	local flag=$1 arg
	shift
	for arg; do [[ $arg != "$flag" && $arg != "$flag"=* ]] || return 0; done
	return 1
}

build() {
	local flags=()
	local cache=${KILN_CACHE_DIR-/var/cache/buildkit-cache}
	if ! has --cache-dir "$@" && ! has --detach "$@" && [ -n "$cache" ]; then
		if [ -w "$cache" ]; then
			flags+=(--cache-dir "$cache")
		elif [ -e "$cache" ]; then
			echo "$self: $cache cannot be written by $(id -un), so the build goes on without it: run '$self debug'" >&2
		fi
	fi
	if ! has --push "$@" && ! has --load "$@" && ! has --detach "$@" && docker version >/dev/null 2>&1; then
		flags+=(--load)
	fi
	exec "$kiln" build "$@" "${flags[@]}"
}

build_registry() {
	local flags=() first
	# As Docker reads names: the part before the first slash is a registry if it looks like a host.
	first=${3-}
	if [[ $first == */* ]]; then first=${first%%/*}; else first=; fi
	if ! has --push "$@" && ! has --load "$@" && [[ $first == *.* || $first == *:* || $first == localhost ]]; then
		flags+=(--push)
	fi
	exec "$kiln" build-registry "$@" "${flags[@]}"
}

command=${1-help}
shift || true
case "$command" in
build | build-registry)
	need_kiln
	if has --help "$@" || has -h "$@"; then exec "$kiln" "$command" --help; fi
	if [ $# -lt 3 ]; then
		echo "$self: $command needs CONTEXT_DIR, DOCKERFILE_DIR and IMAGE[:TAG]; for example: $self $command . . web:dev" >&2
		exit 2
	fi
	if [ "$command" = build ]; then build "$@"; else build_registry "$@"; fi
	;;
clean-cache)
	need_kiln
	# As the old one: it does it.
	if [ $# -eq 0 ]; then set -- --force; fi
	exec "$kiln" clean-cache "$@"
	;;
debug | workers)
	need_kiln
	exec "$kiln" "$command" "$@"
	;;
help | -h | --help) usage ;;
*)
	echo "$self: there is no command \"$command\"" >&2
	usage >&2
	exit 2
	;;
esac
