#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Installs servers that the tests try beside nginx-rtmp, MediaMTX and Mosquitto: node-media-server
# from npm, lal and pebble (ACME) as Go modules. What is not there of npm and Go is said, and left
# out.
#   export $(scripts/install-servers.sh FOLDER)     it prints the variables that the tests want
#   scripts/install-servers.sh FOLDER mediamtx
# MediaMTX alone, the one that the server's image has: taken out of the image that mediamtx/Dockerfile
# names, or $MEDIAMTX_IMAGE; as root.
set -euo pipefail
folder=$(realpath -m "${1:?usage: $0 FOLDER [mediamtx]}")
if [ "${2:-}" = mediamtx ]; then
    root=$(cd "$(dirname "$0")/.." && pwd)
    "$root/scripts/install-deps.sh" release
    export STORAGE_DRIVER=vfs
    container=$(buildah from "${MEDIAMTX_IMAGE:-$(sed -n 's/^ARG MEDIAMTX=//p' "$root/mediamtx/Dockerfile")}")
    trap 'buildah rm "$container" >/dev/null' EXIT
    install -m 755 "$(buildah mount "$container")/mediamtx" "$folder/mediamtx"
    "$folder/mediamtx" --version
    exit
fi
mkdir -p "$folder/lal"
if command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$folder" node-media-server@4.4.3 >&2
    echo "NODE_MEDIA_SERVER=$folder"
else
    echo "$0: no npm: node-media-server is left out (apt-get install npm)" >&2
fi
if command -v go >/dev/null; then
    cat >"$folder/lal/go.mod" <<'MODULE'
module servers

go 1.18

require github.com/q191201771/lal v0.37.4
MODULE
    (cd "$folder/lal" && go build -mod=mod -o "$folder/lalserver" github.com/q191201771/lal/app/lalserver) >&2
    echo "LALSERVER=$folder/lalserver"
    GOBIN=$folder go install github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.3 >&2
    echo "PEBBLE=$folder/pebble"
else
    echo "$0: no Go: lal and pebble are left out (apt-get install golang-go)" >&2
fi
