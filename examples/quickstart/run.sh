#!/usr/bin/env bash
# A primary and a region on this machine, from files: starts both, deploys, downloads, stops.
# Everything lies in `run/` beside this script, which a new start removes.
set -euo pipefail
cd "$(dirname "$0")"
depsync="${DEPSYNC:-depsync}"
hub=http://127.0.0.1:7873

rm -rf run
mkdir -p run/hub/apps run/eu/apps

"$depsync" check --config hub.toml
"$depsync" check --config eu.toml

"$depsync" run --config hub.toml 2>run/hub/log &
primary=$!
"$depsync" run --config eu.toml 2>run/eu/log &
region=$!
trap 'kill "$primary" "$region" 2>/dev/null; wait' EXIT

# wait_for WHAT COMMAND...: until the command succeeds, 30 s at most.
wait_for() {
    local what="$1" deadline=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "not seen: $what; the logs are run/hub/log and run/eu/log" >&2
            exit 1
        fi
        sleep 0.05
    done
    echo "seen: $what"
}

echo "<h1>Hello</h1>" >run/hub/apps/index.html
wait_for "index.html in the region's directory" cmp run/hub/apps/index.html run/eu/apps/index.html

# Acting needs the token of this primary; by default that of the daemon in /var/lib/depsync is read.
"$depsync" put run.sh apps/scripts/run.sh --url "$hub" --state run/hub/state
wait_for "an upload in the region's directory" cmp run.sh run/eu/apps/scripts/run.sh

"$depsync" get apps/index.html -o run/downloaded.html --url "$hub"
cmp run/hub/apps/index.html run/downloaded.html

rm run/hub/apps/index.html
wait_for "index.html gone from the region's directory" test ! -e run/eu/apps/index.html

"$depsync" status --url "$hub"
"$depsync" log --feed apps --url "$hub"
