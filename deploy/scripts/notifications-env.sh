#!/usr/bin/env bash
# Prints what the registry's environment needs so that it tells the janitor what is pushed and
# pulled. The secret is in a file, which is made when it is not there.
#
#   notifications-env.sh /etc/kiln/notifications.secret >>/etc/kiln/registry.env
#   notifications-env.sh FILE https://janitor.example.org:9463/registry-events
set -euo pipefail

[ $# -ge 1 ] && [ $# -le 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
file=$1 url=${2:-http://127.0.0.1:9463/registry-events}
if [ ! -s "$file" ]; then
	umask 027
	od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$file.new"
	mv "$file.new" "$file"
fi
printf 'REGISTRY_NOTIFICATIONS_ENDPOINTS=[{name: kiln-janitor, url: "%s", headers: {Authorization: ["Bearer %s"]}, timeout: 5s, threshold: 5, backoff: 1s}]\n' \
	"$url" "$(cat "$file")"
