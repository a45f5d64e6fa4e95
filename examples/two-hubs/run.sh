#!/usr/bin/env bash
# Two hubs, each the owner of one feed and a mirror of the other's, and a spoke of both; then one hub dies
# and the other takes its feed over. Everything lies in `run/` beside this script, which a new start
# removes.
set -euo pipefail
cd "$(dirname "$0")"
depsync="${DEPSYNC:-depsync}"
hub_a=http://127.0.0.1:7873
hub_b=http://127.0.0.1:7874

rm -rf run
declare -A pids
trap 'kill "${pids[@]}" 2>/dev/null; wait' EXIT

start() {
    "$depsync" run --config "$1.toml" 2>>"run/$1/log" &
    pids[$1]=$!
}

for node in hub-a hub-b spoke; do
    mkdir -p "run/$node/apps" "run/$node/conf"
    "$depsync" check --config "$node.toml"
    start "$node"
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

echo "one" >run/hub-a/apps/shop.txt
echo "port = 1" >run/hub-b/conf/shop.conf
wait_for "hub A's feed at hub B" cmp run/hub-a/apps/shop.txt run/hub-b/apps/shop.txt
wait_for "hub B's feed at hub A" cmp run/hub-b/conf/shop.conf run/hub-a/conf/shop.conf
wait_for "hub A's feed at the spoke" cmp run/hub-a/apps/shop.txt run/spoke/apps/shop.txt
wait_for "hub B's feed at the spoke" cmp run/hub-b/conf/shop.conf run/spoke/conf/shop.conf

# Hub A dies. Hub B takes its feed over; the spoke follows, since the epoch is higher.
kill -9 "${pids[hub-a]}"
wait "${pids[hub-a]}" || true
"$depsync" promote --feed apps --url "$hub_b" --state run/hub-b/state
echo "two" >run/hub-b/apps/shop.txt
wait_for "what hub B published at the spoke" cmp run/hub-b/apps/shop.txt run/spoke/apps/shop.txt

# Hub A comes back, and mirrors what it owned.
start hub-a
wait_for "hub A back" "$depsync" status --url "$hub_a"
"$depsync" demote --feed apps --upstream "$hub_b" --url "$hub_a" --state run/hub-a/state
wait_for "what hub B published at hub A" cmp run/hub-b/apps/shop.txt run/hub-a/apps/shop.txt

"$depsync" status --url "$hub_b"
"$depsync" nodes --url "$hub_b"
