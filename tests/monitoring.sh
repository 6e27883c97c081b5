#!/usr/bin/env bash
# Checks the alert rules of deploy/monitoring/, and tests that each alert fires when it should and not otherwise. Needs
# promtool: the one in the path, ORLOP_PROMTOOL, or on Debian and Ubuntu the one of the package prometheus, which is
# fetched and unpacked in target/tools and not installed, because it would start a server.
set -euo pipefail

cd "$(dirname "$0")/.."
tools=${CARGO_TARGET_DIR:-target}/tools

# Prints where promtool is.
find_promtool() {
    local unpacked=$tools/usr/bin/promtool
    if [ -n "${ORLOP_PROMTOOL:-}" ]; then
        echo "$ORLOP_PROMTOOL"
    elif type -P promtool; then
        :
    elif [ -x "$unpacked" ]; then
        echo "$unpacked"
    else
        fetch >&2
        echo "$unpacked"
    fi
}

fetch() {
    if ! command -v apt-get >/dev/null; then
        echo "promtool is missing: install Prometheus, or name it with ORLOP_PROMTOOL"
        exit 1
    fi
    mkdir -p "$tools"
    local unfinished
    unfinished=$(mktemp -d "$tools/unfinished.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$unfinished'" EXIT
    # Root's downloads would otherwise be made by a user that may not write here, and say so.
    download() { (cd "$unfinished" && apt-get download -q -o APT::Sandbox::User=root prometheus); }
    download || { [ "$(id -u)" -eq 0 ] && apt-get update -q && download; } || {
        echo "promtool cannot be fetched: apt-get update && apt-get install prometheus, or name it with ORLOP_PROMTOOL"
        exit 1
    }
    dpkg-deb --fsys-tarfile "$unfinished"/prometheus_*.deb | tar -x -C "$unfinished" ./usr/bin/promtool
    mkdir -p "$tools/usr/bin"
    mv "$unfinished/usr/bin/promtool" "$tools/usr/bin/promtool"
}

promtool=$(find_promtool)
promtool=$(realpath "$promtool")
cd deploy/monitoring
"$promtool" check rules alerts.yaml
"$promtool" test rules alerts.test.yaml
