#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Robots and two bridges at a cluster of three MQTT brokers, RMQTT, of which one is killed while
# they stream; exits 1 when a command is lost or a bridge is wrong about a robot.
#   tests/cluster.sh
# The broker: $RMQTTD, else one that cargo builds into target/rmqttd. That takes a quarter of an
# hour on two cores, rustc 1.94 and 5 GB, once.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
version=0.24.0
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough
cd "$root"
if [ -z "${RMQTTD:-}" ]; then
    cache=$(realpath -m "${CARGO_TARGET_DIR:-target}")/rmqttd
    RMQTTD=$cache/bin/rmqttd
    if ! "$RMQTTD" --version 2>/dev/null | grep -q "/$version"; then
        "$root/scripts/install-deps.sh" cluster
        CARGO_TARGET_DIR=$cache/build nice cargo install rmqttd --version "$version" --locked --root "$cache"
        rm -rf "$cache/build"
    fi
fi
export RMQTTD
cargo build --locked -q -p gst-plugin-droidrelay -p droidrelay-bridge
exec cargo test --locked -q -p droidrelay-tests --test end-to-end scaling::cluster -- --nocapture
