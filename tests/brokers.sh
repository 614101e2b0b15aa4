#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# A robot at Mosquitto and at other brokers: aedes (npm), mochi-mqtt (Go), HiveMQ CE, Artemis and Moquette (Maven).
#   tests/brokers.sh [--install]     --install: without running the tests
# They are kept in target/brokers, where the tests look for them. One whose language is missing is left out, and said.
#   tests/brokers.sh --cluster
# Robots and two bridges at a cluster of three brokers, RMQTT, of which one is killed while they
# stream; exits 1 when a command is lost or a bridge is wrong about a robot. The broker: $RMQTTD, else
# one that cargo builds into target/rmqttd. That takes a quarter of an hour on two cores, rustc 1.94
# and 5 GB, once.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

if [ "${1:-}" = --cluster ]; then
    version=0.24.0
    scripts/install-deps.sh tests
    . scripts/env.sh
    rust_is_new_enough
    if [ -z "${RMQTTD:-}" ]; then
        RMQTTD=$target/rmqttd/bin/rmqttd
        if ! "$RMQTTD" --version 2>/dev/null | grep -q "/$version"; then
            scripts/install-deps.sh cluster
            CARGO_TARGET_DIR=$target/rmqttd/build nice \
                cargo install rmqttd --version "$version" --locked --root "$target/rmqttd"
            rm -rf "$target/rmqttd/build"
        fi
    fi
    export RMQTTD
    cargo build --locked -q -p gst-plugin-droidrelay -p droidrelay-bridge
    exec cargo test --locked -q -p droidrelay-tests --test end-to-end scaling::cluster -- --nocapture
fi

cache=$target/brokers
mkdir -p "$cache/aedes" "$cache/mochi"
if command -v npm >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then
    cp testkit/brokers/aedes.mjs "$cache/aedes"
    npm install --no-audit --no-fund --silent --prefix "$cache/aedes" aedes@1.2.0
else
    echo "LEFT OUT: aedes needs npm and Node 20 or newer" >&2
fi
if command -v go >/dev/null; then
    cp testkit/brokers/mochi.go "$cache/mochi"
    cat >"$cache/mochi/go.mod" <<'MODULE'
module droidrelay/testbroker

go 1.21

require github.com/mochi-mqtt/server/v2 v2.7.9
MODULE
    (cd "$cache/mochi" && go mod tidy 2>/dev/null && go build -o mochi .)
else
    echo "LEFT OUT: mochi-mqtt needs Go 1.21 or newer" >&2
fi
if command -v mvn >/dev/null && command -v javac >/dev/null; then
    # from_maven BROKER GROUP:ARTIFACT:VERSION...
    from_maven() {
        local broker=$1 group artifact version
        mkdir -p "$cache/$broker"
        cp "testkit/brokers/$broker.java" "$cache/$broker"
        {
            echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
            echo "<groupId>droidrelay</groupId><artifactId>$broker</artifactId><version>1</version><dependencies>"
            for library in "${@:2}"; do
                IFS=: read -r group artifact version <<<"$library"
                echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
            done
            echo '</dependencies></project>'
        } >"$cache/$broker/pom.xml"
        mvn -B -q -f "$cache/$broker/pom.xml" dependency:copy-dependencies \
            -DoutputDirectory="$cache/$broker/lib" -DincludeScope=runtime
    }
    from_maven hivemq com.hivemq:hivemq-community-edition-embedded:2024.6
    from_maven artemis org.apache.activemq:artemis-server:2.42.0 org.apache.activemq:artemis-mqtt-protocol:2.42.0
    from_maven moquette io.moquette:moquette-broker:0.17
else
    echo "LEFT OUT: HiveMQ, Artemis and Moquette need Maven and a JDK of version 17 or newer" >&2
fi
[ "${1:-}" != --install ] || exit 0
cargo build --locked -q --workspace
exec cargo test --locked -q -p droidrelay-tests --test end-to-end brokers:: -- --nocapture --test-threads 1
