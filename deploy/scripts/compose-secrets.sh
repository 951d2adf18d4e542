#!/usr/bin/env bash
# Makes the secret by which the registry's notifications are known to the janitor, for
# docker-compose.yml: deploy/compose/secrets and deploy/compose/registry.env, which git ignores.
# What is there stays.
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p -m 700 deploy/compose/secrets # nobody else gets to the file; the container's user reads it
if [ ! -e deploy/compose/registry.env ]; then
	(umask 077 && deploy/scripts/notifications-env.sh deploy/compose/secrets/notifications http://janitor:9463/registry-events >deploy/compose/registry.env)
	chmod 444 deploy/compose/secrets/notifications
fi
