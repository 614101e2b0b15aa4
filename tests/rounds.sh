#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Starts and stops a robot's stream ROUNDS times, 1000 by default, at each server and at one that
# does not answer; exits 1 when its memory, threads or descriptors grow.
#   tests/rounds.sh [ROUNDS]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough
cd "$root"
cargo build --locked -q -p gst-plugin-droidrelay -p droidrelay-bridge
export DROIDRELAY_ROUNDS=${1:-1000}
exec cargo test --locked -q -p droidrelay-tests --test end-to-end rounds:: -- --nocapture
