#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Robots and bridges at other brokers than Mosquitto: aedes (npm; MQTT 3.1.1 only) and mochi-mqtt (Go; MQTT 5).
#   tests/brokers.sh [--install]     --install: without running the tests
# They are kept in target/brokers, where the tests look for them. One whose language is missing is left out, and said.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
cache=$(realpath -m "${CARGO_TARGET_DIR:-target}")/brokers
mkdir -p "$cache/aedes" "$cache/mochi"
if command -v npm >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then
    cp testkit/brokers/aedes/* "$cache/aedes"
    (cd "$cache/aedes" && npm install --no-audit --no-fund --no-package-lock --silent)
else
    echo "LEFT OUT: aedes needs npm and Node 20 or newer" >&2
fi
if command -v go >/dev/null; then
    (cd testkit/brokers/mochi && go build -o "$cache/mochi/mochi" .)
else
    echo "LEFT OUT: mochi-mqtt needs Go 1.21 or newer" >&2
fi
[ "${1:-}" = --install ] && exit
cargo build --locked -q -p gst-plugin-droidrelay -p droidrelay-bridge
exec cargo test --locked -q -p droidrelay-tests --test end-to-end brokers:: -- --nocapture
