#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Puts the MediaMTX that the tests run with, and the server's image has, into FOLDER.
#   scripts/mediamtx.sh FOLDER
# It is taken out of the image that mediamtx/Dockerfile names, or $MEDIAMTX_IMAGE; as root.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" release
export STORAGE_DRIVER=vfs
container=$(buildah from "${MEDIAMTX_IMAGE:-$(sed -n 's/^ARG MEDIAMTX=//p' "$root/mediamtx/Dockerfile")}")
trap 'buildah rm "$container" >/dev/null' EXIT
install -m 755 "$(buildah mount "$container")/mediamtx" "$1/mediamtx"
"$1/mediamtx" --version
