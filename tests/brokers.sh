#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# A robot at Mosquitto and at other brokers: aedes (npm), mochi-mqtt (Go), HiveMQ CE, Artemis and Moquette (Maven).
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
for broker in hivemq artemis moquette; do
    if command -v mvn >/dev/null && command -v javac >/dev/null; then
        mkdir -p "$cache/$broker"
        cp "testkit/brokers/$broker"/* "$cache/$broker"
        mvn -B -q -f "$cache/$broker/pom.xml" dependency:copy-dependencies \
            -DoutputDirectory="$cache/$broker/lib" -DincludeScope=runtime
    else
        echo "LEFT OUT: $broker needs Maven and a JDK of version 17 or newer" >&2
    fi
done
[ "${1:-}" = --install ] && exit
cargo build --locked -q --workspace
exec cargo test --locked -q -p droidrelay-tests --test end-to-end brokers:: -- --nocapture --test-threads 1
