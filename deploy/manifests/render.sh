#!/usr/bin/env bash
# Renders the chart into plain manifests for `kubectl apply`; `make manifests` runs this, a test compares.
#
#   deploy/manifests/render.sh [DIRECTORY]     deploy/manifests if it is not given
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
to=$(realpath -m "${1:-$here}")
chart=$here/../helm/orlop

# render NAME FLAG…
render() {
    local name=$1
    shift
    {
        echo "# Rendered from deploy/helm/orlop by \`make manifests\`: change it there, or the pools in the ConfigMap here."
        # Comments of the templates stay; which template something is from, and blank lines, do not.
        go -C "$here/../tools" tool helm template orlop "$chart" --namespace orlop-system --set createNamespace=true "$@" |
            sed -E '/^# Source: /d; /^ *$/d'
    } >"$to/$name.yaml"
}

retain='volumeAttributesClasses[0].name=orlop-retain,volumeAttributesClasses[0].parameters.onDelete=retain'
mkdir -p "$to"
render single-node --set shape=single-node --set "$retain"
render single-node-with-snapshots --set shape=single-node --set "$retain" \
    --set snapshots.enabled=true --set snapshots.groups=true
render many-nodes
render many-nodes-with-snapshots --set snapshots.enabled=true
