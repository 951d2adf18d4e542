#!/usr/bin/env bash
# Fails when the contracts break callers of an earlier revision:
# $BREAKING_AGAINST if set, else where this branch left origin/main, else (on
# main itself) the commit before. Nothing to compare with is not an error.
set -euo pipefail
cd "$(dirname "$0")/../.."

base=${BREAKING_AGAINST:-}
if [ -z "$base" ] && git rev-parse -q --verify HEAD >/dev/null; then
	head=$(git rev-parse HEAD)
	base=$(git merge-base HEAD origin/main 2>/dev/null || true)
	if [ -z "$base" ] || [ "$base" = "$head" ]; then
		base=$(git rev-parse -q --verify HEAD^ || true)
	fi
fi
if [ -z "$base" ] || ! git cat-file -e "$base:buf.yaml" 2>/dev/null; then
	echo "buf breaking: no earlier contracts to compare with"
	exit 0
fi

# An export, not buf's own git input: it also works in a worktree, and with the
# inputs of this revision's buf.yaml.
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
git archive "$base" buf.yaml proto | tar -x -C "$old"
buf breaking --against "$old"
