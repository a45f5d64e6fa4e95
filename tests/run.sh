#!/usr/bin/env bash
# Builds depsync, runs all its tests and the demo. Usage: tests/run.sh [--full]
#   --full   the long forms of the tests as well (hours of churn, gigabytes of files)
# Needs a Rust toolchain and a C compiler; other programs that the tests compare with are Debian
# packages, installed here when they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
"") ;;
--full) export DEPSYNC_FULL=1 ;;
*)
    sed -n '2,5s/^# //p' "$0"
    exit 2
    ;;
esac

step="start"
trap 'echo "tests/run.sh: FAILED in step: $step" >&2' ERR
begin() {
    step="$1"
    echo "== $step"
}

begin "toolchain"
if ! command -v cargo >/dev/null; then
    echo "cargo is missing; install Rust 1.90 or newer from https://rustup.rs" >&2
    false
fi
cargo --version

begin "programs that the tests compare with"
missing=()
# need PACKAGE WHY CHECK...: the package is installed when the check fails.
need() {
    local package="$1" why="$2"
    shift 2
    "$@" >/dev/null 2>&1 && return
    echo "missing: $package ($why)"
    missing+=("$package")
}
need gcc "compiles libgit2 and SQLite" command -v cc
need git "is the oracle for repositories" command -v git
need git-lfs "fetches large files as a stock client does" command -v git-lfs
need curl "downloads as a compute host does" command -v curl
need aria2 "downloads in parallel ranges during releases" command -v aria2c
need nginx-light "is what downloads are measured against" test -x /usr/sbin/nginx
need wrk "measures downloads" command -v wrk
need nats-server "announces heads in place of our own bus" command -v nats-server
need faketime "sets a node's clock a day off" command -v faketime
need strace "kills the daemon at a chosen system call" command -v strace
need util-linux "gives a daemon's rights away, and limits its watches" command -v setpriv
need mount "mounts file systems, in scenarios" command -v mount
need bindfs "is a file system without events, in a scenario" command -v bindfs
need dosfstools "makes a file system with coarse times, in a scenario" test -x /usr/sbin/mkfs.vfat
need e2fsprogs "makes a file system whose times are seconds, in a scenario" test -x /usr/sbin/mkfs.ext4
need btrfs-progs "makes a file system that a power cut is hard on, in a scenario" test -x /usr/sbin/mkfs.btrfs
need unzip "reads archives, in a sample hook" command -v unzip
need python3 "reads archives where unzip is missing, in a sample hook" command -v python3
need chromium "shows the console, in scenarios" command -v chromium
need chromium-driver "drives it" command -v chromedriver
need python3-yaml "reads our alert rules as Prometheus does" python3 -c "import yaml"
need openssh-client "verifies our signatures" command -v ssh-keygen
need openssl "signs, in a sample hook, and hashes the key of a certificate" command -v openssl
need systemd "verifies and judges the unit" command -v systemd-analyze
need procps "signals daemons" test -x /bin/kill
need tomcat10-examples "has real web applications to deploy" test -d /usr/share/tomcat10-examples
need tomcat10-common "is the server that an example deploys to" test -e /usr/share/tomcat10/bin/bootstrap.jar
need libtomcat10-java "has real archives to deploy" test -e /usr/share/java/tomcat10-catalina.jar
if [ "${#missing[@]}" -gt 0 ]; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

begin "build"
cargo build --release --locked

begin "tests"
cargo test --locked

begin "demo"
timeout 300 target/release/depsync demo --once

step="end"
echo "tests/run.sh: everything passed in $SECONDS s (unit tests, integration tests, demo${DEPSYNC_FULL:+, long forms})"
