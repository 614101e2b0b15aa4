#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Takes the README's pictures of the page anew, into docs/: real servers, a robot that plays a
# clip, a real browser. Needs MediaMTX in PATH or in $MEDIAMTX.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/install-deps.sh tests
clip=$(scripts/clip.sh)
cargo build --locked -p gst-plugin-droidrelay -p droidrelay-bridge -p droidrelay -p droidrelay-lab
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${CARGO_TARGET_DIR:-target}/debug/lab" pictures "$folder" "$clip"
# Small enough for a repository: 256 colours, at the size at which they are shown.
for picture in "$folder"/page-*.png; do
    width=880
    [[ $picture != *phone* ]] || width=390
    ffmpeg -v error -y -i "$picture" -filter_complex \
        "scale=$width:-1:flags=area,split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=dither=none" \
        -update 1 "docs/images/$(basename "$picture")"
done
