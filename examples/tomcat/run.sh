#!/usr/bin/env bash
# Hot deployment: a .war that is copied in at the primary answers from the region's Tomcat; then an
# upgrade, then a rollback. Everything lies in `run/` beside this script, which a new start removes.
set -euo pipefail
cd "$(dirname "$0")"
depsync="${DEPSYNC:-depsync}"
tomcat="${CATALINA_HOME:-/usr/share/tomcat10}"
hub=http://127.0.0.1:7873
shop=http://127.0.0.1:8080/shop/

rm -rf run
mkdir -p run/hub/webapps run/eu/tomcat/{conf,logs,temp,webapps,work}
cp server.xml web.xml run/eu/tomcat/conf/

"$depsync" check --config hub.toml
"$depsync" check --config eu.toml

# war VERSION: a web application that says its version, as its build would leave it.
war() {
    mkdir -p run/build
    echo "<h1>Shop, version $1</h1>" >run/build/index.html
    (cd run/build && rm -f shop.war && python3 -m zipfile -c shop.war index.html)
}

"$depsync" run --config hub.toml 2>run/hub/log &
pids=($!)
"$depsync" run --config eu.toml 2>run/eu/log &
pids+=($!)
java -cp "$tomcat/bin/bootstrap.jar:$tomcat/bin/tomcat-juli.jar" -Dcatalina.home="$tomcat" \
    -Dcatalina.base="$PWD/run/eu/tomcat" -Djava.io.tmpdir="$PWD/run/eu/tomcat/temp" \
    org.apache.catalina.startup.Bootstrap start >run/eu/tomcat/logs/out 2>&1 &
pids+=($!)
trap 'kill "${pids[@]}" 2>/dev/null; wait' EXIT

# wait_for WHAT COMMAND...: until the command succeeds, 60 s at most.
wait_for() {
    local what="$1" deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "not seen: $what; the logs are run/*/log and run/eu/tomcat/logs/out" >&2
            exit 1
        fi
        sleep 0.1
    done
    echo "seen: $what"
}

# says VERSION: whether the region's Tomcat answers with it.
says() {
    curl -fsS --max-time 5 "$shop" | grep -q "version $1<"
}

newest() {
    "$depsync" log --feed apps -n 1 --url "$hub" | cut -d' ' -f1
}

war 1
cp run/build/shop.war run/hub/webapps/
wait_for "version 1 from the region's Tomcat" says 1
first=$(newest)

# An upgrade: the new file takes the place of the old one, whole, and Tomcat deploys it again.
war 2
cp run/build/shop.war run/hub/webapps/
wait_for "version 2 from the region's Tomcat" says 2

# A rollback brings the older state back as a new commit, at the primary and in every region. The feed is
# frozen then: what lies newer in the folder waits until `release`.
"$depsync" rollback "$first" --feed apps --url "$hub" --state run/hub/state
wait_for "version 1 again from the region's Tomcat" says 1
"$depsync" release --feed apps --url "$hub" --state run/hub/state

# Taken out of service at the primary: gone from the region.
rm run/hub/webapps/shop.war
gone() {
    [ "$(curl -s -o run/answer -w '%{http_code}' --max-time 5 "$shop")" = 404 ]
}
wait_for "the application out of service" gone

"$depsync" status --url "$hub"
"$depsync" log --feed apps --url "$hub"
