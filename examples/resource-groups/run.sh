#!/usr/bin/env bash
# Regions by resource group: who asks the primary is sent to the region of its group. Everything lies in
# `run/` beside this script, which a new start removes.
set -euo pipefail
cd "$(dirname "$0")"
depsync="${DEPSYNC:-depsync}"
hub=http://127.0.0.1:7873
eu=http://127.0.0.1:7874
us=http://127.0.0.1:7875

rm -rf run
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait' EXIT
for node in hub eu us; do
    mkdir -p "run/$node/apps"
    "$depsync" check --config "$node.toml"
    "$depsync" run --config "$node.toml" 2>"run/$node/log" &
    pids+=($!)
done

# wait_for WHAT COMMAND...: until the command succeeds, 30 s at most.
wait_for() {
    local what="$1" deadline=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "not seen: $what; the logs are run/*/log" >&2
            exit 1
        fi
        sleep 0.05
    done
    echo "seen: $what"
}

# sent GROUP URL: whether the primary sends who names this group there.
sent() {
    [[ "$(curl -s -o run/answer -w '%{redirect_url}' -H "X-Resource-Group: $1" \
        "$hub/v1/feeds/apps/files/package.txt")" == "$2/"* ]]
}

# served GROUP: whether the primary itself answers who names this group.
served() {
    [ "$(curl -s -o run/answer -w '%{http_code}' -H "X-Resource-Group: $1" \
        "$hub/v1/feeds/apps/files/package.txt")" = 200 ]
}

echo "a package" >run/hub/apps/package.txt
wait_for "the file in both regions" cmp run/eu/apps/package.txt run/us/apps/package.txt
wait_for "ComputeEU sent to eu" sent ComputeEU "$eu"
wait_for "ManagementEU sent to eu" sent ManagementEU "$eu"
wait_for "ComputeUS sent to us" sent ComputeUS "$us"
wait_for "an unknown group served by the primary" served ComputeAsia

# The same with the command, which follows the redirect; and who would serve, and why.
"$depsync" get apps/package.txt -o run/downloaded.txt --resource-group ComputeUS --url "$hub"
cmp run/hub/apps/package.txt run/downloaded.txt
"$depsync" locate apps/package.txt --resource-group ComputeUS --url "$hub"
"$depsync" regions --url "$hub"
