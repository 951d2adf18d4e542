#!/usr/bin/env bash
# Builds the images of Kiln's services with Kiln: what `make images` runs.
#
#   images.sh                                  # into the local Docker Engine
#   IMAGES=registry.example.org/kiln images.sh # pushes them there
#
#   IMAGES     repository below which they are (default: kiln); with a host in it they are pushed
#   VERSION    their tag (default: of git)
#   PLATFORMS  linux/amd64,linux/arm64 when they are pushed, else this host's
#   KILN_BUILDER  a builder to use; without one, a stack of its own is started and stopped
set -euo pipefail
cd "$(dirname "$0")/../.."

images=${IMAGES:-kiln} version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
services=(kiln-builder kiln-cachemanager kiln-janitor kiln)
host=${images%%/*}
if [[ $images == */* && ($host == *.* || $host == *:* || $host == localhost) ]]; then
	output=--push platforms=${PLATFORMS:-linux/amd64,linux/arm64}
else
	output=--load platforms=${PLATFORMS:-linux/$(go env GOARCH)}
	docker version >/dev/null 2>&1 || {
		echo "images.sh: no Docker Engine answers that could take the images: start one, or push them with IMAGES=registry.example.org/kiln" >&2
		exit 1
	}
fi

context=$(mktemp -d)
data=
cleanup() {
	[ -z "$data" ] || bin/kiln down --data-dir "$data" || true
	rm -rf "$context" "$data"
}
trap cleanup EXIT

# Static, so that there is nothing in the image to keep current but them.
IFS=, read -ra list <<<"$platforms"
for platform in "${list[@]}"; do
	arch=${platform#*/}
	echo "building for $platform"
	mkdir -p "$context/$arch"
	CGO_ENABLED=0 GOOS=linux GOARCH=${arch%%/*} go build -trimpath -ldflags "-s -w -X github.com/kilnbuild/kiln/pkg/service.version=$version" \
		-o "$context/$arch/" ./services/builder/cmd/... ./services/cachemanager/cmd/... ./services/janitor/cmd/... ./services/kiln/cmd/...
done
for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
	[ ! -r "$bundle" ] || { cp "$bundle" "$context/ca-certificates.crt"; break; }
done
[ -e "$context/ca-certificates.crt" ] || { echo "images.sh: no certificates of public authorities here: install ca-certificates" >&2; exit 1; }
echo 'kiln:x:65532:65532:Kiln:/nonexistent:/sbin/nologin' >"$context/passwd"
echo 'kiln:x:65532:' >"$context/group"
mkdir -p "$context/state"
# The same sources give the same images.
find "$context" -exec touch -h -d "@$(git log -1 --format=%ct 2>/dev/null || echo 0)" {} +

if [ -z "${KILN_BUILDER:-}" ]; then
	data=$(mktemp -d)
	base=${LISTEN_BASE:-27000}
	bin/kiln up --detach --listen-base "$base" --data-dir "$data" --allow-root "$context"
	export KILN_BUILDER=127.0.0.1:$base
fi
created=$(git log -1 --format=%cI 2>/dev/null || date -uIseconds)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
for service in "${services[@]}"; do
	bin/kiln build "$context" deploy/images "$images/$service:$version" "$output" --target "$service" --platform "$platforms" --project images --progress plain \
		--label "org.opencontainers.image.title=$service" --label "org.opencontainers.image.version=$version" \
		--label "org.opencontainers.image.revision=$revision" --label "org.opencontainers.image.created=$created" \
		--label org.opencontainers.image.source=https://github.com/kilnbuild/kiln --label org.opencontainers.image.licenses=Apache-2.0 2>"$context/log" ||
		{ cat "$context/log" >&2; exit 1; }
	echo "$images/$service:$version"
done
