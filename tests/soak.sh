#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# Long runs; exits 1 where one of them fails. With the defaults some five hours.
#   tests/soak.sh [MINUTES [ROUNDS [SEED]]]     60 10000; a seed from the clock
#   tests/soak.sh --rounds [ROUNDS]             the third part alone; 1000
# 1. A robot streams for MINUTES, by gst-launch-1.0 and then by the launcher, while faults of all
#    kinds are thrown in at random: it comes back each time, and its memory, threads and
#    descriptors stay what they are.
# 2. The same for a tenth of the time with GStreamer's leaks tracer: nothing is left in the end.
# 3. ROUNDS starts and stops at each server and at one that does not answer: memory, threads
#    and descriptors do not grow.
# 4. The plugin's tests under valgrind's memcheck (tests/memcheck.sh).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough
cd "$root"
rounds() {
    cargo build --locked -q -p gst-plugin-droidrelay -p droidrelay-bridge
    DROIDRELAY_ROUNDS=$1 cargo test --locked -q -p droidrelay-tests --test end-to-end rounds:: -- --nocapture
}
if [ "${1:-}" = --rounds ]; then
    rounds "${2:-1000}"
    exit
fi
minutes=${1:-60}
rounds=${2:-10000}
seed=${3:-$(date +%s)}
cargo build --workspace --locked -q
lab=${CARGO_TARGET_DIR:-target}/debug/lab
"$lab" soak --minutes "$minutes" --seed "$seed" --by gst-launch-1.0
# The other server where there is MediaMTX: even seeds take it.
"$lab" soak --minutes "$minutes" --seed "$((seed + 1))" --by droidrelay
"$lab" soak --minutes "$((minutes / 10))" --seed "$((seed + 2))" --leaks
rounds "$rounds"
"$root/tests/memcheck.sh"
